"""Removes the volume of `mpifs run --scratch`, which was made for the job and goes with it.

Never anything but what a volume consists of, and never a volume that was there before: who calls
has made it himself, and says by `removal` whether the folder was there (then it stays, empty).
May be repeated, after a kill in the middle too.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil

from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.restart import answering

ALL = "all"
CONTENTS = "contents"
_OURS = re.compile(r"(index|index\.new|index\.damaged-.*|worker-[1-9][0-9]*)\Z")
_OF_RUN = re.compile(r"(state\.json|config\.json|mpifs\.log|lock|control\.sock|scratch)(\..*)?\Z")


def remove(config: JobConfig) -> None:
    """Removes the volume of a job that has ended, on every host of the job; nothing without
    `config.removal`."""
    if not config.removal or not os.path.isdir(config.volume):
        return
    folder = config.folder
    if config.hosts and (uuid := _uuid_of(folder)):
        answering(config.hosts, config.launch_agent, config.job, [folder.path, uuid.hex()])
    # The index goes after the stores: as long as it is there, the folder says what it is.
    for name in sorted(os.listdir(folder.path), reverse=True):
        if _OURS.match(name):
            shutil.rmtree(os.path.join(folder.path, name), ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder.run):
            if _OF_RUN.match(name):
                os.unlink(os.path.join(folder.run, name))
        os.rmdir(folder.run)
        if config.removal == ALL:
            os.rmdir(folder.path)


def _uuid_of(folder: VolumeFolder) -> bytes:
    from mpifs.index.volume import read_superblock

    try:
        return read_superblock(folder.index).volume_uuid
    except OSError:
        return b""


def remove_stores(path: str, uuid: bytes) -> None:
    """Removes the stores of the volume `uuid` below the folder `path` of this host."""
    from mpifs.store.folder import read_superblock

    for store in glob.glob(os.path.join(glob.escape(path), "worker-*")):
        with contextlib.suppress(OSError):
            block = read_superblock(store)
            if block is not None and block.volume_uuid == uuid:
                shutil.rmtree(store, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(path)
