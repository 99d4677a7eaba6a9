"""Rank 0's side of `mpifs replace`, `add`, `drain` and `rebalance`: changes of the table of stores.

Calls of the control socket:
  stores.replace  worker: int            an empty store takes the place of one that is lost
  stores.add      count: int, hosts      new stores, each with a rank of its own
  stores.drain    worker: int            moves everything off a store, then it leaves the volume
  stores.rebalance, stores.leave_it      evens out bytes, or ends that
  stores.poll     goal, worker → state (running, done, failed), reason, and the heal document
Each may be repeated: what was begun goes on.  The table is durable before and after each step, and
a store is named FRESH by it before its folder is made: whatever is killed, the next mount makes it.
Data is moved by HealService.
"""

from __future__ import annotations

import errno
import logging
import threading
import uuid
from typing import Any

from mpifs.core import records
from mpifs.core.errors import DamageError, MpifsError, PosixError, ProtocolError, StartError
from mpifs.core.kinds import Kind
from mpifs.core.limits import RETIRE_TIMEOUT_S, STORES_ADDED_MAX
from mpifs.core.messages import Retire, encode_args
from mpifs.core.types import StoreEntry, StoreId, StoreState
from mpifs.index.amendment import RowKey
from mpifs.index.index import Index
from mpifs.job.control import ControlServer
from mpifs.job.crew import Crew
from mpifs.job.heal_memory import next_numbers, write_memory
from mpifs.job.heal_service import HealService
from mpifs.job.roster import LOST
from mpifs.repair.findings import Progress
from mpifs.repair.index_edits import amend
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)
_TRIES = 8  # of a garbage row that the mount changes at the same time.


