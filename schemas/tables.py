"""Every ClickHouse table: columns, types, sorting and partition key. A test holds the DDL of schemas/sql/ equal."""

from dataclasses import dataclass
from enum import Enum

from schemas.graph import MEASURES


class Partitioning(Enum):
    """How a table is cut. The value is the ClickHouse expression over the row's identity; empty: not at all."""

    NONE = ""
    DAY_OF_WINDOW = "toDate(window_start)"
    MONTH_OF_WINDOW = "toYYYYMM(window_start)"
    MONTH_OF_HOUR = "toYYYYMM(hour)"


@dataclass(frozen=True, slots=True)
class TableDeclaration:
    """A table of ours.

    Attributes:
        columns: name to ClickHouse type as ``system.columns`` spells it, in the order of the DDL.
        sorting_key: tenant first; holds the row's identity wholly, so that repeats collapse under ``FINAL``.
        version: column whose largest value wins among repeats; empty: the last one written wins.
        server_filled: columns with a DEFAULT, never sent.
    """

    name: str
    columns: dict[str, str]
    sorting_key: tuple[str, ...]
    partitioning: Partitioning = Partitioning.NONE
    version: str = ""
    server_filled: tuple[str, ...] = ("inserted_at",)

    @property
    def sent_columns(self) -> dict[str, str]:
        """Return the columns an insert carries."""
        return {name: kind for name, kind in self.columns.items() if name not in self.server_filled}


KNOWN_BY = {
    "errors": "error_flows",
    "denied": "denied_flows",
    "bytes_out": "bytes_out_flows",
    "bytes_in": "bytes_in_flows",
    "packets_out": "packets_out_flows",
    "packets_in": "packets_in_flows",
    "latency_sum_us": "latency_calls",
}
"""A measure and the counter of records that knew it: where that is 0 the measure is NULL: unknown is not 0."""

TIME = "DateTime64(3, 'UTC')"
NAME = "LowCardinality(String)"
MEASURE_TYPES = {name: "Nullable(UInt64)" if name in KNOWN_BY else "UInt64" for name in MEASURES}
EDGES_TYPE = "Array(Tuple(src String, dst String, port Int32, protocol Int16))"
EVIDENCE_TYPE = (
    "Array(Tuple(signal String, observed Float64, expected Float64, unit String, score Float64, "
    "sample Int64, history Int64, detector String))"
)
VERDICT_TYPE = (
    "Tuple(reason String, effect UInt8, windows UInt32, windows_alike UInt32, budget UInt32, alerts UInt32, "
    "level UInt8, feedback Int8, note String)"
)
"""As ``schemas.drift.Verdict``; ``reason`` empty where there is none."""

_GRAPH = {"tenant": NAME, "lane": NAME, "generation": "UInt64"}
_WINDOW = {**_GRAPH, "window_start": TIME, "window_end": TIME}
_EDGE = {"src": "String", "dst": "String", "port": "Int32", "protocol": "Int16"}
_LATENCY = {
    "p50_us": "Nullable(UInt64)",
    "p95_us": "Nullable(UInt64)",
    "p99_us": "Nullable(UInt64)",
    "latency_buckets": "Array(UInt16)",
    "latency_counts": "Array(UInt64)",
}

EDGES_1M = TableDeclaration(
    "edges_1m",
    {
        **_WINDOW,
        **_EDGE,
        **MEASURE_TYPES,
        "other_side_flows": "UInt64",
        **_LATENCY,
        "incomplete": f"Array({NAME})",
        "is_learning": "Bool",
        "inserted_at": TIME,
    },
    ("tenant", "lane", "generation", "window_start", "src", "dst", "protocol", "port"),
    Partitioning.DAY_OF_WINDOW,
)
"""Edges of closed windows, whatever the length of the lane's windows (one minute by default, hence the name)."""

WINDOWS = TableDeclaration(
    "windows",
    {
        **_WINDOW,
        "edges": "UInt32",
        "incomplete": f"Array({NAME})",
        "is_learning": "Bool",
        **{f"overflow_{name}": kind for name, kind in MEASURE_TYPES.items()},
        "inserted_at": TIME,
    },
    ("tenant", "lane", "generation", "window_start"),
    Partitioning.MONTH_OF_WINDOW,
)
"""One row a closed window, written after its edges: a window that has a row is whole in ``edges_1m``."""

