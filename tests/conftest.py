"""Fixtures that really mount (see mount/harness.py), their options, and Hypothesis' settings.

`--plain` (or MPIFS_TEST_PLAIN=1) runs the mount suites against a plain local folder: the oracle by
which the tests themselves are validated.  `--bindings fuse3,fuse2` chooses the FUSE bindings,
`--slow` runs the slow tests on every binding (else on the first one only).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.mount.harness import PREFIX, Guard, Volume, mpifs, sweep, sweep_stale_roots

LIMIT_S = 60.0
SHARED_CHUNK = {"fuse3": 64 * 1024, "fuse2": 1024 * 1024, "plain": 64 * 1024}

settings.register_profile(
    "mpifs",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("mpifs")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the mount suites."""
    parser.addoption(
        "--plain", action="store_true", default=os.environ.get("MPIFS_TEST_PLAIN") == "1"
    )
    parser.addoption("--bindings", default=os.environ.get("MPIFS_TEST_BINDINGS", "fuse3,fuse2"))
    parser.addoption(
        "--slow", action="store_true", default=os.environ.get("MPIFS_TEST_SLOW") == "1"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Markers; and Ctrl-C for the programs that tests start, if this run ignores it (`&`, nohup)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in (
        "slow: long; on the first binding only, unless --slow",
        "long_variant(id): with this parameter only if MPIFS_FAULTS=long (make faults)",
        "limit(seconds): how long the mount may hang in this test before it is aborted",
        "not_plain: makes sense on a mount only",
    ):
        config.addinivalue_line("markers", line)


def variants(config: pytest.Config) -> list[str]:
    """What the shared suites run on."""
    return ["plain"] if config.getoption("plain") else config.getoption("bindings").split(",")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Suites that use the shared mount run once per binding."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", variants(metafunc.config), scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips by option, and a time limit of pytest's own above the guard's."""
    chosen = variants(config)
    for item in items:
        if chosen == ["plain"] and (
            "volume" in getattr(item, "fixturenames", ()) or item.get_closest_marker("not_plain")
        ):
            item.add_marker(pytest.mark.skip(reason="needs a mount"))
        callspec = getattr(item, "callspec", None)
        second = callspec is not None and callspec.params.get("variant", chosen[0]) != chosen[0]
        if item.get_closest_marker("slow") and second and not config.getoption("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: on the first binding only (--slow)"))
        variant = item.get_closest_marker("long_variant")
        is_long = variant and callspec and variant.args[0] in callspec.id.split("-")
        if is_long and os.environ.get("MPIFS_FAULTS") != "long":
            item.add_marker(pytest.mark.skip(reason="MPIFS_FAULTS=long"))
        if not item.get_closest_marker("timeout") and "guarded" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker(pytest.mark.timeout(limit_of(item) + 150))


def limit_of(item: pytest.Item) -> float:
    """Seconds until the guard aborts the mounts."""
    marker = item.get_closest_marker("limit")
    return float(marker.args[0]) if marker else LIMIT_S


@pytest.fixture(scope="session")
def mount_root() -> Iterator[Path]:
    """The session's folder for volumes; nothing may be left in it at the end."""
    base = Path(os.environ.get("MPIFS_TEST_TMP", tempfile.gettempdir()))
    sweep_stale_roots(base)
    root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
    root.chmod(0o755)
    guard = Guard(root)
    pytest_guards[root] = guard
    yield root
    left = sweep(root, own=(guard.pid,))
    guard.close()
    del pytest_guards[root]
    shutil.rmtree(root, ignore_errors=True)
    assert not left, "left behind by this session:\n" + "\n".join(left)


pytest_guards: dict[Path, Guard] = {}


@pytest.fixture
def guarded(mount_root: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Arms the guard for one test."""
    pytest_guards[mount_root].arm(limit_of(request.node))
    yield
    pytest_guards[mount_root].arm(0)


class Shared:
    """The mount that the tests of one binding share; made anew if a test killed it."""

    def __init__(self, root: Path, variant: str) -> None:
        self.root, self.variant = root, variant
        self.volume: Volume | None = None
        self._count = 0

    def ensure(self) -> Path:
        """The folder to work in."""
        if self.variant == "plain":
            folder = self.root / "plain"
            folder.mkdir(exist_ok=True)
            return folder
        if self.volume and not self.volume.is_alive():
            with contextlib.suppress(AssertionError):
                self.volume.destroy()
            self.volume = None
        if not self.volume:
            self._count += 1
            mkfs = ("--chunk-size", str(SHARED_CHUNK[self.variant]))
            self.volume = Volume(
                self.root / f"{self.variant}-{self._count}",
                self.root,
                workers=3,
                binding=self.variant,
                mkfs=mkfs,
            )
            self.volume.make().mount()
        return self.volume.mnt


@pytest.fixture(scope="session")
def shared(mount_root: Path, variant: str) -> Iterator[Shared]:
    """One mount per binding."""
    made = Shared(mount_root, variant)
    yield made
    if made.volume:
        made.volume.destroy()


_counter = iter(range(1 << 30))


def remove_tree(folder: Path) -> None:
    """Like shutil.rmtree, but opens up what a test closed."""
    for path, folders, _ in os.walk(os.fsencode(folder)):
        for name in folders:
            full = os.path.join(path, name)
            with contextlib.suppress(OSError):
                if not stat.S_ISLNK(os.lstat(full).st_mode):
                    os.chmod(full, 0o700)
    shutil.rmtree(os.fsencode(folder))


@pytest.fixture
def here(shared: Shared, guarded: None) -> Iterator[Path]:
    """A fresh folder in the shared mount; the mount must be alive after the test."""
    folder = shared.ensure() / f"t{next(_counter)}"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    umask = os.umask(0o022)
    yield folder
    os.umask(umask)
    if shared.volume:
        assert shared.volume.is_alive(), "the mount died in this test; " + shared.volume.log_tail()
    remove_tree(folder)


@pytest.fixture
def chunk(variant: str) -> int:
    """Chunk size of the shared mount."""
    return SHARED_CHUNK[variant]


@pytest.fixture
def volume(mount_root: Path, guarded: None) -> Iterator[Callable[..., Volume]]:
    """Factory of mounted volumes with options of their own (`mounted=False`: only made)."""
    made: list[Volume] = []

    def make(*, mounted: bool = True, **keywords: Any) -> Volume:
        one = Volume(mount_root / f"v{next(_counter)}", mount_root, **keywords)
        made.append(one)
        one.make()
        if mounted:
            one.mount()
        return one

    yield make
    trouble = []
    for one in made:
        try:
            one.destroy()
        except AssertionError as error:
            trouble.append(str(error))
    assert not trouble, "\n".join(trouble)


@pytest.fixture
def command(mount_root: Path) -> Callable[..., Any]:
    """Runs an mpifs command inside the session's root."""
    return lambda *arguments, **keywords: mpifs(mount_root, *arguments, **keywords)
