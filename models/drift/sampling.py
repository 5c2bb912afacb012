"""Whether the factor by which a source multiplies its measures has changed, whatever mix of factors is usual. Pure.

Factors are told apart by steps of the square root of two. The step that most rows have prevails, with the share of
rows that usually has it. Another prevails once that share has fallen to half, by more than chance explains: the
Chernoff bound on so few of ``n`` rows, ``exp(-n KL(observed || usual))``, is below ``exp(-12)``. Two rows are enough
where all rows have had one factor for long, and a hundred where half of them have.

Source: Chernoff-Hoeffding theorem, Hoeffding 1963, theorem 1.
"""

import math

import numpy as np
import numpy.typing as npt

from models.drift.detection import rounded
from models.drift.telemetry_state import Sampling, Seen

IntColumn = npt.NDArray[np.int64]

MAX_FACTOR = 1 << 20
STEPS = 41
"""Steps from a factor of 1 to the largest."""
_STEPS_PER_OCTAVE = 2
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.999
_MEMORY = 0.2
"""Weight of a new window in the usual share."""
_FULL_WEIGHT_ROWS = 10
_DOUBT = 12.0


def steps_of(factors: IntColumn) -> IntColumn:
    """Return the step of each factor, ``(N,)``; factors from 1 to ``MAX_FACTOR``."""
    steps: IntColumn = np.rint(_STEPS_PER_OCTAVE * np.log2(factors)).astype(np.int64)
    return steps


def resample(usual: Sampling | None, seen: Seen) -> Sampling:
    """Return what prevails after another window with rows; another step than before is a change."""
    if usual is None:
        return _prevailing(seen)
    doubted = usual.doubted + seen.rows
    agreeing = usual.agreeing + sum(factor.rows for factor in seen.factors if factor.step == usual.step)
    if 2 * agreeing > usual.share * doubted:
        weight = _MEMORY * min(1.0, doubted / _FULL_WEIGHT_ROWS)
        share = usual.share + weight * (agreeing / doubted - usual.share)
        return Sampling(usual.step, usual.factor, _bounded(share))
    if round(doubted * _divergence(agreeing / doubted, usual.share), 6) < _DOUBT:
        return Sampling(usual.step, usual.factor, usual.share, doubted, agreeing)
    return _prevailing(seen)


def _prevailing(seen: Seen) -> Sampling:
    factor = max(seen.factors, key=lambda factor: (factor.rows, -factor.step))
    share = (factor.rows + 2) / (seen.rows + 4)  # a few rows do not say "always" (Agresti and Coull 1998)
    return Sampling(factor.step, rounded(factor.total / factor.rows), _bounded(share))


def _bounded(share: float) -> float:
    return round(min(max(share, _LEAST_SHARE), _MOST_SHARE), 6)


def _divergence(observed: float, usual: float) -> float:
    """Return the Kullback-Leibler divergence of one Bernoulli distribution from another, ``observed`` below 1."""
    first = observed * math.log(observed / usual) if observed else 0.0
    return first + (1 - observed) * math.log((1 - observed) / (1 - usual))
