"""The stores as verify and repair use them: many requests under way, and none waited for in vain.

A store that misses a deadline, or whose process dies, is waited for if its worker may be replaced;
else it is left out from then on and told of once (`silent`), and the run goes on without it.
Used by the one thread of a run.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mpifs.core.checksum import Buffer, function_of
from mpifs.core.chunk_report import ChunkReport, decode_reports
from mpifs.core.errors import DamageError, MpifsError, SilentError, was_garbled
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    decode_header,
    encode_header_into,
    encode_key,
    encode_keys,
    padded,
)
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    BATCH_BYTES_MAX,
    BATCH_COUNT_MAX,
    CHECK_REQUESTS_MAX,
    CHECK_TIMEOUT_S,
    GARBLED_TRIES,
    MEND_COUNT_MAX,
    RECOVERY_S,
)
from mpifs.core.messages import (
    Mend,
    MendItem,
    MendReply,
    VerifyKeys,
    VerifyReply,
    decode_args,
    encode_args,
)
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef, StoreEntry
from mpifs.transport.client import Client, Pending

_LOOK_COUNT = 2  # reports asked for at a single place: its own, and one that shows it has ended.


class MendWish(NamedTuple):
    """An image to be made whole: its payload, that of `ref`, stands under `found` now."""

    key: ChunkKey
    found: ChunkKey
    ref: ChunkRef


class StoreAccess:
    """`available` are the stores that answer; who opens another one adds it there.

    `rank_of` maps a store to its rank; `kind` is the volume's checksum.  `entries` are the stores
    that were found to belong to the volume, whether or not its table says so.
    """

    def __init__(
        self,
        client: Client,
        rank_of: Callable[[int], int],
        available: set[int],
        kind: ChecksumKind,
        entries: Sequence[StoreEntry] = (),
        await_serving: Callable[[list[int], float], bool] = lambda stores, deadline: False,
    ) -> None:
        self.client = client
        self.rank_of = rank_of
        self.available = available
        self.kind = kind
        self.entries = entries
        self._await_serving = await_serving
        self.silent: dict[int, str] = {}
        """Why a store is available no longer."""
        self.can_talk: Callable[[int, int], bool] = lambda source, target: True
        """Whether two ranks have a direct link; else chunks travel through rank 0."""
        self.on_copied: Callable[[int], None] = lambda count: None
        """Hears of payload bytes stored by each step of a repair; may wait, and may raise
        CancelledError: what was done stands."""
        self._sum = function_of(kind)

    def has_returned(self, store: int, error: OSError) -> bool:
        """After a failed request: whether the store's worker was replaced, so that it is worth
        asking again.  Waits for it, RECOVERY_S at most; else leaves the store out from now on."""
        if store in self.available:
            deadline = time.monotonic() + RECOVERY_S
            if isinstance(error, SilentError) and self._await_serving([store], deadline):
                return True
            self.available.discard(store)
            self.silent[store] = str(error)
        return False

    def start(
        self,
        store: int,
        kind: Kind,
        args: Buffer = b"",
        body: Buffer | None = None,
        items: int = 0,
        timeout_s: float = CHECK_TIMEOUT_S,
    ) -> Pending:
        """Starts a request.  Raises MpifsError."""
        return self.client.start(
            self.rank_of(store), kind, args=args, body=body, items=items, timeout_s=timeout_s
        )

    def ask_reports(self, store: int, after: bytes, count: int, size: int, data: bool) -> Pending:
        """Starts a VERIFY of the keys behind `after`; read its answer with `reports_of`."""
        args = encode_args(VerifyKeys(after, count, size, data))
        return self.start(store, Kind.VERIFY, args=args)

    # A few places, looked at anew.

    def look(
        self, places: Sequence[tuple[int, int]], data: bool
    ) -> dict[tuple[int, int], list[tuple[int, ChunkReport]]]:
        """What each available store holds now at some (inode, chunk) places."""
        found: dict[tuple[int, int], list[tuple[int, ChunkReport]]] = {p: [] for p in places}
        todo = deque(
            (store, place, encode_key(ChunkKey(*place, 0)))
            for place in places
            for store in sorted(self.available)
        )
        under_way: deque[tuple[Pending, int, tuple[int, int], bytes]] = deque()
        while todo or under_way:
            while todo and len(under_way) < CHECK_REQUESTS_MAX:
                store, place, after = todo.popleft()
                if store not in self.available:
                    continue
                try:
                    pending = self.ask_reports(store, after, _LOOK_COUNT, 1, data)
                except MpifsError as error:
                    if self.has_returned(store, error):
                        todo.append((store, place, after))
                    continue
                under_way.append((pending, store, place, after))
            if not under_way:
                break
            pending, store, place, after = under_way.popleft()
            try:
                reports, _, is_end = reports_of(pending)
            except MpifsError as error:
                if self.has_returned(store, error):
                    todo.append((store, place, after))
                continue
            mine = [report for report in reports if report.key[:2] == place]
            found[place] += [(store, report) for report in mine]
            if mine and not is_end and len(mine) == len(reports):
                todo.append((store, place, encode_key(mine[-1].key)))
        return found

    # Images.

    def fetch(self, wanted: Iterable[tuple[int, ChunkKey, ChunkRef]]) -> Iterator[bytearray | None]:
        """Verified images of (store, key, ref), in order; None where the store has it not so.

        The header is made anew from the index, so that what is stored with it is right.
        """
        under_way: deque[tuple[Pending | None, int, ChunkKey, ChunkRef, bytearray]] = deque()
        source = iter(wanted)
        is_over = False
        while under_way or not is_over:
            while not is_over and len(under_way) < _FETCHES:
                item = next(source, None)
                if item is None:
                    is_over = True
                    break
                under_way.append(self._start_fetch(*item))
            if under_way:
                yield self._end_fetch(*under_way.popleft())

    def _start_fetch(
        self, store: int, key: ChunkKey, ref: ChunkRef
    ) -> tuple[Pending | None, int, ChunkKey, ChunkRef, bytearray]:
        into = bytearray(IMAGE_HEADER_BYTES + ref.length)
        pending = None
        if store in self.available:
            try:
                pending = self.client.start(
                    self.rank_of(store), Kind.GET, args=encode_key(key), into=into
                )
            except MpifsError as error:
                if self.has_returned(store, error):
                    return self._start_fetch(store, key, ref)
        return pending, store, key, ref, into

    def _end_fetch(
        self, pending: Pending | None, store: int, key: ChunkKey, ref: ChunkRef, into: bytearray
    ) -> bytearray | None:
        if pending is None:
            return None
        try:
            body = pending.wait().body
            if len(body) != len(into) or decode_header(body).key != key:
                return None
        except SilentError as error:
            if not self.has_returned(store, error):
                return None
            return self._end_fetch(*self._start_fetch(store, key, ref))
        except MpifsError:
            return None
        if body.obj is not into:
            into[:] = body
        if self._sum(memoryview(into)[IMAGE_HEADER_BYTES:]) != ref.checksum:
            return None
        encode_header_into(into, 0, self.kind, key, ref.length, ref.checksum)
        return into

    def put(self, images: Sequence[tuple[int, bytearray]]) -> list[MpifsError | None]:
        """Stores images, each on its store, durably; what went wrong, one by one."""
        packs: dict[int, list[list[int]]] = defaultdict(list)
        sizes: dict[int, int] = {}
        for number, (store, image) in enumerate(images):
            size = padded(len(image))
            pack = packs[store][-1] if packs[store] else None
            if (
                pack is None
                or sizes[store] + size > BATCH_BYTES_MAX
                or len(pack) >= BATCH_COUNT_MAX
            ):
                pack = []
                packs[store].append(pack)
                sizes[store] = 0
            pack.append(number)
            sizes[store] += size
        failures: list[MpifsError | None] = [None] * len(images)
        requests = []
        for store, parts in packs.items():
            for part in parts:
                mine = [images[number][1] for number in part]
                body = b"".join(image.ljust(padded(len(image)), b"\0") for image in mine)
                requests.append((store, part, Kind.PUT, b"", body))
        for _, part, error in self._all(requests):
            for number in part:
                failures[number] = error
        return failures

    def delete(self, keys: Mapping[int, Sequence[ChunkKey]]) -> dict[int, MpifsError]:
        """Deletes chunks by store; the stores that failed, with why."""
        requests = []
        for store, all_keys in keys.items():
            for first in range(0, len(all_keys), BATCH_COUNT_MAX):
                part = list(all_keys[first : first + BATCH_COUNT_MAX])
                requests.append(
                    (store, list(range(len(part))), Kind.DELETE, encode_keys(part), b"")
                )
        failed: dict[int, MpifsError] = {}
        for store, _, error in self._all(requests):
            if error is not None:
                failed[store] = error
        return failed

    def _all(
        self, requests: Sequence[tuple[int, list[int], Kind, bytes, bytes]]
    ) -> Iterator[tuple[int, list[int], MpifsError | None]]:
        """Carries out requests, all stores at once; refusals are told, silence is remembered, what
        was damaged on its way is sent again."""
        todo = deque(requests)
        garbled: Counter[int] = Counter()  # by the identity of `part`
        under_way: deque[tuple[Pending, tuple[int, list[int], Kind, bytes, bytes]]] = deque()
        while todo or under_way:
            while todo and len(under_way) < _FETCHES:
                store, part, kind, args, body = todo.popleft()
                try:
                    if store not in self.available:
                        raise DamageError(f"worker {store} is not there")
                    pending = self.start(store, kind, args, body or None, len(part))
                except MpifsError as error:
                    if self.has_returned(store, error):
                        todo.append((store, part, kind, args, body))
                    else:
                        yield store, part, error
                    continue
                under_way.append((pending, (store, part, kind, args, body)))
            if not under_way:
                continue
            pending, request = under_way.popleft()
            store, part = request[:2]
            try:
                pending.wait()
            except SilentError as error:
                if self.has_returned(store, error):
                    todo.append(request)
                else:
                    yield store, part, error
            except MpifsError as error:
                garbled[id(part)] += 1
                if was_garbled(error) and garbled[id(part)] < GARBLED_TRIES:
                    todo.append(request)
                else:
                    yield store, part, error
            else:
                yield store, part, None

    def mend(self, store: int, wishes: Sequence[MendWish]) -> list[bool]:
        """Has a store put images right by itself; whether each is whole now.

        Wishes that depend on each other (images under each other's keys) stand together.
        """
        mended: list[bool] = []
        for first in range(0, len(wishes), MEND_COUNT_MAX):
            part = wishes[first : first + MEND_COUNT_MAX]
            items = [
                MendItem(encode_key(w.key), encode_key(w.found), w.ref.length, w.ref.checksum)
                for w in part
            ]
            try:
                if store not in self.available:
                    raise DamageError(f"worker {store} is not there")
                reply = self.start(store, Kind.MEND, encode_args(Mend(items))).wait()
                answers = decode_args(bytes(reply.args), MendReply).mended
            except SilentError as error:
                if self.has_returned(store, error):
                    mended += self.mend(store, part)
                    continue
                answers = []
            except MpifsError:
                answers = []
            mended += (answers + [False] * len(part))[: len(part)]
        return mended


_FETCHES = 16  # images in memory of rank 0: 16 MiB in chunks of the usual size.


def reports_of(pending: Pending) -> tuple[list[ChunkReport], int, bool]:
    """The reports of a VERIFY, the payload bytes summed, and whether no key follows."""
    reply = pending.wait()
    told = decode_args(bytes(reply.args), VerifyReply)
    return decode_reports(reply.body), told.bytes, told.is_end
