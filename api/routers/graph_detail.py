"""The graph over time: a service, an edge, and the difference of two times."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from api.buckets import Bucket, bucket_ms_of
from api.dependencies import GraphRepositoryOf, RepositoryOf
from api.graph_bodies import (
    EdgeDetail,
    EdgePoint,
    GraphDifference,
    ServiceDetail,
    ServicePoint,
    difference_out,
    run_out,
)
from api.graph_difference import difference_of
from api.graph_repository import (
    ANY,
    EdgeBucket,
    EdgeKey,
    ServiceBucket,
    Span,
    WindowBucket,
)
from api.parameters import Lane, Since, Until, is_age, parse_time
from api.problems import NOT_FOUND, RESPONSES, Problem, invalid_parameter, not_found, result_too_large
from api.repository import EventFilter, Repository, TenantEdgeRow, WindowRow
from api.responses import ServiceOut, WindowOut, event_out
from api.routers.graph import edge_in_lane_out, tenant_edge_out
from api.tenant import Tenant
from schemas.ids import TenantId, is_external

router = APIRouter(tags=["graph"], responses=RESPONSES)

MAX_PEERS = 500
MAX_EVENTS = 20
MAX_RUN = 60
MAX_COMPARED = 200_000
"""Edges of two runs that are compared: bounds memory."""
MAX_DIFFERENT = 5_000

Name = Annotated[str, Query(description="Service by name.", min_length=1, max_length=256, examples=["shop/cart"])]
Caller = Annotated[str, Query(description="Caller by name.", min_length=1, max_length=256, examples=["shop/web"])]
Callee = Annotated[str, Query(description="Callee by name.", min_length=1, max_length=256, examples=["shop/cart"])]


async def range_of(
    repository: Repository, tenant: TenantId, lane: str, since: str | None, until: str | None, default: str = "-1h"
) -> tuple[int, int]:
    """Return the range asked for; without ``since`` it starts so long before the newest closed window's end.

    Raises:
        Problem: 422 if a time is none, or the range is empty.
    """
    start = since if since is not None else default
    needs_newest = until is None or is_age(start) or is_age(until)
    newest_ms = await repository.newest_ms(tenant, lane) if needs_newest else 0
    since_ms = parse_time("since", start, newest_ms)
    until_ms = parse_time("until", until, newest_ms) if until is not None else max(newest_ms, since_ms + 1)
    if until_ms <= since_ms:
        raise invalid_parameter("until", "must be later than since")
    return since_ms, until_ms


@router.get("/services/detail", summary="One service over time", responses=NOT_FOUND)
async def get_service(
    tenant: Tenant,
    repository: RepositoryOf,
    graph: GraphRepositoryOf,
    service: Name,
    lane: Lane = None,
    since: Since = None,
    until: Until = None,
    bucket: Bucket = None,
) -> ServiceDetail:
    """Return who calls a service and whom it calls in a range (default: the last hour), its series and its events.

    The series is of `lane`, else of the live lane that counted most of its calls.
    """
    since_ms, until_ms = await range_of(repository, tenant, lane or "", since, until)
    bucket_ms = bucket_ms_of(bucket, since_ms, until_ms)
    seen, edges, events = await asyncio.gather(
        graph.service(tenant, service),
        repository.edges(
            tenant, lane=lane or "", service=service, since_ms=since_ms, until_ms=until_ms, limit=MAX_PEERS + 1
        ),
        repository.events(tenant, EventFilter(since_ms, until_ms + 1, lane=lane or "", service=service), MAX_EVENTS),
    )
    if not seen and not edges:
        raise not_found("This service")
    series_lane = lane or _busiest(edges)
    span = await _span(repository, tenant, series_lane, since_ms, until_ms, bucket_ms)
    series: list[ServicePoint] = []
    if span is not None:
        windows, points = await asyncio.gather(
            graph.window_buckets(tenant, span), graph.service_series(tenant, service, span)
        )
        series = _service_points(windows, points)
    shown = edges[:MAX_PEERS]
    return ServiceDetail(
        service=service,
        is_external=is_external(service),
        since_ms=since_ms,
        until_ms=until_ms,
        seen=[ServiceOut.model_validate(row) for row in seen],
        callers=[tenant_edge_out(edge) for edge in shown if edge.dst == service],
        callees=[tenant_edge_out(edge) for edge in shown if edge.src == service],
        is_truncated=len(edges) > MAX_PEERS,
        series_lane=series_lane,
        bucket_ms=bucket_ms,
        series=series,
        drift_events=[event_out(event) for event in events],
    )


def _busiest(edges: list[TenantEdgeRow]) -> str:
    calls: dict[str, int] = {}
    for edge in edges:
        for one in edge.lanes:
            calls[one.lane] = calls.get(one.lane, 0) + one.calls
    return min(calls, key=lambda name: (-calls[name], name), default="")


async def _span(
    repository: Repository, tenant: TenantId, lane: str, since_ms: int, until_ms: int, bucket_ms: int
) -> Span | None:
    """Return the range in a lane's newest generation; ``None`` where the lane has no window in it."""
    if not lane:
        return None
    newest = await repository.windows(tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=1)
    return Span(lane, newest[0].generation, since_ms, until_ms, bucket_ms) if newest else None


