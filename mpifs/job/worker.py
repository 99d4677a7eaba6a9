"""A worker rank: one store, served to rank 0 until it says STOP or has been silent for too long."""

from __future__ import annotations

from mpifs.core.block_table import table_bytes
from mpifs.core.buffers import BufferPool
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import (
    FINALIZE_TIMEOUT_S,
    PART_TABLED_BYTES_MAX,
    SERVER_BUFFER_BYTES,
)
from mpifs.fuse.process import prepare_process
from mpifs.job.signals import SignalGate
from mpifs.store.service import StoreService
from mpifs.store.stage import Staging
from mpifs.transfer.service import TransferService
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.transport.server import Server


def serve(volume: str, endpoint: Endpoint, gate: SignalGate) -> int:
    """Serves until the end; returns the exit code.

    Signals are not obeyed: rank 0 gets them too, flushes, and then sends STOP.  They only shorten
    the wait for a rank 0 that is dead.
    """
    prepare_process()
    room = IMAGE_HEADER_BYTES + table_bytes(PART_TABLED_BYTES_MAX)
    pool = BufferPool(room, SERVER_BUFFER_BYTES)
    host, peers = endpoint.host(endpoint.rank), Client(endpoint)
    service = StoreService(volume, host, peers=peers)
    transfers = TransferService(host, peers)
    service.others |= transfers.handlers
    service.others |= Staging(service.being_written, service.loss).handlers
    gate.arm(service.expect_end)
    server = Server(
        endpoint,
        service.handle,
        lambda size: pool.take(max(1, size - IMAGE_HEADER_BYTES)),  # which the pool adds
        pool.give,
    )
    try:
        server.run(service.should_stop, service.idle)
        transfers.stop()
        server.flush(FINALIZE_TIMEOUT_S)
    finally:
        service.close()
    return 1 if service.is_forsaken else 0
