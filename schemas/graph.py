"""A closed window: the service graph of one tenant and lane over one tumbling window. Columns, sorted by edge."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.tenant_log import PackedColumn, pack_column, unpack_column

IntColumn = npt.NDArray[np.int64]

MEASURES = (
    "flows",
    "calls",
    "errors",
    "error_flows",
    "denied",
    "denied_flows",
    "bytes_out",
    "bytes_in",
    "bytes_out_flows",
    "bytes_in_flows",
    "packets_out",
    "packets_in",
    "packets_out_flows",
    "packets_in_flows",
    "latency_calls",
    "latency_sum_us",
    "skewed_flows",
    "late_flows",
    "late_calls",
    "late_bytes",
    "sampled_flows",
    "sampling_sum",
)
"""Additive integer measures of an edge in a window.

``flows`` counts on-time records of the chosen reporting side (skewed ones included), ``*_flows`` the records that knew
the measure: 0 means the sum is unknown, not none. ``calls`` are those that these records count: some records belong to
a call that another one counts (a reply, a later packet), so an edge may have flows and no calls. ``latency_calls``
weighs latencies by calls, such records' by one. ``late_*`` are records behind their lane's closed windows.
``sampled_flows`` are records whose source saw a sample only and whose measures were multiplied; ``sampling_sum`` adds
up by what, so that the two say "1 in N" on average.
"""
FIRST_MEASURES = MEASURES.index("late_bytes") + 1
"""How many there were at first. Later ones are left out of states and messages where they are all 0: older workers read
those, and they have the same bytes whoever wrote them."""
MEASURE_INDEX = {name: index for index, name in enumerate(MEASURES)}

GRAPH_CHUNK_VERSION = 1
MAX_CHUNK_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """Edges of one window, sorted by ``(src, dst, port, protocol)``.

    Shapes:
        src, dst: ``E`` strings. port, protocol: ``(E,)`` int64, -1 unknown.
        measures: ``(E, len(MEASURES))`` int64. other_side_flows: ``(E,)`` int64, records of the side not chosen.
        histogram_edge, histogram_bucket, histogram_count: ``(H,)`` int64, sparse latency histogram, sorted.
        p50_us, p95_us, p99_us: ``(E,)`` int64, -1 where no latency is known.
    """

    src: list[str]
    dst: list[str]
    port: IntColumn
    protocol: IntColumn
    measures: IntColumn
    other_side_flows: IntColumn
    histogram_edge: IntColumn
    histogram_bucket: IntColumn
    histogram_count: IntColumn
    p50_us: IntColumn
    p95_us: IntColumn
    p99_us: IntColumn

    def __len__(self) -> int:
        return len(self.src)

    def measure(self, name: str) -> IntColumn:
        """Return one measure's column, ``(E,)`` int64."""
        column: IntColumn = self.measures[:, MEASURE_INDEX[name]]
        return column


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """What is stored of a closed window.

    Attributes:
        incomplete: why the window may lack records (``paused``, ``silent``, ``loss``, ``incarnation``; of this tenant
            alone ``losing``: the source of its flows was losing data); empty if whole.
        overflow: measures of all records of edges beyond the tenant's cardinality bound.
        overflow_edges: True if there were such edges.
        is_learning: the tenant was still learning; nothing was judged.
    """

    tenant: str
    lane: str
    generation: int
    start_ms: int
    end_ms: int
    edges: EdgeTable
    incomplete: tuple[str, ...] = ()
    overflow: IntColumn = field(default_factory=lambda: np.zeros(len(MEASURES), dtype=np.int64))
    is_learning: bool = False


class GraphChunk(msgspec.Struct, frozen=True):
    """One message of `graph-windows`: a shard of a closed window's edges. The marker comes last, ``shard == shards``.

    ``columns`` holds packed columns: port, protocol, other_side_flows, p50_us, p95_us, p99_us, every measure, and the
    sparse histogram (``histogram_edge`` counts from 0 within the chunk). ``edges_total``: edges of the whole window.
    Measures after ``FIRST_MEASURES`` are missing where they are all 0; so are they at the end of ``overflow``.
    """

    tenant: str
    lane: str
    generation: int
    start_ms: int
    end_ms: int
    shard: int
    shards: int
    count: int
    src: list[str]
    dst: list[str]
    columns: dict[str, PackedColumn]
    incomplete: tuple[str, ...] = ()
    overflow: tuple[int, ...] = ()
    is_learning: bool = False
    histogram_count: int = 0
    edges_total: int = 0
    v: int = GRAPH_CHUNK_VERSION

    @property
    def is_marker(self) -> bool:
        """Say whether this chunk ends its window."""
        return self.shard == self.shards


