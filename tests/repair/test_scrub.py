"""The scrub's pace and memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mpifs.core.limits import MIB, SCRUB_FINDINGS_MAX
from mpifs.repair.scrub import FILE_NAME, RUNNING, Pace, ScrubMemory, read_memory, write_memory


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def test_pace_keeps_the_rate_and_saves_no_idle_time_up() -> None:
    clock = Clock()
    pace = Pace(4 * MIB, clock.sleep, clock)
    for _ in range(40):
        pace(MIB)
    assert clock.now - 100 == pytest.approx(10, abs=0.3)
    clock.now += 3600  # an hour without work
    start = clock.now
    for _ in range(40):
        pace(MIB)
    assert clock.now - start == pytest.approx(10, abs=0.3)
    pace.rate = 40 * MIB
    start = clock.now
    for _ in range(40):
        pace(MIB)
    assert clock.now - start == pytest.approx(1, abs=0.3)


def test_memory_survives_and_is_whole(tmp_path: Path) -> None:
    memory = ScrubMemory(state=RUNNING, rate=7 * MIB, repair=True, position="00ff")
    memory.add({"detail": "x", "repaired": True})
    write_memory(str(tmp_path), memory)
    assert read_memory(str(tmp_path)) == memory
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"state": 3}', '{"position": "xyz"}', '{"rate": "fast"}', '{"new": 1}',
        '{"rate": 0}', '{"findings": {}}',
    ],
)  # fmt: skip
def test_memory_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert read_memory(str(tmp_path)) == ScrubMemory()


def test_memory_is_bounded_and_counts_on(tmp_path: Path) -> None:
    memory = ScrubMemory()
    for number in range(SCRUB_FINDINGS_MAX + 5):
        memory.add({"detail": str(number), "repaired": number == 0})
    memory.add({"detail": "1", "repaired": False})  # the same place in a repeated slice.
    assert (memory.found, memory.repaired) == (SCRUB_FINDINGS_MAX + 5, 1)
    assert len(memory.findings) == SCRUB_FINDINGS_MAX
    memory.begin_pass()
    assert (memory.found, memory.findings, memory.position) == (0, [], "")
    assert json.loads(json.dumps(asdict(memory))) == asdict(memory)
