"""tools/fsck.mpifs: the letters of fsck(8) become words of `mpifs fsck`; a fake mpifs tells them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fsck.mpifs"


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """The tool in a checkout whose mpifs prints its words, one a line, and ends with 4."""
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake = tmp_path / ".venv" / "bin" / "mpifs"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 4\n')
    fake.chmod(0o755)
    return Path(shutil.copy(TOOL, tmp_path / "tools"))


def run(tool: Path, *words: str) -> tuple[int, list[str]]:
    done = subprocess.run([str(tool), *words], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/v"], ["--", "/v"]),
        (["-n", "/v"], ["--", "/v"]),
        (["-a", "/v"], ["--repair", "--", "/v"]),
        (["-p", "/v"], ["--repair", "--", "/v"]),
        (["/v", "-y"], ["--repair", "--", "/v"]),
        (["-fy", "/v"], ["--repair", "--", "/v"]),
        (["-fvr", "/v"], ["--", "/v"]),
        (["-t", "mpifs", "-p", "/v"], ["--repair", "--", "/v"]),
        (["-tmpifs", "/v"], ["--", "/v"]),
        (["-C", "/v"], ["--", "/v"]),
        (["-C0", "/v"], ["--", "/v"]),
        (["-C-3", "/v"], ["--", "/v"]),
        (["-C3", "/v"], ["--progress-fd", "3", "--", "/v"]),
        (["-C", "5", "-p", "/v"], ["--repair", "--progress-fd", "5", "--", "/v"]),
        (["-n", "--", "-odd name"], ["--", "-odd name"]),
        (["-pC4", "/a b"], ["--repair", "--progress-fd", "4", "--", "/a b"]),
    ],
)
def test_letters(tool: Path, words: list[str], expected: list[str]) -> None:
    assert run(tool, *words) == (4, ["fsck", *expected])


@pytest.mark.parametrize(
    "words",
    [[], ["-x", "/v"], ["-n", "-p", "/v"], ["/v", "/w"], ["-C3x", "/v"], ["-t"], ["-p"]],
)
def test_usage_errors(tool: Path, words: list[str]) -> None:
    assert run(tool, *words) == (16, [])


def test_version(tool: Path) -> None:
    assert run(tool, "-V") == (4, ["--version"])