def _service_points(windows: list[WindowBucket], points: list[ServiceBucket]) -> list[ServicePoint]:
    found = {point.start_ms: point for point in points}
    unseen = ServiceBucket(0, 0, None, 0, None, 0, None, 0, 0)
    return [
        ServicePoint(
            start_ms=one.start_ms,
            windows=one.windows,
            incomplete_windows=one.incomplete,
            calls_in=point.calls_in,
            errors_in=point.errors_in,
            latency_mean_us=_mean(point.latency_sum_us, point.latency_calls),
            calls_out=point.calls_out,
            errors_out=point.errors_out,
            callers=point.callers,
            callees=point.callees,
        )
        for one in windows
        for point in (found.get(one.start_ms, unseen),)
    ]


def _mean(total: int | None, count: int) -> float | None:
    return total / count if total is not None and count else None


@router.get("/edges/detail", summary="One edge over time", responses=NOT_FOUND)
async def get_edge(
    tenant: Tenant,
    repository: RepositoryOf,
    graph: GraphRepositoryOf,
    src: Caller,
    dst: Callee,
    port: Annotated[int | None, Query(ge=-1, le=65_535, description="-1: unknown. Without it: all.")] = None,
    protocol: Annotated[int | None, Query(ge=-1, le=255, description="IANA number. Without it: all.")] = None,
    lane: Lane = None,
    since: Since = None,
    until: Until = None,
    bucket: Bucket = None,
) -> EdgeDetail:
    """Return what each lane counted of an edge in a range (default: the last hour), its series and its events.

    The series is of `lane`, else of the live lane that counted most of its calls. 404 where no window of the range
    shows it.
    """
    since_ms, until_ms = await range_of(repository, tenant, lane or "", since, until)
    bucket_ms = bucket_ms_of(bucket, since_ms, until_ms)
    edge = EdgeKey(src, dst, ANY if port is None else port, ANY if protocol is None else protocol)
    lanes = await graph.edge_lanes(tenant, edge, lane or "", since_ms, until_ms)
    if not lanes:
        raise not_found("This edge, in this range,")
    generation, busiest = min(lanes, key=lambda one: (-one[1].calls, one[1].lane))
    span = Span(busiest.lane, generation, since_ms, until_ms, bucket_ms)
    wanted = EventFilter(since_ms, until_ms + 1, lane=lane or "", edge=(src, dst))
    windows, points, events = await asyncio.gather(
        graph.window_buckets(tenant, span),
        graph.edge_series(tenant, edge, span),
        repository.events(tenant, wanted, MAX_EVENTS),
    )
    return EdgeDetail(
        src=src,
        dst=dst,
        port=port,
        protocol=protocol,
        since_ms=since_ms,
        until_ms=until_ms,
        lanes=[edge_in_lane_out(one) for _, one in lanes],
        series_lane=busiest.lane,
        bucket_ms=bucket_ms,
        series=_edge_points(windows, points),
        drift_events=[event_out(event) for event in events],
    )


