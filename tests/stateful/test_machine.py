"""Random operations on the file system under test and on a local folder: both must agree.

Results, errnos, names, attributes, xattrs and bytes are compared after every step, times where they
were set.  A failure prints the steps and Hypothesis' seed (`@reproduce_failure`); MPIFS_TEST_SEED=N
starts another run, MPIFS_TEST_EXAMPLES=N makes it longer.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import Shared, remove_tree
from tests.mount.calls import EXCHANGE, KEEP_SIZE, NOREPLACE, PUNCH_HOLE, ZERO_RANGE, pattern
from tests.stateful.drivers import Driver, FolderDriver

SEED = int(os.environ.get("MPIFS_TEST_SEED", "20"))
EXAMPLES = int(os.environ.get("MPIFS_TEST_EXAMPLES", "30"))
UNIT = 16 * 1024
LARGEST = 12 * UNIT

PLACES = [b"f", b"g", b"d", b"d/f", b"d/g", b"e", b"e/d", b"long" * 60, b"\xff\n", b"d/none/f"]
NEW_NAMES = st.sampled_from(PLACES)
OLD_NAMES = st.one_of(
    NEW_NAMES, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)
)  # numbers: existing names
BORDERS = st.builds(
    lambda n, d: max(0, n * UNIT + d),
    st.integers(0, 11),
    st.sampled_from([-4097, -1, 0, 1, 7, 4096]),
)
OFFSETS = st.one_of(BORDERS, st.integers(0, LARGEST))
SIZES = st.one_of(
    st.sampled_from([0, 1, 100, 4096, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT]), st.integers(0, 4 * UNIT)
)
DATA = st.builds(pattern, SIZES, st.integers(0, 9))
TIMES = st.one_of(st.integers(-(10**18), 10**19 // 2), st.sampled_from([0, -1, 2**32 * 10**9 + 1]))
KEYS = st.sampled_from([b"user.a", b"user.bb", b"user.\xc3\xa9"])
EDITS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "map", "read", "truncate", "fsync", "punch", "zero", "allocate", "keep"]), OFFSETS, SIZES, st.integers(0, 9)),
    min_size=1, max_size=8,
)  # fmt: skip
MODES = {
    "punch": PUNCH_HOLE | KEEP_SIZE,
    "zero": ZERO_RANGE,
    "allocate": 0,
    "keep": KEEP_SIZE | ZERO_RANGE,
}
FLAGS = st.sampled_from(
    [os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]
)
ALIKE = {errno.ENOTEMPTY: errno.EEXIST, errno.ENODEV: errno.EACCES}


class Machine(RuleBasedStateMachine):
    """`pair` gives (driver under test, oracle, clean-up) for one run; set by the tests below."""

    pair: Callable[[], tuple[Driver, Driver, Callable[[], None]]]

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.real, self.model, self._clean = type(self).pair()
        self.open_handles: list[tuple[Any, Any]] = []
        self._umask = os.umask(0)

    def both(self, call: Callable[[Driver, int], Any]) -> tuple[Any, Any]:
        """Does it on both sides; results or errnos must agree."""
        answers = []
        for side, driver in enumerate((self.real, self.model)):
            try:
                answers.append((0, call(driver, side)))
            except OSError as error:
                number = error.errno or -1
                answers.append((ALIKE.get(number, number), None))
        (code, result), (wanted, want) = answers
        assert code == wanted, (
            f"{errno.errorcode.get(code, code)} instead of {errno.errorcode.get(wanted, wanted)}"
        )
        return result, want

    def same(self, call: Callable[[Driver, int], Any]) -> Any:
        """Like both, and the results are equal."""
        result, want = self.both(call)
        assert result == want
        return result

    @initialize(target=handles)
    def start(self) -> Any:
        for name in (b"d", b"e"):
            self.same(lambda d, _, name=name: d.mkdir(name, 0o755))
        return multiple(
            *(self._opened(self.both(lambda d, _, n=n: d.create(n, 0o644))) for n in (b"f", b"d/f"))
        )

    def name(self, name: bytes | int) -> bytes:
        """A given name, or one of those that exist."""
        if isinstance(name, bytes):
            return name
        names = list(names_of(self.model))
        return names[name % len(names)] if names else b"f"

    @rule(target=handles, name=NEW_NAMES, mode=st.sampled_from([0o644, 0o600, 0o4755]))
    def create(self, name: bytes, mode: int) -> Any:
        return self._opened(self.both(lambda d, _: d.create(name, mode)))

    @rule(target=handles, name=OLD_NAMES, flags=FLAGS)
    def open(self, name: bytes | int, flags: int) -> Any:
        path = self.name(name)
        return self._opened(self.both(lambda d, _: d.open(path, flags)))

    def _opened(self, pair: tuple[Any, Any]) -> Any:
        if pair[0] is None:
            return multiple()
        self.open_handles.append(pair)
        return pair

    def alive(self, handle: Any) -> bool:
        """A remount closed the handles of before."""
        return any(handle is one for one in self.open_handles)

    @rule(handle=consumes(handles))
    def close(self, handle: Any) -> None:
        if self.alive(handle):
            self.open_handles = [one for one in self.open_handles if one is not handle]
            self.same(lambda d, side: d.close(handle[side]))

    def on(self, handle: Any, call: Callable[[Driver, Any], Any]) -> None:
        """A call on an open file, then its size and link count."""
        if self.alive(handle):
            self.same(lambda d, side: call(d, handle[side]))
            self.same(lambda d, side: d.fstat(handle[side]))

    @rule(handle=handles, edits=EDITS)
    def edit(self, handle: Any, edits: list[tuple[str, int, int, int]]) -> None:
        for what, offset, size, number in edits:
            match what:
                case "write":
                    self.on(handle, lambda d, h: d.write(h, offset, pattern(size, number)))  # noqa: B023
                case "map":
                    self.on(handle, lambda d, h: d.map_write(h, offset, pattern(size, number)))  # noqa: B023
                case "read":
                    self.on(handle, lambda d, h: d.read(h, offset, size))  # noqa: B023
                case "truncate":
                    self.on(handle, lambda d, h: d.ftruncate(h, offset))  # noqa: B023
                case "fsync":
                    self.on(handle, lambda d, h: d.fsync(h))
                case _:
                    self.on(handle, lambda d, h: d.fallocate(h, MODES[what], offset, size))  # noqa: B023

    @rule(name=OLD_NAMES, size=OFFSETS)
    def truncate(self, name: bytes | int, size: int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.truncate(path, size))

    @rule(name=NEW_NAMES, mode=st.sampled_from([0o755, 0o700]))
    def mkdir(self, name: bytes, mode: int) -> None:
        self.same(lambda d, _: d.mkdir(name, mode))

    @rule(name=OLD_NAMES)
    def rmdir(self, name: bytes | int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.rmdir(path))

    @rule(name=NEW_NAMES, text=st.sampled_from([b"a", b"b", b"none", b"\xfe" * 300]))
    def symlink(self, name: bytes, text: bytes) -> None:
        self.same(lambda d, _: d.symlink(text, name))

    @rule(old=OLD_NAMES, new=st.one_of(NEW_NAMES, OLD_NAMES))
    def link(self, old: bytes | int, new: bytes | int) -> None:
        one, two = self.name(old), self.name(new)
        self.same(lambda d, _: d.link(one, two))

    @rule(name=OLD_NAMES)
    def unlink(self, name: bytes | int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.unlink(path))

    @rule(
        old=OLD_NAMES,
        new=st.one_of(NEW_NAMES, OLD_NAMES),
        flags=st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE]),
    )
    def rename(self, old: bytes | int, new: bytes | int, flags: int) -> None:
        one, two = self.name(old), self.name(new)
        self.same(lambda d, _: d.rename(one, two, flags))

    @rule(name=OLD_NAMES, mode=st.sampled_from([0o600, 0o755, 0o4711, 0o2775, 0o1777]))
    def chmod(self, name: bytes | int, mode: int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.chmod(path, mode))

    @rule(name=OLD_NAMES, atime=TIMES, mtime=TIMES)
    def utimes(self, name: bytes | int, atime: int, mtime: int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.utimes(path, atime, mtime))
        self.same(lambda d, _: d.times(path))

    @rule(
        name=OLD_NAMES,
        key=KEYS,
        value=st.binary(max_size=300),
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )
    def setxattr(self, name: bytes | int, key: bytes, value: bytes, flags: int) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.setxattr(path, key, value, flags))

    @rule(name=OLD_NAMES, key=KEYS)
    def removexattr(self, name: bytes | int, key: bytes) -> None:
        path = self.name(name)
        self.same(lambda d, _: d.removexattr(path, key))

    @rule()
    def compare(self) -> None:
        assert snapshot(self.real) == snapshot(self.model)

    @rule(dice=st.integers(0, 15))
    def remount(self, dice: int) -> None:
        if dice == 15 or not isinstance(self.real, FolderDriver):  # a real one takes seconds
            self._remount()

    def _remount(self) -> None:
        self._close_all()
        for name in names_of(self.model):
            self.same(
                lambda d, _, name=name: d.utimes(name, 1_000_000_001, 2_000_000_000_123_456_789)
            )
        self.real.remount()
        self.compare()
        for name in names_of(self.model):
            self.same(lambda d, _, name=name: d.times(name)[1])

    def _close_all(self) -> None:
        for handle in self.open_handles:
            self.same(lambda d, side, handle=handle: d.close(handle[side]))
        self.open_handles = []

    def teardown(self) -> None:
        os.umask(self._umask)
        try:
            self.compare()
            self._close_all()
            self.compare()
        finally:
            self._clean()


def names_of(driver: Driver, folder: bytes = b"") -> Iterator[bytes]:
    """All names below a folder."""
    for entry in driver.entries(folder):
        name = folder + b"/" + entry if folder else entry
        yield name
        if stat.S_ISDIR(driver.facts(name).mode):
            yield from names_of(driver, name)


def snapshot(driver: Driver) -> dict[bytes, Any]:
    """The whole tree: attributes, xattrs, bytes."""
    tree: dict[bytes, Any] = {b"": driver.facts(b"")._replace(mode=0)}
    for name in names_of(driver):
        facts = driver.facts(name)
        content = b""
        if stat.S_ISREG(facts.mode):
            handle = driver.open(name, os.O_RDONLY)
            content = driver.read(handle, 0, LARGEST * 2)
            driver.close(handle)
        tree[name] = (facts, driver.xattrs(name), content)
    return tree


def run_machine(
    pair: Callable[[], Any],
    *,
    examples: int = EXAMPLES,
    steps: int = 40,
) -> None:
    """One seeded run over many examples."""
    machine = type("Machine", (Machine,), {"pair": staticmethod(pair)})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    phases = [Phase.generate, Phase.shrink]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        phases=phases,
        suppress_health_check=checks,
    )
    run_state_machine_as_test(seed(SEED)(machine), settings=chosen)


@pytest.mark.limit(400)
def test_mount_agrees_with_local_folder(
    shared: Shared, guarded: None, variant: str, tmp_path: Path
) -> None:
    shared.ensure()

    def remount() -> None:
        if shared.volume:
            shared.volume.remount()

    numbers = itertools.count()

    def pair() -> tuple[Driver, Driver, Callable[[], None]]:
        number = next(numbers)
        real, model = shared.ensure() / f"machine-{number}", tmp_path / f"model-{number}"
        real.mkdir()
        model.mkdir()

        def clean() -> None:
            remove_tree(real)
            shutil.rmtree(model)

        return FolderDriver(real, remount), FolderDriver(model), clean

    run_machine(pair)


@pytest.mark.not_plain
@pytest.mark.timeout(300)
def test_vfs_over_loopback_agrees_with_local_folder(tmp_path: Path) -> None:
    loopback = pytest.importorskip(
        "tests.vfs.loopback", reason="the loopback volume is not there yet"
    )
    from tests.stateful.vfs_driver import VfsDriver

    numbers = itertools.count()

    def pair() -> tuple[Driver, Driver, Callable[[], None]]:
        number = next(numbers)
        model = tmp_path / f"model-{number}"
        model.mkdir()
        volume = loopback.LoopbackVolume(
            tmp_path / f"volume-{number}", workers=3, chunk_size=UNIT, replicas=1 + number % 2
        )

        def reopen() -> Any:
            volume.close()
            return volume.open()

        def clean() -> None:
            volume.close()
            shutil.rmtree(volume.folder)
            shutil.rmtree(model)

        return VfsDriver(volume.open(), reopen), FolderDriver(model), clean

    run_machine(pair, examples=EXAMPLES // 2)
