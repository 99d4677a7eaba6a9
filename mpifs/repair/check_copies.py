"""The copies of the index on the stores: whole, and where the newest one's manifest says.

Having none yet is no finding.  Sums travel and not bytes: the stores verify the pieces themselves
(VERIFY), and the manifest knows every piece's sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mpifs.core.chunk_report import ChunkReport, Fault, decode_reports
from mpifs.core.errors import MpifsError
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import INDEX_COPY_PIECE_BYTES
from mpifs.core.messages import VerifyKeys, VerifyReply, decode_args, encode_args
from mpifs.core.types import ChunkKey
from mpifs.repair.copies import (
    COPY_INODE,
    FIRST_KEY,
    MANIFEST_PIECE,
    CopyStores,
    Manifest,
    read_manifest,
)
from mpifs.repair.copy_writer import delete_pieces
from mpifs.repair.findings import DAMAGE, LEFTOVER, Finding, Progress

CHECK = "check_copies"
_COUNT = 1024
_BYTES = 64 * INDEX_COPY_PIECE_BYTES  # of one request: well under a second of a store's time


class Copier(Protocol):
    """What writes copies: index_copier.IndexCopier."""

    def paused(self) -> AbstractContextManager[None]:
        """Keeps others from writing copies meanwhile."""
        ...

    def refresh(self) -> Manifest:
        """Writes a new copy.  Raises MpifsError."""
        ...


Held = dict[int, dict[int, ChunkReport]]
"""What a store has: generation → piece → its report."""


def check_copies(
    stores: CopyStores, copier: Copier, progress: Progress, *, data: bool = True
) -> Iterator[Finding]:
    """One finding per store whose part of the newest copy is damaged or gone, and per store with
    pieces that belong to no copy.  `data` false: the pieces' sums are taken from their headers.

    Remedies write a new copy (once for all findings) or delete what is left over.
    """
    with copier.paused():
        held: dict[int, Held] = {}
        silent: dict[int, str] = {}
        for store in stores.live():
            try:
                held[store] = _reports(stores, store, progress, data)
            except MpifsError as error:
                silent[store] = str(error)
        findings = _judge(stores, copier, held, silent)
    yield from findings


def _judge(
    stores: CopyStores, copier: Copier, held: Mapping[int, Held], silent: Mapping[int, str]
) -> list[Finding]:
    rewrite = _Rewrite(stores, copier, held)
    manifest = _newest(stores, held)
    findings = []
    if manifest is None:
        for store, generations in held.items():
            if any(MANIFEST_PIECE in pieces for pieces in generations.values()):
                detail = f"the copy of the index on worker {store} has a damaged manifest"
                findings.append(_damage(store, f"{detail}; no other copy can be used", rewrite))
        return findings or _leftovers(stores, held, None)
    wrong = {
        store: _wrong(manifest, held.get(store), store, silent.get(store, "its store is missing"))
        for store in manifest.holders
    }
    missing = set.intersection(
        set(range(1, manifest.pieces + 1)),
        *(_bad_pieces(manifest, held.get(store)) for store in held),
    )
    meaning = "it cannot be used" if missing else "the other one is whole and is used instead"
    if not missing and len(manifest.holders) > 1 and all(wrong.values()):
        meaning = "together they are still whole"
    for store, what in wrong.items():
        if what:
            findings.append(_damage(store, f"{what}; {meaning}", rewrite))
    if not missing:
        # Of a store whose copy is written anew anyway the remedy takes everything else away, too.
        others = {store: copies for store, copies in held.items() if not wrong.get(store)}
        findings += _leftovers(stores, others, manifest)
    return findings


def _damage(store: int, detail: str, rewrite: _Rewrite) -> Finding:
    return Finding(CHECK, DAMAGE, detail, worker=store, remedy=rewrite)


@dataclass(slots=True)
class _Rewrite:
    """The remedy of every damaged copy: one new copy, and all of the old ones deleted."""

    stores: CopyStores
    copier: Copier
    held: Mapping[int, Held]
    is_done: bool = False

    def __call__(self) -> bool:
        if not self.is_done:
            self.copier.refresh()
            self.is_done = True
            for store, generations in self.held.items():
                delete_pieces(self.stores, store, _keys(generations))
        return True


def _leftovers(
    stores: CopyStores, held: Mapping[int, Held], manifest: Manifest | None
) -> list[Finding]:
    """Pieces that are of no copy in use: what an interrupted copy leaves."""
    findings = []
    for store, generations in held.items():
        spare: Held = {}
        for generation, pieces in generations.items():
            used = -1
            if manifest and generation == manifest.generation and store in manifest.holders:
                used = manifest.pieces
            rest = {piece: report for piece, report in pieces.items() if piece > used}
            if rest:
                spare[generation] = rest
        keys = _keys(spare)
        if keys:
            findings.append(
                Finding(
                    CHECK,
                    LEFTOVER,
                    f"{len(keys)} pieces of unfinished or older copies of the index are on worker "
                    f"{store}; they only take room",
                    worker=store,
                    remedy=_Deletion(stores, store, keys),
                )
            )
    return findings


@dataclass(slots=True)
class _Deletion:
    """The remedy of leftovers."""

    stores: CopyStores
    store: int
    keys: list[ChunkKey]

    def __call__(self) -> bool:
        delete_pieces(self.stores, self.store, self.keys)
        return True


def _keys(generations: Held) -> list[ChunkKey]:
    """Manifests first, so that no manifest is without its pieces."""
    keys = [report.key for pieces in generations.values() for report in pieces.values()]
    return sorted(keys, key=lambda key: (key.chunk, key.generation))


def _newest(stores: CopyStores, held: Mapping[int, Held]) -> Manifest | None:
    """The newest manifest that can be read anywhere."""
    generations = {generation for store in held.values() for generation in store}
    for generation in sorted(generations, reverse=True):
        having = [
            store
            for store, copies in held.items()
            if generation in copies and _is_sound(copies[generation].get(MANIFEST_PIECE))
        ]
        manifest = read_manifest(stores, having, generation)
        if manifest is not None:
            return manifest
    return None


def _is_sound(report: ChunkReport | None) -> bool:
    return report is not None and report.faults == 0


def _bad_pieces(manifest: Manifest, held: Held | None) -> set[int]:
    """Pieces 1, 2, … that a store does not have as the manifest says."""
    pieces = {} if held is None else held.get(manifest.generation, {})
    bad = set()
    for piece, checksum in enumerate(manifest.sums, 1):
        report = pieces.get(piece)
        if report is None or report.faults or report.checksum != checksum:
            bad.add(piece)
    return bad


def _wrong(manifest: Manifest, held: Held | None, store: int, reason: str) -> str:
    """What is wrong with a store's part of the newest copy; "" if nothing.  `reason` says why the
    store cannot be asked, if it cannot."""
    name = f"the copy of the index on worker {store}"
    if held is None:
        return f"{name} is out of reach: {reason}"
    pieces = held.get(manifest.generation, {})
    if not pieces:
        return f"{name} is missing"
    bad = sorted(_bad_pieces(manifest, held))
    gone = [piece for piece in bad if piece not in pieces]
    changed = [piece for piece in bad if piece in pieces]
    if not _is_sound(pieces.get(MANIFEST_PIECE)):
        (changed if MANIFEST_PIECE in pieces else gone).insert(0, MANIFEST_PIECE)
    told = []
    if changed:
        told.append(f"is damaged ({_numbers(changed)} of {manifest.pieces})")
    if gone:
        told.append(f"lacks {_numbers(gone)} of {manifest.pieces}")
    return f"{name} {' and '.join(told)}" if told else ""


def _numbers(pieces: list[int]) -> str:
    shown = ", ".join("its manifest" if piece == 0 else str(piece) for piece in pieces[:8])
    more = f" and {len(pieces) - 8} more" if len(pieces) > 8 else ""
    return f"pieces {shown}{more}" if pieces != [0] else shown


def _reports(stores: CopyStores, store: int, progress: Progress, data: bool) -> Held:
    """What a store says of its pieces of copies.  A chunk of a file that stands under a key of
    inode 0 is not one: check_chunks puts it back.  Raises MpifsError, CancelledError."""
    held: Held = {}
    after = FIRST_KEY
    while True:
        progress.check()
        reply = stores.client.call(
            stores.rank_of(store),
            Kind.VERIFY,
            args=encode_args(VerifyKeys(after, _COUNT, _BYTES, data)),
        )
        reports = decode_reports(reply.body)
        for report in reports:
            if report.key.inode != COPY_INODE:
                return held
            if report.named.inode == COPY_INODE or not report.faults & Fault.WRONG_KEY:
                held.setdefault(report.key.generation, {})[report.key.chunk] = report
        if not reports or decode_args(reply.args, VerifyReply).is_end:
            return held
        after = encode_key(reports[-1].key)
