"""What scores are normal: the share of edges of the calibration windows that score higher. Pure.

Beyond the largest of them the tail goes on as an exponential one (Pickands 1975, shape 0), so that extremes differ.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.gnn.features import GraphSample
from models.gnn.inference import Judged

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVELS = 257
"""Points of a stored distribution; the last quarter of them lies evenly in decades of the tail."""
_TAIL_LEVELS = 64
_FINEST = 1e-4
_TAIL_FROM = 0.01


def _shares() -> Floats:
    body = np.linspace(1.0, _TAIL_FROM, LEVELS - _TAIL_LEVELS, endpoint=False)
    return np.concatenate([body, np.geomspace(_TAIL_FROM, _FINEST, _TAIL_LEVELS)])


@dataclass(frozen=True, slots=True)
class Calibration:
    """Distributions over the edges of the calibration windows.

    Shapes:
        link, signals, statistical: ``(LEVELS,)``, the score that a share of edges exceeds, shares as ``_shares``.
    Attributes:
        new_share: share of the edges with calls that were new, above 0.
    """

    link: Floats
    signals: Floats
    statistical: Floats
    new_share: float


@dataclass(frozen=True, slots=True)
class EdgeScores:
    """Surprise of each edge with calls, ``(E,)``: -log10 of the share of normal edges that are as strange.

    Attributes:
        statistical: by the robust z of its signals, or by being new.
        graph: by the signals beside what the graph explains; of a new edge, by being new and by its two ends.
        combined: both added up.
        link, signals: the two parts of ``graph`` before calibration: -log of the odds' probability (NaN
            of edges that are not new), and spreads.
    """

    statistical: Floats
    graph: Floats
    combined: Floats
    link: Floats
    signals: Floats


def link_surprise(judged: Judged) -> Floats:
    """Return -log of the probability that the edge's two ends talk, ``(E,)``."""
    with np.errstate(invalid="ignore"):  # NaN where it was not asked
        return np.asarray(np.logaddexp(0.0, -judged.logit.astype(np.float64)), dtype=np.float64)


def signal_surprise(judged: Judged, sample: GraphSample) -> Floats:
    """Return the largest distance of a signal from what was predicted, in predicted spreads, ``(E,)``; 0 unknown."""
    away = np.abs(sample.deviations - judged.mean) * np.exp(-0.5 * judged.log_variance)
    largest: Floats = np.nan_to_num(away.astype(np.float64)).max(axis=1, initial=0.0)
    return largest


def calibrate(link: Floats, signals: Floats, statistical: Floats, is_new: Mask) -> Calibration:
    """Return the distributions of edges taken as normal, ``(E,)`` each; there must be some."""
    known = ~is_new if (~is_new).any() else np.ones(len(is_new), dtype=np.bool_)
    shares = 1.0 - _shares()
    return Calibration(
        np.quantile(link, shares),
        np.quantile(signals[known], shares),
        np.quantile(statistical[known], shares),
        (int(is_new.sum()) + 1) / (len(is_new) + 2),
    )


def surprise(scores: Floats, levels: Floats) -> Floats:
    """Return -log10 of the share of normal scores above each score, 0 and up."""
    decades = -np.log10(_shares())
    # Levels may repeat; a tiny slope keeps them apart, and the larger share stands for equal scores.
    rising = np.maximum.accumulate(levels) + np.arange(LEVELS) * 1e-12
    found = np.interp(scores, rising, decades)
    tail = LEVELS - _TAIL_LEVELS
    slope = (decades[-1] - decades[tail]) / max(rising[-1] - rising[tail], 1e-6)
    return np.where(scores > rising[-1], decades[-1] + slope * (scores - rising[-1]), found)


def scores_of(calibration: Calibration, sample: GraphSample, judged: Judged) -> EdgeScores:
    """Return how strange each edge with calls is."""
    link, signals = link_surprise(judged), signal_surprise(judged, sample)
    of_new = -np.log10(calibration.new_share)
    statistical = np.where(sample.is_new, of_new, surprise(sample.statistical, calibration.statistical))
    graph = np.where(sample.is_new, of_new + surprise(link, calibration.link), surprise(signals, calibration.signals))
    return EdgeScores(statistical, graph, statistical + graph, link, signals)
