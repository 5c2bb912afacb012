"""The service graph: windows, their edges, and the services seen."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

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
from api.problems import NOT_FOUND, RESPONSES, Problem
from api.repository import EdgeInLane, EdgeRow, TenantEdgeRow
from api.responses import (
    EdgeInLaneOut,
    GraphEdgeOut,
    GraphOut,
    NodeOut,
    ServiceOut,
    ServicePage,
    TenantEdgeOut,
    TenantEdgePage,
    WindowOut,
    WindowPage,
)
from api.tenant import Tenant
from schemas.ids import is_external

router = APIRouter(tags=["graph"], responses=RESPONSES)

MAX_EDGES = 20_000
MAX_PAGE = 1_000

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows a page.")]


@router.get("/graph", summary="Service graph of one window", responses=NOT_FOUND)
async def get_graph(
    tenant: Tenant,
    repository: RepositoryOf,
    lane: Lane = None,
    at: Annotated[
        str | None, Query(description="A time in the window; without it the newest closed window.", examples=["-10m"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_EDGES, description="Edges; those with most calls are kept.")] = 2_000,
) -> GraphOut:
    """Return the services and edges of one closed window. Without `lane`: of the lane that has the newest window."""
    since_ms, until_ms = 0, MAX_TIME_MS
    if at is not None:
        newest_ms = await repository.newest_ms(tenant, lane or "") if is_age(at) else 0
        since_ms = parse_time("at", at, newest_ms)
        until_ms = since_ms + 1
    windows = await repository.windows(tenant, lane=lane or "", since_ms=since_ms, until_ms=until_ms, limit=1)
    if not windows:
        raise Problem(
            404, "no-windows", "No closed window", "No closed window of this tenant and lane holds this time."
        )
    rows, others = await asyncio.gather(
        repository.graph(tenant, windows[0], limit + 1), repository.graph_lanes(tenant, windows[0], limit)
    )
    shown = rows[:limit]
    return GraphOut(
        window=WindowOut.model_validate(windows[0]),
        nodes=_nodes(shown),
        edges=[_edge(row, sorted([windows[0].lane, *others.get(row.identity, ())])) for row in shown],
        is_truncated=len(rows) > limit,
    )


def _edge(row: EdgeRow, lanes: list[str]) -> GraphEdgeOut:
    measures = {name: getattr(row, name) for name in GraphEdgeOut.model_fields if hasattr(row, name)}
    return GraphEdgeOut(**measures, **_ratios(row), lanes=lanes)


def _ratios(row: EdgeRow | EdgeInLane) -> dict[str, float | None]:
    is_timed = row.latency_sum_us is not None and row.latency_calls > 0
    return {
        "error_ratio": row.errors / row.calls if row.errors is not None and row.calls else None,
        "latency_mean_us": (row.latency_sum_us or 0) / row.latency_calls if is_timed else None,
    }


@router.get("/edges", summary="List the tenant's edges")
async def list_edges(
    tenant: Tenant,
    repository: RepositoryOf,
    lane: Lane = None,
    service: Service = None,
    since: Since = None,
    until: Until = None,
    cursor: CursorText = None,
    limit: Limit = 100,
) -> TenantEdgePage:
    """Return the edges of a range (default: the last hour), each once, with what each lane counted of it.

    Without `lane`: of all live lanes. Replays are asked for by name.
    """
    query: dict[str, Any] = {"lane": lane, "service": service, "since": since, "until": until}
    position = decode_cursor(query, cursor, (int, int, str, str, int, int))
    after = ("", "", -1, -1)
    if position is None:
        newest_ms = await repository.newest_ms(tenant, lane or "") if until is None or is_age(since or "-1h") else 0
        since_ms = parse_time("since", since or "-1h", newest_ms)
        until_ms = parse_time("until", until, newest_ms) if until is not None else max(newest_ms, since_ms + 1)
    else:
        # Unknown ports and protocols are -1, and no number of a cursor is negative; a forged one must fit its column.
        since_ms, until_ms, src, dst, protocol, port = position
        after = (src, dst, min(protocol, 1 << 15) - 1, min(port, 1 << 31) - 1)
    rows = await repository.edges(
        tenant,
        lane=lane or "",
        service=service or "",
        since_ms=since_ms,
        until_ms=until_ms,
        limit=limit + 1,
        after=after,
    )
    page = rows[:limit]
    next_cursor = None
    if len(rows) > limit:
        end = page[-1]
        place = [since_ms, until_ms, end.src, end.dst, end.protocol + 1, end.port + 1]
        next_cursor = encode_cursor(query, place)
    return TenantEdgePage(
        since_ms=since_ms, until_ms=until_ms, edges=[tenant_edge_out(row) for row in page], next_cursor=next_cursor
    )


def tenant_edge_out(row: TenantEdgeRow) -> TenantEdgeOut:
    """Return the public form of an edge of several lanes."""
    return TenantEdgeOut(
        src=row.src,
        dst=row.dst,
        port=row.port,
        protocol=row.protocol,
        first_seen_ms=row.first_seen_ms,
        last_seen_ms=row.last_seen_ms,
        lanes=[edge_in_lane_out(one) for one in row.lanes],
    )


def edge_in_lane_out(one: EdgeInLane) -> EdgeInLaneOut:
    """Return the public form of what a lane counted."""
    counts = {name: getattr(one, name) for name in EdgeInLane.__slots__ if name != "latency_sum_us"}
    return EdgeInLaneOut(**counts, **_ratios(one))


def _nodes(rows: Sequence[EdgeRow]) -> list[NodeOut]:
    nodes: dict[str, NodeOut] = {}
    for row in rows:
        for name in (row.src, row.dst):
            if name not in nodes:
                nodes[name] = NodeOut(
                    service=name, is_external=is_external(name), calls_in=0, calls_out=0, errors_in=None
                )
        nodes[row.src].calls_out += row.calls
        callee = nodes[row.dst]
        callee.calls_in += row.calls
        if row.errors is not None:
            callee.errors_in = (callee.errors_in or 0) + row.errors
    return [nodes[name] for name in sorted(nodes)]


@router.get("/windows", summary="List closed windows")
async def list_windows(
    tenant: Tenant,
    repository: RepositoryOf,
    lane: Lane = None,
    since: Since = None,
    until: Until = None,
    cursor: CursorText = None,
    limit: Limit = 100,
) -> WindowPage:
    """Return closed windows that overlap the range, newest first, in pages."""
    query: dict[str, Any] = {"lane": lane, "since": since, "until": until}
    position = decode_cursor(query, cursor, (int, int, int, str))
    if position is None:
        newest_ms = await repository.newest_ms(tenant, lane or "") if is_age(since) or is_age(until) else 0
        since_ms = parse_time("since", since, newest_ms) if since is not None else 0
        until_ms = parse_time("until", until, newest_ms) if until is not None else MAX_TIME_MS
        after = None
    else:
        since_ms, until_ms, after = position[0], position[1], (position[2], position[3])
    rows = await repository.windows(
        tenant, lane=lane or "", since_ms=since_ms, until_ms=until_ms, limit=limit + 1, after=after
    )
    page = rows[:limit]
    is_last = len(rows) <= limit
    return WindowPage(
        windows=[WindowOut.model_validate(row) for row in page],
        next_cursor=None if is_last else encode_cursor(query, [since_ms, until_ms, page[-1].start_ms, page[-1].lane]),
    )


@router.get("/services", summary="List services")
async def list_services(
    tenant: Tenant, repository: RepositoryOf, lane: Lane = None, cursor: CursorText = None, limit: Limit = 100
) -> ServicePage:
    """Return the services seen, by name, in pages."""
    query: dict[str, Any] = {"lane": lane}
    position = decode_cursor(query, cursor, (str, str)) or ["", ""]
    rows = await repository.services(tenant, lane=lane or "", limit=limit + 1, after=(position[0], position[1]))
    page = rows[:limit]
    is_last = len(rows) <= limit
    return ServicePage(
        services=[ServiceOut.model_validate(row) for row in page],
        next_cursor=None if is_last else encode_cursor(query, [page[-1].service, page[-1].lane]),
    )
