"""SURVEY, INSPECT, REBUILD, VERIFY and MEND as messages: beside everything else a worker does."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from mpifs.core.chunk_report import ChunkReport, Fault, decode_reports
from mpifs.core.errors import RemoteError
from mpifs.core.image import encode_key, encode_keys
from mpifs.core.kinds import Kind
from mpifs.core.limits import CHECKUPS_MAX, MIB
from mpifs.core.messages import (
    Inspect,
    InspectReply,
    ListKeys,
    Mend,
    MendItem,
    MendReply,
    Rebuild,
    RebuildReply,
    StoreStats,
    SurveyReply,
    VerifyKeys,
    VerifyReply,
    decode_args,
    encode_args,
)
from mpifs.core.types import ChunkKey
from mpifs.store import checkup
from tests.store.damage import SUM, flip, item, put_row, side_named, value_of
from tests.store.images import KIND, STORE, VOLUME, image_bytes
from tests.store.test_service import SERVE, Worker, refusal

PAYLOADS = {ChunkKey(2, chunk, 5): bytes([chunk]) * 20_000 * chunk for chunk in range(1, 8)}
ALL = VerifyKeys(b"", 1000, 1 << 30, True)


def serve(worker: Worker) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    for key, payload in PAYLOADS.items():
        worker.put(image_bytes(key, payload))


def verified(worker: Worker, asked: VerifyKeys = ALL) -> tuple[VerifyReply, list[ChunkReport]]:
    reply = worker.call(Kind.VERIFY, encode_args(asked))
    reports = decode_reports(reply.body or b"")
    assert reply.header.items == len(reports)
    return decode_args(reply.args, VerifyReply), reports


def test_verify_and_mend(worker: Worker) -> None:
    assert refusal(worker, Kind.VERIFY, encode_args(ALL)) == errno.EINVAL
    assert refusal(worker, Kind.MEND, encode_args(Mend([]))) == errno.EINVAL
    serve(worker)
    reply, reports = verified(worker)
    assert reply == VerifyReply(sum(map(len, PAYLOADS.values())), True)
    assert reports == [ChunkReport(k, 0, len(p), SUM(p), k) for k, p in PAYLOADS.items()]
    reply, some = verified(worker, VerifyKeys(encode_key(reports[1].key), 2, 1 << 30, False))
    assert (reply, some) == (VerifyReply(0, False), reports[2:4])
    key = reports[3].key
    store = worker.service.store
    assert store is not None
    damaged = flip(value_of(key, PAYLOADS[key]), 20)
    put_row(side_named(store, "large"), "chunks", encode_key(key), damaged)
    assert [r.key for r in verified(worker)[1] if r.faults == Fault.HEADER_DAMAGED] == [key]
    mend = Mend([item(key, key, PAYLOADS[key]), item(ChunkKey(9, 9, 9), key, b"x")])
    mended = worker.call(Kind.MEND, encode_args(mend))
    assert decode_args(mended.args, MendReply).mended == [True, False]
    assert mended.header.free > 0
    assert verified(worker)[1] == reports


def test_an_empty_store(worker: Worker) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    assert verified(worker) == (VerifyReply(0, True), [])
    assert decode_args(worker.call(Kind.MEND, encode_args(Mend([]))).args, MendReply).mended == []


def test_survey_inspect_rebuild(worker: Worker, tmp_path: Path) -> None:
    wanted = Rebuild(3, VOLUME, STORE, MIB, KIND)
    assert refusal(worker, Kind.REBUILD, encode_args(wanted)) == errno.EINVAL
    (tmp_path / "worker-3").mkdir()
    (report,) = decode_args(worker.call(Kind.SURVEY).args, SurveyReply).folders
    assert (report.name, report.state) == ("worker-3", "empty")
    reply = decode_args(worker.call(Kind.REBUILD, encode_args(wanted)).args, RebuildReply)
    assert len(reply.done) == 1
    serve(worker)
    assert refusal(worker, Kind.REBUILD, encode_args(wanted)) == errno.EBUSY
    inspected = worker.call(Kind.INSPECT, encode_args(Inspect(3)))
    assert decode_args(inspected.args, InspectReply) == InspectReply([], 0)
    missing = decode_args(worker.call(Kind.INSPECT, encode_args(Inspect(4))).args, InspectReply)
    assert missing.count == 1
    (report,) = decode_args(worker.call(Kind.SURVEY).args, SurveyReply).folders
    assert (report.state, report.store, report.store_uuid) == ("ok", 3, STORE)


def test_index_copies_are_kept_apart(worker: Worker, tmp_path: Path) -> None:
    serve(worker)
    before = decode_args(worker.call(Kind.STATS).args, StoreStats)
    assert not (tmp_path / "worker-3" / "copy").exists()
    pieces = [ChunkKey(0, piece, 6) for piece in range(3)]
    for piece in pieces:
        worker.put(image_bytes(piece, bytes([piece.chunk]) * 30_000 * piece.chunk))
        worker.put(image_bytes(piece, bytes([piece.chunk]) * 30_000 * piece.chunk))
    assert sorted(path.name for path in (tmp_path / "worker-3").iterdir()) == [
        "copy",
        "large",
        "lock",
        "small",
        "superblock",
    ]
    after = decode_args(worker.call(Kind.STATS).args, StoreStats)
    assert (after.chunks, after.bytes) == (before.chunks, before.bytes)
    listed = worker.call(Kind.LIST, encode_args(ListKeys(b"", 4)))
    assert bytes(listed.body)[:64] == image_bytes(pieces[0], b"")
    assert [report.key for report in verified(worker)[1]] == [*pieces, *PAYLOADS]
    got = worker.call(Kind.GET, encode_key(pieces[2]))
    assert bytes(got.body) == image_bytes(pieces[2], b"\x02" * 60_000)
    worker.call(Kind.DELETE, encode_keys([pieces[0], next(iter(PAYLOADS))]))
    assert [report.key for report in verified(worker)[1]] == [*pieces[1:], *list(PAYLOADS)[1:]]


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (Kind.VERIFY, b"\xff"),
        (Kind.VERIFY, encode_args(VerifyKeys(b"short", 1, 1, True))),
        (Kind.VERIFY, encode_args(VerifyKeys(b"", 0, 1, True))),
        (Kind.VERIFY, encode_args(VerifyKeys(b"", 1, 0, True))),
        (Kind.VERIFY, encode_args(VerifyKeys(b"", 1, -5, True))),
        (Kind.MEND, b""),
        (Kind.MEND, encode_args(Mend([MendItem(b"k" * 23, b"f" * 24, 1, b"c" * 16)]))),
        (Kind.MEND, encode_args(Mend([MendItem(b"k" * 24, b"f" * 25, 1, b"c" * 16)]))),
        (Kind.MEND, encode_args(Mend([MendItem(b"k" * 24, b"f" * 24, 1, b"c" * 15)]))),
        (Kind.MEND, encode_args(Mend([MendItem(b"k" * 24, b"f" * 24, -1, b"c" * 16)]))),
        (Kind.MEND, encode_args(Mend([MendItem(b"k" * 24, b"f" * 24, 1 << 40, b"c" * 16)]))),
        (Kind.INSPECT, b""),
        (Kind.REBUILD, b"x"),
        (Kind.REBUILD, encode_args(Rebuild(4, VOLUME, STORE[1:], MIB, KIND))),
        (Kind.REBUILD, encode_args(Rebuild(0, VOLUME, STORE, MIB, KIND))),
        (Kind.REBUILD, encode_args(Rebuild(4, VOLUME, STORE, MIB, 77))),
    ],
)
def test_nonsense_is_refused(worker: Worker, kind: Kind, args: bytes) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    assert refusal(worker, kind, args) == errno.EPROTO
    worker.call(Kind.PING)


def test_the_loop_goes_on_meanwhile(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one VERIFY takes its time all else is answered; too many waiting ones are refused."""
    serve(worker)
    may_go = threading.Event()
    real = checkup.verify

    def slow(*args: object, **more: object) -> object:
        assert may_go.wait(20)
        return real(*args, **more)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(checkup, "verify", slow)
    args = encode_args(ALL)
    waiting = [
        worker.client.start(1, Kind.VERIFY, args=args, timeout_s=30)
        for _ in range(CHECKUPS_MAX + 2)
    ]
    begin = time.monotonic()
    worker.call(Kind.PING)
    worker.put(image_bytes(ChunkKey(8, 0, 6), b"new"))
    assert bytes(worker.call(Kind.GET, encode_key(ChunkKey(8, 0, 6))).body)[64:] == b"new"
    assert time.monotonic() - begin < 5
    may_go.set()
    codes = []
    for pending in waiting:
        try:
            codes.append(pending.wait().header.items)
        except RemoteError as error:
            codes.append(-(error.errno or 0))
    refused = codes.count(-errno.EAGAIN)
    assert 1 <= refused <= 2
    assert codes.count(len(PAYLOADS) + 1) == len(codes) - refused


def test_stop_ends_what_is_under_way(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(worker)
    begun = threading.Event()

    def endless(*args: object, is_stopped: object, **more: object) -> object:
        begun.set()
        while not is_stopped():  # type: ignore[operator]  # as `verify` is given it
            time.sleep(0.01)
        return checkup.inspect

    monkeypatch.setattr(checkup, "verify", endless)
    args = encode_args(ALL)
    waiting = [worker.client.start(1, Kind.VERIFY, args=args, timeout_s=20) for _ in range(3)]
    assert begun.wait(10)
    worker.call(Kind.STOP)
    worker.thread.join(10)
    assert not worker.thread.is_alive()
    time.sleep(0.2)
    assert worker.service.store is None
    del waiting
