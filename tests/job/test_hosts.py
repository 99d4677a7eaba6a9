"""A volume over three hosts, made of network namespaces on a bridge."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.job.lifecycle import mpifs, volume
from tests.job.namespaces import AGENT, Hosts


@pytest.mark.long_variant("host")
@pytest.mark.parametrize("way", ["host", "hostfile"])
def test_three_hosts(hosts: Hosts, way: str) -> None:
    content = os.urandom(20_000_003)
    with volume() as vol:
        words = ["--launch-agent", str(AGENT)]
        if way == "host":
            words += ["--host", ",".join(hosts.names)]
        else:
            path = vol.mountpoint.parent / "hosts"
            path.write_text("# three hosts\n" + "".join(f"{h} slots=1\n" for h in hosts.names))
            words += ["--hostfile", str(path)]
        state = vol.mount(*words)
        document = json.loads(mpifs("status", str(vol.mountpoint), "--json").stdout)
        assert sorted(row["host"] for row in document["workers"]) == sorted(hosts.names)
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
        assert sorted(row["host"] for row in vol.state()["workers"]) == sorted(hosts.names)
