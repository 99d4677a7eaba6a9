"""Records: round trips, frozen bytes, and any bytes answered by DamageError alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.records import Counters, InodeRecord
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry, StoreId, StoreState

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**63) * 10**9, (2**63 - 1) * 10**9 + 999_999_999)
NAMES = st.binary(min_size=1, max_size=255)
STORES = st.lists(U16, max_size=8).map(tuple)
MODES = st.builds(
    lambda kind, bits: kind << 12 | bits,
    st.sampled_from([1, 2, 4, 6, 8, 10, 12]),
    st.integers(0, 0o7777),
)
INODES = st.builds(
    InodeRecord, U64, MODES, U32, U32, U32, U64, U64, U64, TIMES, TIMES, TIMES, U64, NAMES, U16, U32,
    st.integers(0, 255), U32, st.binary(max_size=4095),
)  # fmt: skip
REFS = st.builds(ChunkRef, U64, U32, st.binary(min_size=16, max_size=16), STORES)

GOLDEN_INODE = InodeRecord(
    2,
    0o100644,
    1000,
    1001,
    1,
    0,
    5,
    5,
    -1,
    10**18,
    2**33 * 10**9 + 7,
    1,
    b"hello",
    2,
    1 << 20,
    1,
    0,
    b"",
)
GOLDEN_REF = ChunkRef(7, 5, bytes(range(16)), (2, 3))
GOLDEN_STORES = [StoreEntry(StoreId(1), b"u" * 16, StoreState.ACTIVE)]


def rows() -> list[tuple[str, bytes, bytes, Callable[[bytes, bytes], object]]]:
    """One record of each kind with its key and decoder."""
    inode, name = records.inode_key(2), records.name_key(1, b"hello")
    ref, garbage = records.ref_key(2, 0), records.garbage_key(ChunkKey(2, 0, 6))
    limit = records.KEY_INODE_LIMIT
    return [
        (
            "inode",
            inode,
            records.encode_inode(GOLDEN_INODE),
            lambda k, v: records.decode_inode(k, v, InodeRecord),
        ),
        ("dentry", name, records.encode_dentry(name, 2, 8), records.decode_dentry),
        ("ref", ref, records.encode_ref(ref, GOLDEN_REF), records.decode_ref),
        ("xattr", name, records.encode_xattr(name, b"value"), records.decode_xattr),
        ("orphan", inode, records.encode_orphan(inode), records.decode_orphan),
        ("garbage", garbage, records.encode_garbage(garbage, (2, 3)), records.decode_garbage),
        ("number", limit, records.encode_number(limit, 9), records.decode_number),
        (
            "counters",
            records.KEY_COUNTERS,
            records.encode_counters(Counters(1, 2, 3, 4)),
            lambda k, v: records.decode_counters(v),
        ),
        (
            "stores",
            records.KEY_STORES,
            records.encode_stores(GOLDEN_STORES),
            lambda k, v: records.decode_stores(v),
        ),
    ]


GOLDEN = {
    "inode": "0101050000000200a4810000e8030000e90300000100000000001000000000000000000000000000050000000000000005000000000000000100000000000000ffffffffffffffff00ca9a3b000000000000000002000000ffc99a3b00000000070000000000000068656c6c6f5b9efe112249ec73",
    "dentry": "020000000000000008096b7a5143b73dd2",
    "ref": "070000000000000005000000000102030405060708090a0b0c0d0e0f02020003002a92cdeef3a5d276",
    "xattr": "76616c7565e5efeba1eb9aa21c",
    "orphan": "1c5185797948693e",
    "garbage": "0202000300160b145cb8329177",
    "number": "0900000000000000ed03d18c4e124a09",
    "counters": "01000000000000000200000000000000030000000000000004000000000000006cc2192333ec5694",
    "stores": "0100000001000200757575757575757575757575757575751d472a14496b578a",
}


def test_golden_bytes() -> None:
    """Changed bytes need a new version of the format."""
    assert {kind: value.hex() for kind, _, value, _ in rows()} == GOLDEN


def test_golden_keys() -> None:
    assert records.name_key(1, b"ab").hex() == "00000000000000016162"
    assert records.ref_key(1, 2).hex() == "00000000000000010000000000000002"
    assert records.garbage_key(ChunkKey(1, 2, 3)).hex()[32:] == "0000000000000003"
    assert records.decode_name_key(records.DENTRIES, b"\0" * 7 + b"\1ab") == (1, b"ab")
    assert records.decode_ref_key(records.ref_key(4, 5)) == (4, 5)
    assert records.decode_garbage_key(records.garbage_key(ChunkKey(4, 5, 6))) == (4, 5, 6)


@given(INODES)
def test_inode_round_trip(inode: InodeRecord) -> None:
    key = records.inode_key(inode.ino)
    value = memoryview(records.encode_inode(inode))
    assert records.decode_inode(memoryview(key), value, InodeRecord) == inode


@given(U64, NAMES, st.integers(1, 2**64 - 1), st.sampled_from([1, 2, 4, 6, 8, 10, 12]))
def test_dentry_round_trip(parent: int, name: bytes, ino: int, kind: int) -> None:
    key = records.name_key(parent, name)
    assert records.decode_dentry(key, records.encode_dentry(key, ino, kind)) == (ino, kind)


@given(U64, U64, REFS)
def test_ref_round_trip(ino: int, chunk: int, ref: ChunkRef) -> None:
    key = records.ref_key(ino, chunk)
    assert records.decode_ref(key, records.encode_ref(key, ref)) == ref


@given(U64, NAMES, st.binary(max_size=300), STORES)
def test_other_round_trips(number: int, name: bytes, value: bytes, stores: tuple[int, ...]) -> None:
    key = records.name_key(number, name)
    assert records.decode_xattr(key, records.encode_xattr(key, value)) == value
    key = records.garbage_key(ChunkKey(number, 1, 2))
    assert records.decode_garbage(key, records.encode_garbage(key, stores)) == stores
    key = records.inode_key(number)
    assert records.decode_orphan(key, records.encode_orphan(key)) == number
    key = records.KEY_INODE_LIMIT
    assert records.decode_number(key, records.encode_number(key, number)) == number
    counters = Counters(number, 1, 2, 3)
    assert records.decode_counters(records.encode_counters(counters)) == counters
    table = [StoreEntry(StoreId(store), b"x" * 16, StoreState.FRESH) for store in set(stores)]
    assert records.decode_stores(records.encode_stores(table)) == table


@pytest.mark.parametrize("row", rows(), ids=[row[0] for row in rows()])
def test_every_damage_is_found(
    row: tuple[str, bytes, bytes, Callable[[bytes, bytes], object]],
) -> None:
    """Each flipped bit, each cut, added bytes, and a foreign key."""
    _, key, value, decode = row
    decode(key, value)
    for bit in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError, match="index: "):
            decode(key, bytes(damaged))
    for size in range(len(value)):
        with pytest.raises(DamageError):
            decode(key, value[:size])
    with pytest.raises(DamageError):
        decode(key, value + b"\0")
    if row[0] not in {"counters", "stores"}:
        with pytest.raises(DamageError):
            decode(key[:-1] + b"\7", value)


@given(st.binary(max_size=40), st.binary(max_size=200), st.booleans())
def test_any_bytes_give_damage_error(key: bytes, body: bytes, is_guarded: bool) -> None:
    """Also bytes whose guard is right: a bug or an attacker made them."""
    hostile = records._guarded(key, body) if is_guarded else body
    fixed = records._guarded(records.KEY_STORES, body) if is_guarded else body
    calls: list[Callable[[], object]] = [
        lambda: records.decode_inode(key, hostile, InodeRecord),
        lambda: records.decode_dentry(key, hostile),
        lambda: records.decode_ref(key, hostile),
        lambda: records.decode_xattr(key, hostile),
        lambda: records.decode_orphan(key, hostile),
        lambda: records.decode_garbage(key, hostile),
        lambda: records.decode_number(key, hostile),
        lambda: records.decode_counters(hostile),
        lambda: records.decode_stores(fixed),
        lambda: records.decode_inode_key("inodes", key),
        lambda: records.decode_name_key("dentries", key),
        lambda: records.decode_ref_key(key),
        lambda: records.decode_garbage_key(key),
    ]
    for call in calls:
        with contextlib.suppress(DamageError):
            call()


def test_hostile_inode_bodies() -> None:
    """Right key, right guard, random body of about the right size."""
    rng = random.Random(1)
    key = records.inode_key(2)
    for size in (104, 105, 112, 4600):
        for _ in range(200):
            body = b"\1" + rng.randbytes(size - 1)
            with contextlib.suppress(DamageError):
                records.decode_inode(key, records._guarded(key, body), InodeRecord)


def test_message_names_database_and_key() -> None:
    key = records.ref_key(1, 2)
    with pytest.raises(DamageError, match=f"refs record {key.hex()}"):
        records.decode_ref(key, b"short")
