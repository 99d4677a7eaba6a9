"""Every hole of the bindings that PITFALLS section 1 lists, through a real mount."""

from __future__ import annotations

import errno
import os
import stat
import struct
import time

import pytest

from tests.fuse import syscalls
from tests.fuse.conftest import Mounted


def test_names_of_any_bytes(mounted: Mounted) -> None:
    root = os.fsencode(mounted.path)
    names = [b"\xff\xfe latin\xe9", "ü€😀".encode(), b"new\nline", b"a" * 255, b"-rf", b"%s\\040"]
    for name in names:
        with open(root + b"/" + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(root + b"/" + name, "rb") as file:
            assert file.read() == name
        os.rename(root + b"/" + name, root + b"/moved")
        os.unlink(root + b"/moved")
    with pytest.raises(OSError) as caught:
        os.stat(root + b"/" + b"a" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permission, who)
    for tag, permission, who in (
        (1, 6, 2**32 - 1),
        (2, 4, 1000),
        (4, 4, 2**32 - 1),
        (16, 4, 2**32 - 1),
        (32, 0, 2**32 - 1),
    )
)
NOW, OMIT = (0, syscalls.UTIME_NOW), (0, syscalls.UTIME_OMIT)
FIXED = (1_000_000_000, 123_456_789)
OLD = (-5, 7)
LATE = (2**33, 999_999_999)


@pytest.mark.parametrize("atime", [NOW, OMIT, FIXED, OLD, LATE])
@pytest.mark.parametrize("mtime", [NOW, OMIT, FIXED, OLD, LATE])
def test_utimensat_combinations(
    shared: Mounted, atime: tuple[int, int], mtime: tuple[int, int]
) -> None:
    path = shared.path / "times"
    path.write_bytes(b"x")
    syscalls.utimensat(str(path), (11, 12), (13, 14))
    before = time.time_ns()
    syscalls.utimensat(str(path), atime, mtime)
    found = path.stat()
    for wanted, got, old in (
        (atime, found.st_atime_ns, 11_000_000_012),
        (mtime, found.st_mtime_ns, 13_000_000_014),
    ):
        if wanted == NOW:
            assert before - 10**7 <= got <= time.time_ns() + 10**7
        elif wanted == OMIT:
            assert got == old
        else:
            assert got == wanted[0] * 10**9 + wanted[1]


