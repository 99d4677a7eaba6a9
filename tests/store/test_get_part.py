"""GET_PART: blocks of a chunk and the table of its sums, from a chunk that is what was asked for."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass

import pytest

from mpifs.core.checksum import function_of
from mpifs.core.errors import MpifsError, RemoteError
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import MIB, PART_BLOCK_BYTES, PART_CHUNK_BYTES_MAX, PART_READ_BYTES_MAX
from mpifs.core.messages import GetPart, TableWish, encode_args
from mpifs.core.types import ChunkKey
from mpifs.transport.client import Reply
from tests.store.damage import flip, put_row, read_row, side_named
from tests.store.images import KIND, image_bytes
from tests.store.test_service import SERVE, Worker

SUM = function_of(KIND)
KEY = ChunkKey(7, 2, 9)
PAYLOAD = random.Random(1).randbytes(MIB - 1000)
BLOCK = PART_BLOCK_BYTES
BLOCKS = [PAYLOAD[at : at + BLOCK] for at in range(0, len(PAYLOAD), BLOCK)]
TABLE = b"".join(map(SUM, BLOCKS))


@pytest.fixture
def worker(worker: Worker) -> Worker:
    worker.call(Kind.SERVE, encode_args(SERVE))
    worker.put(image_bytes(KEY, PAYLOAD))
    return worker


@dataclass
class Ask:
    """The arguments, with the right ones as defaults."""

    first: int = 0
    count: int = 1
    table: int = TableWish.NONE
    key: bytes = encode_key(KEY)
    length: int = len(PAYLOAD)
    checksum: bytes = SUM(PAYLOAD)

    def of(self, worker: Worker) -> Reply:
        asked = GetPart(self.key, self.length, self.checksum, self.first, self.count, self.table)
        reply: Reply = worker.call(Kind.GET_PART, encode_args(asked))
        return reply

    def refused(self, worker: Worker) -> int | None:
        with pytest.raises(RemoteError) as caught:
            self.of(worker)
        return caught.value.errno


def damage(worker: Worker, at: int) -> None:
    assert worker.service.store is not None
    side = side_named(worker.service.store, "large")
    value = read_row(side, "chunks", encode_key(KEY))
    assert value is not None
    put_row(side, "chunks", encode_key(KEY), flip(value, at))


def test_blocks_and_table(worker: Worker) -> None:
    last = len(BLOCKS) - 1
    for first, count in ((0, 1), (3, 2), (last, 1), (last - 1, 2), (5, 5), (last, 4)):
        for table in TableWish:
            reply = Ask(first, count, table).of(worker)
            assert bytes(reply.body) == b"".join(BLOCKS[first : first + count])
            assert bytes(reply.args) == (TABLE if table else b"")
            assert reply.header.items == count


def test_damage_shows_where_the_chunk_is_summed(worker: Worker) -> None:
    damage(worker, 64 + 10 * BLOCK + 5)
    assert Ask(0, 1, table=TableWish.SUMMED).refused(worker) == errno.EIO
    for table in (TableWish.NONE, TableWish.ANY):
        reply = Ask(0, table=table).of(worker)
        assert bytes(reply.body) == BLOCKS[0]
        assert bytes(reply.args) == (TABLE if table else b"")
    assert bytes(Ask(10).of(worker).body) != BLOCKS[10]  # whoever has a table sees it


def test_another_chunk_than_the_index_knows(worker: Worker) -> None:
    for table in TableWish:
        assert Ask(table=table, checksum=bytes(16)).refused(worker) == errno.EIO
        assert Ask(table=table, length=len(PAYLOAD) - 1).refused(worker) == errno.EIO
        missing = encode_key(ChunkKey(7, 2, 10))
        assert Ask(table=table, key=missing).refused(worker) == errno.EIO
    damage(worker, 20)  # its header
    assert Ask().refused(worker) == errno.EIO


@pytest.mark.parametrize(
    "asked",
    [
        Ask(first=-1),
        Ask(table=3),
        Ask(table=-1),
        Ask(count=0),
        Ask(count=-5),
        Ask(first=len(BLOCKS)),
        Ask(first=2**62),
        Ask(count=PART_READ_BYTES_MAX // BLOCK + 2),
        Ask(key=b"short"),
        Ask(checksum=b""),
        Ask(length=PART_CHUNK_BYTES_MAX + 1),
        Ask(length=-1),
    ],
)
def test_nonsense_is_refused(worker: Worker, asked: Ask) -> None:
    assert asked.refused(worker) == errno.EPROTO
    for junk in (b"", b"\x93", b"x" * 100):
        with pytest.raises(MpifsError):
            worker.call(Kind.GET_PART, junk)
    assert bytes(Ask(1).of(worker).body) == BLOCKS[1]
