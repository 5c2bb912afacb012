"""Builders for tests of the ClickHouse sinks: closed windows, their messages, drift events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from clickhouse_connect.driver import Client

from models.graph.histogram import bucket_of, quantiles
from schemas.drift import (
    Activity,
    DriftEvent,
    DriftKind,
    EdgeRef,
    Evidence,
    Severity,
    event_id_of,
    finding_id_of,
    fingerprint_of,
)
from schemas.graph import MEASURE_INDEX, MEASURES, ClosedWindow, EdgeTable, chunk_window, encode_chunk
from schemas.settings import ClickHouseSettings
from streams.sinks.writer import Message

HOUR_MS = 1_700_002_800_000
"""2023-11-14 23:00:00 UTC: a full hour, an hour before midnight."""
MINUTE_MS = 60_000

Edge = Mapping[str, Any]


@dataclass(frozen=True)
class ClickHouse:
    """A migrated database: ``client`` may write, ``settings`` open further clients."""

    client: Client
    settings: ClickHouseSettings
    database: str

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query; ``{db}`` in it is the test's database."""
        return list(self.client.query(sql.replace("{db}", self.database), parameters=parameters or None).result_rows)

    def dicts(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a query by column name; ``{db}`` in it is the test's database."""
        result = self.client.query(sql.replace("{db}", self.database), parameters=parameters or None)
        return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]


def make_edges(edges: Sequence[Edge]) -> EdgeTable:
    """Return a table of edges given as ``{"src": ..., "dst": ..., <measure>: ..., "latencies_us": [...]}``.

    Counters that are not given are 0, hence unknown; ``flows`` and ``calls`` are 1 unless given.
    """
    rows = sorted(edges, key=lambda e: (e["src"], e["dst"], e.get("protocol", 6), e.get("port", 8080)))
    measures = np.zeros((len(rows), len(MEASURES)), dtype=np.int64)
    groups: list[int] = []
    buckets: list[int] = []
    for index, row in enumerate(rows):
        latencies = row.get("latencies_us", ())
        values = {"flows": 1, "calls": 1, "latency_calls": len(latencies), "latency_sum_us": sum(latencies)}
        values |= {name: value for name, value in row.items() if name in MEASURE_INDEX}
        for name, value in values.items():
            measures[index, MEASURE_INDEX[name]] = value
        groups += [index] * len(latencies)
        buckets += bucket_of(np.array(latencies, dtype=np.int64)).tolist()
    pairs, counts = np.unique(np.array([groups, buckets], dtype=np.int64).reshape(2, -1), axis=1, return_counts=True)
    p50, p95, p99 = quantiles(pairs[0], pairs[1], counts, len(rows), (0.5, 0.95, 0.99))
    return EdgeTable(
        src=[row["src"] for row in rows],
        dst=[row["dst"] for row in rows],
        port=np.array([row.get("port", 8080) for row in rows], dtype=np.int64),
        protocol=np.array([row.get("protocol", 6) for row in rows], dtype=np.int64),
        measures=measures,
        other_side_flows=np.array([row.get("other_side_flows", 0) for row in rows], dtype=np.int64),
        histogram_edge=pairs[0],
        histogram_bucket=pairs[1],
        histogram_count=counts,
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
    )


def make_window(start_ms: int, edges: Sequence[Edge], **changes: Any) -> ClosedWindow:
    """Return a one-minute window of tenant ``acme``, lane ``default``."""
    values: dict[str, Any] = {"tenant": "acme", "lane": "default", "generation": 0, **changes}
    return ClosedWindow(start_ms=start_ms, end_ms=start_ms + MINUTE_MS, edges=make_edges(edges), **values)


def messages_of(*windows: ClosedWindow, first_offset: int = 0) -> list[Message]:
    """Return the messages of `graph-windows` that carry the windows."""
    values = [encode_chunk(chunk) for window in windows for chunk in chunk_window(window)]
    return [Message(first_offset + index, value) for index, value in enumerate(values)]


def make_event(activity: Activity = Activity.CREATE, **changes: Any) -> DriftEvent:
    """Return an event of a new edge ``shop/web -> ext:evil.example:443``; ids follow from its content."""
    values: dict[str, Any] = {
        "tenant": "acme",
        "lane": "default",
        "generation": 0,
        "kind": DriftKind.NEW_EDGE,
        "episode": 0,
        "severity": Severity.MEDIUM,
        "risk_score": 55,
        "confidence": 80,
        "is_alert": True,
        "is_early": False,
        "time_ms": HOUR_MS + MINUTE_MS,
        "window_start_ms": HOUR_MS,
        "window_end_ms": HOUR_MS + MINUTE_MS,
        "first_seen_ms": HOUR_MS + 5_000,
        "src": "shop/web",
        "dst": "ext:evil.example",
        "port": 443,
        "protocol": 6,
        "edges": (EdgeRef("shop/web", "ext:evil.example", 443, 6),),
        "edges_total": 1,
        "evidence": (Evidence("edge_presence", 1.0, 0.0, "windows", 0.0, 3, 40, "structural"),),
        "title": "New edge",
        "message": "shop/web calls ext:evil.example for the first time",
        "checks": ("Was there a deployment?",),
        "incident_id": "incident-1",
        **changes,
    }
    fingerprint = fingerprint_of(
        *(values[name] for name in ("tenant", "lane", "kind", "src", "dst", "port", "protocol"))
    )
    finding_id = finding_id_of(fingerprint, values["episode"], values["generation"])
    event_id = event_id_of(finding_id, activity, values["window_start_ms"])
    return DriftEvent(event_id=event_id, finding_id=finding_id, fingerprint=fingerprint, activity=activity, **values)
