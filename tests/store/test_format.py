"""The worked examples of doc/format.md, sections 1 to 3, and of chunk reports in doc/wire.md."""

from __future__ import annotations

import re
from pathlib import Path

import mpifs
from mpifs.core.checksum import function_of
from mpifs.core.chunk_report import ChunkReport, Fault, decode_reports, encode_good, encode_report
from mpifs.core.image import encode_key
from mpifs.core.superblock import Role, Superblock, decode, encode
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.side import Counters, _decode, _encode
from tests.store.images import image_bytes

PAGE = (Path(mpifs.__file__).parent / "doc" / "format.md").read_text()


def example(section: int) -> list[bytes]:
    """Lines of hex of the example in a section, as bytes."""
    text = re.split(r"^## \d", PAGE, flags=re.MULTILINE)[section]
    block = text.split("```")[1]
    return [bytes.fromhex(line.split("  ", 1)[1]) for line in block.strip().splitlines()]


def test_superblock() -> None:
    block = Superblock(
        Role.STORE,
        bytes(range(16)),
        bytes(range(16, 32)),
        3,
        1 << 20,
        1,
        ChecksumKind(1),
        1767225600,
    )
    golden = b"".join(example(1))
    assert encode(block) == golden
    assert decode(golden, "x") == block


def test_image() -> None:
    assert image_bytes(ChunkKey(42, 7, 1000), b"Hello, chunk!") == b"".join(example(2))


def test_key_and_counters() -> None:
    key, counters = example(3)
    assert encode_key(ChunkKey(42, 7, 1000)) == key
    assert _encode(Counters(1, 13)) == counters
    assert _decode(memoryview(counters)) == Counters(1, 13)
    assert _decode(memoryview(counters[:-1] + b"\0")) is None


def test_chunk_report() -> None:
    text = (Path(mpifs.__file__).parent / "doc" / "wire.md").read_text()
    block = text.split("its image is not listed and names generation 999.\n```\n")[1].split("```")[
        0
    ]
    golden = b"".join(bytes.fromhex(line.split("  ", 1)[1]) for line in block.splitlines())
    key = ChunkKey(42, 7, 1000)
    checksum = function_of(ChecksumKind.XXH3_128)(b"Hello, chunk!")
    faults = Fault.NOT_LISTED | Fault.WRONG_KEY
    report = ChunkReport(key, faults, 13, checksum, key._replace(generation=999))
    assert encode_report(report) == golden
    assert decode_reports(golden + golden) == [report, report]
    good = ChunkReport(key, 0, 13, checksum, key)
    assert encode_good(encode_key(key), 13, checksum) == encode_report(good)
