"""The whole way of a damaged volume: verify, read, repair, verify again, read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.volumes import Sample
from tools.planting import stores
from tools.planting.planted import LOST, Document

IS_LONG = os.environ.get("MPIFS_FAULTS") == "long"
"""The long version: every kind alone and in each combination, reads through real mounts."""
NOT_DATA = ("lock.mdb", "lock")


def digests(folder: Path) -> dict[str, str]:
    """What a check must not change: every file of the volume but those that are locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_DATA and "run" not in path.parts
    }


def said(document: Document) -> list[tuple[Any, ...]]:
    """Findings, to be compared between runs."""
    names = ("check", "severity", "path", "inode", "chunk", "worker")
    return sorted((tuple(f[name] for name in names) for f in document["findings"]), key=repr)


def shorten(trouble: list[str]) -> str:
    """For an assertion's message."""
    return "\n".join(line[:400] for line in trouble[:25])


def verify(one: Sample) -> Document:
    """A verify run that finds all and nothing else, and changes nothing."""
    before = digests(one.store)
    document = one.fsck()
    assert digests(one.store) == before, "a check changed the volume"
    wanted = 4 if document["findings"] else 0
    assert (document["code"], document["clean"]) == (wanted, not wanted)
    assert not any(finding["repaired"] for finding in document["findings"])
    trouble = one.check_findings(document)
    assert not trouble, shorten(trouble)
    return document


def read_damaged(one: Sample) -> None:
    """No read shows wrong bytes.  Of a copy: a mount tidies up, and that changes the volume."""
    trouble = one.wrong_reads(one.spare().read(by_mount=IS_LONG))
    assert not trouble, shorten(trouble)


def _repair(one: Sample) -> tuple[Document, list[Document]]:
    """A repair and what it left, which a second run says as well."""
    document = one.fsck("--repair")
    left = [finding for finding in document["findings"] if not finding["repaired"]]
    assert document["code"] == (4 if left else 1 if document["findings"] else 0), document
    again = one.fsck()
    assert set(said(again)) == set(said({"findings": left}))
    assert again["code"] == (4 if left else 0)
    return document, left


def repair(one: Sample) -> Document:
    """A repair that leaves what is lost and nothing else."""
    document, left = _repair(one)
    helped = [stores.let_go(one.before, fault) for fault in one.planted]
    if any(helped):
        # A folder that is not there may be on a disk that is not mounted: its user has decided.
        assert any(f["worker"] and f["chunk"] is None for f in left), "a missing store is no matter"
        document, left = _repair(one)
    assert not [f for f in left if f["severity"] != LOST], left
    gone = frozenset(ino for fault in one.planted for ino in fault.gone)
    lost = one.before.lost(gone) | one.before.doubtful
    lost |= {(ino, None) for ino, _ in one.before.doubtful}
    told = {(f["inode"], f["chunk"]) for f in left}
    assert not told - lost, f"left as lost: {sorted(told - lost, key=repr)}"
    kept_quiet = one.before.lost(gone) - told
    assert not kept_quiet, f"lost and not said: {sorted(kept_quiet)}"
    return document


def read_repaired(one: Sample) -> None:
    """Everything is there but what is lost."""
    trouble = one.check_repaired(one.read(by_mount=IS_LONG))
    assert not trouble, shorten(trouble)


def whole_way(one: Sample) -> None:
    """All of it, with a volume that damage was planted in."""
    trouble = list(_steps(one))
    assert not trouble, "\n\n".join(trouble)


def _steps(one: Sample) -> Iterator[str]:
    """Each step's complaints: one that fails does not hide the next."""
    for step in (verify, read_damaged, repair, read_repaired):
        try:
            step(one)
        except AssertionError as error:
            yield f"--- {step.__name__}: {error}"
