"""Chunks of each kind of source to records of `tenant-log` and dead letters. Pure: readers keep caches, no state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
import numpy as np

from schemas.dead_letter import MAX_PAYLOAD_BYTES, DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.ids import end_position, partition_of, position_of
from schemas.settings import FlowTopic
from schemas.tenant_log import (
    ACTIVE,
    MAX_RECORD_BYTES,
    Control,
    IntColumn,
    LaneConfig,
    LogRecord,
    Member,
    Progress,
    encode_record,
)
from schemas.topics import HEADER_END, HEADER_LANE
from streams.ingest.chain import Origin, Segment, encode_segments
from streams.ingest.chunk import LOG_APPEND_TIME, SourceChunk, cut
from streams.ingest.columns import Clocks, ReadRules, Table, concatenate, no_rows, read_chunk
from streams.ingest.lanes import LaneHeader, lane_of_header, read_header
from streams.ingest.tenant import TenantRouter, TenantRule
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short
from streams.sources.registry import source_format

TENANT_SETTINGS = "tenant-settings"
"""Kind of control whose value must be a map of numbers."""

_HEADERS_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """What a chunk says about a lane: its clocks, and whether its input ended."""

    lane: LaneConfig
    clocks: Clocks
    ended: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """What becomes of a chunk.

    Attributes:
        records: encoded records of each target, in order.
        upto: position that they reach.
        rows: flows among them.
    """

    records: list[list[bytes]]
    dead_letters: list[DeadLetter]
    upto: int
    rows: int
    lanes: list[LaneProgress] = field(default_factory=list)


class SourceReader(Protocol):
    """How chunks of one topic are read."""

    @property
    def source(self) -> str:
        """The topic's name in coordinates."""
        ...

    @property
    def commits(self) -> bool:
        """Whether the group's offset is kept; else the topic is read from its start at every start."""
        ...

    @property
    def lane(self) -> LaneConfig | None:
        """The one lane that all partitions of the topic are members of, if there is one."""
        ...

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the records that reach from ``after`` to the chunk's end, and its dead letters."""
        ...


def _read(chunk: SourceChunk, rules: ReadRules) -> Table:
    """Read a chunk; what even our own mistakes refuse to read becomes a dead letter and stops nothing else."""
    try:
        return read_chunk(chunk, rules)
    except MemoryError:
        raise
    except Exception as error:
        size = len(chunk.values)
        if size > 1:
            middle = size // 2
            halves = [cut(chunk, 0, middle, 0, 0), cut(chunk, middle, size, 0, 0)]
            return _stack([_read(half, rules) for half in halves], middle)
        detail = short(f"could not be read: {type(error).__name__}: {error}")
        return no_rows([Rejected(0, WHOLE_MESSAGE, Reason.MALFORMED, detail, chunk.values[0] or b"")])


def _stack(halves: list[Table], messages: int) -> Table:
    first, second = halves
    moved = [replace(bad, message=bad.message + messages) for bad in second.rejected]
    return concatenate(halves, [*first.rejected, *moved])


def _dead_letters(chunk: SourceChunk, rejected: Sequence[Rejected], format_name: str) -> list[DeadLetter]:
    return [
        DeadLetter(
            topic=chunk.topic,
            partition=chunk.partition,
            offset=int(chunk.offsets[bad.message]),
            index=bad.index,
            reason=bad.reason,
            detail=bad.detail,
            payload=bad.payload,
            format=format_name,
        )
        for bad in rejected
    ]


def _corrupt(chunk: SourceChunk, format_name: str) -> list[DeadLetter]:
    """Return the dead letter of a batch that the transport could not read: one, at the first offset passed over."""
    corrupt = chunk.corrupt
    if corrupt is None:
        return []
    detail = short(f"offsets {corrupt.first_offset} to {corrupt.last_offset}: {corrupt.detail}")
    offset, index = corrupt.first_offset, WHOLE_MESSAGE
    return [
        DeadLetter(chunk.topic, chunk.partition, offset, index, Reason.CORRUPT_BATCH, detail, corrupt.raw, format_name)
    ]


def _positions(letters: Sequence[DeadLetter]) -> IntColumn:
    return np.array(sorted(position_of(letter.offset, letter.index) for letter in letters), dtype=np.int64)


