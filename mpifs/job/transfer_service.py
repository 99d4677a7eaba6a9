"""Rank 0's side of the transfer commands; any number of them at once, each in threads of its own.

Calls of the control socket:
  transfer.start   command, names, source, targets, into, chunk_bytes → {number}
  transfer.poll    number → see TransferRun.poll, after FSCK_POLL_S at the latest
  transfer.cancel  number → {}                     what is under way ends at its next step
  transfer.ranks   → the ranks: number, host, pid, state, folder, free bytes
  transfer.list    rank, path, after → entries of a folder of that rank
A run belongs to the client that started it and is cancelled when that goes away.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PosixError, ProtocolError
from mpifs.core.limits import FSCK_POLL_S, TRANSFER_CHUNK_BYTES
from mpifs.core.transfer_messages import FOLDER
from mpifs.job import transfer_works as works
from mpifs.job.control import Answer, ControlServer, Session
from mpifs.job.crew import Crew
from mpifs.job.roster import DEAD, Worker
from mpifs.job.transfer_run import TransferRun, Work
from mpifs.transfer.carrier import MASTER, Carrier
from mpifs.transfer.folder import parts_of, shown
from mpifs.transfer.service import rank_folder
from mpifs.transport.client import Client

log = logging.getLogger(__name__)


class TransferService:
    """`base` is DIR of --local.  `_runs` is guarded by `_lock`."""

    def __init__(self, client: Client, crew: Crew, base: str) -> None:
        self._client = client
        self._crew = crew
        self._base = base
        self._carrier = Carrier(client, base, self._is_away)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._runs: dict[int, tuple[Session, TransferRun]] = {}
        self._is_closed = False

    def register(self, control: ControlServer) -> None:
        """Takes the calls `transfer.*`."""
        control.register_data("transfer.start", self._start)
        control.register_data("transfer.poll", self._poll)
        control.register_data("transfer.cancel", self._cancel)
        control.register("transfer.ranks", lambda args: self._ranks())
        control.register("transfer.list", self._list)

    def make_folders(self) -> None:
        """Has each rank make its folder now, so that files can be put there; logs what fails."""
        for rank, answer in self._carrier.prepare([w.rank for w in self._workers()]).items():
            if isinstance(answer, MpifsError):
                log.warning("the local folder of rank %d: %s", rank, answer)

    def close(self) -> None:
        """Ends what is under way; partial files stay."""
        with self._lock:
            self._is_closed = True
            runs = [run for _, run in self._runs.values()]
        for run in runs:
            run.cancel()
        for run in runs:
            run.join()
        self._carrier.close()

    def _workers(self) -> list[Worker]:
        return sorted((w for w in self._crew.workers if w.rank), key=lambda worker: worker.rank)

    def _is_away(self, rank: int) -> bool:
        states = [worker.state for worker in self._crew.workers if worker.rank == rank]
        return DEAD in states or rank in self._client.endpoint.dead()

    # Runs.

    def _start(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        run = TransferRun(self._carrier, self._work_of(args))
        with self._lock:
            if self._is_closed:
                raise PosixError(errno.EBUSY, "the job is being stopped")
            number = next(self._numbers)
            self._runs[number] = session, run
        session.on_end(lambda: self._forget(number))
        run.start()
        return Answer({"number": number})

    def _forget(self, number: int) -> None:
        with self._lock:
            found = self._runs.pop(number, None)
        if found is not None:
            found[1].cancel()

    def _own(self, session: Session, args: dict[str, Any]) -> tuple[int, TransferRun]:
        number = args.get("number")
        with self._lock:
            found = self._runs.get(number) if isinstance(number, int) else None
        if found is None or found[0] is not session or not isinstance(number, int):
            raise PosixError(errno.EINVAL, "this client has started no such transfer")
        return number, found[1]

    def _poll(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        number, run = self._own(session, args)
        answer = run.poll(FSCK_POLL_S)
        if answer["state"] == "over":
            with self._lock:
                self._runs.pop(number, None)
        return Answer(answer)

    def _cancel(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        self._own(session, args)[1].cancel()
        return Answer({})

    def _work_of(self, args: dict[str, Any]) -> Work:
        """Raises PosixError for what cannot be done, ProtocolError for what makes no sense."""
        command, names, into = args.get("command"), args.get("names"), args.get("into", b"")
        if not isinstance(names, list) or not names or not isinstance(into, bytes):
            raise ProtocolError("transfer.start without its arguments")
        if not all(isinstance(name, bytes) for name in names):
            raise ProtocolError("transfer.start with impossible names")
        names = list(dict.fromkeys(names))
        for name in [*names, into]:
            parts_of(name)
        if command == "send":
            source = self._known([args.get("source", MASTER)])[0]
            targets = self._known(args.get("targets", []))
            return works.send(names, source, targets, into)
        ranks = [worker.rank for worker in self._workers()]
        if args.get("targets"):
            ranks = self._known(args["targets"])
        if command == "broadcast":
            return works.broadcast(names, ranks, into)
        if len(names) != 1:
            raise ProtocolError(f"{command} takes one name")
        if command == "collect":
            return works.collect(names[0], ranks, into)
        if command == "scatter":
            size = args.get("chunk_bytes", TRANSFER_CHUNK_BYTES)
            return works.scatter(names[0], ranks, int(size))
        if command == "gather":
            return works.gather(names[0], ranks, into or names[0])
        raise ProtocolError(f"transfer.start of {command!r}")

    def _known(self, ranks: Sequence[Any]) -> list[int]:
        """Raises PosixError for a rank that this job does not have."""
        there = {MASTER, *(worker.rank for worker in self._workers())}
        for rank in ranks:
            if rank not in there:
                raise PosixError(
                    errno.ENXIO, f"there is no rank {rank}; this job has 0 to {max(there)}"
                )
        if not ranks:
            raise ProtocolError("no ranks are named")
        return list(dict.fromkeys(ranks))

    # Looking.

    def _ranks(self) -> dict[str, Any]:
        workers = self._workers()
        answers = self._carrier.prepare([worker.rank for worker in workers])
        rows = [self._row(MASTER, "master", "", 0, self._carrier.folder.free_bytes())]
        for worker in workers:
            answer = answers.get(worker.rank)
            if answer is None or isinstance(answer, MpifsError):
                why = worker.state if worker.state != "serving" else str(answer)
                rows.append(self._row(worker.rank, why, worker.host, worker.pid, None))
            else:
                told = answer.host, answer.pid, answer.free
                rows.append(self._row(worker.rank, worker.state, *told))
        return {"ranks": rows, "local": self._base}

    def _row(self, rank: int, state: str, host: str, pid: int, free: int | None) -> dict[str, Any]:
        if rank == MASTER:
            host, pid = self._client.endpoint.host(MASTER), os.getpid()
        folder = rank_folder(self._base, rank)
        return {
            "rank": rank, "state": state, "host": host, "pid": pid, "folder": folder, "free": free,
        }  # fmt: skip

    def _list(self, args: dict[str, Any]) -> dict[str, Any]:
        rank, path, after = args.get("rank"), args.get("path"), args.get("after", b"")
        if not isinstance(path, bytes) or not isinstance(after, bytes):
            raise ProtocolError("transfer.list without its arguments")
        (rank,) = self._known([rank])
        for answer in self._carrier.prepare([rank] if rank != MASTER else []).values():
            if isinstance(answer, MpifsError):
                raise answer
        source = self._carrier.source(rank)
        entry = source.look(path)
        if entry.kind != FOLDER:
            page = [entry]
            is_end = True
        else:
            answered = source.entries(path, after)
            page, is_end = answered.entries, answered.is_end
        rows = [
            (each.path, each.kind, each.size, each.mode, each.mtime_ns, each.link) for each in page
        ]
        return {"entries": rows, "is_end": is_end, "name": shown(path)}
