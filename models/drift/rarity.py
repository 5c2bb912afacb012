"""How rare a finding is for its tenant: the tail of what its detectors have said, as one risk score. Pure.

Detectors speak in units of their own: spreads, ratios, a plain yes. What can be compared is how often each speaks so
loudly. Per tenant, lane and kind a histogram of the loudest score of each closed window is kept; its tail says in which
share of the windows such a finding, or a stronger one, begins. Risk is that share on a logarithmic scale: 20 points for
each power of ten, so 40 is at most a window in a hundred and 60 at most one in a thousand.

A tenant without history is taken to be as its detector's own rating of the effect says: a gamma prior on a Poisson rate
(Gelman et al., Bayesian Data Analysis, 3rd ed., 2.6) of one such window in ``10 ** (effect / 20)``. Each window that
closes then counts for or against it. Rarity alone is no harm: no risk is above what the effect is rated.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from models.drift.detection import Detection
from models.drift.statistical import SAMPLED

POINTS_PER_DECADE = 20
HALF_LIFE_MS = 28 * 86_400_000
UNIT = 1 << 10
"""Counts are whole numbers of this many parts, so that halving them stays exact for ten half-lives."""
_STEPS = tuple(round(2 ** (step / 8) - 1, 4) for step in range(8 * 20))
"""Lower ends of the bins of scores: nine percent apart, up to a million."""


class Tail(NamedTuple):
    """In how many windows such a finding or a stronger one began, of how many. Whole windows, rounded down."""

    alike: int
    windows: int


class Rarity(msgspec.Struct, omit_defaults=True):
    """What the windows of one tenant and lane brought so far.

    Attributes:
        windows: closed windows that were judged, in parts of `UNIT`.
        loudest: by kind and bin: windows whose loudest finding of the kind, among those that began, was in it; alike.
        halvings: how often all counts were halved, counted from the epoch; -1 before the first window.
    """

    windows: int = 0
    loudest: dict[str, dict[int, int]] = {}
    halvings: int = -1

    def close(self, time_ms: int, began: Mapping[str, float]) -> None:
        """Count a window that ended at ``time_ms``: by kind, the loudest score of the findings that began in it."""
        halvings = time_ms // HALF_LIFE_MS
        if self.halvings >= 0:
            self._halve(min(halvings - self.halvings, 64))
        self.halvings = max(halvings, self.halvings)
        self.windows += UNIT
        self.add(began)

    def add(self, began: Mapping[str, float]) -> None:
        """Count findings of a window that is counted by itself: here, or because it had no traffic nowhere."""
        for kind in sorted(began):
            bins = self.loudest.setdefault(kind, {})
            place = _bin(began[kind])
            bins[place] = bins.get(place, 0) + UNIT

    def _halve(self, times: int) -> None:
        if times <= 0:
            return
        self.windows >>= times
        halved = {kind: {place: n >> times for place, n in bins.items()} for kind, bins in self.loudest.items()}
        self.loudest = {
            kind: {place: n for place, n in bins.items() if n} for kind, bins in halved.items() if any(bins.values())
        }

    def tail(self, kind: str, score: float) -> Tail:
        """Return in how many windows a finding of a kind began that scored as much or more."""
        least = _bin(score)
        alike = sum(count for place, count in self.loudest.get(kind, {}).items() if place >= least)
        return Tail(min(alike, self.windows) // UNIT, self.windows // UNIT)

    def merge(self, other: "Rarity") -> None:
        """Add what another one counted, of windows that this one has not. Both must be halved equally often."""
        self.windows += other.windows
        for kind, bins in other.loudest.items():
            mine = self.loudest.setdefault(kind, {})
            for place, count in bins.items():
                mine[place] = mine.get(place, 0) + count
        self.halvings = max(self.halvings, other.halvings)


def _bin(score: float) -> int:
    return bisect_right(_STEPS, abs(score))


def score_of(detection: Detection) -> float:
    """Return how loud a detection is: the largest score of its evidence, 0 where its rule has none."""
    return max((abs(item.score) for item in detection.evidence if item.signal != SAMPLED), default=0.0)


def risk_of(tail: Tail, effect: int) -> int:
    """Return the risk, 0..100, of a finding with a tail and an effect of 0..100."""
    prior_windows = 10.0 ** (effect / POINTS_PER_DECADE)
    share = (1.0 + tail.alike) / (prior_windows + tail.windows)
    points = round(POINTS_PER_DECADE * -math.log10(min(share, 1.0)), 6)
    return min(int(points), effect)
