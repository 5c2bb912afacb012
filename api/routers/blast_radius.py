"""Blast radius: who is hurt, or at risk, when a service or an edge degrades."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import GraphRepositoryOf, RepositoryOf
from api.parameters import Lane, Since, Until
from api.problems import NOT_FOUND, RESPONSES, Problem, invalid_parameter, not_found, result_too_large
from api.repository import EventFilter, Repository
from api.routers.graph_detail import range_of
from api.tenant import Tenant
from models.impact.blast_radius import blast_radius
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.ids import REPLAY_PREFIX, TenantId
from schemas.impact import CallGraph, Degradation

router = APIRouter(tags=["blast radius"], responses=RESPONSES)

MAX_BASELINE_WINDOWS = 240
MAX_PAIRS = 300_000
MAX_EVENTS = 500
DEGRADING = (DriftKind.LATENCY_INCREASE, DriftKind.ERROR_INCREASE)
"""Kinds that say that a callee serves its callers worse."""

_Name = Annotated[str | None, Query(min_length=1, max_length=256, examples=["shop/cart"])]


class ImpactedOut(BaseModel):
    """A service that depends on what degrades."""

    model_config = ConfigDict(from_attributes=True)

    service: str
    impact: float = Field(description="Share of its requests predicted to be hurt, 0..1.")
    hops: int
    requests: int = Field(description="Calls it received in the baseline; made, where nobody calls it.")
    requests_at_risk: int
    path: list[str] = Field(description="From it to what degrades, each calling the next.")
    is_entry_point: bool
    status: str = Field(description="hurt: it was seen to degrade too; at_risk: not yet.")
    observed: str = Field(description="What was seen of it, in words.")


class DegradationOut(BaseModel):
    """A service that was seen to degrade."""

    model_config = ConfigDict(from_attributes=True)

    service: str
    score: float
    sentence: str


class BlastRadiusOut(BaseModel):
    """Who is hurt or at risk, most impact first."""

    origin: list[str]
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    services: int = Field(description="In the call graph that was walked.")
    edges: int
    impacted_total: int
    impacted: list[ImpactedOut]
    entry_points: list[str] = Field(description="Impacted services that nobody inside calls: users do.")
    unexplained: list[DegradationOut] = Field(
        description="Seen to degrade, and do not depend on the origin: it alone is not the reason."
    )
    notes: list[str]


@router.get("/blast-radius", summary="Who is hurt when a service or an edge degrades", responses=NOT_FOUND)
async def get_blast_radius(
    tenant: Tenant,
    repository: RepositoryOf,
    graph: GraphRepositoryOf,
    service: _Name = None,
    src: _Name = None,
    dst: _Name = None,
    event_id: Annotated[str | None, Query(description="Of the edge of this drift event.", max_length=64)] = None,
    lane: Lane = None,
    since: Since = None,
    until: Until = None,
    baseline_windows: Annotated[
        int, Query(ge=1, le=MAX_BASELINE_WINDOWS, description="Windows before the range that say who calls whom.")
    ] = 60,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Impacted services.")] = 100,
) -> BlastRadiusOut:
    """Predict who is hurt, from who called whom before the range (default: the last 15 minutes), beside what is seen.

    Give `service`, or `src` and `dst`, or `event_id`. Without `lane` each pair counts the calls of the live lane that
    saw most.
    """
    event = None if event_id is None else await repository.event(tenant, event_id)
    if event_id is not None and event is None:
        raise not_found("This drift event")
    origin = _origin(service, src, dst, event)
    if event is not None and lane is None and event.lane.startswith(REPLAY_PREFIX):
        lane = event.lane  # a replay is nobody's live lane: its calls are in no other
    if event is not None and since is None:
        since_ms, until_ms = min(event.first_seen_ms, event.window_start_ms), event.window_end_ms
    else:
        since_ms, until_ms = await range_of(repository, tenant, lane or "", since, until, "-15m")
    usual_ms = await _baseline(repository, tenant, lane or "", since_ms, baseline_windows)
    notes = [] if usual_ms is not None else ["Nothing is stored from before the range: its own calls are taken."]
    start_ms, end_ms = (since_ms, until_ms) if usual_ms is None else (usual_ms, since_ms)
    wanted = EventFilter(
        since_ms,
        until_ms + 1,
        lane=lane or "",
        kinds=DEGRADING,
        activities=(Activity.CREATE, Activity.UPDATE),
    )
    calls, events = await asyncio.gather(
        graph.call_graph(tenant, lane or "", start_ms, end_ms, MAX_PAIRS + 1, repository.kept),
        repository.events(tenant, wanted, MAX_EVENTS),
    )
    if len(calls.src) > MAX_PAIRS:
        raise result_too_large()
    try:
        report = await asyncio.to_thread(blast_radius, calls, origin, degradations(events, calls))
    except KeyError:
        raise Problem(
            404, "not-found", "Not found", f"{' -> '.join(origin)} is not in the calls of the baseline."
        ) from None
    return BlastRadiusOut(
        origin=list(origin),
        since_ms=since_ms,
        until_ms=until_ms,
        baseline_since_ms=start_ms,
        baseline_until_ms=end_ms,
        services=len(calls.services),
        edges=len(calls.src),
        impacted_total=len(report.impacted),
        impacted=[ImpactedOut.model_validate(one) for one in report.impacted[:limit]],
        entry_points=list(report.entry_points[:limit]),
        unexplained=[DegradationOut.model_validate(one) for one in report.unexplained[:limit]],
        notes=[*notes, *report.notes],
    )


def _origin(service: str | None, src: str | None, dst: str | None, event: DriftEvent | None) -> tuple[str, ...]:
    given = [service is not None, src is not None or dst is not None, event is not None]
    if sum(given) != 1:
        raise invalid_parameter("service", "give service, or src and dst, or event_id")
    if service is not None:
        return (service,)
    if event is not None:
        return tuple(name for name in (event.src, event.dst) if name)
    if src is None or dst is None:
        raise invalid_parameter("dst" if dst is None else "src", "an edge has src and dst")
    return (src, dst)


async def _baseline(repository: Repository, tenant: TenantId, lane: str, since_ms: int, windows: int) -> int | None:
    """Return where the baseline starts that ends at ``since_ms``; ``None`` where nothing is stored before it."""
    rows = await repository.windows(tenant, lane=lane, since_ms=0, until_ms=since_ms, limit=windows)
    if not rows:
        return None
    if any(row.lane != rows[0].lane for row in rows):
        rows = await repository.windows(tenant, lane=rows[0].lane, since_ms=0, until_ms=since_ms, limit=windows)
    start_ms = min(row.start_ms for row in rows)
    return start_ms if start_ms < since_ms else None


def degradations(events: Sequence[DriftEvent], graph: CallGraph) -> dict[str, Degradation]:
    """Return what drift events say of services: of a callee, what its callers saw; the strongest of each.

    A service that nobody calls is hurt where its own calls are.
    """
    called = {graph.services[number] for number in graph.dst.tolist()}
    found: dict[str, Degradation] = {}
    for event in events:
        score = max((one.score for one in event.evidence), default=0.0)
        for service in (event.dst, "" if event.src in called else event.src):
            if service and (service not in found or score > found[service].score):
                found[service] = Degradation(service, score, event.message)
    return found
