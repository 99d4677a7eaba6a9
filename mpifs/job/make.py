"""`mpifs mkfs`: makes a volume, which is its index; its stores are made by the ranks that serve
them first, on their own hosts' disks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from mpifs import faultpoint
from mpifs.core.checksum import NAMES, name_of
from mpifs.core.errors import FormatError, PosixError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import (
    CAPACITY_BYTES_MIN,
    CHUNK_BYTES_DEFAULT,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    MIB,
    REPLICAS_MAX,
    STORES_MAX,
    WORKERS_DEFAULT,
)
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import StoreEntry, StoreId, StoreState
from mpifs.job import launch
from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder, has_stores, is_volume

_MAY_STAND = {"run", "lost+found"}


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the user asked a volume to be; None = not said."""

    workers: int | None = None
    chunk_size: int | None = None
    replicas: int | None = None
    checksum: str | None = None
    capacity: int | None = None

    def check(self) -> None:
        """Raises PosixError(EINVAL) with the sentence for the first thing that cannot be."""
        workers = WORKERS_DEFAULT if self.workers is None else self.workers
        size = CHUNK_BYTES_DEFAULT if self.chunk_size is None else self.chunk_size
        replicas = 1 if self.replicas is None else self.replicas
        if not 1 <= workers <= STORES_MAX:
            raise _invalid(f"--workers {workers}: a volume has 1 to {STORES_MAX} workers")
        if not is_chunk_size(size, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX):
            raise _invalid(f"--chunk-size {size}: give a power of two from 4KiB to 64MiB")
        if not 1 <= replicas <= REPLICAS_MAX:
            raise _invalid(f"--replicas {replicas}: give 1 to {REPLICAS_MAX}")
        if replicas > workers:
            raise _invalid(f"--replicas {replicas} needs as many workers, there are {workers}")
        if self.capacity is not None and not CAPACITY_BYTES_MIN <= self.capacity < 2**63:
            least = CAPACITY_BYTES_MIN // MIB
            raise _invalid(f"--capacity {self.capacity}: give at least {least}MiB for each worker")
        if self.checksum not in (None, *NAMES):
            raise _invalid(f"--checksum {self.checksum}: give {' or '.join(NAMES)}")


def _invalid(sentence: str) -> PosixError:
    return PosixError(errno.EINVAL, sentence)


def make_volume(path: str, geometry: Geometry) -> VolumeFolder:
    """Makes a volume in a folder that is not there or empty.

    Raises FormatError when the folder holds a volume or something else, PosixError for an
    impossible geometry; nothing is changed then.
    """
    from mpifs.index.index import Index

    geometry.check()
    folder = VolumeFolder(os.path.realpath(path))
    check_place(folder, path)
    volume = uuid.uuid4().bytes
    block = Superblock(
        role=Role.INDEX,
        volume_uuid=volume,
        own_uuid=volume,
        store=0,
        chunk_size=geometry.chunk_size or CHUNK_BYTES_DEFAULT,
        replicas=geometry.replicas or 1,
        checksum=NAMES[geometry.checksum or "xxh3-128"],
        created_s=int(time.time()),
        capacity_bytes=geometry.capacity or 0,
    )
    count = geometry.workers or WORKERS_DEFAULT
    stores = [
        StoreEntry(StoreId(number), uuid.uuid4().bytes, StoreState.FRESH)
        for number in range(1, count + 1)
    ]
    os.makedirs(folder.path, mode=0o700, exist_ok=True)
    os.chmod(folder.path, 0o700)
    faultpoint.reach("mkfs.folder")
    # Made beside its place and renamed, so that a mkfs that dies leaves no half index.
    unfinished = folder.index + ".new"
    shutil.rmtree(unfinished, ignore_errors=True)
    Index.make(unfinished, block, stores)
    faultpoint.reach("mkfs.made")
    os.rename(unfinished, folder.index)
    faultpoint.reach("mkfs.renamed")
    return folder


def check_place(folder: VolumeFolder, said: str) -> None:
    """Raises FormatError with a sentence when no volume can be made in the folder."""
    if is_volume(folder.path):
        raise FormatError(f"{said} holds a volume already; choose another folder, or remove it")
    try:
        mode = os.stat(folder.path).st_mode
        names = set(os.listdir(folder.path)) if stat.S_ISDIR(mode) else set()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise FormatError(f"{said} is not a directory; choose another place")
    if has_stores(folder.path):
        raise FormatError(f"{said} holds chunk stores of a volume; choose another folder")
    if names - _MAY_STAND - {"index.new"}:
        raise FormatError(f"{said} is not empty and holds no volume; choose another folder")


@contextlib.contextmanager
def made_on_first_use(path: str, geometry: Geometry) -> Iterator[VolumeFolder]:
    """The volume at `path`, made if there is none; taken away again when the block fails before
    the volume was served.

    Raises FormatError when `geometry` says other than the volume that is there.
    """
    if is_volume(path):
        folder = VolumeFolder(os.path.realpath(path))
        check_geometry(folder, geometry)
        yield folder
        return
    was_there = os.path.isdir(path)
    folder = make_volume(path, geometry)
    try:
        yield folder
    except BaseException:
        if "rank0" not in job_state.read(folder):  # never served: nobody can have used it.
            _remove(folder, everything=not was_there)
        raise


def _remove(folder: VolumeFolder, *, everything: bool) -> None:
    """Takes away a volume that was made a moment ago and never served.  Its log stays where the
    folder was the user's."""
    for name in os.listdir(folder.path):
        if name in ("index", "index.new") or name.startswith("worker-"):
            shutil.rmtree(os.path.join(folder.path, name), ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in ("state.json", "state.json.lock", "config.json", "lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder.run, name))
        if everything and (not os.path.exists(folder.log) or not os.path.getsize(folder.log)):
            shutil.rmtree(folder.path)


def check_geometry(folder: VolumeFolder, wanted: Geometry) -> None:
    """Raises FormatError when something was said that the volume is not."""
    from mpifs.index.volume import read_superblock

    wanted.check()
    block = read_superblock(folder.index)
    said = [
        ("--chunk-size", wanted.chunk_size, block.chunk_size),
        ("--replicas", wanted.replicas, block.replicas),
        ("--checksum", wanted.checksum, name_of(block.checksum)),
        ("--capacity", wanted.capacity, block.capacity_bytes or "none"),
    ]
    for option, value, has in said:
        if value is not None and value != has:
            raise FormatError(
                f"{option} {value}: the volume at {folder.path} was made with {has}; leave it out"
            )


def worker_count(folder: VolumeFolder) -> int:
    """How many workers the volume has.  Raises InUseError when it is served."""
    from mpifs.index.index import Index

    with launch.hold(folder):
        index = Index.open(folder.index, preallocate=False)
        try:
            return len(index.stores())
        finally:
            index.close()


def check_workers(folder: VolumeFolder, wanted: int | None, has: int) -> None:
    """Raises FormatError when -w says another number of workers than the volume has."""
    if wanted is not None and wanted != has:
        raise FormatError(
            f"the volume at {folder.path} has {has} workers, not {wanted}; "
            f"mount it with -w {has}, or without -w"
        )
