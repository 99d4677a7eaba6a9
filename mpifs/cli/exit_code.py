"""The exit code of a program that a command has run."""

from __future__ import annotations


class ProgramExitCode(int):
    """Handed on as it is: 130, too, which from a command itself means that it was interrupted."""
