"""The parts of the edge score, each a fold of one chunk (of one day) into one table. Pure, vectorised.

Each function reads what its table remembers *before* each record, returns that per record, and then moves the
table on. All numbers are whole, so that neither order of addition nor cutting into chunks can change a score.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream.groups import Runs, runs_of
from models.drift.edge_stream.parameters import DAY_MINUTES, UNIT, EdgeScorerParams
from models.drift.edge_stream.state import NEVER, DestinationTable, EdgeTable, SourceTable

IntColumn = npt.NDArray[np.int64]
Int32Column = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What is known of each record's caller, least over the sketch rows. Shapes: all ``(N,)``.

    Attributes:
        count: records in this minute with this one. fan_out: edges new today, touched in this minute.
        history: earlier records in 1/``UNIT``, those on probation at its weight. load: recent records alike.
        age: minutes with records since the caller's first, this one included.
    """

    count: IntColumn
    fan_out: IntColumn
    history: IntColumn
    load: IntColumn
    age: IntColumn


@dataclass(frozen=True, slots=True)
class DestinationFacts:
    """What is known of each record's callee, least over the sketch rows. Shapes: both ``(N,)``, in 1/``UNIT``.

    Attributes:
        peak: most records of any one minute, this one included. history: records of earlier minutes.
    """

    peak: IntColumn
    history: IntColumn


def fold_edges(table: EdgeTable, cells: IntColumn, minutes: Int32Column) -> Mask:
    """Say which records are the first of their minute on an edge that was not known before today.

    Novelty of an edge as such (Ranshous et al. 2016, "A scalable approach for outlier detection in edge streams
    using sketch-based approximations"), remembered as a day per hashed cell instead of a frequency.

    Shapes:
        cells, minutes: ``(N,)``, one day. returns: ``(N,)`` bool.
    """
    runs = runs_of(cells, minutes)
    touched = runs.cell[runs.cell_start]
    day = int(minutes[0]) // DAY_MINUTES
    first_day = table.first_day[touched]
    young = (first_day == NEVER) | (first_day == day)
    opens = young[runs.of_cell] & ~runs.continues(table.minute[touched])
    marks = np.zeros(len(cells), dtype=np.bool_)
    marks[runs.order[runs.start[opens]]] = True
    table.first_day[touched] = np.where(first_day == NEVER, day, first_day)
    table.minute[touched] = runs.minute[runs.cell_end]
    return marks


def _closed(counts: IntColumn, params: EdgeScorerParams) -> IntColumn:
    """Return what finished minutes add to a history: a burst counts ``minute_cap`` at most (poisoning)."""
    return np.minimum(counts, params.minute_cap)


@dataclass(frozen=True, slots=True)
class _Counted:
    """One row's runs with the counts of their minutes. Shapes: carried, total, closed_before: ``(R,)``."""

    runs: Runs
    touched: IntColumn
    carried: IntColumn
    total: IntColumn
    closed_before: IntColumn


def _count(
    cells: IntColumn, minutes: Int32Column, stamp: Int32Column, count: Int32Column, params: EdgeScorerParams
) -> _Counted:
    runs = runs_of(cells, minutes)
    touched = runs.cell[runs.cell_start]
    going = runs.continues(stamp[touched])
    stored = count[touched].astype(np.int64)
    carried = np.where(going, stored[runs.of_cell], 0)
    total = carried + runs.size
    # The cell's minute before the chunk is over, unless its first run goes on with it.
    over = np.where(going[runs.cell_start], 0, _closed(stored, params))
    closed_before = over[runs.of_cell] + runs.before(_closed(total, params))
    return _Counted(runs, touched, carried, total, closed_before)


def fold_sources(
    table: SourceTable,
    cells: list[IntColumn],
    minutes: Int32Column,
    ticks: IntColumn,
    opens: Mask,
    params: EdgeScorerParams,
) -> SourceFacts:
    """Fold one chunk of one day into what is known of callers and return it for each record.

    Counts now against counts so far are MIDAS's (Bhatia et al. 2020, "MIDAS: Microcluster-Based Detector of
    Anomalies in Edge Streams"); holding back what may be an anomaly is MIDAS-F's (Bhatia et al. 2022, "Real-Time
    Anomaly Detection in Edge Streams"), here without a threshold: by a cap and by a day's probation.

    Shapes:
        cells: per row ``(N,)``. minutes, ticks: ``(N,)``. opens: ``(N,)`` from :func:`fold_edges`.
    """
    facts: list[tuple[IntColumn, ...]] = []
    for row, row_cells in enumerate(cells):
        counted = _count(row_cells, minutes, table.minute[row], table.count[row], params)
        runs, touched = counted.runs, counted.touched
        pending = table.pending[row, touched][runs.of_cell] + counted.closed_before * UNIT
        history = table.history[row, touched][runs.of_cell] + pending // params.probation
        in_minute = runs.rank() + 1 + counted.carried[runs.run]
        sorted_opens = opens[runs.order].astype(np.int64)
        opened = np.cumsum(sorted_opens)
        opened -= (opened - sorted_opens)[runs.start][runs.run]
        fan_before = np.where(runs.continues(table.minute[row, touched]), table.fan_out[row, touched][runs.of_cell], 0)
        fan_out = opened + fan_before[runs.run]
        in_cell = np.arange(len(row_cells)) - runs.start[runs.cell_start][runs.of_cell][runs.run]
        load = table.load[row, touched][runs.of_cell][runs.run] + (in_cell + 1) * UNIT
        first = table.first_tick[row, touched]
        first = np.where(first == NEVER, ticks[runs.order[runs.start[runs.cell_start]]], first)
        age = ticks[runs.order] - first[runs.of_cell][runs.run] + 1
        facts.append(tuple(_unsorted(runs, column) for column in (in_minute, fan_out, history[runs.run], load, age)))
        table.first_tick[row, touched] = first
        end, last = runs.cell_end, runs.start[runs.cell_end] + runs.size[runs.cell_end] - 1
        table.minute[row, touched] = runs.minute[end]
        table.count[row, touched] = counted.total[end]
        table.fan_out[row, touched] = fan_out[last]
        table.pending[row, touched] = pending[end]
        table.load[row, touched] = load[last]
    return SourceFacts(*_least(facts))


