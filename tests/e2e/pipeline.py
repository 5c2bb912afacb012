"""A worker on a real broker, and what it left on the topics. Shell of tests."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from aiokafka import AIOKafkaProducer, TopicPartition

from deploy.commands.backtest import run_backtest
from models.graph.clock import END_OF_TIME_MS
from schemas.dead_letter import DeadLetter
from schemas.drift import DriftEvent
from schemas.graph import ClosedWindow, chunk_window, decode_chunk, encode_chunk
from schemas.ocsf import decode_event
from schemas.settings import Settings
from schemas.topics import HEADER_END
from streams.app import Worker
from streams.clickhouse import connect
from streams.clock import SystemClock
from streams.dead_letters import decode_dead_letter
from streams.kafka_clients import make_consumer, make_producer
from streams.replay import ReplayLane, push_file
from streams.topics import ensure_topics

DEADLINE_S = 600.0
"""Ends what hangs; how fast this machine is decides nothing."""
GRACE_MS = 300_000
"""For workers whose stop is no subject of the test: they finish, however slow this machine is."""
POLL_S = 0.05
Condition = Callable[[], Any]
ChunkKey = tuple[str, str, int, int, int]
"""Tenant, lane, generation, start of the window, shard."""


@dataclass
class Results:
    """What stands on the topics, or what the backtest says should.

    Attributes:
        events: as published, repeats included. values: message by event id.
        chunks: messages of `graph-windows` by identity. markers: windows that are whole.
        dead: dead letters by partition, offset and index. repeated: dead letters that came again.
    """

    events: list[DriftEvent] = field(default_factory=list)
    values: dict[str, bytes] = field(default_factory=dict)
    chunks: dict[ChunkKey, bytes] = field(default_factory=dict)
    markers: set[ChunkKey] = field(default_factory=set)
    dead: dict[tuple[int, int, int], DeadLetter] = field(default_factory=dict)
    repeated: int = 0

    def add_chunk(self, value: bytes) -> None:
        """Take in a message of `graph-windows`; a repeat must be the same to the byte."""
        chunk = decode_chunk(value)
        key = (chunk.tenant, chunk.lane, chunk.generation, chunk.start_ms, chunk.shard)
        assert self.chunks.setdefault(key, value) == value, f"two contents of {key}"
        if chunk.is_marker:
            self.markers.add(key)

    def add_dead(self, letter: DeadLetter) -> None:
        """Take in a dead letter; a repeat must be the same."""
        key = (letter.partition, letter.offset, letter.index)
        self.repeated += key in self.dead
        assert self.dead.setdefault(key, letter) == letter

    def dead_by_reason(self) -> dict[str, list[bytes]]:
        """Return what was kept of dead letters, sorted, by reason."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for letter in self.dead.values():
            found[letter.reason.value].append(letter.payload)
        return {reason: sorted(values) for reason, values in found.items()}

    def settled_counts(self) -> Counter[str]:
        """Count by finding the events that are not early: how a finding was settled, updated and closed."""
        return Counter(event.finding_id for event in self.events if not event.is_early)


class Topics:
    """Follows the topics that a worker writes, from their start."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = Results()
        self.names = {settings.topics.name(role): role for role in ("drift_events", "graph_windows", "dead_letter")}
        self.ends: dict[TopicPartition, int] = {}
        self.partitions: list[TopicPartition] = []

    def take(self, record: Any) -> None:
        """Take in one message."""
        results, role = self.results, self.names[record.topic]
        if role == "drift_events":
            event = decode_event(record.value)
            assert dict(record.headers)["ce_id"].decode() == event.event_id
            results.events.append(event)
            results.values[event.event_id] = record.value
        elif role == "graph_windows":
            results.add_chunk(record.value)
        else:
            results.add_dead(decode_dead_letter(record.value, record.headers))
        self.ends[TopicPartition(record.topic, record.partition)] = record.offset + 1

    async def follow(self, consumer: Any) -> None:
        """Take in messages until cancelled."""
        while True:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    self.take(record)


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Topics]:
    """Make the topics and read what is written to them meanwhile; at the end, read each to its end."""
    counts = await ensure_topics(settings)
    topics = Topics(settings)
    topics.partitions = [TopicPartition(name, number) for name in topics.names for number in range(counts[name])]
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        consumer.assign(topics.partitions)
        task = asyncio.create_task(topics.follow(consumer))
        try:
            yield topics
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    finally:
        await consumer.stop()


async def catch_up(topics: Topics) -> Results:
    """Wait until everything written so far was read; call it when no worker runs."""
    consumer = make_consumer(topics.settings.kafka)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(topics.partitions)
    finally:
        await consumer.stop()
    await until(lambda: all(topics.ends.get(tp, 0) >= end for tp, end in ends.items()), "the topics were read")
    return topics.results


async def until(condition: Condition, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until ``condition`` holds.

    Raises:
        AssertionError: it did not in time.
    """
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                met = condition()
                if asyncio.iscoroutine(met):
                    met = await met
                if met:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"after {deadline_s:g} s still not: {what}") from None


