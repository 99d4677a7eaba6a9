"""`mpifs shell`: a prompt at which files are moved between the ranks' local disks.

On a terminal with history and completion; from a script on standard input line by line, each
command shown before it is done.  Ctrl-C ends the command under way (the next one goes on where it
stopped), Ctrl-D or `quit` the shell.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpifs.cli import transfers as t

if TYPE_CHECKING:
    from mpifs.cli.shell_commands import ShellCommands
    from mpifs.job.transfer_access import WhichRanks

PROMPT = "mpifs> "


def shell(
    mount: t.Mount = None,
    workers: t.Workers = None,
    local: t.Local = None,
    hostfile: t.HostFile = None,
    host: t.Host = None,
    launch_agent: t.Agent = "",
    mpi: t.Mpi = "auto",
) -> int:
    """Move files between the ranks' local disks at a prompt, or by a script on standard input.

    Type help there.  Exit code: 0 all commands done, 1 none, 2 a part.
    """
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi)
    with _ended_by_signals():
        return _serve(ranks)


def _serve(ranks: WhichRanks) -> int:
    from mpifs.cli.shell_commands import ShellCommands
    from mpifs.job.transfer_access import reaching

    with reaching(ranks) as client:
        commands = ShellCommands(client, ranks)
        commands.welcome()
        for line in _typed(commands) if sys.stdin.isatty() else _scripted():
            if not commands.run(line):
                break
        commands.say_goodbye()
    if ranks.are_own:
        print("master: all ranks have ended", flush=True)
    return commands.exit_code


def _scripted() -> Iterator[str]:
    """The lines of standard input."""
    for line in sys.stdin:
        text = line.strip()
        if text and not text.startswith("#"):
            print(PROMPT + text, flush=True)
            yield text


def _typed(commands: ShellCommands) -> Iterator[str]:
    """What the user types; Ctrl-C drops a line, Ctrl-D ends."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import ThreadedCompleter

    from mpifs.cli.shell_completion import ShellCompleter, history

    session: PromptSession[str] = PromptSession(
        history=history(),
        completer=ThreadedCompleter(ShellCompleter(commands)),
        complete_while_typing=False,
    )
    while True:
        try:
            text = session.prompt(PROMPT).strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text:
            yield text


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the shell and what it has started; Ctrl-C does not."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, end)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
