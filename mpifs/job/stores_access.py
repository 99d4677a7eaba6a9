"""How `mpifs add`, `drain`, `replace`, `rebalance` get at a volume: inside its mount's job, or by a
job without a mount that ends with the command."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mpifs.core.errors import StartError
from mpifs.core.types import StoreEntry, StoreId, StoreState
from mpifs.job import config as job_config
from mpifs.job import launch
from mpifs.job import state as job_state
from mpifs.job.control import ControlClient
from mpifs.job.files_access import config_at_rest
from mpifs.job.folder import VolumeFolder
from mpifs.job.fsck_access import is_mounted
from mpifs.job.heal_memory import next_numbers, read_memory, write_memory


@contextlib.contextmanager
def serving(folder: VolumeFolder) -> Iterator[ControlClient]:
    """A connection to rank 0; ranks started for it end with the block.

    Raises InUseError when another command uses the unmounted volume, StartError.
    """
    with contextlib.ExitStack() as held:
        if not is_mounted(folder):
            if not job_state.has_ended(folder):
                raise launch.in_use(folder, job_state.read(folder))
            held.enter_context(launch.serving(folder, config_at_rest(folder)))
        yield held.enter_context(ControlClient(folder.socket))


def add_at_rest(folder: VolumeFolder, count: int, hosts: Sequence[str]) -> list[int]:
    """Adds stores to the table of an unmounted volume; the next job makes them.

    Raises InUseError, PosixError.
    """
    from mpifs.index.index import Index

    with launch.hold(folder):
        index = Index.open(folder.index)
        try:
            stores = index.stores()
            memory = read_memory(folder.index)
            numbers = next_numbers(stores, memory, count)
            memory.highest_store = numbers[-1]
            write_memory(folder.index, memory)
            fresh = [
                StoreEntry(StoreId(number), uuid.uuid4().bytes, StoreState.FRESH)
                for number in numbers
            ]
            index.set_stores([*stores, *fresh])
        finally:
            index.close()
        if hosts:
            _remember_hosts(folder, len(stores), count, hosts)
    return numbers


def _remember_hosts(folder: VolumeFolder, before: int, count: int, hosts: Sequence[str]) -> None:
    """Commands on the unmounted volume start their ranks where the last job had them."""
    with contextlib.suppress(StartError):
        last = job_config.read(folder)
        if len(last.hosts) == before:
            more = [hosts[place % len(hosts)] for place in range(count)]
            job_config.write(replace(last, hosts=[*last.hosts, *more], workers=before + count))
