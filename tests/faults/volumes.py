"""Volumes to be damaged: made once by a real mount, copied for each test, read, verified."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.survey import Entry, Survey, survey_folder
from tests.mount.harness import TOKEN, Volume, mpifs
from tools.planting import index_files, mixtures
from tools.planting.kinds import KINDS, plant
from tools.planting.planted import Document, Planted, complaints
from tools.planting.volume import RestingVolume

__all__ = ["KINDS", "Sample", "index_files", "mixtures"]

CHUNK = 64 * 1024
WORKERS = 3
ROOT_FOLDER = Path(__file__).resolve().parents[2]
LOST_FOUND = b"lost+found"
SIZES = (0, 1, 100, 1500, 5000, 30_000, 40_000, CHUNK - 1, CHUNK, CHUNK + 1, 200_000, 400_001)


def fill(mnt: Path, seed: int = 7) -> None:
    """A tree with something of everything."""
    chance = random.Random(seed)
    folders = [mnt, *(mnt / name for name in ("a", "a/b", "a/b/c", "d", "d/e", "f", "g", "h"))]
    small = [mnt / "p", *(mnt / "p" / f"{number}" for number in range(9))]
    deep = [mnt / name for name in ("q", "q/r", "q/r/s", "u", "u/v")]
    for folder in [*folders[1:], *small, *deep]:
        folder.mkdir()
        folder.chmod(0o751)
    for folder in [*small[1:7], *deep]:
        (folder / "one").write_bytes(chance.randbytes(300))
    made: list[Path] = []
    for number in range(84):
        path = chance.choice(folders) / f"file-{number}"
        path.write_bytes(chance.randbytes(SIZES[number % len(SIZES)]))
        path.chmod(chance.choice((0o600, 0o644, 0o755)))
        made.append(path)
    for path in made[1::3]:  # leaves gaps between the numbers of inodes.
        path.unlink()
    kept = [path for path in made if path.exists()]
    for path in chance.sample(kept, 12):  # generations that have been replaced.
        with open(path, "r+b") as file:
            file.write(chance.randbytes(min(path.stat().st_size, 3000) or 9))
    for number, path in enumerate(chance.sample(kept, 4)):
        os.link(path, chance.choice(folders) / f"link-{number}")
    for number, path in enumerate([*chance.sample(kept, 4), folders[5], folders[7]]):
        os.setxattr(path, "user.one", b"\0value %d" % number)
        os.setxattr(path, "user.two", chance.randbytes(100))
    for number in range(4):
        os.symlink(f"../nowhere/{number}", chance.choice(folders) / f"symlink-{number}")
    os.mkfifo(mnt / "fifo")
    for number in range(4):
        with open(mnt / "g" / f"sparse-{number}", "wb") as file:
            for chunk in chance.sample(range(12), 4):
                file.seek(chunk * CHUNK + chance.randrange(2) * 100)
                file.write(chance.randbytes(chance.choice((50, CHUNK))))
            file.truncate(13 * CHUNK + 5)
    (mnt / os.fsdecode(b"odd \xff\xfe\n name")).write_bytes(chance.randbytes(70_000))
    for number, path in enumerate(sorted(mnt.rglob("*"))):
        os.utime(path, ns=(1, 10**18 + number), follow_symlinks=False)


@dataclass
class Template:
    """A sound volume at rest and what it shows."""

    store: Path
    truth: Survey


def make_template(root: Path, name: str, replicas: int) -> Template:
    """By a real mount, in two sessions, so that there are replaced generations and a copy of the
    index of the last one."""
    mkfs = ("--chunk-size", str(CHUNK), "--replicas", str(replicas))
    volume = Volume(root / name, root, workers=WORKERS, mkfs=mkfs)
    volume.make().mount()
    fill(volume.mnt)
    volume.remount()
    truth = survey_folder(volume.mnt)
    volume.umount()
    assert not [path for path, entry in truth.items() if entry.error]
    return Template(volume.store, truth)


class Sample:
    """A copy of a template that may be damaged; `mended` says what fsck left."""

    def __init__(self, template: Template, folder: Path, root: Path) -> None:
        self.template, self.folder, self.root = template, folder, root
        self.store = folder / "store"
        folder.mkdir()
        copy_volume(template.store, self.store)
        self.planted: list[Planted] = []
        self.before = RestingVolume(str(self.store))

    @property
    def truth(self) -> Survey:
        """What the volume showed before."""
        return self.template.truth

    def plant(self, names: list[str], seed: int, *, skips: bool = False) -> None:
        """Damages it, and prints what repeats that."""
        print(f"seed {seed}: {' '.join(names)}")
        self.before = RestingVolume(str(self.store), seed)
        self.planted = plant(self.before, names, skips=skips)
        for planted in self.planted:
            print(f"  {planted.document()}")

    def spare(self) -> Sample:
        """A copy of it as it is now."""
        other = object.__new__(Sample)
        other.__dict__.update(self.__dict__)
        other.folder = Path(tempfile.mkdtemp(prefix="spare-", dir=self.folder))
        other.store = other.folder / "store"
        copy_volume(self.store, other.store)
        return other

    def fsck(self, *words: str, fault: str = "", codes: Iterable[int] = (0, 1, 4)) -> Document:
        """`mpifs fsck --json`: the document, with the exit code as `code`."""
        env = {"MPIFS_FAULT": fault} if fault else None
        done = mpifs(self.root, "fsck", self.store, "--json", *words, check=False, env=env)
        stderr = done.stderr.decode(errors="replace")
        assert "Traceback" not in stderr, stderr
        assert done.returncode in codes, (done.returncode, stderr[-2000:], self._log())
        document: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return {**document, "code": done.returncode, "stderr": stderr}

    def _log(self) -> str:
        try:
            return (self.store / "run/mpifs.log").read_text(errors="replace")[-3000:]
        except OSError:
            return "(no log)"

    # What a verify run said.

    def check_findings(self, document: Document) -> list[str]:
        """Complaints about a verify run of what was planted."""
        gone = frozenset(ino for fault in self.planted for ino in fault.gone)
        return complaints(
            self.planted,
            document["findings"],
            self.before.lost(gone) - self.before.unsure,
            self.before.doubtful | self.before.unsure,
        )

    # What can be read.

    def read(self, *, by_mount: bool = False) -> Survey:
        """Everything; of a volume that refuses to be served the root alone, with its error."""
        known = sorted(self.truth)
        if by_mount:
            return self._read_mounted(known)
        output = self.folder / f"survey-{time.monotonic_ns()}"
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.survey", str(self.store), str(output)],
            input=pickle.dumps(known),
            capture_output=True,
            cwd=ROOT_FOLDER,
            timeout=100,
            env={**os.environ, TOKEN: str(self.root)},
        )
        stderr = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"reading died ({done.returncode}): {stderr[-3000:]}"
        found: Survey = pickle.loads(output.read_bytes())
        output.unlink()
        return found

    def volume(self) -> Volume:
        """The harness of the mount suites over it."""
        volume = object.__new__(Volume)
        volume.root, volume.folder, volume.store = self.root, self.folder, self.store
        volume.mnt = self.folder / "mnt"
        volume.mnt.mkdir(exist_ok=True)
        volume.env, volume.arguments = None, ()
        volume.options = ("allow_other",) if os.geteuid() == 0 else ()
        return volume

    def _read_mounted(self, known: list[bytes]) -> Survey:
        volume = self.volume()
        done = volume.mount(check=False)
        if done.returncode:
            sentence = done.stderr
            assert b"Traceback" not in sentence
            return {b"": Entry(error=-1, target=sentence)}
        try:
            return survey_folder(volume.mnt, known)
        finally:
            volume.umount()

    def wrong_reads(self, found: Survey) -> list[str]:
        """Complaints about a read of the damaged volume: other bytes than were written, or an
        error where nothing was done."""
        if len(found) == 1 and found[b""].error:
            return []  # refused as a whole.
        blind = {p for fault in self.planted if fault.is_blind for p in self._fault_paths(fault)}
        touched = self._touched_paths()
        trouble = []
        for path, entry in found.items():
            true = self.truth.get(path)
            if true is None or path in blind:
                continue
            is_file = stat.S_ISREG(entry.mode) and stat.S_ISREG(true.mode)
            if is_file and not entry.error and entry.size != true.size:
                trouble.append(f"{path!r} has {entry.size} bytes instead of {true.size}")
            if is_file:
                for number, (piece, right) in enumerate(zip(entry.pieces, true.pieces)):  # noqa: B905
                    if isinstance(piece, bytes) and piece != right:
                        trouble.append(f"{path!r} piece {number} shows other bytes")
            if path not in touched and _shown(true) != _shown(entry):
                trouble.append(
                    f"{path!r} is not readable though nothing was done to it: {entry.error}"
                )
        return trouble

    def _fault_paths(self, fault: Planted) -> set[bytes]:
        """Names of the inodes that a fault's own places mean."""
        inodes: set[int] = set()
        for place in (*fault.must, *fault.may):
            named = place.inode if isinstance(place.inode, frozenset) else {place.inode}
            meant = {ino for ino in named if isinstance(ino, int)}
            if place.worker is not None and not meant:
                meant = {c.ino for c in self.before.copies() if c.worker == place.worker}
            inodes |= meant
        return {path for ino in inodes for path in self._old_paths(ino)}

    def _old_paths(self, ino: int) -> list[bytes]:
        return [path for path, entry in self.truth.items() if entry.ino == ino]

    def _touched_paths(self) -> set[bytes]:
        """Names below or at what a fault concerns."""
        if any(KINDS[fault.kind].family in ("index", "total", "root") for fault in self.planted):
            return set(self.truth)
        roots = {p for fault in self.planted for p in self._fault_paths(fault)}
        numbers = {self.truth[path].ino for path in roots}
        roots |= {path for path, entry in self.truth.items() if entry.ino in numbers}
        return {
            path
            for path in self.truth
            if any(path == r or not r or path.startswith(r + b"/") for r in roots)
        }

    # What a repair left.

    def check_repaired(self, found: Survey) -> list[str]:
        """Complaints about what a repaired volume shows: everything is there again, but what is
        lost gives EIO and nothing else."""
        gone = {ino for fault in self.planted for ino in fault.gone}
        loose = {ino for fault in self.planted for ino in fault.loose}
        bare = {p for p in found if found[p].error}
        trouble = [
            f"{path!r}: errno {found[path].error}" for path in bare if not self._is_gone(path, gone)
        ]
        files = {bytes_of(entry): path for path, entry in found.items() if entry.pieces}
        for path, true in self.truth.items():
            entry = found.get(path)
            if true.ino in gone:
                continue
            if entry is None or entry.error or not _is_same_file(entry, true):
                if true.ino not in loose:
                    trouble.append(f"{path!r} is not there as it was: {entry and entry.error}")
                elif true.pieces and not self._has_lost(true) and bytes_of(true) not in files:
                    trouble.append(f"the bytes of {path!r} are nowhere")
                continue
            trouble += self._compare(path, entry, true, is_loose=true.ino in loose)
        extra = [p for p in found if p not in self.truth and not p.startswith(LOST_FOUND)]
        return trouble + [f"{path!r} is new" for path in extra if not loose and not gone]

    def _is_gone(self, path: bytes, gone: set[int]) -> bool:
        true = self.truth.get(path)
        loose = {ino for fault in self.planted for ino in fault.loose}
        return true is not None and (
            true.ino in gone or true.ino in loose or self._is_below(path, loose)
        )

    def _is_below(self, path: bytes, inodes: set[int]) -> bool:
        parts = path.split(b"/")
        above = [b"/".join(parts[:n]) for n in range(1, len(parts))]
        return any(self.truth[p].ino in inodes for p in above if p in self.truth)

    def _has_lost(self, true: Entry) -> bool:
        lost = self.before.lost() | self.before.doubtful
        return any((true.ino, chunk) in lost for chunk in range(len(true.pieces)))

    def _compare(self, path: bytes, entry: Entry, true: Entry, *, is_loose: bool) -> list[str]:
        lost, doubtful = self.before.lost(), self.before.doubtful
        trouble = []
        shown, right = entry.attributes(), true.attributes()
        if stat.S_ISDIR(true.mode):  # what a repair moved counts elsewhere; fsck checks the links.
            shown, right = (shown[0], *shown[2:]), (right[0], *right[2:])
        if not is_loose and shown != right:
            trouble.append(f"{path!r}: {shown} instead of {right}")
        if not is_loose and entry.xattrs != true.xattrs:
            trouble.append(f"{path!r}: other extended attributes")
        if not is_loose and len(entry.pieces) != len(true.pieces):
            trouble.append(f"{path!r}: {len(entry.pieces)} chunks instead of {len(true.pieces)}")
        for chunk, (piece, right) in enumerate(zip(entry.pieces, true.pieces)):  # noqa: B905
            place = (true.ino, chunk)
            if isinstance(piece, int):
                if place not in lost and place not in doubtful:
                    trouble.append(f"{path!r} chunk {chunk} gives errno {piece} and is not lost")
            elif piece != right:
                trouble.append(f"{path!r} chunk {chunk} shows other bytes")
            elif place in lost:
                trouble.append(f"{path!r} chunk {chunk} is lost and can be read?")
        return trouble


def _shown(entry: Entry) -> tuple[object, ...]:
    return (entry.attributes(), entry.xattrs, entry.pieces, entry.error)


def _is_same_file(entry: Entry, true: Entry) -> bool:
    return stat.S_IFMT(entry.mode) == stat.S_IFMT(true.mode)


def bytes_of(entry: Entry) -> tuple[bytes | int, ...]:
    """The content, to look it up."""
    return tuple(entry.pieces)


def copy_volume(source: Path, target: Path) -> None:
    """Copies a volume at rest; what belongs to a job stays behind, but its configuration."""
    done = subprocess.run(
        ["cp", "-a", "--sparse=always", str(source), str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for path in (target / "run").iterdir():
        if path.name != "config.json":
            path.unlink() if not path.is_dir() else shutil.rmtree(path)