def _edge_points(windows: list[WindowBucket], points: list[EdgeBucket]) -> list[EdgePoint]:
    found = {point.start_ms: point for point in points}
    unseen = EdgeBucket(0, 0, None, None, None, None, 0, None, None, None, None)
    return [
        EdgePoint(
            start_ms=one.start_ms,
            windows=one.windows,
            incomplete_windows=one.incomplete,
            calls=point.calls,
            errors=point.errors,
            denied=point.denied,
            bytes_out=point.bytes_out,
            bytes_in=point.bytes_in,
            latency_calls=point.latency_calls,
            latency_mean_us=_mean(point.latency_sum_us, point.latency_calls),
            p50_us=point.p50_us,
            p95_us=point.p95_us,
            p99_us=point.p99_us,
        )
        for one in windows
        for point in (found.get(one.start_ms, unseen),)
    ]


_TIME = "ISO 8601 with a time zone, epoch milliseconds, or an age"


@router.get("/graph/difference", summary="What became of the graph between two times", responses=NOT_FOUND)
async def get_difference(
    tenant: Tenant,
    repository: RepositoryOf,
    graph: GraphRepositoryOf,
    before: Annotated[str, Query(description=f"A time in the earlier window. {_TIME}.", examples=["-1h"])],
    after: Annotated[
        str | None,
        Query(description=f"A time in the later one; without it the newest. {_TIME}.", examples=["-5m"]),
    ] = None,
    lane: Lane = None,
    windows: Annotated[
        int, Query(ge=1, le=MAX_RUN, description="So many windows, up to the one of the time, are taken together.")
    ] = 1,
    factor: Annotated[
        float, Query(gt=1, le=1_000, description="Changed: so many times more, or less.", examples=[2])
    ] = 2,
    limit: Annotated[int, Query(ge=1, le=MAX_DIFFERENT, description="Edges.")] = 1_000,
) -> GraphDifference:
    """Return the edges of a lane that were added, are gone, or changed between two times.

    Changed: calls a window, bytes a call or mean latency by `factor`, the error ratio by 0.05, or the first denials; of
    edges with at least 10 calls a window. Single windows wander: take several together.
    """
    newest_ms = await repository.newest_ms(tenant, lane or "") if is_age(before) or is_age(after) else 0
    until_ms = None if after is None else parse_time("after", after, newest_ms)
    later = await _run(repository, tenant, lane or "", until_ms, windows)
    earlier = await _run(repository, tenant, later[0].lane, parse_time("before", before, newest_ms), windows)
    earlier = [one for one in earlier if one.generation == later[0].generation]
    if not earlier:
        raise _no_window()
    if earlier[0].start_ms >= later[0].start_ms:
        raise invalid_parameter("before", "must lie in an earlier window than after")
    # Where the runs overlap, a window belongs to the later one.
    earlier = [one for one in earlier if one.start_ms < later[-1].start_ms] or earlier[:1]
    later = [one for one in later if one.start_ms > earlier[0].start_ms]
    edges = await graph.difference(tenant, earlier, later, MAX_COMPARED + 1)
    if len(edges) > MAX_COMPARED:
        raise result_too_large()
    found = difference_of(edges, len(earlier), len(later), factor)
    shown, is_truncated = difference_out(found, (len(earlier), len(later)), limit)
    runs = [run_out([WindowOut.model_validate(one) for one in run]) for run in (earlier, later)]
    doubtful = any(run.incomplete_windows for run in runs)
    return GraphDifference(
        lane=later[0].lane,
        generation=later[0].generation,
        before=runs[0],
        after=runs[1],
        added_total=len(found.added),
        gone_total=len(found.gone),
        changed_total=len(found.changed),
        unchanged_total=found.unchanged,
        edges=shown,
        is_truncated=is_truncated,
        notes=["Some windows are incomplete: an edge may only look gone, or added."] if doubtful else [],
    )


async def _run(repository: Repository, tenant: TenantId, lane: str, at_ms: int | None, count: int) -> list[WindowRow]:
    """Return the windows up to the one that holds a time, newest first, all of one generation."""
    if at_ms is None:
        newest = await repository.windows(tenant, lane=lane, since_ms=0, until_ms=1 << 43, limit=1)
    else:
        newest = await repository.windows(tenant, lane=lane, since_ms=at_ms, until_ms=at_ms + 1, limit=1)
    if not newest:
        raise _no_window()
    last = newest[0]
    return await repository.windows(tenant, lane=last.lane, since_ms=0, until_ms=last.end_ms, limit=count)


def _no_window() -> Problem:
    return Problem(404, "no-windows", "No closed window", "No closed window of this tenant and lane holds this time.")
