"""Records of `tenant-log`: rows, statements, controls. MessagePack, versioned; one record, one Kafka message.

A record speaks for one lane. It carries the *progress* of source partitions (which coordinates it covers and how far
their clocks are) and, for at most one of them, the rows in between. A record without rows is a *statement*.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.detection import DetectionConfig, thresholds_as_known_before
from schemas.errors import WireFormatError

WIRE_VERSION = 1
MAX_RECORD_BYTES = 512 * 1024

IntColumn = npt.NDArray[np.int64]

ROW_COLUMNS = (
    "position",
    "time_ms",
    "edge",
    "side",
    "skewed",
    "calls",
    "errors",
    "denied",
    "bytes_out",
    "bytes_in",
    "packets_out",
    "packets_in",
    "latency_us",
)
"""Columns of a row, all int64; -1 is unknown. ``edge`` indexes the record's edge dictionary."""
SAMPLING, CONTINUED, PAIR = "sampling", "continued", "pair"
MARK_COLUMNS = {SAMPLING: 1, CONTINUED: 0, PAIR: -1, "host": -1}
"""Columns that only some producers' formats bring, with what holds where one is absent or -1: by what the measures were
multiplied; whether another record counts the call; the key that joins a client's half of a call to the server's; who
reported the row, an index into the record's hosts, -1 where it names nobody."""
ORIGIN = "origin"
"""Column of rows that were dead letters once: the position each had in its own source partition."""

EdgeIdentity = tuple[str, str, str, int, int]
"""(tenant, src, dst, port, IANA protocol number); -1 where port or protocol is unknown."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A source topic of a lane: its incarnation-qualified name and how many partitions it has."""

    source: str
    partitions: int


class LaneConfig(msgspec.Struct, frozen=True):
    """A lane as its operator declared it. The declaration with the highest ``(version, hash)`` is in force.

    Attributes:
        mode: ``live`` lanes follow the clock when all is silent; ``replay`` lanes wait for data and end-of-input.
        generation: a replay of the same name starts a new one; older generations are ignored.
        window_ms: length of the tumbling windows. Fixed for the life of a lane and generation.
        lateness_ms: allowed lateness; the watermark is the least clock minus this.
        max_wait_ms: how long, in ``as_of`` time, a silent member is waited for; 0 is for ever.
        skew_ms: how far a record may be ahead of the log's clock before it is folded there.
        members: source topics of the lane.
    """

    name: str
    version: int = 1
    mode: str = "live"
    generation: int = 0
    window_ms: int = 60_000
    lateness_ms: int = 30_000
    max_wait_ms: int = 300_000
    skew_ms: int = 10_000
    members: tuple[Member, ...] = ()
    detection: DetectionConfig = DetectionConfig()


def as_known_before(config: LaneConfig) -> LaneConfig:
    """Return a declaration to be encoded: as workers before logic version 3 wrote it, where it says nothing new."""
    return msgspec.structs.replace(config, detection=thresholds_as_known_before(config.detection))


ACTIVE, END_REACHED, IDLE, PAUSED, ENDED = 0, 1, 2, 3, 4
"""States a source partition can be in. ``ENDED``: its end-of-input record was read."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far one source partition is. Everything in ``(after, upto]`` for this target is in this record.

    ``clocks``: largest event times of the three hosts that are furthest, as ``(host, event_ms)``, furthest first.
    ``dead``: dead letters among them. ``skipped``: records among them that are sound and no flows, all those of a
    stretch that was cut counted in its last record. Each target is told the same of both; with the rows of all targets
    they are the records of the stretch.
    """

    source: str
    partition: int
    after: int
    upto: int
    clocks: tuple[tuple[str, int], ...] = ()
    state: int = ACTIVE
    dead: int = 0
    skipped: int = 0


class Control(msgspec.Struct, frozen=True, array_like=True):
    """One record of `drift-controls` of a tenant of this partition; ``value`` is its JSON, empty for a removal."""

    tenant: str
    kind: str
    id: str
    value: bytes
    position: int


class PackedColumn(msgspec.Struct, frozen=True, array_like=True):
    """An integer column as offset plus smallest unsigned type; ``data`` empty means all rows equal ``base``."""

    base: int
    dtype: str
    data: bytes


