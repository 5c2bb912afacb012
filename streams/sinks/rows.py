"""What a message of `graph-windows` or `drift-events` becomes in ClickHouse. Pure: bytes in, Arrow columns out.

Arrow because it is columnar like a chunk and ClickHouse reads it natively. ClickHouse wraps an Arrow value around
where it does not fit its column (70 000 into UInt16 becomes 4 464): columns are built in their exact type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.audit import decode_audit
from schemas.drift import DriftEvent
from schemas.errors import WireFormatError
from schemas.graph import GRAPH_CHUNK_VERSION, MEASURES, GraphChunk, chunk_columns, chunk_overflow, decode_chunk
from schemas.ocsf import decode_event
from schemas.tables import AUDIT_LOG, DRIFT_EVENTS, EDGES_1M, KNOWN_BY, WINDOWS, Partitioning, TableDeclaration

IntColumn = npt.NDArray[np.int64]
DAY_MS = 86_400_000

_EDGES = pa.list_(
    pa.struct([("src", pa.string()), ("dst", pa.string()), ("port", pa.int32()), ("protocol", pa.int16())])
)
_EVIDENCE = pa.list_(
    pa.struct(
        [
            ("signal", pa.string()),
            ("observed", pa.float64()),
            ("expected", pa.float64()),
            ("unit", pa.string()),
            ("score", pa.float64()),
            ("sample", pa.int64()),
            ("history", pa.int64()),
            ("detector", pa.string()),
        ]
    )
)
_VERDICT = pa.struct(
    [
        ("reason", pa.string()),
        ("effect", pa.uint8()),
        ("windows", pa.uint32()),
        ("windows_alike", pa.uint32()),
        ("budget", pa.uint32()),
        ("alerts", pa.uint32()),
        ("level", pa.uint8()),
        ("feedback", pa.int8()),
        ("note", pa.string()),
    ]
)
_ARROW_TYPES: dict[str, Any] = {
    "String": pa.string(),
    "LowCardinality(String)": pa.string(),
    "UInt8": pa.uint8(),
    "UInt32": pa.uint32(),
    "UInt64": pa.uint64(),
    "Nullable(UInt64)": pa.uint64(),
    "Int16": pa.int16(),
    "Int32": pa.int32(),
    "Float32": pa.float32(),
    "Bool": pa.bool_(),
    "DateTime64(3, 'UTC')": pa.timestamp("ms", "UTC"),
    "Array(String)": pa.list_(pa.string()),
    "Array(LowCardinality(String))": pa.list_(pa.string()),
    "Array(UInt16)": pa.list_(pa.uint16()),
    "Array(UInt64)": pa.list_(pa.uint64()),
    DRIFT_EVENTS.columns["edges"]: _EDGES,
    DRIFT_EVENTS.columns["evidence"]: _EVIDENCE,
    DRIFT_EVENTS.columns["verdict"]: _VERDICT,
}


def arrow_schema(table: TableDeclaration) -> Any:
    """Return the ``pyarrow.Schema`` of the columns an insert into ``table`` carries."""
    return pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in table.sent_columns.items()])


_SCHEMAS = {table.name: arrow_schema(table) for table in (EDGES_1M, WINDOWS, DRIFT_EVENTS, AUDIT_LOG)}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one message.

    Attributes:
        partition_key: names the ClickHouse partition they all lie in; an insert holds rows of one.
        batch: a ``pyarrow.RecordBatch`` with the schema of ``table``.
    """

    table: TableDeclaration
    partition_key: str
    batch: Any

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def at(self, incarnation: str, offset: int) -> "Rows":
        """Return the rows with where their message stands on its topic, in tables that keep it."""
        schema = self.batch.schema
        if "position" not in schema.names:
            return self
        batch = self.batch
        for name, value in (("incarnation", incarnation), ("position", offset)):
            index = schema.get_field_index(name)
            batch = batch.set_column(index, schema.field(index), _constant(value, len(self), schema.field(index).type))
        return Rows(self.table, self.partition_key, batch)


