"""Brings an index back that cannot be opened: from its own pages, a copy, or the chunks alone.

    damaged or gone ──build beside──► index.new whole ──rename──► index.damaged-N ──rename──► index

`index.new` gets its superblock last; nothing of the old folder is changed, it is only renamed.  So
a run that is killed anywhere is repeated, or (between the two renames) finished, by the next one.
The recovered index holds the sign `restored` (core/restored.py) until a repair run has reconciled
it with the stores to its end; a superblock alone is mended in place, without one.

Used at rest, by one thread, while the job has the volume to itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpifs import faultpoint
from mpifs.core import records, superblock
from mpifs.core.errors import DamageError, FormatError, MpifsError
from mpifs.core.mending import correct_superblock
from mpifs.core.restored import Recovery, Restored
from mpifs.core.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_NAME, Role, Superblock
from mpifs.core.types import ROOT_INODE, StoreEntry, StoreId, StoreState
from mpifs.datafile import DATA_NAME, disk_failure
from mpifs.index.rebuild import Sources, rebuild_rows, settle_meta
from mpifs.index.volume import lock_folder, read_superblock, write_superblock
from mpifs.kv import Environment
from mpifs.pagefile import PageFile
from mpifs.repair.chunk_census import ChunkCensus, take_census
from mpifs.repair.copies import CopyStores, IndexCopy, Manifest, find_copies
from mpifs.repair.copy_reader import fetch_newest
from mpifs.repair.findings import Progress
from mpifs.repair.index_files import index_damage, tree_problems

log = logging.getLogger(__name__)


def restore_index(
    folder: str,
    stores: CopyStores,
    blocks: Sequence[Superblock],
    *,
    missing: Sequence[int] = (),
    progress: Progress,
) -> list[str]:
    """Makes the index openable; sentences on how, and how much of it was recovered.

    `folder` is the volume's `index`; `stores` are being served; `blocks` are the superblocks of all
    its stores that were found, `missing` the ids of stores that should be there and are not.
    Nothing is done if the index is whole.  May be repeated, also after being killed.

    Raises FormatError (no superblock of any store; or nothing but a copy could help and a
    missing store may hold it), FullError, InUseError, CancelledError, OSError.
    """
    place = _Place(folder)
    if not os.path.lexists(folder) and place.is_new_whole():
        faultpoint.reach("repair.commit")
        _rename(place.new, folder)
        place.clear()
        return ["an interrupted recovery of the index was finished"]
    place.clear()
    if not index_damage(folder):
        return []
    with contextlib.ExitStack() as undo:
        if os.path.isdir(folder):
            undo.callback(os.close, lock_folder(folder))
        undo.callback(place.clear)
        if not tree_problems(folder):
            return _mend_superblock(folder, stores, blocks)
        return _Restoration(place, stores, blocks, missing, progress).run()


@dataclass(frozen=True, slots=True)
class _Place:
    """The volume's `index` and the folders beside it."""

    index: str

    @property
    def new(self) -> str:
        return self.index + ".new"

    @property
    def copy(self) -> str:
        return self.index + ".copy"

    def damaged(self) -> str:
        """A name that nothing has yet."""
        number = 1
        while os.path.lexists(f"{self.index}.damaged-{number}"):
            number += 1
        return f"{self.index}.damaged-{number}"

    def clear(self) -> None:
        """Removes what an unfinished recovery left beside the index."""
        for path in (self.new, self.copy):
            if path == self.copy or os.path.lexists(self.index):
                shutil.rmtree(path, ignore_errors=True)

    def is_new_whole(self) -> bool:
        """Whether index.new is a finished recovery that was not yet renamed."""
        if index_damage(self.new):
            return False
        with contextlib.suppress(MpifsError), PageFile(os.path.join(self.new, DATA_NAME)) as pages:
            return any(key == records.KEY_RESTORED for key, _ in pages.rows(records.META))
        return False


