"""One run of verify or repair: phases in order, and in a repair their rounds.

Without repair: index, chunks, copies of the index, each once; findings are reported as they come.

With repair each phase is repeated until a round repairs nothing: what one repair brings to light
(a ref put right whose chunk is bad, a file that came back) is found by the next round, which looks
at everything anew.  So the report of a phase ends with the truth: what its last round still found
is what is left.  A finding that was repaired is reported at once; one that was not is held back,
because a later round may repair it, and is reported by the last round.  Chunks may bring back
files, and so change names; then the index is looked at once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from mpifs.core.errors import MpifsError
from mpifs.core.limits import HELD_FINDINGS_MAX, ROUNDS_MAX
from mpifs.repair.check_chunks import check_chunks
from mpifs.repair.findings import Finding, Progress
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView

log = logging.getLogger(__name__)

_TURNS_MAX = 3  # of index and chunks, one after the other
_TOLD_MAX = 1 << 20  # findings known as reported, about 60 MB


def run(
    view: VolumeView,
    stores: StoreAccess,
    index_checks: Sequence[Callable[[VolumeView, Progress], Iterator[Finding]]],
    copies_check: Callable[[], Iterator[Finding]],
    *,
    data: bool,
    repair: bool,
    adopt: bool,
    progress: Progress,
    report: Callable[[Finding], None],
) -> None:
    """Checks everything (and repairs) and reports each finding once.

    Raises CancelledError between steps, what `report` raises, and MpifsError when the index itself
    cannot be read any more.
    """
    phases = _Run(progress, report, repair=repair, is_live=view.is_live)

    def index() -> Iterator[Finding]:
        for check in index_checks:
            yield from check(view, progress)

    def chunks() -> Iterator[Finding]:
        return check_chunks(view, stores, data=data, progress=progress, adopt=adopt)

    for turn in range(_TURNS_MAX):
        has_changed = phases.phase("index", index)
        if turn and not has_changed:
            break
        if not phases.phase("chunks", chunks):
            break
    phases.phase("copies of the index", copies_check)


class _Run:
    """What was reported already."""

    def __init__(
        self,
        progress: Progress,
        report: Callable[[Finding], None],
        *,
        repair: bool,
        is_live: bool,
    ) -> None:
        self._progress = progress
        self._report = report
        self._repair = repair
        self._is_live = is_live
        self._told: set[int] = set()
        self._has_looked_again = False

    def phase(self, name: str, check: Callable[[], Iterator[Finding]]) -> bool:
        """All rounds of a phase; whether anything was repaired."""
        has_repaired = False
        for _ in range(ROUNDS_MAX if self._repair else 1):
            self._progress.phase = name
            inodes = self._progress.inodes
            held: list[Finding] = []
            count = changed = 0
            for finding in check():
                self._progress.check()
                if self._repair and self._mend(finding):
                    count += 1
                    self._tell(finding)
                elif self._repair and len(held) < HELD_FINDINGS_MAX:
                    held.append(finding)
                    changed += finding.remedy is not None
                else:
                    self._tell(finding)
            if not count and not (changed and self._may_look_again()):
                break
            has_repaired = has_repaired or count > 0
            self._progress.inodes = inodes  # the next round counts them again
        for finding in held:
            self._tell(finding)
        return has_repaired

    def _may_look_again(self) -> bool:
        """Mounted, what could not be repaired may have been rewritten: look once more."""
        is_first = self._is_live and not self._has_looked_again
        self._has_looked_again = True
        return is_first

    def _mend(self, finding: Finding) -> bool:
        """Calls the remedy; what it cannot do is said in the finding."""
        if finding.remedy is None:
            return False
        try:
            finding.repaired = finding.remedy()
        except MpifsError as error:
            log.warning("%s: not repaired: %s", finding.check, error)
            finding.detail += f" (not repaired: {error})"
        return finding.repaired

    def _tell(self, finding: Finding) -> None:
        """Reports a finding unless the same one was reported in an earlier round or turn."""
        if self._repair and len(self._told) < _TOLD_MAX:
            place = (finding.check, finding.path, finding.inode, finding.chunk, finding.worker)
            known = hash((place, finding.detail, finding.repaired))
            if known in self._told:
                return
            self._told.add(known)
        self._report(finding)
