"""Rank 0's side of healing: sees losses, starts the work a little later, paces it, tells of it.

    idle ──a store lost, replaced or back,──▶ due ──HEAL_DELAY_S──▶ healing ──pass complete──▶ idle
                                              ▲                        └──chunks that no store can
                                              └──HEAL_RETRY_S, or a change── waiting ◀──────  take
    idle ──a store is DRAINING──▶ draining ──empty──▶ `on_drained` ──▶ idle
    idle ──asked for──▶ rebalancing ──▶ idle

One thread does all of it, one thing at a time, in turn with fsck and scrub (ChecksTurn).  What is
left to do is read from index and stores at each start, so it may be killed at any point.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from mpifs.core.limits import HEAL_DELAY_S, HEAL_JOIN_S, HEAL_LOOK_S, HEAL_RETRY_S, ROUNDS_MAX
from mpifs.index.index import Index
from mpifs.job.control_frames import sentence_of
from mpifs.job.crew import Crew
from mpifs.job.fsck_service import ChecksTurn
from mpifs.job.heal_memory import read_memory, write_memory
from mpifs.job.heal_work import HealWork, PassResult
from mpifs.job.roster import SERVING
from mpifs.repair.findings import CancelledError, Progress
from mpifs.repair.pace import HealPace
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)
IDLE, DUE, HEALING, WAITING = "idle", "due", "healing", "waiting"
DRAINING, REBALANCING = "draining", "rebalancing"


class HealService:
    """`_wake` guards what is asked for and told; it is notified at each change.

    `on_drained(store)` takes an empty store out of the volume; it raises OSError.
    """

    def __init__(
        self, folder: str, index: Index, vfs: Vfs, client: Client, crew: Crew, turn: ChecksTurn
    ) -> None:
        self._folder = folder
        self._index = index
        self._vfs = vfs
        self._crew = crew
        self._turn = turn
        self.on_drained: Callable[[int], None] = lambda store: None
        self._pace = HealPace(self._activity, self._rest)
        self.work = HealWork(index, vfs, client, crew, self._on_copied)
        self._wake = threading.Condition()
        self.memory = read_memory(folder)
        self._quit = False
        self._progress = Progress()
        self._state = IDLE
        self._detail = ""
        self._left = 0
        self._total = 0
        self._due_s = time.monotonic() + HEAL_DELAY_S
        self._retry_s = 0.0
        self._is_balance_wanted = bool(self.memory.filling)
        self._stuck: frozenset[int] = frozenset()
        self._seen = self._situation()
        self._served = self._serving()
        self._short = vfs.writeback.short_count
        self._position = b""
        self._rounds = 0
        self._thread = threading.Thread(target=self._loop, name="heal", daemon=True)
        if self.memory.is_open or frozenset(self.memory.lost) != self.work.lost_stores():
            self.memory.is_due = True
        self.memory.is_open = True
        self._remember()

    def start(self) -> None:
        """Begins to look after the volume; may be repeated."""
        with self._wake:
            if not self._thread.is_alive() and not self._quit:
                self._thread.start()

    def close(self) -> None:
        """Ends the thread at the next step.  May be repeated."""
        with self._wake:
            self._quit = True
            self._progress.is_cancelled = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(HEAL_JOIN_S)

    def finish(self) -> None:
        """Remembers how the volume is left.  Requires: closed, and so is the Vfs."""
        self._look()
        self.memory.is_open = False
        self._remember()

    def _remember(self) -> None:
        """A hint for the next mount: a disk that others have filled must not hinder this one, nor
        its end."""
        try:
            write_memory(self._folder, self.memory)
        except OSError as error:
            log.warning("what is to be healed cannot be noted: %s", error)

    # What others ask for and see.

    def stores_changed(self, *, is_due: bool) -> None:
        """The table of stores or who serves them has changed; `is_due`: all is to be looked at."""
        self._follow_stores()
        with self._wake:
            self._stuck = frozenset()
            if is_due:
                self._seen = self._situation()
                self._make_due(0.0)
            self._wake.notify_all()

    def fill(self, store: int) -> None:
        """The store is new in the place of a lost one: it gets its share, across mounts."""
        with self._wake:
            self.memory.filling = sorted({*self.memory.filling, store})
            self._remember()
        self.balance(is_wanted=True)

    def balance(self, *, is_wanted: bool) -> None:
        """Asks for evening out, or for its end."""
        with self._wake:
            self._is_balance_wanted = is_wanted
            if not is_wanted and self._state == REBALANCING:
                self._progress.is_cancelled = True
            self._wake.notify_all()

    @property
    def is_balancing(self) -> bool:
        """Whether evening out was asked for and is not done."""
        return self._is_balance_wanted

    @property
    def is_due(self) -> bool:
        """Whether a look at all chunks is due or under way."""
        return self.memory.is_due

    @property
    def is_waiting(self) -> bool:
        """Whether the last pass has left chunks that nothing can be done for at the moment."""
        return self._state == WAITING

    def is_stuck(self, store: int) -> str:
        """Why a store that is being drained cannot be emptied; "" if it can."""
        return self._detail if store in self._stuck else ""

    def document(self) -> dict[str, Any]:
        """The key `heal` of the status document."""
        with self._wake:
            state = DUE if self._state == IDLE and self.memory.is_due else self._state
            rate = int(self._pace.rate) if state in (HEALING, DRAINING, REBALANCING) else 0
            left = max(0, self._left)
            return {
                "state": state,
                "bytes_left": left,
                "bytes_total": self._total,
                "rate": rate,
                "seconds_left": round(left / rate, 1) if rate else None,
                "detail": self._detail,
            }

    # The thread.

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait(HEAL_LOOK_S)
                if self._quit:
                    return
                self._progress = Progress()
            self._look()
            step = self._next()
            if step is None:
                continue
            with self._turn.take_if_free() as mine:
                if mine:
                    self._do(step)

    def _situation(self) -> tuple[frozenset[int], dict[int, bytes]]:
        return self.work.lost_stores(), {int(e.store): e.uuid for e in self._index.stores()}

    def _serving(self) -> frozenset[tuple[int, int]]:
        """The stores that answer, and the ranks that serve them: a replacement has another one."""
        return frozenset((w.store, w.rank) for w in self._crew.workers if w.state == SERVING)

    def _look(self) -> None:
        """Notes whether a store was lost, exchanged, or is back, and whether chunks were written to
        too few stores while one was away.  A store that came to the volume, or left it, holds
        nothing: that is no reason to look at all chunks."""
        short = self._vfs.writeback.short_count
        if short != self._short:
            log.info("heal: %d chunks have too few copies: a worker was away", short - self._short)
            self._short = short
            with self._wake:
                self._make_due(HEAL_DELAY_S)
        if self._state == WAITING and self.memory.is_due and self._serving() - self._served:
            log.info("heal: a store is back")
            with self._wake:
                self._make_due(HEAL_DELAY_S)
        situation = self._situation()
        if situation == self._seen:
            return
        self._follow_stores()
        with self._wake:
            (was_lost, were), (lost, are) = self._seen, situation
            known = were.keys() & are.keys()
            self._seen = situation
            self._stuck = frozenset()
            if lost & known != was_lost & known or any(were[s] != are[s] for s in known):
                log.info("heal: lost stores: %s", sorted(lost) or "none")
                self._make_due(HEAL_DELAY_S)

    def _follow_stores(self) -> None:
        """Free bytes are those of stores that take chunks."""
        known = {int(entry.store) for entry in self._index.stores()}
        gone = set(self._crew.free) - known
        self._vfs.writeback.space.leave_out(gone | self.work.draining() | self.work.lost_stores())

    def _make_due(self, delay_s: float) -> None:
        """Requires: _wake is held."""
        self.memory.is_due = True
        self._position, self._rounds = b"", 0
        self._due_s = time.monotonic() + delay_s
        self._retry_s = 0.0
        if self._state == WAITING:
            self._state, self._detail = IDLE, ""
        self._remember()

    def _next(self) -> Callable[[], None] | None:
        now = time.monotonic()
        if self.memory.is_due and now >= max(self._due_s, self._retry_s):
            return self._heal
        if self.work.draining() - self._stuck:
            return self._drain
        if self._is_balance_wanted:
            return self._balance
        return None

    def _do(self, step: Callable[[], None]) -> None:
        self._pace.begin()
        try:
            step()
        except CancelledError:
            pass  # by the end of the mount, or for fsck: it goes on where it was
        except OSError as error:
            sentence = sentence_of(error)
            log.warning("heal: will be tried again: %s", sentence)
            self._note(IDLE, sentence)
            self._sleep(HEAL_LOOK_S * 4)
        except Exception:
            log.exception("healing failed")
            self._note(IDLE, "an error inside mpifs; its log (STORE/run/mpifs.log) says more")
            self._sleep(HEAL_RETRY_S)

    def _note(self, state: str, detail: str = "") -> None:
        with self._wake:
            self._state, self._detail = state, detail

    def _count(self, left: int) -> None:
        with self._wake:
            self._left = self._total = left

    # Healing.

    def _heal(self) -> None:
        if not self._position:
            _, left = self.work.shortfall(self._progress)
            self._count(left)
        self._note(HEALING)
        lost = self.work.lost_stores()
        if not self._position:
            self._served = self._serving()
        result = self.work.heal(self._position, self._progress, self._reached)
        self._position = b""
        if result.healed and self._rounds < ROUNDS_MAX:
            self._rounds += 1
            return  # once more: what was too much for one pass, or was rewritten meanwhile
        self._end_heal(result, lost)

    def _reached(self, position: bytes) -> None:
        self._position = position
        self._check()

    def _end_heal(self, result: PassResult, lost: frozenset[int]) -> None:
        _, left = self.work.shortfall(self._progress)
        words = []
        if result.waiting:
            words.append(f"{result.waiting} chunks have too few copies and no store to go to")
        if result.lost:
            words.append(f"{result.lost} copies are gone and no other is left; see mpifs fsck")
        log.info("heal: a pass is complete: %s", "; ".join(words) or "nothing is missing")
        with self._wake:
            if lost != self.work.lost_stores():
                return  # something has changed meanwhile
            self._left, self._rounds = left if words else 0, 0
            self._state, self._detail = (WAITING if words else IDLE), "; ".join(words)
            self._retry_s = time.monotonic() + HEAL_RETRY_S
            self.memory.is_due = bool(result.waiting)
            self.memory.lost = sorted(lost)
            self._remember()
            self._wake.notify_all()

    # Moving.

    def _drain(self) -> None:
        found, _ = self.work.shortfall(self._progress)
        draining = self.work.draining() - self._stuck
        self._count(sum(found.named_on(draining).values()))
        self._note(DRAINING)
        departure = self.work.depart(self._progress)
        if departure.chunks == 0:
            for store in sorted(draining):
                self.on_drained(store)
            self._count(0)
            self._note(IDLE)
        elif departure.stuck == departure.chunks:
            with self._wake:
                self._stuck = departure.leaving
                self._state = WAITING
                self._detail = (
                    f"{departure.stuck} chunks of it have no other store to go to, or no copy "
                    "that can be read"
                )
        with self._wake:
            self._wake.notify_all()

    def _balance(self) -> None:
        evening = self.work.plan_evening(self._progress)
        self._count(evening.excess())
        self._note(REBALANCING)
        self.work.even_out(evening, self._progress)
        with self._wake:
            self._is_balance_wanted = False
            if self.memory.filling:
                self.memory.filling = []
                self._remember()
            self._left = 0
            self._state = IDLE
            self._wake.notify_all()

    # The pace.

    def _activity(self) -> int:
        """Changes while the volume is used."""
        vfs = self._vfs
        cache = vfs.reader.cache
        dirty = vfs.writeback.dirty_bytes
        now = time.monotonic_ns() if dirty else 0
        return cache.hits + cache.misses + vfs.committer.commits + now

    def _on_copied(self, count: int) -> None:
        with self._wake:
            self._left -= count
        self._pace(count)
        self._check()

    def _check(self) -> None:
        """Raises CancelledError when the work is to end: by the stop of the volume, or for fsck."""
        self._progress.check()
        if self._turn.is_wanted:
            raise CancelledError

    def _sleep(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._quit, seconds)

    def _rest(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._check()
            self._sleep(min(left_s, HEAL_LOOK_S))
