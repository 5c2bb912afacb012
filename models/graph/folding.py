"""Rows of one record into open windows: which cannot be folded, when and to which edge they count. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph.admission import admit
from models.graph.border import unsent_rows
from models.graph.corroboration import note
from models.graph.early import FoldedRows, raise_early
from models.graph.halves import INDEX, LATE, Joined
from models.graph.lane import DAY_MS, IntColumn, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.output import Output, RowDeadLetter
from models.graph.registry import distinct
from models.graph.taken import TakenOrigins
from schemas.dead_letter import Reason
from schemas.flow import MAX_MEASURE, SIDE_SERVER
from schemas.tenant_log import (
    CONTINUED,
    MARK_COLUMNS,
    ORIGIN,
    PAIR,
    SAMPLING,
    EdgeIdentity,
    LogRecord,
    unpack_column,
    unpack_rows,
)

MAX_OPEN_WINDOWS = 512
"""Windows open at once; rows beyond are folded into the nearest one. Only hostile clocks come near it."""
MAX_CALLS = 1 << 32
MAX_TIME_MS = 1 << 43
"""As schemas/flow.py bounds them: the year 2248, and more calls than one record can stand for."""
NO_LIMIT = (1 << 63) - 1
_MARK_BOUNDS = {SAMPLING: (1, MAX_MEASURE), CONTINUED: (0, 1), PAIR: (-1, NO_LIMIT)}
_HOST = "host"
_MEASURED = ("errors", "denied", "bytes_out", "bytes_in", "packets_out", "packets_in", "latency_us")


def fold(lane: LaneState, record: LogRecord, applied: int, taken: TakenOrigins) -> Output:
    """Fold the rows of a record beyond the applied coordinate; return early detections and refused rows.

    Rows that were dead letters once are folded if they are not yet among ``taken``, and are then.
    """
    assert record.rows is not None
    output = Output()
    columns = unpack_rows(record.rows)
    if lane.logic < PRODUCERS_OWN:
        columns = {name: column for name, column in columns.items() if name not in MARK_COLUMNS}
    good = columns["position"] > applied
    if record.origin is not None:
        columns[ORIGIN] = unpack_column(record.rows.columns[ORIGIN], record.rows.count)
        good = taken.fresh(record.origin, columns[ORIGIN], good)
    output.counts["repeated"] += int(len(good) - good.sum())
    _take_marks(columns)
    good = _refuse(lane, record, columns, good, output)
    whole = bool(good.all())
    if record.origin is not None:
        # They count among on time, late and skewed too: those, without these, and the dead, are the input.
        output.counts["retaken"] += int(good.sum())
        taken.add(record.origin, columns.pop(ORIGIN)[good])
    if not whole:
        columns = {name: column[good] for name, column in columns.items()}
    if not len(columns["position"]):
        return output
    columns["time_ms"] = _believed_times(lane, record, columns)
    index, late = _place(lane, columns["time_ms"] // lane.config.window_ms, columns)
    hosts = record.rows.hosts if lane.logic >= PRODUCERS_OWN and record.origin is None else None
    if PAIR not in columns:
        codes = columns["edge"]
        _fold(lane, _Rows(record.rows.edges, columns, codes, index, late, None if whole else codes, hosts), output)
        return output
    codes = lane.halves.codes_of(record.rows.edges, columns["edge"])
    if hosts is not None:  # now: by the time a half is folded, it does not matter when it came
        tenants = lane.halves.tenants_of(codes, columns["edge"], lane.registry.tenant)
        lane.guard.note_rows(index, tenants, late if late.any() else None, columns, hosts)
    columns |= {INDEX: index, LATE: late.astype(np.int64)}
    columns.setdefault(SAMPLING, np.ones(len(index), dtype=np.int64))
    joined = lane.halves.join(
        columns, record.rows.edges, codes, lambda tenant: lane.detection(tenant).max_pending_pairs
    )
    for value in distinct(index[waiting]) if (waiting := (columns[PAIR] >= 0) & ~late).any() else ():
        lane.window(value)  # open though nothing may be folded into it yet: a loss would concern it
    _fold_joined(lane, joined, output)
    return output


def fold_halves(lane: LaneState, before: int | None = None) -> Output:
    """Fold the halves that wait in windows below an index, ``None`` is all, without the other ones.

    Nothing fires: their windows close next.
    """
    output = Output()
    if not lane.halves.is_empty:
        _fold_joined(lane, lane.halves.release(before), output, is_closing=True)
    return output


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows and where they go.

    Attributes:
        codes: index into ``edges`` of each row. index: window of each. late: rows behind closed windows.
        used: codes that have rows, with repeats; None is all.
        hosts: who may have reported the rows; None where that is nobody's concern here.
        joined: what pairing made them of; None if it had nothing to do with them.
    """

    edges: Sequence[EdgeIdentity]
    columns: dict[str, IntColumn]
    codes: IntColumn
    index: IntColumn
    late: npt.NDArray[np.bool_]
    used: IntColumn | None = None
    hosts: Sequence[str] | None = None
    joined: Joined | None = None


