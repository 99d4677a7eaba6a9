"""What the POSIX suites need and Python's os lacks: renameat2, fallocate, other users, trees."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import random
import stat
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
UTIME_NOW, UTIME_OMIT = 2**30 - 1, 2**30 - 2
NOBODY = 65534
Name = str | bytes | Path
libc = ctypes.CDLL(None, use_errno=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def checked(result: int, *arguments: Any) -> int:
    """OSError from errno for a C call that gave -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


for _name in ("renameat2", "fallocate", "utimensat", "getxattr", "listxattr", "syncfs"):
    getattr(libc, _name).errcheck = checked
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
for _name in ("getxattr", "listxattr"):
    getattr(libc, _name).restype = ctypes.c_ssize_t


def renameat2(old: Name, new: Name, flags: int) -> None:
    """renameat2(2)."""
    libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    libc.fallocate(fd, mode, offset, length)


class Timespec(ctypes.Structure):
    """struct timespec."""

    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def utimensat(path: Name, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with raw (sec, nsec), so that UTIME_NOW and UTIME_OMIT can be given."""
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0)


@contextlib.contextmanager
def raises(*numbers: int) -> Iterator[None]:
    """The block must fail with one of these errnos."""
    names = [errno.errorcode[number] for number in numbers]
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            got = errno.errorcode.get(error.errno or 0)
            pytest.fail(f"{got} instead of {names}: {error}")
    else:
        pytest.fail(f"went through instead of failing with {names}")


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or the errno's name."""
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, error.errno)


def forked(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Starts a child process that runs the function; call the result to wait for its value."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            answer = (True, function(*arguments))
        except BaseException as error:  # noqa: BLE001 - the child hands everything to its parent
            answer = (False, error if isinstance(error, OSError) else AssertionError(repr(error)))
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)

    def wait() -> Any:
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        done, value = pickle.loads(data)
        if not done:
            raise value
        return value

    return wait


def as_user(
    function: Callable[..., Any],
    *arguments: Any,
    uid: int = NOBODY,
    gid: int = NOBODY,
    groups: tuple[int, ...] = (),
) -> Any:
    """Runs the function in a child process of another user."""

    def child() -> Any:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.umask(0o022)
        return function(*arguments)

    return forked(child)()


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat."""
    return random.Random(seed).randbytes(size)


def put(path: Name, data: bytes = b"", mode: int = 0o644) -> Path:
    """Makes a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(fd, data, 0)
    finally:
        os.close(fd)
    return Path(os.fsdecode(path))


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite until everything is written."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def read_all(fd: int, size: int, offset: int = 0) -> bytes:
    """pread until `size` bytes or the end."""
    parts = []
    while size > 0 and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


@contextlib.contextmanager
def opened(path: Name, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    """A file descriptor for a while."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def cold(fd: int) -> None:
    """Makes the kernel forget the file's clean pages."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def tick(path: Name) -> None:
    """Waits until a change made now must show a later ctime than the file's."""
    last = os.lstat(path).st_ctime_ns
    while time.clock_gettime_ns(5) <= last:  # CLOCK_REALTIME_COARSE, as local file systems use it
        time.sleep(0.001)


def run(
    *command: Name,
    cwd: Name | None = None,
    timeout: float = 100.0,
    check: bool = True,
    env: dict[str, str] | None = None,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program; its output is in the failure."""
    clean = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        timeout=timeout,
        env={**clean, **(env or {})},
        input=stdin,
        capture_output=True,
    )
    if check and done.returncode:
        text = (done.stdout[-1500:] + done.stderr[-1500:]).decode(errors="replace")
        raise AssertionError(f"exit code {done.returncode}: {command}\n{text}")
    return done


def describe(root: Name, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """A tree with all its metadata, comparable: name → (type, mode, owner, links, size, times, content…)."""
    top = os.fsencode(root)
    tree: dict[bytes, tuple[Any, ...]] = {}
    first: dict[int, bytes] = {}
    for folder, folders, files in os.walk(top):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            relative = os.path.relpath(path, top)
            content: Any = None
            if kind == stat.S_IFREG:
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            linked = first.setdefault(info.st_ino, relative) if kind != stat.S_IFDIR else relative
            names = (
                []
                if kind == stat.S_IFLNK
                else [n for n in os.listxattr(path) if n.startswith("user.")]
            )
            tree[relative] = (
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                info.st_rdev,
                info.st_nlink if kind != stat.S_IFDIR else 0,
                linked,
                info.st_size if kind != stat.S_IFDIR else 0,
                info.st_mtime_ns if times else 0,
                tuple(sorted((n, os.getxattr(path, n)) for n in names)),
                content,
            )
    return tree


ODD_NAMES = [
    b"with space",
    b"new\nline",
    b"-dash",
    b"back\\slash",
    b"\xff\xfe no utf8 \x80",
    "Grüße €".encode(),
    b"'\"$(`",
    b"*?[",
    b"tab\there",
    b"...",
    b"\x01\x7f",
    b".hidden",
    b"trailing ",
    b"x" * 255,
]


def make_zoo(root: Path, *, special: bool = True) -> None:
    """A tree with one of everything."""
    root.mkdir(exist_ok=True)
    for number, name in enumerate(ODD_NAMES):
        put(os.path.join(os.fsencode(root), name), pattern(number * 777, number))
    inner = root / "sub" / "deeper"
    inner.mkdir(parents=True)
    put(inner / "large", pattern(3_000_001, 1))
    put(inner / "empty")
    os.link(inner / "large", root / "hard link")
    os.symlink("sub/deeper/large", root / "soft")
    os.symlink(b"dangling \xff", os.fsencode(root) + b"/dangling")
    sparse = put(root / "sparse")
    os.truncate(sparse, 5_000_000)
    with opened(sparse) as fd:
        os.pwrite(fd, b"island", 3_333_333)
    if special:
        os.mkfifo(root / "fifo", 0o620)
        if os.geteuid() == 0:
            os.mknod(root / "device", 0o660 | stat.S_IFCHR, os.makedev(1, 3))
            os.chown(root / "sub", 1234, 4321)
    os.setxattr(inner / "empty", "user.color", b"\0blue\xff")
    os.chmod(inner / "empty", 0o4751)
    os.chmod(inner, 0o2775)
    for number, path in enumerate([*sorted(root.iterdir()), inner / "large"]):
        os.utime(path, ns=(10**18 + number, 10**18 + number * 1_000_000_007), follow_symlinks=False)
    os.utime(inner / "empty", ns=(1_000_000_001, -5_999_999_999))
    os.utime(
        root / "soft", ns=(2**32 * 10**9 + 7, 123_456_789_987_654_321 // 100), follow_symlinks=False
    )
    os.utime(inner, ns=(5, 1_700_000_000_123_456_789))
