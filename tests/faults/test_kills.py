"""A repair that is killed at one of its commits and run again ends as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpifs.core import records
from mpifs.core.image import decode_key
from tests.faults.cycle import IS_LONG, said
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
    "files": (1, 12, ["index-removed", "store-exchanged"]),
    "pages": (2, 13, ["index-page-zero", "store-truncated", "store-superblock-bit"]),
}
STEPS = range(1, 1000) if IS_LONG else (1, 2, 4, 7, 12, 20, 35)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_repair_ends_in_the_same_state(sample: Make, name: str) -> None:
    replicas, seed, kinds = CASES[name]
    one = sample(replicas)
    one.plant(kinds, seed)
    whole = one.spare()
    whole.fsck("--repair")
    wanted = state(whole)
    assert not whole.check_repaired(whole.read())
    kills = 0
    for step in STEPS:
        cut = one.spare()
        document = cut.fsck("--repair", fault=f"repair.commit:{step}", codes=range(256))
        if document["code"] in (0, 1, 4):
            assert kills, "there was no commit to be killed at"
            break
        kills += 1
        cut.fsck("--repair")
        found = state(cut)
        for part, value in wanted.items():
            assert found[part] == value, f"killed at commit {step}: other {part}"
    print(f"{name}: {kills} kills")


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
