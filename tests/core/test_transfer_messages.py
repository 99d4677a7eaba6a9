"""What ranks tell each other to move files: golden bytes, any bytes as input, chunk sizes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.kinds import Kind
from mpifs.core.limits import FILE_BYTES_MAX, MIB
from mpifs.core.messages import decode_args, encode_args
from mpifs.core.transfer_messages import (
    Begin,
    BeginReply,
    Entry,
    Failure,
    Failures,
    Have,
    HaveReply,
    ListReply,
    Local,
    LocalReply,
    Make,
    Number,
    PathAsk,
    Pull,
    PullNumber,
    ReadAsk,
    SmallFiles,
    SumsAsk,
    Take,
    TakeReply,
    TallyReport,
    Write,
    checked_chunks,
    chunk_bytes_of,
)

GOLDEN = {
    "82a6666f6c646572c4022f64a472616e6b03": Local(folder=b"/d", rank=3),
    "83a4686f7374a168a37069642aa4667265650a": LocalReply(host="h", pid=42, free=10),
    "92c40161c40178": PathAsk(path=b"a", after=b"x"),
    "9bc407612f622e62696e01ce002dc6c0cd01a0cf17979cfe3d85cd15cf17979cfe362a0001cf17979cfe3d85cd16cd08014dcd16e8c400": Entry(
        path=b"a/b.bin",
        kind=1,
        size=3000000,
        mode=416,
        mtime_ns=1700000000123456789,
        atime_ns=1700000000000000001,
        ctime_ns=1700000000123456790,
        device=2049,
        inode=77,
        blocks=5864,
        link=b"",
    ),
    "949bc40166010203040500000000c400ce001000000002": SumsAsk(
        entry=Entry(
            path=b"f",
            kind=1,
            size=2,
            mode=3,
            mtime_ns=4,
            atime_ns=5,
            ctime_ns=0,
            device=0,
            inode=0,
            blocks=0,
            link=b"",
        ),
        chunk_bytes=1048576,
        first=0,
        count=2,
    ),
    "939bc40166010203040500000000c4000002": ReadAsk(
        entry=Entry(
            path=b"f",
            kind=1,
            size=2,
            mode=3,
            mtime_ns=4,
            atime_ns=5,
            ctime_ns=0,
            device=0,
            inode=0,
            blocks=0,
            link=b"",
        ),
        offset=0,
        length=2,
    ),
    "939bc40166010203040500000000c400ce00100000c41073737373737373737373737373737373": Begin(
        entry=Entry(
            path=b"f",
            kind=1,
            size=2,
            mode=3,
            mtime_ns=4,
            atime_ns=5,
            ctime_ns=0,
            device=0,
            inode=0,
            blocks=0,
            link=b"",
        ),
        chunk_bytes=1048576,
        checksum=b"ssssssssssssssss",
    ),
    "9209c3": BeginReply(number=9, has_file=True),
    "930904c2": Have(number=9, first=4, of_file=False),
    "91c4020100": HaveReply(there=b"\x01\x00"),
    "930902c41073737373737373737373737373737373": Write(
        number=9, index=2, checksum=b"ssssssssssssssss"
    ),
    "920903": Number(number=9, after=3),
    "930191c40166c402696e": Pull(source=1, names=[b"f"], into=b"in"),
    "9104": PullNumber(number=4),
    "919193011ca466756c6c": Failures(failures=[Failure(item=1, code=28, detail="full")]),
    "9291c4107373737373737373737373737373737390": TakeReply(
        sums=[b"ssssssssssssssss"], failures=[]
    ),
    "9290c2": Make(entries=[], is_last=False),
    "939090c400": SmallFiles(entries=[], sums=[], data=b""),
    "9b01020304050607c401639192c40170a17301c3": TallyReport(
        files=1,
        folders=2,
        size=3,
        total=4,
        chunks=5,
        sent=6,
        sent_bytes=7,
        current=b"c",
        errors=[(b"p", "s")],
        error_count=1,
        is_over=True,
    ),
    "9290c3": ListReply(entries=[], is_end=True),
    "9190": Take(entries=[]),
}


def test_golden_arguments() -> None:
    for text, value in GOLDEN.items():
        assert encode_args(value).hex() == text
        assert decode_args(bytes.fromhex(text), type(value)) == value


def test_numbers_are_frozen() -> None:
    control = ["LOCAL", "PULL", "PULL_POLL", "PULL_CANCEL"]
    others = [
        "LOOK", "LIST_FOLDER", "SUMS", "READ", "TAKE", "BEGIN", "HAVE", "WRITE", "FINISH",
        "ABANDON", "HAVE_SMALL", "PUT_SMALL", "MAKE",
    ]  # fmt: skip
    assert [int(Kind[name]) for name in control] == list(range(16, 20))
    assert [int(Kind[name]) for name in others] == list(range(48, 61))


@given(st.binary(max_size=200), st.sampled_from([type(value) for value in GOLDEN.values()]))
def test_hostile_arguments(data: bytes, kind: type[Any]) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_args(data, kind), kind)


def test_long_files_have_longer_chunks() -> None:
    assert chunk_bytes_of(0) == chunk_bytes_of(2**40) == MIB
    assert chunk_bytes_of(2**40 + 1) == 2 * MIB
    assert chunk_bytes_of(2**48) == 64 * MIB
    with pytest.raises(PosixError):
        chunk_bytes_of(2**48 + 1)


def test_impossible_sizes_are_refused() -> None:
    for size, chunk in ((-1, MIB), (FILE_BYTES_MAX + 1, MIB), (1, 3), (1, 0), (2**60, MIB)):
        with pytest.raises(ProtocolError):
            checked_chunks(size, chunk)
    assert checked_chunks(MIB + 1, MIB) == 2
