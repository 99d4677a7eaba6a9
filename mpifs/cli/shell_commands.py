"""What can be typed at the prompt of `mpifs shell`, and what it does."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from mpifs.cli.progress import human_size, printable
from mpifs.cli.transfers import follow, parse_ranks, signals_noted, tell_errors
from mpifs.core.errors import MpifsError
from mpifs.core.transfer_messages import FOLDER, LINK

if TYPE_CHECKING:
    from mpifs.job.control import ControlClient
    from mpifs.job.transfer_access import WhichRanks

HELP = {
    "ranks": "ranks                                   who takes part, where, and whether it lives",
    "send": "send FILE… --to RANK,… [--from RANK] [--into FOLDER]  from the master, or RANK",
    "request": "request FILE… --from RANK [--to RANK,…] [--into FOLDER]  to the master, or RANK",
    "broadcast": "broadcast FILE… [--into FOLDER]         from the master to all, along a tree",
    "scatter": "scatter FILE [--chunk-size 1MiB]        deals its chunks out to the workers",
    "gather": "gather FILE [--as NAME]                 puts it together again on the master",
    "collect": "collect PATTERN [--from RANK,…] [--into FOLDER]  from all to rank-K/… here",
    "ls": "ls RANK:[FOLDER]                        what a rank has; 0 is the master",
    "status": "status                                  the job, and what this shell has done",
    "help": "help [COMMAND]                          this",
    "quit": "quit                                    ends the shell, and its ranks",
}
_KINDS = {FOLDER: "/", LINK: "@"}


class _UsageError(Exception):
    """A line that is no command."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def _parsers() -> dict[str, _Parser]:
    made = {name: _Parser(prog=name, add_help=False, allow_abbrev=False) for name in HELP}
    for name in ("send", "request", "broadcast"):
        made[name].add_argument("files", nargs="+")
    for name in ("send", "request", "broadcast", "collect"):
        made[name].add_argument("--into", default="")
    made["send"].add_argument("--to", required=True)
    made["send"].add_argument("--from", dest="source", type=int, default=0)
    made["request"].add_argument("--from", dest="source", type=int, required=True)
    made["request"].add_argument("--to", default="0")
    made["scatter"].add_argument("file")
    made["scatter"].add_argument("--chunk-size", default="1MiB")
    made["gather"].add_argument("file")
    made["gather"].add_argument("--as", dest="to", default="")
    made["collect"].add_argument("pattern")
    made["collect"].add_argument("--from", dest="source", default="")
    made["ls"].add_argument("place")
    made["help"].add_argument("command", nargs="?", default="")
    return made


