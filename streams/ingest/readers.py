"""Chunks of each kind of source to records of `tenant-log` and dead letters. Pure: readers keep caches, no state."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
import numpy as np

from models.graph.logic import LOGIC_VERSION
from schemas.access_records import is_access_record
from schemas.dead_letter import MAX_PAYLOAD_BYTES, DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.ids import end_position, partition_of, position_of
from schemas.inventory import INVENTORY, read_inventory
from schemas.policies import POLICIES, read_policies
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
from schemas.topics import HEADER_END, HEADER_LANE, HEADER_ORIGIN
from streams.ingest.chain import Origin, Segment, encode_segments
from streams.ingest.chunk import LOG_APPEND_TIME, SourceChunk, cut
from streams.ingest.columns import Clocks, ReadRules, Table, concatenate, no_rows, read_chunk
from streams.ingest.lanes import LaneHeader, incarnation_of, lane_of_header, read_header, source_name
from streams.ingest.replayed import OriginHeader, as_it_was, read_origin, take_wanted
from streams.ingest.replayed import dead_letters as replayed_dead_letters
from streams.ingest.tenant import TenantRouter, TenantRule
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short
from streams.sources.registry import source_format

TENANT_SETTINGS = "tenant-settings"
"""Kind of control whose value must be a map of numbers."""

_ACCESS = "access record"
"""Kind under which records of accounts and keys are counted as skipped."""
_HEADERS_REMEMBERED = 1_000
_ALONE_AS = {"canonical-arrow": "canonical"}
"""Formats of which a single record is kept in another."""


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
        skipped: records of the chunk that are sound and no flows, by kind. With ``rows`` and the dead letters they are
            all that the chunk holds.
        losses: records among them by which the source says that it lost something, by kind.
    """

    records: list[list[bytes]]
    dead_letters: list[DeadLetter]
    upto: int
    rows: int
    lanes: list[LaneProgress] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)


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
    table = concatenate(halves, [*first.rejected, *moved], first.skipped + second.skipped)
    return replace(table, losses=first.losses + second.losses)


def losses_of(table: Table) -> Counter[str]:
    """Return how many times a source says that it lost something, by kind."""
    return Counter(loss.kind for _, loss in table.losses)


def _dead_letters(chunk: SourceChunk, rejected: Sequence[Rejected], format_name: str, source: str) -> list[DeadLetter]:
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
            is_alone=bad.payload != (chunk.values[bad.message] or b""),
            message_key=chunk.keys[bad.message],
            message_headers=tuple(chunk.headers[bad.message]),
            timestamp_ms=chunk.timestamps[bad.message],
            timestamp_type=chunk.timestamp_type,
            incarnation=incarnation_of(source),
        )
        for bad in rejected
    ]


def _corrupt(chunk: SourceChunk, format_name: str, source: str) -> list[DeadLetter]:
    """Return the dead letter of a batch that the transport could not read: one, at the first offset passed over."""
    corrupt = chunk.corrupt
    if corrupt is None:
        return []
    detail = short(f"offsets {corrupt.first_offset} to {corrupt.last_offset}: {corrupt.detail}")
    letter = DeadLetter(
        chunk.topic,
        chunk.partition,
        corrupt.first_offset,
        WHOLE_MESSAGE,
        Reason.CORRUPT_BATCH,
        detail,
        corrupt.raw,
        format_name,
        incarnation=incarnation_of(source),
    )
    return [letter]


def _positions(letters: Sequence[DeadLetter]) -> IntColumn:
    return np.array(sorted(position_of(letter.offset, letter.index) for letter in letters), dtype=np.int64)


class FlowReader:
    """Reads a source topic of the configuration.

    Attributes:
        lane: may be set anew when members have changed.
        rules: how its messages are read.
    """

    commits = True

    def __init__(self, topic: FlowTopic, source: str, lane: LaneConfig, targets: int) -> None:
        self.source = source
        self.lane = lane
        self._targets = targets
        self.rules = ReadRules(
            format=source_format(topic.format),
            tenant=TenantRule(topic.tenant_from, topic.topic),
            router=TenantRouter(topic.tenants, targets),
            max_message_bytes=topic.max_message_bytes,
            skew_ms=lane.skew_ms,
        )

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the chunk's records; see `SourceReader`."""
        table = _read(chunk, self.rules)
        name = self.rules.format.name
        letters = [*_dead_letters(chunk, table.rejected, name, self.source), *_corrupt(chunk, name, self.source)]
        upto = end_position(chunk.next_offset - 1)
        append_time = chunk.timestamp_type == LOG_APPEND_TIME
        segment = Segment(self.lane, table, upto, _positions(letters), append_time=append_time)
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = encode_segments([segment], origin, after, self._targets)
        lanes = [LaneProgress(self.lane, table.clocks, False)]
        return Encoded(records, letters, upto, len(table), lanes, table.skipped, losses_of(table))


