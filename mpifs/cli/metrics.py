"""`mpifs metrics`: the figures of a mount for Prometheus."""

from __future__ import annotations

import sys
import threading
from typing import Annotated

import typer


def metrics(
    place: Annotated[str, typer.Argument(metavar="MNT", help="A mount, or its volume.")],
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDR",
            help="Serve them at http://ADDR/metrics until Ctrl-C: 9750, HOST:9750 or [::]:9750; "
            "without a host on this host only.",
        ),
    ] = "",
) -> None:
    """Print a mount's figures as Prometheus reads them, or serve them.

    A server asks rank 0 at each scrape, and goes on when the volume is unmounted: then mpifs_up
    is 0.
    """
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server

    from mpifs.job.folder import volume_of
    from mpifs.job.metrics import VolumeCollector
    from mpifs.job.signals import term_as_interrupt

    folder = volume_of(place)
    registry = CollectorRegistry(auto_describe=False)
    collector = VolumeCollector(folder)
    registry.register(collector)
    if not listen:
        collector.must_serve = True
        sys.stdout.write(generate_latest(registry).decode())
        return
    host, port = _address(listen)
    server, _ = start_http_server(port, addr=host, registry=registry)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"mpifs: serving http://{shown}:{server.server_port}/metrics", err=True)
    try:
        with term_as_interrupt():
            threading.Event().wait()
    except KeyboardInterrupt:
        server.shutdown()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
        raise typer.BadParameter(f"--listen {text}: give PORT or HOST:PORT")
    return host or "127.0.0.1", int(port)
