"""Drift events and findings."""

import asyncio
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from api.buckets import Bucket, bucket_ms_of
from api.dependencies import RepositoryOf
from api.event_export import MAX_EVENTS, as_csv, as_json_lines, csv_header, lines_of, pages_of
from api.event_filters import Events
from api.parameters import CursorText, decode_cursor, encode_cursor
from api.problems import NOT_FOUND, RESPONSES, invalid_parameter, not_found
from api.responses import DriftEventDetail, EventPage, FindingOut, event_detail, event_out
from api.summaries import EventSummary, EventTimeline, summary_of, timeline_of
from api.tenant import Tenant
from schemas.drift import Activity, DriftEvent

router = APIRouter(tags=["drift"], responses=RESPONSES)

MAX_PAGE = 500
MAX_FINDING_EVENTS = 1_000

EventId = Annotated[str, Path(max_length=64, examples=["3f0d6c1b9a2e4d5f8c7b6a5948372615"])]
FindingId = Annotated[str, Path(max_length=64, examples=["9b1c2d3e4f5061728394a5b6c7d8e9f0"])]


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSON_LINES = "jsonl"


_EXPORT_TYPES = {ExportFormat.CSV: "text/csv; charset=utf-8", ExportFormat.JSON_LINES: "application/x-ndjson"}


@router.get("/drift-events", summary="List drift events")
async def list_drift_events(
    tenant: Tenant,
    repository: RepositoryOf,
    asked: Events,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Events a page.")] = 50,
) -> EventPage:
    """Return drift events, newest first, in pages.

    Follow `next_cursor` with the same filters. Events that arrive meanwhile never repeat or hide others: they are newer
    than the page. Times that are ages are resolved once, on the first page.
    """
    position = decode_cursor(asked.key, cursor, (int, int, int, str))
    if position is None:
        since_ms, until_ms = await asked.times(repository, tenant)
        after = None
    else:
        since_ms, until_ms, after = position[0], position[1], (position[2], position[3])
    events = await repository.events(tenant, asked.within(since_ms, until_ms, after), limit + 1)
    page = events[:limit]
    is_last = len(events) <= limit
    return EventPage(
        since_ms=since_ms,
        until_ms=until_ms,
        events=[event_out(event) for event in page],
        next_cursor=None
        if is_last
        else encode_cursor(asked.key, [since_ms, until_ms, page[-1].time_ms, page[-1].event_id]),
    )


@router.get(
    "/drift-events/export",
    summary="Drift events as a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A line an event, newest first. `X-Total-Count` says how many match.",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        }
    },
)
async def export_drift_events(
    tenant: Tenant,
    repository: RepositoryOf,
    asked: Events,
    format: Annotated[ExportFormat, Query(description="csv, or jsonl: one JSON object a line.")] = ExportFormat.CSV,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="Events at most, the newest.")] = 10_000,
) -> StreamingResponse:
    """Return the drift events that the same filters list, as one file; `X-Total-Count` above `limit` means cut.

    Cells of CSV that a spreadsheet would take for a formula begin with an apostrophe.
    """
    since_ms, until_ms = await asked.times(repository, tenant)
    wanted = asked.within(since_ms, until_ms)
    totals = await repository.event_totals(tenant, wanted)
    pages = pages_of(repository, tenant, wanted, limit)
    first: list[DriftEvent] = await anext(pages, [])  # what fails now is still answered as a problem
    is_csv = format is ExportFormat.CSV
    lines = lines_of(first, pages, as_csv if is_csv else as_json_lines, csv_header() if is_csv else "")
    headers = {
        "X-Total-Count": str(totals.events),
        "Content-Disposition": f'attachment; filename="drift-events.{format.value}"',
    }
    return StreamingResponse(lines, media_type=_EXPORT_TYPES[format], headers=headers)


@router.get("/drift-events/summary", summary="Count drift events")
async def summarise_drift_events(tenant: Tenant, repository: RepositoryOf, asked: Events) -> EventSummary:
    """Return how many drift events the same filters list, by kind, severity and activity."""
    since_ms, until_ms = await asked.times(repository, tenant)
    wanted = asked.within(since_ms, until_ms)
    totals, counts = await asyncio.gather(
        repository.event_totals(tenant, wanted), repository.event_counts(tenant, wanted)
    )
    return summary_of(since_ms, until_ms, totals, counts)


@router.get("/drift-events/timeline", summary="Count drift events over time")
async def get_timeline(tenant: Tenant, repository: RepositoryOf, asked: Events, bucket: Bucket = None) -> EventTimeline:
    """Return how many drift events the same filters list in each span of a range (default: the last day)."""
    newest_ms = max(
        await repository.newest_ms(tenant, asked.lane), await repository.newest_event_ms(tenant, asked.lane)
    )
    since_ms, until_ms = await asked.times(repository, tenant, since="-1d", until_ms=newest_ms + 1)
    if until_ms <= since_ms:
        raise invalid_parameter("until", "must be later than since")
    bucket_ms = bucket_ms_of(bucket, since_ms, until_ms)
    counts = await repository.event_buckets(tenant, asked.within(since_ms, until_ms), bucket_ms)
    return timeline_of(since_ms, until_ms, bucket_ms, counts)


@router.get("/drift-events/{event_id}", summary="One drift event", responses=NOT_FOUND)
async def get_drift_event(tenant: Tenant, repository: RepositoryOf, event_id: EventId) -> DriftEventDetail:
    """Return one drift event by its id, its explanation, its edges' graph scores, and what became of its finding."""
    event = await repository.event(tenant, event_id)
    if event is None:
        raise not_found("This drift event")
    history, scores = await asyncio.gather(
        repository.finding(tenant, event.finding_id, MAX_FINDING_EVENTS), repository.edge_scores(tenant, event)
    )
    return event_detail(event, history, scores)


@router.get("/findings/{finding_id}", summary="One finding with its events", responses=NOT_FOUND)
async def get_finding(tenant: Tenant, repository: RepositoryOf, finding_id: FindingId) -> FindingOut:
    """Return a finding and its events from Create over Updates to Close."""
    events = await repository.finding(tenant, finding_id, MAX_FINDING_EVENTS + 1)
    if not events:
        raise not_found("This finding")
    shown = events[:MAX_FINDING_EVENTS]
    last = shown[-1]
    return FindingOut(
        finding_id=finding_id,
        status="closed" if last.activity is Activity.CLOSE else "open",
        kind=last.kind.value,
        subject=last.subject,
        severity=last.severity.name.lower(),
        events=[event_out(event) for event in shown],
        is_truncated=len(events) > len(shown),
    )
