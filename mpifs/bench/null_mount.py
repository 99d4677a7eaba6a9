"""The FUSE limit's process: `python -m mpifs.bench.null_mount MNT [OPTION…]`.

Says "ready" when the mount answers; unmounts and ends at the end of its input.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import cast

from mpifs.bench.null_nodes import NullNodes
from mpifs.core.errors import MpifsError
from mpifs.fuse.mount import FuseMount
from mpifs.fuse.options import MountOptions
from mpifs.vfs.nodes import Nodes

NAME = "mpifs-bench"
"""Source and type in the kernel's table: never taken for a volume's mount."""


def main() -> int:
    """Mounts, waits for the end of input, unmounts."""
    options = replace(MountOptions.parse(sys.argv[2:]), fsname=NAME, subtype=NAME)
    mount = FuseMount(cast(Nodes, NullNodes()), sys.argv[1], options)
    try:
        mount.start()
    except MpifsError as error:
        print(f"error {error}", flush=True)
        return 1
    print("ready", flush=True)
    sys.stdin.read()
    mount.unmount(2.0)
    os._exit(0)  # the loop's threads may wait in the kernel.


if __name__ == "__main__":
    sys.exit(main())
