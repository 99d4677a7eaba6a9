"""A repair that is killed at one of its commits and run again ends as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpifs.core import records
from mpifs.core.image import decode_key
from tests.faults.cycle import IS_LONG, said, shorten
from tests.faults.survey import Survey
from tests.faults.volumes import LOST_FOUND, Sample
from tools.planting.volume import RestingVolume

Make = Callable[..., Sample]
pytestmark = [pytest.mark.limit(250), pytest.mark.timeout(900 if not IS_LONG else 7200)]

CASES: dict[str, tuple[int, int, list[str]]] = {
    "rows and chunks": (
        2,
        11,
        [
            "chunk-data-bit",
            "chunk-swapped",
            "chunk-orphan",
            "chunk-misplaced",
            "inode-dropped",
            "dentry-dropped",
            "ref-dropped",
            "ref-of-none",
            "orphan-left",
            "directory-cycle",
            "nlink-file",
            "garbage-of-live",
            "counters",
        ],
    ),
    "files": (2, 13, ["index-page-zero", "store-truncated", "store-superblock-bit"]),
    "folders": (1, 12, ["index-removed", "store-exchanged"]),
}
SHORT = ("rows and chunks",)
ROUNDS_MAX = 100


@pytest.mark.skipif(not IS_LONG, reason="a minute; make faults runs it")
@pytest.mark.parametrize("name", CASES)
def test_a_repair_that_is_killed_again_and_again_ends_in_the_same_state(
    sample: Make, name: str
) -> None:
    """Each run gets further than the one before: the first dies at its third commit, the second
    at its sixth."""
    one, wanted = damaged(sample, name)
    for step in range(1, ROUNDS_MAX):
        if not is_killed(one, 3 * step):
            break
    else:
        raise AssertionError("the repairs never come to an end")
    print(f"{name}: {step - 1} kills in a row")
    assert step > 1, "there was no commit to be killed at"
    assert_same(one, wanted, f"after {step - 1} kills")


@pytest.mark.parametrize("name", CASES if IS_LONG else SHORT)
def test_a_repair_killed_once_ends_in_the_same_state(sample: Make, name: str) -> None:
    one, wanted = damaged(sample, name)
    for step in range(1, ROUNDS_MAX) if IS_LONG else (2,):
        cut = one.spare()
        if not is_killed(cut, step):
            print(f"{name}: {step - 1} single kills")
            assert step > 1, "there was no commit to be killed at"
            break
        cut.fsck("--repair")
        assert_same(cut, wanted, f"killed at commit {step}")


def damaged(sample: Make, name: str) -> tuple[Sample, dict[str, Any]]:
    """A damaged volume, and what it is after a repair that nobody disturbed."""
    replicas, seed, kinds = CASES[name]
    one = sample(replicas)
    one.plant(kinds, seed)
    whole = one.spare()
    whole.fsck("--repair")
    trouble = whole.check_repaired(whole.read())
    assert not trouble, shorten(trouble)
    return one, state(whole)


def is_killed(one: Sample, step: int) -> bool:
    """Runs a repair that dies at its commit `step`; False if it came to its end before."""
    document = one.fsck("--repair", fault=f"repair.commit:{step}", codes=range(256))
    return document["code"] not in (0, 1, 4)


def assert_same(one: Sample, wanted: dict[str, Any], when: str) -> None:
    """Fails naming the part that differs."""
    found = state(one)
    for part, value in wanted.items():
        assert found[part] == value, f"{when}: other {part}"


def state(one: Sample) -> dict[str, Any]:
    """What must not depend on kills: everything but times and numbers that a run hands out."""
    document = one.fsck()
    volume = RestingVolume(str(one.store))
    return {
        "findings": said(document),
        "view": view(one.read()),
        "refs": volume.refs,
        "names": volume.dentries,
        "chunks": {worker: chunk_keys(volume, worker) for worker in volume.workers},
        "totals": volume.counters,
        "garbage": garbage_keys(volume),
    }


def view(found: Survey) -> dict[bytes, Any]:
    """Of lost+found and the root the times are of the repair."""
    rows = {}
    for path, entry in found.items():
        attributes = list(entry.attributes())
        if path in (b"", LOST_FOUND):
            attributes[5] = 0
        rows[path] = (attributes, entry.xattrs, entry.pieces, entry.error)
    return rows


def chunk_keys(volume: RestingVolume, worker: int) -> list[tuple[int, int, int]]:
    """What a store holds."""
    found = []
    for side in ("small", "large"):
        with volume.side(worker, side) as environment, environment.read() as rows:
            found += [tuple(decode_key(key)) for key in rows.scan_keys("headers")]
    return sorted(found)


def garbage_keys(volume: RestingVolume) -> list[bytes]:
    """What is still to be deleted."""
    with volume.index() as environment, environment.read() as rows:
        return [bytes(key) for key in rows.scan_keys(records.GARBAGE)]
