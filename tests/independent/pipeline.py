"""The pipeline without a broker, for the independent check: raw messages to rows in ClickHouse. Shell of tests."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from models.graph.machine import Machine
from models.graph.output import Output
from schemas.detection import DetectionConfig
from schemas.drift import DriftEvent
from schemas.graph import ClosedWindow, chunk_window, encode_chunk
from schemas.ids import NO_POSITION
from schemas.ocsf import encode_event
from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, Member, decode_record
from streams.ingest.chunk import LOG_APPEND_TIME, chunk_of
from streams.ingest.readers import FlowReader
from streams.metrics import Metrics
from streams.sinks.rows import drift_rows, graph_rows
from streams.sinks.writer import Message, PartitionWriter, Poison
from tests.builders import SOURCE, end_of
from tests.builders_clickhouse import ClickHouse

TARGETS = 2
FAR_MS = 1 << 42


@dataclass
class Run:
    """What came of an input.

    Attributes:
        raw: the messages as the check takes them, ``batch`` set. dead: dead letters likewise.
        counts: what the state machines counted.
    """

    raw: list[tuple[int, int, bytes, int, int]] = field(default_factory=list)
    dead: list[tuple[int, int, int, str]] = field(default_factory=list)
    windows: list[ClosedWindow] = field(default_factory=list)
    events: list[DriftEvent] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def lane_of(name: str, partitions: int, learning_windows: int, **changes: object) -> LaneConfig:
    """Return a replay lane of 10 s windows, 5 s lateness."""
    values: dict[str, object] = {
        "mode": "replay",
        "window_ms": 10_000,
        "lateness_ms": 5_000,
        "members": (Member(SOURCE, partitions),),
        "detection": DetectionConfig(learning_windows=learning_windows),
        **changes,
    }
    return LaneConfig(name, **values)  # type: ignore[arg-type]


def run_pipeline(
    lane: LaneConfig, chunks: Iterable[tuple[int, Sequence[tuple[bytes, int]]]], tenants: tuple[str, ...] = ("*",)
) -> Run:
    """Drive ingest and state machines.

    ``chunks``: in order, source partition and its messages with their LogAppendTime (0: none).
    """
    partitions = lane.members[0].partitions
    reader = FlowReader(FlowTopic(topic="flows", tenants=tenants), SOURCE, lane, TARGETS)
    machines = [Machine() for _ in range(TARGETS)]
    offsets, after = [0] * partitions, [NO_POSITION] * partitions
    run = Run()

    def take(output: Output) -> None:
        run.windows += output.windows
        run.events += output.events
        run.counts.update(output.counts)

    def append(machine: Machine, value: bytes) -> None:
        take(machine.apply(machine.offset + 1, decode_record(value)))

    for batch, (partition, messages) in enumerate(chunks, 1):
        first = offsets[partition]
        times = [time_ms for _, time_ms in messages]
        chunk = chunk_of(
            "flows",
            partition,
            first,
            [value for value, _ in messages],
            timestamps=times,
            timestamp_type=LOG_APPEND_TIME if any(times) else 0,
        )
        encoded = reader.encode(chunk, after[partition], "test", FAR_MS)
        after[partition] = encoded.upto
        offsets[partition] += len(messages)
        run.raw += [(partition, first + i, value, batch, time_ms) for i, (value, time_ms) in enumerate(messages)]
        run.dead += [(letter.partition, letter.offset, letter.index, letter.reason) for letter in encoded.dead_letters]
        for machine, values in zip(machines, encoded.records, strict=True):
            for value in values:
                append(machine, value)
    for partition in range(partitions):
        for machine in machines:
            take(machine.apply(machine.offset + 1, end_of(lane, partition, offsets[partition])))
    return run


async def store(run: Run, ch: ClickHouse) -> None:
    """Write windows and events as the sinks do."""

    async def fail(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    chunks = [encode_chunk(chunk) for window in run.windows for chunk in chunk_window(window)]
    events = [encode_event(event) for event in run.events]
    for topic, rows_of, values in (("graph-windows", graph_rows, chunks), ("drift-events", drift_rows, events)):
        writer = PartitionWriter(ch.client, ch.database, topic, 0, rows_of, fail, Metrics())
        await writer.write([Message(offset, value) for offset, value in enumerate(values)])
