"""The files of a store looked at as files, without LMDB: whatever is in them, this comes to an end.

A store that is served may be looked at, too: a read transaction keeps the pages as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from mpifs.core.errors import MpifsError
from mpifs.core.limits import PROBLEMS_MAX
from mpifs.core.messages import FileProblem, InspectReply
from mpifs.core.superblock import SUPERBLOCK_NAME, Role
from mpifs.datafile import DATA_NAME
from mpifs.pagefile import PageFile
from mpifs.store.chunks import ChunkStore
from mpifs.store.folder import check_unused, read_superblock
from mpifs.store.side import DATABASES, SIDES

_DETAIL_CHARACTERS_MAX = 150  # so 4 × PROBLEMS_MAX of them fit into a message's arguments.


def inspect(
    folder: str, store: ChunkStore | None, is_stopped: Callable[[], bool] = bool
) -> InspectReply:
    """What is wrong with the files of a store's folder.  `store` is that store if it is served
    here.  Raises InUseError if another process serves it.
    """
    problems: list[FileProblem] = []
    count = 0
    for file, details in _files(folder, store):
        for told, detail in enumerate(details):
            count += 1
            if told < PROBLEMS_MAX:
                problems.append(FileProblem(file, detail[:_DETAIL_CHARACTERS_MAX]))
            if is_stopped():
                break
    return InspectReply(problems, count)


def file_problems(path: str) -> Iterator[str]:
    """Sentences about the data file of an environment; none if it is whole."""
    data = os.path.join(path, DATA_NAME)
    try:
        if os.path.getsize(data) == 0:
            yield "is empty"
            return
        with PageFile(data) as pages:
            yield from pages.problems(DATABASES)
    except FileNotFoundError:
        yield "is missing"
    except MpifsError as error:
        yield str(error)
    except OSError as error:
        yield f"cannot be read: {error.strerror}"


def has_side(folder: str, side: str) -> bool:
    """Whether the environment has to be there; `copy/` comes with the first copy of the index."""
    return side != "copy" or os.path.lexists(os.path.join(folder, side))


def _files(folder: str, store: ChunkStore | None) -> Iterator[tuple[str, Iterator[str]]]:
    """Files of the folder, each with its problems."""
    if not os.path.isdir(folder):
        yield "", iter(["is missing; is its disk mounted?"])
        return
    if store is None:
        check_unused(folder)
    yield SUPERBLOCK_NAME, _superblock_problems(folder)
    with ExitStack() as held:
        for side in store.sides if store is not None else ():
            held.enter_context(side.environment.read())
        for name in SIDES:
            if has_side(folder, name):
                yield f"{name}/{DATA_NAME}", file_problems(os.path.join(folder, name))


def _superblock_problems(folder: str) -> Iterator[str]:
    try:
        block = read_superblock(folder)
    except MpifsError as error:
        yield str(error)
        return
    if block is None:
        yield "is missing"
    elif block.role is not Role.STORE:
        yield "is an index's and no chunk store's"
