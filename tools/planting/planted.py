"""What was planted, what a verify run must say of it and may say, and whether it did.

A run is right when each planted fault has its finding at its place, no finding stands at a place
that nothing was done to, and exactly the chunks without a good copy are called lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Document: TypeAlias = "dict[str, Any]"

LOST, DAMAGE, ERROR, LEFTOVER = "lost", "damage", "error", "leftover"
SPOILED = frozenset((DAMAGE, LOST))
"""A copy of a chunk is bad or missing; it is lost if it was the last."""
WRONG = frozenset((ERROR, DAMAGE, LEFTOVER, LOST))
"""The index is wrong here; what it is called depends on what else is left of it."""


class _Any:
    """Stands for whatever a finding says; None stands for nothing."""

    def __repr__(self) -> str:
        return "*"


ANY = _Any()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a finding stands; a set in `inode`, `chunk` or `worker`: any of these.  `paths`: any of
    these names will do; empty: any or none."""

    inode: object = ANY
    chunk: object = ANY
    worker: object = ANY
    paths: tuple[bytes, ...] = ()
    severities: frozenset[str] = WRONG
    words: tuple[str, ...] = ()
    """One of them is said in the check's name or in the sentence; empty: whatever."""

    def has(self, finding: Document) -> bool:
        """Whether a finding (as `fsck --json` prints it) stands here."""
        for name in ("inode", "chunk", "worker"):
            wanted = getattr(self, name)
            if isinstance(wanted, frozenset):
                is_wanted = finding[name] in wanted
            else:
                is_wanted = wanted is ANY or wanted == finding[name]
            if not is_wanted:
                return False
        if finding["severity"] not in self.severities:
            return False
        said = f"{finding['check']} {finding['detail']}".lower()
        if self.words and not any(word in said for word in self.words):
            return False
        return not self.paths or plain(finding["path"]) in {shown(path) for path in self.paths}


ELSEWHERE = Place(inode=None, chunk=None, worker=None)
"""Of the volume as a whole: neither a file's nor a store's."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One planted fault.

    `must`: each has a finding.  `may`: findings allowed besides.  `loose`: inodes whose name or
    attributes a repair may not bring back (the bytes it must).  `gone`: inodes that a repair may
    remove.  `is_blind`: a read before the repair may give less than was written, and nothing can
    know (a size that is wrong and has a right checksum).
    """

    kind: str
    must: tuple[Place, ...]
    may: tuple[Place, ...] = ()
    loose: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    is_blind: bool = False
    hides: bool = False
    """The index cannot be read: of other faults only those of stores as such can be found."""

    def without_names(self) -> Planted:
        """The same, where nothing tells the names of inodes."""
        must = tuple(replace(place, paths=()) for place in self.must)
        return replace(self, must=must, may=tuple(replace(place, paths=()) for place in self.may))

    def document(self) -> Document:
        """For the command line: the first place that must be found."""
        place = self.must[0]
        numbers = {}
        for name in ("inode", "chunk", "worker"):
            value = getattr(place, name)
            is_one = value is not ANY and not isinstance(value, frozenset)
            numbers[name] = value if is_one else None
        path = shown(place.paths[0]) if place.paths else None
        return {"kind": self.kind, "path": path, **numbers}


def shown(path: bytes) -> str:
    """A path as findings print it, without the slash at its beginning."""
    return plain(path.decode("utf-8", "backslashreplace"))


def plain(path: str | None) -> str | None:
    """A printed path without the slash at its beginning."""
    return path if path is None else path.lstrip("/")


def complaints(
    planted: Iterable[Planted],
    findings: list[Document],
    lost: Iterable[tuple[int, int]],
    doubtful: Iterable[tuple[int, int]] = (),
) -> list[str]:
    """Sentences of what a verify run did not say and should, or said and should not.

    `lost`: (inode, chunk) of all that has no good copy; `doubtful`: where nobody can know.
    """
    planted, lost, doubtful = list(planted), set(lost), set(doubtful)
    is_hidden = any(fault.hides for fault in planted)
    if is_hidden:
        planted, lost = [fault.without_names() for fault in planted], set()
    found = []
    for fault in planted:
        for place in fault.must:
            if is_hidden and place.inode is not None:
                continue
            if not any(place.has(finding) for finding in findings):
                found.append(f"not found: {fault.kind} at {place}")
    for finding in findings:
        if not any(place.has(finding) for fault in planted for place in (*fault.must, *fault.may)):
            found.append(f"found where nothing is: {finding}")
    told = {
        (finding["inode"], finding["chunk"])
        for finding in findings
        if finding["severity"] == LOST and finding["chunk"] is not None
    }
    found += [f"lost and not called so: inode {i}, chunk {c}" for i, c in sorted(lost - told)]
    found += [
        f"called lost and is not: inode {i}, chunk {c}" for i, c in sorted(told - lost - doubtful)
    ]
    return found
