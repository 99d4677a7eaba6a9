"""What the chunks of a store are by themselves, told beside them: chunk reports in key order.

Rows of `chunks` and `headers` of all sides are merged by key; payloads are summed straight from
LMDB's pages, which costs 46 µs a MiB: 5 µs more would be a tenth.  Nothing is written.  Pages that
are damaged as pages are not found here but by `inspect`; rows that are out of order or have no key
of a chunk, as such damage leaves them, are skipped, so that every walk comes to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from mpifs.core.checksum import ChecksumFunction
from mpifs.core.chunk_report import (
    ChunkReport,
    Fault,
    decode_reports,
    encode_good,
    encode_report,
)
from mpifs.core.image import IMAGE_HEADER_BYTES, KEY_BYTES, decode_key, unpack_header
from mpifs.core.limits import VERIFY_READ_BYTES, VERIFY_READ_S
from mpifs.kv import ReadTransaction
from mpifs.store.side import Side
from mpifs.store.value import header_of

_NO_SUM = bytes(16)
_END = (b"\xff" * (KEY_BYTES + 1), memoryview(b""))  # behind every key of a chunk


class Batch(NamedTuple):
    """Encoded reports, how many, the payload bytes summed for them, and whether no key is left."""

    reports: bytes
    items: int
    payload_bytes: int
    is_end: bool


Row = tuple[bytes, memoryview | None, memoryview | None]
"""A key, its image and its listed header in one environment; views are the transaction's."""


def verify(
    sides: Sequence[Side],
    after: bytes,
    *,
    count: int,
    payload_bytes: int,
    checksum: ChecksumFunction | None,
    is_stopped: Callable[[], bool],
) -> Batch:
    """Reports of at most `count` chunks with keys greater than `after`, ending once
    `payload_bytes` have been summed.

    `checksum` None: only the listed headers are read, and stand for the images'; NO_IMAGE and
    NOT_LISTED are still found.  Read transactions are short (VERIFY_READ_BYTES, VERIFY_READ_S).
    Any thread; several may verify at once.  Ends early, without is_end, when `is_stopped`.
    Raises DamageError if LMDB finds a page damaged.
    """
    reports: list[bytes] = []
    total = 0
    is_end = False
    while not is_end and len(reports) < count and total < payload_bytes and not is_stopped():
        with ExitStack() as stack:
            open_reads = [stack.enter_context(side.environment.read()) for side in sides]
            part, read_bytes, is_end = _read_part(
                open_reads,
                after,
                count=count - len(reports),
                payload_bytes=min(VERIFY_READ_BYTES, payload_bytes - total),
                checksum=checksum,
            )
        reports += part
        total += read_bytes
        if part:
            after = part[-1][:KEY_BYTES]
    return Batch(b"".join(reports), len(reports), total, is_end)


def _read_part(
    open_reads: Sequence[ReadTransaction],
    after: bytes,
    *,
    count: int,
    payload_bytes: int,
    checksum: ChecksumFunction | None,
) -> tuple[list[bytes], int, bool]:
    """As many reports as one set of read transactions may give, at least one if there is one."""
    start = after + b"\0" if after else b""
    rows_of = _rows if checksum is not None else _listed_rows
    rows = merge(*(rows_of(transaction, start) for transaction in open_reads), key=itemgetter(0))
    reports: list[bytes] = []
    total = 0
    until = time.monotonic() + VERIFY_READ_S
    last_key = b""
    for key, image, listed in rows:
        if key == last_key:
            reports[-1] = _both(reports[-1], _judge(key, image, listed, checksum)[0])
            continue
        is_full = len(reports) >= count or total >= payload_bytes
        if (is_full or time.monotonic() > until) and reports:
            return reports, total, False
        last_key = key
        report, read_bytes = _judge(key, image, listed, checksum)
        reports.append(report)
        total += read_bytes
    return reports, total, True


def _both(*reports: bytes) -> bytes:
    """A key that two environments have: the better one's report."""
    decoded = decode_reports(b"".join(reports))
    better = min(decoded, key=lambda report: (report.faults & ~Fault.TWICE).bit_count())
    return encode_report(better._replace(faults=better.faults | Fault.TWICE))


