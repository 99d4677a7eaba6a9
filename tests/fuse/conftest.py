"""Mounts for tests: always in a subprocess, always cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs.core.limits import KIB

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = os.geteuid() == 0 and os.path.exists("/dev/fuse")


class Mounted:
    """A running serve.py; file operations of a test go to `path`."""

    def __init__(
        self, path: Path, options: str, major: int, log: Path, chunk_size: int = 64 * KIB
    ) -> None:
        self.path, self.major, self.log = path, major, log
        words = [str(path), f"{options},fuse={major}", str(chunk_size)]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuse.serve", *words],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(log.parent)},  # its volume goes with the test
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.about: dict[str, Any] = {}

    def line(self, timeout_s: float = 20.0) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        if not ready:
            raise TimeoutError(f"no answer from the mount: {self.log.read_text()}")
        return self.process.stdout.readline().decode().strip()

    def wait_ready(self) -> None:
        word, _, rest = self.line().partition(" ")
        assert word == "ready", f"{word} {rest} {self.log.read_text()}"
        self.about = json.loads(rest)

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()
        return self.line()

    def calls(self) -> dict[str, int]:
        counters: dict[str, int] = json.loads(self.ask("calls"))
        return counters

    def is_mounted(self) -> bool:
        return str(self.path) in Path("/proc/mounts").read_text()

    def stop(self) -> None:
        try:
            if self.is_mounted() and self.process.poll() is None:
                subprocess.run(["umount", str(self.path)], timeout=20, capture_output=True)
            self.process.wait(10)
        except (subprocess.TimeoutExpired, OSError):
            self.process.send_signal(signal.SIGUSR2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            print(self.log.read_text(), file=sys.stderr)
            raise
        finally:
            if self.is_mounted():
                subprocess.run(["umount", "-l", str(self.path)], timeout=20, capture_output=True)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(10)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def major() -> int:
    """Which libfuse mounts; a test that wants both has it as a parameter."""
    return 3


@pytest.fixture
def mount_with(tmp_path: Path, major: int) -> Iterator[Callable[..., Mounted]]:
    """A function that mounts with options, and a chunk size if it is given one."""
    if not REQUIRED:
        pytest.skip("needs /dev/fuse and root")
    mounts: list[Mounted] = []

    def start(options: str = "", **more: int) -> Mounted:
        folder = tmp_path / f"mnt{len(mounts)}"
        folder.mkdir()
        mounted = Mounted(folder, options, major, tmp_path / f"log{len(mounts)}", **more)
        mounts.append(mounted)
        mounted.wait_ready()
        return mounted

    try:
        yield start
    finally:
        for mounted in mounts:
            mounted.stop()


@pytest.fixture
def mounted(mount_with: Callable[[str], Mounted]) -> Mounted:
    return mount_with("")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for many small tests."""
    if not REQUIRED:
        pytest.skip("needs /dev/fuse and root")
    base = tmp_path_factory.mktemp("shared")
    (base / "mnt").mkdir()
    mounted = Mounted(base / "mnt", "", 3, base / "log")
    try:
        mounted.wait_ready()
        yield mounted
    finally:
        mounted.stop()
