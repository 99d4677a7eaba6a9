"""`status --watch`, `profile`, `metrics`: one real mount, of which the operations are known."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mpifs.job.figures_between import below, between, look
from tests.job.lifecycle import Volume, mpifs, volume

COUNT = 40


@pytest.fixture(scope="module")
def mounted() -> Iterator[Volume]:
    """A mount of three workers with two copies."""
    with volume() as made:
        made.mount("-w", "3", "--replicas", "2")
        yield made
        assert mpifs("umount", str(made.mountpoint)).returncode == 0


def _work(mounted: Volume, name: str) -> None:
    """COUNT files of 20,000 bytes, each made durable, and as many names that are not there."""
    for number in range(COUNT):
        mounted.put(f"{name}-{number}", b"%d" % number * 20000)
        with pytest.raises(FileNotFoundError):
            os.stat(mounted.mountpoint / f"{name}-{number}-is-not-there")


def test_operations_are_counted(mounted: Volume) -> None:
    """Each kind as often as it was asked for, and each copy at its worker."""
    before = look(mounted.folder)
    _work(mounted, "counted")
    rates = between(before, look(mounted.folder))
    rows = {row["kind"]: row for row in rates["fuse"]}
    assert rows["FSYNC"]["count"] == COUNT
    assert rows["CREATE"]["count"] == COUNT
    assert rows["FLUSH"]["count"] == COUNT
    assert rows["WRITE"]["count"] >= COUNT
    assert rows["LOOKUP"]["count"] >= 2 * COUNT
    for row in rows.values():
        if row["mean_s"] is not None:
            assert 0.0 < row["mean_s"] <= row["max_s"], row
            assert row["p99_s"] <= row["max_s"], row
    assert rows["FSYNC"]["mean_s"] * COUNT == pytest.approx(rows["FSYNC"]["seconds"])
    sent = sum(row["sent_bytes_per_s"] for row in rates["workers"]) * rates["seconds"]
    size = sum(len(b"%d" % number) * 20000 for number in range(COUNT))
    assert 2 * size <= sent < 2 * size + 3 * COUNT * 4096
    assert all(row["requests_per_s"] and row["mean_s"] for row in rates["workers"])
    assert rates["commits"]["per_s"] > 0


def test_profile(mounted: Volume) -> None:
    """Counts what happens while it runs; Ctrl-C shows what there is until then."""
    command = [sys.executable, "-m", "mpifs", "profile", str(mounted.mountpoint), "-t", "60"]
    begun = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    time.sleep(1.0)
    _work(mounted, "profiled")
    begun.send_signal(signal.SIGINT)
    document = json.loads(begun.communicate(timeout=30)[0])
    assert begun.returncode == 0
    rows = {row["kind"]: row for row in document["fuse"]}
    assert rows["FSYNC"]["count"] == COUNT
    order = [row["seconds"] for row in document["fuse"]]
    assert order == sorted(order, reverse=True)
    shown = mpifs("profile", str(mounted.mountpoint), "-t", "0.2", "-S", "calls")
    assert "% time" in shown.stdout, shown.stderr
    assert mpifs("profile", str(mounted.mountpoint), "-S", "nothing").returncode == 2


def test_metrics(mounted: Volume) -> None:
    """What is printed is what Prometheus reads, and what a server gives at each scrape."""
    _work(mounted, "metrics")
    printed = mpifs("metrics", str(mounted.mountpoint))
    assert printed.returncode == 0, printed.stderr
    found = {f.name: f for f in text_string_to_metric_families(printed.stdout)}
    assert found["mpifs_up"].samples[0].value == 1
    assert len(found["mpifs_worker_up"].samples) == 3
    times = {
        (s.name.rpartition("_")[2], s.labels.get("le")): s.value
        for s in found["mpifs_fuse_request_seconds"].samples
        if s.labels["kind"] == "FSYNC"
    }
    assert times["count", None] >= COUNT
    assert times["bucket", "+Inf"] == times["count", None]
    assert 0 < times["sum", None] < 60
    command = [sys.executable, "-m", "mpifs", "metrics", str(mounted.mountpoint), "--listen", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = server.stderr.readline().split()[-1]
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
        again = {f.name: f for f in text_string_to_metric_families(text)}
        assert again.keys() == found.keys()
    finally:
        server.terminate()
        assert server.wait(20) == 0
        server.stderr.close()


def test_watch_on_a_terminal(mounted: Volume) -> None:
    """A live view with workers and rates; Ctrl-C ends it with 0 and gives the screen back."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    command = [sys.executable, "-m", "mpifs", "status", "--watch", str(mounted.mountpoint)]
    shown = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    try:
        deadline = time.monotonic() + 40
        while not re.search(rb"FSYNC +\d", seen):
            assert time.monotonic() < deadline, seen[-3000:]
            mounted.put("watched", b"x" * 5000)
            if select.select([master], [], [], 0.05)[0]:
                seen += os.read(master, 65536)
        for word in (b"serving", b"latency", b"req/s", b"dirty", b"commits", b"heal", b"scrub"):
            assert word in seen, word
    finally:
        shown.send_signal(signal.SIGINT)
        while select.select([master], [], [], 2.0)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
        assert shown.wait(20) == 0
        os.close(master)
    assert b"\x1b[?1049h" in seen
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"\x1b[?1049h")


def test_watch_in_a_pipe(mounted: Volume) -> None:
    """One JSON document a line, with rates from the second on."""
    command = [sys.executable, "-m", "mpifs", "status", "--watch", "--json"]
    shown = subprocess.Popen([*command, str(mounted.mountpoint)], stdout=subprocess.PIPE, text=True)
    assert shown.stdout is not None
    try:
        first, second = (json.loads(shown.stdout.readline()) for _ in range(2))
    finally:
        shown.terminate()
        shown.wait(20)
        shown.stdout.close()
    assert first["rates"]["seconds"] == 0
    assert second["rates"]["seconds"] > 0
    assert [row["id"] for row in second["workers"]] == [1, 2, 3]
    assert set(second["sums"]) == {"memory", "commits", "scrub", "workers"}


def test_below() -> None:
    """Bounds are powers of two of a microsecond."""
    assert below([0, 0, 0], 0.99) == 0.0
    assert below([0, 99, 0, 1], 0.99) == 2e-6
    assert below([0, 99, 0, 1], 1.0) == 8e-6


def test_not_mounted() -> None:
    """A sentence that says what to do."""
    with volume() as made:
        assert mpifs("mkfs", made.folder.path).returncode == 0
        for command in ("profile", "metrics"):
            done = mpifs(command, made.folder.path)
            assert done.returncode == 1
            assert "mpifs mount" in done.stderr
            assert len(done.stderr.splitlines()) == 1
