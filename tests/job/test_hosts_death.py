"""A worker on another host dies, and is replaced there."""

from __future__ import annotations

import os

from tests.job.lifecycle import mpifs, volume
from tests.job.namespaces import AGENT, Hosts
from tests.job.test_worker_death import await_serving, cold, kill, workers


def test_a_worker_on_another_host_is_replaced_there(hosts: Hosts) -> None:
    """Twice: each host has one worker and its keeper.

    prterun itself dies of a "free(): invalid pointer" or a segmentation fault after a spawn on
    another host, in one of ten runs or so, more often on a busy machine; the volume then ends
    cleanly, and here it is tried again.
    """
    for is_last in (False, False, False, True):
        try:
            replace_there(hosts)
            return
        except AssertionError as error:
            if is_last or "mpiexec was killed by signal" not in str(error):
                raise


def replace_there(hosts: Hosts) -> None:
    content = os.urandom(3_000_003)
    with volume() as vol:
        words = ["--host", ",".join(hosts.names), "--launch-agent", str(AGENT)]
        vol.mount(*words, "--chunk-size", "64KiB")
        file = vol.mountpoint / "file"
        file.write_bytes(content)
        before = workers(vol)
        for _ in range(2):
            old = kill(vol, 2)
            await_serving(vol, old)
            assert cold(file) == content, vol.log()
        assert [row["host"] for row in workers(vol)] == [row["host"] for row in before]
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0, vol.log()
