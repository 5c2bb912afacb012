"""Slow calls of a closed window, edge by edge: counted from its histograms, judged, remembered. Pure, vectorised."""

import numpy as np
import numpy.typing as npt

from models.drift.slowness import SLOW_COLUMNS, Slowness, count_slow, judge, learn, limit_us
from models.graph.cutting import WindowColumns
from models.graph.lane import LaneState
from models.graph.registry import P95
from models.graph.thresholds import by_config
from schemas.graph import MEASURE_INDEX

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def judge_slowness(
    lane: LaneState, index: int, columns: WindowColumns, usable: Mask, mean: FloatColumn, history: npt.NDArray[np.int32]
) -> Slowness:
    """Hold a window's slow calls against what is usual for each edge, and keep the doubt.

    Shapes:
        usable: ``(E,)``, edges whose calls came on time. mean, history: ``(E, len(SIGNALS))``, before this window.
    """
    edge, present = lane.registry.edge.array, columns.present
    tenants = edge["tenant"][present]
    usual_us = np.expm1(np.maximum(mean[:, P95], 0.0))
    limit, ripe = np.zeros(len(present), dtype=np.int64), np.zeros(len(present), dtype=bool)
    for config, rows in by_config(lane, tenants):
        some = slice(None) if rows is None else rows
        limit[some] = limit_us(usual_us[some], config.min_latency_shift_us)
        ripe[some] = history[some, P95] >= config.min_history
    slow = count_slow(columns.h_edge, columns.h_bucket, columns.h_count, limit)
    weighed, flows = (columns.chosen[MEASURE_INDEX[name]] for name in ("latency_calls", "flows"))
    # One record has one latency, however many calls it stands for, or was multiplied to.
    calls = np.minimum(weighed, flows).astype(np.float64)
    share = slow / np.maximum(weighed, 1)
    state = {name: edge[name][present] for name in SLOW_COLUMNS}
    found = judge(state, share * calls, calls, index - edge["last_index"][present], ripe & usable)
    edge["slow_doubt"][present] = np.where(found.judged, found.doubt, state["slow_doubt"])
    return found


def learn_slowness(lane: LaneState, present: IntColumn, found: Slowness, shows: Mask) -> None:
    """Move on what is usual, where ``shows``, ``(E,)``, lets a window teach."""
    edge = lane.registry.edge.array
    state = {name: edge[name][present] for name in SLOW_COLUMNS}
    for name, after in learn(state, found).items():
        edge[name][present] = np.where(shows, after, state[name])
