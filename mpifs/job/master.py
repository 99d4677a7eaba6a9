"""Rank 0: opens the index, has the stores opened, mounts, answers commands, and stops in order.

    start: index → HELLO → SERVE → Vfs → control socket → mount → copies of the index → "ready"
    stop:  checks ended → unmount → Vfs closed (flush, commit) → last copy of the index →
           index closed → STOP to the workers → "stopped"

A stop is asked for by `mpifs umount` (refused while the mount is in use), by a signal (the mount
is taken away in any case) or by an unmount from outside.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpifs import faultpoint
from mpifs.core.errors import LostStoreError, PosixError
from mpifs.core.limits import (
    IDLE_LOOK_S,
    MEMORY_LOOK_S,
    REQUEST_TIMEOUT_S,
    STOP_TIMEOUT_S,
    UNUSED_JOB_S,
)
from mpifs.core.types import StoreState, opened
from mpifs.data.local_stores import LocalStores
from mpifs.datafile import DATA_NAME
from mpifs.fuse import kernel_mounts
from mpifs.fuse.mount import FuseMount
from mpifs.index.index import Index
from mpifs.job import files, leftovers, processes, rank, report, run_guard
from mpifs.job import state as job_state
from mpifs.job.assembly import build_vfs
from mpifs.job.config import FSCK, TRANSFER, JobConfig
from mpifs.job.control import ControlServer
from mpifs.job.crew import Crew
from mpifs.job.figures import figures
from mpifs.job.fsck_live import LiveChecks
from mpifs.job.fsck_master import FsckMaster
from mpifs.job.fsck_service import ChecksTurn, FsckService
from mpifs.job.heal_service import HealService
from mpifs.job.host_watch import HostWatch
from mpifs.job.memory import MemoryWatch
from mpifs.job.mend_service import MendService
from mpifs.job.options import JobOptions, parse_options
from mpifs.job.recovery import restarter_of
from mpifs.job.roster import DEAD, LOST, Worker
from mpifs.job.scrub_service import ScrubService
from mpifs.job.signals import SignalGate
from mpifs.job.stage_service import StageService
from mpifs.job.stores_service import StoresService
from mpifs.job.transfer_master import TransferMaster
from mpifs.job.transfer_service import TransferService
from mpifs.kv import Sync
from mpifs.repair.copies import CopyStores
from mpifs.repair.index_copier import IndexCopier
from mpifs.store.folder import data_path
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.vfs.facade import Vfs

if TYPE_CHECKING:
    from mpifs.job.run_escort import Escort

log = logging.getLogger(__name__)
_BUSY_GRACE_S = 2.0  # a signal's stop waits so long for users of the mount to leave.
_REPLACED_AT_END_S = 5.0  # and for the worker that is being started in place of a dead one.
_COPY_AT_END_S = 10.0  # an unmount waits so long for the last copy of the index.
_GIVE_UP_S = STOP_TIMEOUT_S + 2 * REQUEST_TIMEOUT_S


class Master:
    """One job's rank 0.  `_stop` is set by any thread; all else is the main thread's."""

    def __init__(self, config: JobConfig, endpoint: Endpoint) -> None:
        self.config = config
        self.options: JobOptions = parse_options(config.options, config.volume)
        self.client = Client(endpoint)
        self.crew = Crew(self.client, config.workers, restarter_of(config, self.client))
        self.crew.on_change = self._on_change
        self._local_stores = LocalStores(self._local_path)
        self._stop = threading.Event()
        self._news = threading.Event()
        self._undo = contextlib.ExitStack()
        self._mount: FuseMount | None = None

    def ask_to_stop(self) -> None:
        """Starts the stop; any thread, may be repeated."""
        self._stop.set()

    def run(self) -> None:
        """Start, service and stop.  Raises OSError with the reason; the workers are sent home in
        any case."""
        folder, job = self.config.folder, self.config.job
        try:
            self._start()
            mine = list(processes.this_process())
            threading.Thread(target=self._tell_news, name="roster", daemon=True).start()
            job_state.change(
                folder, job, job_state.READY, rank0=mine, workers=self._roster(), lost=self._lost()
            )
            log.info("serving %s at %s", folder.path, self.config.mountpoint or "no mount")
            self._watch_hosts()
            run_guard.stop_when_alone(self.config, self._stop, self._stop.set)
            watch = MemoryWatch(os.path.join(folder.index, DATA_NAME))
            while not self._stop.wait(MEMORY_LOOK_S):
                watch.look()
            faultpoint.reach("umount.asked")
            job_state.change(folder, job, job_state.STOPPING)
            if self._mount is not None and not self._mount.unmount(_BUSY_GRACE_S):
                log.warning("the mount was taken away from processes that used it")
            faultpoint.reach("umount.gone")
        finally:
            self._finish()
        job_state.change(folder, job, job_state.STOPPED)
        log.info("stopped")

    def _start(self) -> None:
        self._undo.callback(self._dismiss)
        sync: Sync = "relaxed" if self.options.is_relaxed else "full"
        index = Index.open(self.config.folder.index, sync=sync)
        self._undo.callback(index.close)
        copy_stores = self._copy_stores(index)
        copier = IndexCopier(index, copy_stores)
        hellos = self.crew.greet()
        faultpoint.reach("mount.greeted")
        stores = index.stores()
        self.crew.serve(index.geometry, stores, hellos, relaxed=self.options.is_relaxed)
        self._undo.callback(self._copy_at_end, copier)
        faultpoint.reach("mount.served")
        if any(entry.state is StoreState.FRESH for entry in stores):
            is_made = self.crew.is_serving  # one that was not made is so at the next mount.
            index.set_stores([opened(e) if is_made(e.store) else e for e in stores])
            index.sync()
        self.crew.start_heartbeat()
        turn = ChecksTurn()
        mender = MendService(turn)
        vfs = build_vfs(
            index,
            self.client.endpoint,
            self.client,
            self.crew,
            self.options.vfs,
            mender.note,
            self._local_stores,
        )
        heal = HealService(self.config.folder.index, index, vfs, self.client, self.crew, turn)
        self._undo.callback(heal.finish)
        self._undo.callback(vfs.close)
        self._undo.callback(self._await_replacements)
        self.crew.on_free = vfs.writeback.space.told
        checks = LiveChecks(
            self.config.folder, index, vfs, self.client, self.crew, copier, copy_stores
        )
        scrub = ScrubService(checks, turn)
        self._answer_commands(index, vfs, FsckService(checks.check, turn), scrub, heal)
        self._undo.callback(mender.close)
        mender.start(checks)
        if self.config.mountpoint:
            mount = FuseMount(vfs.nodes, self.config.mountpoint, self.options.mount)
            mount.start()
            self._mount = mount
            faultpoint.reach("mount.mounted")
            copier.start()
            scrub.start()
            heal.start()
            threading.Thread(target=self._await_unmount, name="unmount", daemon=True).start()

    def _answer_commands(
        self, index: Index, vfs: Vfs, fsck: FsckService, scrub: ScrubService, heal: HealService
    ) -> None:
        """The control socket and what stands behind it; closed in the order of a stop."""
        folder, crew = self.config.folder, self.crew
        control = ControlServer(folder.socket)
        control.register("stop", self._on_stop)

        def status() -> report.Document:
            return report.status(self.config, index, vfs, crew, heal)

        control.register("status", lambda _: status())
        control.register(
            "figures",
            lambda _: figures(status, scrub.document, vfs, self.client, crew, self._local_stores),
        )
        control.register("drop_caches", lambda _: _drop_caches(vfs))
        files.FileService(vfs).register(control)
        fsck.register(control)
        stage = StageService(
            vfs,
            self.client,
            crew,
            settle=self._settle_mount,
            is_read_only=self.options.mount.read_only,
        )
        stage.register(control)
        scrub.register(control)
        StoresService(folder.index, index, vfs, self.client, crew, heal).register(control)
        transfers = self._transfers(control)
        control.start()
        self._undo.callback(control.close)
        self._undo.callback(scrub.close)
        self._undo.callback(heal.close)
        self._undo.callback(fsck.close)
        if transfers is not None:
            self._undo.callback(transfers.close)
        self._undo.callback(stage.close)
        if not self.config.mountpoint:
            watch = threading.Thread(target=self._await_clients, args=(control,), daemon=True)
            watch.start()

    def _transfers(self, control: ControlServer) -> TransferService | None:
        if not self.config.local:
            return None
        service = TransferService(self.client, self.crew, self.config.local)
        service.register(control)
        service.make_folders()
        return service

    def _settle_mount(self) -> None:
        """Waits until the kernel has heard of what was changed past it."""
        if self._mount is not None:
            self._mount.settle()

    def _copy_stores(self, index: Index) -> CopyStores:
        crew = self.crew
        kind = index.geometry.checksum
        return CopyStores(self.client, crew.rank_of, crew.live_stores, kind, crew.disk_of)

    @staticmethod
    def _copy_at_end(copier: IndexCopier) -> None:
        """The last copy of the index; in a thread, because a stop waits for it only so long."""
        thread = threading.Thread(target=copier.finish, args=(_COPY_AT_END_S,), daemon=True)
        thread.start()
        thread.join(_COPY_AT_END_S + 1.0)
        faultpoint.reach("umount.copied")
        if thread.is_alive():
            log.warning("the last copy of the index takes too long: stopping without it")

    def _await_clients(self, control: ControlServer) -> None:
        """A job without a mount lives for one command; it must not outlive a killed one."""
        seen = time.monotonic()
        while not self._stop.wait(1.0):
            if control.client_count:
                seen = time.monotonic()
            elif time.monotonic() - seen > UNUSED_JOB_S:
                log.warning("no command has been here for %.0f s: ending", UNUSED_JOB_S)
                self._stop.set()

    def _on_change(self, worker: Worker) -> None:
        self._local_stores.close(worker.store)
        self._news.set()

    def _local_path(self, store: int, side: str) -> str | None:
        """A data file of a store that is served on this host and may be read past its worker."""
        if not self.options.vfs.reads_past_workers or faultpoint.is_asked("store.read"):
            return None
        try:
            rank = self.crew.rank_of(store)
        except LostStoreError:
            return None
        if not self.client.endpoint.is_near(rank):  # the same kernel has the same page cache.
            return None
        return data_path(self.config.folder.path, store, side)

    def _roster(self) -> list[dict[str, Any]]:
        return [
            {"id": w.store, "rank": w.rank, "host": w.host, "pid": w.pid} for w in self.crew.workers
        ]

    def _lost(self) -> list[str]:
        """Sentences of the stores that are not served."""
        return [
            f"worker {w.store} is lost: {w.reason}" for w in self.crew.workers if w.state == LOST
        ]

    def _tell_news(self) -> None:
        """In a thread of its own: a congested disk must not hold up the heartbeat."""
        while not self._stop.is_set():
            if self._news.wait(IDLE_LOOK_S):
                self._news.clear()
                with contextlib.suppress(OSError):  # a full disk: the next news come again.
                    self._tell_of_workers()

    def _tell_of_workers(self) -> None:
        """Puts the crew as it is now into the job's state."""
        job = self.config.job
        job_state.update(
            self.config.folder,
            {"workers": self._roster(), "lost": self._lost()},
            only_if=lambda state: state.get("job") == job,
        )
        leftovers.remember_shared_memory(self.config.folder, {"job": job})

    def _watch_hosts(self) -> None:
        endpoint, job = self.client.endpoint, self.config.job

        def tell(reason: str) -> None:
            job_state.update(
                self.config.folder,
                {"fault": reason},
                only_if=lambda state: state.get("job") == job,
            )

        HostWatch(self.crew, endpoint, self._stop, tell).start()

    def _await_unmount(self) -> None:
        assert self._mount is not None
        while not self._mount.wait(IDLE_LOOK_S):
            pass
        self._stop.set()

    def _on_stop(self, args: dict[str, Any]) -> dict[str, Any]:
        """The command umount: refused while the mount is in use."""
        if self._mount is not None and not self._mount.wait(0.0):
            code = kernel_mounts.unmount(self._mount.mountpoint)
            if code == errno.EBUSY:
                raise PosixError(errno.EBUSY, f"{self.config.mountpoint} is in use")
        self._stop.set()
        return {}

    def _finish(self) -> None:
        watchdog = threading.Timer(_GIVE_UP_S, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._undo.close()
        finally:
            watchdog.cancel()

    def _await_replacements(self) -> None:
        """A worker that has just died gets its share of what is to be deleted, if it is soon back:
        else that would be found as left over until the next mount."""
        if any(worker.state == DEAD for worker in self.crew.workers):
            self.crew.await_all(_REPLACED_AT_END_S)

    def _give_up(self) -> None:
        log.error("the stop takes longer than %.0f s; ending without it", _GIVE_UP_S)
        os._exit(1)

    def _dismiss(self) -> None:
        faultpoint.reach("umount.closed")
        for reason in self.crew.dismiss():
            log.warning("at the end: %s", reason)


def _drop_caches(vfs: Vfs) -> dict[str, Any]:
    """The command that `mpifs bench` needs before it reads cold."""
    vfs.drop_caches()
    return {}


def _master_of(config: JobConfig, endpoint: Endpoint) -> Master | FsckMaster | TransferMaster:
    if config.task == FSCK:
        return FsckMaster(config, endpoint)
    return (TransferMaster if config.task == TRANSFER else Master)(config, endpoint)


def serve(
    config_of: Callable[[int], JobConfig],
    endpoint: Endpoint,
    gate: SignalGate,
    escort: Escort | None = None,
) -> int:
    """Runs rank 0; the exit code.  Raises OSError with the reason why it could not serve."""
    client = Client(endpoint)
    try:
        config = config_of(endpoint.size - 1)
        rank.announce(config.folder, config.job)
        if config.workers > endpoint.size - 1:
            raise PosixError(errno.EINVAL, f"started with {endpoint.size - 1} workers")
        master = _master_of(config, endpoint)
    except BaseException:
        Crew(client, endpoint.size - 1).dismiss()
        raise
    stop = master.ask_to_stop
    gate.arm(stop if escort is None else escort.begin(config, stop))
    try:
        master.run()
    except OSError as error:
        job_state.change(config.folder, config.job, job_state.FAILED, str(error))
        raise
    run_guard.finish_alone(config)
    return 0 if escort is None else escort.end()
