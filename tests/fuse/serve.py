"""Mounts a MemoryVfs for a test: `serve.py MOUNTPOINT OPTIONS`.

Prints `ready {describe}` when it serves.  Lines on stdin are commands, each answered with one line:
`calls` (counters of the Vfs, then reset), `cwd`, `put PATH TEXT` (a change that does not come through
the kernel), `unmount GRACE`.  Ends when the mount has ended.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading

from mpifs.fuse.mount import FuseMount
from mpifs.fuse.options import MountOptions
from tests.fuse.memory_vfs import MemoryVfs


def main() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    vfs = MemoryVfs()
    mount = FuseMount(vfs, sys.argv[1], MountOptions.parse(sys.argv[2]))
    mount.start()
    print("ready", json.dumps(mount.describe()), flush=True)
    threading.Thread(target=listen, args=(vfs, mount), daemon=True).start()
    while not mount.wait(1.0):
        pass
    print("ended", json.dumps({"open": len(vfs.handles), **mount.describe()}), flush=True)
    os._exit(0)


def listen(vfs: MemoryVfs, mount: FuseMount) -> None:
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if command == "calls":
            calls, vfs.calls = vfs.calls, {}
            answer = json.dumps(calls)
        elif command == "cwd":
            answer = os.getcwd()
        elif command == "put":
            path, _, text = rest.partition(" ")
            with vfs.lock:
                node = vfs.find(os.fsencode(path))
                node.data[:] = text.encode()
            vfs.changed(node, force=True)
            answer = "done"
        elif command == "unmount":
            answer = json.dumps(mount.unmount(float(rest)))
        else:
            answer = "unknown"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
