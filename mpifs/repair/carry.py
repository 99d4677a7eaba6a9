"""Brings copies of chunks to stores that are to have them, verified on the way.

The target fetches them from a store that has them (COPY), so the payload does not pass through
rank 0; only between ranks that cannot talk to each other does it: fetched, verified, put, in rank
0's memory no more than the caller's group.  Whatever stood under a key at the target is replaced
only once a good image is at hand.  Used by the one thread of a run.
"""

from __future__ import annotations

import contextlib
import errno
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mpifs import faultpoint
from mpifs.core.errors import FullError, MpifsError, RemoteError, SilentError
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import COPY_BYTES_MAX, COPY_COUNT_MAX, COPY_TIMEOUT_S
from mpifs.core.messages import Copy, CopyItem, CopyReply, decode_args, encode_args
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.repair.stores import StoreAccess
from mpifs.transport.client import Pending

_AT_ONCE = 2  # COPY requests under way at one target: one is fetched while one is stored.


class Wish(NamedTuple):
    """A chunk that `target` is to have; `sources` may have it, the first ones asked first."""

    key: ChunkKey
    ref: ChunkRef
    sources: Sequence[int]
    target: int


class Outcome(NamedTuple):
    """Whether the target has it now, durably; `error`: why it could not take it."""

    is_there: bool
    error: MpifsError | None = None


class Carrier:
    """`can_talk(source, target)` says whether two ranks have a direct link."""

    def __init__(self, stores: StoreAccess, can_talk: Callable[[int, int], bool]) -> None:
        self._stores = stores
        self._can_talk = can_talk

    def bring(self, wishes: Sequence[Wish]) -> list[Outcome]:
        """What became of each wish."""
        outcomes = [Outcome(False)] * len(wishes)
        for turn in range(max((len(wish.sources) for wish in wishes), default=0)):
            self._ask_targets(wishes, outcomes, turn)
        self._carry(wishes, outcomes)
        return outcomes

    # From worker to worker.

    def _ask_targets(self, wishes: Sequence[Wish], outcomes: list[Outcome], turn: int) -> None:
        """Has the targets fetch what they miss from each wish's source number `turn`."""
        pairs: dict[tuple[int, int], list[int]] = defaultdict(list)
        available = self._stores.available
        for number, wish in enumerate(wishes):
            if outcomes[number].is_there or _is_full(outcomes[number].error):
                continue
            if turn < len(wish.sources) and {wish.sources[turn], wish.target} <= available:
                with contextlib.suppress(MpifsError):  # one of them is being replaced
                    ranks = map(self._stores.rank_of, (wish.sources[turn], wish.target))
                    if self._can_talk(*ranks):
                        pairs[wish.sources[turn], wish.target].append(number)
        todo: dict[int, deque[tuple[int, list[int]]]] = defaultdict(deque)
        for (source, target), numbers in pairs.items():
            for part in _parts(wishes, numbers):
                todo[target].append((source, part))
        under_way: deque[tuple[Pending, int, list[int]]] = deque()
        for target, parts in todo.items():
            for _ in range(min(_AT_ONCE, len(parts))):
                self._ask(wishes, outcomes, under_way, target, parts)
        while under_way:
            pending, target, part = under_way.popleft()
            self._hear(pending, target, part, outcomes)
            if todo[target]:
                self._ask(wishes, outcomes, under_way, target, todo[target])

    def _ask(
        self,
        wishes: Sequence[Wish],
        outcomes: list[Outcome],
        under_way: deque[tuple[Pending, int, list[int]]],
        target: int,
        parts: deque[tuple[int, list[int]]],
    ) -> None:
        source, part = parts.popleft()
        items = [
            CopyItem(encode_key(wish.key), wish.ref.length, wish.ref.checksum)
            for wish in (wishes[number] for number in part)
        ]
        faultpoint.reach("repair.commit")
        try:
            args = encode_args(Copy(self._stores.rank_of(source), items))
            pending = self._stores.start(target, Kind.COPY, args, timeout_s=COPY_TIMEOUT_S)
        except MpifsError as error:
            for number in part:
                outcomes[number] = Outcome(False, error)
            return
        under_way.append((pending, target, part))

    def _hear(
        self, pending: Pending, target: int, part: list[int], outcomes: list[Outcome]
    ) -> None:
        failed: dict[int, MpifsError] = {}
        try:
            reply = decode_args(bytes(pending.wait().args), CopyReply)
        except MpifsError as error:
            if isinstance(error, SilentError):  # back or not: what it has is asked for anew
                self._stores.has_returned(target, error)
            failed = dict.fromkeys(range(len(part)), error)
        else:
            rank = self._stores.rank_of(target)
            for one in reply.failures:
                failed[one.item] = RemoteError(rank, one.detail, one.code)
        for place, number in enumerate(part):
            outcomes[number] = Outcome(place not in failed, failed.get(place))

    # Through rank 0.

    def _carry(self, wishes: Sequence[Wish], outcomes: list[Outcome]) -> None:
        """What the targets could not fetch by themselves."""
        left = [
            number
            for number, outcome in enumerate(outcomes)
            if not outcome.is_there and not _is_full(outcome.error)
        ]
        images = self._fetch([wishes[number] for number in left])
        puts: list[tuple[int, bytearray]] = []
        bad: dict[int, list[ChunkKey]] = defaultdict(list)
        ready = []
        for number in left:
            wish = wishes[number]
            image = images.get(wish.key)
            if image is not None and wish.target in self._stores.available:
                ready.append(number)
                puts.append((wish.target, image))
                bad[wish.target].append(wish.key)
        if not puts:
            return
        faultpoint.reach("repair.commit")
        self._stores.delete(bad)
        faultpoint.reach("repair.commit")
        for number, error in zip(ready, self._stores.put(puts), strict=True):
            outcomes[number] = Outcome(error is None, error)

    def _fetch(self, wishes: Sequence[Wish]) -> dict[ChunkKey, bytearray]:
        """A verified image of each chunk that any of its sources has."""
        found: dict[ChunkKey, bytearray] = {}
        by_key = {wish.key: wish for wish in wishes}
        for turn in range(max((len(wish.sources) for wish in wishes), default=0)):
            asked = [
                wish
                for wish in by_key.values()
                if wish.key not in found and turn < len(wish.sources)
            ]
            wanted = [(wish.sources[turn], wish.key, wish.ref) for wish in asked]
            for wish, image in zip(asked, self._stores.fetch(wanted), strict=True):
                if image is not None:
                    found[wish.key] = image
        return found


def _is_full(error: MpifsError | None) -> bool:
    return error is not None and (isinstance(error, FullError) or error.errno == errno.ENOSPC)


def _parts(wishes: Sequence[Wish], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Wishes that one COPY asks for."""
    part: list[int] = []
    size = 0
    for number in numbers:
        length = wishes[number].ref.length
        if part and (size + length > COPY_BYTES_MAX or len(part) >= COPY_COUNT_MAX):
            yield part
            part, size = [], 0
        part.append(number)
        size += length
    if part:
        yield part
