"""Manual pages and shell completion: made from the commands, seen by `man` and by a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpifs.cli.app import COMMANDS
from mpifs.cli.manual import write_pages

# What a build does not have, and `mpifs --help` must not load.
_MAKE = """
import sys
for name in ("mpi4py", "lmdb", "mfusepy", "fuse", "xxhash", "blake3", "msgspec", "prometheus_client"):
    sys.modules[name] = None
from pathlib import Path
from mpifs.cli.manual import write_pages
write_pages(Path(sys.argv[1]))
"""


def test_pages_need_nothing_but_typer(tmp_path: Path) -> None:
    """One page for each command and one for all, each option in it; the same at each build."""
    subprocess.run([sys.executable, "-c", _MAKE, str(tmp_path / "a")], check=True, timeout=60)
    names = {"mpifs.1", *(f"mpifs-{name}.1" for name in COMMANDS)}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    page = (tmp_path / "a" / "mpifs-run.1").read_text(encoding="utf-8")
    for words in (
        "\\-\\-scratch",
        "\\-w, \\-\\-workers",
        ".B mpifs run",
        "STORE MNT \\-\\- COMMAND",
    ):
        assert words in page, words
    write_pages(tmp_path / "b")
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.skipif(shutil.which("man") is None, reason="man-db is not installed")
def test_man_shows_them(tmp_path: Path) -> None:
    """`man` finds the pages beside the program's folder and formats them without a warning."""
    write_pages(tmp_path / "share" / "man" / "man1")
    program = tmp_path / "bin"
    program.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("MANPATH", "MANOPT")}
    environment |= {"PATH": f"{program}:{environment['PATH']}", "MANWIDTH": "100"}
    environment["LC_ALL"] = "C.UTF-8"
    for name in ("mpifs", "mpifs-run", "mpifs-status"):
        command = ["man", "--warnings", "-P", "cat", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if "has been minimized" in done.stdout + done.stderr:
            pytest.skip("this system's man shows no pages (unminimize)")
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        assert "SYNOPSIS" in done.stdout
        assert "mpifs" in done.stdout


def _complete(*words: str) -> list[str]:
    """What bash is offered for the last word, by the script that mpifs gives it."""
    bin_folder = Path(sys.executable).parent
    script = f"""
        eval "$(_MPIFS_COMPLETE=source_bash {bin_folder}/mpifs)"
        complete -p mpifs
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words) - 1}
        PATH={bin_folder}:$PATH
        _mpifs_completion mpifs
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    head, *found = done.stdout.splitlines()
    assert "default" in head  # file names, where mpifs has nothing to say.
    return [line.split("\t")[0] for line in found if line]


def test_completion() -> None:
    """Commands, options, and files by the shell itself."""
    assert set(COMMANDS) <= set(_complete("mpifs", ""))
    assert _complete("mpifs", "umo") == ["umount"]
    assert {"--scratch", "--workers"} <= set(_complete("mpifs", "run", "--"))
    assert _complete("mpifs", "umount", "/tm") == []