class FlowReader:
    """Reads a source topic of the configuration.

    Attributes:
        lane: may be set anew when members have changed.
    """

    commits = True

    def __init__(self, topic: FlowTopic, source: str, lane: LaneConfig, targets: int) -> None:
        self.source = source
        self.lane = lane
        self._targets = targets
        self._rules = ReadRules(
            format=source_format(topic.format),
            tenant=TenantRule(topic.tenant_from, topic.topic),
            router=TenantRouter(topic.tenants, targets),
            max_message_bytes=topic.max_message_bytes,
            skew_ms=lane.skew_ms,
        )

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the chunk's records; see `SourceReader`."""
        table = _read(chunk, self._rules)
        name = self._rules.format.name
        letters = [*_dead_letters(chunk, table.rejected, name), *_corrupt(chunk, name)]
        upto = end_position(chunk.next_offset - 1)
        append_time = chunk.timestamp_type == LOG_APPEND_TIME
        segment = Segment(self.lane, table, upto, _positions(letters), append_time=append_time)
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = encode_segments([segment], origin, after, self._targets)
        return Encoded(records, letters, upto, len(table), [LaneProgress(self.lane, table.clocks, False)])


@dataclass(frozen=True, slots=True)
class _Heading:
    """What a record's headers say: the lane and how to read it, or why it cannot be read."""

    lane: LaneConfig | None
    rules: ReadRules | None
    refusal: Refusal | None = None


class ReplayReader:
    """Reads the replay topic: every record names its lane in a header; a chunk is cut where the lane changes."""

    commits = True
    lane = None

    def __init__(
        self,
        topic: str,
        member: Member,
        declared: Callable[[], Mapping[str, LaneConfig]],
        targets: int,
        max_message_bytes: int,
    ) -> None:
        self.source = member.source
        self._topic = topic
        self._member = member
        self._declared = declared
        self._targets = targets
        self._max_message_bytes = max_message_bytes
        self._router = TenantRouter(("*",), targets)
        self._headings: dict[bytes | None, _Heading] = {}

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the chunk's records; see `SourceReader`."""
        self._headings = {} if len(self._headings) > _HEADERS_REMEMBERED else self._headings
        segments: list[Segment] = []
        letters: list[DeadLetter] = []
        lanes: list[LaneProgress] = []
        rows = 0
        stretches = self._stretches(chunk)
        for number, (start, stop, heading, ended) in enumerate(stretches):
            is_last = number == len(stretches) - 1
            next_offset = chunk.next_offset if is_last else int(chunk.offsets[stop])
            piece = cut(
                chunk, start, stop, int(chunk.offsets[start]) if stop > start else chunk.first_offset, next_offset
            )
            table, format_name = self._read_stretch(cut(piece, 0, stop - start - ended, 0, 0), heading)
            dead = [
                *_dead_letters(piece, table.rejected, format_name),
                *(_corrupt(chunk, format_name) if is_last else []),
            ]
            append_time = chunk.timestamp_type == LOG_APPEND_TIME
            upto = end_position(next_offset - 1)
            segments.append(Segment(heading.lane, table, upto, _positions(dead), ended, append_time))
            letters.extend(dead)
            rows += len(table)
            if heading.lane is not None:
                lanes.append(LaneProgress(heading.lane, table.clocks, ended))
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = encode_segments(segments, origin, after, self._targets)
        return Encoded(records, letters, end_position(chunk.next_offset - 1), rows, lanes)

    def _read_stretch(self, piece: SourceChunk, heading: _Heading) -> tuple[Table, str]:
        if heading.rules is not None:
            return _read(piece, heading.rules), heading.rules.format.name
        refusal = heading.refusal or Refusal(Reason.LANE_UNDECLARED, "")
        rejected = [
            Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value or b"")
            for number, value in enumerate(piece.values)
        ]
        return no_rows(rejected), ""

    def _stretches(self, chunk: SourceChunk) -> list[tuple[int, int, _Heading, bool]]:
        """Return (first message, behind the last, heading, does an end of input close it), one lane at a time."""
        found: list[tuple[int, int, _Heading, bool]] = []
        start = 0
        current: bytes | None = None
        heading: _Heading | None = None
        for number, headers in enumerate(chunk.headers):
            named = dict(headers)
            data = named.get(HEADER_LANE)
            if heading is None or data != current:
                if heading is not None and number > start:
                    found.append((start, number, heading, False))
                start, current, heading = number, data, self._heading(data)
            if HEADER_END in named and heading.lane is not None:
                found.append((start, number + 1, heading, True))
                start = number + 1
        size = len(chunk.values)
        if start < size and heading is not None:
            found.append((start, size, heading, False))
        return found or [(0, 0, _Heading(None, None), False)]

    def _heading(self, data: bytes | None) -> _Heading:
        heading = self._headings.get(data)
        if heading is None:
            heading = self._headings[data] = self._read_heading(data)
        return heading

    def _read_heading(self, data: bytes | None) -> _Heading:
        try:
            header = read_header(data)
            lane = lane_of_header(header, self._declared(), self._member)
            return _Heading(lane, self._rules_of(header, lane))
        except Refusal as refusal:
            return _Heading(None, None, refusal)

    def _rules_of(self, header: LaneHeader, lane: LaneConfig) -> ReadRules:
        try:
            reading = source_format(header.format)
        except ConfigurationError as error:
            raise Refusal(Reason.LANE_UNDECLARED, short(str(error))) from error
        rule = "field" if header.tenant is None else f"fixed:{header.tenant}"
        return ReadRules(reading, TenantRule(rule, self._topic), self._router, self._max_message_bytes, lane.skew_ms)