@dataclass(frozen=True, slots=True)
class _Heading:
    """What a record's headers say: the lane and how to read it, or why it cannot be read."""

    lane: LaneConfig | None
    rules: ReadRules | None
    refusal: Refusal | None = None


@dataclass(slots=True)
class _Stretch:
    """Neighbouring messages of one heading.

    Attributes:
        stop: behind the last message.
        ended: an end of input closes it; that message holds no record.
        origins: of dead letters that are replayed, by message; all of one source partition.
    """

    key: object
    heading: _Heading
    start: int
    stop: int
    ended: bool = False
    origins: list[OriginHeader] = field(default_factory=list)


class ReplayReader:
    """Reads the replay topic: every record names its lane in a header; a chunk is cut where the lane changes.

    Records with a ``drift-origin`` header are replayed dead letters: the rules of the topic they come from hold.

    Args:
        declared: lanes by name.
        flows: readers of the source topics by topic.
    """

    commits = True
    lane = None

    def __init__(
        self,
        topic: str,
        member: Member,
        declared: Callable[[], Mapping[str, LaneConfig]],
        targets: int,
        max_message_bytes: int,
        flows: Mapping[str, FlowReader] | None = None,
    ) -> None:
        self.source = member.source
        self._topic = topic
        self._member = member
        self._declared = declared
        self._targets = targets
        self._max_message_bytes = max_message_bytes
        self._flows = flows or {}
        self._router = TenantRouter(("*",), targets)
        self._headings: dict[bytes | None, _Heading] = {}

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        """Return the chunk's records; see `SourceReader`."""
        self._headings = {} if len(self._headings) > _HEADERS_REMEMBERED else self._headings
        segments: list[Segment] = []
        letters: list[DeadLetter] = []
        lanes: list[LaneProgress] = []
        skipped: Counter[str] = Counter()
        losses: Counter[str] = Counter()
        rows = 0
        stretches = self._stretches(chunk)
        for stretch, following in zip(stretches, [*stretches[1:], None], strict=True):
            next_offset = chunk.next_offset if following is None else int(chunk.offsets[following.start])
            segment, dead = self._encode_stretch(chunk, stretch, next_offset)
            if following is None and (corrupt := _corrupt(chunk, "", self.source)):
                dead = [*dead, *corrupt]
                segment = replace(segment, dead=np.append(segment.dead, _positions(corrupt)))
            segments.append(segment)
            letters.extend(dead)
            rows += len(segment.table)
            skipped += segment.table.skipped
            losses += losses_of(segment.table)
            if segment.lane is not None and segment.replayed is None:
                lanes.append(LaneProgress(segment.lane, segment.table.clocks, stretch.ended))
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = encode_segments(segments, origin, after, self._targets)
        return Encoded(records, letters, end_position(chunk.next_offset - 1), rows, lanes, skipped, losses)

    def _encode_stretch(
        self, chunk: SourceChunk, stretch: _Stretch, next_offset: int
    ) -> tuple[Segment, list[DeadLetter]]:
        piece: SourceChunk = cut(chunk, stretch.start, stretch.stop - stretch.ended, 0, 0)
        heading, upto = stretch.heading, end_position(next_offset - 1)
        if not stretch.origins:
            table, name = self._read_stretch(piece, heading)
            letters = _dead_letters(piece, table.rejected, name, self.source)
            append_time = chunk.timestamp_type == LOG_APPEND_TIME
            return Segment(heading.lane, table, upto, _positions(letters), stretch.ended, append_time), letters
        table, name = self._read_stretch(as_it_was(piece, stretch.origins), heading)

        def others_in(message: int) -> int:
            value = piece.values[message]
            if heading.rules is None or value is None:
                return 0
            return heading.rules.format.decode([value]).skipped.total()

        table = take_wanted(table, piece.offsets, stretch.origins, others_in)
        first = stretch.origins[0]
        letters = replayed_dead_letters(piece, table.rejected, stretch.origins, name)
        replayed = None if heading.lane is None else (source_name(first.topic, first.incarnation), first.partition)
        # Dead letters among them were counted where they became some: under their own coordinates.
        return Segment(heading.lane, table, upto, _positions(()), replayed=replayed), letters

    def _read_stretch(self, piece: SourceChunk, heading: _Heading) -> tuple[Table, str]:
        if heading.rules is not None:
            return _read(piece, heading.rules), heading.rules.format.name
        refusal = heading.refusal or Refusal(Reason.LANE_UNDECLARED, "")
        rejected = [
            Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value or b"")
            for number, value in enumerate(piece.values)
        ]
        return no_rows(rejected), ""

    def _stretches(self, chunk: SourceChunk) -> list[_Stretch]:
        """Return the chunk's messages cut where the lane, or the source partition they come from, changes."""
        found: list[_Stretch] = []
        for number, headers in enumerate(chunk.headers):
            named = dict(headers)
            stretch = self._begin(number, named)
            last = found[-1] if found else None
            if last is not None and last.key == stretch.key and not last.ended:
                last.stop = number + 1
                last.origins += stretch.origins
            else:
                found.append(stretch)
            if HEADER_END in named and stretch.heading.lane is not None and not stretch.origins:
                found[-1].ended = True
        return found or [_Stretch(None, _Heading(None, None), 0, 0)]

    def _begin(self, number: int, named: Mapping[str, bytes | None]) -> _Stretch:
        """Return one message as a stretch of its own."""
        data = named.get(HEADER_LANE)
        if HEADER_ORIGIN not in named:
            return _Stretch(data, self._heading(data), number, number + 1)
        try:
            origin = read_origin(named[HEADER_ORIGIN])
        except Refusal as refusal:
            return _Stretch((HEADER_ORIGIN, number), _Heading(None, None, refusal), number, number + 1)
        heading = self._heading(data) if origin.topic == self._topic else self._heading_of(origin)
        key = (origin.topic, origin.incarnation, origin.partition, origin.timestamp_type, origin.alone, data)
        return _Stretch(key, heading, number, number + 1, origins=[origin])

    def _heading_of(self, origin: OriginHeader) -> _Heading:
        """Return the rules of the source topic that a dead letter comes from, as they are now."""
        flow = self._flows.get(origin.topic)
        if flow is None:
            detail = f"topic {origin.topic!r}, which it comes from, is no longer configured (flows)"
            return _Heading(None, None, Refusal(Reason.LANE_UNDECLARED, detail))
        rules = replace(flow.rules, may_be_future=True)
        if origin.alone and rules.format.name in _ALONE_AS:
            rules = replace(rules, format=source_format(_ALONE_AS[rules.format.name]))
        return _Heading(flow.lane, rules)

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
    """Reads `drift-controls`: each record goes to its tenant's partition; the coordinates go to all.

    Records of accounts and keys are passed over and nothing of them is kept, whole or damaged: they hold hashes of
    passwords, which have no business in the tenants' log, in a state, or among dead letters.
    """

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
        skipped: Counter[str] = Counter()
        for number, (key, value) in enumerate(zip(chunk.keys, chunk.values, strict=True)):
            if is_access_record(key):
                skipped[_ACCESS] += 1
                continue
            try:
                control = read_control(key, value, position_of(int(chunk.offsets[number]), 0))
                controls[partition_of(control.tenant, self._targets)].append(control)
            except Refusal as refusal:
                rejected.append(Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value or b""))
        letters = [
            *_dead_letters(chunk, rejected, self._format, self.source),
            *(msgspec.structs.replace(letter, payload=b"") for letter in _corrupt(chunk, self._format, self.source)),
        ]
        upto = end_position(chunk.next_offset - 1)
        dead = _positions(letters)
        origin = Origin(self.source, chunk.partition, worker, as_of_ms)
        records = [_control_records(mine, origin, after, upto, dead) for mine in controls]
        return Encoded(records, letters, upto, sum(map(len, controls)), skipped=skipped)


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
            _CHECKS.get(kind, _is_json)(value)
        except (ValueError, RecursionError) as error:  # msgspec's and of Unicode too
            raise Refusal(Reason.MALFORMED, short(f"control of kind {kind!r}: {error}")) from error
    return Control(tenant, kind, identity, value or b"", position)


def _is_json(value: bytes) -> None:
    msgspec.json.decode(value, type=msgspec.Raw)


def _are_settings(value: bytes) -> None:
    msgspec.json.decode(value, type=dict[str, int | float])


_CHECKS: Mapping[str, Callable[[bytes], object]] = {
    TENANT_SETTINGS: _are_settings,
    INVENTORY: read_inventory,
    POLICIES: read_policies,
}
"""What finds fault with a control's value, by kind; of other kinds it must be JSON."""


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
        record = LogRecord(origin.worker, origin.as_of_ms, (progress,), controls=tuple(group), logic=LOGIC_VERSION)
        records.append(encode_record(record))
        after = reaches
    return records
