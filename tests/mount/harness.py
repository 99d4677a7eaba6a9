"""Real volumes for tests: made, mounted, unmounted and cleaned up from outside, by the command line.

Nothing of mpifs is imported here.  Every process of a test's volume carries TOKEN in its
environment (children inherit it), so that leftovers are found and ended by their own pids.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOKEN = "MPIFS_TEST_ROOT"
PREFIX = "mpifs-test-"
MOUNT_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 90.0
_UMOUNT_FORCE, _UMOUNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def poll(check: Callable[[], Any], timeout_s: float, what: str, step_s: float = 0.05) -> Any:
    """Waits until `check` gives something true and returns that."""
    end = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < end, f"still not after {timeout_s:g} s: {what}"
        time.sleep(step_s)
    return value


def fuse_mounts(below: Path | str) -> list[str]:
    """Mount points of FUSE file systems below a folder, deepest first."""
    found = []
    for line in Path("/proc/self/mounts").read_bytes().decode(errors="surrogateescape").split("\n"):
        fields = line.split(" ")
        if len(fields) > 2 and fields[2].startswith("fuse"):
            point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[1])
            if point.startswith(f"{below}/"):
                found.append(point)
    return sorted(found, reverse=True)


def _umount2(point: str, flags: int) -> None:
    _libc.umount2(os.fsencode(point), flags)


def abort_mounts(below: Path | str) -> list[str]:
    """Ends all FUSE connections below a folder: whoever hangs in them gets ECONNABORTED."""
    points = fuse_mounts(below)
    for point in points:
        _umount2(point, _UMOUNT_FORCE)
    return points


def clear_mounts(below: Path | str) -> list[str]:
    """Aborts and lazily unmounts everything below a folder; returns what was there."""
    points = abort_mounts(below)
    for point in points:
        _umount2(point, _UMOUNT_DETACH)
        if fuse_mounts(below).count(point):
            subprocess.run(["fusermount3", "-u", "-z", point], capture_output=True, timeout=20)
    return points


def processes_of(mark: Path | str) -> list[int]:
    """Pids of live processes whose command line or TOKEN names that folder (not this process)."""
    needle = os.fsencode(str(mark))
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, IndexError):
            environ = (entry / "environ").read_bytes().split(b"\0")
            named = any(
                item.startswith(TOKEN.encode() + b"=") and needle in item for item in environ
            )
            state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
            if state != b"Z" and (
                named or (b"mpifs" in (cmd := (entry / "cmdline").read_bytes()) and needle in cmd)
            ):
                pids.append(int(entry.name))
    return pids


def end_processes(pids: list[int], number: int = signal.SIGKILL) -> None:
    """Signals exactly these pids."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def sweep(root: Path | str, own: tuple[int, ...] = ()) -> list[str]:
    """Clears mounts and processes left below a test root; returns a line for each."""
    left = [f"mount {point}" for point in clear_mounts(root)]
    pids = [pid for pid in processes_of(root) if pid not in own]
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            left.append(f"process {pid}: {command.decode(errors='replace')[:200]}")
    end_processes(pids)
    return left


