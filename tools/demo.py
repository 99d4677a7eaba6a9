"""`make run`: the main job of mpifs on the terminal.

Mounts a volume of four workers in a temporary place, copies a real tree in, looks at it, unmounts,
mounts again and compares all bytes.  Leaves the volume, and no process and no mount.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MPIFS = [sys.executable, "-m", "mpifs"]
ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def call(*words: str) -> None:
    """Shows a command and runs it; raises CalledProcessError when it fails."""
    print("$ " + " ".join(words), flush=True)
    command = [*MPIFS, *words[1:]] if words[0] == "mpifs" else list(words)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def files_of(tree: Path) -> list[str]:
    """Relative names of all regular files and symlinks below `tree`."""
    return sorted(
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_symlink() or path.is_file()
    )


def compare(left: Path, right: Path) -> int:
    """Compares two trees byte by byte; the number of files.  Raises SystemExit on a difference."""
    names = files_of(left)
    if names != files_of(right):
        raise SystemExit("the trees have different names")
    for name in names:
        one, other = left / name, right / name
        if one.is_symlink():
            same = os.readlink(one) == os.readlink(other)
        else:
            same = filecmp.cmp(one, other, shallow=False)
        if not same:
            raise SystemExit(f"{name} differs")
    return len(names)


def verify_chunks(mount: Path) -> int:
    """Reads every file back from the stores (each chunk is verified on the way); chunks read."""
    chunks = 0
    paths = [str(path) for path in mount.rglob("*") if path.is_file() and not path.is_symlink()]
    for start in range(0, len(paths), 500):
        output = subprocess.run(
            [*MPIFS, "layout", "--json", "--", *paths[start : start + 500]],
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        ).stdout
        chunks += sum(len(row["chunks"]) for row in json.loads(output))
    for path in paths:
        with open(path, "rb") as file:
            while file.read(1 << 20):
                pass
    return chunks


def show(place: Path) -> None:
    """The demonstration; `place` gets the volume and the mount point."""
    volume, mount, source = place / "volume", place / "mnt", ROOT / "mpifs"
    mount.mkdir()
    say("mount a volume of four workers; it is made on first use")
    call("mpifs", "mount", str(volume), str(mount), "-w", "4")
    say(f"copy {source} in, and a file of 8 MiB")
    call("cp", "-a", str(source), str(mount / "tree"))
    (mount / "eight").write_bytes(os.urandom(8 << 20))
    shutil.copy(mount / "eight", place / "eight")
    call("ls", "-l", str(mount), str(mount / "tree"))
    call("cat", str(mount / "tree" / "__init__.py"))
    say("where the chunks of a file lie")
    call("mpifs", "layout", str(mount / "eight"))
    say("unmount, mount again, compare all bytes")
    call("mpifs", "umount", str(mount))
    call("mpifs", "mount", str(volume), str(mount))
    count = compare(source, mount / "tree")
    if not filecmp.cmp(place / "eight", mount / "eight", shallow=False):
        raise SystemExit("the file of 8 MiB differs")
    print(f"{count + 1} files compared: all bytes are the same")
    print(f"{verify_chunks(mount)} chunks read back from the stores, all checksums right")
    call("mpifs", "status", str(mount))
    call("mpifs", "umount", str(mount))
    (place / "eight").unlink()
    say(f"the volume is at {volume}; mount it with: {MPIFS[0]} -m mpifs mount {volume} {mount}")


def main() -> int:
    """Runs the demonstration; whatever happens, nothing stays mounted or running."""
    place = Path(tempfile.mkdtemp(prefix="mpifs-demo-"))
    try:
        show(place)
        return 0
    except subprocess.CalledProcessError as error:
        print(f"demo: {' '.join(map(str, error.cmd))} failed", file=sys.stderr)
        return 1
    finally:
        if os.path.ismount(place / "mnt"):
            subprocess.run([*MPIFS, "umount", str(place / "mnt")], check=False)


if __name__ == "__main__":
    sys.exit(main())
