"""Mounts a volume whose ranks are threads: `serve.py MOUNTPOINT OPTIONS CHUNK_SIZE`.

Prints `ready {describe}` when it serves.  Lines on stdin are commands, each answered with one line:
`calls` (counters of the calls of Nodes, then reset), `misses` (of the chunk cache), `cwd`,
`put NAME TEXT` (a change that does not come through the kernel), `make NAME TEXT`, `unmount GRACE`.
Ends when the mount has ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

from mpifs.core.kinds import Kind
from mpifs.core.types import Caller
from mpifs.fuse.mount import FuseMount
from mpifs.fuse.options import MountOptions
from mpifs.vfs.facade import Vfs
from mpifs.vfs.nodes import Nodes
from tests.vfs.loopback import LoopbackVolume

TAKES = b"takes "
"""A file whose content begins so takes so many seconds to fsync."""


class Counted:
    """Nodes that count their calls, and fail for some names."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._vfs.nodes, name)
        if not callable(found):
            return found

        def counted(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return found(*args, **named)

        return counted

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "on_change":
            self._vfs.nodes.on_change = value
        else:
            object.__setattr__(self, name, value)

    def lookup(self, parent: int, name: bytes) -> Any:
        self.calls["lookup"] += 1
        if name == b"boom":
            raise RuntimeError("an unexpected failure")
        if name == b"no-errno":
            raise OSError("no number")
        if name == b"far-errno":
            raise OSError(5000, "a number that no kernel takes")
        return self._vfs.nodes.lookup(parent, name)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        self.calls["fsync"] += 1
        into = bytearray(16)
        self._vfs.read(fh, memoryview(into), 0)
        if into.startswith(TAKES):
            time.sleep(float(into[len(TAKES) :].rstrip(b"\0")))
        self._vfs.fsync(fh, datasync)


def keep_alive(volume: LoopbackVolume) -> None:
    """What a job's heartbeat does: a worker that hears nothing for long closes its store."""
    while True:
        for rank in range(1, volume.workers + 1):
            with contextlib.suppress(OSError):
                volume.client.call(rank, Kind.PING)
        time.sleep(1.0)


def main() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = MountOptions.parse(sys.argv[2])
    folder = tempfile.mkdtemp()
    volume = LoopbackVolume(Path(folder), workers=2, chunk_size=int(sys.argv[3]))
    vfs = volume.open()
    threading.Thread(target=keep_alive, args=(volume,), daemon=True).start()
    nodes = Counted(vfs)
    mount = FuseMount(cast(Nodes, nodes), sys.argv[1], options)
    code = 0
    try:
        mount.start()
        print("ready", json.dumps(mount.describe()), flush=True)
        threading.Thread(target=listen, args=(vfs, nodes, mount), daemon=True).start()
        while not mount.wait(1.0):
            pass
        open_files = len(vfs._handles)
        print("ended", json.dumps({"open": open_files, **mount.describe()}), flush=True)
    except OSError as error:
        print(error, file=sys.stderr)
        code = 1
    finally:
        volume.close()
        shutil.rmtree(folder)
    os._exit(code)


def listen(vfs: Vfs, nodes: Counted, mount: FuseMount) -> None:
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if command == "calls":
            calls, nodes.calls = nodes.calls, Counter()
            answer = json.dumps(calls)
        elif command == "cwd":
            answer = os.getcwd()
        elif command == "misses":
            answer = str(vfs.reader.cache.misses)
        elif command in ("put", "make"):
            name, _, text = rest.partition(" ")
            path = b"/" + os.fsencode(name)
            me = Caller(0, 0)
            if command == "make":
                fh = vfs.create(path, 0o644, os.O_WRONLY, me)
            else:
                fh = vfs.open(path, os.O_WRONLY | os.O_TRUNC)
            vfs.write(fh, memoryview(text.encode()), 0)
            vfs.release(fh)
            vfs.nodes.on_change([vfs.getattr(path).ino, 1], [(1, os.fsencode(name))])
            answer = "done" if mount.settle() else "late"
        elif command == "unmount":
            answer = json.dumps(mount.unmount(float(rest)))
        else:
            answer = "unknown"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
