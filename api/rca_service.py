"""Root cause of an event or a range: which windows are looked at, against which, and the ranking of them."""

import asyncio
from dataclasses import dataclass

import msgspec

from api.problems import Problem
from api.repository import EventFilter, LaneRow, Repository, WindowRow
from models.rca.error_rank import rank_causes
from models.rca.lanes import LaneEdges, one_lane_a_pair, one_lane_a_subject
from schemas.drift import DriftEvent
from schemas.ids import REPLAY_PREFIX, TenantId
from schemas.rca import RcaReport

MAX_CURRENT_WINDOWS = 60
MAX_ROWS = 200_000
"""Edges read of one range: bounds memory and time of the ranking."""
MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class RankedRange:
    """A report, the ranges it rests on, and the lanes that its edges are read from."""

    report: RcaReport
    lane: str
    generation: int
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    events: int
    lanes: tuple[str, ...]


async def causes_of_event(
    repository: Repository, tenant: TenantId, event: DriftEvent, baseline_windows: int, limit: int
) -> RankedRange:
    """Rank causes of a drift event: from where its finding was first seen to the end of the event's window."""
    since_ms = min(event.first_seen_ms, event.window_start_ms)
    return await causes_of_range(
        repository, tenant, event.lane, since_ms, event.window_end_ms, baseline_windows, limit, symptom=event
    )


async def causes_of_range(
    repository: Repository,
    tenant: TenantId,
    lane: str,
    since_ms: int,
    until_ms: int,
    baseline_windows: int,
    limit: int,
    symptom: DriftEvent | None = None,
) -> RankedRange:
    """Rank causes of what happened in ``[since_ms, until_ms)``, against the windows just before it.

    The windows of one lane say what the range is: those of ``lane``, else of the lane with the newest window in it.
    Where no lane is asked for, or for an event, other live lanes that have closed the range by now complete the graph:
    each pair of services is read from one lane, so that nothing counts twice.

    Raises:
        Problem: 404 if no closed window lies in the range.
    """
    chosen = await _choose_windows(repository, tenant, lane, since_ms, until_ms, baseline_windows)
    is_completed = (symptom is not None or not lane) and not chosen.lane.startswith(REPLAY_PREFIX)
    # Closed windows stay as they are: the same ones, with the same events, have the same causes.
    question = (tenant, chosen, is_completed, limit, symptom and symptom.event_id)
    known: _Known | None = repository.kept.get(question)
    # What the range's own lane holds is read while nobody knows yet whether there are others: mostly there are none.
    (others, left_out), events, parts = await asyncio.gather(
        _lanes_beside(repository, tenant, chosen, is_completed),
        repository.events(tenant, _events_wanted(chosen, chosen.lane), MAX_EVENTS),
        _edges_of(repository, tenant, [chosen.own_lane] if known is None else [], chosen),
    )
    if others:
        events = await repository.events(tenant, _events_wanted(chosen, ""), MAX_EVENTS)
    lanes = [chosen.own_lane, *others]
    event_ids = tuple(event.event_id for event in events)
    if known is not None and (known.lanes, known.left_out, known.event_ids) == (lanes, left_out, event_ids):
        return known.ranked
    parts += await _edges_of(repository, tenant, lanes[len(parts) :], chosen)
    names = [one.lane for one in lanes]
    events = one_lane_a_subject(events, names)

    def rank() -> RcaReport:
        current, baseline = one_lane_a_pair(parts)
        return rank_causes(current, baseline, events, limit, symptom)

    report = await asyncio.to_thread(rank)
    report = msgspec.structs.replace(report, notes=(*report.notes, *chosen.notes, *left_out))
    ranked = RankedRange(
        report,
        chosen.lane,
        chosen.generation,
        chosen.since_ms,
        chosen.until_ms,
        chosen.baseline_since_ms,
        chosen.baseline_until_ms,
        len(events),
        tuple(sorted(names)),
    )
    repository.kept.put(question, _Known(lanes, left_out, event_ids, ranked))
    return ranked


@dataclass(frozen=True, slots=True)
class _Known:
    """An answer, and what else than its closed windows it rests on: the lanes, and the events."""

    lanes: list[LaneRow]
    left_out: list[str]
    event_ids: tuple[str, ...]
    ranked: RankedRange


