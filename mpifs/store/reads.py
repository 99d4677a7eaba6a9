"""Answers to GET, GET_MANY, GET_PART and LIST.  A GET is sent straight from LMDB's pages: its read
transaction lives until `on_sent`, and at most LEASES_MAX live at once.  The others are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mpifs.core.checksum import CHECKSUM_BYTES, ChecksumFunction, block_sums
from mpifs.core.errors import ChunkMissingError, DamageError, ProtocolError
from mpifs.core.image import IMAGE_HEADER_BYTES, KEY_BYTES, decode_key, decode_keys, padded
from mpifs.core.limits import (
    BATCH_BYTES_MAX,
    LEASES_MAX,
    LIST_COUNT_MAX,
    PART_BLOCK_BYTES,
    PART_CHUNK_BYTES_MAX,
    PART_READ_BYTES_MAX,
    SMALL_AHEAD_COUNT,
)
from mpifs.core.messages import GetPart, ListKeys, TableWish, decode_args
from mpifs.store.chunks import ChunkStore, Lease
from mpifs.store.part_places import PartPlaces
from mpifs.transport.request import Request


class Reads:
    """`open_store` gives the store that is served or raises; `checksum` its function; `free` what
    it can still take.

    Used by the service loop's thread.
    """

    def __init__(
        self,
        open_store: Callable[[], ChunkStore],
        checksum: Callable[[], ChecksumFunction],
        free: Callable[[], int],
    ) -> None:
        self._open_store = open_store
        self._checksum = checksum
        self._free = free
        self._leases = threading.BoundedSemaphore(LEASES_MAX)
        self._places: PartPlaces | None = None

    def get(self, request: Request) -> None:
        """Answers GET."""
        store = self._open_store()
        if len(request.args) != KEY_BYTES:
            raise ProtocolError("GET without one chunk key")
        lease = store.get(decode_key(request.args))
        if not self._leases.acquire(blocking=False):
            with lease:
                copy = bytes(lease.image)
            request.reply(body=copy, items=1, free=self._free())
            return
        give_back = self._give_back(lease)
        try:
            request.reply(body=lease.image, items=1, free=self._free(), on_sent=give_back)
        except BaseException:
            give_back()
            raise

    def _give_back(self, lease: Lease) -> Callable[[], None]:
        once = [lease]

        def sent() -> None:
            if once:
                once.pop().close()
                self._leases.release()

        return sent

    def get_many(self, request: Request) -> None:
        """Answers GET_MANY: small chunks, copied; a damaged one is left out like a missing one."""
        store = self._open_store()
        keys = decode_keys(request.args)
        images: list[bytes] = []
        size = 0
        for key in keys[:SMALL_AHEAD_COUNT]:
            try:
                with store.get(key) as lease:
                    image = bytes(lease.image)
            except (ChunkMissingError, DamageError):
                continue
            size += padded(len(image))
            if size > BATCH_BYTES_MAX:
                break
            images.append(image.ljust(padded(len(image)), b"\0"))
        request.reply(body=b"".join(images), items=len(images), free=self._free())

    def get_part(self, request: Request) -> None:
        """Answers GET_PART.

        A table that is stored with the chunk spares to read all of it.  What is summed for a new
        one is a copy: a page of LMDB's file that the kernel drops and reads
        again between two sums could hold other bytes then.
        """
        asked = decode_args(request.args, GetPart)
        begin, end = _range(asked)
        table = b""
        store = self._open_store()
        places = self._places
        if places is None:
            places = self._places = PartPlaces(store.folder)
        if asked.table != TableWish.SUMMED:
            if asked.table:
                table = places.table(asked.key, asked.length, asked.checksum)
            found = places.read(asked.key, begin, end) if table or not asked.table else None
            if found is not None:
                request.reply(args=table, body=found, items=asked.count, free=self._free())
                return
            table = b""
        with store.get(decode_key(asked.key)) as lease:
            header = lease.header
            if header.length != asked.length or header.checksum != asked.checksum:
                raise DamageError("the chunk is not the one that the index knows")
            payload = lease.image[IMAGE_HEADER_BYTES:]
            if asked.table:
                payload = memoryview(bytes(payload))
                if self._checksum()(payload) != asked.checksum:
                    raise DamageError("the chunk holds other bytes: checksum is wrong")
                table = block_sums(payload, PART_BLOCK_BYTES, self._checksum())
            body = bytes(payload[begin:end])
            places.find(asked.key, asked.length, asked.checksum)
        request.reply(args=table, body=body, items=asked.count, free=self._free())

    def forget(self) -> None:
        """Another store is served from now on, or none; any thread."""
        self._places = None

    def list(self, request: Request) -> None:
        """Answers LIST."""
        store = self._open_store()
        asked = decode_args(request.args, ListKeys)
        if len(asked.after) not in (0, KEY_BYTES) or asked.count < 1:
            raise ProtocolError("LIST with an impossible key or count")
        headers = store.headers(asked.after, min(asked.count, LIST_COUNT_MAX))
        request.reply(body=b"".join(headers), items=len(headers), free=self._free())


def _range(asked: GetPart) -> tuple[int, int]:
    """Payload bytes that are asked for.  Raises ProtocolError for impossible ones."""
    begin = asked.first * PART_BLOCK_BYTES
    end = min(begin + asked.count * PART_BLOCK_BYTES, asked.length)
    if (
        len(asked.key) != KEY_BYTES
        or len(asked.checksum) != CHECKSUM_BYTES
        or asked.length > PART_CHUNK_BYTES_MAX
        or asked.table not in list(TableWish)
        or not 0 <= begin < end
        or end - begin > PART_READ_BYTES_MAX + PART_BLOCK_BYTES
    ):
        raise ProtocolError("GET_PART of impossible blocks")
    return begin, end
