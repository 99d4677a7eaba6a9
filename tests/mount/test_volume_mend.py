"""Damaged bytes in a real mount: on the way, and on a disk while it is used."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable

import pytest

from tests.mount.calls import opened, pattern, put
from tests.mount.harness import Volume, poll
from tests.mount.test_volume_harm import flip

pytestmark = pytest.mark.limit(150)
KIB = 1024
CHUNK = 64 * KIB
COUNT = 30
Make = Callable[..., Volume]


def test_flips_on_the_way_and_on_disk(volume: Make) -> None:
    """Every worker finds its third long body damaged; later half of one worker's chunks are."""
    one = volume(
        workers=2,
        mkfs=("--chunk-size", str(CHUNK), "--replicas", "2"),
        options=("cache=8MiB",),
        env={"MPIFS_FAULT": "transport.request.body:3:flip"},
    )
    data = pattern(COUNT * CHUNK)
    with opened(one / "file", os.O_RDWR | os.O_CREAT) as fd:
        for index in range(COUNT):
            os.pwrite(fd, data[index * CHUNK : (index + 1) * CHUNK], index * CHUNK)
            if index % 5 == 4:
                os.fsync(fd)  # at least six bodies for each worker
    again = [line for line in one.log().splitlines() if "again: worker" in line]
    assert len(again) == 2, one.log()
    one.umount()
    harmed = range(0, COUNT, 2)
    for index in harmed:
        flip(one.store, 1, data[index * CHUNK : (index + 1) * CHUNK])
    one.mount()
    assert (one / "file").read_bytes() == data
    time.sleep(1.0)  # what was read ahead has been told of, too
    found = set(re.findall(r"chunk (\d+) \(generation \d+\) on worker 1", one.log()))
    assert found, one.log_tail()
    assert {int(index) for index in found} <= set(harmed)
    mended = poll(
        lambda: len(re.findall(r"on worker 1 is whole again", one.log())) >= len(found),
        15,
        f"{len(found)} chunks to be mended; {one.log_tail()}",
    )
    assert mended
    done = one.mpifs("fsck", "--json", one.mnt, check=False)
    told = {finding["chunk"] for finding in json.loads(done.stdout)["findings"]}
    assert told == set(harmed) - {int(index) for index in found}
    assert one.mpifs("fsck", "--repair", one.mnt, check=False).returncode in {0, 1}
    put(one / "later", data)
    one.remount()
    assert (one / "file").read_bytes() == (one / "later").read_bytes() == data
    assert one.mpifs("fsck", one.mnt).returncode == 0
