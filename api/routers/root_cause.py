"""Root-cause analysis over the stored graph."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import RepositoryOf
from api.parameters import Lane, Since, Until, is_age, parse_time
from api.problems import NOT_FOUND, RESPONSES, invalid_parameter, not_found
from api.rca_service import RankedRange, causes_of_event, causes_of_range
from api.responses import RootCauseOut, RootCauseReport
from api.tenant import Tenant

router = APIRouter(tags=["root cause"], responses=RESPONSES)

MAX_BASELINE_WINDOWS = 240


@router.get("/root-cause", summary="Ranked root causes", responses=NOT_FOUND)
async def get_root_cause(
    tenant: Tenant,
    repository: RepositoryOf,
    event_id: Annotated[str | None, Query(description="Of this drift event.", max_length=64)] = None,
    since: Since = None,
    until: Until = None,
    lane: Lane = None,
    baseline_windows: Annotated[
        int, Query(ge=1, le=MAX_BASELINE_WINDOWS, description="Windows before the range that say what is usual.")
    ] = 60,
    limit: Annotated[int, Query(ge=1, le=50, description="Causes.")] = 5,
) -> RootCauseReport:
    """Rank the services that may have caused a drift event, or what happened in a range.

    Give either `event_id`, or `since` with an optional `until` (default: the newest window) and `lane`.
    """
    if event_id is not None:
        if since is not None or until is not None or lane is not None:
            raise invalid_parameter("event_id", "give either event_id, or since, until and lane")
        event = await repository.event(tenant, event_id)
        if event is None:
            raise not_found("This drift event")
        return _report(await causes_of_event(repository, tenant, event, baseline_windows, limit))
    if since is None:
        raise invalid_parameter("since", "give either event_id or since")
    needs_newest = until is None or is_age(since) or is_age(until)
    newest_ms = await repository.newest_ms(tenant, lane or "") if needs_newest else 0
    since_ms = parse_time("since", since, newest_ms)
    until_ms = parse_time("until", until, newest_ms) if until is not None else max(newest_ms, since_ms + 1)
    if until_ms <= since_ms:
        raise invalid_parameter("until", "must be later than since")
    return _report(await causes_of_range(repository, tenant, lane or "", since_ms, until_ms, baseline_windows, limit))


def _report(ranked: RankedRange) -> RootCauseReport:
    report = ranked.report
    return RootCauseReport(
        lane=ranked.lane,
        lanes=list(ranked.lanes),
        generation=ranked.generation,
        since_ms=ranked.since_ms,
        until_ms=ranked.until_ms,
        baseline_since_ms=ranked.baseline_since_ms,
        baseline_until_ms=ranked.baseline_until_ms,
        current_windows=report.current_windows,
        baseline_windows=report.baseline_windows,
        services=report.services,
        edges=report.edges,
        drift_events=ranked.events,
        causes=[RootCauseOut.model_validate(cause) for cause in report.causes],
        notes=list(report.notes),
    )
