"""Chunks of a store made whole from payloads that it has itself, wherever they stand.

The index says what a chunk's payload is (length, checksum); a payload with that sum is the chunk's,
whatever its header, its key or the listing say.  An image that stands where another one has to go
is taken in hand and put to its own place, and so on, so that swapped and rotated chunks come home:

    item ──payload found──▶ hand ──put under its key──▶ what stood there: nothing │ worthless │ hand

All in write transactions of about MEND_BYTES_MAX.  Invariants: at each commit every image that may
still be good is stored under some key, and no hand is full: what does not fit in is *parked* under
a key that no chunk has, where VERIFY would find it by its header.  An image leaves an environment
for another one only in a transaction after the one that has stored it there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from mpifs import faultpoint
from mpifs.core.block_table import add_table, stored_bytes
from mpifs.core.checksum import Buffer
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    decode_key,
    encode_header_into,
    encode_key,
)
from mpifs.core.limits import MEND_BYTES_MAX
from mpifs.core.messages import MendItem
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import ChunkStore
from mpifs.store.side import Side, SideChange, length_of
from mpifs.store.value import has_payload, header_of, is_whole

_PARKING_INODE = 2**64 - 1  # no file has it


class _Hand(NamedTuple):
    """A value on its way to its key in one environment.  `origin` is the key that it has left
    vacant; `is_sure`: the index says that it belongs there, and not only its own header."""

    home: bytes | None
    side: Side
    value: Buffer
    origin: bytes | None
    is_sure: bool


class Mender:
    """One MEND request.  Used once, by the thread that changes the store.

    A failure (FullError, DamageError) leaves the store as after the last commit.
    """

    def __init__(
        self,
        store: ChunkStore,
        kind: ChecksumKind,
        items: Sequence[MendItem],
        transaction_bytes: int = MEND_BYTES_MAX,
    ) -> None:
        self._store = store
        self._kind = kind
        self._items = items
        self._transaction_bytes = transaction_bytes
        self._mended = [False] * len(items)
        self._queue = deque(range(len(items)))
        self._waiting: dict[bytes, list[int]] = {}  # found → items that are still in the queue
        for index, item in enumerate(items):
            self._waiting.setdefault(item.found, []).append(index)
        self._sure: dict[bytes, Side] = {}  # keys that hold what the index says, and where
        self._moved: dict[bytes, bytes] = {}  # found → where its payload has gone
        self._used: set[bytes] = set()  # keys with an unreadable header whose payload is elsewhere
        self._hands: list[_Hand] = []
        self._parked: list[tuple[bytes, _Hand]] = []
        self._clearings: list[tuple[Side, bytes]] = []
        self._changes: dict[Side, SideChange] = {}
        self._written = 0

    def run(self) -> list[bool]:
        """Mends; per item whether its chunk is whole now.  Durable on return."""
        for item in self._items:
            self._home(item)  # makes `copy/` if need be, before the transactions begin
        while self._queue or self._parked or self._clearings:
            with ExitStack() as stack:
                self._changes = {
                    side: stack.enter_context(side.change()) for side in self._store.sides
                }
                self._fill_transaction()
                faultpoint.reach("store.mend")
        return self._mended

    def _fill_transaction(self) -> None:
        self._written = 0
        parked, self._parked = self._parked, []
        for key, hand in parked:
            value = self._changes[hand.side].image(key)
            self._hands.append(hand._replace(value=bytes(value or b"")))
            self._changes[hand.side].delete(key)
        clearings, self._clearings = self._clearings, []
        for side, key in clearings:
            self._clear(side, key)
        while self._written < self._transaction_bytes and (self._hands or self._queue):
            if self._hands:
                self._place(self._hands.pop())
            else:
                self._begin(self._queue.popleft())
        for hand in self._hands:
            self._parked.append((self._strand(hand), hand._replace(value=b"")))
        self._hands.clear()

    def _home(self, item: MendItem) -> Side:
        return self._store.home(decode_key(item.key).inode, item.length)

    def _begin(self, index: int) -> None:
        """Takes an item's payload in hand, or sees that its chunk is whole or has none."""
        item = self._items[index]
        self._waiting[item.found].remove(index)
        home = self._home(item)
        if self._is_there(item, home):
            self._mended[index] = True
            return
        for place in (self._moved.get(item.found, item.found), item.key):
            for side, change in self._changes.items():
                value = change.image(place)
                if value is not None and self._fits(value, item):
                    self._mended[index] = True
                    self._leave(index, place, side, value)
                    return

    def _is_there(self, item: MendItem, home: Side) -> bool:
        """Whether the image is in its place; then puts the rest in order."""
        change = self._changes[home]
        value = change.image(item.key)
        if value is None or not self._fits(value, item):
            return False
        head = bytes(value[:IMAGE_HEADER_BYTES])
        if head != self._header(item):
            return False
        if bytes(change.listed(item.key) or b"") != head:
            change.relist(item.key, head)
        self._sure[item.key] = home
        self._clear_later(item.key, but=home)
        for side, other in self._changes.items():
            image = None if item.found == item.key else other.image(item.found)
            named = None if image is None else header_of(image)
            if named is not None and encode_key(named.key) == item.key:
                self._clearings.append((side, item.found))
        return True

    def _leave(self, index: int, place: bytes, side: Side, value: memoryview) -> None:
        """Takes the payload that stands under `place` in hand for an item.  The row goes if its
        header names another key than `place`."""
        item = self._items[index]
        hand = _Hand(item.key, self._home(item), self._image(item, value), None, True)
        header = header_of(value)
        named = place if header is None else encode_key(header.key)
        if header is None:
            self._used.add(place)
        elif place not in (named, item.key):
            self._moved[item.found] = item.key
            if side is not hand.side:
                self._clearings.append((side, place))
            else:
                hand = hand._replace(origin=place)
                if named != item.key:  # and a third chunk's payload is the same
                    self._hands.append(_Hand(named, side, bytes(value), None, False))
                self._changes[side].delete(place)
        self._hands.append(hand)

    def _image(self, item: MendItem, value: memoryview) -> bytearray:
        """The item's whole image, with the payload of `value`."""
        end = IMAGE_HEADER_BYTES + item.length
        image = bytearray(stored_bytes(item.length))
        image[:IMAGE_HEADER_BYTES] = self._header(item)
        image[IMAGE_HEADER_BYTES:end] = value[IMAGE_HEADER_BYTES:end]
        add_table(image, item.key, item.length, item.checksum, self._kind)
        return image

    def _header(self, item: MendItem) -> bytes:
        head = bytearray(IMAGE_HEADER_BYTES)
        key = decode_key(item.key)
        encode_header_into(head, 0, self._kind, key, item.length, item.checksum)
        return bytes(head)

    def _place(self, hand: _Hand) -> None:
        """Puts a hand's value to its home; what must not be lost of what stood there comes into
        a hand."""
        key = hand.home
        if key is None:
            self._strand(hand)
            return
        if not hand.is_sure and not self._is_welcome(hand, key):
            return
        change = self._changes[hand.side]
        old = change.image(key)
        if old is not None:
            self._take(hand.side, key, old, hand.origin)
        change.delete(key)
        self._put(change, key, hand.value)
        if hand.is_sure:
            self._sure[key] = hand.side
            self._clear_later(key, but=hand.side)

    def _is_welcome(self, hand: _Hand, key: bytes) -> bool:
        """Whether a value that only names its home should replace what is there.  Else it is
        dropped, if it is worth nothing beside that, or stranded."""
        if key in self._sure:
            return False
        whole = is_whole(memoryview(hand.value))
        is_readable = header_of(memoryview(hand.value)) is not None
        for change in self._changes.values():
            image = change.image(key)
            if image is None:
                continue
            header = header_of(image)
            is_named = header is not None and encode_key(header.key) == key
            is_own = is_named and is_whole(image)
            is_same = bytes(image[:IMAGE_HEADER_BYTES]) == bytes(hand.value[:IMAGE_HEADER_BYTES])
            if is_own and (is_same or not whole):
                return False
            if is_own or not is_readable or (is_named and not whole):
                self._strand(hand)
                return False
        return True

    def _take(self, side: Side, key: bytes, value: memoryview, vacant: bytes | None) -> None:
        """Takes in hand what must not be lost when `key` is given to another value."""
        header = header_of(value)
        named = None if header is None else encode_key(header.key)
        for index in self._waiting.get(key, ()):
            item = self._items[index]
            if item.key != key and self._fits(value, item):
                self._waiting[key].remove(index)
                self._queue.remove(index)
                self._mended[index] = True
                self._moved[key] = item.key
                self._hands.append(_Hand(item.key, side, self._image(item, value), None, True))
                if named in (None, item.key):
                    return
                break
        if named is None:
            if key not in self._used:
                self._hands.append(_Hand(vacant, side, bytes(value), None, False))
        elif named != key:
            self._hands.append(_Hand(named, side, bytes(value), None, False))

    def _clear_later(self, key: bytes, but: Side) -> None:
        """Has the key removed from all other environments, once this transaction is durable."""
        for side, change in self._changes.items():
            if side is not but and (change.has(key) or change.image(key) is not None):
                self._clearings.append((side, key))

    def _clear(self, side: Side, key: bytes) -> None:
        """Removes a key of which a former transaction has stored what counts elsewhere."""
        home = self._sure.get(key)
        if home is side:
            return
        change = self._changes[side]
        value = change.image(key)
        if value is not None:
            header = header_of(value)
            if home is None and (header is None or encode_key(header.key) == key):
                return  # what stands there now has been put there since
            self._take(side, key, value, None)
        change.delete(key)

    def _strand(self, hand: _Hand) -> bytes:
        """Stores a value under a key that no chunk has; returns it."""
        number = 0
        change = self._changes[hand.side]
        while change.has(key := encode_key(ChunkKey(_PARKING_INODE, number, 0))):
            number += 1
        self._put(change, key, hand.value)
        return key

    def _put(self, change: SideChange, key: bytes, value: Buffer) -> None:
        change.put(key, value, length_of(value))
        self._written += len(value)

    def _fits(self, value: memoryview, item: MendItem) -> bool:
        return has_payload(value, item.length, item.checksum, self._kind)
