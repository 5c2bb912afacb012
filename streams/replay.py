"""Log files as input: read message by message, then pushed to the replay topic, or run through ingest without Kafka.

Reading streams: whatever a compressed file unpacks to, no more than one message and one block are in memory.
"""

import asyncio
import gzip
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec
import pyarrow as pa
from aiokafka.errors import KafkaError

from models.graph.logic import LOGIC_VERSION
from schemas.dead_letter import DeadLetter
from schemas.errors import ConfigurationError
from schemas.settings import FlowTopic, Settings
from schemas.tenant_log import ENDED, LaneConfig, LogRecord, Member, Progress, decode_record
from schemas.topics import HEADER_END, HEADER_LANE
from streams.clock import Clock
from streams.idempotence import supports_idempotence
from streams.ingest.chain import position_before
from streams.ingest.chunk import chunk_of
from streams.ingest.lanes import REPLAY_PREFIX, LaneHeader, detection_of, encode_header
from streams.ingest.readers import FlowReader
from streams.kafka_clients import make_producer
from streams.result import short
from streams.sources.format import Decoded, SourceFormat
from streams.sources.registry import format_of_file, source_format, split_spelling
from streams.sources.text_records import HEADER

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A longer line, or JSON value, is pushed cut off, so that it becomes one dead letter."""
CUT_BYTES = 64 * 1024
ARROW_ROWS = 1_000
"""Rows of an Arrow file that make one message."""
_BLOCK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16
"""Of a file, unpacked: what tells its format, its columns, and whether it is read by lines."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""Of a frame that holds no data, behind a byte from 0x50 to 0x5f: parallel compressors begin with one."""
_ARROW_STARTS = (b"ARROW1", b"\xff\xff\xff\xff")
_ARROW_SUFFIXES = frozenset({".arrow", ".arrows", ".ipc", ".feather"})
_LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_PACKED_SUFFIXES = frozenset({".gz", ".zst", ".zstd"})
_CHUNK_BYTES = 8 * 1024 * 1024
_TALLIED_AT_ONCE = 1_000
_UNDER_WAY = 2_000
"""Messages sent and not yet acknowledged."""
_MAX_REQUEST_BYTES = 10 * 1024 * 1024

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FileMessage:
    """One message to be pushed.

    Attributes:
        records: how many flows it holds, as far as the file says.
        read_bytes: how much of the file has been read, as it lies on disk.
    """

    value: bytes
    records: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class ReplayLane:
    """Where a replay goes.

    Attributes:
        name: ``replay:...``, a lane of its own, or a declared lane, whose own windows and lateness then hold.
        tenant: owner of all flows; ``None`` takes each flow's own.
        generation: a new one each time; ``None`` takes the clock at the start.
    """

    name: str
    window_ms: int = 60_000
    lateness_ms: int = 30_000
    detection: Mapping[str, int | float] = field(default_factory=dict)
    tenant: str | None = None
    generation: int | None = None

    def header(self, generation: int, format_name: str) -> bytes:
        """Return the ``drift-lane`` header of its records."""
        return encode_header(
            LaneHeader(
                name=self.name,
                generation=generation if self.generation is None else self.generation,
                window_ms=self.window_ms,
                lateness_ms=self.lateness_ms,
                detection=dict(self.detection),
                format=format_name,
                tenant=self.tenant,
            )
        )


@dataclass(slots=True)
class Tally:
    """What became of a file's records: each is a flow, no flow record, or a dead letter.

    Attributes:
        not_flows: records that are sound and no flows, by kind.
        dead: dead letters by reason; a message that cannot be taken apart counts as one record.
        losses: records among ``not_flows`` by which the source reports loss, by kind.
    """

    flows: int = 0
    not_flows: Counter[str] = field(default_factory=Counter)
    dead: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        """Return how many records were read."""
        return self.flows + self.not_flows.total() + self.dead.total()

    def add_others(self, decoded: Decoded) -> None:
        """Count what is neither flow nor dead letter."""
        self.not_flows.update(decoded.skipped)
        self.losses.update(signal.kind for signal in decoded.signals)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_file(path: Path, format_name: str = "canonical") -> Iterator[FileMessage]:
    """Read a file message by message: Arrow in batches, JSON that is not one record a line value by value, else lines.

    Compression, Arrow and JSON are told by the first bytes; names decide where those do not.

    Raises:
        ConfigurationError: the file cannot be read, or the format does not exist.
    """
    source_format(format_name)
    head = head_of(path)
    try:
        with path.open("rb") as raw:
            stream = _unpacked(raw)
            layout = _layout(head, _suffix(path))
            if layout == "arrow":
                messages = _arrow_messages(stream, path)
            elif layout == "values":
                messages = ((value, 1) for value in _json_values(stream))
            else:
                messages = ((line, 1) for line in _lines(stream))
            for value, records in messages:
                yield FileMessage(value, records, raw.tell())
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            return _unpacked(raw).read(_HEAD_BYTES)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def shape_of(path: Path) -> tuple[str, str]:
    """Return how a file is packed (``gzip``, ``zstd``, ``plain``) and read (``arrow``, ``values``, ``lines``).

    Raises:
        ConfigurationError: the file cannot be read.
    """
    head = head_of(path)
    with path.open("rb") as raw:
        return _packing(raw.read(4)), _layout(head, _suffix(path))