EDGES_1H = TableDeclaration(
    "edges_1h",
    {
        **_GRAPH,
        "hour": "DateTime('UTC')",
        **_EDGE,
        "windows": "UInt32",
        "incomplete_windows": "UInt32",
        "learning_windows": "UInt32",
        "first_window": TIME,
        "last_window_end": TIME,
        **MEASURE_TYPES,
        "other_side_flows": "UInt64",
        **_LATENCY,
        "source_inserted_at": TIME,
        "inserted_at": TIME,
    },
    ("tenant", "lane", "generation", "hour", "src", "dst", "protocol", "port"),
    Partitioning.MONTH_OF_HOUR,
    # An hour whose minutes have partly expired must not overwrite the whole one: more windows win.
    version="windows",
)

SERVICES = TableDeclaration(
    "services",
    {**_GRAPH, "service": "String", "is_external": "Bool", "first_seen": TIME, "last_seen": TIME, "inserted_at": TIME},
    ("tenant", "lane", "generation", "service"),
    version="last_seen",
)

DRIFT_EVENTS = TableDeclaration(
    "drift_events",
    {
        "tenant": NAME,
        "finding_id": "String",
        "event_id": "String",
        "fingerprint": "String",
        "incident_id": "String",
        "lane": NAME,
        "generation": "UInt64",
        "kind": NAME,
        "activity": NAME,
        "activity_id": "UInt8",
        "episode": "UInt32",
        "severity": NAME,
        "severity_id": "UInt8",
        "risk_score": "UInt8",
        "confidence": "UInt8",
        "is_alert": "Bool",
        "is_early": "Bool",
        "time": TIME,
        "window_start": TIME,
        "window_end": TIME,
        "first_seen": TIME,
        **_EDGE,
        "edges": EDGES_TYPE,
        "edges_total": "UInt32",
        "evidence": EVIDENCE_TYPE,
        "title": "String",
        "message": "String",
        "checks": "Array(String)",
        "close_reason": NAME,
        "seen_in": f"Array({NAME})",
        "verdict": VERDICT_TYPE,
        "ocsf": "String",
        "incarnation": NAME,
        "position": "UInt64",
        "inserted_at": TIME,
    },
    ("tenant", "finding_id", "event_id"),
)
"""Not partitioned: the identity is a hash, and repeats in two partitions of a time column would never meet."""

AUDIT_LOG = TableDeclaration(
    "audit_log",
    {
        "tenant": NAME,
        "time": TIME,
        "id": "String",
        "actor": "String",
        "action": NAME,
        "outcome": NAME,
        "target": "String",
        "detail": "String",
        "address": "String",
        "request_id": "String",
        "inserted_at": TIME,
    },
    ("tenant", "time", "id"),
)
"""Log-ins and changes of accounts and keys. Not partitioned: few rows."""

EDGE_SCORES = TableDeclaration(
    "edge_scores",
    {
        **_GRAPH,
        "window_start": TIME,
        **_EDGE,
        "is_new": "Bool",
        "statistical": "Float32",
        "graph": "Float32",
        "combined": "Float32",
        "model": NAME,
        "inserted_at": TIME,
    },
    ("tenant", "lane", "generation", "window_start", "src", "dst", "protocol", "port"),
    Partitioning.DAY_OF_WINDOW,
)
"""What the graph model says of the edges with calls of a closed window (docs/gnn.md)."""

EDGE_SCORE_MEMORY = TableDeclaration(
    "edge_score_memory",
    {**_GRAPH, "window_start": TIME, "memory": "String", "inserted_at": TIME},
    ("tenant", "lane", "generation"),
    version="window_start",
)
"""What the graph model remembers of a lane after a window, for the next worker that takes the lane over."""

TABLES = (EDGES_1M, WINDOWS, EDGES_1H, SERVICES, DRIFT_EVENTS, AUDIT_LOG, EDGE_SCORES, EDGE_SCORE_MEMORY)

VIEWS = (
    "v_lanes",
    "v_edges",
    "v_edge_latency",
    "v_service_map",
    "v_tenant_edges",
    "v_top_talkers",
    "v_services",
    "v_new_edges",
    "v_findings",
    "v_open_findings",
    "v_incidents",
    "v_incomplete_windows",
    "v_event_scores",
)
"""Views for analysts, described in docs/analysts.md."""

TENANT_SETTING = "SQL_drift_tenant"
"""The setting by which a query says whose rows it may see, on a server with row policies (streams/reader_access.py)."""


def reader_role(database: str) -> str:
    """Return the role of a server whose users see one tenant a query."""
    return f"{database}_reader"
