"""Folders of stores made into what they are named: superblocks mended, exchanged folders renamed.

A folder is what its superblock says, not what it is named.  Stores of other volumes are left alone.
Each step is one rename, and what to do next is derived from the disk alone, so a process killed at
any point leaves something that the next call brings to the same end:

    worker-1 holds 2,  worker-2 holds 1           exchanged
    worker-1 holds 2,  worker-2.moving holds 1    2's place was not free
    worker-2 holds 2,  worker-2.moving holds 1
    worker-2 holds 2,  worker-1 holds 1
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from mpifs import faultpoint
from mpifs.core.errors import FormatError, MpifsError
from mpifs.core.image import KEY_BYTES, decode_key
from mpifs.core.mending import correct_superblock
from mpifs.core.messages import Rebuild
from mpifs.core.superblock import MAGIC, SUPERBLOCK_BYTES, Role, Superblock
from mpifs.core.superblock import decode as decode_superblock
from mpifs.core.types import ChecksumKind
from mpifs.datafile import DATA_NAME, disk_failure
from mpifs.pagefile import PageFile
from mpifs.store.chunks import ChunkStore
from mpifs.store.folder import (
    check_identity,
    check_unused,
    put_in_place,
    read_superblock,
    store_folder,
    superblock_bytes,
    write_superblock,
)
from mpifs.store.side import SIDES
from mpifs.store.survey import EMPTY, MOVING, OK, report_of, store_names
from mpifs.store.value import header_of

_EVIDENCE_ROWS = 10_000  # listed headers of each environment that are looked at
_UUID_BYTES_WRONG_MAX = 8  # of 16: another UUID differs in about 16, a damaged one in fewer


def make_right(volume_folder: str, wanted: Rebuild) -> list[str]:
    """Sees that `worker-N` is the store that is wanted, with a whole superblock; an empty folder
    becomes an empty store.  Sentences of what was done.

    Raises FormatError if there is none, or if what is there may be another one's; InUseError.
    """
    with _one_at_a_time(volume_folder):
        done = _correct_superblocks(volume_folder, wanted.volume_uuid)
        done += _bring_home(volume_folder, wanted.volume_uuid)
        done += _make_store(volume_folder, wanted)
    return done


@contextmanager
def _one_at_a_time(volume_folder: str) -> Iterator[None]:
    """Ranks of one host share its folders."""
    try:
        fd = os.open(volume_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise disk_failure(error, error.errno, volume_folder) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _correct_superblocks(volume_folder: str, volume_uuid: bytes) -> list[str]:
    """Superblocks of this volume with one wrong byte."""
    done = []
    for name in sorted(store_names(volume_folder)):
        folder = os.path.join(volume_folder, name)
        try:
            data = superblock_bytes(folder)
        except MpifsError:
            continue
        if data is None or report_of(volume_folder, name).state == OK:
            continue
        fixed = correct_superblock(data)
        if fixed is None:
            continue
        block = decode_superblock(fixed, name)
        if block.role is Role.STORE and block.volume_uuid == volume_uuid:
            faultpoint.reach("store.rebuild")
            write_superblock(folder, block)
            done.append(f"corrected one byte of the superblock of {folder}")
    return done


def _bring_home(volume_folder: str, volume_uuid: bytes) -> list[str]:
    """Renames the volume's stores that stand under foreign names, one by one."""
    done = []
    while step := _next_rename(volume_folder, volume_uuid):
        old, new = (os.path.join(volume_folder, name) for name in step)
        check_unused(old)
        faultpoint.reach("store.rebuild")
        if os.path.lexists(new):
            _remove_empty(new)
        put_in_place(old, new)
        done.append(f"renamed {old} to {step[1]}")
    return done


def _next_rename(volume_folder: str, volume_uuid: bytes) -> tuple[str, str] | None:
    """A folder and its new name.  If every place is taken by one that is misplaced itself, one of
    these is moved out of the way."""
    reports = [report_of(volume_folder, name) for name in sorted(store_names(volume_folder))]
    homes = {
        report.name: f"worker-{report.store}"
        for report in reports
        if report.state == OK and report.volume_uuid == volume_uuid
    }
    empty = {report.name for report in reports if report.state == EMPTY}
    misplaced = [name for name, home in homes.items() if name != home]
    for name in misplaced:
        home = homes[name]
        if home in empty or not os.path.lexists(os.path.join(volume_folder, home)):
            return name, home
    for name in misplaced:
        home = homes[name]
        if home in misplaced and not os.path.lexists(os.path.join(volume_folder, home + MOVING)):
            return home, home + MOVING
    return None