def _fold_joined(lane: LaneState, joined: Joined, output: Output, is_closing: bool = False) -> None:
    output.counts.update({name: count for name, count in joined.counts.items() if count})
    if len(joined):
        columns = dict(joined.columns)
        codes, index, late = columns.pop("edge"), columns.pop(INDEX), columns.pop(LATE) > 0
        _fold(lane, _Rows(joined.edges, columns, codes, index, late, joined=joined), output, is_closing)


def _fold(lane: LaneState, rows: _Rows, output: Output, is_closing: bool = False) -> None:
    edges, columns, codes, index, late = rows.edges, rows.columns, rows.codes, rows.index, rows.late
    times = columns["time_ms"]
    numbers, new = _numbers(lane, edges, rows.used)
    late_rows = int(np.count_nonzero(late))
    output.counts["late"] += late_rows
    skewed_rows = int(np.count_nonzero((columns["skewed"] > 0) & ~late))
    output.counts["skewed"] += skewed_rows
    output.counts["on_time"] += len(late) - late_rows - skewed_rows
    if rows.hosts is not None:
        tenants = lane.registry.edge.array["tenant"][numbers[codes]]
        lane.guard.note_rows(index, tenants, late if late_rows else None, columns, rows.hosts)
    unsent = unsent_rows(lane, numbers[codes], columns)
    _note_first_seen(lane, numbers, codes, times, unsent)
    if lane.logic >= PRODUCERS_OWN:
        _note_hearsay(lane, rows, numbers, new)
    capacity = lane.registry.edge.capacity
    touched = distinct(index)
    if len(touched) == 1:
        lane.window(touched[0]).fold(columns, codes, numbers, late if late_rows else None, capacity)
    else:
        for value in touched:
            here = np.flatnonzero(index == value)
            part = {name: column[here] for name, column in columns.items()}
            lane.window(value).fold(part, codes[here], numbers, late[here] if late_rows else None, capacity)
    if lane.closed_index is not None and not is_closing:
        news = _certain(rows, numbers, new)
        raise_early(lane, output, FoldedRows(numbers, news, codes, times, index, columns, unsent))


def _note_hearsay(lane: LaneState, rows: _Rows, numbers: IntColumn, new: list[int]) -> None:
    """Mark edges of which servers' halves without a client's alone have told yet: they are measured, and no news."""
    registry = lane.registry
    if rows.joined is None:
        told = numbers if rows.used is None else numbers[np.unique(rows.used)]
    else:
        is_told = ~rows.joined.is_alone | (rows.columns["side"] != SIDE_SERVER)
        told = numbers[np.flatnonzero(np.bincount(rows.codes[is_told], minlength=len(numbers)))]
        for number in sorted(set(new).difference(told.tolist())):
            registry.doubt(number)
    for number in np.unique(told[registry.edge.array["hearsay"][told]]).tolist():
        registry.confirm(number)
        note(lane, number)


def _certain(rows: _Rows, numbers: IntColumn, new: list[int]) -> list[int]:
    """Return new edges that were not brought by half a call first: its other half might have named another edge."""
    if rows.joined is None or not new or not rows.joined.began_alone.any():
        return new
    # Codes are in the order in which rows brought them: the first one of each edge is kept.
    first = dict(zip(numbers[::-1].tolist(), rows.joined.began_alone[::-1].tolist(), strict=True))
    return [number for number in new if not first[number]]


def _take_marks(columns: dict[str, IntColumn]) -> None:
    """Let rows whose call another record counts bring none; of other rows none at all is out of bounds as ever."""
    if CONTINUED in columns:
        calls = columns["calls"]
        columns["calls"] = np.where(columns[CONTINUED] > 0, 0, np.where(calls == 0, -1, calls))