def _events_wanted(chosen: "_Chosen", lane: str) -> EventFilter:
    return EventFilter(since_ms=chosen.since_ms, until_ms=chosen.until_ms + 1, lane=lane)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Windows of the lane that says what the range is, and of the baseline before it.

    Attributes:
        windows: all of them. is_cut: whether windows between baseline and range are left out.
    """

    lane: str
    generation: int
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    window_ms: int
    windows: tuple[WindowRow, ...]
    is_cut: bool

    @property
    def notes(self) -> list[str]:
        """Return what limits the answer."""
        kept = sum(window.start_ms >= self.since_ms for window in self.windows)
        return [f"Only the last {kept} windows of the range were looked at."] if self.is_cut else []

    @property
    def own_lane(self) -> LaneRow:
        """Return the lane itself."""
        return LaneRow(self.lane, self.generation, self.since_ms, self.until_ms, self.window_ms, 0)


async def _choose_windows(
    repository: Repository, tenant: TenantId, lane: str, since_ms: int, until_ms: int, baseline_windows: int
) -> _Chosen:
    """Choose the windows of the range and of the baseline.

    Raises:
        Problem: 404 if no closed window lies in the range.
    """
    current, earlier = await _windows_of(repository, tenant, lane, since_ms, until_ms, baseline_windows)
    kept = _within_rows(current[:MAX_CURRENT_WINDOWS])
    first = kept[-1]
    before_ms = _begin_of(current, since_ms)
    baseline = _within_rows([window for window in earlier if window.end_ms <= before_ms][:baseline_windows])
    baseline = [window for window in baseline if window.generation == first.generation]
    return _Chosen(
        lane=first.lane,
        generation=first.generation,
        since_ms=first.start_ms,
        until_ms=kept[0].end_ms,
        baseline_since_ms=baseline[-1].start_ms if baseline else before_ms,
        baseline_until_ms=baseline[0].end_ms if baseline else before_ms,
        window_ms=max(window.end_ms - window.start_ms for window in kept),
        windows=(*kept, *baseline),
        is_cut=len(kept) < len(current),
    )


def _begin_of(current: list[WindowRow], since_ms: int) -> int:
    """Return where the range begins, and so its baseline ends, even if of the range only the end is looked at."""
    return current[-1].start_ms if len(current) <= MAX_CURRENT_WINDOWS else since_ms


async def _windows_of(
    repository: Repository, tenant: TenantId, lane: str, since_ms: int, until_ms: int, baseline_windows: int
) -> tuple[list[WindowRow], list[WindowRow]]:
    """Return the windows of the range, one more than are looked at, and those before it; newest first.

    Mostly one query has both: where a lane is asked for, or one lane alone has the newest windows.
    """
    most = MAX_CURRENT_WINDOWS + 1
    rows = await repository.windows(tenant, lane=lane, since_ms=0, until_ms=until_ms, limit=most + baseline_windows + 1)
    if len({row.lane for row in rows}) == 1 and rows[0].end_ms > since_ms:
        current = [row for row in rows if row.end_ms > since_ms]
        if len(current) < most:
            return current, rows[len(current) :]
    newest = await repository.windows(tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=1)
    if not newest:
        raise Problem(404, "no-windows", "No closed window", "No window of this range is closed yet, or ever was.")
    lane = newest[0].lane
    current = await repository.windows(tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=most)
    before_ms = max(_begin_of(current, since_ms), 0)
    return current, await repository.windows(
        tenant, lane=lane, since_ms=0, until_ms=before_ms, limit=baseline_windows + 1
    )


async def _lanes_beside(
    repository: Repository, tenant: TenantId, chosen: _Chosen, is_completed: bool
) -> tuple[list[LaneRow], list[str]]:
    """Return other live lanes whose windows reach to the end of the range, and why others are left out.

    Nothing of either, unless the graph is to be completed from them.
    """
    if not is_completed:
        return [], []
    lanes, notes = [], []
    rows = await repository.lanes(tenant, chosen.baseline_since_ms, chosen.until_ms)
    for row in rows:
        if row.lane == chosen.lane:
            continue
        if row.end_ms < chosen.until_ms:
            notes.append(f"Lane {row.lane} is left out: it has not closed all windows of the range yet.")
        elif row.edges > 2 * MAX_ROWS:
            notes.append(f"Lane {row.lane} is left out: it has too many edges in the range.")
        else:
            lanes.append(row)
    return lanes, notes


async def _edges_of(repository: Repository, tenant: TenantId, lanes: list[LaneRow], chosen: _Chosen) -> list[LaneEdges]:
    return list(await asyncio.gather(*[_edges_of_lane(repository, tenant, one, chosen) for one in lanes]))


async def _edges_of_lane(repository: Repository, tenant: TenantId, lane: LaneRow, chosen: _Chosen) -> LaneEdges:
    of_lane = (tenant, lane.lane, lane.generation)
    if chosen.is_cut:
        current, baseline = await asyncio.gather(
            repository.edges_between(*of_lane, chosen.since_ms, chosen.until_ms),
            repository.edges_between(*of_lane, chosen.baseline_since_ms, chosen.baseline_until_ms),
        )
    else:
        both = await repository.edges_between(*of_lane, chosen.baseline_since_ms, chosen.until_ms)
        current = both.where(both.window_start_ms >= chosen.since_ms)
        baseline = both.where(both.window_start_ms < chosen.baseline_until_ms)
    return LaneEdges(lane.lane, lane.window_ms, current, baseline)


def _within_rows(windows: list[WindowRow]) -> list[WindowRow]:
    """Keep the newest windows, at least one, whose edges stay within ``MAX_ROWS``."""
    total, kept = 0, list[WindowRow]()
    for window in windows:
        total += window.edges
        if kept and total > MAX_ROWS:
            break
        kept.append(window)
    return kept
