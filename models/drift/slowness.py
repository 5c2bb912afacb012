"""Whether an edge's calls have become slow: how many exceed a limit that few usually do. Pure, vectorised.

A quantile of one window says little where calls are few, and a slow operation hides in a mixture of fast ones. So calls
are counted that take longer than three times the edge's usual p95, and their share is held against the usual one:

- Doubt whether the share is still the usual ``p`` or one half gathers as a log-likelihood ratio that does not fall
  below zero (CUSUM: Page 1954; for shares Reynolds & Stoumbos 1999). It fades in the windows that follow, so that calls
  of a few minutes count together.
- Slow calls come in bursts: a pause delays all that is under way. Their correlation within a window, estimated from
  pairs of calls in past windows, says how many independent calls a window is worth (Kish 1965, design effect).
- A window teaches only so far: a share of ``_BELIEVED`` at least, or a few times the usual one. A fault does not pass
  for usual at once; what comes again and again does.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.detection import rounded
from models.graph.histogram import bucket_of
from schemas.drift import Evidence

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SLOW_CALLS = "slow_call_ratio"
"""Signal of the evidence."""
SLOW_COLUMNS: dict[str, tuple[type, int, int]] = {
    "slow": (np.float64, 0, 0),  # slow calls, fading window by window
    "slow_of": (np.float64, 0, 0),  # ... of so many
    "slow_pairs": (np.float64, 0, 0),  # pairs of slow calls within a window, by call, fading alike
    "slow_pairs_of": (np.float64, 0, 0),  # ... of so many
    "slow_doubt": (np.float64, 0, 0),  # log-likelihood ratio for "half of the calls are slow"
}
"""What is remembered of an edge, as models/graph/registry.py declares columns."""

_TIMES_P95 = 3.0
_SUSPECTED = 0.5
"""Share of slow calls under the alternative."""
_USUAL, _USUAL_CALLS = 0.02, 20
"""A share, and of how many calls, that is believed before any was seen."""
_LEAST = 0.005
_CORRELATION, _CORRELATION_PAIRS = 0.1, 30
"""A correlation, and of how many pairs, that is believed before any was seen."""
_MEMORY = 0.97
"""Weight of the past in a window with calls: about 33 windows."""
_BELIEVED, _TIMES_USUAL, _BELIEVED_CALLS = 0.2, 5.0, 2
"""Slow calls of a window that teach: this share, or so many times the usual one; so many calls whatever the share."""
_FADING = 0.7
"""What is left of the doubt a window later."""
_MOST_DOUBT = 30.0
"""Doubt beyond adds nothing to what is known, and only takes longer to fade."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """Slow calls of edges in one window against what is usual.

    Shapes:
        all ``(E,)``. slow, calls: those seen, float64 where estimated. usual: share before this window. doubt: after
        it. gain: what it added, negative where it spoke against. judged: it had calls, and what is usual is known.
    """

    slow: FloatColumn
    calls: FloatColumn
    usual: FloatColumn
    doubt: FloatColumn
    gain: FloatColumn
    judged: Mask

    def departs(self, doubt: float) -> Mask:
        """Say which edges' calls are slow beyond a doubt, and are so in this very window."""
        mask: Mask = self.judged & (self.doubt >= doubt) & (self.gain > 0)
        return mask

    def take(self, rows: IntColumn) -> "Slowness":
        """Return some of the edges."""
        columns = (self.slow[rows], self.calls[rows], self.usual[rows], self.doubt[rows], self.gain[rows])
        return Slowness(*columns, self.judged[rows])

    def evidence(self, row: int, history: int) -> Evidence:
        """State one edge's share of slow calls; ``history``: windows that its limit rests on."""
        return Evidence(
            signal=SLOW_CALLS,
            observed=rounded(float(self.slow[row] / self.calls[row])),
            expected=rounded(float(self.usual[row])),
            unit="ratio",
            score=round(float(self.doubt[row]), 2),
            sample=int(self.calls[row]),
            history=history,
            detector="slow-calls",
        )


def limit_us(usual_p95_us: FloatColumn, shift_us: float) -> IntColumn:
    """Return from which latency on calls are slow: three times the usual p95, and so much more. Shape ``(E,)``."""
    limit: IntColumn = np.maximum(usual_p95_us * _TIMES_P95, usual_p95_us + shift_us).astype(np.int64)
    return limit


def count_slow(edge: IntColumn, bucket: IntColumn, count: IntColumn, limit: IntColumn) -> IntColumn:
    """Count calls in buckets above that of their edge's limit.

    Shapes:
        edge, bucket, count: ``(H,)``, sparse histograms. limit: ``(E,)`` us, at least 0. returns: ``(E,)``.
    """
    slow = np.zeros(len(limit), dtype=np.int64)
    above = bucket > bucket_of(limit)[edge]
    np.add.at(slow, edge[above], count[above])
    return slow


def judge(
    state: dict[str, FloatColumn], slow: FloatColumn, calls: FloatColumn, silent: IntColumn, ripe: Mask
) -> Slowness:
    """Hold a window's slow calls against what is usual.

    Shapes:
        all ``(E,)``. state: ``SLOW_COLUMNS`` before this window. silent: windows since the last one with traffic.
        ripe: the limit means something.
    """
    judged = ripe & (calls > 0)
    n = np.maximum(calls, 1.0)
    usual = _usual(state)
    variance = usual * (1 - usual)
    pairs = state["slow_pairs"] + _CORRELATION_PAIRS * (_CORRELATION * variance + usual * usual)
    together = pairs / (state["slow_pairs_of"] + _CORRELATION_PAIRS)
    correlation = np.clip((together - usual * usual) / variance, 0.0, 1.0)
    ratio = slow * np.log(_SUSPECTED / usual) + (n - slow) * np.log((1 - _SUSPECTED) / (1 - usual))
    gain: FloatColumn = np.where(judged, ratio / (1 + (n - 1) * correlation), 0.0)
    left = state["slow_doubt"] * np.exp(math.log(_FADING) * np.minimum(np.maximum(silent, 0), 100))
    doubt = np.round(np.minimum(np.maximum(left + gain, 0.0), _MOST_DOUBT), 6).astype(np.float64)
    return Slowness(slow, calls, usual, doubt, np.round(gain, 6), judged)


def learn(state: dict[str, FloatColumn], seen: Slowness) -> dict[str, FloatColumn]:
    """Return ``SLOW_COLUMNS`` after a window, but for the doubt; where nothing was judged they stay as they are."""
    n = np.maximum(seen.calls, 1.0)
    believed = np.maximum(n * np.maximum(_TIMES_USUAL * seen.usual, _BELIEVED), _BELIEVED_CALLS)
    slow = np.minimum(seen.slow, believed)
    added = {
        "slow": slow,
        "slow_of": n,
        "slow_pairs": slow * np.maximum(slow - 1, 0.0) / n,
        "slow_pairs_of": n - 1,
    }
    return {name: np.where(seen.judged, state[name] * _MEMORY + more, state[name]) for name, more in added.items()}


def _usual(state: dict[str, FloatColumn]) -> FloatColumn:
    share = (state["slow"] + _USUAL * _USUAL_CALLS) / (state["slow_of"] + _USUAL_CALLS)
    usual: FloatColumn = np.clip(share, _LEAST, _SUSPECTED / 1.25)
    return usual
