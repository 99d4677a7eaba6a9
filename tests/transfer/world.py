"""Three ranks in one process, each with a folder: rank 0 carries, 1 and 2 have their services."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from mpifs.core.buffers import BufferPool
from mpifs.core.errors import MpifsError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import MIB
from mpifs.transfer.carrier import Carrier
from mpifs.transfer.service import TransferService
from mpifs.transfer.tally import Tally
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_loopbacks
from mpifs.transport.request import Request
from mpifs.transport.server import Server


class World:
    """`base` is DIR; `rank(k)` is DIR/rank-k."""

    def __init__(self, base: Path, ranks: int = 3) -> None:
        self.base = base
        self._endpoints = make_loopbacks(ranks)
        self._stop = threading.Event()
        self._threads = []
        self.services = []
        pool = BufferPool(IMAGE_HEADER_BYTES, 8 * MIB)
        for endpoint in self._endpoints[1:]:
            service = TransferService(f"host{endpoint.rank}", Client(endpoint))
            server = Server(endpoint, _handler(service), pool.take, pool.give)
            thread = threading.Thread(
                target=server.run, args=(self._stop.is_set, lambda: None), daemon=True
            )
            thread.start()
            self._threads.append(thread)
            self.services.append(service)
        self.client = Client(self._endpoints[0])
        self.carrier = Carrier(self.client, str(base), lambda rank: False)
        answers = self.carrier.prepare(range(1, ranks))
        assert not [each for each in answers.values() if isinstance(each, MpifsError)]

    def rank(self, number: int) -> Path:
        return self.base / f"rank-{number}"

    def carry(self, source: int, target: int, *names: bytes, into: bytes = b"") -> Tally:
        tally = Tally()
        self.carrier.carry(source, target, names, into, tally)
        assert tally.is_over
        return tally

    def close(self) -> None:
        self.carrier.close()
        for service in self.services:
            service.stop()
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for endpoint in self._endpoints:
            endpoint.close()


def _handler(service: TransferService):
    def handle(request: Request) -> None:
        try:
            service.handlers[request.header.kind](request)
        except MpifsError as error:
            request.refuse(error)

    return handle


def write(path: Path, content: bytes) -> bytes:
    """Makes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def tree_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: kind, mode, time to the ns, content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (oct(seen.st_mode), seen.st_mtime_ns, content)
    return found
