"""Each thing that can be wrong with a stored chunk gives its fault, and nothing else one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.chunk_report import ChunkReport, Fault
from mpifs.core.image import encode_key
from mpifs.core.types import ChunkKey
from mpifs.store import verify as verifying
from mpifs.store.chunks import ChunkStore
from tests.store.damage import (
    SUM,
    drop_row,
    faults,
    flip,
    put_row,
    read_row,
    reports,
    side_named,
    value_of,
)
from tests.store.images import image, open_store

SIZES = (0, 1, 500, 30_000, 50_000, 65_536, 300_000)
PAYLOADS = {
    ChunkKey(inode, chunk, 7): bytes([inode, chunk]) * (SIZES[(inode + chunk) % 7] // 2)
    for inode in range(0, 8)
    for chunk in range(4)
}
KEY = ChunkKey(3, 2, 7)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = open_store(str(tmp_path / "worker-3"))
    opened.put_many([image(key, payload) for key, payload in PAYLOADS.items()])
    yield opened
    opened.close()


def test_a_whole_store_has_a_report_of_each_chunk(store: ChunkStore) -> None:
    expected = [
        ChunkReport(key, 0, len(payload), SUM(payload), key)
        for key, payload in sorted(PAYLOADS.items())
    ]
    for data in (True, False):
        for count, size in ((1000, 1 << 30), (1, 1 << 30), (5, 1), (7, 70_000)):
            assert reports(store, data=data, count=count, size=size) == expected


def test_read_transactions_are_short(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reports(store)
    monkeypatch.setattr(verifying, "VERIFY_READ_BYTES", 1)
    assert reports(store) == whole
    monkeypatch.setattr(verifying, "VERIFY_READ_S", -1.0)
    assert reports(store) == whole
    held = []

    def looking(data: memoryview) -> bytes:
        held.append(sum(side.environment.readers() for side in store.sides))
        return SUM(data)

    verifying.verify(
        store.sides, b"", count=99, payload_bytes=1 << 30, checksum=looking, is_stopped=bool
    )
    assert len(held) == len(PAYLOADS)
    assert sum(side.environment.readers() for side in store.sides) == 0
    assert max(held) == 3


def test_a_stop_ends_it(store: ChunkStore) -> None:
    batch = verifying.verify(
        store.sides, b"", count=99, payload_bytes=1, checksum=SUM, is_stopped=lambda: True
    )
    assert batch == (b"", 0, 0, False)


# What is done to (side, key, value) → faults of KEY; with data and without.


def _spoil_payload(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "chunks", encode_key(KEY), flip(value, 64 + 5))


def _spoil_header(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "chunks", encode_key(KEY), flip(value, 20))


def _spoil_listed(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "headers", encode_key(KEY), flip(value[:64], 20))


def _spoil_both(store: ChunkStore, side: str, value: bytes) -> None:
    _spoil_header(store, side, value)
    _spoil_listed(store, side, value)


def _cut(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "chunks", encode_key(KEY), value[:100])


def _cut_header(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "chunks", encode_key(KEY), value[:40])


def _short_listed(store: ChunkStore, side: str, value: bytes) -> None:
    put_row(side_named(store, side), "headers", encode_key(KEY), value[:60])


def _drop_image(store: ChunkStore, side: str, value: bytes) -> None:
    drop_row(side_named(store, side), "chunks", encode_key(KEY))


def _drop_listed(store: ChunkStore, side: str, value: bytes) -> None:
    drop_row(side_named(store, side), "headers", encode_key(KEY))


def _replace(store: ChunkStore, side: str, value: bytes) -> None:
    older = value_of(KEY._replace(generation=6), PAYLOADS[KEY])
    put_row(side_named(store, side), "chunks", encode_key(KEY), older)
    put_row(side_named(store, side), "headers", encode_key(KEY), older[:64])


def _double(store: ChunkStore, side: str, value: bytes) -> None:
    other = side_named(store, "large" if side == "small" else "small")
    put_row(other, "chunks", encode_key(KEY), value)
    put_row(other, "headers", encode_key(KEY), value[:64])


def _double_bad(store: ChunkStore, side: str, value: bytes) -> None:
    _double(store, side, value)
    _spoil_payload(store, side, value)


@pytest.mark.parametrize("size", [5000, 50_000])
@pytest.mark.parametrize(
    ("damage", "expected", "listed"),
    [
        (_spoil_payload, Fault.SUM_WRONG, 0),
        (_spoil_header, Fault.HEADER_DAMAGED, 0),
        (_spoil_listed, Fault.LIST_DAMAGED, Fault.LIST_DAMAGED),
        (_spoil_both, Fault.HEADER_DAMAGED | Fault.LIST_DAMAGED, Fault.LIST_DAMAGED),
        (_cut, Fault.CUT, 0),
        (_cut_header, Fault.HEADER_DAMAGED, 0),
        (_short_listed, Fault.LIST_DAMAGED, Fault.LIST_DAMAGED),
        (_drop_image, Fault.NO_IMAGE, Fault.NO_IMAGE),
        (_drop_listed, Fault.NOT_LISTED, Fault.NOT_LISTED),
        (_replace, Fault.WRONG_KEY, Fault.WRONG_KEY),
        (_double, Fault.TWICE, Fault.TWICE),
        (_double_bad, Fault.TWICE, Fault.TWICE),
    ],
)
def test_one_fault(
    store: ChunkStore, damage: object, expected: Fault, listed: Fault, size: int
) -> None:
    store.delete_many([KEY])
    payload = random.Random(size).randbytes(size)
    store.put_many([image(KEY, payload)])
    side = "small" if size < 32_768 else "large"
    value = read_row(side_named(store, side), "chunks", encode_key(KEY))
    assert value is not None
    damage(store, side, value)  # type: ignore[operator]  # one of the functions above
    assert faults(store) == {KEY: expected}
    assert faults(store, data=False) == ({KEY: listed} if listed else {})
    report = next(report for report in reports(store) if report.key == KEY)
    if expected & (Fault.NO_IMAGE | Fault.HEADER_DAMAGED):
        assert report[2:] == (0, bytes(16), KEY)
    elif expected is Fault.SUM_WRONG:
        assert report.checksum == SUM(flip(payload, 5)) != SUM(payload)
    elif expected is Fault.WRONG_KEY:
        assert report.named == KEY._replace(generation=6)
    else:
        assert report[2:] == (len(payload), SUM(payload), KEY)


def test_a_swapped_pair_and_a_flipped_key(store: ChunkStore) -> None:
    side = side_named(store, "large")
    one, two = [key for key in sorted(PAYLOADS) if len(PAYLOADS[key]) == 50_000][:2]
    values = [read_row(side, "chunks", encode_key(key)) for key in (one, two)]
    assert values[0] is not None
    assert values[1] is not None
    put_row(side, "chunks", encode_key(one), values[1])
    put_row(side, "chunks", encode_key(two), values[0])
    assert faults(store) == dict.fromkeys((one, two), Fault.WRONG_KEY | Fault.LIST_DAMAGED)
    assert {r.key: r.named for r in reports(store) if r.faults} == {one: two, two: one}
    put_row(side, "headers", encode_key(one), values[1][:64])
    put_row(side, "headers", encode_key(two), values[0][:64])
    assert faults(store) == dict.fromkeys((one, two), Fault.WRONG_KEY)
    put_row(side, "chunks", encode_key(one), values[0])
    put_row(side, "headers", encode_key(one), values[0][:64])
    drop_row(side, "chunks", encode_key(two))
    put_row(side, "headers", encode_key(two), values[1][:64])
    stray = two._replace(generation=5)
    put_row(side, "chunks", encode_key(stray), values[1])
    assert faults(store) == {two: Fault.NO_IMAGE, stray: Fault.NOT_LISTED | Fault.WRONG_KEY}


@pytest.mark.parametrize("chunk", [0, 9])
@pytest.mark.parametrize("number", [0, 3, 7])
def test_a_key_out_of_order_does_no_harm_to_others(tmp_path: Path, number: int, chunk: int) -> None:
    """A flipped byte of a key in `chunks`: the keys before and behind it are judged as they are."""
    folder = tmp_path / "worker-3"
    store = open_store(str(folder))
    keys = [ChunkKey(5, 1 + chunk, 1) for chunk in range(8)]
    store.put_many([image(key, bytes([key.chunk]) * 40_000) for key in keys])
    path = folder / "large" / "data.mdb"
    content = bytearray(path.read_bytes())
    wanted = encode_key(keys[number])
    at = content.find(wanted)
    count = 0
    while at >= 0:
        if content[at + 24 : at + 28] != b"mpCH":  # not of `headers`
            content[at + 15] = chunk
            count += 1
        at = content.find(wanted, at + 1)
    assert count
    with path.open("r+b") as file:  # opening it afterwards would be refused
        file.write(content)
    moved = keys[number]._replace(chunk=chunk)
    stays = all((moved < key) == (keys[number] < key) for key in keys if key != keys[number])
    expected = {keys[number]: Fault.NO_IMAGE}
    if stays:
        expected[moved] = Fault.NOT_LISTED | Fault.WRONG_KEY
    assert faults(store) == expected
    store.close()


def test_writers_go_on_beside_it(store: ChunkStore) -> None:
    """Chunks that stay have a good report whatever else is written and deleted."""
    stop = threading.Event()
    problems = []

    def check() -> None:
        while not stop.is_set():
            found = reports(store, count=5)
            bad = [report for report in found if report.faults]
            missing = set(PAYLOADS) - {report.key for report in found}
            problems.extend([*bad, *missing])

    thread = threading.Thread(target=check)
    thread.start()
    until = time.monotonic() + 1.5
    number = 0
    while time.monotonic() < until:
        number += 1
        fresh = [ChunkKey(inode, 9, number) for inode in range(8)]
        store.put_many([image(key, b"x" * SIZES[key.inode % 7]) for key in fresh])
        store.delete_many(fresh)
    stop.set()
    thread.join()
    assert number > 10
    assert problems == []