def _judge(
    key: bytes,
    image: memoryview | None,
    listed: memoryview | None,
    checksum: ChecksumFunction | None,
) -> tuple[bytes, int]:
    """A row's report, and how many payload bytes were summed for it."""
    if image is None or listed is None:
        return _judge_closely(key, image, listed, checksum)
    head = bytes(image[:IMAGE_HEADER_BYTES])
    if head == bytes(listed) and len(head) == IMAGE_HEADER_BYTES:
        header = unpack_header(head)
        if header is not None and header[0] == key:
            if image is listed:
                return encode_good(*header), 0
            payload = image[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + header[1]]
            is_cut = len(payload) < header[1]
            if checksum is not None and not is_cut and checksum(payload) == header[2]:
                return encode_good(*header), header[1]
    return _judge_closely(key, image, listed, checksum)


def _judge_closely(
    key: bytes,
    image: memoryview | None,
    listed: memoryview | None,
    checksum: ChecksumFunction | None,
) -> tuple[bytes, int]:
    """As `_judge`, for every row.  `listed` as `image`: only the listed header is looked at."""
    name = decode_key(key)
    if image is None:
        return encode_report(ChunkReport(name, Fault.NO_IMAGE, 0, _NO_SUM, name)), 0
    faults = 0 if listed is not None else Fault.NOT_LISTED
    header = header_of(image)
    if header is None:
        if image is not listed:
            faults |= Fault.HEADER_DAMAGED
        if listed is not None and header_of(listed) is None:
            faults |= Fault.LIST_DAMAGED
        return encode_report(ChunkReport(name, faults, 0, _NO_SUM, name)), 0
    if listed is not None and image[:IMAGE_HEADER_BYTES] != listed:
        faults |= Fault.LIST_DAMAGED
    if header.key != name:
        faults |= Fault.WRONG_KEY
    found, read_bytes = header.checksum, 0
    end = IMAGE_HEADER_BYTES + header.length
    if end > len(image) and image is not listed:
        faults |= Fault.CUT
    elif checksum is not None:
        found, read_bytes = checksum(image[IMAGE_HEADER_BYTES:end]), header.length
        if found != header.checksum:
            faults |= Fault.SUM_WRONG
    return encode_report(ChunkReport(name, faults, header.length, found, header.key)), read_bytes


def _listed_rows(transaction: ReadTransaction, start: bytes) -> Iterator[Row]:
    """The listed headers, each standing for its image too.  Keys that only one of the databases
    has show in their numbers; then the images are looked at, whatever it costs."""
    if transaction.count("headers") != transaction.count("chunks"):
        yield from _rows(transaction, start)
        return
    last = b""
    for view, listed in transaction.scan("headers", start):
        key = bytes(view)
        if key > last and len(key) == KEY_BYTES:
            last = key
            yield key, listed, listed


def _rows(transaction: ReadTransaction, start: bytes) -> Iterator[Row]:
    """The union of `chunks` and `headers`, in key order.  A key that is not below its follower
    stands out of order: it is skipped, lest all that it jumps over would seem to be missing."""
    images, heads = transaction.scan("chunks", start), transaction.scan("headers", start)
    image, next_image = _next(images), _next(images)
    head, next_head = _next(heads), _next(heads)
    last = b""
    while image is not _END or head is not _END:
        key, take_image, take_head = image[0], True, True
        if key != head[0]:
            take_image, take_head = key < head[0], head[0] < key
            if take_image and next_head[0] <= head[0] and head is not _END:
                head, next_head = next_head, _next(heads)
                continue
            if take_head and next_image[0] <= key and image is not _END:
                image, next_image = next_image, _next(images)
                continue
            key = min(key, head[0])
        if key > last:
            last = key
            yield key, image[1] if take_image else None, head[1] if take_head else None
        if take_image:
            image, next_image = next_image, _next(images)
        if take_head:
            head, next_head = next_head, _next(heads)


def _next(rows: Iterator[tuple[memoryview, memoryview]]) -> tuple[bytes, memoryview]:
    """The next row that has a key of a chunk, _END behind the last one."""
    for key, value in rows:
        if len(key) == KEY_BYTES:
            return bytes(key), value
    return _END
