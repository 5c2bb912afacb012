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
    newest = await repository.windows(tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=1)
    if not newest:
        raise Problem(404, "no-windows", "No closed window", "No window of this range is closed yet, or ever was.")
    chosen = await _choose_windows(repository, tenant, newest[0].lane, since_ms, until_ms, baseline_windows)
    lanes, notes = [chosen.own_lane], chosen.notes
    if (symptom is not None or not lane) and not chosen.lane.startswith(REPLAY_PREFIX):
        others, left_out = await _lanes_beside(repository, tenant, chosen)
        lanes, notes = lanes + others, notes + left_out
    names = [one.lane for one in lanes]
    only = names[0] if len(names) == 1 else ""
    parts, events = await asyncio.gather(
        asyncio.gather(*[_edges_of(repository, tenant, one, chosen) for one in lanes]),
        repository.events(
            tenant,
            EventFilter(since_ms=chosen.since_ms, until_ms=chosen.until_ms + 1, lane=only),
            MAX_EVENTS,
        ),
    )
    events = one_lane_a_subject(events, names)

    def rank() -> RcaReport:
        current, baseline = one_lane_a_pair(parts)
        return rank_causes(current, baseline, events, limit, symptom)

    report = await asyncio.to_thread(rank)
    report = msgspec.structs.replace(report, notes=(*report.notes, *notes))
    return RankedRange(
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


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Windows of the lane that says what the range is, and of the baseline before it."""

    lane: str
    generation: int
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    window_ms: int
    notes: list[str]

    @property
    def own_lane(self) -> LaneRow:
        """Return the lane itself."""
        return LaneRow(self.lane, self.generation, self.since_ms, self.until_ms, self.window_ms, 0)


async def _choose_windows(
    repository: Repository, tenant: TenantId, lane: str, since_ms: int, until_ms: int, baseline_windows: int
) -> _Chosen:
    current = await repository.windows(
        tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=MAX_CURRENT_WINDOWS + 1
    )
    is_whole = len(current) <= MAX_CURRENT_WINDOWS
    kept = _within_rows(current[:MAX_CURRENT_WINDOWS])
    first = kept[-1]
    # The baseline ends where the range asked for begins, even if of the range itself only the end is looked at.
    before_ms = current[-1].start_ms if is_whole else since_ms
    earlier = await repository.windows(
        tenant, lane=lane, since_ms=0, until_ms=max(before_ms, 0), limit=baseline_windows + 1
    )
    baseline = _within_rows([window for window in earlier if window.end_ms <= before_ms][:baseline_windows])
    baseline = [window for window in baseline if window.generation == first.generation]
    cut = len(kept) < len(current)
    return _Chosen(
        lane=lane,
        generation=first.generation,
        since_ms=first.start_ms,
        until_ms=kept[0].end_ms,
        baseline_since_ms=baseline[-1].start_ms if baseline else before_ms,
        baseline_until_ms=baseline[0].end_ms if baseline else before_ms,
        window_ms=max(window.end_ms - window.start_ms for window in kept),
        notes=[f"Only the last {len(kept)} windows of the range were looked at."] if cut else [],
    )


async def _lanes_beside(repository: Repository, tenant: TenantId, chosen: _Chosen) -> tuple[list[LaneRow], list[str]]:
    """Return other live lanes whose windows reach to the end of the range, and why others are left out."""
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


async def _edges_of(repository: Repository, tenant: TenantId, lane: LaneRow, chosen: _Chosen) -> LaneEdges:
    current, baseline = await asyncio.gather(
        repository.edges_between(tenant, lane.lane, lane.generation, chosen.since_ms, chosen.until_ms),
        repository.edges_between(
            tenant, lane.lane, lane.generation, chosen.baseline_since_ms, chosen.baseline_until_ms
        ),
    )
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