def mpifs(
    root: Path | str,
    *arguments: str | Path,
    timeout_s: float = COMMAND_TIMEOUT_S,
    check: bool = True,
    env: dict[str, str] | None = None,
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Runs one mpifs command; output goes to files, so that no background process holds a pipe."""
    log = Path(root) / "commands"
    log.mkdir(exist_ok=True)
    name = f"{time.monotonic_ns()}"
    command = [sys.executable, "-m", "mpifs", *map(str, arguments)]
    with (
        open(log / f"{name}.in", "wb+") as source,
        open(log / f"{name}.out", "wb") as out,
        open(log / f"{name}.err", "wb") as err,
    ):
        source.write(stdin)
        source.seek(0)
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=out,
            stderr=err,
            cwd="/",
            env={**os.environ, TOKEN: str(root), **(env or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            error = (log / f"{name}.err").read_text(errors="replace")
            raise AssertionError(
                f"no end after {timeout_s:g} s: {' '.join(command)}\n{error}"
            ) from None
    done = subprocess.CompletedProcess(
        command, code, *((log / f"{name}.{end}").read_bytes() for end in ("out", "err"))
    )
    if check and code:
        raise AssertionError(
            f"exit code {code}: {' '.join(command)}\n{done.stderr.decode(errors='replace')[-3000:]}"
        )
    return done


def refused(done: Any, *words: str) -> None:
    """A refusal: exit code 1 or 2, one clear sentence on stderr, no traceback."""
    text = done.stderr.decode(errors="replace")
    assert done.returncode in {1, 2}, text
    assert "Traceback" not in text
    assert text.strip(), "says nothing"
    assert not words or any(word in text.lower() for word in words), text


class Volume:
    """One volume of a test: its store, its mount point, and the commands on it."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        workers: int = 2,
        binding: str = "",
        mkfs: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        arguments: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(mode=0o755)
        self.root, self.folder = root, folder
        self.store, self.mnt = folder / "store", folder / "mnt"
        self.mnt.mkdir(mode=0o755)
        self.workers, self.mkfs_arguments, self.arguments, self.env = workers, mkfs, arguments, env
        # The second binding is also where the kernel's write-back cache is tried.
        common = {"fuse2": ["fuse=2", "writeback"], "fuse3": ["fuse=3"]}.get(binding, [])
        if os.geteuid() == 0:
            common.append("allow_other")
        self.options = (*common, *options)

    def __truediv__(self, name: str) -> Path:
        return self.mnt / name

    def mpifs(self, *arguments: str | Path, **keywords: Any) -> subprocess.CompletedProcess[bytes]:
        """Any command, in this volume's test root and environment."""
        return mpifs(self.root, *arguments, env=self.env, **keywords)

    def make(self) -> Volume:
        """mkfs."""
        self.mpifs("mkfs", self.store, "--workers", str(self.workers), *self.mkfs_arguments)
        return self

    def mount(self, *extra: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """mount; the command itself says when the mount answers."""
        options = ",".join((*self.options, *extra))
        done = self.mpifs(
            "mount",
            self.store,
            self.mnt,
            *(["-o", options] if options else []),
            *self.arguments,
            timeout_s=MOUNT_TIMEOUT_S,
            check=False,
        )
        if check and (done.returncode or not self.is_alive()):
            raise AssertionError(
                f"mount gave {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}\n{self.log_tail()}"
            )
        return done

    def umount(self) -> None:
        """umount, and nothing may be left afterwards."""
        self.mpifs("umount", self.mnt)
        assert not os.path.ismount(self.mnt), "still mounted after umount"
        self.wait_gone(5.0)

    def remount(self, *extra: str) -> None:
        """umount and mount again."""
        self.umount()
        self.mount(*extra)

    def is_alive(self) -> bool:
        """Whether the mount answers."""
        try:
            os.statvfs(self.mnt)
            return str(self.mnt) in fuse_mounts(self.folder)
        except OSError:
            return False

    def pids(self) -> list[int]:
        """Processes of this volume."""
        return sorted({*processes_of(self.folder), *self.state_pids()})

    def state_pids(self) -> list[int]:
        """What run/state.json names as pids, as far as they still run."""

        def walk(value: Any, key: str = "") -> Iterator[int]:
            if isinstance(value, dict):
                for name, item in value.items():
                    yield from walk(item, name)
            elif isinstance(value, list):
                for item in value:
                    yield from walk(item, key)
            elif isinstance(value, int) and key.rstrip("s").endswith("pid"):
                yield value

        with contextlib.suppress(OSError, ValueError):
            found = walk(json.loads((self.store / "run/state.json").read_text()))
            return [pid for pid in found if pid > 1 and Path(f"/proc/{pid}").exists()]
        return []

    def wait_gone(self, timeout_s: float) -> None:
        """Waits until no process of this volume runs."""
        poll(lambda: not self.pids(), timeout_s, f"processes of {self.folder} gone: {self.pids()}")

    def kill(self) -> None:
        """SIGKILL to all processes of the volume at once: a crash that cleans nothing."""
        pids = self.pids()
        end_processes(pids, signal.SIGSTOP)
        end_processes(pids)
        self.wait_gone(10.0)

    def log(self) -> str:
        """The ranks' log."""
        try:
            return (self.store / "run/mpifs.log").read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"

    def log_tail(self) -> str:
        """The last lines of the log, for messages."""
        return "log ends:\n" + "\n".join(self.log().splitlines()[-25:])

    def layout(self, *paths: Path) -> list[dict[str, Any]]:
        """`mpifs layout --json`."""
        return json.loads(self.mpifs("layout", "--json", *paths).stdout)

    def status(self) -> dict[str, Any]:
        """`mpifs status --json`."""
        return json.loads(self.mpifs("status", "--json", self.mnt).stdout)

    def destroy(self) -> None:
        """Teardown: umount if mounted; then nothing may be left, or the test fails."""
        trouble = []
        if fuse_mounts(self.folder):
            try:
                self.umount()
            except AssertionError as error:
                trouble.append(f"umount: {error}\n{self.log_tail()}")
        trouble += sweep(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not trouble, "left behind by the volume:\n" + "\n".join(trouble)


class Guard:
    """A process that outlives pytest: aborts hanging mounts at a deadline, cleans up at the end.

    pytest-timeout ends the whole process, and a thread that hangs in FUSE cannot be ended at all;
    aborting the connection frees it, the test fails with ECONNABORTED and the suite goes on.
    """

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("reaper.py")),
                str(root),
                str(os.getpid()),
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The guard itself carries the root in its command line."""
        return self._process.pid

    def arm(self, seconds: float) -> None:
        """0 disarms."""
        assert self._process.stdin
        self._process.stdin.write(b"%f\n" % seconds)
        self._process.stdin.flush()

    def close(self) -> None:
        """Lets it clean up and end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


def sweep_stale_roots(folder: Path) -> None:
    """Removes what test sessions left whose pytest is gone (their pid stands in the name)."""
    for old in folder.glob(f"{PREFIX}*"):
        match = re.match(rf"{PREFIX}(\d+)-", old.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            sweep(old)
            shutil.rmtree(old, ignore_errors=True)


def is_dead(error: OSError) -> bool:
    """Whether an error says that the mount itself is gone."""
    return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
