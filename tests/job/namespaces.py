"""Hosts made of network namespaces on a bridge; a launch agent runs commands on them.

Each use has names and addresses of its own: a namespace that was deleted goes away later, in the
background.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.job.lifecycle import ROOT

AGENT = ROOT / "tools" / "namespace_agent.sh"
_uses = itertools.count()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def memory_of(host: str) -> list[Path]:
    """Open MPI's shared memory of the ranks on a host."""
    return list(Path("/dev/shm").glob(f"sm_segment.{host}.*"))


class Hosts:
    """Three hosts.  `names` are theirs for --host, with AGENT as the launch agent."""

    def __init__(self) -> None:
        use = next(_uses)
        tag = f"m{os.getpid() % 100_000}{chr(97 + use % 26)}"
        self._bridge = f"{tag}b"
        self._net = f"10.{201 + use % 50}.{os.getpid() % 250}"
        self.names = [f"{tag}h{number}" for number in (1, 2, 3)]
        self._links = {name: f"{tag}v{number}" for number, name in enumerate(self.names, 1)}

    def make(self) -> None:
        """Raises RuntimeError with what the kernel does not do."""
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for number, (host, link) in enumerate(self._links.items()):
            _ip("netns", "add", host)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", host, "addr", "add", f"{self._net}.{10 + number}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            _ip("-n", host, "link", "set", "lo", "up")

    def cut(self, host: str) -> None:
        """Takes the host's link down."""
        _ip("-n", host, "link", "set", "eth0", "down")

    def mend(self, host: str) -> None:
        """Takes it up again."""
        _ip("-n", host, "link", "set", "eth0", "up")

    def pids(self, host: str) -> list[int]:
        """Processes on a host."""
        done = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    def end(self, host: str) -> None:
        """Ends what still runs on a host."""
        deadline = time.monotonic() + 5
        while (pids := self.pids(host)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def remove(self) -> None:
        """Ends what still runs on the hosts, and takes them away."""
        for host in self.names:
            self.end(host)
            for path in memory_of(host):  # a host that is switched off has none of it, either
                path.unlink(missing_ok=True)
            subprocess.run(["ip", "netns", "del", host], capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)


def may_make() -> bool:
    """Whether this machine lets us make hosts."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode == 0
    )
