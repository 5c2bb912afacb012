"""Departures of a closed window's edges against what each did before: judged, remembered. Pure, vectorised."""

import numpy as np
import numpy.typing as npt

from models.drift import baseline, persistence
from models.drift.persistence import DIRECTIONS, FEWER, Departures, level_of
from models.drift.slowness import Slowness
from models.drift.statistical import EdgeSignals, levels_of
from models.graph.lane import LaneState
from models.graph.registry import CALLS, SIGNALS
from models.graph.thresholds import by_config, of_each

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def judge_persistence(
    lane: LaneState, index: int, present: IntColumn, signals: EdgeSignals, slowness: Slowness, may_drop: Mask
) -> tuple[Departures, Mask]:
    """Hold a window's departures against what each edge did before, keep the doubt, and say which are news.

    Shapes:
        present, may_drop: ``(P,)``, the latter where few calls mean something. returns ``(P, DIRECTIONS)`` each.
    """
    edge = lane.registry.edge.array
    tenants = edge["tenant"][present]
    shape = (len(present), DIRECTIONS)
    level, judged, most = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool), np.zeros((len(present), 1))
    for config, rows in by_config(lane, tenants):
        some = slice(None) if rows is None else rows
        part = signals if rows is None else signals.take(rows)
        level[some], judged[some] = levels_of(config, part, slowness if rows is None else slowness.take(rows))
        most[some] = config.departure_doubt
    judged[:, FEWER] &= may_drop
    departed, departing = (edge[name][present].astype(np.float64) for name in persistence.PERSISTENCE_COLUMNS)
    silent = index - edge["last_index"][present]
    seen = persistence.judge(departed, departing, level, judged, silent, most)
    edge["departing"][present] = seen.doubt
    return seen, seen.news(most)


def learn_persistence(lane: LaneState, present: IntColumn, seen: Departures, told: Mask, teaches: Mask) -> None:
    """Count a window among those of its edges where it ``teaches``; ``told``: what was news. ``(P, DIRECTIONS)``."""
    edge = lane.registry.edge.array
    edge["departed"][present] = persistence.learn(edge["departed"][present].astype(np.float64), seen, told, teaches)


def silence_is_news_after(lane: LaneState, numbers: IntColumn) -> IntColumn:
    """Return after how many windows without a call each edge's silence is news, by what it did before. Shape alike."""
    edge = lane.registry.edge.array
    departed, departing = (edge[name][numbers].astype(np.float64) for name in persistence.PERSISTENCE_COLUMNS)
    threshold, doubt = (of_each(lane, edge["tenant"][numbers], name) for name in ("z_threshold", "departure_doubt"))
    return persistence.silent_windows(departed, departing, _score_of_silence(lane, numbers), threshold, doubt)


def _score_of_silence(lane: LaneState, numbers: IntColumn) -> FloatColumn:
    edge = lane.registry.edge.array
    mean, spread = (edge[name][numbers] for name in ("mean", "spread"))
    none = np.zeros(len(numbers), dtype=np.int64)
    values = np.where(np.arange(len(SIGNALS)) == CALLS, 0.0, np.nan) + mean * 0
    scores = baseline.scores_of(values, mean, spread, none, edge["scale"][numbers], none)
    score: FloatColumn = -scores[:, CALLS]
    return score


def learn_silence(lane: LaneState, numbers: IntColumn, windows: IntColumn) -> None:
    """Count windows without a call among those of edges that are back, where their silence says something."""
    edge = lane.registry.edge.array
    ripe = edge["history"][numbers, CALLS] >= lane.thresholds("min_history", edge["tenant"][numbers])
    some = np.flatnonzero((windows > 0) & ripe)
    numbers, windows = numbers[some], windows[some]
    if len(numbers):
        level = level_of(_score_of_silence(lane, numbers), of_each(lane, edge["tenant"][numbers], "z_threshold"))
        departed = edge["departed"][numbers].astype(np.float64)
        edge["departed"][numbers] = persistence.learn_silence(departed, level, windows)
