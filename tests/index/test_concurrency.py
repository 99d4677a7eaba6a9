"""Readers and changers while a committer runs: nobody ever misses a row between the layers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from stat import S_IFDIR, S_IFREG

import pytest

from mpifs.core.types import ChunkRef
from mpifs.index import inodes, names
from mpifs.index.index import Index

RUN_S = 3.0


def test_nothing_is_missed_while_layers_swap(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "INODE_CACHE_MAX", 30)
    monkeypatch.setattr(names, "DENTRY_CACHE_MAX", 30)
    root = index.inode(1)
    folder = index.create(root, b"d", S_IFDIR | 0o755, 0, 0, now_ns=0)
    stable = [b"stable%03d" % i for i in range(100)]
    files = [index.create(folder, name, S_IFREG | 0o644, 0, 0, now_ns=0) for name in stable]
    newest = [0] * len(files)
    numbers = [file.ino for file in files]
    stop = threading.Event()
    failures: list[BaseException] = []
    turns: dict[str, int] = {}

    def loop(name: str, step: Callable[[int], None]) -> threading.Thread:
        def run() -> None:
            turn = 0
            try:
                while not stop.is_set():
                    step(turn)
                    turn += 1
            except BaseException as error:  # noqa: BLE001  # raised again by the test
                failures.append(error)
                stop.set()
            turns[name] = turn

        return threading.Thread(target=run)

    def change(turn: int) -> None:
        i = turn % len(files)
        generation = index.next_generation()
        with index.lock:
            index.set_refs(files[i], [(0, ChunkRef(generation, 5, b"x" * 16, (1,)))])
            newest[i] = generation
        name = b"brief%d" % (turn % 7)
        if index.lookup(folder.ino, name):
            index.reap(index.unlink(folder, name, turn))
        else:
            index.create(folder, name, S_IFREG, 0, 0, now_ns=turn)

    def move(turn: int) -> None:
        a, b = (b"m1", b"m2") if turn % 2 else (b"m2", b"m1")
        with index.lock:
            if not index.lookup(1, a):
                index.create(root, a, S_IFREG, 0, 0, now_ns=turn)
        index.rename(root, a, root, b, 0, turn)
        assert index.lookup(1, b)

    def look(turn: int) -> None:
        i = turn % len(stable)
        assert index.lookup(folder.ino, stable[i]) == numbers[i]
        assert index.resolve(b"/d/" + stable[i]).ino == numbers[i]
        assert index.inode(numbers[i]) is files[i]
        before = newest[i]
        found = index.ref(files[i], 0)
        assert (found.generation if found else 0) >= before

    def listing(_turn: int) -> None:
        found: list[bytes] = []
        while page := index.entries(folder.ino, found[-1] if found else b"", 16):
            found += [name for name, _, _ in page]
        assert found == sorted(set(found))
        assert [name for name in found if name.startswith(b"stable")] == stable

    def commit(_turn: int) -> None:
        index.sync()

    steps = {"change": change, "move": move, "look": look, "listing": listing, "commit": commit}
    threads = [loop(name, step) for name, step in steps.items()]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.00005)
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + RUN_S
        while time.monotonic() < deadline and not stop.is_set():
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
        sys.setswitchinterval(interval)
    if failures:
        raise failures[0]
    assert min(turns.values()) > 10, turns
