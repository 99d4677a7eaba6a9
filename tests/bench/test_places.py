"""What a run knows of the processes that serve a volume."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpifs.bench import places
from mpifs.bench.places import Place, know_processes
from mpifs.job.folder import VolumeFolder

NOBODY = 2**22 + 1


def test_workers_of_this_host_that_live_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here, mine = os.uname().nodename, os.getpid()
    rows = [(0, ""), (mine, "elsewhere"), (NOBODY, here), (os.getppid(), here)]
    document = {
        "mount": {"pid": mine},
        "workers": [{"pid": pid, "host": host} for pid, host in rows],
        "volume": {"workers": 4},
    }

    class Client:
        def __init__(self, path: str, timeout_s: float) -> None:
            pass

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def call(self, name: str) -> dict[str, object]:
            return document

    monkeypatch.setattr(places, "ControlClient", Client)
    place = Place("vol", str(tmp_path), volume=VolumeFolder(str(tmp_path)))
    assert know_processes(place) == {"workers": 4}
    assert (place.master, place.workers) == (mine, [os.getppid()])


def test_of_a_process_that_has_ended_nothing_is_told(tmp_path: Path):
    place = Place("vol", str(tmp_path), volume=VolumeFolder(str(tmp_path)), master=os.getpid())
    place.workers = [os.getpid()]
    assert place.processor_s() is not None
    assert None not in place.memory_mib()
    place.workers.append(NOBODY)
    assert place.processor_s() is None
    assert place.memory_mib() == (None, None)
    assert place.stored_bytes() is None
