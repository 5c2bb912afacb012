"""Slow drift of an edge's signals: what creeps so slowly that a baseline which learns along never sees it. Pure.

The Page-Hinkley test (Page 1954, "Continuous Inspection Schemes"; Hinkley 1971, "Inference about the Change-Point from
Cumulative Sum Tests") against a long mean, for increases: ``excess = max(0, excess + x - mean - tolerance)``, which is
the cumulative sum less its minimum so far. All edges and signals at once, two numbers each.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.baseline import CLIP, MEAN_ABS_TO_SIGMA, SPREAD_FLOOR
from models.graph.registry import BYTES, CALLS, ERRORS, P50, P95, SIGNALS
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MEMORY = 2_880
"""Windows after which the mean forgets: two days of minutes."""
WINDOWS_AT_SHIFT = 10
"""Windows at the shift that is worth an event until it is called a creep, if nothing else is noise."""
_TOLERANCE_SPREADS, _THRESHOLD_SPREADS = 0.5, 20.0
"""Least tolerance and threshold in spreads. So a steady edge's chance excess, whose tail falls as
``exp(-2 * tolerance * threshold)`` of normal noise, seldom passes the threshold."""
_MOST_PASSES = 1.5
"""How many thresholds an excess grows to at most: what is over is soon seen to be."""
_FEW_EDGES = 5
"""Fewer edges of a tenant say nothing of the load of all."""
KINDS = {
    CALLS: DriftKind.RATE_SURGE,
    BYTES: DriftKind.BYTES_SURGE,
    ERRORS: DriftKind.ERROR_INCREASE,
    P50: DriftKind.LATENCY_INCREASE,
    P95: DriftKind.LATENCY_INCREASE,
}
DETECTOR = "page-hinkley"
MIN_BYTES = 65_536
"""A surge of less than 64 KiB in a window is nobody's exfiltration."""


def page_hinkley(deviation: FloatColumn, excess: FloatColumn, tolerance: FloatColumn | float) -> FloatColumn:
    """Return the excess after one more value. ``deviation``: from the mean that has taken the value in already."""
    grown: FloatColumn = np.maximum(0.0, excess + deviation - tolerance)
    return grown


def moved_mean(values: FloatColumn, mean: FloatColumn, count: FloatColumn | IntColumn) -> FloatColumn:
    """Return the mean after one more value; ``count``: values it stands for then."""
    moved: FloatColumn = mean + (values - mean) / np.maximum(count, 1)
    return moved


def shifts_of(config: DetectionConfig) -> FloatColumn:
    """Return the shift worth an event, per signal: log units, for the error ratio a share."""
    shifts = np.full(len(SIGNALS), math.log(max(config.min_effect_ratio, 1.0 + 1e-6)))
    shifts[ERRORS] = config.min_error_shift
    return shifts


@dataclass(frozen=True, slots=True)
class Trends:
    """Long means, spreads around them, and excesses of edges, ``(E, len(SIGNALS))`` float64 each."""

    mean: FloatColumn
    spread: FloatColumn
    excess: FloatColumn


def follow(
    config: DetectionConfig,
    values: FloatColumn,
    usual: FloatColumn,
    history: npt.NDArray[np.int32],
    common: FloatColumn,
    before: Trends,
    accept_windows: int,
) -> tuple[Trends, Mask]:
    """Return the trends after a window, and which are past the threshold, ``(E, len(SIGNALS))``.

    A value far from what is usual counts as one just worth an event, so that a spike is no creep. What is past the
    threshold is forgotten sooner: it is told, and a new level is accepted in about ``accept_windows``.

    Shapes:
        values, usual, history: ``(E, len(SIGNALS))``; unknown values are NaN; usual is the baseline's mean. common:
        alike, by how much all edges of the tenant rose.
    """
    known = ~np.isnan(values)
    ripe = history >= max(config.creep_min_history, 1)
    width = np.maximum(before.spread, SPREAD_FLOOR)
    shifts = shifts_of(config)
    tolerance = np.maximum(shifts / 2, _TOLERANCE_SPREADS * width)
    threshold = np.maximum(WINDOWS_AT_SHIFT * shifts / 2, _THRESHOLD_SPREADS * width)
    reach = np.maximum(CLIP * width, shifts)
    near = np.where(known, values, before.mean)
    near = np.where(ripe, np.clip(near, usual - reach, usual + reach), near)
    count = np.minimum(history + 1, MEMORY)
    count = np.where(before.excess > threshold, np.minimum(count, max(accept_windows, 1)), count)
    mean = np.where(history == 0, near, moved_mean(near, before.mean, count))
    spread = moved_mean(np.abs(near - mean) * MEAN_ABS_TO_SIGMA, np.where(history == 0, 0.0, before.spread), count)
    deviation = near - mean
    deviation = deviation - np.clip(common, 0.0, np.maximum(deviation, 0.0))
    excess = np.minimum(page_hinkley(deviation, before.excess, tolerance), _MOST_PASSES * threshold)
    after = Trends(
        np.where(known, mean, before.mean),
        np.where(known, spread, before.spread),
        np.where(known, np.where(ripe, excess, 0.0), before.excess),
    )
    return after, known & ripe & (np.round(after.excess - threshold, 6) > 0)


def common_rise(values: FloatColumn, mean: FloatColumn, history: npt.NDArray[np.int32], ripe_from: int) -> FloatColumn:
    """Return by how much most of a tenant's edges carry more than at other times, ``(len(SIGNALS),)``.

    More calls and bytes everywhere is load, not the drift of an edge: mornings would be told edge by edge.
    """
    rises = np.zeros(len(SIGNALS))
    for signal in (CALLS, BYTES):
        rise = (values[:, signal] - mean[:, signal])[history[:, signal] >= max(ripe_from, 1)]
        rise = rise[~np.isnan(rise)]
        if len(rise) >= _FEW_EDGES:
            rises[signal] = np.median(rise)
    return rises


def creeps(
    config: DetectionConfig,
    values: FloatColumn,
    mean: FloatColumn,
    past: Mask,
    calls: IntColumn,
    timed: IntColumn,
    sampled: IntColumn,
) -> dict[tuple[DriftKind, int], Mask]:
    """Return which edges' signals are a creep: past the threshold, and now worth an event.

    Shapes:
        values, mean, past: ``(E, len(SIGNALS))``, mean the long one. calls, timed: ``(E,)``, calls seen, and those
        with a latency. sampled: ``(E,)``, records of a sample; 0 where everything was seen. returns ``(E,)`` each.
    """
    masks: dict[tuple[DriftKind, int], Mask] = {}
    with np.errstate(invalid="ignore"):
        far = past & (values - mean >= shifts_of(config))
        for signal, kind in KINDS.items():
            mask = far[:, signal].copy()
            if signal != BYTES:
                mask &= (timed if signal in (P50, P95) else calls) >= config.min_calls
            if signal in (P50, P95):
                mask &= np.expm1(values[:, signal]) - np.expm1(mean[:, signal]) >= config.min_latency_shift_us
            elif signal == BYTES:
                mask &= (np.expm1(values[:, signal]) >= MIN_BYTES) & ((sampled == 0) | (sampled >= config.min_calls))
            masks[kind, signal] = mask
    return masks
