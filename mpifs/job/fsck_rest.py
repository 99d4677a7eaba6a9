"""A run of verify or repair on a volume at rest: brings up what there is of it, then checks it.

    SURVEY ─▶ [repair: REBUILD] ─▶ INSPECT ─▶ SERVE ─▶ [repair: index restored] ─▶ checks, remedies
                                                                      └─▶ [repair: index copied]

Without `repair` nothing is changed on any disk.  Whatever is missing or damaged is a finding, and
the rest is checked all the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Sequence
from functools import partial

from mpifs.core import records
from mpifs.core.errors import DamageError, FormatError, MpifsError
from mpifs.core.limits import INDEX_COPY_TIMEOUT_S
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, StoreEntry, StoreState
from mpifs.datafile import DATA_NAME
from mpifs.index.raw import RawIndex
from mpifs.job.folder import VolumeFolder
from mpifs.job.fsck_crew import FsckCrew, HostFolders, Questions, host_finding
from mpifs.job.fsck_run import FsckRun
from mpifs.pagefile import PageFile
from mpifs.repair.check_chunks_alone import check_chunks_alone
from mpifs.repair.check_copies import check_copies
from mpifs.repair.check_index import INDEX_CHECKS
from mpifs.repair.check_stores import check_stores
from mpifs.repair.copies import CopyStores
from mpifs.repair.copy_reader import CopyRows
from mpifs.repair.findings import DAMAGE, ERROR, LOST, Finding
from mpifs.repair.index_copier import IndexCopier
from mpifs.repair.index_files import (
    check_index_files,
    finish_restore,
    restored_sign,
)
from mpifs.repair.restore import find_geometry, restore_index, store_entries
from mpifs.repair.run import run as run_checks
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_offline import OfflineVolume
from mpifs.transport.client import Client

log = logging.getLogger(__name__)


class RestChecks:
    """The checks of one job; one run after the other, each in its own thread."""

    def __init__(self, folder: VolumeFolder, client: Client, crew: FsckCrew) -> None:
        self.folder = folder
        self._client = client
        self._crew = crew
        self._served: set[int] = set()

    def check(self, run: FsckRun) -> None:
        """One run.  Raises CancelledError, MpifsError when it cannot go on."""
        _Volume(self.folder, self._client, self._crew, run, self._served).check()


class _Volume:
    """The volume in the course of one run."""

    def __init__(
        self,
        folder: VolumeFolder,
        client: Client,
        crew: FsckCrew,
        run: FsckRun,
        served: set[int],
    ) -> None:
        self.folder = folder
        self.client = client
        self.crew = crew
        self.run = run
        self.served = served
        self.progress = run.progress
        self.questions = Questions(client, crew)
        self.hosts: list[HostFolders] = []
        self.entries: list[StoreEntry] = []
        self.was_restored = False  # in this run, and reported so.
        self.blamed: set[int | None] = set()  # stores of which a finding has been reported.
        self.geometry: Superblock

    def check(self) -> None:
        """See the module."""
        self.progress.phase = "stores"
        self.hosts = self.questions.survey(self.progress)
        blocks = self._blocks()
        self.geometry = find_geometry(self.folder.index, blocks, None, 1)
        self.entries = self._table(blocks)
        self._check_stores()
        self._open_stores()
        self.progress.phase = "index"
        stores = self._copy_stores()
        if self._check_index_files(stores):
            self._check_index(stores)
        else:
            self._check_without_index()

    # What the volume is.

    def _blocks(self) -> list[Superblock]:
        """The superblocks of all store folders that have a whole one."""
        return [
            Superblock(
                Role.STORE,
                one.volume_uuid,
                one.store_uuid,
                one.store,
                one.chunk_size,
                1,
                ChecksumKind(one.checksum),
                0,
            )
            for host in self.hosts
            for one in host.folders
            if one.store_uuid and one.chunk_size and one.checksum in list(ChecksumKind)
        ]

    def _table(self, blocks: Sequence[Superblock]) -> list[StoreEntry]:
        """The table of stores, from wherever it can be read, and behind it what it should list:
        stores of this volume that are there.

        Read without LMDB: a damaged tree could end the process.
        """
        there = store_entries(blocks, self.geometry.volume_uuid)
        path = os.path.join(self.folder.index, DATA_NAME)
        with contextlib.suppress(MpifsError, OSError), PageFile(path) as pages:
            for key, value in pages.rows(records.META):
                if key == records.KEY_STORES:
                    with contextlib.suppress(DamageError):
                        listed = records.decode_stores(bytes(value))
                        known = {entry.store for entry in listed}
                        return listed + [entry for entry in there if entry.store not in known]
        return there

    def _missing(self) -> list[int]:
        """Stores that should be there and are not, as far as is known.  An empty folder in a
        store's place says that it is gone for good."""
        fresh = {entry.store for entry in self.entries if entry.state is StoreState.FRESH}
        wanted = {entry.store for entry in self.entries} | set(range(1, len(self.crew.workers) + 1))
        return sorted(store for store in wanted - fresh - self.served if not self._is_empty(store))

    # The stores.

    def _check_stores(self) -> None:
        """The stores as folders and files; with `repair` what is damaged is rebuilt first."""
        found = self._look_at_stores()
        if self.run.repair and found:
            for entry in self.entries:
                if entry.store in self.crew.placed and entry.store not in self.served:
                    self._rebuild(entry)
            self.hosts = self.questions.survey(self.progress)
            left = [_place_of(finding) for finding in self._look_at_stores()]
            for finding in found:
                finding.repaired = _place_of(finding) not in left
        self.blamed = {finding.worker for finding in found}
        for finding in found:
            self.run.report(finding)

    def _look_at_stores(self) -> list[Finding]:
        if not self.served:
            self.crew.place(self.geometry.volume_uuid, self.entries, self.hosts)
        inspected = self.questions.inspect(self.crew.placed, self.progress)
        found = [host_finding(host) for host in self.hosts if host.trouble]
        return found + list(check_stores(self.geometry, self.entries, self.hosts, inspected))

    def _rebuild(self, entry: StoreEntry) -> None:
        try:
            reply = self.questions.rebuild(self.geometry, entry, self.progress)
        except MpifsError as error:
            self.run.note(f"worker {entry.store} could not be rebuilt: {error}")
            return
        for sentence in reply.done:
            self.run.note(f"worker {entry.store}: {sentence}")

    def _open_stores(self) -> None:
        for entry in self.entries:
            if entry.store not in self.crew.placed or entry.store in self.served:
                continue
            try:
                stats = self.questions.open_store(self.geometry, entry, self.progress)
            except MpifsError as error:
                if entry.store not in self.blamed:
                    self.run.report(_unusable(entry, error))
                continue
            self.crew.free[entry.store] = stats.free
            self.crew.disk_of[entry.store] = stats.disk
            self.served.add(entry.store)

    def _copy_stores(self) -> CopyStores:
        order = [entry.store for entry in self.entries if entry.store in self.served]
        kind = self.geometry.checksum
        crew = self.crew
        return CopyStores(self.client, crew.rank_of, lambda: order, kind, crew.disk_of)

    # The index.

    def _check_index_files(self, stores: CopyStores) -> bool:
        """Whether the index can be opened, after a restore if that is asked for."""
        restore = partial(
            restore_index,
            self.folder.index,
            stores,
            self._blocks(),
            missing=self._missing(),
            progress=self.progress,
        )
        is_usable = True
        for finding in check_index_files(self.folder.index, restore, self.run.note, stores):
            is_usable = False
            if self.run.repair and finding.remedy is not None:
                try:
                    finding.repaired = is_usable = finding.remedy()
                    self.was_restored = finding.repaired
                except FormatError as error:
                    self.run.note(str(error))
            self.run.report(finding)
        return is_usable

    def _check_without_index(self) -> None:
        """What can be said without an index: of the chunks by themselves."""
        for finding in check_chunks_alone(self._access(), self.progress, data=self.run.data):
            self.run.report(finding)

    def _report(self, finding: Finding) -> None:
        """Passes a finding on.  What lies on a store that is there, and only cannot be used as it
        is, must not be called lost."""
        store = finding.worker
        is_hidden = store is not None and store in self.crew.placed and store not in self.served
        if finding.severity == LOST and is_hidden and not self._is_empty(store):
            finding.severity = DAMAGE
            finding.detail += "; but its store is there, and a repair may bring it back"
        self.run.report(finding)

    def _is_empty(self, store: int | None) -> bool:
        """Whether there is nothing in the folder that stands in a store's place."""
        folders = [one for host in self.hosts for one in host.folders]
        return any(one.name == f"worker-{store}" and one.state == "empty" for one in folders)

    def _access(self) -> StoreAccess:
        rank_of, kind = self.crew.rank_of, self.geometry.checksum
        return StoreAccess(
            self.client, rank_of, set(self.served), kind, self.entries, self.crew.await_serving
        )

    def _check_index(self, stores: CopyStores) -> None:
        """Everything that needs an index that can be opened."""
        run, progress = self.run, self.progress
        with contextlib.ExitStack() as held:
            index = RawIndex.open(self.folder.index)
            held.callback(index.close)
            copier = IndexCopier(index, stores)
            rows = CopyRows(stores, os.path.join(self.folder.run, "index-copy"), progress)
            held.callback(rows.close)
            view = OfflineVolume(index, rows.row)
            access = self._access()
            with view.snapshot() as transaction:
                is_restored = restored_sign(transaction) is not None
            if is_restored and not run.repair:
                run.report(_unfinished())
            run_checks(
                view,
                access,
                INDEX_CHECKS,
                partial(check_copies, stores, copier, progress, data=run.data),
                data=run.data,
                repair=run.repair,
                adopt=is_restored,
                progress=progress,
                report=self._report,
            )
            if run.repair:
                self.entries = view.stores() or self.entries
                absent = {*self._missing(), *access.silent}
                is_finished = finish_restore(view, absent)
                if not is_finished or (is_restored and not self.was_restored):
                    finding = _unfinished(absent)
                    finding.repaired = is_finished
                    run.report(finding)
                progress.phase = "copy of the index"
                copier.finish(INDEX_COPY_TIMEOUT_S)


def _unusable(entry: StoreEntry, error: MpifsError) -> Finding:
    return Finding(
        "check_store_opens",
        DAMAGE,
        f"the store of worker {entry.store} cannot be opened ({error}): its chunks cannot be read",
        worker=entry.store,
    )


def _unfinished(absent: Collection[int] = ()) -> Finding:
    what = "run mpifs fsck --repair to finish the recovery"
    if absent:
        names = ", ".join(map(str, sorted(absent)))
        what = (
            f"bring back the stores of workers {names} first (what they hold may be newer than the "
            f"index), or make an empty folder in the place of each, if it is gone for good; then "
            f"{what}"
        )
    return Finding(
        "check_restored",
        ERROR,
        "the index was recovered and is not yet reconciled with the stores: the volume cannot be "
        f"mounted; {what}",
    )


def _place_of(finding: Finding) -> tuple[object, ...]:
    return finding.check, finding.worker, finding.severity