class ShellCommands:
    """Runs lines; `client` asks rank 0.  Used by one thread, but for `names`."""

    def __init__(self, client: ControlClient, ranks: WhichRanks) -> None:
        self._client = client
        self._ranks = ranks
        self._parsers = _parsers()
        self._begun_s = time.monotonic()
        self._done = self._part = self._failed = 0
        self._files = self._bytes = 0
        self._noted: list[int] = []

    @property
    def exit_code(self) -> int:
        """0 all commands done, 1 none, 2 a part."""
        if not self._failed and not self._part:
            return 0
        return 2 if self._done or self._part else 1

    def welcome(self) -> None:
        """What the shell works on."""
        found = self._client.call("transfer.ranks")
        count = len(found["ranks"]) - 1
        words = "1 worker" if count == 1 else f"{count} workers"
        print(f"master: {words}, files in {found['local']}/rank-K; help tells the commands")
        sys.stdout.flush()

    def run(self, line: str) -> bool:
        """Does one line; False at the end."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            self._complain(f"{error}")
            return True
        if not words:
            return True
        name = "quit" if words[0] in ("exit", "bye") else words[0]
        if name not in self._parsers:
            self._complain(f"{words[0]}: no such command; help tells them all")
            return True
        try:
            found = self._parsers[name].parse_args(words[1:])
            if name == "quit":
                return False
            action: Callable[[argparse.Namespace], None] = getattr(self, f"_do_{name}")
            with signals_noted() as self._noted:
                action(found)
            if ends := [number for number in self._noted if number != signal.SIGINT]:
                raise SystemExit(128 + ends[0])
        except (_UsageError, typer.BadParameter) as error:
            self._complain(f"{error}; write: {' '.join(HELP[name].split())}")
        except MpifsError as error:
            self._complain(str(error))
            if not self._is_alive():
                return False
        sys.stdout.flush()
        return True

    def say_goodbye(self) -> None:
        """Ends the workers that are this shell's own, each with a line."""
        if not self._ranks.are_own:
            print(f"master: the workers of {self._ranks.mount} go on until it is unmounted")
            return
        try:
            for line in self._client.call("transfer.dismiss")["lines"]:
                print(line)
        except MpifsError as error:
            self._complain(str(error))
        sys.stdout.flush()

    def names(self, rank: int, folder: bytes) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of what a rank has there; [] when it does not answer.
        Any thread."""
        try:
            page = self._client.call("transfer.list", rank=rank, path=folder)
        except OSError:
            return []
        return [(os.fsdecode(path), kind == FOLDER) for path, kind, *_ in page["entries"]]

    def _is_alive(self) -> bool:
        try:
            self._client.call("transfer.ranks")
        except OSError:
            return False
        return True

    def _complain(self, sentence: str) -> None:
        self._failed += 1
        sys.stdout.flush()
        typer.echo(f"mpifs: {sentence}", err=True)

    # Transfers.

    def _follow(self, title: str, **request: Any) -> None:
        outcome = follow(self._client, request, self._noted, is_quiet=False, title=title)
        sys.stdout.flush()
        tell_errors(title, outcome)
        code = outcome.exit_code
        self._done += code == 0
        self._part += code == 2
        self._failed += code == 1
        self._files += sum(row["files"] for row in outcome.rows)
        self._bytes += sum(row["sent_bytes"] for row in outcome.rows)

    def _do_send(self, found: argparse.Namespace, title: str = "send") -> None:
        targets = parse_ranks(found.to)
        if found.source in targets:
            raise _UsageError(f"rank {found.source} has them already; leave it out of --to")
        names = [os.fsencode(name) for name in found.files]
        self._follow(
            title, command="send", names=names, source=found.source, targets=targets,
            into=os.fsencode(found.into),
        )  # fmt: skip

    def _do_request(self, found: argparse.Namespace) -> None:
        self._do_send(found, "request")

    def _do_broadcast(self, found: argparse.Namespace) -> None:
        names = [os.fsencode(name) for name in found.files]
        self._follow("broadcast", command="broadcast", names=names, into=os.fsencode(found.into))

    def _do_collect(self, found: argparse.Namespace) -> None:
        targets = parse_ranks(found.source, "--from") if found.source else []
        self._follow(
            "collect", command="collect", names=[os.fsencode(found.pattern)], targets=targets,
            into=os.fsencode(found.into),
        )  # fmt: skip

    def _do_scatter(self, found: argparse.Namespace) -> None:
        from mpifs.job.sizes import parse_size

        size = parse_size(found.chunk_size)
        self._follow(
            "scatter", command="scatter", names=[os.fsencode(found.file)], chunk_bytes=size
        )

    def _do_gather(self, found: argparse.Namespace) -> None:
        into = os.fsencode(found.to)
        self._follow("gather", command="gather", names=[os.fsencode(found.file)], into=into)

    # Looking.

    def _do_ranks(self, found: argparse.Namespace) -> None:
        for row in self._client.call("transfer.ranks")["ranks"]:
            free = "-" if row["free"] is None else f"{human_size(row['free'])} free"
            who = "master" if not row["rank"] else f"worker {row['rank']}"
            place = f"host {row['host']}, process {row['pid']}, {row['folder']}, {free}"
            state = "serving" if not row["rank"] else row["state"]
            print(f"{who}: {state}, {place}")

    def _do_ls(self, found: argparse.Namespace) -> None:
        rank, colon, path = found.place.partition(":")
        if not colon or not rank.isdigit():
            raise _UsageError(f"{found.place}: name a rank")
        after, is_end = b"", False
        while not is_end and not self._noted:
            page = self._client.call(
                "transfer.list", rank=int(rank), path=os.fsencode(path), after=after
            )
            for full, kind, size, mode, mtime_ns, link in page["entries"]:
                after = full.rpartition(b"/")[2]
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(mtime_ns // 10**9))
                text = printable(after) + _KINDS.get(kind, "")
                text += f" -> {printable(link)}" if link else ""
                print(f"{mode:04o} {size:>14,} {when}  {text}")
            is_end = page["is_end"] or not page["entries"]

    def _do_status(self, found: argparse.Namespace) -> None:
        answer = self._client.call("transfer.ranks")
        workers = [row for row in answer["ranks"] if row["rank"]]
        good = sum(row["state"] == "serving" for row in workers)
        whose = f"mounted at {self._ranks.mount}" if self._ranks.mount else "of this shell"
        print(f"job      {whose}, {good} of {len(workers)} workers serving")
        print(f"files    {answer['local']}/rank-K")
        for row in workers:
            if row["state"] != "serving":
                print(f"worker   {row['rank']}: {row['state']}")
        seconds = time.monotonic() - self._begun_s
        commands = f"{self._done} commands done, {self._part} in part, {self._failed} failed"
        print(f"shell    {commands} in {seconds:.0f} s")
        print(f"moved    {self._files} files, {human_size(self._bytes)} travelled")

    def _do_help(self, found: argparse.Namespace) -> None:
        if found.command and found.command not in HELP:
            raise _UsageError(f"{found.command}: no such command")
        for name, line in HELP.items():
            if found.command in ("", name):
                print(line)
