"""Drift events and findings."""

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Query

from api.dependencies import RepositoryOf
from api.parameters import (
    MAX_TIME_MS,
    CursorText,
    Lane,
    Service,
    Since,
    Until,
    decode_cursor,
    encode_cursor,
    is_age,
    parse_time,
)
from api.problems import NOT_FOUND, RESPONSES, invalid_parameter, not_found
from api.repository import EventFilter
from api.responses import DriftEventOut, EventPage, FindingOut, event_out
from api.tenant import Tenant
from schemas.drift import Activity, DriftKind, Severity

router = APIRouter(tags=["drift"], responses=RESPONSES)

_Member = TypeVar("_Member", Severity, Activity)

MAX_PAGE = 500
MAX_FINDING_EVENTS = 1_000

EventId = Annotated[str, Path(max_length=64, examples=["3f0d6c1b9a2e4d5f8c7b6a5948372615"])]
FindingId = Annotated[str, Path(max_length=64, examples=["9b1c2d3e4f5061728394a5b6c7d8e9f0"])]
_SEVERITIES = ", ".join(one.name.lower() for one in Severity)
_ACTIVITIES = ", ".join(one.name.lower() for one in Activity)


@router.get("/drift-events", summary="List drift events")
async def list_drift_events(
    tenant: Tenant,
    repository: RepositoryOf,
    kind: Annotated[list[DriftKind] | None, Query(description="Kinds; repeat for several.")] = None,
    severity: Annotated[
        list[str] | None, Query(description=f"Exactly these ({_SEVERITIES}); repeat for several.", examples=[["high"]])
    ] = None,
    min_severity: Annotated[str | None, Query(description=f"At least this ({_SEVERITIES}).")] = None,
    activity: Annotated[
        list[str] | None, Query(description=f"{_ACTIVITIES}; repeat for several.", examples=[["create"]])
    ] = None,
    service: Service = None,
    incident: Annotated[str | None, Query(description="Incident by id.", max_length=64)] = None,
    lane: Lane = None,
    is_alert: Annotated[bool | None, Query(description="Only those inside (true) or outside the alert budget.")] = None,
    since: Since = None,
    until: Until = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Events a page.")] = 50,
) -> EventPage:
    """Return drift events, newest first, in pages.

    Follow `next_cursor` with the same filters. Events that arrive meanwhile never repeat or hide others: they are newer
    than the page. Times that are ages are resolved once, on the first page.
    """
    severities = tuple(_member("severity", Severity, name) for name in severity or ())
    activities = tuple(_member("activity", Activity, name) for name in activity or ())
    query: dict[str, Any] = {
        "kind": sorted(kind or ()),
        "severity": sorted(severities),
        "min_severity": min_severity,
        "activity": sorted(activities),
        "service": service,
        "incident": incident,
        "lane": lane,
        "is_alert": is_alert,
        "since": since,
        "until": until,
    }
    position = decode_cursor(query, cursor, (int, int, int, str))
    if position is None:
        newest_ms = await repository.newest_ms(tenant, lane or "") if is_age(since) or is_age(until) else 0
        since_ms = parse_time("since", since, newest_ms) if since is not None else 0
        until_ms = parse_time("until", until, newest_ms) if until is not None else MAX_TIME_MS
        after = None
    else:
        since_ms, until_ms, after = position[0], position[1], (position[2], position[3])
    wanted = EventFilter(
        since_ms=since_ms,
        until_ms=until_ms,
        lane=lane or "",
        kinds=tuple(kind or ()),
        severities=severities,
        least_severity=_member("min_severity", Severity, min_severity or "informational"),
        activities=activities,
        service=service or "",
        incident=incident or "",
        is_alert=is_alert,
        after=after,
    )
    events = await repository.events(tenant, wanted, limit + 1)
    page = events[:limit]
    is_last = len(events) <= limit
    return EventPage(
        since_ms=since_ms,
        until_ms=until_ms,
        events=[event_out(event) for event in page],
        next_cursor=None
        if is_last
        else encode_cursor(query, [since_ms, until_ms, page[-1].time_ms, page[-1].event_id]),
    )


def _member(name: str, members: type[_Member], text: str) -> _Member:
    try:
        return members[text.upper()]
    except KeyError:
        known = ", ".join(one.name.lower() for one in members)
        raise invalid_parameter(name, f"use one of {known}") from None


@router.get("/drift-events/{event_id}", summary="One drift event", responses=NOT_FOUND)
async def get_drift_event(tenant: Tenant, repository: RepositoryOf, event_id: EventId) -> DriftEventOut:
    """Return one drift event by its id."""
    event = await repository.event(tenant, event_id)
    if event is None:
        raise not_found("This drift event")
    return event_out(event)


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
