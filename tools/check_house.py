"""Checks of the house that ruff has no rule for: length of files and functions, names of files."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
FORBIDDEN_NAMES = ("util", "utils", "helper", "helpers", "common", "misc", "manager", "managers")


def findings(path: Path) -> Iterator[str]:
    """Sentences of what is wrong with a file."""
    text = path.read_text(encoding="utf-8")
    is_test = path.parts[0] == "tests"  # tables of cases may be long
    lines = text.count("\n")
    if not is_test and lines > FILE_LINES_MAX:
        yield f"{path}: {lines} lines; split it at a noun ({FILE_LINES_MAX} at most)"
    for word in (*path.parent.parts, *path.stem.split("_")):
        if word in FORBIDDEN_NAMES:
            yield f"{path}: '{word}' hides that the room has no purpose; name what it is"
    tree = ast.parse(text, str(path))
    if path.stat().st_size and not ast.get_docstring(tree) and path.name != "__init__.py":
        yield f"{path}: no docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if not is_test and length > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines; 60 at most"


def main() -> int:
    """Checks everything that is ours; the exit code."""
    os.chdir(Path(__file__).resolve().parent.parent)
    found = 0
    for folder in ("mpifs", "tests", "tools"):
        for path in sorted(Path(folder).rglob("*.py")):
            for sentence in findings(path):
                print(sentence)
                found += 1
    print(f"check_house: {found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