class _Restoration:
    """One recovery of an index whose pages are damaged or gone."""

    def __init__(
        self,
        place: _Place,
        stores: CopyStores,
        blocks: Sequence[Superblock],
        missing: Sequence[int],
        progress: Progress,
    ) -> None:
        self._place = place
        self._stores = stores
        self._blocks = blocks
        self._missing = missing
        self._progress = progress

    def run(self) -> list[str]:
        """See restore_index."""
        place, progress = self._place, self._progress
        census = take_census(self._stores, progress)
        _make_empty(place.copy)
        copies = find_copies(self._stores)
        manifest = fetch_newest(self._stores, place.copy, progress, copies)
        geometry = find_geometry(place.index, self._blocks, manifest, census.replicas)
        _make_empty(place.new)
        environment = Environment(
            place.new, records.DATABASES, create=True, sync="relaxed", preallocate=False
        )
        try:
            sources, restored = self._fill(environment, geometry, manifest, census)
            if sources.lost or sources.copied:
                self._check_missing(copies, manifest)
            environment.sync()
        finally:
            environment.close()
        faultpoint.reach("repair.commit")
        write_superblock(place.new, geometry)
        return [
            *_sentences(sources, restored, manifest, census),
            *self._put_in_place(),
        ]

    def _fill(
        self,
        environment: Environment,
        geometry: Superblock,
        manifest: Manifest | None,
        census: ChunkCensus,
    ) -> tuple[Sources, Restored]:
        place, check = self._place, self._progress.check
        with contextlib.ExitStack() as files:
            pages = _open_pages(place.index, files)
            copy = None if manifest is None else _open_pages(place.copy, files)
            sources = rebuild_rows(environment, pages, copy, check)
        generation = manifest.generation if manifest and sources.copied else 0
        date_s = manifest.date_s if manifest and sources.copied else 0
        if sources.own or sources.older:
            how = Recovery.FROM_PAGES
        else:
            how = Recovery.FROM_COPY if generation else Recovery.FROM_CHUNKS
        restored = Restored(how, generation, date_s)
        entries = store_entries(self._blocks, geometry.volume_uuid)
        settle_meta(environment, geometry, entries, census.used, restored, check)
        return sources, restored

    def _check_missing(self, copies: Sequence[IndexCopy], used: Manifest | None) -> None:
        """Raises FormatError if a store that is missing may hold a better copy than the used one.

        Two copies of one generation are the same; so only a newer one counts, of which a manifest
        tells, or any if none was found.
        """
        better = set(self._missing)
        if used is not None:
            newer = [one.manifest for one in copies if one.manifest.generation > used.generation]
            better.intersection_update(*(manifest.holders for manifest in newer[:1]))
            if not newer:
                return
        if better:
            names = ", ".join(map(str, sorted(better)))
            raise FormatError(
                f"no whole copy of the index, or only an older one, is on the workers that are "
                f"here; the stores of workers {names} are missing, and their disks may hold one.  "
                f"Bring them back and run this again; if they are gone for good, first make an "
                f"empty folder in the place of each"
            )

    def _put_in_place(self) -> list[str]:
        """The two renames; a sentence on where the damaged index is, if there was one."""
        place = self._place
        told = []
        if os.path.lexists(place.index):
            damaged = place.damaged()
            faultpoint.reach("repair.commit")
            _rename(place.index, damaged)
            told.append(f"the damaged index is kept as {damaged}; remove it when all is well")
        faultpoint.reach("repair.commit")
        _rename(place.new, place.index)
        return told


