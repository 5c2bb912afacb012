"""What is stored of a tenant, in numbers."""

import asyncio

from fastapi import APIRouter

from api.dependencies import RepositoryOf
from api.parameters import Lane, Since, Until, is_age, parse_time
from api.problems import RESPONSES, invalid_parameter
from api.repository import EventFilter
from api.summaries import LaneStatisticsOut, OpenFindingsOut, TenantStatistics, summary_of
from api.tenant import Tenant
from schemas.drift import Severity

router = APIRouter(tags=["statistics"], responses=RESPONSES)


@router.get("/statistics", summary="The tenant in numbers")
async def get_statistics(
    tenant: Tenant, repository: RepositoryOf, lane: Lane = None, since: Since = None, until: Until = None
) -> TenantStatistics:
    """Return how much of everything there is in a range (default: the last day), and what is open now.

    Without `lane`: services, edges and open findings are those of all live lanes; replays are asked for by name.
    """
    only = lane or ""
    start = since or "-1d"
    newest_ms = await repository.newest_ms(tenant, only) if until is None or is_age(start) or is_age(until) else 0
    since_ms = parse_time("since", start, newest_ms)
    # An early event may be newer than the newest closed window.
    last_ms = await repository.newest_event_ms(tenant, only) if until is None else 0
    until_ms = parse_time("until", until, newest_ms) if until is not None else max(newest_ms, last_ms, since_ms) + 1
    if until_ms <= since_ms:
        raise invalid_parameter("until", "must be later than since")
    wanted = EventFilter(since_ms, until_ms, lane=only)
    (services, external), edges, lanes, totals, counts, still_open = await asyncio.gather(
        repository.service_counts(tenant, only, since_ms, until_ms),
        repository.edge_count(tenant, only, since_ms, until_ms),
        repository.lane_statistics(tenant, only, since_ms, until_ms),
        repository.event_totals(tenant, wanted),
        repository.event_counts(tenant, wanted),
        repository.open_findings(tenant, only),
    )
    return TenantStatistics(
        since_ms=since_ms,
        until_ms=until_ms,
        services=services,
        external_services=external,
        edges=edges,
        open=OpenFindingsOut(
            findings=still_open.findings,
            incidents=still_open.incidents,
            alerts=still_open.alerts,
            worst_severity=Severity(still_open.worst).name.lower() if still_open.worst else None,
        ),
        drift_events=summary_of(since_ms, until_ms, totals, counts),
        lanes=[LaneStatisticsOut.model_validate(lane) for lane in lanes],
    )
