"""Every way into a store makes the table of a chunk's blocks; the worker gives what is stored."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.messages import MendItem, TableWish, encode_args
from mpifs.core.stage_messages import StagePart
from mpifs.core.types import ChunkKey
from mpifs.store import reads
from mpifs.store.chunks import Change
from mpifs.store.mend import Mender
from mpifs.store.stage_in import PartReader, identity_of
from tests.store.damage import SUM, has_right_table, put_row, read_row, side_named
from tests.store.images import KIND, image, image_bytes, open_store
from tests.store.test_get_part import BLOCKS, KEY, PAYLOAD, TABLE, Ask
from tests.store.test_service import SERVE, Worker

OTHER = ChunkKey(9, 0, 5)


def test_of_an_image_that_stands_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "worker-3"))
    store.put_many([image(KEY, PAYLOAD)])
    assert has_right_table(store, KEY, PAYLOAD)
    store.close()


def test_of_a_file_that_is_staged_in(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(PAYLOAD)
    part = StagePart(0, b"source", identity_of(path.stat()), 0, len(PAYLOAD), *OTHER)
    with PartReader([os.fsencode(tmp_path)], KIND) as reader:
        staged = reader.read(part)
    store = open_store(str(tmp_path / "worker-3"))
    store.apply([Change(puts=[staged])])
    assert has_right_table(store, OTHER, PAYLOAD)
    store.close()


def test_of_a_chunk_that_was_mended(tmp_path: Path) -> None:
    """It stood under another key."""
    store = open_store(str(tmp_path / "worker-3"))
    store.put_many([image(KEY, PAYLOAD)])
    side = side_named(store, "large")
    for database in ("chunks", "headers"):
        value = read_row(side, database, encode_key(KEY))
        assert value is not None
        put_row(side, database, encode_key(OTHER), value)
    item = MendItem(encode_key(OTHER), encode_key(OTHER), len(PAYLOAD), SUM(PAYLOAD))
    assert Mender(store, KIND, [item]).run()
    assert has_right_table(store, OTHER, PAYLOAD)
    store.close()


@pytest.mark.parametrize("is_known", [False, True])
def test_the_worker_sums_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    worker.put(image_bytes(KEY, PAYLOAD))
    if is_known:
        Ask(3).of(worker)

    def refuse(*_: object) -> bytes:
        raise AssertionError("the chunk is summed")

    monkeypatch.setattr(reads, "block_sums", refuse)
    monkeypatch.setattr(worker.service.store, "get", refuse)
    for _ in range(2):
        reply = Ask(5, 2, TableWish.ANY).of(worker)
        assert bytes(reply.args) == TABLE
        assert bytes(reply.body) == BLOCKS[5] + BLOCKS[6]


def test_of_several_images_in_one_put(worker: Worker) -> None:
    payloads = {ChunkKey(3, n, n + 1): random.Random(n).randbytes(200_000) for n in range(3)}
    worker.call(Kind.SERVE, encode_args(SERVE))
    worker.put(*(image_bytes(key, payload) for key, payload in payloads.items()))
    assert worker.service.store is not None
    for key, payload in payloads.items():
        assert has_right_table(worker.service.store, key, payload)