def _remove_empty(folder: str) -> None:
    """Removes what an emptied store is, to make room for the store itself."""
    check_unused(folder)
    if os.path.ismount(folder):
        raise FormatError(f"{folder} is an empty disk in the place of a store; unmount it")
    try:
        if os.path.islink(folder):
            os.unlink(folder)
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise disk_failure(error, error.errno, folder) from error


def _make_store(volume_folder: str, wanted: Rebuild) -> list[str]:
    """Sees that the folder in the store's place has the store's superblock."""
    folder = store_folder(volume_folder, wanted.store)
    _check_not_elsewhere(volume_folder, wanted)
    if not os.path.isdir(folder):
        raise FormatError(f"{folder} is missing; is its disk mounted?")
    report = report_of(volume_folder, os.path.basename(folder))
    kind = ChecksumKind(wanted.checksum)
    if report.state == OK:
        block = read_superblock(folder)
        if block is not None:
            check_identity(
                folder,
                block,
                volume_uuid=wanted.volume_uuid,
                store_uuid=wanted.store_uuid,
                store=wanted.store,
                chunk_size=wanted.chunk_size,
                checksum=kind,
            )
        return []
    if report.state == EMPTY:
        faultpoint.reach("store.rebuild")
        ChunkStore.open(
            folder,
            volume_uuid=wanted.volume_uuid,
            store_uuid=wanted.store_uuid,
            store=wanted.store,
            chunk_size=wanted.chunk_size,
            checksum=kind,
            create=True,
        ).close()
        return [f"{folder} was empty: made an empty store there"]
    if doubt := _doubt(folder, wanted):
        raise FormatError(f"{folder} has no superblock that can be read, and {doubt}")
    check_unused(folder)
    faultpoint.reach("store.rebuild")
    write_superblock(folder, _block(wanted))
    return [f"wrote the superblock of {folder} anew"]


def _block(wanted: Rebuild) -> Superblock:
    return Superblock(
        Role.STORE,
        wanted.volume_uuid,
        wanted.store_uuid,
        wanted.store,
        wanted.chunk_size,
        1,
        ChecksumKind(wanted.checksum),
        int(time.time()),
    )


def _check_not_elsewhere(volume_folder: str, wanted: Rebuild) -> None:
    """Raises FormatError if the store stands under another name and could not be brought home."""
    home = f"worker-{wanted.store}"
    reports = [report_of(volume_folder, name) for name in store_names(volume_folder)]
    identity = (wanted.volume_uuid, wanted.store_uuid)
    names = [r.name for r in reports if (r.volume_uuid, r.store_uuid) == identity]
    if names and home not in names:
        raise FormatError(
            f"{os.path.join(volume_folder, names[0])} is store {wanted.store}, but something else "
            f"stands in its place; move {home} away"
        )


def _doubt(folder: str, wanted: Rebuild) -> str:
    """Why a folder without a readable superblock may be another store; "" if nothing says so."""
    data = superblock_bytes(folder) or b""
    if len(data) >= SUPERBLOCK_BYTES and data.startswith(MAGIC):
        for wrong, start in ((wanted.volume_uuid, 16), (wanted.store_uuid, 32)):
            differing = sum(map(int.__ne__, wrong, data[start : start + 16]))
            if differing > _UUID_BYTES_WRONG_MAX:
                return "what is left of it names another store or volume"
    is_store = False
    for side in SIDES:
        path = os.path.join(folder, side, DATA_NAME)
        try:
            with PageFile(path) as pages:
                is_store = True
                if any(_is_foreign(value, side, wanted) for value in _listed(pages)):
                    return "its chunks do not fit the volume's chunk size and checksum"
                if side == "copy" and _names_other_volume(pages, wanted.volume_uuid):
                    return "it holds copies of another volume's index"
        except MpifsError:
            continue
    return "" if is_store else "no chunks; move away what is there"


def _listed(pages: PageFile) -> Iterator[memoryview]:
    return (value for _, value in islice(pages.rows("headers"), _EVIDENCE_ROWS))


def _is_foreign(value: memoryview, side: str, wanted: Rebuild) -> bool:
    header = header_of(value)
    if header is None:
        return False
    is_long = header.length > wanted.chunk_size and side != "copy"
    return is_long or header.checksum_kind != wanted.checksum


def _names_other_volume(pages: PageFile, volume_uuid: bytes) -> bool:
    """Whether a copy's first piece, which tells the volume's UUID, lacks it."""
    for key, value in pages.rows("chunks"):
        if len(key) == KEY_BYTES and decode_key(key)[:2] != (0, 0):
            return False
        if volume_uuid not in bytes(value):
            return True
    return False
