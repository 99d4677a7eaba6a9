"""The rules of the notifier, against a kernel that is a list."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mpifs.fuse.notifier import Notifier
from mpifs.fuse.open_files import OpenFiles


class FakeKernel:
    """Remembers what was dropped; `hold` makes a target block like a locked page."""

    def __init__(self, with_paths: bool) -> None:
        self.can_invalidate_paths = with_paths
        self.dropped: list[object] = []
        self.held: dict[object, threading.Event] = {}
        self.threads: set[int] = set()

    def hold(self, target: object) -> threading.Event:
        return self.held.setdefault(target, threading.Event())

    def _drop(self, target: object) -> int:
        self.threads.add(threading.get_ident())
        if target in self.held:
            self.held[target].wait(5)
        self.dropped.append(target)
        return 0

    def invalidate_inode(self, nodeid: int) -> int:
        return self._drop(nodeid)

    def invalidate_path(self, path: bytes) -> int:
        return self._drop(path)


class Fixture:
    def __init__(self, with_paths: bool) -> None:
        self.kernel = FakeKernel(with_paths)
        self.files = OpenFiles()
        self.serving = threading.local()
        self.notifier = Notifier(
            self.kernel,
            self.files,
            self,
            self.inode_of,
            timeout_s=0.5,  # type: ignore[arg-type]
        )
        self.files.opened(1, b"/a", 11)
        self.files.opened(2, b"/b", 12)
        self.notifier.start()

    # what Notifier reads of Serving, per thread
    @property
    def request(self) -> object:
        nodeid = getattr(self.serving, "nodeid", 0)
        return SimpleNamespace(nodeid=nodeid) if nodeid else None

    @property
    def fh(self) -> int | None:
        return getattr(self.serving, "fh", None)

    @property
    def path(self) -> bytes | None:
        return None

    def inode_of(self, path: bytes | None, fh: int | None) -> int:
        return 5

    def serve(self, fh: int) -> None:
        self.serving.fh, self.serving.nodeid = fh, 10 + fh


@pytest.fixture(params=[True, False], ids=["paths", "nodeids"])
def rig(request: pytest.FixtureRequest) -> Iterator[Fixture]:
    made = Fixture(request.param)
    yield made
    for event in made.kernel.held.values():
        event.set()
    made.notifier.stop()


def name(rig: Fixture, letter: str) -> object:
    return f"/{letter}".encode() if rig.kernel.can_invalidate_paths else {"a": 11, "b": 12}[letter]


def test_drops_other_names_in_another_thread(rig: Fixture) -> None:
    rig.serve(1)
    assert rig.notifier.on_change([b"/a", b"/b"], [1, 2])
    assert rig.kernel.dropped == [name(rig, "b")]
    assert threading.get_ident() not in rig.kernel.threads


def test_outside_of_requests_all_names_are_dropped(rig: Fixture) -> None:
    assert rig.notifier.on_change([b"/a", b"/b"])
    assert set(rig.kernel.dropped) == {name(rig, "a"), name(rig, "b")}


def test_the_deadline_ends_a_wait(rig: Fixture) -> None:
    rig.kernel.hold(name(rig, "b"))
    rig.serve(1)
    began = time.monotonic()
    assert not rig.notifier.on_change([b"/b"])
    assert 0.4 < time.monotonic() - began < 2
    assert rig.notifier.late == 1


def test_two_requests_never_wait_for_each_other(rig: Fixture) -> None:
    """Each holds its own pages until it is answered."""
    results: list[float] = []

    def request(fh: int, other: bytes, own: str) -> None:
        rig.serve(fh)
        began = time.monotonic()
        rig.notifier.on_change([other])
        results.append(time.monotonic() - began)
        rig.kernel.held[name(rig, own)].set()  # answered: unlocked

    rig.kernel.hold(name(rig, "a"))
    rig.kernel.hold(name(rig, "b"))
    threads = [
        threading.Thread(target=request, args=(1, b"/b", "a")),
        threading.Thread(target=request, args=(2, b"/a", "b")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert max(results) < 0.3
    deadline = time.monotonic() + 2
    while len(rig.kernel.dropped) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(rig.kernel.dropped) == {name(rig, "a"), name(rig, "b")}


def test_removed_names_are_found_by_their_handles(rig: Fixture) -> None:
    rig.files.renamed(b"/b", b"/.fuse_hidden0000000c00000001")
    rig.serve(1)
    rig.notifier.hidden_changed(1)
    assert rig.kernel.dropped == [12]


def test_open_files_follow_renames() -> None:
    files = OpenFiles()
    files.opened(1, b"/d/x", 21)
    files.opened(2, b"/dd/x", 22)
    files.opened(3, b"/e", 0)
    files.renamed(b"/d", b"/new")
    assert [files.path(fh) for fh in (1, 2, 3)] == [b"/new/x", b"/dd/x", b"/e"]
    files.renamed(b"/new/x", b"/e", exchange=True)
    assert (files.path(1), files.path(3)) == (b"/e", b"/new/x")
    assert files.nodeids(b"/e") == {21}
    files.numbered(3, 23)
    assert files.nodeids(b"/new/x") == {23}
    for fh in (1, 2, 3):
        files.closed(fh)
    assert len(files) == 0
    assert not files.unnumbered
    assert not files.hidden
