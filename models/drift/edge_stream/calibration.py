"""Which scores are worth an alert, learned from the tenant's own past days; no labels. Pure, constant memory.

A caller's best score of each hour is its case for an alert. The threshold of a day is the score that just
``budget_per_day`` cases reached on the median of the past days: a day of attacks cannot raise it by itself.
A callee that has alerted is not named again in that hour, so that one flood from forged callers is one alert,
and no day raises more than its budget.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream.groups import MAX_RECORDS, Runs, runs_of
from models.drift.edge_stream.parameters import MINUTE_MS
from models.drift.edge_stream.state import NEVER

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Int32Column = npt.NDArray[np.int32]
KeyColumn = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

BINS = 2_048
BINS_PER_UNIT = 2
"""Scores are told apart to a half, from -512 to 512."""
_ZERO_BIN = BINS // 2
HOUR_MS = 60 * MINUTE_MS
_DAY_HOURS = 24


@dataclass(frozen=True, slots=True)
class AlertParams:
    """How many alerts a day are wanted, how many past days are asked, and how many cells hold callers."""

    budget_per_day: int = 50
    days: int = 14
    columns: int = 1 << 14


@dataclass(slots=True)
class AlertState:
    """Cases of the hour under way per cell, of the day under way and of past days. A function of the records.

    ``withheld``: alerts that the budget has cut off so far.

    Shapes:
        hour, best, src_alerted, dst_alerted: ``(columns,)``, the latter the hour of the latest alert.
        today: ``(BINS,)``. past: ``(days, BINS)``, oldest overwritten.
    """

    hour: Int32Column
    best: IntColumn
    src_alerted: Int32Column
    dst_alerted: Int32Column
    today: IntColumn
    past: IntColumn
    days_seen: int = 0
    newest_hour: int = NEVER
    day: int = NEVER
    alerts_today: int = 0
    withheld: int = 0


def empty_alerts(params: AlertParams) -> AlertState:
    """Return the state before the first record."""
    never = np.full(params.columns, NEVER, dtype=np.int32)
    past = np.zeros((params.days, BINS), dtype=np.int64)
    best = np.zeros(params.columns, dtype=np.int64)
    return AlertState(never, best, never.copy(), never.copy(), past[0].copy(), past)


def bins_of(scores: FloatColumn) -> IntColumn:
    """Return the bin of each score. Shapes: ``(N,)``."""
    bins: IntColumn = np.clip(np.floor(scores * BINS_PER_UNIT) + _ZERO_BIN, 0, BINS - 1).astype(np.int64)
    return bins


class AlertCalibration:
    """Raises alerts at a threshold that holds a budget, from the scores alone."""

    def __init__(self, params: AlertParams | None = None, state: AlertState | None = None) -> None:
        self.params = params or AlertParams()
        self.state = state or empty_alerts(self.params)

    @property
    def threshold(self) -> float | None:
        """The score that alerts today; ``None`` while the first day is learned."""
        level = self._threshold_bin()
        return None if level is None else (level - _ZERO_BIN) / BINS_PER_UNIT

    def risk(self, scores: FloatColumn) -> FloatColumn:
        """Return which share of the past days' cases scored lower, 0 to 1; 0 while nothing is learned.

        Shapes:
            scores, returns: ``(N,)``.
        """
        cases = self.state.past.sum(axis=0)
        below = np.cumsum(cases) - cases
        shares: FloatColumn = below[bins_of(scores)] / max(int(cases.sum()), 1)
        return shares

    def observe(self, src: KeyColumn, dst: KeyColumn, event_ms: IntColumn, scores: FloatColumn) -> Mask:
        """Say which records raise an alert: the first of their caller's and callee's hour to reach the threshold.

        Shapes:
            src, dst: ``(N,)`` uint64 hashes. event_ms: ``(N,)`` int64 in log order. scores, returns: ``(N,)``.
        """
        raised = np.zeros(len(src), dtype=np.bool_)
        if not len(src):
            return raised
        hours = np.maximum(np.maximum.accumulate(event_ms // HOUR_MS), self.state.newest_hour).astype(np.int32)
        self.state.newest_hour = int(hours[-1])
        bins = bins_of(scores)
        cells, dst_cells = ((keys & np.uint64(self.params.columns - 1)).astype(np.int64) for keys in (src, dst))
        days = hours // _DAY_HOURS
        cuts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(hours)]
        for begin, end in pairwise(cuts):
            self._open_day(int(days[begin]))
            for first in range(begin, end, MAX_RECORDS):
                part = slice(first, min(first + MAX_RECORDS, end))
                raised[part] = self._fold(cells[part], dst_cells[part], hours[part], bins[part])
        return raised

    def _threshold_bin(self) -> int | None:
        known = min(self.state.days_seen, self.params.days)
        if not known:
            return None
        # Cases at or above each bin, per day; the lowest bin that keeps the budget.
        above = np.cumsum(self.state.past[:known, ::-1], axis=1)[:, ::-1]
        within = above <= self.params.budget_per_day
        lowest = np.where(within.any(axis=1), within.argmax(axis=1), BINS)
        return int(np.median(lowest))

    def _open_day(self, day: int) -> None:
        state = self.state
        if state.day not in (NEVER, day):
            self._close(np.flatnonzero(state.hour != NEVER))
            state.hour[...] = NEVER
            state.past[state.days_seen % self.params.days] = state.today
            state.days_seen += 1
            state.today[...] = 0
            state.alerts_today = 0
        state.day = day

    def _close(self, cells: IntColumn) -> None:
        self.state.today += np.bincount(self.state.best[cells], minlength=BINS)

    def _fold(self, cells: IntColumn, dst_cells: IntColumn, hours: Int32Column, bins: IntColumn) -> Mask:
        state, runs = self.state, runs_of(cells, hours)
        touched = runs.cell[runs.cell_start]
        stored_hour = state.hour[touched]
        going = runs.continues(stored_hour)
        sorted_bins = bins[runs.order]
        best = np.maximum.reduceat(sorted_bins, runs.start)
        best = np.where(going, np.maximum(best, state.best[touched][runs.of_cell]), best)
        self._close(touched[(stored_hour != NEVER) & ~going[runs.cell_start]])
        is_last = np.zeros(len(best), dtype=np.bool_)
        is_last[runs.cell_end] = True
        state.today += np.bincount(best[~is_last], minlength=BINS)
        state.hour[touched] = runs.minute[runs.cell_end]
        state.best[touched] = best[runs.cell_end]
        return self._raise(runs, sorted_bins, dst_cells)

    def _raise(self, runs: Runs, sorted_bins: IntColumn, dst_cells: IntColumn) -> Mask:
        raised = np.zeros(len(runs.order), dtype=np.bool_)
        level = self._threshold_bin()
        if level is None:
            return raised
        state = self.state
        places = np.where(sorted_bins >= level, np.arange(len(runs.order)), len(runs.order))
        first = np.minimum.reduceat(places, runs.start)
        fresh = np.flatnonzero((first < len(runs.order)) & (state.src_alerted[runs.cell] != runs.minute))
        state.src_alerted[runs.cell[fresh]] = runs.minute[fresh]
        hits = sorted(zip(runs.order[first[fresh]].tolist(), runs.minute[fresh].tolist(), strict=True))
        for place, hour in hits:
            to = dst_cells[place]
            if state.dst_alerted[to] == hour:
                continue
            state.dst_alerted[to] = hour
            if state.alerts_today < self.params.budget_per_day:
                state.alerts_today += 1
                raised[place] = True
            else:
                state.withheld += 1
        return raised
