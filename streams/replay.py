"""Log files as input: read message by message, then pushed to the replay topic, or run through ingest without Kafka.

Reading streams: whatever a compressed file unpacks to, no more than one message and one block are in memory.
"""

import asyncio
import gzip
import io
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

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
from streams.sources.format import SourceFormat
from streams.sources.registry import source_format

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A longer line, or JSON value, is pushed cut off, so that it becomes one dead letter."""
CUT_BYTES = 64 * 1024
ARROW_ROWS = 1_000
"""Rows of an Arrow file that make one message."""
_BLOCK_BYTES = 1 << 18
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
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


# -- reading -----------------------------------------------------------------------------------------------------------


def read_file(path: Path, format_name: str = "canonical") -> Iterator[FileMessage]:
    """Read a file message by message: ``.json`` value by value, ``.arrow`` in batches, anything else line by line.

    gzip and zstd are told by the first bytes.

    Raises:
        ConfigurationError: the file cannot be read, or the format does not exist.
    """
    source_format(format_name)
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
            raw.seek(0)
            stream, kind = _unpacked(raw, magic, path)
            if kind in {".arrow", ".arrows", ".ipc", ".feather"}:
                messages = _arrow_messages(stream, path)
            elif kind == ".json":
                messages = ((value, 1) for value in _json_values(stream))
            else:
                messages = ((line, 1) for line in _lines(stream))
            for value, records in messages:
                yield FileMessage(value, records, raw.tell())
    except (OSError, EOFError, pa.ArrowException) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {short(getattr(error, 'strerror', None) or str(error))}"
        ) from error


def _unpacked(raw: IO[bytes], magic: bytes, path: Path) -> tuple[IO[bytes], str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in {".gz", ".zst", ".zstd"}:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if magic.startswith(_GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw)), kind
    if magic == _ZSTD:
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        return cast(IO[bytes], io.BufferedReader(unpacked, _BLOCK_BYTES)), kind
    return raw, kind


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
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> int:
    """Push a file into the replay topic, in file order round robin over its partitions, and end each partition's input.

    Args:
        speed: event time passes this many times as fast as the clock; ``None`` is as fast as it goes.
        progress: called with (bytes read, bytes in all) of the file.

    Returns:
        How many flows were pushed, as the file counts them; those that cannot be read become dead letters.

    Raises:
        ConfigurationError: the file cannot be read, the lane is not declared, or the broker does not take a record.
    """
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
        return await _push(producer, topic, read_file(path, format_name), header, pacer, progress, total)
    except KafkaError as error:
        raise ConfigurationError(f"the broker did not take a record of {path}: {short(str(error))}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        await producer.stop()


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
) -> Iterator[LogRecord]:
    """Return the records that a file would become in a `tenant-log` of one partition, through the same decoding.

    The file is one source of one partition; its lines (or messages) are the offsets. The last record ends the input.

    Raises:
        ConfigurationError: the file cannot be read, or the format does not exist.
    """
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
    offset, total = 0, path.stat().st_size if path.exists() else 0
    for values, read_bytes in _chunks(read_file(path, format_name), flows_per_chunk):
        encoded = reader.encode(chunk_of(path.name, 0, offset, values), position_before(offset), "local", as_of_ms)
        offset += len(values)
        for letter in encoded.dead_letters if on_dead_letter is not None else ():
            on_dead_letter(letter)  # type: ignore[misc]
        yield from map(decode_record, encoded.records[0])
        if progress is not None:
            progress(read_bytes, total)
    end = position_before(offset)
    yield LogRecord("local", as_of_ms, (Progress(source, 0, end, end, (), ENDED),), lane=config, logic=LOGIC_VERSION)


def _chunks(messages: Iterable[FileMessage], size: int) -> Iterator[tuple[list[bytes], int]]:
    values: list[bytes] = []
    read_bytes = flows = 0
    for message in messages:
        values.append(message.value)
        read_bytes = message.read_bytes
        flows += message.records
        if flows >= size:
            yield values, read_bytes
            values, flows = [], 0
    if values:
        yield values, read_bytes
