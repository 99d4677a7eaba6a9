"""Limits without a file system: MPI between as many ranks, plain LMDB per worker, the checksum."""

from __future__ import annotations

import os

from mpifs.bench.plan import Plan
from mpifs.bench.processes import Drivers, MpiWorld
from mpifs.bench.stage import PAGE_BYTES, rate_of
from mpifs.core.limits import BENCH_DRIVERS_MAX, MIB

_MB = 1e6
_HASH_BYTES = 512 * MIB
_HASH_BYTES_QUICK = 64 * MIB


class Limits:
    """Measures one limit once.  Used by one thread; `world` may be missing if no MPI is wanted."""

    def __init__(self, plan: Plan, drivers: Drivers, world: MpiWorld | None, folder: str) -> None:
        self._plan = plan
        self._drivers = drivers
        self._world = world
        self._folder = folder

    def measure(self, name: str) -> float:
        """MB/s, or a rate a second.  Raises BenchError."""
        measured: float = getattr(self, f"_{name}")()
        return measured

    def _mpi(self, work: str, size: int, count: int) -> float:
        assert self._world is not None
        return rate_of([self._world.run(work, size, count)])

    def _mpi_put(self) -> float:
        plan = self._plan
        return self._mpi("put", plan.chunk, plan.chunks_per_worker * plan.workers) / _MB

    def _mpi_get(self) -> float:
        plan = self._plan
        return self._mpi("get", plan.chunk, plan.chunks_per_worker * plan.workers) / _MB

    def _mpi_round(self) -> float:
        return self._mpi("echo", PAGE_BYTES, self._plan.round_trips)

    def _mpi_round_chunk(self) -> float:
        return self._mpi("echo", self._plan.chunk, self._plan.round_trips)

    def _stores(self, work: str, **words: object) -> float:
        count = min(self._plan.workers, BENCH_DRIVERS_MAX)
        shared = {"count": self._plan.chunks_per_worker, "chunk": self._plan.chunk, **words}
        folders = [os.path.join(self._folder, f"lmdb-{number}") for number in range(count)]
        return rate_of(self._drivers.run([(work, {"folder": f, **shared}) for f in folders]))

    def _lmdb_put(self) -> float:
        plan = self._plan
        return self._stores("lmdb_put", group=plan.group, relaxed=plan.is_relaxed) / _MB

    def _lmdb_get(self) -> float:
        return self._stores("lmdb_get", cold=True) / _MB

    def _lmdb_warm(self) -> float:
        return self._stores("lmdb_get", cold=False) / _MB

    def _lmdb_rate(self) -> float:
        """Of one process: a reader asks one store after the other."""
        folder = os.path.join(self._folder, "lmdb-0")
        plan = self._plan
        words = {"folder": folder, "count": plan.chunks_per_worker, "chunk": plan.chunk}
        spells = self._drivers.run([("lmdb_rate", {**words, "gets": plan.round_trips})])
        return rate_of(spells)

    def _hash(self) -> float:
        plan = self._plan
        size = _HASH_BYTES_QUICK if plan.is_quick else _HASH_BYTES
        words = {"size": size, "chunk": plan.chunk, "kind": int(plan.checksum)}
        return rate_of(self._drivers.run([("hash_sums", words)])) / _MB