def find_geometry(
    folder: str, blocks: Sequence[Superblock], manifest: Manifest | None, replicas: int
) -> Superblock:
    """The superblock of the index in `folder`: as it is there, or with its one wrong byte
    corrected, or a copy's, or made from those of the stores.  Raises FormatError if there is none.
    """
    with contextlib.suppress(MpifsError, OSError):
        return read_superblock(folder)
    with contextlib.suppress(MpifsError, OSError):
        path = os.path.join(folder, SUPERBLOCK_NAME)
        with open(path, "rb") as file:
            corrected = correct_superblock(file.read(SUPERBLOCK_BYTES))
        if corrected is not None:
            block = superblock.decode(corrected, path)
            if block.role is Role.INDEX:
                return block
    if manifest is not None:
        return manifest.geometry
    if not blocks:
        raise FormatError(
            f"{folder} is lost, and so is every store: nothing is left that it could be made from"
        )
    volumes = [block.volume_uuid for block in blocks]
    volume = max(sorted(set(volumes)), key=volumes.count)
    block = min((one for one in blocks if one.volume_uuid == volume), key=lambda one: one.store)
    return replace(block, role=Role.INDEX, own_uuid=volume, store=0, replicas=replicas)


def store_entries(blocks: Sequence[Superblock], volume: bytes) -> list[StoreEntry]:
    """A table of stores made from the superblocks that were found, in the order of their ids."""
    uuids = {block.store: block.own_uuid for block in blocks if block.volume_uuid == volume}
    return [
        StoreEntry(StoreId(store), uuid, StoreState.ACTIVE) for store, uuid in sorted(uuids.items())
    ]


def _mend_superblock(folder: str, stores: CopyStores, blocks: Sequence[Superblock]) -> list[str]:
    """Writes the superblock anew beside pages that are whole: nothing else has to be recovered."""
    copies = find_copies(stores)
    manifest = copies[0].manifest if copies else None
    geometry = find_geometry(folder, blocks, manifest, _root_replicas(folder))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, f"{SUPERBLOCK_NAME}.new"))
    faultpoint.reach("repair.commit")
    write_superblock(folder, geometry)
    return ["the superblock of the index was written anew; its pages are whole"]


def _root_replicas(folder: str) -> int:
    """Replicas of the root directory, which has the volume's unless a user set others."""
    root = records.inode_key(ROOT_INODE)
    with PageFile(os.path.join(folder, DATA_NAME)) as pages:
        for key, value in pages.rows(records.INODES):
            if key >= root:
                with contextlib.suppress(DamageError):
                    return records.decode_inode(key, value, records.InodeRecord).replicas
                break
    return 1


def _open_pages(folder: str, files: contextlib.ExitStack) -> PageFile | None:
    try:
        return files.enter_context(PageFile(os.path.join(folder, DATA_NAME)))
    except MpifsError as error:
        log.warning("%s", error)
        return None


def _make_empty(folder: str) -> None:
    try:
        if os.path.lexists(folder):
            shutil.rmtree(folder)
        os.mkdir(folder, 0o700)
    except OSError as error:
        raise disk_failure(error, error.errno, folder) from error


def _rename(old: str, new: str) -> None:
    """Renames a folder, durably."""
    try:
        os.rename(old, new)
        parent = os.open(os.path.dirname(os.path.abspath(new)), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise disk_failure(error, error.errno, new) from error


def _sentences(
    sources: Sources, restored: Restored, manifest: Manifest | None, census: ChunkCensus
) -> list[str]:
    """How the index was recovered, and how much of it."""
    told = []
    if restored.how is Recovery.FROM_PAGES:
        told.append(f"the index was made anew from its own pages: {sources.own} records")
        if sources.older:
            told.append(f"{sources.older} more from its state before the last commit")
    if sources.copied and manifest is not None:
        date = manifest.date
        if restored.how is Recovery.FROM_PAGES:
            told.append(f"{sources.copied} more from its copy of {date}")
        else:
            told.append(f"the index was restored from its copy of {date}: {sources.copied} records")
        told.append("what was changed after that is brought back as far as the chunks tell")
    if restored.how is Recovery.FROM_CHUNKS:
        told.append(
            f"no copy of the index was found; an empty one was made, and the chunks of "
            f"{census.files} files come back under lost+found"
        )
    elif sources.lost:
        names = ", ".join(sources.lost)
        told.append(f"records of {names} may be lost: no copy had them")
    return told
