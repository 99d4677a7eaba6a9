"""The stored chunks by themselves: what can be said of them while no index can be read."""

from __future__ import annotations

from collections.abc import Iterator

from mpifs.core.chunk_report import Fault
from mpifs.repair.findings import DAMAGE, Finding, Progress
from mpifs.repair.stores import StoreAccess
from mpifs.repair.streams import Streams

_WORDS = {
    Fault.NO_IMAGE: "is listed, but not there",
    Fault.NOT_LISTED: "is there, but not listed",
    Fault.LIST_DAMAGED: "is listed wrongly",
    Fault.HEADER_DAMAGED: "has a damaged header",
    Fault.WRONG_KEY: "is another chunk by its header",
    Fault.CUT: "is cut off",
    Fault.SUM_WRONG: "has other bytes than were written (wrong checksum)",
    Fault.TWICE: "is stored twice",
}


def check_chunks_alone(stores: StoreAccess, progress: Progress, *, data: bool) -> Iterator[Finding]:
    """One finding per stored chunk that contradicts itself.  Names and files are not known here,
    nor whether a chunk is still in use.  Raises CancelledError.
    """
    progress.phase = "chunks"
    for window in Streams(stores, progress, data=data).windows():
        progress.check()
        progress.chunks += len(window.rows)
        for inode, chunk, generation, faults, *_, store in window.rows:
            if faults:
                words = " and ".join(words for fault, words in _WORDS.items() if faults & fault)
                yield Finding(
                    "check_stored_chunk",
                    DAMAGE,
                    f"chunk {chunk} of inode {inode} (generation {generation}) on worker {store} "
                    f"{words}; which file it is of is not known without the index",
                    inode=inode,
                    chunk=chunk,
                    worker=store,
                )
    for store, reason in sorted(stores.silent.items()):
        yield Finding(
            "check_store_answers",
            DAMAGE,
            f"worker {store} failed while it was checked: {reason}",
            worker=store,
        )
