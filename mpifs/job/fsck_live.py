"""Verify, repair and scrub inside the job of a mounted volume, while it is used.

What a run changes in the index goes through `Index.amend`; the kernel's caches of what it has
changed are dropped.  Used by one thread at a time (ChecksTurn).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from mpifs.core import records
from mpifs.core.errors import MpifsError
from mpifs.core.limits import RECOVERY_S
from mpifs.index.amendment import Amendment
from mpifs.index.index import Index
from mpifs.job.crew import Crew
from mpifs.job.folder import VolumeFolder
from mpifs.job.fsck_crew import Questions, host_finding
from mpifs.job.fsck_run import FsckRun
from mpifs.repair.check_chunks import check_chunks
from mpifs.repair.check_copies import check_copies
from mpifs.repair.check_index import INDEX_CHECKS
from mpifs.repair.check_stores import check_stores
from mpifs.repair.copies import CopyStores
from mpifs.repair.copy_reader import CopyRows
from mpifs.repair.findings import DAMAGE, Finding, Progress
from mpifs.repair.index_copier import IndexCopier
from mpifs.repair.index_files import tree_problems
from mpifs.repair.mend_found import FoundDamage, mend_found
from mpifs.repair.run import run as run_checks
from mpifs.repair.scrub import Pace
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_live import LiveVolume
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)


class LiveChecks:
    """The checks of a mounted volume."""

    def __init__(
        self,
        folder: VolumeFolder,
        index: Index,
        vfs: Vfs,
        client: Client,
        crew: Crew,
        copier: IndexCopier,
        stores: CopyStores,
    ) -> None:
        self._folder = folder
        self._index = index
        self._vfs = vfs
        self._client = client
        self._crew = crew
        self._copier = copier
        self._stores = stores

    @property
    def folder(self) -> VolumeFolder:
        """The volume."""
        return self._folder

    def check(self, run: FsckRun) -> None:
        """One run of `mpifs fsck`.  Raises CancelledError, MpifsError when it cannot go on."""
        progress = run.progress
        progress.phase = "stores"
        for finding in self._check_stores(progress):
            run.report(finding)
        with self._view(progress) as view:
            for finding in self._check_index_file(view):
                run.report(finding)
            run_checks(
                view,
                self._access(),
                INDEX_CHECKS,
                partial(check_copies, self._stores, self._copier, progress, data=run.data),
                data=run.data,
                repair=run.repair,
                adopt=False,
                progress=progress,
                report=run.report,
            )

    def scrub(
        self,
        start: bytes,
        *,
        repair: bool,
        pace: Pace,
        progress: Progress,
        report: Callable[[Finding], None],
        reached: Callable[[bytes], None],
    ) -> None:
        """See scrub_service.ScrubWork: the index (at the beginning of a pass), the chunks, the
        copies of the index (at its end)."""
        with self._view(progress) as view:
            findings: list[Iterable[Finding]] = []
            if not start:
                findings += [check(view, progress) for check in INDEX_CHECKS]
            findings.append(
                check_chunks(
                    view,
                    self._access(),
                    data=True,
                    progress=progress,
                    start=start,
                    pace=pace,
                    on_position=reached,
                )
            )
            findings.append(check_copies(self._stores, self._copier, progress))
            for finding in itertools.chain.from_iterable(findings):
                if repair and finding.remedy is not None:
                    try:
                        finding.repaired = finding.remedy()
                    except MpifsError as error:
                        log.warning("scrub: %s: not repaired: %s", finding.check, error)
                report(finding)

    def mend(self, found: Iterable[FoundDamage]) -> list[FoundDamage]:
        """See mend_service.MendWork."""
        with self._view(Progress()) as view:
            return mend_found(view, self._access(), found)

    def _check_stores(self, progress: Progress) -> Iterator[Finding]:
        """The stores as folders and files, and the workers that should be there."""
        self._crew.await_all(RECOVERY_S)
        questions = Questions(self._client, self._crew)
        for host in questions.survey(progress):
            if host.trouble:
                yield host_finding(host)
        yield from check_stores(
            self._index.geometry,
            self._index.stores(),
            questions.hosts,
            questions.inspect(self._live(), progress),
        )
        for worker in self._crew.workers:
            if worker.state != "serving":
                yield Finding(
                    "check_worker_answers",
                    DAMAGE,
                    f"worker {worker.store} is {worker.state} ({worker.reason}): what it alone "
                    "holds cannot be read or checked",
                    worker=worker.store,
                )

    def _check_index_file(self, view: LiveVolume) -> Iterator[Finding]:
        """The index's data file as a file.  The read transaction keeps its pages as they are."""
        with view.snapshot():
            problems = tree_problems(self._folder.index)
        if problems:
            yield Finding(
                "check_index_files",
                DAMAGE,
                f"the index's file is damaged: {'; '.join(problems[:3])}; unmount as soon as "
                "possible and run mpifs fsck --repair on the unmounted volume",
            )

    def _live(self) -> list[int]:
        return [worker.store for worker in self._crew.workers if worker.state == "serving"]

    def _access(self) -> StoreAccess:
        kind = self._index.geometry.checksum
        crew = self._crew
        return StoreAccess(
            self._client,
            crew.rank_of,
            set(self._live()),
            kind,
            await_serving=crew.await_serving,
        )

    @contextlib.contextmanager
    def _view(self, progress: Progress) -> Iterator[LiveVolume]:
        folder = os.path.join(self._folder.run, "index-copy")
        rows = CopyRows(self._stores, folder, progress)
        try:
            yield LiveVolume(self._index, self._vfs.committer.settle, rows.row, self._on_amended)
        finally:
            rows.close()

    def _on_amended(self, amendment: Amendment) -> None:
        """The kernel forgets what it has cached of the inodes and names that were changed."""
        inodes, entries = set(), []
        for row in amendment.rows:
            if row.database in (records.INODES, records.DENTRIES) and len(row.key) >= 8:
                ino = int.from_bytes(row.key[:8], "big")
                inodes.add(ino)
                if row.database == records.DENTRIES:
                    entries.append((ino, bytes(row.key[8:])))
        if inodes:
            self._vfs.nodes.on_change(inodes, entries)
