"""Chunks that an index recovered from a copy does not know: they are newer, and come back.

Of a file that the index knows the newest whole generation takes its place, and the size grows to
hold it.  Of one that it does not know an empty file is made under lost+found, by the number; the
next round then knows that file.  Everything is derived from the chunks alone, so that the same
stores always give the same files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from stat import S_IFREG, S_ISREG

from mpifs.core.errors import DamageError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, HEAL_COUNT_MAX
from mpifs.core.placement import start_of
from mpifs.core.records import InodeRecord
from mpifs.core.types import ROOT_INODE, ChunkRef
from mpifs.repair import index_edits as edits
from mpifs.repair.chunk_words import Owner, Owners
from mpifs.repair.facts import Facts
from mpifs.repair.findings import ERROR, Finding
from mpifs.repair.lost_found import attach
from mpifs.repair.lost_refs import newest
from mpifs.repair.place_rules import Copy, Place, check_every_generation_is_known, is_whole
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import TreeEdit
from mpifs.repair.volume import VolumeView


@dataclass(slots=True)
class _Unnamed:
    """What is known of a file of which there are only chunks."""

    chunks: int = 0
    longest: int = 0
    last_chunk: int = 0


def chunk_size_of(longest: int, last_chunk: int, usual: int) -> int:
    """The chunk size of a file, from its longest chunk: all but the last one are full, unless it
    has holes at their ends."""
    is_full = is_chunk_size(longest, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    if last_chunk and is_full:
        return longest
    if longest <= usual:
        return usual
    return max(CHUNK_BYTES_MIN, 1 << (longest - 1).bit_length())


class Adoption:
    """Collects unknown chunks, batch by batch."""

    def __init__(self, view: VolumeView, facts: Facts, table: list[int]) -> None:
        self._view = view
        self._facts = facts
        self._table = table
        self._refs: dict[int, dict[int, ChunkRef]] = defaultdict(dict)
        self._unnamed: dict[int, _Unnamed] = {}

    def supersedes(self, place: Place) -> bool:
        """Whether a newer generation than the ref's is stored: then what becomes of the ref's
        own chunk does not matter."""
        ref = self._newest(place)
        return ref is not None and place.ref is not None and ref.generation > place.ref.generation

    def takes(self, place: Place, copy: Copy, owner: Owner) -> bool:
        """Whether an unknown image is brought back (or stays until it can be); else an orphan."""
        if not is_whole(copy):
            return False
        if owner.record is None:
            file = self._unnamed.setdefault(place.inode, _Unnamed())
            file.chunks += 1
            file.longest = max(file.longest, copy.length)
            file.last_chunk = max(file.last_chunk, place.chunk)
            return True
        if not S_ISREG(owner.record.mode) or copy.length > owner.chunk_size:
            return False
        ref = self._newest(place)
        if ref is None or copy.generation < ref.generation:
            return False
        if place.ref is not None and ref.generation < place.ref.generation:
            return False
        self._refs[place.inode][place.chunk] = ref
        return True

    def _newest(self, place: Place) -> ChunkRef | None:
        return newest(check_every_generation_is_known(place), self._table)

    def of_batch(self, owners: Owners) -> Iterator[Finding]:
        """Findings for what was collected since the last call."""
        refs, self._refs = self._refs, defaultdict(dict)
        unnamed, self._unnamed = self._unnamed, {}
        for ino, file in sorted(unnamed.items()):
            yield self._unnamed_file(ino, file)
        for ino, chunks in sorted(refs.items()):
            places = sorted(chunks)
            for first in range(0, len(places), HEAL_COUNT_MAX):
                part = {chunk: chunks[chunk] for chunk in places[first : first + HEAL_COUNT_MAX]}
                yield self._newer(owners.of(ino), part)

    def _newer(self, owner: Owner, refs: dict[int, ChunkRef]) -> Finding:
        size = sum(ref.length for ref in refs.values())
        misses_some = self._facts.deficits.get(owner.ino, 0) > 0
        return Finding(
            "check_recovered_index_is_current",
            ERROR,
            f"{len(refs)} chunks of the file ({size:,} bytes, from byte "
            f"{min(refs) * owner.chunk_size:,} on) are newer than the recovered index",
            owner.path,
            owner.ino,
            min(refs) if len(refs) == 1 else None,
            remedy=lambda: edits.adopt_refs(self._view, owner.ino, refs, misses_some=misses_some),
        )

    def _unnamed_file(self, ino: int, file: _Unnamed) -> Finding:
        return Finding(
            "check_recovered_index_is_current",
            ERROR,
            f"{file.chunks} chunks are of a file that the recovered index does not know: it comes "
            f"back as #{ino} under lost+found",
            b"#%d" % ino,
            ino,
            remedy=lambda: self._make_file(ino, file),
        )

    def _make_file(self, ino: int, file: _Unnamed) -> bool:
        """An empty file with the right chunk size; its chunks come in the next round."""
        view = self._view
        geometry = view.geometry
        with view.snapshot() as transaction:
            snapshot = Snapshot(transaction)
            root = snapshot.inode(ROOT_INODE)
            if root is None:
                raise DamageError("index: the root directory is missing")
            if snapshot.inode(ino) is not None:
                return True
            now = root.mtime_ns
            edit = TreeEdit(snapshot)
            edit.create_inode(
                InodeRecord(
                    ino=ino,
                    mode=S_IFREG | 0o600,
                    uid=root.uid,
                    gid=root.gid,
                    nlink=1,
                    rdev=0,
                    stable_size=0,
                    bytes_stored=0,
                    atime_ns=now,
                    mtime_ns=now,
                    ctime_ns=now,
                    parent=0,
                    name=b"",
                    start=start_of(ino, max(1, len(self._table))),
                    chunk_size=chunk_size_of(file.longest, file.last_chunk, geometry.chunk_size),
                    replicas=geometry.replicas,
                    flags=0,
                    target=b"",
                )
            )
            attach(edit, ino)
            amendment = edit.plan()
        return view.amend(amendment)
