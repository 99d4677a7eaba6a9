"""The command `mpifs`: finds the subcommand, turns errors into one line and an exit code.

Exit codes: 0 done; 1 failed; 2 usage; fsck has those of fsck(8).  Command modules import at their
top only what `--help` needs, so that it is quick; MPI, LMDB and FUSE come when a command runs.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple, cast

import typer

from mpifs import __version__
from mpifs.cli.exit_code import ProgramExitCode

COMMANDS = (
    "mkfs", "mount", "umount", "run", "status", "fsck", "scrub", "add", "drain", "replace",
    "rebalance", "layout", "metrics", "profile", "put", "get", "stage-in", "stage-out", "ls", "cat",
    "rm", "send", "request", "broadcast", "collect", "scatter", "gather", "shell", "bench",
    "doctor",
)  # fmt: skip
_INTERRUPTED = 130


class ExitCodes(NamedTuple):
    """What a command that did not do its work ends with."""

    failed: int = 1
    usage: int = 2
    interrupted: int = 1


_EXIT_CODES = {
    "fsck": ExitCodes(failed=8, usage=16, interrupted=32),  # as fsck(8) says.
    "run": ExitCodes(interrupted=130),  # as a shell says it of the command.
}
# typer carries a click of its own, or uses the real one; this is the right one's UsageError.
_UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="mpifs",
    help="One mounted, checksummed file system out of the local disks of an MPI job.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        typer.echo(f"mpifs {__version__}")
        raise typer.Exit(0)


def _register(names: Sequence[str]) -> None:
    """Adds the commands: each module has a function of its own name; of `x-y` both are x_y."""
    for name in names:
        python_name = name.replace("-", "_")
        module = importlib.import_module(f"mpifs.cli.{python_name}")
        app.command(name)(getattr(module, python_name))


def register_all() -> None:
    """Adds every command, for who wants to look at all."""
    _register(COMMANDS)


def run(arguments: list[str]) -> int:
    """Runs one command and returns the exit code; never raises."""
    # The command's own module is enough, unless the user wants to see them all.
    wanted = next((word for word in arguments if not word.startswith("-")), "")
    _register([wanted] if wanted in COMMANDS else COMMANDS)
    codes = _EXIT_CODES.get(wanted, ExitCodes())
    try:
        result = app(args=arguments, prog_name="mpifs", standalone_mode=False)
        if isinstance(result, ProgramExitCode):
            return int(result)
        if result == _INTERRUPTED:  # what some versions of typer make of Ctrl-C.
            return _fail("interrupted", codes.interrupted)
        return result if isinstance(result, int) else 0
    except _UsageError as error:
        return _usage(error, codes.usage)
    except typer.Exit as end:
        if end.exit_code == _INTERRUPTED:
            return _fail("interrupted", codes.interrupted)
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", codes.interrupted)
    except BrokenPipeError:
        # The reader (head, less) has enough; keep Python's exit from complaining again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return codes.failed
    except OSError as error:
        return _fail(_sentence(error), codes.failed)
    except Exception:  # noqa: BLE001 - the last stop: a defect of mpifs, shown only on demand.
        if os.environ.get("MPIFS_DEBUG"):
            traceback.print_exc()
        kind, value, _ = sys.exc_info()
        name = kind.__name__ if kind else "error"
        sentence = f"internal error ({name}: {value}); MPIFS_DEBUG=1 shows where"
        return _fail(sentence, codes.failed)


def _sentence(error: OSError) -> str:
    from mpifs.core.errors import MpifsError

    if isinstance(error, MpifsError) or error.filename is None:
        return str(error) if isinstance(error, MpifsError) else str(error.strerror or error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _fail(sentence: str, code: int) -> int:
    text = f"mpifs: {sentence}".replace("\n", " ")
    sys.stderr.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
    return code


def _usage(error: Exception, code: int) -> int:
    message = getattr(error, "format_message", lambda: str(error))()
    if not message:  # no arguments at all: the help has been shown.
        return code
    sentence = " ".join(str(message).split())
    sys.stderr.write(f"mpifs: {sentence} (see: mpifs --help)\n")
    return code
