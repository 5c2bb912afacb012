"""Reads of ClickHouse. Every method takes the tenant first and returns values, never rows."""

import asyncio
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from api import queries
from api.arrow_columns import integers, numbered
from api.clickhouse import Reader
from api.kept_answers import KeptAnswers
from schemas.drift import Activity, AlertReason, DriftEvent, DriftKind, EdgeRef, Evidence, Severity, Verdict
from schemas.ids import REPLAY_PREFIX, TenantId
from schemas.live_events import PlacedEvent
from schemas.rca import NameColumn, ServiceWindowEdges

_READ = ("calls", "errors", "denied", "latency_calls", "latency_sum_us", "p50_us")
"""Measures of edges that root causes are ranked by, in the order of the query."""
_MIGRATION = re.compile(r"\d{4}_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which drift events; empty and ``None`` mean any. ``after``: time and id of the last one of the page before."""

    since_ms: int
    until_ms: int
    lane: str = ""
    kinds: tuple[DriftKind, ...] = ()
    severities: tuple[Severity, ...] = ()
    least_severity: Severity = Severity.INFORMATIONAL
    activities: tuple[Activity, ...] = ()
    service: str = ""
    incident: str = ""
    text: str = ""
    is_alert: bool | None = None
    edge: tuple[str, str] = ("", "")
    after: tuple[int, str] | None = None

    def bound(self) -> dict[str, Any]:
        """Return the parameters of the queries that filter events."""
        return {
            "lane": self.lane,
            "kinds": [kind.value for kind in self.kinds],
            "severities": [int(severity) for severity in self.severities],
            "least_severity": int(self.least_severity),
            "activities": [int(activity) for activity in self.activities],
            "incident": self.incident,
            "service": self.service,
            "text": self.text,
            "edge_src": self.edge[0],
            "edge_dst": self.edge[1],
            "alert": -1 if self.is_alert is None else int(self.is_alert),
            "since_ms": self.since_ms,
            "until_ms": self.until_ms,
        }


@dataclass(frozen=True, slots=True)
class EventTotals:
    """How many there are; times of the first and last event, ``None`` without events."""

    events: int
    findings: int
    incidents: int
    alerts: int
    first_ms: int | None
    last_ms: int | None


@dataclass(frozen=True, slots=True)
class EventCount:
    """Events of one kind, severity and activity."""

    kind: str
    severity: Severity
    activity: Activity
    events: int


@dataclass(frozen=True, slots=True)
class EventBucket:
    """Events of one kind and severity in one span of time."""

    start_ms: int
    kind: str
    severity: Severity
    events: int


@dataclass(frozen=True, slots=True)
class OpenFindings:
    """Findings that no Close has ended. ``worst``: the largest severity, 0 without findings."""

    findings: int
    incidents: int
    alerts: int
    worst: int


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """The closed windows of a lane in a range."""

    lane: str
    generation: int
    windows: int
    incomplete_windows: int
    learning_windows: int
    most_edges: int
    overflow_calls: int
    first_window_ms: int
    last_window_end_ms: int


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A closed window."""

    lane: str
    generation: int
    start_ms: int
    end_ms: int
    edges: int
    incomplete: tuple[str, ...]
    is_learning: bool
    overflow_calls: int


@dataclass(frozen=True, slots=True)
class EdgeRow:
    """An edge of a closed window; ``None`` is unknown, port and protocol -1 too."""

    src: str
    dst: str
    port: int
    protocol: int
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

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """Return source, destination, port and protocol."""
        return self.src, self.dst, self.port, self.protocol


@dataclass(frozen=True, slots=True)
class LaneRow:
    """The windows of a live lane in a range: from when to when, how long they are at most, and their edges in all."""

    lane: str
    generation: int
    start_ms: int
    end_ms: int
    window_ms: int
    edges: int


@dataclass(frozen=True, slots=True)
class EdgeInLane:
    """What a lane counted of an edge in a range; ``None`` is unknown."""

    lane: str
    first_seen_ms: int
    last_seen_ms: int
    windows: int
    calls: int
    errors: int | None
    denied: int | None
    bytes_out: int | None
    bytes_in: int | None
    latency_calls: int
    latency_sum_us: int | None


@dataclass(frozen=True, slots=True)
class TenantEdgeRow:
    """An edge of the tenant in a range, and what each lane counted of it, lanes by name."""

    src: str
    dst: str
    port: int
    protocol: int
    first_seen_ms: int
    last_seen_ms: int
    lanes: tuple[EdgeInLane, ...]


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A service and when it was seen."""

    lane: str
    service: str
    is_external: bool
    first_seen_ms: int
    last_seen_ms: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A line of the audit log (schemas/audit.py)."""

    id: str
    time_ms: int
    actor: str
    action: str
    outcome: str
    target: str
    detail: str
    address: str
    request_id: str


@dataclass(frozen=True, slots=True)
class EdgeScoreRow:
    """What the graph model said of an edge of a closed window (docs/gnn.md)."""

    src: str
    dst: str
    port: int
    protocol: int
    is_new: bool
    statistical: float
    graph: float
    combined: float
    model: str


class Repository:
    """All that the API reads. Each method reads one tenant; the reader's problems pass through.

    Attributes:
        kept: answers that were worked out from closed windows.
    """

    def __init__(self, reader: Reader, database: str) -> None:
        self._reader, self._database = reader, database
        self.kept = KeptAnswers()

    @property
    def source(self) -> tuple[Reader, str]:
        """Return what is read: the reader and the name of the database."""
        return self._reader, self._database

    async def _rows(self, sql: str, tenant: TenantId, **parameters: Any) -> Sequence[Sequence[Any]]:
        result = await self._reader.query(sql, {"database": self._database, "tenant": tenant, **parameters})
        return result.result_rows

    async def pending_migrations(self) -> list[str]:
        """Return the migrations of this release that the database lacks. Speaks of no tenant."""
        folder = importlib.resources.files("schemas").joinpath("sql")
        shipped = {file.name for file in folder.iterdir() if _MIGRATION.fullmatch(file.name)}
        result = await self._reader.query(queries.APPLIED, {"database": self._database})
        return sorted(shipped - {row[0] for row in result.result_rows})

    async def newest_ms(self, tenant: TenantId, lane: str = "") -> int:
        """Return the end of the newest closed window, else the time of the newest event, else 0."""
        for sql in (queries.NEWEST_END, queries.NEWEST_EVENT):
            rows = await self._rows(sql, tenant, lane=lane)
            if rows and rows[0][0]:
                return int(rows[0][0])
        return 0

    async def events(self, tenant: TenantId, wanted: EventFilter, limit: int) -> list[DriftEvent]:
        """Return at most ``limit`` drift events, newest first, ties by id."""
        after_ms, after_id = wanted.after or (0, "")
        rows = await self._rows(
            queries.EVENTS, tenant, **wanted.bound(), after_ms=after_ms, after_id=after_id, limit=limit
        )
        return [_event(row) for row in rows]

    async def event_totals(self, tenant: TenantId, wanted: EventFilter) -> EventTotals:
        """Return how many events, findings, incidents and alerts there are; ``after`` is not looked at."""
        rows = await self._rows(queries.EVENT_TOTALS, tenant, **wanted.bound())
        return EventTotals(*rows[0]) if rows and rows[0][0] else EventTotals(0, 0, 0, 0, None, None)

    async def event_counts(self, tenant: TenantId, wanted: EventFilter) -> list[EventCount]:
        """Return counts by kind, severity and activity."""
        rows = await self._rows(queries.EVENT_COUNTS, tenant, **wanted.bound())
        return [EventCount(kind, Severity(severity), Activity(activity), n) for kind, severity, activity, n in rows]

    async def event_buckets(self, tenant: TenantId, wanted: EventFilter, bucket_ms: int) -> list[EventBucket]:
        """Return counts by time, kind and severity; a bucket starts at a multiple of its length since the epoch."""
        rows = await self._rows(queries.EVENT_BUCKETS, tenant, **wanted.bound(), bucket_ms=bucket_ms)
        return [EventBucket(start_ms, kind, Severity(severity), n) for start_ms, kind, severity, n in rows]

    async def newest_event_ms(self, tenant: TenantId, lane: str = "") -> int:
        """Return the time of the newest event, else 0."""
        rows = await self._rows(queries.NEWEST_EVENT, tenant, lane=lane)
        return int(rows[0][0]) if rows else 0

    async def open_findings(self, tenant: TenantId, lane: str) -> OpenFindings:
        """Return how many findings of a lane, else of all live ones, are open."""
        rows = await self._rows(queries.OPEN_FINDINGS, tenant, lane=lane)
        return OpenFindings(*rows[0]) if rows else OpenFindings(0, 0, 0, 0)

    async def lane_statistics(
        self, tenant: TenantId, lane: str, since_ms: int, until_ms: int, limit: int = 1_000
    ) -> list[LaneStatistics]:
        """Return what was closed of each lane in windows that overlap ``[since_ms, until_ms)``, by name."""
        rows = await self._rows(
            queries.LANE_STATISTICS, tenant, lane=lane, since_ms=since_ms, until_ms=until_ms, limit=limit
        )
        return [LaneStatistics(*row) for row in rows]

    async def service_counts(self, tenant: TenantId, lane: str, since_ms: int, until_ms: int) -> tuple[int, int]:
        """Return how many services a lane, else the live ones, saw in a range, and how many of them are external."""
        rows = await self._rows(queries.SERVICE_COUNTS, tenant, lane=lane, since_ms=since_ms, until_ms=until_ms)
        return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)

    async def edge_count(self, tenant: TenantId, lane: str, since_ms: int, until_ms: int) -> int:
        """Return how many edges a lane, else the live ones, saw in windows that start in a range."""
        rows = await self._rows(queries.EDGE_COUNTS, tenant, lane=lane, since_ms=since_ms, until_ms=until_ms)
        return int(rows[0][0]) if rows else 0

    async def event(self, tenant: TenantId, event_id: str) -> DriftEvent | None:
        """Return one drift event."""
        rows = await self._rows(queries.EVENT, tenant, event_id=event_id)
        return _event(rows[0]) if rows else None

    async def edge_scores(self, tenant: TenantId, event: DriftEvent) -> list[EdgeScoreRow]:
        """Return what the graph model said of an event's edges in its window, the strangest first."""
        if not event.edges:
            return []
        ends = {name: [getattr(edge, name) for edge in event.edges] for name in ("src", "dst", "port", "protocol")}
        rows = await self._rows(
            queries.EDGE_SCORES,
            tenant,
            lane=event.lane,
            generation=event.generation,
            start_ms=event.window_start_ms,
            **ends,
        )
        return [EdgeScoreRow(*row) for row in rows]

    async def place_of(self, tenant: TenantId, event_id: str) -> tuple[str, int, int] | None:
        """Return where a stored event stands on its topic: incarnation, position, and when it was stored, in ms."""
        rows = await self._rows(queries.PLACE_OF_EVENT, tenant, event_id=event_id)
        return (str(rows[0][0]), int(rows[0][1]), int(rows[0][2])) if rows else None

    async def events_behind(self, tenant: TenantId, incarnation: str, position: int, limit: int) -> list[PlacedEvent]:
        """Return stored events behind a position of an incarnation of the topic, in their order there."""
        rows = await self._rows(queries.EVENTS_BEHIND, tenant, incarnation=incarnation, position=position, limit=limit)
        return [PlacedEvent(incarnation, int(row[0]), _event(row[1:])) for row in rows]

    async def next_incarnation(self, tenant: TenantId, incarnation: str, after_ms: int) -> tuple[str, int] | None:
        """Return the topic's incarnation that came after one, and when its first event was stored, in ms."""
        rows = await self._rows(queries.NEXT_INCARNATION, tenant, incarnation=incarnation, after_ms=after_ms)
        return (str(rows[0][0]), int(rows[0][1])) if rows else None

    async def finding(self, tenant: TenantId, finding_id: str, limit: int) -> list[DriftEvent]:
        """Return the events of a finding from its Create to its Close."""
        rows = await self._rows(queries.FINDING, tenant, finding_id=finding_id, limit=limit)
        return [_event(row) for row in rows]

    async def windows(
        self,
        tenant: TenantId,
        *,
        lane: str,
        since_ms: int,
        until_ms: int,
        limit: int,
        after: tuple[int, str] | None = None,
    ) -> list[WindowRow]:
        """Return closed windows that overlap ``[since_ms, until_ms)``, newest first, ties by lane."""
        after_ms, after_lane = after or (-1, "")
        rows = await self._rows(
            queries.WINDOWS,
            tenant,
            lane=lane,
            since_ms=since_ms,
            until_ms=until_ms,
            after_ms=after_ms,
            after_lane=after_lane,
            limit=limit,
        )
        return [
            WindowRow(name, generation, start, end, edges, tuple(incomplete), bool(is_learning), overflow)
            for name, generation, start, end, edges, incomplete, is_learning, overflow in rows
        ]

    async def graph(self, tenant: TenantId, window: WindowRow, limit: int) -> list[EdgeRow]:
        """Return the edges of a window, those with most calls first."""
        rows = await self._rows(
            queries.GRAPH, tenant, lane=window.lane, generation=window.generation, start_ms=window.start_ms, limit=limit
        )
        return [EdgeRow(*row) for row in rows]

    async def graph_lanes(
        self, tenant: TenantId, window: WindowRow, limit: int
    ) -> dict[tuple[str, str, int, int], list[str]]:
        """Return, of the edges that ``graph`` returns, the other live lanes that saw them in windows which overlap."""
        if window.lane.startswith(REPLAY_PREFIX):
            return {}
        rows = await self._rows(
            queries.GRAPH_LANES,
            tenant,
            lane=window.lane,
            generation=window.generation,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            limit=limit,
        )
        return {(src, dst, port, protocol): list(lanes) for src, dst, port, protocol, lanes in rows}

    async def lanes(self, tenant: TenantId, since_ms: int, until_ms: int) -> list[LaneRow]:
        """Return the live lanes with windows that overlap ``[since_ms, until_ms)``, by name."""
        rows = await self._rows(queries.LANES, tenant, since_ms=since_ms, until_ms=until_ms)
        return [LaneRow(*row) for row in rows]

    async def edges(
        self,
        tenant: TenantId,
        *,
        lane: str,
        service: str,
        since_ms: int,
        until_ms: int,
        limit: int,
        after: tuple[str, str, int, int] = ("", "", -1, -1),
    ) -> list[TenantEdgeRow]:
        """Return edges seen in windows that start in ``[since_ms, until_ms)``, by src, dst, protocol and port.

        Without a lane: of all live lanes. ``after``: the last one of the page before, in that order.
        """
        names = ("after_src", "after_dst", "after_protocol", "after_port")
        rows = await self._rows(
            queries.EDGES,
            tenant,
            lane=lane,
            service=service,
            since_ms=since_ms,
            until_ms=until_ms,
            limit=limit,
            **dict(zip(names, after, strict=True)),
        )
        return [
            TenantEdgeRow(src, dst, port, protocol, first_ms, last_ms, tuple(EdgeInLane(*one) for one in lanes))
            for src, dst, port, protocol, first_ms, last_ms, lanes in rows
        ]

    async def edges_between(
        self, tenant: TenantId, lane: str, generation: int, start_ms: int, end_ms: int
    ) -> ServiceWindowEdges:
        """Return the edges of all windows that start in ``[start_ms, end_ms)``; p95 and bytes are not read."""
        parameters = {"lane": lane, "generation": generation, "start_ms": start_ms, "end_ms": end_ms}
        table = await self._reader.table(
            queries.RANGE_EDGES, {"database": self._database, "tenant": tenant, **parameters}
        )
        return await asyncio.to_thread(_window_edges, table)

    async def services(
        self, tenant: TenantId, *, lane: str, limit: int, after: tuple[str, str] = ("", "")
    ) -> list[ServiceRow]:
        """Return services by name. ``after``: service and lane of the last one of the page before."""
        rows = await self._rows(
            queries.SERVICES, tenant, lane=lane, after_service=after[0], after_lane=after[1], limit=limit
        )
        return [ServiceRow(*row) for row in rows]

    async def audit_log(
        self,
        tenant: TenantId,
        *,
        action: str,
        actor: str,
        outcome: str,
        since_ms: int,
        until_ms: int,
        after: tuple[int, str] | None,
        limit: int,
    ) -> list[AuditRow]:
        """Return lines of the audit log, newest first, ties by id. Empty filters mean any."""
        after_ms, after_id = after or (0, "")
        rows = await self._rows(
            queries.AUDIT_LOG,
            tenant,
            action=action,
            actor=actor,
            outcome=outcome,
            since_ms=since_ms,
            until_ms=until_ms,
            after_ms=after_ms,
            after_id=after_id,
            limit=limit,
        )
        return [AuditRow(*row) for row in rows]


def _window_edges(table: pa.Table) -> ServiceWindowEdges:
    if not table.num_rows:
        return ServiceWindowEdges.empty()
    names, (src, dst) = numbered(table, 1, 2)
    unread = np.full(table.num_rows, -1, dtype=np.int64)
    measures = {name: integers(table, 3 + place) for place, name in enumerate(_READ)}
    callers, callees = NameColumn(names, src), NameColumn(names, dst)
    return ServiceWindowEdges(integers(table, 0), callers, callees, **measures, p95_us=unread, bytes=unread)


def _event(row: Sequence[Any]) -> DriftEvent:
    named = dict(zip(_EVENT_FIELDS, row, strict=True))
    named["kind"] = DriftKind(named["kind"])
    named["activity"] = Activity(named["activity"])
    named["severity"] = Severity(named["severity"])
    named["is_alert"], named["is_early"] = bool(named["is_alert"]), bool(named["is_early"])
    named["edges"] = tuple(EdgeRef(**edge) for edge in named["edges"])
    named["evidence"] = tuple(Evidence(**one) for one in named["evidence"])
    named["checks"], named["seen_in"] = tuple(named["checks"]), tuple(named["seen_in"])
    verdict = named["verdict"]
    named["verdict"] = Verdict(**verdict | {"reason": AlertReason(verdict["reason"])}) if verdict["reason"] else None
    return DriftEvent(**named)


_EVENT_FIELDS = (
    *("event_id", "finding_id", "fingerprint", "incident_id", "tenant", "lane", "generation", "kind", "activity"),
    *("episode", "severity", "risk_score", "confidence", "is_alert", "is_early", "time_ms", "window_start_ms"),
    *("window_end_ms", "first_seen_ms", "src", "dst", "port", "protocol", "edges", "edges_total", "evidence", "title"),
    *("message", "checks", "close_reason", "seen_in", "verdict"),
)
