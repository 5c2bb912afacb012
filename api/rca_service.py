"""Root cause of an event or a range: which windows are looked at, against which, and the ranking of them."""

import asyncio
from dataclasses import dataclass

import msgspec

from api.problems import Problem
from api.repository import EventFilter, Repository, WindowRow
from models.rca.error_rank import rank_causes
from schemas.drift import DriftEvent
from schemas.ids import TenantId
from schemas.rca import RcaReport

MAX_CURRENT_WINDOWS = 60
MAX_ROWS = 200_000
"""Edges read of one range: bounds memory and time of the ranking."""
MAX_EVENTS = 200


@dataclass(frozen=True, slots=True)
class RankedRange:
    """A report and the ranges it rests on."""

    report: RcaReport
    lane: str
    generation: int
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    events: int


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

    Without a lane, the one with the newest window in the range is taken.

    Raises:
        Problem: 404 if no closed window lies in the range.
    """
    newest = await repository.windows(tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=1)
    if not newest:
        raise Problem(404, "no-windows", "No closed window", "No window of this range is closed yet, or ever was.")
    lane = newest[0].lane
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
    base_from = baseline[-1].start_ms if baseline else before_ms
    base_to = baseline[0].end_ms if baseline else before_ms
    now, usual, events = await asyncio.gather(
        repository.edges_between(tenant, lane, first.generation, first.start_ms, kept[0].end_ms),
        repository.edges_between(tenant, lane, first.generation, base_from, base_to),
        repository.events(
            tenant, EventFilter(since_ms=first.start_ms, until_ms=kept[0].end_ms + 1, lane=lane), MAX_EVENTS
        ),
    )
    report = await asyncio.to_thread(rank_causes, now, usual, events, limit, symptom)
    if len(kept) < len(current):
        note = f"Only the last {len(kept)} windows of the range were looked at."
        report = msgspec.structs.replace(report, notes=(*report.notes, note))
    return RankedRange(report, lane, first.generation, first.start_ms, kept[0].end_ms, base_from, base_to, len(events))


def _within_rows(windows: list[WindowRow]) -> list[WindowRow]:
    """Keep the newest windows, at least one, whose edges stay within ``MAX_ROWS``."""
    total, kept = 0, list[WindowRow]()
    for window in windows:
        total += window.edges
        if kept and total > MAX_ROWS:
            break
        kept.append(window)
    return kept
