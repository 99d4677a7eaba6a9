"""How fast the adapter is: a Vfs that does nothing, mounted, and a client process.

`python -m tests.fuse.bench_null [OPTIONS] [CLIENTS]` prints one line of figures.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time

from mpifs.core.types import Caller, SpaceUse, Stat
from mpifs.fuse.mount import FuseMount
from mpifs.fuse.options import MountOptions
from tests.fuse.memory_vfs import Opened, fail

BIG = 1 << 30


class NullVfs:
    """Any name but xattrs exists once made; data is thrown away."""

    def __init__(self) -> None:
        self.names = {b"/": 1}
        self.numbers = itertools.count(2)
        self.on_change = None

    def getattr(self, path: bytes | None, fh: int | None = None) -> Stat:
        number = 2 if path is None else self.names.get(path, 0)
        if not number:
            raise fail(2)
        mode = stat.S_IFDIR | 0o755 if number == 1 else stat.S_IFREG | 0o644
        size = BIG if path == b"/big" else 4096
        return Stat(number, mode, 1, 0, 0, 0, size, 8, 1 << 20, 0, 0, 0)

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> Opened:
        self.names[path] = number = next(self.numbers)
        return Opened(number, False, True)

    def open(self, path: bytes, flags: int, caller: Caller) -> Opened:
        return Opened(next(self.numbers), False, False)

    def unlink(self, path: bytes) -> None:
        del self.names[path]

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        return len(into)

    def write(self, fh: int, data: memoryview, offset: int, caller: Caller) -> int:
        return len(data)

    def flush(self, fh: int) -> None: ...
    def release(self, fh: int) -> None: ...
    def truncate(self, *_: object) -> None: ...

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        raise fail(61)

    def statfs(self) -> SpaceUse:
        return SpaceUse(BIG, BIG, 1, 1)


def client(root: str, name: str) -> None:
    """Prints files/s, stats/s, GB/s written, GB/s read (direct, buffered)."""
    data = b"x" * 4096
    count = 3000
    began = time.perf_counter()
    for number in range(count):
        fd = os.open(f"{root}/{name}{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, data)
        os.close(fd)
    files = count / (time.perf_counter() - began)
    began = time.perf_counter()
    for number in range(count):
        os.stat(f"{root}/{name}{number}", follow_symlinks=False)
    stats = count / (time.perf_counter() - began)
    page = mmap.mmap(-1, 1 << 20)
    page[:] = b"y" * (1 << 20)
    rounds = 600
    fd = os.open(f"{root}/big{name}", os.O_CREAT | os.O_WRONLY)
    began = time.perf_counter()
    for number in range(rounds):
        os.pwrite(fd, page, (number % 64) << 20)
    written = rounds * (1 << 20) / (time.perf_counter() - began) / 1e9
    os.close(fd)
    speeds = []
    for flags in (os.O_DIRECT, 0):
        fd = os.open(f"{root}/big", os.O_RDONLY | flags)
        began = time.perf_counter()
        for number in range(rounds):
            os.preadv(fd, [page], number << 20)
        speeds.append(rounds * (1 << 20) / (time.perf_counter() - began) / 1e9)
        os.close(fd)
    print(f"{files:.0f} {stats:.0f} {written:.2f} {speeds[0]:.2f} {speeds[1]:.2f}")


def main() -> None:
    options = sys.argv[1] if len(sys.argv) > 1 else ""
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    root = tempfile.mkdtemp()
    vfs = NullVfs()
    vfs.names[b"/big"] = 2
    mount = FuseMount(vfs, root, MountOptions.parse(options))  # type: ignore[arg-type]
    mount.start()
    try:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.fuse.bench_null", "--client", root, f"c{number}-"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(clients)
        ]
        rows = [[float(word) for word in process.communicate()[0].split()] for process in running]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        print(
            f"{options or 'default'} x{clients}: create+write+close {sums[0]:.0f}/s,"
            f" stat {sums[1]:.0f}/s, write {sums[2]:.2f} GB/s,"
            f" read direct {sums[3]:.2f}, buffered {sums[4]:.2f} GB/s",
            flush=True,
        )
    finally:
        mount.unmount(1.0)
        shutil.rmtree(root, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], sys.argv[3])
    else:
        main()
