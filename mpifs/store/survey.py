"""The folders named `worker-*` at a volume's path, good or bad."""

from __future__ import annotations

import os
import re

from mpifs.core.errors import MpifsError
from mpifs.core.messages import FolderReport, SurveyReply
from mpifs.core.superblock import Role
from mpifs.datafile import DATA_NAME
from mpifs.store.folder import LOCK_NAME, read_superblock
from mpifs.store.side import SIDES

OK = "ok"
EMPTY = "empty"
BARE = "bare"
DAMAGED = "damaged"

MOVING = ".moving"
_NAME = re.compile(r"worker-[1-9][0-9]{0,4}(\.moving)?\Z")
_NOTHING = {LOCK_NAME, "superblock.new", "lost+found", *(f"{side}.new" for side in SIDES)}
"""Names that say nothing of what a folder is; a disk's own root has a lost+found."""

_DETAIL_CHARACTERS_MAX = 300
_FOLDERS_MAX = 128  # of one host; so a reply fits into a message's arguments.


def survey(volume_folder: str) -> SurveyReply:
    """A report of each folder, in the order of names; links that lead nowhere are left out."""
    names = sorted(store_names(volume_folder), key=lambda name: (len(name), name))
    return SurveyReply([report_of(volume_folder, name) for name in names[:_FOLDERS_MAX]])


def store_names(volume_folder: str) -> list[str]:
    """Names of all folders that are, or are named as, chunk stores."""
    try:
        names = os.listdir(volume_folder)
    except OSError:
        return []
    return [
        name
        for name in names
        if _NAME.match(name) and os.path.exists(os.path.join(volume_folder, name))
    ]


def report_of(volume_folder: str, name: str) -> FolderReport:
    """What a folder is by its superblock, or without one by what it holds."""
    folder = os.path.join(volume_folder, name)
    if not os.path.isdir(folder):
        return FolderReport(name, DAMAGED, detail=f"{folder} is no folder")
    try:
        block = read_superblock(folder)
        if block is None:
            return _without_superblock(folder, name)
    except MpifsError as error:
        return FolderReport(name, DAMAGED, detail=str(error)[:_DETAIL_CHARACTERS_MAX])
    if block.role is not Role.STORE:
        return FolderReport(name, DAMAGED, detail=f"{folder} is an index and no chunk store")
    return FolderReport(
        name,
        OK,
        block.store,
        block.volume_uuid,
        block.own_uuid,
        chunk_size=block.chunk_size,
        checksum=block.checksum,
    )


def _without_superblock(folder: str, name: str) -> FolderReport:
    for side in SIDES:
        if os.path.exists(os.path.join(folder, side, DATA_NAME)):
            return FolderReport(name, BARE, detail=f"{folder} has no superblock")
    if _is_empty(folder):
        return FolderReport(name, EMPTY)
    return FolderReport(name, DAMAGED, detail=f"{folder} holds something else than a chunk store")


def _is_empty(folder: str) -> bool:
    """Whether there is nothing but what the beginning or the end of a store leaves."""
    try:
        for name in set(os.listdir(folder)) - _NOTHING:
            if name not in SIDES or set(os.listdir(os.path.join(folder, name))) - {"lock.mdb"}:
                return False
    except OSError:
        return False
    return True
