"""Whether it pays to spin for the next request instead of sleeping until it comes."""

from __future__ import annotations

_SCORE_MAX = 8
_LOSS = 3
"""A request that kept its server waiting takes away what three that did not have given."""


class Gaps:
    """Judges by the gaps between the last requests: as long as most of them came within `spin_s`,
    spinning for so long meets the next one, too.

    Written by whoever receives; two threads at once may spoil a count, which costs a spin.
    """

    __slots__ = ("_score", "_spin_s", "is_dense")

    def __init__(self, spin_s: float) -> None:
        self._spin_s = spin_s
        self._score = 0
        self.is_dense = False

    def note(self, waited_s: float) -> None:
        """A request came after its server had waited for so long."""
        score = self._score
        score = min(score + 1, _SCORE_MAX) if waited_s < self._spin_s else max(score - _LOSS, 0)
        self._score = score
        self.is_dense = score > _SCORE_MAX // 2