def format_for(path: Path, spelling: str) -> str:
    """Return how to spell the format for this file: ``auto`` recognised, columns as its first lines name them.

    Raises:
        ConfigurationError: the file cannot be read, the format does not exist, or is not recognised.
    """
    source_format(spelling)
    try:
        return format_of_file(spelling, head_of(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path.name}: {error}") from error


def holds_tenants(spelling: str) -> bool:
    """Say whether flows of a format can name their tenant: those of producers cannot."""
    return source_format(spelling).name.startswith("canonical")


class _Columns:
    """Watches that the columns that a file's first lines name stay: each line is a message, and knows no others.

    Lines after another header would be rejected at best; with as many columns in another order, misread.
    """

    def __init__(self, path: Path, spelling: str) -> None:
        name, arguments = split_spelling(spelling)
        self._named_in: Any = getattr(source_format(name), "for_file", None)
        self._name = path.name
        self._seen = 0
        self._first = {} if self._named_in is None else dict(self._named_in(head_of(path)))
        if any(arguments.get(key) != value for key, value in self._first.items()):
            self._first = {}  # other columns were told: headers say nothing

    def check(self, values: Sequence[bytes], *, has_headers: bool) -> None:
        """Look at the next messages.

        Raises:
            ConfigurationError: one of them names other columns.
        """
        if has_headers and self._first:
            for number, value in enumerate(values, start=self._seen + 1):
                named = self._named_in(value)
                if named and named != self._first:
                    raise ConfigurationError(
                        f"{self._name}: the columns change at record {number}: part the file there"
                    )
        self._seen += len(values)


def _unreadable(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read: {short(getattr(error, 'strerror', None) or str(error))}")


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    packing = _packing(raw.read(4))
    raw.seek(0)
    if packing == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packing == "zstd":
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return cast(IO[bytes], io.BufferedReader(unpacked, _BLOCK_BYTES))
    return raw


def _packing(magic: bytes) -> str:
    if magic.startswith(_GZIP):
        return "gzip"
    is_zstd = magic == _ZSTD or (magic[1:] == _ZSTD_SKIPPABLE and 0x50 <= magic[0] <= 0x5F)
    return "zstd" if is_zstd else "plain"


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _layout(head: bytes, suffix: str) -> Literal["arrow", "values", "lines"]:
    """Return how a file is cut into messages.

    JSON is read value by value where no line of its head is an object: a line that is damaged then costs one record
    and not, as among values, all that follow it.
    """
    if suffix in _ARROW_SUFFIXES or head.startswith(_ARROW_STARTS):
        return "arrow"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in _LINE_SUFFIXES or text[:1] not in (b"{", b"["):
        return "lines"
    if text[:1] == b"[":
        return "values" if suffix == ".json" or text[1:].lstrip()[:1] in (b"{", b"]") else "lines"
    lines = text.split(b"\n")
    if len(lines) == 1 and len(head) == _HEAD_BYTES:  # cut off before its end
        return "values" if suffix == ".json" else "lines"
    return "lines" if any(line[:1] == b"{" and _is_json(line) for line in lines) else "values"


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
            line = line[:CUT_BYTES]
        line = line.strip()
        if line:
            yield line


def _json_values(stream: IO[bytes]) -> Iterator[bytes]:
    """Return the elements of an array, or values that follow each other, one at a time."""
    decoder = json.JSONDecoder()
    text = io.TextIOWrapper(cast(Any, stream), encoding="utf-8", errors="surrogateescape")
    buffer, at, is_over = "", 0, False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,[]\ufeff":  # the outer array and what separates its elements
            at += 1
        end = at
        if at < len(buffer):
            try:
                _, end = decoder.raw_decode(buffer, at)
            except (json.JSONDecodeError, RecursionError):
                pass  # cut off by the end of the block, or no JSON at all
        if end > at and (end < len(buffer) or is_over):
            yield buffer[at:end].encode(errors="surrogateescape")
            at = end
            continue
        if is_over or len(buffer) - at > MAX_LINE_BYTES:
            if at < len(buffer):  # what cannot be told apart any more becomes one dead letter
                yield buffer[at : at + CUT_BYTES].encode(errors="surrogateescape")
            return
        block = text.read(max(_BLOCK_BYTES, len(buffer) - at))
        is_over = not block
        buffer, at = buffer[at:] + block, 0


def _arrow_messages(stream: IO[bytes], path: Path) -> Iterator[tuple[bytes, int]]:
    head = stream.read(6)
    if head == b"ARROW1":
        if not isinstance(stream, io.BufferedReader) or isinstance(stream.raw, pa.NativeFile):
            raise ConfigurationError(f"{path}: unpack it first, or write the Arrow stream format")
        reader = pa.ipc.open_file(stream)
        batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = pa.ipc.open_stream(pa.PythonFile(_Rejoined(head, stream), mode="r"))
    for batch in batches:
        for start in range(0, batch.num_rows, ARROW_ROWS):
            rows = batch.slice(start, ARROW_ROWS)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_batch(rows)
            yield sink.getvalue().to_pybytes(), rows.num_rows


class _Rejoined(io.RawIOBase):
    """A stream with bytes put back in front."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self._take_head(len(self._head)) + self._stream.read()
        head = self._take_head(size)
        return head + self._stream.read(size - len(head)) if len(head) < size else head

    def _take_head(self, size: int) -> bytes:
        taken, self._head = self._head[:size], self._head[size:]
        return taken


# -- pushing -----------------------------------------------------------------------------------------------------------


class Pacer:
    """Waits so that event time passes ``speed`` times as fast as the clock."""

    def __init__(
        self, reading: SourceFormat, speed: float, clock: Clock, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._reading = reading
        self._speed = speed
        self._clock = clock
        self._sleep = sleep
        self._began: tuple[int, int] | None = None

    async def wait_for(self, value: bytes) -> None:
        """Wait until the first event of this message is due."""
        runs = self._reading.decode([value]).runs
        if not runs:
            return
        event_ms = int(runs[0].columns["time_ms"][0])
        if self._began is None:
            self._began = event_ms, self._clock.now_ms()
        first_ms, began_ms = self._began
        due_ms = began_ms + (event_ms - first_ms) / self._speed
        ahead_ms = due_ms - self._clock.now_ms()
        if ahead_ms > 0:
            await self._sleep(ahead_ms / 1000)


async def push_file(
    settings: Settings,
    path: Path,
    format_name: str,
    lane: ReplayLane,
    *,
    clock: Clock,
    speed: float | None = None,
    progress: ProgressCallback | None = None,
    tally: Tally | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Push a file into the replay topic, in file order round robin over its partitions, and end each partition's input.

    Args:
        speed: event time passes this many times as fast as the clock; ``None`` is as fast as it goes.
        progress: called with (bytes read, bytes in all) of the file.
        tally: counts what the format makes of the records; what else the worker refuses (a tenant that may not come
            from there, a time in the future) it does not know.

    Returns:
        How many flows were pushed, as the file counts them; those that cannot be read become dead letters.

    Raises:
        ConfigurationError: the file cannot be read, its format is not recognised or holds no tenant where none is
            given, the lane is not declared, or the broker does not take a record.
    """
    format_name = format_for(path, format_name)
    if lane.tenant is None and not holds_tenants(format_name):
        raise ConfigurationError(
            f"format {source_format(format_name).name} holds no tenant: name the owner of the flows (--tenant)"
        )
    declared = {declared.name for declared in settings.lanes}
    if not lane.name.startswith(REPLAY_PREFIX) and lane.name not in declared:
        raise ConfigurationError(
            f"lane {lane.name!r} is not declared: name one of {sorted(declared)}, or {REPLAY_PREFIX}NAME"
        )
    idempotent = await supports_idempotence(settings.kafka)  # else a repeated request can write a record twice
    producer = make_producer(settings.kafka, max_request_size=_MAX_REQUEST_BYTES, enable_idempotence=idempotent)
    await producer.start()
    try:
        pacer = None if speed is None else Pacer(source_format(format_name), speed, clock, sleep)
        header = lane.header(clock.now_ms(), format_name)
        topic, total = settings.topics.name("replay"), path.stat().st_size
        messages = read_file(path, format_name) if tally is None else _tallied(path, format_name, tally)
        return await _push(producer, topic, messages, header, pacer, progress, total)
    except KafkaError as error:
        raise ConfigurationError(f"the broker did not take a record of {path}: {short(str(error))}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        await producer.stop()


def _tallied(path: Path, spelling: str, tally: Tally) -> Iterator[FileMessage]:
    reading, columns = source_format(spelling), _Columns(path, spelling)
    for chunk in _chunks(read_file(path, spelling), _TALLIED_AT_ONCE):
        values = [message.value for message in chunk]
        decoded = reading.decode(values)
        columns.check(values, has_headers=bool(decoded.skipped[HEADER]))
        tally.flows += sum(len(run.message) for run in decoded.runs)
        tally.dead.update(bad.reason.value for bad in decoded.rejected)
        tally.add_others(decoded)
        yield from chunk


async def _push(
    producer: Any,
    topic: str,
    messages: Iterable[FileMessage],
    header: bytes,
    pacer: Pacer | None,
    progress: ProgressCallback | None,
    total: int,
) -> int:
    partitions = sorted(await producer.partitions_for(topic))
    headers = [(HEADER_LANE, header)]
    under_way: list[Any] = []
    flows = 0
    for number, message in enumerate(messages):
        if pacer is not None:
            await pacer.wait_for(message.value)
        partition = partitions[number % len(partitions)]
        under_way.append(await producer.send(topic, message.value, partition=partition, headers=headers))
        flows += message.records
        if len(under_way) >= _UNDER_WAY:
            await asyncio.gather(*under_way)
            under_way.clear()
            if progress is not None:
                progress(message.read_bytes, total)
    await asyncio.gather(*under_way)
    end = [*headers, (HEADER_END, b"1")]
    await asyncio.gather(*[producer.send_and_wait(topic, b"", partition=number, headers=end) for number in partitions])
    if progress is not None:
        progress(total, total)
    return flows


# -- without Kafka -----------------------------------------------------------------------------------------------------


def local_records(
    path: Path,
    format_name: str = "canonical",
    lane: ReplayLane | None = None,
    *,
    as_of_ms: int = 0,
    flows_per_chunk: int = 4_000,
    on_dead_letter: Callable[[DeadLetter], None] | None = None,
    progress: ProgressCallback | None = None,
    tally: Tally | None = None,
) -> Iterator[LogRecord]:
    """Return the records that a file would become in a `tenant-log` of one partition, through the same decoding.

    The file is one source of one partition; its lines (or messages) are the offsets. The last record ends the input.

    Args:
        tally: counts what becomes of the file's records.

    Raises:
        ConfigurationError: the file cannot be read, its columns change, or the format does not exist or is not
            recognised.
    """
    format_name = format_for(path, format_name)
    tally = Tally() if tally is None else tally
    wanted = lane or ReplayLane(f"{REPLAY_PREFIX}{path.name}")
    source = f"file#{path.name}"
    config = LaneConfig(
        name=wanted.name,
        mode="replay",
        generation=wanted.generation or 0,
        window_ms=wanted.window_ms,
        lateness_ms=wanted.lateness_ms,
        max_wait_ms=0,
        members=(Member(source, 1),),
        detection=detection_of(wanted.detection),
    )
    tenant_from = "field" if wanted.tenant is None else f"fixed:{wanted.tenant}"
    topic = FlowTopic(topic=path.name, lane=wanted.name, format=format_name, tenant_from=tenant_from)
    reader = FlowReader(topic, source, config, targets=1)
    reader.rules = replace(reader.rules, format=_Tallied(reader.rules.format, tally))
    columns = _Columns(path, format_name)
    offset, total = 0, path.stat().st_size if path.exists() else 0
    for messages in _chunks(read_file(path, format_name), flows_per_chunk):
        values = [message.value for message in messages]
        headers = tally.not_flows[HEADER]
        encoded = reader.encode(chunk_of(path.name, 0, offset, values), position_before(offset), "local", as_of_ms)
        columns.check(values, has_headers=tally.not_flows[HEADER] > headers)
        offset += len(values)
        tally.flows += encoded.rows
        for letter in encoded.dead_letters:
            tally.dead[letter.reason.value] += 1
            if on_dead_letter is not None:
                on_dead_letter(letter)
        yield from map(decode_record, encoded.records[0])
        if progress is not None:
            progress(messages[-1].read_bytes, total)
    end = position_before(offset)
    yield LogRecord("local", as_of_ms, (Progress(source, 0, end, end, (), ENDED),), lane=config, logic=LOGIC_VERSION)


class _Tallied:
    """A format that counts the records which are neither flows nor dead letters."""

    def __init__(self, reading: SourceFormat, tally: Tally) -> None:
        self._reading = reading
        self._tally = tally

    @property
    def name(self) -> str:
        return self._reading.name

    def decode(self, values: Sequence[bytes]) -> Decoded:
        decoded = self._reading.decode(values)
        self._tally.add_others(decoded)
        return decoded


def _chunks(messages: Iterable[FileMessage], size: int) -> Iterator[list[FileMessage]]:
    """Return messages in lists of about ``size`` records, fewer where they are large."""
    chunk: list[FileMessage] = []
    records = held_bytes = 0
    for message in messages:
        chunk.append(message)
        records += message.records
        held_bytes += len(message.value)
        if records >= size or held_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, records, held_bytes = [], 0, 0
    if chunk:
        yield chunk
