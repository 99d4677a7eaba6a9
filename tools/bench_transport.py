"""Measures the transport: run under mpiexec with 2 ranks or more; rank 0 asks, rank 1 answers."""

from __future__ import annotations

import resource
import statistics
import sys
import threading
import time

from mpifs.core.buffers import BufferPool
from mpifs.core.kinds import Kind
from mpifs.transport.client import Client
from mpifs.transport.mpi import connect, library_name
from mpifs.transport.request import Request
from mpifs.transport.server import Server

MIB = 1 << 20


def cpu_s() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def worker(endpoint) -> None:  # type: ignore[no-untyped-def]
    pool, blob, stopped = BufferPool(64, 64 * MIB), bytearray(64 * MIB), []

    def handle(request: Request) -> None:
        if request.header.kind == Kind.STOP:
            stopped.append(1)
            request.reply()
        elif request.header.kind == Kind.STATS:
            request.reply(args=repr(cpu_s()).encode())
        elif request.header.items:
            request.reply(body=memoryview(blob)[: request.header.items])
        else:
            request.reply()
        request.done()

    server = Server(endpoint, handle, pool.take, pool.give)
    server.run(lambda: bool(stopped), lambda: None)
    server.flush(5)


def measure(client: Client, kind: str, size: int, threads: int, count: int) -> None:
    times: list[list[float]] = [[] for _ in range(threads)]

    def ask(mine: list[float]) -> None:
        buffer = bytearray(b"x") * size
        for _ in range(count):
            start = time.perf_counter()
            if kind == "get":
                client.call(1, Kind.GET, args=b"k" * 24, items=size, into=buffer)
            else:
                client.call(1, Kind.PUT, body=buffer)
            mine.append(time.perf_counter() - start)

    ask([])
    workers = [threading.Thread(target=ask, args=(mine,)) for mine in times]
    start = time.perf_counter()
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    took = time.perf_counter() - start
    every = sorted(t * 1e6 for mine in times for t in mine)
    rate = threads * count / took
    print(
        f"{kind} {size:>8} B  {threads} threads: median {statistics.median(every):7.1f} µs  "
        f"p99 {every[int(len(every) * 0.99)]:8.1f}  {rate:8.0f}/s  {rate * size / MIB:7.0f} MiB/s",
        flush=True,
    )


def main() -> None:
    endpoint = connect()
    if endpoint.rank:
        worker(endpoint)
    else:
        sys.setswitchinterval(0.0005)
        client = Client(endpoint)
        print(library_name(), endpoint.size, "ranks", flush=True)
        for threads in (1, 4):
            for size in (64, 4096, MIB):
                for kind in ("get", "put"):
                    measure(client, kind, size, threads, 4000 // threads if size < MIB else 800)
        before = float(bytes(client.call(1, Kind.STATS).args))
        mine = cpu_s()
        time.sleep(5)
        after = float(bytes(client.call(1, Kind.STATS).args))
        print(f"idle: worker {(after - before) / 5:.3%}, rank 0 {(cpu_s() - mine) / 5:.3%}")
        first = []
        for _ in range(40):
            time.sleep(0.12)
            start = time.perf_counter()
            client.call(1, Kind.PING)
            first.append((time.perf_counter() - start) * 1e6)
        first.sort()
        print(f"first after idle: median {first[20]:.0f} µs, worst {first[-1]:.0f} µs")
        for rank in range(1, endpoint.size):
            client.call(rank, Kind.STOP)
    endpoint.close()


if __name__ == "__main__":
    main()
