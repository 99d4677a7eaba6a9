"""The table of phases: what is measured, in which order, in which unit, under which limits.

The limits `fuse` and `disk` are places where the same phase runs; the others are measured without
any file system (limits.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mpifs.bench.stage import HARD_RECORD_BYTES, Stage
from mpifs.core.errors import FormatError

FUSE = "fuse"
DISK = "disk"

LIMIT_TITLES = {
    FUSE: "null FUSE",
    DISK: "plain disk",
    "mpi_put": "MPI, to the workers",
    "mpi_get": "MPI, from the workers",
    "mpi_round": "MPI round trip, 4 KiB",
    "mpi_round_chunk": "MPI round trip, a chunk",
    "lmdb_put": "LMDB, synced",
    "lmdb_warm": "LMDB, in memory",
    "lmdb_get": "LMDB, cold",
    "lmdb_rate": "LMDB gets, 4 KiB",
    "round_get": "MPI round trip + LMDB get",
    "round_get_chunk": "MPI round trip of a chunk + LMDB get",
    "hash": "checksum",
}

_WRITE = (FUSE, "mpi_put", "lmdb_put", "hash")
_READ = (FUSE, "mpi_get", "lmdb_warm", "hash")
_READ_DISK = (FUSE, "mpi_get", "lmdb_get", "hash", DISK)
_NAMES = (FUSE,)


class Phase(NamedTuple):
    """One row of the report."""

    name: str
    title: str
    unit: str
    limits: tuple[str, ...]
    """What the product cannot be better than; `disk` also where it is shown as a neighbour only."""
    run: Callable[[Stage], float | None] | None
    """None: measured once at the end of the run, in all places at once."""
    is_less_better: bool = False


def _writers(count: int) -> Phase:
    title = f"write, {count} at once" if count > 1 else "write, one of many"
    return Phase(f"writers_{count}", title, "MB/s", _WRITE, lambda stage: stage.writers(count))


def _readers(count: int) -> Phase:
    title = f"read cold, {count} at once" if count > 1 else "read cold, one of many"
    return Phase(f"readers_{count}", title, "MB/s", _READ, lambda stage: stage.readers(count))


PHASES: tuple[Phase, ...] = (
    Phase("write_close", "write + close", "MB/s", _WRITE, Stage.write_close),
    Phase("write_fsync", "write + fsync", "MB/s", (*_WRITE, DISK), Stage.write_fsync),
    Phase("overwrite", "overwrite + close", "MB/s", _WRITE, Stage.overwrite),
    Phase("read_cold", "read cold", "MB/s", _READ, Stage.read_cold),
    Phase("read_disk", "read from disk", "MB/s", _READ_DISK, Stage.read_disk),
    Phase("read_warm", "read warm", "MB/s", (FUSE,), Stage.read_warm),
    Phase("write_hard", f"write, {HARD_RECORD_BYTES} B records", "MB/s", _WRITE, Stage.write_hard),
    Phase("read_hard", f"read cold, {HARD_RECORD_BYTES} B", "MB/s", _READ, Stage.read_hard),
    Phase("random_read", "read 4 KiB at random", "/s", (FUSE, "round_get"), Stage.random_read),
    Phase("random_write", "write 4 KiB at random", "/s", (FUSE, DISK), Stage.random_write),
    Phase(
        "random_write_cost", "… stored per byte asked", "×", (), Stage.random_write_cost, True
    ),
    _writers(1), _writers(4), _writers(8),
    _readers(1), _readers(4), _readers(8),
    Phase("create_1", "create 4 KiB", "/s", _NAMES, lambda stage: stage.create(1)),
    Phase("create_4", "create 4 KiB, 4 at once", "/s", _NAMES, lambda stage: stage.create(4)),
    Phase("stat", "stat", "/s", _NAMES, Stage.stat),
    Phase("open", "open + close", "/s", _NAMES, Stage.open),
    Phase("small_read_cold", "read 4 KiB files, cold", "/s", _NAMES, Stage.small_read_cold),
    Phase("small_read_warm", "read 4 KiB files, warm", "/s", _NAMES, Stage.small_read_warm),
    Phase("list", "ls -l", "/s", _NAMES, Stage.list_long),
    Phase("rename", "rename", "/s", _NAMES, Stage.rename),
    Phase("unlink", "unlink", "/s", _NAMES, Stage.unlink),
    Phase("untar", "untar a source tree", "/s", _NAMES, Stage.untar),
    Phase("idle_cpu", "idle, all ranks", "% core", (), None, True),
    Phase("first_request", "first request after idle", "ms", (FUSE,), None, True),
    Phase("memory_master", "memory, rank 0", "MiB", (), None, True),
    Phase("memory_worker", "memory, largest worker", "MiB", (), None, True),
)  # fmt: skip

RATIOS = (
    ("hard_write_ratio", "write: hard ÷ easy", "write_hard", "write_close"),
    ("hard_read_ratio", "read: hard ÷ easy", "read_hard", "read_cold"),
    ("create_ratio", "create: 4 at once ÷ 1", "create_4", "create_1"),
    ("readers_ratio", "read cold: 8 at once ÷ 1", "readers_8", "readers_1"),
    ("random_ratio", "4 KiB at random ÷ round + get", "random_read", "round_get"),
    ("random_chunk_ratio", "… with answers of a chunk", "random_read", "round_get_chunk"),
)
"""Rows that are quotients of medians: name, title, a phase, another phase or a limit."""


def chosen(words: str) -> tuple[Phase, ...]:
    """The phases that `--only a,b` names, in the table's order; all for "".

    A word also names all phases that begin with it and _: `readers` is readers_1, _4 and _8.
    Raises FormatError naming the word that is wrong.
    """
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    known = {phase.name for phase in PHASES}
    names: set[str] = set()
    for word in wanted:
        found = {name for name in known if name == word or name.startswith(word + "_")}
        if not found:
            listed = ", ".join(phase.name for phase in PHASES)
            raise FormatError(f"--only: there is no phase {word!r}; there are {listed}")
        names |= found
    return tuple(phase for phase in PHASES if phase.name in names or not wanted)


def needed_limits(phases: tuple[Phase, ...]) -> tuple[str, ...]:
    """Limits without a file system that these phases are compared with."""
    names = {name for phase in phases for name in phase.limits if name not in (FUSE, DISK)}
    if "round_get" in names:
        names = (names - {"round_get"}) | {"mpi_round", "mpi_round_chunk", "lmdb_rate"}
    if names & {"lmdb_rate", "lmdb_get", "lmdb_warm"}:
        names.add("lmdb_put")  # what is read must be there.
    order = (
        "mpi_put", "mpi_get", "mpi_round", "mpi_round_chunk",
        "lmdb_put", "lmdb_get", "lmdb_warm", "lmdb_rate", "hash",
    )  # fmt: skip
    return tuple(name for name in order if name in names)