RowsOf = Callable[[bytes], Rows]
"""Reads a message's value. Raises whatever it likes on a message that cannot be used: that one is set aside."""


def partition_key(partitioning: Partitioning, start_ms: int) -> str:
    """Return the name of the ClickHouse partition that rows of a window lie in."""
    if partitioning is Partitioning.DAY_OF_WINDOW:
        return str(start_ms // DAY_MS)
    if partitioning is Partitioning.MONTH_OF_WINDOW:
        return str(np.datetime64(start_ms, "ms").astype("datetime64[M]"))
    return ""


def _rows(table: TableDeclaration, start_ms: int, columns: dict[str, Any]) -> Rows:
    """Build the batch; each column is a list or an Arrow array, checked against its exact type."""
    schema = _SCHEMAS[table.name]
    arrays = []
    for column in schema:
        values = columns[column.name]
        array = values if isinstance(values, pa.Array) else pa.array(values, type=column.type)
        arrays.append(array if array.type == column.type else array.cast(column.type, safe=True))
    return Rows(table, partition_key(table.partitioning, start_ms), pa.RecordBatch.from_arrays(arrays, schema=schema))


def _constant(value: Any, count: int, kind: Any) -> Any:
    return pa.repeat(pa.scalar(value, type=kind), count)


def _window_columns(chunk: GraphChunk, count: int) -> dict[str, Any]:
    time = pa.timestamp("ms", "UTC")
    return {
        "tenant": _constant(chunk.tenant, count, pa.string()),
        "lane": _constant(chunk.lane, count, pa.string()),
        "generation": _constant(chunk.generation, count, pa.uint64()),
        "window_start": _constant(chunk.start_ms, count, time),
        "window_end": _constant(chunk.end_ms, count, time),
        "incomplete": _constant(list(chunk.incomplete), count, pa.list_(pa.string())),
        "is_learning": _constant(chunk.is_learning, count, pa.bool_()),
    }


def _histogram_columns(columns: dict[str, IntColumn], count: int) -> dict[str, Any]:
    """Return the sparse histogram as two list columns, one list an edge. ``histogram_edge`` is sorted."""
    edges = columns["histogram_edge"]
    if len(edges) and (edges[0] < 0 or edges[-1] >= count or np.any(np.diff(edges) < 0)):
        raise WireFormatError("the chunk's histogram is not sorted by edge or names edges it does not have")
    offsets = pa.array(np.searchsorted(edges, np.arange(count + 1)), type=pa.int32())
    buckets = pa.array(columns["histogram_bucket"]).cast(pa.uint16(), safe=True)
    counts = pa.array(columns["histogram_count"]).cast(pa.uint64(), safe=True)
    return {
        "latency_buckets": pa.ListArray.from_arrays(offsets, buckets),
        "latency_counts": pa.ListArray.from_arrays(offsets, counts),
    }


def edge_rows(chunk: GraphChunk) -> Rows:
    """Return the rows of `edges_1m` of a chunk that is no marker.

    Raises:
        WireFormatError, pyarrow.ArrowInvalid, KeyError, ValueError: the chunk is damaged or a value fits no column.
    """
    count = chunk.count
    if len(chunk.src) != count or len(chunk.dst) != count:
        raise WireFormatError(f"the chunk says {count} edges and names {len(chunk.src)}")
    packed = chunk_columns(chunk)
    columns = _window_columns(chunk, count) | _histogram_columns(packed, count)
    columns |= {"src": chunk.src, "dst": chunk.dst}
    for name in ("port", "protocol", "other_side_flows"):
        columns[name] = pa.array(packed[name])
    for name in ("p50_us", "p95_us", "p99_us"):
        columns[name] = pa.array(packed[name], mask=packed[name] < 0)
    for name in MEASURES:
        known_by = KNOWN_BY.get(name)
        columns[name] = pa.array(packed[name], mask=None if known_by is None else packed[known_by] == 0)
    return _rows(EDGES_1M, chunk.start_ms, columns)


def window_row(marker: GraphChunk) -> Rows:
    """Return the row of `windows` of a window's marker.

    Raises:
        WireFormatError, pyarrow.ArrowInvalid: the marker is damaged or a value fits no column.
    """
    overflow = chunk_overflow(marker)
    if overflow is None:
        raise WireFormatError(f"the marker carries {len(marker.overflow)} overflow measures, there are {len(MEASURES)}")
    columns = _window_columns(marker, 1) | {"edges": [marker.edges_total]}
    for name, value in overflow.items():
        known_by = KNOWN_BY.get(name)
        is_unknown = known_by is not None and overflow[known_by] == 0
        columns[f"overflow_{name}"] = [None if is_unknown else value]
    return _rows(WINDOWS, marker.start_ms, columns)


def graph_rows(value: bytes) -> Rows:
    """Read one message of `graph-windows`: edges of a window, or its end.

    Raises:
        WireFormatError: the bytes are no chunk, or of a version this worker does not know.
    """
    try:
        chunk = decode_chunk(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireFormatError(f"graph-windows message cannot be read: {error}") from error
    if chunk.v != GRAPH_CHUNK_VERSION:
        raise WireFormatError(
            f"graph-windows message of version {chunk.v}; this worker reads {GRAPH_CHUNK_VERSION}: update it"
        )
    return window_row(chunk) if chunk.is_marker else edge_rows(chunk)


_NO_VERDICT = {field.name: "" if field.type == pa.string() else 0 for field in _VERDICT}
_SAME_IN_EVENT = tuple(name for name in DRIFT_EVENTS.sent_columns if name in DriftEvent.__struct_fields__)


def event_row(event: DriftEvent, ocsf_json: str) -> Rows:
    """Return the row of `drift_events`; ``ocsf_json`` is the message as it is on the topic.

    Raises:
        pyarrow.ArrowInvalid, OverflowError: a value fits no column.
    """
    columns: dict[str, Any] = {name: [getattr(event, name)] for name in _SAME_IN_EVENT}
    columns |= {
        "kind": [event.kind.value],
        "activity": [event.activity.name.lower()],
        "activity_id": [int(event.activity)],
        "severity": [event.severity.name.lower()],
        "severity_id": [int(event.severity)],
        "time": [event.time_ms],
        "window_start": [event.window_start_ms],
        "window_end": [event.window_end_ms],
        "first_seen": [event.first_seen_ms],
        "edges": [[msgspec.structs.asdict(edge) for edge in event.edges]],
        "evidence": [[msgspec.structs.asdict(item) for item in event.evidence]],
        "checks": [list(event.checks)],
        "verdict": [_NO_VERDICT if event.verdict is None else msgspec.structs.asdict(event.verdict)],
        "ocsf": [ocsf_json],
        "incarnation": [""],  # with the position from the message's offset: `Rows.at`
        "position": [0],
    }
    return _rows(DRIFT_EVENTS, event.window_start_ms, columns)


def drift_rows(value: bytes) -> Rows:
    """Read one message of `drift-events`.

    Raises:
        WireFormatError: the bytes are no drift event.
    """
    return event_row(decode_event(value), value.decode())


_SAME_IN_AUDIT = ("tenant", "id", "actor", "action", "outcome", "target", "detail", "address", "request_id")


def audit_rows(value: bytes) -> Rows:
    """Read one message of `drift-audit`.

    Raises:
        WireFormatError: the bytes are no audit record.
        pyarrow.ArrowInvalid, OverflowError: a value fits no column.
    """
    record = decode_audit(value)
    columns = {name: [getattr(record, name)] for name in _SAME_IN_AUDIT} | {"time": [record.time_ms]}
    return _rows(AUDIT_LOG, record.time_ms, columns)