class ControlReader:
    """Reads `drift-controls`: each record goes to its tenant's partition; the coordinates go to all."""

    commits = False
    lane = None
    _format = "control"

    def __init__(self, source: str, targets: int) -> None:
        self.source = source
        self._targets = targets

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the chunk's records; see `SourceReader`."""
        controls: list[list[Control]] = [[] for _ in range(self._targets)]
        rejected: list[Rejected] = []
        for number, (key, value) in enumerate(zip(chunk.keys, chunk.values, strict=True)):
            try:
                control = read_control(key, value, position_of(int(chunk.offsets[number]), 0))
                controls[partition_of(control.tenant, self._targets)].append(control)
            except Refusal as refusal:
                rejected.append(Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value or b""))
        letters = [*_dead_letters(chunk, rejected, self._format), *_corrupt(chunk, self._format)]
        upto = end_position(chunk.next_offset - 1)
        dead = _positions(letters)
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = [_control_records(mine, origin, after, upto, dead) for mine in controls]
        return Encoded(records, letters, upto, sum(map(len, controls)))


def read_control(key: bytes | None, value: bytes | None, position: int) -> Control:
    """Read one record of `drift-controls`.

    Raises:
        Refusal: the key is not ``tenant:kind:id``, or the value is not JSON of its kind.
    """
    try:
        tenant, kind, identity = (key or b"").decode().split(":", 2)
    except ValueError as error:  # UnicodeDecodeError is one
        raise Refusal(Reason.MALFORMED, "the key is not tenant:kind:id") from error
    if not tenant or not kind:
        raise Refusal(Reason.MALFORMED, "the key is not tenant:kind:id")
    if value and len(value) > MAX_PAYLOAD_BYTES:
        raise Refusal(Reason.OVERSIZED, f"a control of {len(value)} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    if value:
        try:
            msgspec.json.decode(value, type=dict[str, int | float] if kind == TENANT_SETTINGS else msgspec.Raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(Reason.MALFORMED, short(f"control of kind {kind!r}: {error}")) from error
    return Control(tenant, kind, identity, value or b"", position)


def _control_records(controls: list[Control], origin: Origin, after: int, upto: int, dead: IntColumn) -> list[bytes]:
    """Return one target's records, cut so that none is too large."""
    groups: list[list[Control]] = [[]]
    size = 0
    for control in controls:
        more = len(control.value) + len(control.tenant) + len(control.kind) + len(control.id) + 64
        if groups[-1] and size + 4 * more > MAX_RECORD_BYTES:  # names of up to four bytes a character
            groups.append([])
            size = 0
        groups[-1].append(control)
        size += more
    records: list[bytes] = []
    for number, group in enumerate(groups):
        reaches = upto if number == len(groups) - 1 else group[-1].position
        first, behind = np.searchsorted(dead, (after, reaches), side="right")
        progress = Progress(origin.source, origin.partition, after, reaches, (), ACTIVE, int(behind - first))
        record = LogRecord(origin.worker, origin.as_of_ms, (progress,), controls=tuple(group))
        records.append(encode_record(record))
        after = reaches
    return records