class Positions(msgspec.Struct, frozen=True, array_like=True):
    """Sorted, distinct positions: the first, and the distance of each other one to the one before it."""

    count: int
    first: int
    steps: PackedColumn


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """Rows of the record's first progress entry, in coordinate order. ``hosts``: who reported them, as far as named."""

    count: int
    edges: Sequence[EdgeIdentity]
    columns: dict[str, PackedColumn]
    hosts: tuple[str, ...] = ()


class EncodedEdges(Sequence[EdgeIdentity]):
    """A record's edges as they came, each decoded only when it is looked at.

    The graph agent knows nearly all edges of a record and finds them by their bytes: making five objects of each
    would cost more than all the rest of folding.

    Raises:
        WireFormatError: on access to an edge that is none.
    """

    __slots__ = ("encoded",)

    def __init__(self, encoded: Sequence[msgspec.Raw | bytes]) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    @overload
    def __getitem__(self, index: int) -> EdgeIdentity: ...
    @overload
    def __getitem__(self, index: slice) -> list[EdgeIdentity]: ...
    def __getitem__(self, index: int | slice) -> EdgeIdentity | list[EdgeIdentity]:
        if isinstance(index, slice):
            return [decode_edge(raw) for raw in self.encoded[index]]
        return decode_edge(self.encoded[index])

    def __iter__(self) -> Iterator[EdgeIdentity]:
        return map(decode_edge, self.encoded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class SourceLoss(msgspec.Struct, frozen=True, array_like=True):
    """One record by which a source says that it lost something. It is no flow, and has a coordinate as flows have.

    Attributes:
        tenant: whose flows are concerned; empty: those of all tenants of the lane.
        kind: what was lost, from a small set of the format's.
        host: who lost it; empty where that is not said.
        count: how many records; -1 unknown. time_ms: event time; -1 unknown.
    """

    position: int
    tenant: str
    kind: str
    host: str = ""
    count: int = -1
    time_ms: int = -1


class LogRecord(msgspec.Struct, frozen=True):
    """One message of `tenant-log`.

    Attributes:
        lane: the lane it speaks for; ``None`` for coordinates alone (controls, records of no lane).
        as_of_ms: the writing worker's clock.
        append_time: whether source clocks were already bounded by the broker's LogAppendTime.
        loss: an operator accepted the loss of what lies between the applied coordinate and ``after``.
        origin: source partition that the rows' ``origin`` positions belong to: they are replayed dead letters, and
            each is taken once, however often it is replayed.
        elsewhere: origins that go to other partitions of the log: taken there, they can no longer be taken here.
        logic: the logic version that the writing worker can run at most; 1 is also what wrote no version yet.
        losses: what the source of the first progress entry says it lost of tenants of this partition, in coordinate
            order.
    """

    worker: str
    as_of_ms: int
    progress: tuple[Progress, ...]
    lane: LaneConfig | None = None
    rows: Rows | None = None
    controls: tuple[Control, ...] = ()
    append_time: bool = False
    loss: bool = False
    v: int = WIRE_VERSION
    origin: tuple[str, int] | None = None
    elsewhere: Positions | None = None
    logic: int = 1
    losses: tuple[SourceLoss, ...] = ()


_UNSIGNED = (("<u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32))


class _WireRows(msgspec.Struct, frozen=True, array_like=True):
    count: int
    edges: list[msgspec.Raw]
    columns: dict[str, PackedColumn]
    hosts: tuple[str, ...] = ()


class _WireRecord(LogRecord, frozen=True):
    rows: _WireRows | None = None  # type: ignore[assignment]


def _as_list(value: object) -> object:
    if isinstance(value, EncodedEdges):
        return list(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_as_list)
_decoder = msgspec.msgpack.Decoder(_WireRecord)
_edge_decoder = msgspec.msgpack.Decoder(EdgeIdentity)


def encode_edge(edge: EdgeIdentity) -> bytes:
    """Return the bytes an edge has in a record of ours."""
    return _encoder.encode(edge)


def encoded_edges(edges: Sequence[EdgeIdentity], numbers: Sequence[int]) -> list[bytes]:
    """Return some of a record's edges as bytes: as they came, where they came as such."""
    if isinstance(edges, EncodedEdges):
        return [bytes(edges.encoded[number]) for number in numbers]
    return [encode_edge(edges[number]) for number in numbers]


def decode_edge(raw: msgspec.Raw | bytes) -> EdgeIdentity:
    """Return the edge of bytes in a record.

    Raises:
        WireFormatError: they are none.
    """
    try:
        edge: EdgeIdentity = _edge_decoder.decode(raw)
        return edge
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireFormatError(f"an edge of a tenant-log record cannot be read: {error}") from error


def pack_column(values: IntColumn) -> PackedColumn:
    """Pack an int64 column of any length."""
    if len(values) == 0:
        return PackedColumn(0, "", b"")
    low, high = int(values.min()), int(values.max())
    if low == high:
        return PackedColumn(low, "", b"")
    for dtype, limit in _UNSIGNED:
        if high - low < limit:
            return PackedColumn(low, dtype, (values - low).astype(dtype).tobytes())
    return PackedColumn(0, "<i8", values.astype("<i8").tobytes())


def unpack_column(packed: PackedColumn, count: int) -> IntColumn:
    """Return the int64 column of ``count`` values."""
    if not packed.data:
        return np.full(count, packed.base, dtype=np.int64)
    values = np.frombuffer(packed.data, dtype=np.dtype(packed.dtype)).astype(np.int64)
    if len(values) != count:
        raise WireFormatError(f"a column holds {len(values)} values, the record says {count}")
    return values + packed.base if packed.base else values


def pack_rows(edges: list[EdgeIdentity], columns: dict[str, IntColumn]) -> Rows:
    """Pack columns named as in ``ROW_COLUMNS``; a column that is absent is unknown throughout."""
    packed = {name: pack_column(values) for name, values in columns.items()}
    return Rows(count=len(columns["position"]), edges=edges, columns=packed)


def unpack_rows(rows: Rows) -> dict[str, IntColumn]:
    """Return all ``ROW_COLUMNS`` and the ``MARK_COLUMNS`` there are, int64 arrays of ``rows.count`` values."""
    missing = PackedColumn(-1, "", b"")
    columns = {name: unpack_column(rows.columns.get(name, missing), rows.count) for name in ROW_COLUMNS}
    for name, absent in MARK_COLUMNS.items():
        if name in rows.columns:
            column = unpack_column(rows.columns[name], rows.count)
            columns[name] = np.where(column == -1, absent, column)
    return columns


def pack_positions(positions: IntColumn) -> Positions:
    """Pack sorted, distinct positions."""
    first = int(positions[0]) if len(positions) else 0
    return Positions(len(positions), first, pack_column(np.diff(positions)))


def unpack_positions(packed: Positions) -> IntColumn:
    """Return the positions, sorted.

    Raises:
        WireFormatError: they are damaged.
    """
    if packed.count <= 0:
        return np.empty(0, dtype=np.int64)
    steps = unpack_column(packed.steps, packed.count - 1)
    return np.concatenate([[packed.first], packed.first + np.cumsum(steps)]).astype(np.int64)


def encode_record(record: LogRecord) -> bytes:
    """Return the Kafka message value of a record."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> LogRecord:
    """Read one message of `tenant-log`.

    Raises:
        WireFormatError: the bytes are no record, or of a version this worker does not know.
    """
    try:
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireFormatError(f"tenant-log record cannot be read: {error}") from error
    if record.v != WIRE_VERSION:
        raise WireFormatError(f"tenant-log record of version {record.v}; this worker reads {WIRE_VERSION}: update it")
    wire = record.rows
    return LogRecord(
        worker=record.worker,
        as_of_ms=record.as_of_ms,
        progress=record.progress,
        lane=record.lane,
        rows=None if wire is None else Rows(wire.count, EncodedEdges(wire.edges), wire.columns, wire.hosts),
        controls=record.controls,
        append_time=record.append_time,
        loss=record.loss,
        origin=record.origin,
        elsewhere=record.elsewhere,
        logic=record.logic,
        losses=record.losses,
    )


def as_builtins(record: LogRecord) -> Any:
    """Return the record as plain values, for debugging and `drift doctor`."""
    return msgspec.to_builtins(record, enc_hook=_as_list)
