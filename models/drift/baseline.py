"""What is usual for an edge: a robust, constant-size memory per signal. Pure, vectorised.

Location and spread follow exponentially weighted Huber estimates (Huber 1964, "Robust Estimation of a Location
Parameter"): a value far out moves them no more than ``CLIP`` spreads do, so an anomaly does not teach itself.
Counts, bytes and latencies are kept as ``log1p``: drift multiplies.
"""

import numpy as np
import numpy.typing as npt

from models.graph.registry import BYTES, CALLS, ERRORS, P50, P95, SIGNALS

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]

CLIP = 3.0
SLOWEST_RATE = 0.03
"""Weight of a new window once history is long: about 33 windows of memory."""
WARM_UP = 5
"""Windows before clipping starts; until then everything is believed."""
_MEDIAN_ERROR, _P95_SIGMAS = 1.2533, 1.645  # of a normal distribution
MEAN_ABS_TO_SIGMA = 1.2533  # sigma of a normal distribution over its mean absolute deviation

SPREAD_FLOOR: FloatColumn = np.array([0.10, 0.15, 0.01, 0.05, 0.08])
"""Smallest spread per signal: log units, for the error ratio a share. Very regular edges must not alarm on nothing."""


def signals_of(
    calls: IntColumn,
    volume: IntColumn,
    volume_known: npt.NDArray[np.bool_],
    errors: IntColumn,
    errors_known: npt.NDArray[np.bool_],
    p50_us: IntColumn,
    p95_us: IntColumn,
) -> FloatColumn:
    """Return the signals of edges in one window, NaN where unknown.

    Shapes:
        all inputs ``(E,)``. returns: ``(E, len(SIGNALS))`` float64.
    """
    values = np.full((len(calls), len(SIGNALS)), np.nan)
    values[:, 0] = np.log1p(calls)
    values[:, 1] = np.where(volume_known, np.log1p(volume), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        values[:, 2] = np.where(errors_known & (calls > 0), errors / np.maximum(calls, 1), np.nan)
    values[:, 3] = np.where(p50_us >= 0, np.log1p(np.maximum(p50_us, 0)), np.nan)
    values[:, 4] = np.where(p95_us >= 0, np.log1p(np.maximum(p95_us, 0)), np.nan)
    return values


def scores_of(
    values: FloatColumn,
    mean: FloatColumn,
    spread: FloatColumn,
    calls: IntColumn,
    scale: FloatColumn,
    estimated_from: IntColumn,
) -> FloatColumn:
    """Return robust z-scores, rounded to 6 digits so that comparison does not hang on the last bit.

    The error ratio's spread is at least the binomial one of ``calls`` trials, that of a count Poisson's. What was seen
    is what has these spreads, not what it was multiplied to.

    Shapes:
        values, mean, spread, returns: ``(E, len(SIGNALS))``. calls: ``(E,)``, those seen. scale: ``(E,)``, how many
        calls each stands for. estimated_from: ``(E,)``, records of a sample; 0 where everything was seen.
    """
    floor = np.broadcast_to(SPREAD_FLOOR, values.shape).copy()
    ratio = np.clip(mean[:, ERRORS], 0.0, 1.0)
    binomial = np.sqrt((ratio * (1 - ratio) + 1.0 / np.maximum(calls, 1)) / np.maximum(calls, 1))
    floor[:, ERRORS] = np.maximum(floor[:, ERRORS], binomial)
    # A Poisson count cannot be steadier than its square root; in log units that is 1/sqrt(expected).
    floor[:, CALLS] = np.maximum(floor[:, CALLS], 1.0 / np.sqrt(np.maximum(np.expm1(mean[:, CALLS]) / scale, 1.0)))
    volume = np.where(estimated_from > 0, 1.0 / np.sqrt(np.maximum(estimated_from, 1)), 0.0)
    floor[:, BYTES] = np.maximum(floor[:, BYTES], volume)
    return np.round((values - mean) / np.maximum(spread, floor), 6)


def sized(scores: FloatColumn, mean: FloatColumn, spread: FloatColumn, timed: IntColumn) -> FloatColumn:
    """Return scores with that of the median lowered by what a median of so few calls is uncertain itself.

    Its standard error is 1.25 sigma over the root of the calls; sigma within a window is what p50 and p95 say.

    Shapes:
        all ``(E, len(SIGNALS))``, but timed: ``(E,)``, calls whose latency is known.
    """
    within = np.maximum(mean[:, P95] - mean[:, P50], 0.0) / _P95_SIGMAS
    error = _MEDIAN_ERROR * within / np.sqrt(np.maximum(timed, 1))
    result = scores.copy()
    result[:, P50] /= np.sqrt(1 + (error / np.maximum(spread[:, P50], SPREAD_FLOOR[P50])) ** 2)
    return result


def learn(
    values: FloatColumn, mean: FloatColumn, spread: FloatColumn, history: npt.NDArray[np.int32]
) -> tuple[FloatColumn, FloatColumn, npt.NDArray[np.int32]]:
    """Return ``(mean, spread, history)`` after one more window; unknown signals stay as they are.

    Shapes:
        all ``(E, len(SIGNALS))``.
    """
    known = ~np.isnan(values)
    rate = np.maximum(1.0 / (history + 1.0), SLOWEST_RATE)
    step = np.where(known, values, mean) - mean
    reach = CLIP * np.maximum(spread, SPREAD_FLOOR)
    step = np.where(history >= WARM_UP, np.clip(step, -reach, reach), step)
    new_mean = mean + rate * step
    new_spread = spread + rate * (np.abs(step) * MEAN_ABS_TO_SIGMA - spread)
    first = known & (history == 0)
    new_spread = np.where(first, 0.0, new_spread)
    return (
        np.where(known, new_mean, mean),
        np.where(known, new_spread, spread),
        history + known.astype(np.int32),
    )
