"""The figures of a mount as metrics of Prometheus, by its own client library.

Names and units follow https://prometheus.io/docs/practices/naming: base units, _total for what only
grows.  Counters begin at the mount.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mpifs.job import figures_between
from mpifs.job.folder import VolumeFolder

Document = dict[str, Any]
_WORKER_GAUGES = (
    ("chunks", "chunks", "Chunks that the worker stores."),
    ("bytes", "stored_bytes", "Bytes that the worker stores."),
    ("free", "free_bytes", "Bytes that the worker can still take."),
)
_WORKER_COUNTERS = (
    ("requests", "requests", "Requests that the worker has answered to rank 0."),
    ("sent_bytes", "written_bytes", "Bytes that rank 0 has sent to the worker."),
    ("received_bytes", "read_bytes", "Bytes that the worker has sent to rank 0."),
    ("seconds", "request_seconds", "Time from request to answer, added up."),
    ("restarts", "restarts", "How often the worker was replaced."),
)


class VolumeCollector(Collector):
    """Asks rank 0 at each scrape; any thread.  `must_serve`: raises when nobody answers, instead of
    saying mpifs_up 0."""

    def __init__(self, folder: VolumeFolder) -> None:
        self._folder = folder
        self.must_serve = False

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask when a collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        try:
            document = figures_between.look(self._folder)
        except OSError:
            if self.must_serve:
                raise
            yield _gauge("mpifs_up", "Whether the volume is mounted and answers.", 0)
            return
        yield _gauge("mpifs_up", "Whether the volume is mounted and answers.", 1)
        yield from _volume(document)
        yield from _workers(document)
        yield from _fuse(document)
        yield from _care(document)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _volume(document: Document) -> Iterator[Metric]:
    status, memory, commits = document["status"], document["memory"], document["commits"]
    volume = {key: str(value) for key, value in status["volume"].items()}
    mountpoint = str(status["mount"]["mountpoint"] or "")
    info = InfoMetricFamily("mpifs_volume", "What the volume is.")
    info.add_metric([], {**volume, "mountpoint": mountpoint})
    yield info
    yield _gauge("mpifs_files", "Files of the volume.", status["files"])
    yield _gauge("mpifs_bytes", "Bytes of its files that are stored.", status["bytes"])
    yield _gauge("mpifs_dirty_bytes", "Bytes in memory, not yet stored.", memory["dirty_bytes"])
    yield _gauge("mpifs_cached_bytes", "Bytes of chunks in memory.", memory["cached_bytes"])
    yield _counter("mpifs_cache_hits", "Chunks that were in memory.", memory["cache_hits"])
    yield _counter("mpifs_cache_misses", "Chunks that were fetched.", memory["cache_misses"])
    text = "Bytes read past workers on rank 0's host."
    yield _counter("mpifs_local_read_bytes", text, memory["local_read_bytes"])
    yield _counter("mpifs_commits", "Commits of the index.", commits["count"])
    yield _counter("mpifs_commit_seconds", "Time that they took.", commits["seconds"])


def _workers(document: Document) -> Iterator[Metric]:
    labels = ["worker", "host"]
    rows = document["status"]["workers"]
    serving = GaugeMetricFamily("mpifs_worker_up", "Whether the worker serves.", labels=labels)
    for row in rows:
        serving.add_metric([str(row["id"]), str(row["host"])], row["state"] == "serving")
    yield serving
    for key, name, text in _WORKER_GAUGES:
        gauge = GaugeMetricFamily(f"mpifs_worker_{name}", text, labels=labels)
        for row in rows:
            if row[key] is not None:
                gauge.add_metric([str(row["id"]), str(row["host"])], row[key])
        yield gauge
    host_of = {row["id"]: str(row["host"]) for row in rows}
    for key, name, text in _WORKER_COUNTERS:
        counter = CounterMetricFamily(f"mpifs_worker_{name}", text, labels=labels)
        for row in document["workers"]:
            counter.add_metric([str(row["id"]), host_of.get(row["id"], "")], row[key])
        yield counter


def _fuse(document: Document) -> Iterator[Metric]:
    times = HistogramMetricFamily(
        "mpifs_fuse_request_seconds", "Requests of the kernel, and their times.", labels=["kind"]
    )
    errors = CounterMetricFamily(
        "mpifs_fuse_errors", "Requests that were answered with an error.", labels=["kind"]
    )
    for row in document["fuse"]["kinds"]:
        buckets: list[tuple[str, float]] = []
        seen = 0
        for place, count in enumerate(row["buckets"][:-1]):
            seen += count
            buckets.append((repr(2**place / 1e6), seen))
        buckets.append(("+Inf", seen + row["buckets"][-1]))
        times.add_metric([row["kind"]], buckets, row["seconds"])
        errors.add_metric([row["kind"]], row["errors"])
    yield times
    yield errors


def _care(document: Document) -> Iterator[Metric]:
    heal, scrub = document["status"].get("heal") or {}, document["scrub"]
    left = heal.get("bytes_left") or 0
    text = "Bytes below the wanted redundancy, or to be moved."
    yield _gauge("mpifs_heal_left_bytes", text, left)
    yield _gauge("mpifs_heal_bytes_per_second", "How fast it heals.", heal.get("rate") or 0)
    running = scrub["state"] == "running"
    yield _gauge("mpifs_scrub_running", "Whether the background check runs.", running)
    yield _gauge("mpifs_scrub_checked_bytes", "Bytes checked in this pass.", scrub["bytes"])
    yield _gauge("mpifs_scrub_pass_bytes", "Bytes of a whole pass.", scrub["total_bytes"])
    yield _gauge("mpifs_scrub_findings", "Findings of this pass and the last.", scrub["found"])
