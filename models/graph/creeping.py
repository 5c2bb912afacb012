"""Slow drift of the edges of a closed window: their trends go on, and those that creep are said. Pure, vectorised."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.drift import trend
from models.drift.statistical import EdgeSignals
from models.drift.trend import Trends
from models.graph.lane import IntColumn, LaneState
from models.graph.recurring import accept_windows
from models.graph.registry import SIGNALS
from models.graph.thresholds import by_config

Mask = npt.NDArray[np.bool_]


def follow_trends(
    lane: LaneState, present: IntColumn, signals: EdgeSignals, teaching: Mask | None
) -> tuple[npt.NDArray[np.float64], Mask]:
    """Carry on the trends of a window's edges; return their long means before it, and which signals creep.

    Shapes:
        present: ``(P,)``, sorted by tenant. teaching: of tenants by number, whose rows show what is usual; None: no
        rows do, the window is incomplete. returns ``(P, len(SIGNALS))`` each.
    """
    edge = lane.registry.edge.array
    tenants = edge["tenant"][present]
    mean = edge["trend_mean"][present].astype(np.float64)
    past = np.zeros(mean.shape, dtype=bool)
    if teaching is None:
        return mean, past
    spread, excess = (edge[name][present].astype(np.float64) for name in ("trend_spread", "trend_excess"))
    before = Trends(mean, spread, excess)
    common = _common_rises(lane, tenants, signals, mean)
    for config, rows in by_config(lane, tenants):
        mine = np.arange(len(present)) if rows is None else rows
        mine = mine[teaching[tenants[mine]]]
        after, past[mine] = trend.follow(
            config,
            signals.values[mine],
            signals.mean[mine],
            signals.history[mine],
            common[mine],
            Trends(before.mean[mine], before.spread[mine], before.excess[mine]),
            accept_windows(lane),
        )
        numbers = present[mine]
        edge["trend_mean"][numbers] = after.mean
        edge["trend_spread"][numbers] = after.spread
        edge["trend_excess"][numbers] = after.excess
    return mean, past


def _common_rises(
    lane: LaneState, tenants: IntColumn, signals: EdgeSignals, mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how much the load of each edge's tenant rose. Shape ``(P, len(SIGNALS))``."""
    common = np.zeros((len(tenants), len(SIGNALS)))
    bounds = [0, *(np.flatnonzero(np.diff(tenants)) + 1).tolist(), len(tenants)]
    for start, end in pairwise(bounds):
        if start < end:
            some = slice(start, end)
            ripe_from = lane.detection(lane.registry.tenants[int(tenants[start])]).creep_min_history
            common[some] = trend.common_rise(signals.values[some], mean[some], signals.history[some], ripe_from)
    return common