_HISTOGRAM = ("histogram_edge", "histogram_bucket", "histogram_count")
_PLAIN = ("port", "protocol", "other_side_flows", "p50_us", "p95_us", "p99_us")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(GraphChunk)


def _take(window: ClosedWindow, rows: IntColumn, shard: int, shards: int) -> GraphChunk:
    edges = window.edges
    columns: dict[str, Any] = {name: pack_column(getattr(edges, name)[rows]) for name in _PLAIN}
    for name, index in MEASURE_INDEX.items():
        column = edges.measures[rows, index]
        if index < FIRST_MEASURES or column.any():
            columns[name] = pack_column(column)
    renumber = np.full(len(edges), -1, dtype=np.int64)
    renumber[rows] = np.arange(len(rows))
    local = renumber[edges.histogram_edge] if len(edges.histogram_edge) else edges.histogram_edge
    inside = local >= 0
    columns["histogram_edge"] = pack_column(local[inside])
    columns["histogram_bucket"] = pack_column(edges.histogram_bucket[inside])
    columns["histogram_count"] = pack_column(edges.histogram_count[inside])
    return GraphChunk(
        tenant=window.tenant,
        lane=window.lane,
        generation=window.generation,
        start_ms=window.start_ms,
        end_ms=window.end_ms,
        shard=shard,
        shards=shards,
        count=len(rows),
        src=[edges.src[i] for i in rows],
        dst=[edges.dst[i] for i in rows],
        columns=columns,
        incomplete=window.incomplete,
        overflow=_shortened(window.overflow) if shard == shards else (),
        is_learning=window.is_learning,
        histogram_count=int(inside.sum()),
        edges_total=len(edges),
    )


def _shortened(overflow: IntColumn) -> tuple[int, ...]:
    used = max(FIRST_MEASURES, *(np.flatnonzero(overflow) + 1).tolist(), 0)
    return tuple(overflow[:used].tolist())


EDGES_PER_SHARD = 1_500


def chunk_window(window: ClosedWindow) -> list[GraphChunk]:
    """Cut a window into shards of neighbouring edges and the marker. Depends on the window's content alone.

    The number of shards follows from the number of edges, so that a shard stays well under ``MAX_CHUNK_BYTES``.
    """
    count = len(window.edges)
    shards = max(1, -(-count // EDGES_PER_SHARD)) if count else 0
    # Edges are sorted by identity, so equal slices are as stable under repetition as a hash and stay balanced.
    bounds = [count * i // shards for i in range(shards + 1)] if shards else [0]
    chunks = [_take(window, np.arange(bounds[i], bounds[i + 1], dtype=np.int64), i, shards) for i in range(shards)]
    chunks.append(_take(window, np.empty(0, dtype=np.int64), shards, shards))
    return chunks


def encode_chunk(chunk: GraphChunk) -> bytes:
    """Return the Kafka message value of a chunk."""
    return _encoder.encode(chunk)


def decode_chunk(data: bytes) -> GraphChunk:
    """Read one message of `graph-windows`."""
    return _decoder.decode(data)


def chunk_columns(chunk: GraphChunk) -> dict[str, IntColumn]:
    """Unpack a chunk's columns to int64 arrays; later measures that it lacks are 0."""
    columns = {name: np.zeros(chunk.count, dtype=np.int64) for name in MEASURES[FIRST_MEASURES:]}
    for name, packed in chunk.columns.items():
        columns[name] = unpack_column(packed, chunk.histogram_count if name in _HISTOGRAM else chunk.count)
    return columns


def chunk_overflow(chunk: GraphChunk) -> dict[str, int] | None:
    """Return a marker's overflow by measure, ``None`` if it is damaged; later measures that it lacks are 0."""
    if not FIRST_MEASURES <= len(chunk.overflow) <= len(MEASURES):
        return None
    return dict.fromkeys(MEASURES, 0) | dict(zip(MEASURES, chunk.overflow, strict=False))
