"""Damage done to the environments of an open store, and what its own check says afterwards."""

from __future__ import annotations

import random

from mpifs.core.block_table import checked_table, stored_bytes
from mpifs.core.checksum import function_of
from mpifs.core.chunk_report import REPORT_BYTES, ChunkReport, decode_reports
from mpifs.core.image import IMAGE_HEADER_BYTES, KEY_BYTES, decode_header, encode_key, slot_bytes
from mpifs.core.messages import MendItem
from mpifs.core.types import ChunkKey
from mpifs.store.chunks import ChunkStore
from mpifs.store.side import Side
from mpifs.store.verify import verify
from tests.store.images import KIND, image_bytes

SUM = function_of(KIND)


def value_of(key: ChunkKey, payload: bytes) -> bytes:
    """The stored value of a chunk."""
    return image_bytes(key, payload).ljust(stored_bytes(len(payload)), b"\0")


def has_right_table(store: ChunkStore, key: ChunkKey, payload: bytes) -> bool:
    """Whether a long chunk is stored with the table of its blocks."""
    value = read_row(side_named(store, "large"), "chunks", encode_key(key))
    assert value is not None
    assert len(value) == stored_bytes(len(payload))
    at = IMAGE_HEADER_BYTES + slot_bytes(len(payload))
    return checked_table(value[at:], encode_key(key), len(payload), SUM(payload)) is not None


def put_row(side: Side, database: str, key: bytes, value: bytes) -> None:
    """Writes a row past all rules."""
    with side.environment.write() as rows:
        rows.put(database, key, value)


def drop_row(side: Side, database: str, key: bytes) -> None:
    """Removes a row past all rules."""
    with side.environment.write() as rows:
        assert rows.delete(database, key)


def read_row(side: Side, database: str, key: bytes) -> bytes | None:
    """A row as it is."""
    with side.environment.read() as rows:
        value = rows.get(database, key)
        return None if value is None else bytes(value)


def flip(data: bytes, at: int, bit: int = 1) -> bytes:
    """The bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def side_named(store: ChunkStore, name: str) -> Side:
    """One of the store's environments."""
    return next(side for side in store.sides if side.name == name)


def reports(
    store: ChunkStore, *, data: bool = True, count: int = 1000, size: int = 1 << 30
) -> list[ChunkReport]:
    """All of a store's reports, asked for in batches."""
    found: list[ChunkReport] = []
    after = b""
    while True:
        batch = verify(
            store.sides,
            after,
            count=count,
            payload_bytes=size,
            checksum=SUM if data else None,
            is_stopped=bool,
        )
        assert len(batch.reports) == batch.items * REPORT_BYTES
        found += decode_reports(batch.reports)
        if batch.is_end:
            break
        assert batch.items
        after = batch.reports[-REPORT_BYTES:][:KEY_BYTES]
    keys = [report.key for report in found]
    assert keys == sorted(set(keys))
    return found


def faults(store: ChunkStore, *, data: bool = True) -> dict[ChunkKey, int]:
    """Keys that are not as they should be, and why."""
    return {report.key: report.faults for report in reports(store, data=data) if report.faults}


def item(key: ChunkKey, found: ChunkKey, payload: bytes) -> MendItem:
    """What the index knows of a chunk."""
    return MendItem(encode_key(key), encode_key(found), len(payload), SUM(payload))


def payload_in(store: ChunkStore, key: ChunkKey) -> bytes:
    """A chunk's payload as a GET gives it."""
    with store.get(key) as lease:
        assert decode_header(lease.image).key == key
        return bytes(lease.image[IMAGE_HEADER_BYTES:])


def wrong(payload: bytes, source: random.Random) -> bytes:
    """A payload with one other byte."""
    return flip(payload, source.randrange(len(payload)), 1 << source.randrange(8))
