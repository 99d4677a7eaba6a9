"""What a run is to do: sizes and numbers, from the words of the command."""

from __future__ import annotations

from dataclasses import dataclass

from mpifs.core.errors import FormatError
from mpifs.core.limits import BENCH_SIZE_MIN, INFLIGHT_BYTES_MAX, MIB
from mpifs.core.types import ChecksumKind


@dataclass(frozen=True, slots=True)
class Plan:
    """Constant during a run."""

    size: int = 2048 * MIB
    """Bytes of the large file, and of the eight files of parallel workloads together."""
    files: int = 5000
    small_bytes: int = 4096
    repeats: int = 3
    idle_s: float = 30.0
    random_reads: int = 8000
    """Several of each chunk of a file of 2 GiB: the first of each costs as much as three others."""
    random_writes: int = 500
    sync_each: int = 100
    round_trips: int = 5000
    is_quick: bool = False

    # Of the volume that is measured, so that the limits are those of its geometry.
    workers: int = 4
    chunk: int = MIB
    checksum: ChecksumKind = ChecksumKind.XXH3_128
    is_relaxed: bool = False

    def check(self) -> None:
        """Raises FormatError with a sentence for the first thing that cannot be."""
        if self.size < BENCH_SIZE_MIN:
            raise FormatError(f"--size is at least {BENCH_SIZE_MIN // MIB}MiB")
        if not 8 <= self.files <= 10_000_000:
            raise FormatError("--files is a number from 8 to 10000000")
        if not 1 <= self.repeats <= 100:
            raise FormatError("--repeats is a number from 1 to 100")
        if not 0.1 <= self.idle_s <= 3600:
            raise FormatError("--idle takes seconds from 0.1 to 3600")

    @property
    def part(self) -> int:
        """Bytes of one file of a parallel workload: a whole number of MiB."""
        return max(MIB, self.size // 8 // MIB * MIB)

    @property
    def chunks_per_worker(self) -> int:
        """Chunks of the large file on one store."""
        return max(1, self.size // self.chunk // self.workers)

    @property
    def group(self) -> int:
        """Bytes of one commit of a store at most: rank 0 has no more on its way to it at once."""
        return INFLIGHT_BYTES_MAX // self.workers

    @property
    def room(self) -> int:
        """Bytes that a place must have free."""
        return 3 * self.size + self.files * 16 * 1024 + 64 * MIB
