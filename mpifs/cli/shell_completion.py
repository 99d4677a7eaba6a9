"""Completion and history at the prompt of `mpifs shell`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from mpifs.cli.shell_commands import HELP, ShellCommands

_OPTIONS = {
    "send": ("--to", "--from", "--into"),
    "request": ("--from", "--to", "--into"),
    "broadcast": ("--into",),
    "scatter": ("--chunk-size",),
    "gather": ("--as",),
    "collect": ("--from", "--into"),
}


def history() -> History:
    """In a file of the user's, or in memory where there can be none."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = os.path.join(state, "mpifs", "history")
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return FileHistory(path)
    return InMemoryHistory()


class ShellCompleter(Completer):
    """Commands, their options, and the names that the rank in question has."""

    def __init__(self, commands: ShellCommands) -> None:
        self._commands = commands

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """See Completer; in a thread of its own, because a rank may be slow."""
        words = document.text_before_cursor.split(" ")
        word = words[-1]
        for text in self._texts(words, word):
            if text.startswith(word):
                yield Completion(text, start_position=-len(word))

    def _texts(self, words: list[str], word: str) -> Iterator[str]:
        name = words[0]
        if len(words) == 1 or name == "help":
            yield from HELP
        elif word.startswith("-"):
            yield from _OPTIONS.get(name, ())
        elif name == "ls":
            rank, colon, path = word.partition(":")
            if colon and rank.isdigit():
                yield from (f"{rank}:{text}" for text in self._names(int(rank), path))
        elif name in _OPTIONS and not words[-2].startswith("--"):
            yield from self._names(self._rank_of(words), word)

    @staticmethod
    def _rank_of(words: list[str]) -> int:
        """Whose files are meant: those of --from, else of the master."""
        for option, value in pairwise(words):
            if option == "--from" and value.isdigit():
                return int(value)
        return 0

    def _names(self, rank: int, path: str) -> Iterator[str]:
        folder = path.rpartition("/")[0]
        for name, is_folder in self._commands.names(rank, os.fsencode(folder)):
            yield f"{name}/" if is_folder else name
