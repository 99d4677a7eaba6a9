"""A volume over three hosts, made of network namespaces on a bridge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.job.lifecycle import ROOT, mpifs, volume

AGENT = ROOT / "tools" / "namespace_agent.sh"
TAG = f"m{os.getpid() % 100000}"
BRIDGE = f"{TAG}b"
HOSTS = [f"{TAG}h{number}" for number in (1, 2, 3)]
NET = f"10.231.{os.getpid() % 250}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _make() -> None:
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for number, host in enumerate(HOSTS, 1):
        link = f"{TAG}v{number}"
        _ip("netns", "add", host)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", host)
        _ip("link", "set", link, "master", BRIDGE, "up")
        _ip("-n", host, "addr", "add", f"{NET}.{10 + number}/24", "dev", "eth0")
        _ip("-n", host, "link", "set", "eth0", "up")
        _ip("-n", host, "link", "set", "lo", "up")


def _remove() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root and iproute2: three hosts cannot be made here")
    try:
        try:
            _make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield HOSTS
    finally:
        _remove()


@pytest.mark.parametrize("way", ["host", "hostfile"])
def test_three_hosts(hosts: list[str], way: str) -> None:
    content = os.urandom(20_000_003)
    with volume() as vol:
        words = ["--launch-agent", str(AGENT)]
        if way == "host":
            words += ["--host", ",".join(hosts)]
        else:
            path = vol.mountpoint.parent / "hosts"
            path.write_text("# three hosts\n" + "".join(f"{h} slots=1\n" for h in hosts))
            words += ["--hostfile", str(path)]
        state = vol.mount(*words)
        document = json.loads(mpifs("status", str(vol.mountpoint), "--json").stdout)
        assert sorted(row["host"] for row in document["workers"]) == sorted(hosts)
        for row in document["workers"]:
            found = subprocess.run(
                ["ip", "netns", "identify", str(row["pid"])], capture_output=True, text=True
            )
            assert found.stdout.strip() == row["host"]
        (vol.mountpoint / "file").write_bytes(content)
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0
        assert vol.left(state) == []
        state = vol.mount(*words)
        assert (vol.mountpoint / "file").read_bytes() == content
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0
        assert vol.left(state) == []
        assert mpifs("fsck", vol.folder.path).returncode == 0  # on the hosts of the last mount.
        assert sorted(row["host"] for row in vol.state()["workers"]) == sorted(hosts)