class Running:
    """A worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(worker.run_until(self.stop))

    async def until(self, condition: Condition, what: str, deadline_s: float = DEADLINE_S) -> None:
        """Poll until ``condition`` holds; a worker that crashed meanwhile says why."""

        def met() -> Any:
            if self.task.done():
                self.task.result()
                raise AssertionError(f"the worker ended before: {what}")
            return condition()

        await until(met, what, deadline_s)

    def total(self, name: str, **labels: str) -> int:
        """Return a metric summed over its labels."""
        samples = (s for metric in self.worker.metrics.registry.collect() for s in metric.samples)
        return int(
            sum(s.value for s in samples if s.name == name and all(s.labels.get(k) == v for k, v in labels.items()))
        )

    def is_closed(self, lane: str) -> bool:
        """Say whether every partition of `tenant-log` has performed the end of the lane's input."""
        assert self.worker.graph is not None
        done = [p for p in self.worker.graph.partitions.values() if p.performed_offset == p.machine.offset]
        clocks = [state.clock for p in done if (state := p.machine.lanes.get(lane)) is not None]
        return len(clocks) == self.worker.settings.topics.partitions and all(
            (clock.watermark_ms or 0) >= END_OF_TIME_MS for clock in clocks
        )


@asynccontextmanager
async def running(settings: Settings, **options: Any) -> AsyncIterator[Running]:
    """Run a worker in this process, sinks included. ``options``: of `Worker`."""
    worker = Worker(settings, partial(connect, settings.clickhouse), **options)
    run = None
    try:
        await worker.start()
        run = Running(worker)
        yield run
        if run.task.done():
            run.task.result()
    finally:
        if run is not None:
            run.stop.set()
            with suppress(Exception):
                await run.task
        await worker.stop()


async def sink_lag(topics: Topics) -> int:
    """Return how many messages the sinks have yet to commit, of those read from the topics."""
    ends = {tp: end for tp, end in topics.ends.items() if topics.names[tp.topic] != "dead_letter"}
    return await lag_of(topics.settings, topics.settings.worker.group, ends)


async def lag_of(settings: Settings, group: str, ends: Mapping[TopicPartition, int]) -> int:
    """Return how many messages before these offsets a group has yet to commit."""
    consumer = make_consumer(settings.kafka, group_id=group)
    await consumer.start()
    try:
        return sum([end - (await consumer.committed(tp) or 0) for tp, end in ends.items()])
    finally:
        await consumer.stop()


async def ends_of(settings: Settings, role: str) -> dict[TopicPartition, int]:
    """Return the end of each partition of one of our topics."""
    topic = settings.topics.name(role)
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.topics.partitions)]
        return dict(await consumer.end_offsets(partitions))
    finally:
        await consumer.stop()


async def is_stored(topics: Topics) -> bool:
    """Say whether the sinks have committed all that was read from the topics."""
    return await sink_lag(topics) <= 0


def expected_of(path: Path, lane: ReplayLane) -> Results:
    """Return what `drift backtest` says of a file."""
    results = Results()
    windows: list[ClosedWindow] = []
    for output in run_backtest(
        path, "canonical", lane, as_of_ms=SystemClock().now_ms(), on_dead_letter=results.add_dead
    ):
        results.events += output.events
        windows += output.windows
    for window in windows:
        for chunk in chunk_window(window):
            results.add_chunk(encode_chunk(chunk))
    return results


class Gate:
    """Lets a push come as far as a moment of event time, and on when it is opened. The ``sleep`` of `push_file`."""

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, ahead_s: float) -> None:
        if ahead_s >= self.at_s:
            self.reached.set()
            await self.opened.wait()


class _Standing:
    """A clock that stands: event time alone moves the gate."""

    def now_ms(self) -> int:
        return 0


@asynccontextmanager
async def pushing(settings: Settings, path: Path, lane: ReplayLane, gate: Gate | None = None) -> AsyncIterator[Any]:
    """Push a file in the background; with a gate, only up to its moment until it is opened."""
    task = asyncio.create_task(
        push_file(settings, path, "canonical", lane, clock=SystemClock())
        if gate is None
        else push_file(settings, path, "canonical", lane, clock=_Standing(), speed=1.0, sleep=gate)
    )
    try:
        yield task
        await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def raw_messages(settings: Settings, role: str = "replay") -> list[tuple[int, int, bytes, int, int]]:
    """Return what was pushed, as the independent check takes it."""
    topic = settings.topics.name(role)
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    found = []
    try:
        partitions = [TopicPartition(topic, number) for number in range(settings.topics.partitions)]
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        left = {tp for tp in partitions if ends[tp]}
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                for record in records:
                    if HEADER_END not in dict(record.headers):
                        found.append((tp.partition, record.offset, record.value, 0, 0))
                    if record.offset + 1 >= ends[tp]:
                        left.discard(tp)
        return found
    finally:
        await consumer.stop()


async def known_partitions(producer: AIOKafkaProducer, topic: str, wanted: set[int]) -> None:
    """Return once the producer's metadata has the partitions: a broker tells of new ones a while after making them."""
    async with asyncio.timeout(DEADLINE_S):
        while not wanted <= await producer.partitions_for(topic):
            await producer.client.force_metadata_update()


async def send_all(settings: Settings, topic: str, messages: Sequence[tuple[int, bytes]], **changes: Any) -> list[int]:
    """Produce (partition, value) in order and return the offsets."""
    producer = make_producer(settings.kafka, **changes)
    await producer.start()
    try:
        await known_partitions(producer, topic, {partition for partition, _ in messages})
        futures = [await producer.send(topic, value, partition=partition) for partition, value in messages]
        return [(await future).offset for future in futures]
    finally:
        await producer.stop()


def write_config(settings: Settings, path: Path) -> Path:
    """Write settings as the YAML file of ``--config``."""
    values = settings.model_dump(mode="json", exclude_defaults=True)
    values["clickhouse"] = {"dsn": settings.clickhouse.dsn.get_secret_value(), "database": settings.clickhouse.database}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
