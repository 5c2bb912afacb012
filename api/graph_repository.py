"""Reads of the stored graph over ranges: series, differences, calls by pair. As `api.repository`: tenant first."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from api import queries
from api.arrow_columns import integers, numbered
from api.clickhouse import Reader
from api.kept_answers import KeptAnswers
from api.repository import EdgeInLane, ServiceRow, WindowRow
from schemas.ids import TenantId
from schemas.impact import CallGraph
from schemas.prediction import BaselineEdge

ANY = -2
"""Any port or protocol; -1 is one that is unknown."""


@dataclass(frozen=True, slots=True)
class EdgeKey:
    """An edge, or all edges of a pair of services."""

    src: str
    dst: str
    port: int = ANY
    protocol: int = ANY


@dataclass(frozen=True, slots=True)
class Span:
    """Windows of one lane that start in ``[since_ms, until_ms)``, and how long the buckets are."""

    lane: str
    generation: int
    since_ms: int
    until_ms: int
    bucket_ms: int = 0


@dataclass(frozen=True, slots=True)
class WindowBucket:
    """Closed windows of a bucket."""

    start_ms: int
    windows: int
    incomplete: int


@dataclass(frozen=True, slots=True)
class EdgeBucket:
    """An edge in a bucket; ``None`` is unknown. The percentiles are the largest of its windows'."""

    start_ms: int
    calls: int
    errors: int | None
    denied: int | None
    bytes_out: int | None
    bytes_in: int | None
    latency_calls: int
    latency_sum_us: int | None
    p50_us: int | None
    p95_us: int | None
    p99_us: int | None


@dataclass(frozen=True, slots=True)
class ServiceBucket:
    """A service in a bucket; ``None`` is unknown."""

    start_ms: int
    calls_in: int
    errors_in: int | None
    latency_calls: int
    latency_sum_us: int | None
    calls_out: int
    errors_out: int | None
    callers: int
    callees: int


@dataclass(frozen=True, slots=True)
class EdgeTotals:
    """What was counted of an edge over some windows; ``windows``: those that show it."""

    windows: int
    calls: int
    errors: int | None
    denied: int | None
    bytes: int | None
    latency_calls: int
    latency_sum_us: int | None


@dataclass(frozen=True, slots=True)
class EdgePair:
    """An edge over two spans."""

    src: str
    dst: str
    port: int
    protocol: int
    before: EdgeTotals
    after: EdgeTotals


class GraphRepository:
    """Reads edges over ranges. Each method reads one tenant; the reader's problems pass through."""

    def __init__(self, reader: Reader, database: str) -> None:
        self._reader, self._database = reader, database

    async def _rows(self, sql: str, tenant: TenantId, **parameters: Any) -> Sequence[Sequence[Any]]:
        result = await self._reader.query(sql, {"database": self._database, "tenant": tenant, **parameters})
        return result.result_rows

    async def edge_lanes(
        self, tenant: TenantId, edge: EdgeKey, lane: str, since_ms: int, until_ms: int
    ) -> list[tuple[int, EdgeInLane]]:
        """Return generation and counts of an edge by lane; without a lane: of all live ones."""
        rows = await self._rows(
            queries.EDGE_LANES, tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, **_bound(edge)
        )
        return [(generation, EdgeInLane(name, *counts)) for name, generation, *counts in rows]

    async def edge_series(self, tenant: TenantId, edge: EdgeKey, span: Span) -> list[EdgeBucket]:
        """Return an edge over time; buckets in which it was not seen are left out."""
        rows = await self._rows(queries.EDGE_SERIES, tenant, **_bound(span), **_bound(edge))
        return [EdgeBucket(*row) for row in rows]

    async def service_series(self, tenant: TenantId, service: str, span: Span) -> list[ServiceBucket]:
        """Return a service over time; buckets in which it was not seen are left out."""
        rows = await self._rows(queries.SERVICE_SERIES, tenant, service=service, **_bound(span))
        return [ServiceBucket(*row) for row in rows]

    async def window_buckets(self, tenant: TenantId, span: Span) -> list[WindowBucket]:
        """Return the buckets in which the lane has closed windows."""
        rows = await self._rows(queries.WINDOW_BUCKETS, tenant, **_bound(span))
        return [WindowBucket(*row) for row in rows]

    async def service(self, tenant: TenantId, service: str) -> list[ServiceRow]:
        """Return when each lane saw a service."""
        return [ServiceRow(*row) for row in await self._rows(queries.SERVICE, tenant, service=service)]

    async def difference(
        self, tenant: TenantId, before: Sequence[WindowRow], after: Sequence[WindowRow], limit: int
    ) -> list[EdgePair]:
        """Return the edges of two runs of windows of one lane, newest first each, side by side, by name."""
        rows = await self._rows(
            queries.DIFFERENCE,
            tenant,
            lane=after[0].lane,
            generation=after[0].generation,
            from_ms=before[-1].start_ms,
            from_end_ms=before[0].end_ms,
            to_ms=after[-1].start_ms,
            to_end_ms=after[0].end_ms,
            limit=limit,
        )
        return [
            EdgePair(src, dst, port, protocol, EdgeTotals(*counts[:7]), EdgeTotals(*counts[7:]))
            for src, dst, port, protocol, *counts in rows
        ]

    async def learned_edges(
        self, tenant: TenantId, lane: str, since_ms: int, until_ms: int, limit: int
    ) -> list[BaselineEdge]:
        """Return the edges of a range, those with most calls first; without a lane: of all live ones."""
        rows = await self._rows(
            queries.LEARNED_EDGES, tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=limit
        )
        return [BaselineEdge(src, dst, port, protocol, int(calls)) for src, dst, port, protocol, calls in rows]

    async def call_graph(
        self, tenant: TenantId, lane: str, since_ms: int, until_ms: int, limit: int, kept: KeptAnswers
    ) -> CallGraph:
        """Return who called whom how often in a range; without a lane: of the lane that saw most calls of a pair.

        A range whose windows are the same as when it was last asked for is not read again.
        """
        span = {"since_ms": since_ms, "until_ms": until_ms}
        closed = [tuple(row) for row in await self._rows(queries.CLOSED_LANES, tenant, lane=lane, **span)]
        question = (tenant, "calls", lane, since_ms, until_ms, limit, *closed)
        known: CallGraph | None = kept.get(question)
        if known is not None:
            return known
        parameters = {"database": self._database, "tenant": tenant, "lane": lane, "limit": limit, **span}
        if len(closed) == 1:
            parameters |= {"lane": closed[0][0], "generation": closed[0][1]}
            table = await self._reader.table(queries.CALLED_PAIRS_OF_LANE, parameters)
        else:
            table = await self._reader.table(queries.CALLED_PAIRS, parameters)
        graph = await asyncio.to_thread(_call_graph, table)
        if closed:
            kept.put(question, graph, len(graph.src))
        return graph


def _call_graph(table: pa.Table) -> CallGraph:
    names, (src, dst) = numbered(table, 0, 1)
    return CallGraph(names, src, dst, integers(table, 2))


def _bound(value: EdgeKey | Span) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
