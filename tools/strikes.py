#!/usr/bin/env python3
"""Strikes: kills ranks, launcher and supervisor of a mounted volume while programs write into it,
and looks each time whether everything promised is there (strike_manifest.py).

    tools/strikes.py [--count 30] [--seed N] [--fsck-every 5] [--kinds rank0,point:commit.filled]

A strike is one of KINDS at a random moment, or `point:NAME`: the process that comes to that fault
point (mpifs/doc/faults.md) for the Nth time dies there.  Prints its seed, one line per strike and
the figures; exit code 1 when anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mount_at
from mpifs.job.processes import marked_with
from tests.mount.harness import Guard, Volume, poll, sweep
from tools.strike_manifest import Content, Promises

KINDS = ("rank0", "mpiexec", "supervisor", "group", "everything", "worker")
RANK0_POINTS = (
    "chunk.frozen", "chunk.sent", "chunk.answered", "index.refs", "commit.barrier",
    "commit.sealed", "commit.filled", "commit.done", "garbage.reaped", "garbage.sent",
    "garbage.deleted",
)  # fmt: skip
WORKER_POINTS = (
    "store.received", "store.filled", "store.side", "store.committed", "store.answered",
)  # fmt: skip
MOUNT_POINTS = (
    "mount.numbers", "mount.greeted", "mount.served", "mount.mounted", "supervisor.started",
)  # fmt: skip
UMOUNT_POINTS = (
    "umount.asked", "umount.gone", "umount.flushed", "umount.copied", "umount.numbers",
    "umount.closed", "copy.piece", "copy.manifest", "copy.older", "supervisor.clearing",
)  # fmt: skip
POINTS = (*RANK0_POINTS, *WORKER_POINTS, *MOUNT_POINTS, *UMOUNT_POINTS)
GONE_S = 10.0
COMMIT_S = 0.1
MARGIN_S = 0.9
"""A close waits for the tick under way, half an interval and its own tick; a tick is a flush and
a commit, each some fdatasyncs, on a machine whose two cores have three ranks and two writers."""
NOT_REACHED_S = 4.0  # a fault point that the writers do not come to by then.
WRITERS = ("a", "b")
Check = Callable[[], bool]


class Failure(Exception):
    """Something that was promised is not there."""


class Striker:
    """One volume that is struck again and again."""

    def __init__(
        self,
        root: Path,
        seed: int,
        *,
        mpi: str = "openmpi",
        seconds: float = 1.6,
        say: Callable[[str], None] = print,
    ) -> None:
        self.rng = random.Random(seed)
        self.say = say
        self.once, self.armed = root / "struck", root / "armed"
        self.seconds = seconds
        self.volume = Volume(
            root / "strikes",
            root,
            workers=2,
            mkfs=("--chunk-size", "64KiB"),
            arguments=("--mpi", mpi),
        )
        self.volume.make()
        self.folder = VolumeFolder(os.path.realpath(self.volume.store))
        self.files: dict[str, Content] = {}
        self.strikes = self.reached = self.promises = self.repairs = 0
        self.lag_s = 0.0
        self.gone_s: list[float] = []
        self._manifests: list[Path] = []
        self._before: job_state.State = {}
        self._struck = ""
        self._struck_s = 0.0
        self._last_s = time.monotonic()

    def schedule(self, count: int) -> list[str]:
        """`count` strikes: half of them at random moments, every fault point in turn."""
        points = [f"point:{name}" for name in self.rng.sample(POINTS, len(POINTS))]
        kinds = [KINDS[number % len(KINDS)] for number in range(count)]
        return [
            points[number // 2 % len(points)] if number % 2 else kinds[number // 2]
            for number in range(count)
        ]

    def strike(self, what: str, *, fsck: bool) -> None:
        """Mounts, looks for what was promised before the last strike, has it written to, and
        strikes.  Raises Failure."""
        self.strikes += 1
        point = what.removeprefix("point:") if what.startswith("point:") else ""
        times = self.rng.choice((1, 1, 2, 3, 5, 8)) if point in RANK0_POINTS + WORKER_POINTS else 1
        for path in (self.once, self.armed):
            path.unlink(missing_ok=True)
        fault = {"ONCE": self.once, "ARMED": self.armed, "": f"{point}:{times}"}
        env = {f"MPIFS_FAULT_{key}".rstrip("_"): str(fault[key]) for key in fault}
        if point in MOUNT_POINTS:
            self.armed.touch()
            self._mount_and_die(env)
            self._struck = what
            return
        self.look(env if point else {}, fsck=fsck)
        state = job_state.read(self.folder)
        self._struck_s = self._write_and_die(what, point, state)
        self.reached += bool(not point or self.once.exists())
        self._struck = f"{what} time {times}" if point else what
        self._await_gone(what, state)
        self._before = state

    def look(self, env: dict[str, str], *, fsck: bool) -> None:
        """Mounts, with these variables, and compares with what was promised.  Raises Failure."""
        self.volume.env = env
        done = self.volume.mount(check=False)
        if done.returncode:
            raise Failure(f"the mount failed: {done.stderr.decode()[-500:]}")
        if self._before and (left := self._left(self._before, is_mounted=True)):
            raise Failure(f"after the next mount there is still {left}")
        self._compare()
        words = self._fsck() if fsck else ""
        if self._struck:
            now = time.monotonic()
            words += f"({now - self._last_s:.1f} s)"
            self.say(f"{self._struck}: survived, {len(self.files)} files {words}")
            self._last_s = now

    def _mount_and_die(self, env: dict[str, str]) -> None:
        """A mount that is struck: it fails, and nothing is left of it."""
        self.volume.env = env
        done = self.volume.mount(check=False)
        state = job_state.read(self.folder)
        if not done.returncode or not self.once.exists():
            raise Failure(f"a mount that was to die gave {done.returncode}")
        self.reached += 1
        self._wait(lambda: not self._left(state), f"{self._left(state)}")
        self._before = state

    def _write_and_die(self, what: str, point: str, state: job_state.State) -> float:
        """When the volume was last alive for certain."""
        streams = self.volume.folder / "streams.json"
        streams.write_text(json.dumps(self.files))
        folder = os.open(self.volume.mnt, os.O_RDONLY | os.O_DIRECTORY)
        self.armed.touch()
        writers = [self._start_writer(name, streams, folder) for name in WRITERS]
        os.close(folder)  # the writers have it, also of a mount that is dead.
        try:
            if point in UMOUNT_POINTS:
                time.sleep(self.rng.uniform(0.1, 0.6))
                self._end_writers(writers)
                struck_s = time.monotonic()
                self.volume.mpifs("umount", self.volume.mnt, check=False)
                return struck_s
            if point:
                self._await_point(point, state)
                struck_s = 0.0
            else:
                time.sleep(self.rng.uniform(0.05, self.seconds))
                struck_s = time.monotonic()
                self._kill(what, state)
        finally:
            self._end_writers(writers)
        return struck_s

    def _await_point(self, point: str, state: job_state.State) -> None:
        """Until rank 0 has died; it is killed after a worker, and when nobody came to the point."""
        deadline = time.monotonic() + NOT_REACHED_S
        while job_state.process(state, "rank0") is not None and time.monotonic() < deadline:
            if self.once.exists() and point in WORKER_POINTS:
                time.sleep(self.rng.uniform(0.0, 1.5))
                break
            time.sleep(0.01)
        if (rank0 := job_state.process(state, "rank0")) is not None:
            _kill(rank0.pid)

    def _start_writer(self, name: str, streams: Path, folder: int) -> subprocess.Popen[bytes]:
        manifest = self.volume.folder / f"manifest-{self.strikes}-{name}"
        self._manifests.append(manifest)
        program = Path(__file__).with_name("strike_manifest.py")
        words = [folder, manifest, streams, name, self.rng.randrange(1 << 32)]
        command = [sys.executable, str(program), *map(str, words)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(folder,))

    @staticmethod
    def _end_writers(writers: list[subprocess.Popen[bytes]]) -> None:
        for writer in writers:
            if writer.stdin is not None:
                writer.stdin.close()
        for writer in writers:
            try:
                writer.wait(20)
            except subprocess.TimeoutExpired:
                writer.kill()
                raise Failure("a program that used the mount hangs") from None

    def _kill(self, what: str, state: job_state.State) -> None:
        pids = {
            role: job_state.process(state, role) for role in ("supervisor", "launcher", "rank0")
        }
        supervisor, launcher, rank0 = (process.pid for process in pids.values() if process)
        if what == "mpiexec":
            _kill(launcher)
        elif what == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(launcher), signal.SIGKILL)
            _kill(rank0)
        elif what == "everything":
            everyone = [process.pid for process in marked_with(state["job"])]
            for pid in self.rng.sample(everyone, len(everyone)):
                _kill(pid)
        else:
            if what == "supervisor":
                _kill(supervisor)
                time.sleep(self.rng.uniform(0.0, 0.3))  # nobody needs it while all is well.
            if what == "worker":
                _kill(self.rng.choice(state["workers"])["pid"])
                time.sleep(self.rng.choice((0.0, 0.0, 0.2, 1.0)))
            _kill(rank0)

    def _left(self, state: job_state.State, *, is_mounted: bool = False) -> list[str]:
        present = job_state.read(self.folder)
        if not state.get("job"):
            return []  # the command itself died before there was a job.
        found = [f"process {p.pid}" for p in marked_with(state["job"])]
        shm = present.get("shm") if present.get("job") == state["job"] else state.get("shm")
        found += [path for path, _ in shm or [] if os.path.exists(path)]
        found += [state["scratch"]] if os.path.exists(state["scratch"]) else []
        if not is_mounted and mount_at(str(self.volume.mnt)):
            found.append("the mount")
        return found

    def _await_gone(self, what: str, state: job_state.State) -> None:
        """The supervisor clears within GONE_S; if it was struck itself, the next command does."""
        if what in ("supervisor", "everything") or what.startswith("point:supervisor"):
            return
        begun = time.monotonic()
        self._wait(lambda: not self._left(state), f"{self._left(state)}")
        self.gone_s.append(time.monotonic() - begun)

    @staticmethod
    def _wait(check: Check, what: str) -> None:
        try:
            poll(check, GONE_S, f"left: {what}", 0.02)
        except AssertionError as error:
            raise Failure(str(error)) from None

    def _compare(self) -> None:
        promises = Promises(self.files)
        for path in self._manifests:
            if path.exists():
                with open(path, "rb") as file:
                    promises.read(file)
                path.unlink()
        self._manifests.clear()
        there = {entry.name: Path(entry).read_bytes() for entry in os.scandir(self.volume.mnt)}
        struck_s = self._struck_s or promises.last_s
        wrong, self.files = promises.compare(there, struck_s, COMMIT_S + MARGIN_S)
        self.lag_s = max(self.lag_s, promises.lag_s)
        self.promises += promises.count
        if wrong:
            raise Failure("; ".join(wrong[:5]))

    def _fsck(self) -> str:
        """Clean, or only leftovers that a repair takes away."""
        findings = self._findings()
        if not findings:
            return "clean "
        worst = [one for one in findings if one["severity"] != "leftover"]
        if worst:
            raise Failure(f"fsck: {worst[:3]}")
        self._findings("--repair")
        self.repairs += 1
        if again := self._findings():
            raise Failure(f"fsck after the repair: {again[:3]}")
        return f"{len(findings)} leftovers removed "

    def _findings(self, *words: str) -> list[dict[str, Any]]:
        done = self.volume.mpifs("fsck", self.volume.mnt, "--json", *words, check=False)
        if done.returncode not in (0, 1, 4):
            raise Failure(f"fsck gave {done.returncode}: {done.stderr.decode()[-500:]}")
        findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        return findings

    def figures(self) -> str:
        """What is to be reported."""
        slowest = max(self.gone_s, default=0.0)
        return (
            f"{self.strikes} strikes, {self.reached} as meant, {self.promises} promises; "
            f"slowest clearing {slowest:.1f} s, longest time from a close to a strike that "
            f"undid it {self.lag_s:.2f} s, {self.repairs} repairs of leftovers"
        )

    def close(self) -> None:
        """Looks after the last strike.  Raises Failure."""
        self.look({}, fsck=True)
        self.volume.umount()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    """0 if everything was there each time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--fsck-every", type=int, default=1)
    parser.add_argument("--kinds", default="", help="strikes in turn instead of all kinds")
    parser.add_argument("--mpi", default="openmpi")
    words = parser.parse_args()
    print(f"seed {words.seed}", flush=True)
    top = Path(tempfile.mkdtemp(prefix=f"mpifs-test-{os.getpid()}-"))
    guard = Guard(top)
    guard.arm(60 + 30 * words.count)
    striker = Striker(top, words.seed, mpi=words.mpi, say=lambda line: print(line, flush=True))
    kinds = words.kinds.split(",") if words.kinds else []
    strikes = [kinds[n % len(kinds)] for n in range(words.count)] if kinds else []
    failed = False
    try:
        for number, what in enumerate(strikes or striker.schedule(words.count)):
            striker.strike(what, fsck=number % words.fsck_every == 0)
        striker.close()
    except (Failure, AssertionError) as error:
        failed = True
        print(f"{striker.strikes} {what}: {error}\n{striker.volume.log_tail()}", file=sys.stderr)
    finally:
        print(f"{striker.figures()}; seed {words.seed}")
        left = sweep(top, own=(guard.pid,))
        guard.close()
        shutil.rmtree(top, ignore_errors=True)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