def _refuse(
    lane: LaneState, record: LogRecord, columns: dict[str, IntColumn], good: npt.NDArray[np.bool_], output: Output
) -> npt.NDArray[np.bool_]:
    """Dead-letter rows that cannot be folded; what they would break is checked before anything is changed."""
    assert record.rows is not None
    if not len(good):
        return good
    latest_ms = NO_LIMIT if record.append_time else record.as_of_ms + DAY_MS
    bounds = {
        "edge": (0, len(record.rows.edges) - 1),
        "calls": (1 if CONTINUED not in columns else 0, MAX_CALLS),
        "time_ms": (0, MAX_TIME_MS),
        **dict.fromkeys(_MEASURED, (-1, MAX_MEASURE)),
    }
    marks = {**_MARK_BOUNDS, _HOST: (-1, len(record.rows.hosts) - 1)}
    bounds |= {name: bound for name, bound in marks.items() if name in columns}
    # Nearly every record is sound: two extremes a column say so without a mask.
    outside = [n for n, (low, high) in bounds.items() if columns[n].min() < low or columns[n].max() > high]
    if not outside and columns["time_ms"].max() <= latest_ms:
        return good
    broken = np.zeros(len(good), dtype=bool)
    for name in outside:
        broken |= (columns[name] < bounds[name][0]) | (columns[name] > bounds[name][1])
    future = columns["time_ms"] > latest_ms
    for mask, reason, detail in (
        (broken & good, Reason.STATE_MACHINE, "a value is outside its bounds"),
        (future & good & ~broken, Reason.FUTURE, "more than a day ahead of the log's clock"),
    ):
        progress = record.progress[0]
        source, partition = record.origin or (progress.source, progress.partition)
        positions = columns["position" if record.origin is None else ORIGIN][mask].tolist()
        output.dead += [RowDeadLetter(source, partition, position, reason, detail) for position in positions]
        # A dead letter that is replayed and refused again was counted where it became one.
        output.counts["dead" if record.origin is None else "dead_again"] += len(positions)
    return good & ~broken & ~future


def _believed_times(lane: LaneState, record: LogRecord, columns: dict[str, IntColumn]) -> IntColumn:
    """Fold records ahead of the log's clock at that clock, marked ``skewed``; ingest did so for LogAppendTime."""
    times = columns["time_ms"]
    if record.append_time or lane.config.mode != "live":
        return times
    ahead = times > record.as_of_ms + lane.config.skew_ms
    if ahead.any():
        columns["skewed"] = np.where(ahead, 1, columns["skewed"])
        times = np.where(ahead, record.as_of_ms, times)
    return times


def _numbers(lane: LaneState, edges: Sequence[EdgeIdentity], used: IntColumn | None) -> tuple[IntColumn, list[int]]:
    """Return edge numbers by code, and the numbers that are new."""
    registry = lane.registry
    found, looked_up = registry.numbers_of(edges, lane.named, used)
    new: list[int] = []
    for code, (_, identity) in looked_up.items():
        if found[code] >= 0:
            continue
        again = registry.edge_number.get(identity)
        if again is not None:
            found[code] = again
            continue
        state = lane.tenant_state(registry.tenant(identity[0])).edges
        cap = lane.detection(identity[0]).max_edges_per_tenant
        found[code], is_new = admit(registry, state, identity, cap, lane.windows)
        if is_new:
            note(lane, int(found[code]))
            new.append(int(found[code]))
    if new:
        # An admission can push out another edge of this very record: look again.
        overflow = {t: s.edges.overflow for t, s in lane.tenants.items() if s.edges.overflow is not None}
        if overflow:
            tenant_of = registry.edge.array["tenant"]
            for code in range(len(edges)) if used is None else np.unique(used).tolist():
                if registry.identities[found[code]] is None:
                    found[code] = overflow[int(tenant_of[found[code]])]
            new = [number for number in new if registry.identities[number] is not None]
    for code, (given, _) in looked_up.items():
        lane.note_names(int(found[code]), given)
    return np.maximum(found, 0), new


def _place(lane: LaneState, index: IntColumn, columns: dict[str, IntColumn]) -> tuple[IntColumn, npt.NDArray[np.bool_]]:
    """Return the window index each row is folded into, and which rows are late."""
    late = np.zeros(len(index), dtype=bool)
    if lane.closed_index is not None:
        late = index < lane.closed_index
        if late.any():
            index = np.maximum(index, lane.closed_index)
    fresh = [value for value in distinct(index) if value not in lane.windows]
    if len(lane.windows) + len(fresh) > MAX_OPEN_WINDOWS:
        allowed = sorted([*lane.windows, *fresh[: max(0, MAX_OPEN_WINDOWS - len(lane.windows))]])
        slot = np.clip(np.searchsorted(allowed, index), 0, len(allowed) - 1)
        nearest = np.asarray(allowed, dtype=np.int64)[slot]
        columns["skewed"] = np.where(nearest != index, 1, columns["skewed"])
        index = nearest
    return index, late


def _note_first_seen(
    lane: LaneState,
    numbers: IntColumn,
    codes: IntColumn,
    times: IntColumn,
    unsent: npt.NDArray[np.bool_] | None,
) -> None:
    columns = lane.registry.edge.array
    unknown = ~columns["known"][numbers]
    if unknown.any():
        rows = np.flatnonzero(unknown[codes] if unsent is None else unknown[codes] & ~unsent)
        np.minimum.at(columns["first_seen_ms"], numbers[codes[rows]], times[rows])
        lane.registry.touch(numbers[codes[rows]])
