"""Manual pages, made from the commands' own help: mpifs(1), and mpifs-COMMAND(1) for each command.

Made when the package is built (build_backend.py) and installed below share/man, where `man` looks
for what belongs to a program in PATH.

Run as: python -m mpifs.cli.manual FOLDER
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from pathlib import Path
from typing import Any

from mpifs import __version__

_EXIT = (
    ("0", "Done."),
    ("1", "Failed; one line on standard error says what to do."),
    ("2", "The command line is wrong."),
)
_FILES = (
    ("STORE/run/mpifs.log", "The log of a volume's ranks."),
    ("STORE/run/control.sock", "Where commands ask the rank that serves the volume."),
)
_ENVIRONMENT = (
    ("MPIFS_MPI", "The MPI that starts the ranks: openmpi, mpich or the path of an mpiexec."),
    ("MPIFS_DEBUG", "Shows where a command failed that failed by a defect of mpifs."),
)


def write_pages(folder: Path) -> list[Path]:
    """Writes all pages into a folder, which is made; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        path = folder / f"{name}.1"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    import typer

    from mpifs.cli import app

    app.register_all()
    group: Any = typer.main.get_command(app.app)
    context = group.context_class(group, info_name="mpifs")
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    found = {"mpifs": _main_page(group, context, commands)}
    for name, command in commands.items():
        found[f"mpifs-{name}"] = _page(command, context, name)
    return found


def _main_page(group: Any, context: Any, commands: dict[str, Any]) -> str:
    out = [_title("mpifs"), _section("NAME"), _text("mpifs - " + group.help)]
    out += [_section("SYNOPSIS"), ".B mpifs\n.I COMMAND\n[\\fIARGUMENT\\fR]...\n"]
    out += [_section("COMMANDS")]
    out += [_item(f"mpifs-{n}(1)", c.get_short_help_str(200)) for n, c in commands.items()]
    out += [_section("OPTIONS"), *_options(group, context)]
    for title, rows in (("EXIT STATUS", _EXIT), ("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        out += [_section(title), *(_item(*row) for row in rows)]
    out += [_section("SEE ALSO"), _text(", ".join(f"mpifs-{name}(1)" for name in commands))]
    return "".join(out)


def _page(command: Any, parent: Any, name: str) -> str:
    context = command.context_class(command, info_name=name, parent=parent)
    pieces = (_printable(piece) for piece in command.collect_usage_pieces(context))
    words = re.sub(r"\{([^{}]*)\}", r"\1", " ".join(pieces)).replace("…...", "…")
    full = f"mpifs-{name}"
    inner = getattr(command, "commands", {})
    out = [
        _title(full),
        _section("NAME"),
        _text(f"{full} - {command.get_short_help_str(200)}"),
        _section("SYNOPSIS"),
        f".B mpifs {_escape(name)}\n{_escape(words)}\n",
        _section("DESCRIPTION"),
        _text(command.help or ""),
    ]
    arguments = [p for p in command.get_params(context) if p.param_type_name == "argument"]
    records = [record for p in arguments if (record := p.get_help_record(context))]
    if records:
        out += [_section("ARGUMENTS")]
        out += [_item(re.sub(r" <[^>]*>$", "", term), text) for term, text in records]
    if inner:
        out += [_section("COMMANDS")]
        out += [_item(n, c.get_short_help_str(200)) for n, c in inner.items()]
    out += [_section("OPTIONS"), *_options(command, context)]
    if name not in ("fsck", "run"):  # theirs stand in their description.
        out += [_section("EXIT STATUS"), *(_item(*row) for row in _EXIT)]
    out += [_section("SEE ALSO"), _text("mpifs(1)")]
    return "".join(out)


def _options(command: Any, context: Any) -> list[str]:
    options = [p for p in command.get_params(context) if p.param_type_name == "option"]
    return [_item(*record) for p in options if (record := p.get_help_record(context))]


def _title(name: str) -> str:
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))  # builds that can be repeated.
    day = datetime.datetime.fromtimestamp(stamp, datetime.timezone.utc).date() if stamp else None
    shown = day or datetime.datetime.now(datetime.timezone.utc).date()
    return f'.TH "{_escape(name.upper())}" "1" "{shown}" "mpifs {__version__}" "mpifs"\n'


def _section(title: str) -> str:
    return f'.SH "{title}"\n'


def _item(term: str, text: str) -> str:
    return f".TP\n.B {_escape(_printable(term))}\n{_text(text)}"


def _text(text: str) -> str:
    """Paragraphs; their lines are filled by man."""
    paragraphs = re.split(r"\n\s*\n", _printable(text.strip()))
    lines = [" ".join(_escape(" ".join(one.split())).splitlines()) for one in paragraphs]
    return "\n.sp\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Without the marks of rich and of click."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text.replace("\b", ""))


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