class StoresService:
    """`_lock` lets one change of the table happen at a time."""

    def __init__(
        self, folder: str, index: Index, vfs: Vfs, client: Client, crew: Crew, heal: HealService
    ) -> None:
        self._folder = folder
        self._index = index
        self._vfs = vfs
        self._client = client
        self._crew = crew
        self._heal = heal
        self._lock = threading.Lock()
        heal.on_drained = self._retire

    def register(self, control: ControlServer) -> None:
        """Takes the calls `stores.*`."""
        control.register("stores.replace", lambda args: self._replace(_number(args, "worker")))
        control.register("stores.add", self._add)
        control.register("stores.drain", lambda args: self._drain(_number(args, "worker")))
        control.register("stores.rebalance", lambda args: self._rebalance())
        control.register("stores.leave_it", lambda args: self._leave_it())
        control.register("stores.poll", self._poll)

    # Replace.

    def _replace(self, store: int) -> dict[str, Any]:
        self._heal.start()
        with self._lock:
            entry = self._entry(store)
            worker = self._crew.worker_of(store)
            if worker.state != LOST:
                if store in self._heal.memory.filling:  # it was replaced already
                    return {}
                raise PosixError(
                    errno.EBUSY,
                    f"worker {store} is {worker.state}: only a lost one can be replaced; "
                    "take its folder away, or use mpifs drain and mpifs add",
                )
            fresh = StoreEntry(StoreId(store), uuid.uuid4().bytes, StoreState.FRESH)
            if entry.state is StoreState.FRESH:
                fresh = entry
            self._list([fresh if e.store == store else e for e in self._index.stores()])
            try:
                self._crew.revive(fresh)
            except StartError as error:
                self._list([entry if e.store == store else e for e in self._index.stores()])
                raise PosixError(
                    errno.EBUSY, f"worker {store} cannot be made anew: {error}"
                ) from None
            self._opened(store)
            self._heal.stores_changed(is_due=True)
            self._heal.fill(store)
            log.info("store %d is a new, empty one", store)
        return {}

    # Add.

    def _add(self, args: dict[str, Any]) -> dict[str, Any]:
        count, hosts = _number(args, "count"), args.get("hosts", [])
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise ProtocolError("stores.add with impossible hosts")
        if not 1 <= count <= STORES_ADDED_MAX:
            raise PosixError(errno.EINVAL, f"1 to {STORES_ADDED_MAX} workers can be added at once")
        self._heal.start()
        added = []
        with self._lock:
            for place in range(count):
                added.append(self._add_one(hosts[place] if place < len(hosts) else ""))
        return {"added": added}

    def _add_one(self, host: str) -> int:
        stores = self._index.stores()
        (number,) = next_numbers(stores, self._heal.memory)
        self._remember_number(number)
        entry = StoreEntry(StoreId(number), uuid.uuid4().bytes, StoreState.FRESH)
        self._list([*stores, entry])
        try:
            self._crew.add(entry, host)
        except StartError as error:
            self._list([e for e in self._index.stores() if e.store != number])
            raise PosixError(errno.EIO, f"worker {number} could not be started: {error}") from None
        self._opened(number)
        self._heal.stores_changed(is_due=False)
        log.info("store %d was added", number)
        return number

    # Drain.

    def _drain(self, store: int) -> dict[str, Any]:
        self._heal.start()
        with self._lock:
            entry = self._entry(store)
            if entry.state is not StoreState.DRAINING:
                self._check_drain(store)
                draining = StoreEntry(entry.store, entry.uuid, StoreState.DRAINING)
                self._list([draining if e.store == store else e for e in self._index.stores()])
                self._crew.set_draining(self._heal.work.draining())
            self._heal.stores_changed(is_due=False)
        return {}

    def _check_drain(self, store: int) -> None:
        """Raises PosixError when the other stores cannot hold what the store has."""
        lost = self._heal.work.lost_stores()
        targets = self._heal.work.targets()
        rest = [each for each in targets.order if each != store]
        found, _ = self._heal.work.shortfall(Progress())
        wanted = max(self._index.geometry.replicas, found.copies_max)
        if len(rest) < wanted:
            raise PosixError(
                errno.ENOSPC,
                f"worker {store} cannot be drained: {len(rest)} others take chunks, and files want "
                f"{wanted} {'copies' if wanted > 1 else 'copy'}; add workers first",
            )
        size = found.named.get(store, 0)
        free = sum(targets.free.get(each, 0) for each in rest)
        if len({self._crew.disk_of.get(each, "") for each in rest}) == 1:
            free = max((targets.free.get(each, 0) for each in rest), default=0)
        if size > free:
            raise PosixError(
                errno.ENOSPC,
                f"worker {store} cannot be drained: it holds {size:,} bytes, the others can take "
                f"{free:,}; delete files or add workers first",
            )
        if store in lost and found.copies_max < 2 and size:
            raise PosixError(
                errno.EIO,
                f"worker {store} is lost and its chunks have no other copy; bring its disk back, "
                "or remove the files that mpifs fsck names",
            )

    def _retire(self, store: int) -> None:
        """Takes an empty store out of the volume; on the thread of HealService."""
        with self._lock:
            entry = self._entry(store)
            self._forget_garbage(store)
            if self._crew.worker_of(store).state != LOST:
                args = Retire(store, self._index.geometry.volume_uuid, entry.uuid)
                try:
                    self._client.call(
                        self._crew.rank_of(store),
                        Kind.RETIRE,
                        args=encode_args(args),
                        timeout_s=RETIRE_TIMEOUT_S,
                    )
                except MpifsError as error:
                    log.warning("store %d leaves, but its files stay: %s", store, error)
            self._remember_number(max(int(e.store) for e in self._index.stores()))
            self._list([e for e in self._index.stores() if e.store != store])
            self._crew.set_draining(self._heal.work.draining())
            self._crew.forget(store)
        self._heal.stores_changed(is_due=False)
        log.info("store %d has left the volume", store)

    def _forget_garbage(self, store: int) -> None:
        """What is to be deleted from the store goes with it."""
        view = self._heal.work.view()
        for _ in range(_TRIES):
            rows: dict[RowKey, bytes | None] = {}
            expected: dict[RowKey, bytes | None] = {}
            with view.snapshot() as transaction:
                for raw_key, value in transaction.scan(records.GARBAGE):
                    row = RowKey(records.GARBAGE, bytes(raw_key))
                    try:
                        stores = records.decode_garbage(row.key, value)
                    except DamageError:
                        continue
                    if store in stores:
                        left = tuple(each for each in stores if each != store)
                        rows[row] = records.encode_garbage(row.key, left) if left else None
                        expected[row] = bytes(value)
            if not rows or amend(view, rows, expected):
                return
            view.settle()
        log.warning("chunks to delete on store %d stay listed: they are being changed", store)

    # Rebalance.

    def _rebalance(self) -> dict[str, Any]:
        self._heal.start()
        self._heal.balance(is_wanted=True)
        return {}

    def _leave_it(self) -> dict[str, Any]:
        self._heal.balance(is_wanted=False)
        return {}

    # All.

    def _poll(self, args: dict[str, Any]) -> dict[str, Any]:
        goal, heal = args.get("goal"), self._heal
        reason, is_running = "", False
        if goal == "replace":
            store = _number(args, "worker")
            worker = self._crew.worker_of(store)
            if worker.state == LOST:
                reason = f"worker {store} is lost: {worker.reason}"
            elif heal.is_due and heal.is_waiting:
                reason = heal.document()["detail"]
            is_running = heal.is_due or heal.is_balancing
        elif goal == "drain":
            store = _number(args, "worker")
            is_running = any(entry.store == store for entry in self._index.stores())
            reason = heal.is_stuck(store)
        elif goal == "rebalance":
            is_running = heal.is_balancing
        else:
            raise ProtocolError("stores.poll without a goal")
        state = "failed" if reason else "running" if is_running else "done"
        return {"state": state, "reason": reason, "heal": heal.document()}

    def _entry(self, store: int) -> StoreEntry:
        for entry in self._index.stores():
            if entry.store == store:
                return entry
        raise PosixError(errno.EINVAL, f"the volume has no worker {store}")

    def _list(self, stores: list[StoreEntry]) -> None:
        """Makes this the table of stores, durably."""
        self._index.set_stores(stores)
        self._vfs.committer.commit()

    def _opened(self, store: int) -> None:
        """A FRESH store has been made: from now on it must be there."""
        self._list(
            [
                StoreEntry(e.store, e.uuid, StoreState.ACTIVE) if e.store == store else e
                for e in self._index.stores()
            ]
        )
        self._vfs.writeback.space.told(store, self._crew.free.get(store, 0))

    def _remember_number(self, number: int) -> None:
        """Store ids are never used again."""
        memory = self._heal.memory
        if number > memory.highest_store:
            memory.highest_store = number
            write_memory(self._folder, memory)


def _number(args: dict[str, Any], name: str) -> int:
    value = args.get(name)
    if not isinstance(value, int):
        raise ProtocolError(f"stores.* without a number {name}")
    return value
