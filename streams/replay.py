"""Log files as input: pushed to the replay topic message by message, or run through ingest without Kafka."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from models.graph.logic import LOGIC_VERSION
from schemas.dead_letter import DeadLetter
from schemas.errors import ConfigurationError
from schemas.ids import REPLAY_PREFIX
from schemas.settings import FlowTopic, Settings
from schemas.tenant_log import ENDED, LaneConfig, LogRecord, Member, Progress, decode_record
from schemas.topics import HEADER_END, HEADER_LANE
from streams.clock import Clock
from streams.idempotence import supports_idempotence
from streams.ingest.chain import position_before
from streams.ingest.chunk import chunk_of
from streams.ingest.lanes import LaneHeader, detection_of, encode_header
from streams.ingest.readers import FlowReader
from streams.kafka_clients import make_producer
from streams.log_files import ColumnsWatch, FileMessage, format_for, holds_tenants, read_file
from streams.result import short
from streams.sources.format import Decoded, SourceFormat
from streams.sources.registry import source_format
from streams.sources.text_records import HEADER

_CHUNK_BYTES = 8 * 1024 * 1024
_TALLIED_AT_ONCE = 1_000
_UNDER_WAY = 2_000
"""Messages sent and not yet acknowledged."""
_MAX_REQUEST_BYTES = 10 * 1024 * 1024

ProgressCallback = Callable[[int, int], None]


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
    reading, columns = source_format(spelling), ColumnsWatch(path, spelling)
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
    columns = ColumnsWatch(path, format_name)
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