def fold_destinations(
    table: DestinationTable, cells: list[IntColumn], minutes: Int32Column, params: EdgeScorerParams
) -> DestinationFacts:
    """Fold one chunk of one day into what is known of callees and return it for each record.

    The largest minute ever against the usual load: a callee of rare large bursts is one that has been flooded,
    swept or probed before (Siffer et al. 2017, "Anomaly Detection in Streams with Extreme Value Theory", for why
    the maximum and not the mean).

    Shapes:
        cells: per row ``(N,)``. minutes: ``(N,)``.
    """
    facts: list[tuple[IntColumn, ...]] = []
    for row, row_cells in enumerate(cells):
        counted = _count(row_cells, minutes, table.minute[row], table.count[row], params)
        runs, touched = counted.runs, counted.touched
        history = table.history[row, touched][runs.of_cell] + counted.closed_before * UNIT
        peak = _peak_before(counted, table.peak[row, touched], table.count[row, touched])
        in_minute = runs.rank() + 1 + counted.carried[runs.run]
        highest = np.maximum(peak[runs.run], in_minute * UNIT)
        facts.append((_unsorted(runs, highest), _unsorted(runs, history[runs.run])))
        end = runs.cell_end
        table.minute[row, touched] = runs.minute[end]
        table.count[row, touched] = counted.total[end]
        table.history[row, touched] = history[end]
        table.peak[row, touched] = peak[end]
    return DestinationFacts(*_least(facts))


def _peak_before(counted: _Counted, peak: IntColumn, count: Int32Column) -> IntColumn:
    """Return the largest finished minute before each run. Shapes: peak, count: ``(C,)``, returns ``(R,)``."""
    runs = counted.runs
    over = np.where(counted.carried[runs.cell_start] > 0, 0, count.astype(np.int64) * UNIT)
    known = np.maximum(peak, over)
    shifted = np.empty(len(runs.cell), dtype=np.int64)
    shifted[1:] = counted.total[:-1] * UNIT
    shifted[runs.cell_start] = known
    # A running maximum per cell: each cell lifted above all cells before it, and let down again.
    lift = runs.of_cell * (int(shifted.max()) + 1)
    highest: IntColumn = np.maximum.accumulate(shifted + lift) - lift
    return highest


def _unsorted(runs: Runs, column: IntColumn) -> IntColumn:
    out = np.empty(len(column), dtype=np.int64)
    out[runs.order] = column
    return out


def _least(facts: list[tuple[IntColumn, ...]]) -> list[IntColumn]:
    return [np.minimum(*columns) if len(columns) == 2 else columns[0] for columns in zip(*facts, strict=True)]


def roll_day(
    source: SourceTable, destination: DestinationTable, edge: EdgeTable, day: int, days: int, params: EdgeScorerParams
) -> None:
    """Close the day before ``day``: believe, fade by ``days`` days, forget whom nobody saw for long."""
    keep = params.daily_keep
    source.pending += _closed(source.count.astype(np.int64), params) * UNIT
    destination.history += _closed(destination.count.astype(np.int64), params) * UNIT
    np.maximum(destination.peak, destination.count.astype(np.int64) * UNIT, out=destination.peak)
    for empty in (source.count, source.fan_out, destination.count):
        empty[...] = 0
    for _ in range(min(days, 64 * params.memory_days)):
        believed = source.pending // params.probation
        source.history += believed
        source.pending -= believed
        for fading in (source.history, destination.history, destination.peak):
            fading *= keep
            fading >>= 16
        source.load >>= 1
    edge.first_day[edge.minute // DAY_MINUTES < day - params.memory_days] = NEVER
    source.first_tick[source.minute // DAY_MINUTES < day - params.memory_days] = NEVER