def test_utime_none_is_now(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.touch()
    os.utime(path)
    assert abs(path.stat().st_mtime - time.time()) < 5


def test_rename_flags(mounted: Mounted) -> None:
    one, two, free = (mounted.path / name for name in ("one", "two", "free"))
    one.write_text("1")
    two.write_text("2")
    with pytest.raises(FileExistsError):
        syscalls.renameat2(str(one), str(two), syscalls.NOREPLACE)
    with pytest.raises(OSError) as caught:
        syscalls.renameat2(str(one), str(two), syscalls.WHITEOUT)
    assert caught.value.errno == errno.EINVAL
    assert (one.read_text(), two.read_text()) == ("1", "2")
    syscalls.renameat2(str(one), str(two), syscalls.EXCHANGE)
    assert (one.read_text(), two.read_text()) == ("2", "1")
    syscalls.renameat2(str(one), str(free), syscalls.NOREPLACE)
    assert free.read_text() == "2"
    assert not one.exists()


def test_open_truncates(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.write_bytes(b"x" * 100_000)
    mounted.calls()
    fd = os.open(path, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    assert os.pread(fd, 10, 0) == b""
    os.close(fd)
    assert path.stat().st_size == 0
    counted = mounted.calls()
    assert (counted["open"], counted.get("setattr", 0)) == (1, 0)


def test_ftruncate_has_the_handle(mounted: Mounted) -> None:
    path = mounted.path / "f"
    with path.open("wb+") as file:
        file.write(b"abcdef")
        file.flush()
        mounted.calls()
        file.truncate(3)
        assert mounted.calls().get("setattr") == 1
        assert os.fstat(file.fileno()).st_size == 3
    assert path.read_bytes() == b"abc"


def test_unlinked_open_file(mounted: Mounted) -> None:
    folder = mounted.path / "d"
    folder.mkdir()
    path = folder / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"hello")
    path.unlink()
    assert list(folder.iterdir()) == []
    assert os.fstat(fd).st_nlink == 0
    os.ftruncate(fd, 2)
    os.fchmod(fd, 0o600)
    os.fchown(fd, 5, 6)
    os.utime(fd, ns=(1, 2))
    found = os.fstat(fd)
    assert (found.st_size, stat.S_IMODE(found.st_mode)) == (2, 0o600)
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (5, 6, 2)
    os.pwrite(fd, b"XY", 1)
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b"hXY"
    path.write_text("new")  # the name is free at once
    assert os.pread(fd, 10, 0) == b"hXY"
    path.unlink()
    folder.rmdir()  # and nothing hidden is in the way
    assert os.pread(fd, 10, 0) == b"hXY"
    os.close(fd)


def test_rename_over_open_file(mounted: Mounted) -> None:
    old, new = mounted.path / "old", mounted.path / "new"
    old.write_text("old")
    new.write_text("new")
    with old.open("rb") as file:
        new.rename(old)
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert old.read_text() == "new"
    assert [entry.name for entry in mounted.path.iterdir()] == ["old"]


def test_seek_hole_and_data(mounted: Mounted) -> None:
    path = mounted.path / "f"
    chunk = 64 * 1024
    with path.open("wb") as file:
        file.write(b"a" * chunk)
        file.seek(chunk * 4)
        file.write(b"b" * chunk)
    fd = os.open(path, os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_HOLE) == chunk
    assert os.lseek(fd, chunk, os.SEEK_DATA) == chunk * 4
    with pytest.raises(OSError) as caught:
        os.lseek(fd, chunk * 5, os.SEEK_DATA)
    assert caught.value.errno == errno.ENXIO
    os.close(fd)


def test_copy_file_range(mounted: Mounted) -> None:
    source, target = mounted.path / "s", mounted.path / "t"
    source.write_bytes(bytes(range(256)) * 64)
    target.write_bytes(b"old")
    with source.open("rb") as one, target.open("rb+") as two:
        count = os.copy_file_range(one.fileno(), two.fileno(), 8192, 100, 0)
        assert count > 0
        assert os.pread(two.fileno(), count, 0) == (bytes(range(256)) * 64)[100 : 100 + count]
    assert mounted.calls().get("copy_file_range") == 1


def test_fallocate(mounted: Mounted) -> None:
    path = mounted.path / "f"
    with path.open("wb+", buffering=0) as file:
        file.write(b"x" * 8192)
        assert os.pread(file.fileno(), 8192, 0) == b"x" * 8192
        syscalls.fallocate(file.fileno(), 3, 4096, 4096)
        assert os.pread(file.fileno(), 8192, 0) == b"x" * 4096 + bytes(4096)
        syscalls.fallocate(file.fileno(), 0, 0, 20_000)
        assert os.fstat(file.fileno()).st_size == 20_000
        with pytest.raises(OSError) as caught:
            syscalls.fallocate(file.fileno(), 0x20, 0, 4096)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_working_directory_stays(mounted: Mounted) -> None:
    from tests.fuse.conftest import ROOT

    assert mounted.ask("cwd") == str(ROOT)


def test_a_bug_is_eio_and_the_mount_lives(mounted: Mounted) -> None:
    for name in ("boom", "far-errno", "no-errno"):
        with pytest.raises(OSError) as caught:
            os.stat(mounted.path / name)
        assert caught.value.errno == errno.EIO
    (mounted.path / "f").write_text("alive")
    assert (mounted.path / "f").read_text() == "alive"
    log = mounted.log.read_text()
    assert "an unexpected failure" in log
    assert "Traceback" in log


def test_inode_numbers_and_attributes(mounted: Mounted) -> None:
    for number in range(5):
        (mounted.path / f"f{number}").write_bytes(b"x" * 1000)
    with os.scandir(mounted.path) as entries:
        for entry in entries:
            found = os.stat(entry.path)
            assert entry.inode() == found.st_ino
            assert found.st_blocks == 2
            assert found.st_blksize == 64 * 1024
            assert entry.is_file()


def test_device_nodes_and_fifos(mounted: Mounted) -> None:
    null = mounted.path / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert null.stat().st_rdev == os.makedev(1, 3)
    null.write_bytes(b"swallowed")  # the device, not a file: mounts of root honour devices
    os.mkfifo(mounted.path / "pipe")
    assert stat.S_ISFIFO((mounted.path / "pipe").stat().st_mode)


def test_directory_of_many(mounted: Mounted) -> None:
    folder = mounted.path / "many"
    folder.mkdir()
    names = {f"{number:05}-{'x' * (number % 200)}" for number in range(3000)}
    for name in names:
        (folder / name).touch()
    assert set(os.listdir(folder)) == names
    mounted.calls()
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert set(sizes) == names
    counted = mounted.calls()
    assert counted["readdir"] > 0
    assert counted.get("getattr", 0) + counted.get("lookup", 0) < 500


def test_xattr_sizes(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.touch()
    assert os.listxattr(path) == []
    os.setxattr(path, "user.one", b"1" * 1000)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.one") == b"1" * 1000
    assert os.getxattr(path, "user.empty") == b""
    assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    space = ctypes.create_string_buffer(10)
    assert libc.getxattr(os.fsencode(path), b"user.one", None, 0) == 1000
    assert libc.getxattr(os.fsencode(path), b"user.one", space, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(os.fsencode(path), space, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    assert caught.value.errno == errno.EEXIST
    os.removexattr(path, "user.one")
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "user.one")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "system.posix_acl_access", ACL)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_statvfs_and_ioctl(mounted: Mounted) -> None:
    space = os.statvfs(mounted.path)
    assert (space.f_bsize, space.f_frsize, space.f_namemax) == (4096, 4096, 255)
    assert space.f_blocks >= space.f_bavail == space.f_bfree > 0
    assert space.f_files >= space.f_ffree > 0
    path = mounted.path / "f"
    path.touch()
    with path.open("rb") as file:
        assert not os.isatty(file.fileno())


def test_callers_ids_and_umask(mounted: Mounted) -> None:
    mounted.path.joinpath("open").mkdir()
    mounted.path.joinpath("open").chmod(0o777)
    import subprocess
    import sys

    code = (
        "import os,sys; os.umask(0o027); open(sys.argv[1],'w').close(); os.mkdir(sys.argv[1]+'d')"
    )
    target = mounted.path / "open" / "f"
    # Without allow_other only the mounter may enter, so root takes on the ids for files only.
    program = f"import os; os.setfsuid = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)], capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert (target.stat().st_uid, target.stat().st_gid) == (os.geteuid(), os.getegid())


def test_large_and_odd_transfers(mounted: Mounted) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    path = mounted.path / "f"
    path.write_bytes(data)
    assert path.read_bytes() == data
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    import mmap

    page = mmap.mmap(-1, 1 << 20)
    assert os.preadv(fd, [page], 1 << 20) == 1 << 20
    assert page[:] == data[1 << 20 : 2 << 20]
    os.close(fd)


def test_locks_are_local(mounted: Mounted) -> None:
    import fcntl

    path = mounted.path / "f"
    path.touch()
    with path.open("rb+") as one, path.open("rb+") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_symlinks_up_to_the_limit(mounted: Mounted) -> None:
    target = b"x" * 4095
    link = os.fsencode(mounted.path) + b"/l"
    os.symlink(target, link)
    assert os.readlink(link) == target
    assert os.lstat(link).st_size == 4095
