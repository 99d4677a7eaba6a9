"""The index as files: whether it can be opened, and whether it was recovered and is not reconciled.

What to do about it is restore.py's.  Nothing here changes anything but `finish_restore`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from mpifs import faultpoint
from mpifs.core import records
from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.restored import Recovery, Restored, decode_restored
from mpifs.core.superblock import SUPERBLOCK_NAME
from mpifs.datafile import DATA_NAME
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.volume import read_superblock
from mpifs.kv import ReadTransaction
from mpifs.pagefile import PageFile
from mpifs.repair.copies import CopyStores, find_copies
from mpifs.repair.findings import DAMAGE, Finding
from mpifs.repair.volume import VolumeView

_PROBLEMS_MAX = 20


def index_damage(folder: str) -> list[str]:
    """Why the index in `folder` (the volume's `index`) cannot be opened: sentences, [] if it can.

    Changes nothing; reads all its pages.
    """
    if not os.path.isdir(folder):
        return [f"the index {folder} is missing"]
    problems = tree_problems(folder)
    try:
        read_superblock(folder)
    except (MpifsError, OSError):
        problems.insert(0, f"{os.path.join(folder, SUPERBLOCK_NAME)} is missing or damaged")
    return problems


def tree_problems(folder: str) -> list[str]:
    """What is wrong with the data file; [] if it is whole."""
    try:
        with PageFile(os.path.join(folder, DATA_NAME)) as pages:
            return list(islice(pages.problems(records.DATABASES), _PROBLEMS_MAX))
    except MpifsError as error:
        return [str(error)]


def check_index_files(
    folder: str,
    restore: Callable[[], list[str]],
    told: Callable[[str], None],
    stores: CopyStores,
) -> Iterator[Finding]:
    """One finding for an index that cannot be opened; its remedy is `restore` (restore_index with
    its arguments), whose sentences go to `told`."""
    problems = index_damage(folder)
    if not problems:
        return

    def remedy() -> bool:
        for sentence in restore():
            told(sentence)
        return True

    shown = "; ".join(problems[:3])
    if len(problems) > 3:
        shown += f"; and {len(problems) - 3} more"
    yield Finding(
        "check_index_files",
        DAMAGE,
        f"the index cannot be used: {shown}; no file can be read until it is recovered"
        f"{_copies_told(stores)}",
        remedy=remedy,
    )


def _copies_told(stores: CopyStores) -> str:
    """Which copy of the index there is."""
    for copy in find_copies(stores):
        if copy.is_whole:
            names = " and ".join(map(str, copy.manifest.holders))
            return f"; its copy of {copy.manifest.date} is on workers {names}"
    return "; there is no copy of it on the workers that are here"


def restored_sign(transaction: ReadTransaction) -> Restored | None:
    """The sign that the index was recovered and is not reconciled yet; None if there is none.

    A damaged sign is one: it says FROM_PAGES, of no copy.
    """
    value = transaction.get(records.META, records.KEY_RESTORED)
    if value is None:
        return None
    try:
        return decode_restored(value)
    except DamageError:
        return Restored(Recovery.FROM_PAGES, 0, 0)


def finish_restore(view: VolumeView, absent: Collection[int] = ()) -> bool:
    """Takes the sign away: the index may be served again.  False if it stays because stores are
    `absent`: without the sign, what they hold and the index does not know would be taken for
    garbage once they are back.  True also if there was none.

    Requires: a repair run of all phases, adopting chunks, has come to its end.
    Raises MpifsError.
    """
    with view.snapshot() as transaction:
        if transaction.get(records.META, records.KEY_RESTORED) is None:
            return True
    if absent:
        return False
    faultpoint.reach("repair.commit")
    return view.amend(Amendment({RowKey(records.META, records.KEY_RESTORED): None}))
