"""The batching transport against the pinned Faust on a real broker."""

import ast
import asyncio
import contextlib
import functools
import inspect
import itertools
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher as aiokafka_fetcher
import faust
import pytest
from aiokafka import AIOKafkaClient, AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState
from aiokafka.errors import IllegalGenerationError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP
from faust.types.tuples import Message

from schemas.errors import ConfigurationError
from streams.batching import (
    EARLIEST,
    LATEST,
    Chunk,
    OffsetOutOfRange,
    batched_topic,
    commit,
    committed,
    log_range,
    partition_status,
    pause_partitions,
    resume_partitions,
    seek,
    use_batching,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

DEADLINE_S = 120.0
ROOT = Path(__file__).resolve().parents[2]
BASE_MS = int(time.time() * 1000)  # of now: Kafka's retention deletes records with old timestamps 30 s after it starts


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll a real process until something holds."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


class Worker:
    """One Faust app with one agent on batched topics, embedded in the test's event loop."""

    def __init__(self, bootstrap: str, topic: str, group: str, **options: Any) -> None:
        self.chunks: list[Chunk] = []
        self.others: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits = False
        self.keeps = False
        self.app = faust.App(
            group,
            broker=f"kafka://{bootstrap}",
            broker_session_timeout=30,  # a busy machine must not cost a member its place: generations are counted
            broker_rebalance_timeout=60,
            broker_heartbeat_interval=1,
            consumer_auto_offset_reset="earliest",
            stream_wait_empty=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            web_enabled=False,
            datadir=tempfile.gettempdir(),
        )
        use_batching(self.app, [topic], fetch_max_wait_ms=200, **options)

        @self.app.agent(batched_topic(self.app, topic), name="chunks")
        async def _(stream: Any) -> None:
            async for chunk in stream:
                self.chunks.append(chunk)
                if self.keeps:
                    chunk.keep()
                await self.gate.wait()
                if self.commits:
                    offsets = {TP(chunk.topic, chunk.partition): chunk.next_offset}
                    await commit(self.app, offsets, generation=chunk.generation)

    @property
    def consumer(self) -> Any:
        return self.app.consumer

    @property
    def thread(self) -> Any:
        return self.consumer.thread

    @property
    def rows(self) -> int:
        return sum(len(chunk.values) for chunk in self.chunks)

    def offsets(self, partition: int) -> list[int]:
        return [int(offset) for chunk in self.of(partition) for offset in chunk.offsets]

    def of(self, partition: int) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.partition == partition]

    def assigned(self) -> set[int]:
        return {tp.partition for tp in partition_status(self.app)}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        await self.app.start()
        try:
            await until(lambda: not self.app.rebalancing and bool(partition_status(self.app)), "an assignment")
            yield self
        finally:
            self.gate.set()
            await self.app.stop()


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_batch_size=1 << 20)
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
async def topic(kafka_bootstrap: str) -> str:
    return await make_topic(kafka_bootstrap, 2)


async def make_topic(bootstrap: str, partitions: int) -> str:
    name = f"flows-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, partitions, 1)])
    async with asyncio.timeout(DEADLINE_S):  # a consumer that joins before the broker shows the topic gets none of it
        while True:
            (described,) = await admin.describe_topics([name])
            if len(described["partitions"]) == partitions and all(p["leader"] >= 0 for p in described["partitions"]):
                break
            await asyncio.sleep(0.02)
    await admin.close()
    return name


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:8]}"


async def send(producer: AIOKafkaProducer, topic: str, partition: int, first: int, count: int, pad: int = 0) -> None:
    """Write ``count`` records of one partition; row ``i`` says ``i``."""
    for start in range(first, first + count, 100):
        batch = producer.create_batch()
        for number in range(start, min(start + 100, first + count)):
            assert batch.append(
                key=b"k%d" % number,
                value=b"%d" % number + b" " * pad,
                timestamp=BASE_MS + number,
                headers=[("n", b"%d" % number)],
            )
        batch.close()
        await (await producer.send_batch(batch, topic, partition=partition))


def is_chain(chunks: list[Chunk]) -> bool:
    return all(before.next_offset == after.first_offset for before, after in itertools.pairwise(chunks))


async def test_everything_arrives_in_order_as_columns(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    await send(producer, topic, 0, 0, 1_000)
    await send(producer, topic, 1, 0, 250)
    async with Worker(kafka_bootstrap, topic, group).running() as worker:
        await until(lambda: worker.rows >= 1_250, "1250 rows")
        await send(producer, topic, 1, 250, 50)
        await until(lambda: worker.rows >= 1_300, "1300 rows")
    for partition, count in ((0, 1_000), (1, 300)):
        chunks = worker.of(partition)
        assert worker.offsets(partition) == list(range(count))
        assert is_chain(chunks)
        assert chunks[0].first_offset == 0 and chunks[-1].last_offset == count - 1
        assert [value for chunk in chunks for value in chunk.values] == [b"%d" % number for number in range(count)]
        assert [key for chunk in chunks for key in chunk.keys] == [b"k%d" % number for number in range(count)]
        assert [list(headers) for chunk in chunks for headers in chunk.headers] == [
            [("n", b"%d" % number)] for number in range(count)
        ]
        assert [stamp for chunk in chunks for stamp in chunk.timestamps] == [
            BASE_MS + number for number in range(count)
        ]
        assert {chunk.timestamp_type for chunk in chunks} == {0}
        assert all(chunk.highwater >= chunk.next_offset for chunk in chunks)
    assert len(worker.chunks) < 100  # chunks, not messages


async def test_an_ordinary_topic_of_the_same_app_keeps_single_messages(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    ordinary = await make_topic(kafka_bootstrap, 1)
    worker = Worker(kafka_bootstrap, topic, group)
    seen: list[tuple[int, bytes]] = []

    @worker.app.agent(worker.app.topic(ordinary, value_type=bytes, value_serializer="raw"), name="ordinary")
    async def _(stream: Any) -> None:
        async for event in stream.events():
            seen.append((event.message.offset, event.value))

    await send(producer, ordinary, 0, 0, 50)
    await send(producer, topic, 0, 0, 50)
    async with worker.running():
        await until(lambda: len(seen) >= 50 and worker.rows >= 50, "both topics")
        tp = TP(ordinary, 0)
        await until(lambda: worker.consumer._committed_offset[tp] == 50, "Faust's own commit")
        assert tp not in partition_status(worker.app)
    assert seen == [(number, b"%d" % number) for number in range(50)]


async def test_a_paused_partition_gives_nothing_until_it_is_resumed(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    async with Worker(kafka_bootstrap, topic, group).running() as worker:
        paused = TP(topic, 0)
        pause_partitions(worker.app, [paused])
        await send(producer, topic, 0, 0, 300)
        for first in range(0, 300, 100):  # several fetches of the other partition pass meanwhile
            await send(producer, topic, 1, first, 100)
            await until(functools.partial(lambda wanted: worker.rows >= wanted, first + 100), "the other partition")
        assert worker.of(0) == []
        status = partition_status(worker.app)[paused]
        assert status.paused and not status.end_reached
        resume_partitions(worker.app, [paused])
        await until(lambda: worker.rows >= 600, "the resumed partition")
        assert worker.offsets(0) == list(range(300))
        assert not partition_status(worker.app)[paused].paused


async def test_end_reached_is_known_from_an_empty_fetch(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    await send(producer, topic, 0, 0, 100)
    async with Worker(kafka_bootstrap, topic, group).running() as worker:
        full, empty = TP(topic, 0), TP(topic, 1)

        def at_end(tp: TP, position: int) -> bool:
            status = partition_status(worker.app)[tp]
            return status.end_reached and status.position == status.highwater == position

        await until(lambda: at_end(full, 100) and at_end(empty, 0), "both ends")
        assert await log_range(worker.app, full) == (0, 100)
        before = partition_status(worker.app)[empty].last_fetch_ms
        assert before is not None
        await until(lambda: (partition_status(worker.app)[empty].last_fetch_ms or 0) > before, "the next empty fetch")
        pause_partitions(worker.app, [full])
        await send(producer, topic, 0, 100, 10)
        await until(lambda: partition_status(worker.app)[full].highwater == 110, "the new highwater")
        assert not partition_status(worker.app)[full].end_reached
        resume_partitions(worker.app, [full])
        await until(lambda: at_end(full, 110), "the new end")


async def test_a_seek_drops_waiting_chunks_and_continues_at_the_offset(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    worker = Worker(kafka_bootstrap, topic, group, max_chunk_bytes=1, max_chunks_per_partition=100)
    worker.gate.clear()
    await send(producer, topic, 0, 0, 1_000)
    async with worker.running():
        tp = TP(topic, 0)
        await until(lambda: partition_status(worker.app)[tp].position == 1_000, "everything fetched")
        await until(lambda: bool(worker.chunks), "the first of ten chunks")
        assert [chunk.next_offset for chunk in worker.chunks] == [100]  # the agent holds it, the others wait
        await seek(worker.app, tp, 730)
        worker.gate.set()
        await until(lambda: bool(worker.offsets(0)) and worker.offsets(0)[-1] == 999, "the end again")
        assert worker.chunks[1].first_offset == 730
        assert worker.offsets(0) == [*range(100), *range(730, 1_000)]
        await seek(worker.app, tp, EARLIEST)
        await until(lambda: worker.rows == 100 + 270 + 1_000, "all of it")
        assert worker.offsets(0)[370:] == list(range(1_000))
        await send(producer, topic, 0, 1_000, 1)
        await until(lambda: worker.rows == 1_371, "the new record")
        pause_partitions(worker.app, [tp])
        await send(producer, topic, 0, 1_001, 1)
        await seek(worker.app, tp, LATEST)
        resume_partitions(worker.app, [tp])
        await until(lambda: partition_status(worker.app)[tp].end_reached, "the end")
        await send(producer, topic, 0, 1_002, 1)
        await until(lambda: worker.rows == 1_372, "the newest record")
        assert worker.offsets(0)[-2:] == [1_000, 1_002]


async def test_the_start_hook_decides_and_none_is_the_committed_offset(
    kafka_bootstrap: str, group: str, producer: AIOKafkaProducer
) -> None:
    topic = await make_topic(kafka_bootstrap, 4)
    for partition in range(4):
        await send(producer, topic, partition, 0, 99)
        await send(
            producer, topic, partition, 99, 1
        )  # alone: Tansu takes the start of the last batch for the log's end
    starts: dict[int, int | None] = {0: 40, 1: EARLIEST, 2: LATEST, 3: None}
    asked: list[TP] = []

    async def start_offset(tp: TP) -> int | None:
        asked.append(tp)
        return starts[tp.partition]

    async with Worker(kafka_bootstrap, topic, group).running() as first:
        await until(lambda: first.rows == 400, "everything")
        assert await commit(first.app, {TP(topic, partition): 70 for partition in range(4)})
    async with Worker(kafka_bootstrap, topic, group, start_offset=start_offset).running() as worker:
        await until(lambda: worker.rows >= 60 + 100 + 30, "what the hook left")
        await until(lambda: partition_status(worker.app)[TP(topic, 2)].position == 100, "the end of partition 2")
        await send(producer, topic, 2, 100, 1)
        await until(lambda: worker.rows >= 60 + 100 + 30 + 1, "the new record")
    assert sorted(asked) == [TP(topic, partition) for partition in range(4)]
    assert worker.offsets(0) == list(range(40, 100))
    assert worker.offsets(1) == list(range(100))
    assert worker.offsets(2) == [100]
    assert worker.offsets(3) == list(range(70, 100))


async def test_a_restart_continues_at_what_was_committed(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    tp = TP(topic, 0)
    await send(producer, topic, 0, 0, 500)
    async with Worker(kafka_bootstrap, topic, group).running() as first:
        await until(lambda: first.rows == 500, "everything")
        generation = first.chunks[0].generation
        assert await committed(first.app, [tp]) == {tp: None}  # nothing is committed for us
        assert not await commit(first.app, {tp: 500}, generation=generation + 1)
        assert not await commit(first.app, {TP(topic, 77): 1})
        assert await commit(first.app, {tp: 123}, generation=generation)
        assert await committed(first.app, [tp]) == {tp: 123}
    assert not await commit(first.app, {tp: 500})
    async with Worker(kafka_bootstrap, topic, group).running() as second:
        await until(lambda: second.rows == 377, "the rest")
    assert second.offsets(0) == list(range(123, 500))


async def test_nothing_is_delivered_after_stop_and_nothing_in_between_is_lost(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    for partition in range(2):
        await send(producer, topic, partition, 0, 5_000)
    worker = Worker(kafka_bootstrap, topic, group, max_chunk_bytes=1)
    worker.commits = True
    async with worker.running():
        await until(lambda: worker.rows >= 1_000, "some of it")
    delivered = len(worker.chunks)
    async with Worker(kafka_bootstrap, topic, group).running() as second:
        await until(lambda: all(second.offsets(p)[-1:] == [4_999] for p in range(2)), "the rest")
    assert len(worker.chunks) == delivered
    for partition in range(2):
        chunks = worker.of(partition)
        assert is_chain(chunks)
        start = second.of(partition)[0].first_offset
        # the last chunk before the stop may have been handed out but not committed: it is repeated, nothing else
        assert start in ([chunks[-1].first_offset, chunks[-1].next_offset] if chunks else [0])
        assert second.offsets(partition) == list(range(start, 5_000))


async def test_workers_that_join_and_leave_neither_skip_nor_repeat_a_kept_partition(
    kafka_bootstrap: str, group: str, producer: AIOKafkaProducer
) -> None:
    topic = await make_topic(kafka_bootstrap, 4)
    done: dict[str, dict[int, int]] = {"a": {}, "b": {}}

    def make(name: str) -> Worker:
        async def own_progress(tp: TP) -> int | None:
            return done[name].get(tp.partition)

        return Worker(kafka_bootstrap, topic, group, start_offset=own_progress)

    async def feed(first: int) -> None:
        for partition in range(4):
            await send(producer, topic, partition, first, 100)

    def note(worker: Worker, name: str) -> None:
        for chunk in worker.chunks:
            done[name][chunk.partition] = chunk.next_offset

    a, b = make("a"), make("b")
    await feed(0)
    async with a.running():
        await until(lambda: a.rows == 400, "all partitions on a")
        note(a, "a")
        assert await commit(a.app, {TP(topic, p): 100 for p in range(4)})
        async with b.running():
            await until(lambda: len(a.assigned()) == 2 and len(b.assigned()) == 2, "two each")
            await until(lambda: not a.app.rebalancing and not b.app.rebalancing, "the rebalance to end")
            await feed(100)
            await until(lambda: a.rows + b.rows == 800, "the second round")
            for worker, name in ((a, "a"), (b, "b")):
                note(worker, name)
                for partition in worker.assigned():
                    assert await commit(worker.app, {TP(topic, partition): 200})
            kept, taken = a.assigned(), b.assigned()
            assert kept | taken == {0, 1, 2, 3} and not kept & taken
            for partition in taken:
                done["a"].pop(partition)  # no longer ours: what is committed counts
        await until(lambda: len(a.assigned()) == 4 and not a.app.rebalancing, "all partitions on a again")
        await feed(200)
        await until(lambda: a.rows + b.rows == 1_200, "the third round")
    for partition in kept:
        assert a.offsets(partition) == list(range(300)) and is_chain(a.of(partition))
    for partition in taken:
        assert a.offsets(partition) == [*range(100), *range(200, 300)]
        assert b.offsets(partition) == list(range(100, 200))


async def test_chunks_of_an_older_generation_are_dropped(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    a = Worker(kafka_bootstrap, topic, group, max_chunk_bytes=1, max_chunks_per_partition=100)
    b = Worker(kafka_bootstrap, topic, group)
    a.gate.clear()
    for partition in range(2):
        await send(producer, topic, partition, 0, 1_000)
    async with a.running():
        await until(lambda: all(s.position == 1_000 for s in partition_status(a.app).values()), "everything fetched")
        await until(lambda: len(a.chunks) == 1, "the first chunk")  # which the agent holds; the others wait
        old = a.chunks[0].generation
        async with b.running():
            await until(
                lambda: len(a.assigned()) == len(b.assigned()) == 1 and not a.app.rebalancing and not b.app.rebalancing,
                "one each",
            )
            a.gate.set()
            (kept,), (lost,) = a.assigned(), b.assigned()
            await until(lambda: a.offsets(kept)[-1:] == [999] and b.rows == 1_000, "all of both")
            assert all(chunk.generation > old for chunk in a.chunks[1:])
            assert {chunk.partition for chunk in a.chunks[1:]} == {kept}
            after = [chunk for chunk in a.of(kept) if chunk.generation > old]
            assert after[0].first_offset == 0 and is_chain(after)  # nothing was committed: it begins again, visibly
            assert b.offsets(lost) == list(range(1_000))


async def test_a_slow_agent_bounds_what_waits_and_does_not_hold_up_other_topics(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    ordinary = await make_topic(kafka_bootstrap, 1)
    worker = Worker(kafka_bootstrap, topic, group, max_chunk_bytes=50_000, max_buffered_bytes=100_000)
    seen: list[bytes] = []

    @worker.app.agent(worker.app.topic(ordinary, value_type=bytes, value_serializer="raw"), name="ordinary")
    async def _(stream: Any) -> None:
        async for value in stream:
            seen.append(value)

    worker.gate.clear()
    for partition in range(2):
        await send(producer, topic, partition, 0, 2_000, pad=500)
    async with worker.running():
        budget = worker.thread.budget
        await until(lambda: budget.lent_bytes >= 100_000, "a full budget")
        await send(producer, ordinary, 0, 0, 20)
        await until(lambda: len(seen) == 20, "the other topic")
        largest = max(chunk.size_bytes for chunk in worker.chunks)
        assert budget.lent_bytes <= 100_000 + 2 * 150_000 and largest < 150_000
        assert not any(status.end_reached for status in partition_status(worker.app).values())
        worker.gate.set()
        await until(lambda: worker.rows == 4_000, "everything")
        await until(lambda: budget.lent_bytes <= 2 * 150_000, "the budget to be given back")
    assert all(worker.offsets(partition) == list(range(2_000)) for partition in range(2))


async def test_a_kept_chunk_counts_until_it_is_released_or_dropped(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    worker = Worker(kafka_bootstrap, topic, group, max_chunk_bytes=1, max_chunks_per_partition=3)
    worker.keeps = True
    await send(producer, topic, 0, 0, 1_000)
    async with worker.running():
        await until(lambda: worker.rows == 300, "three chunks")
        await until(lambda: partition_status(worker.app)[TP(topic, 0)].last_fetch_ms is not None, "a fetch")
        for _ in range(3):  # other partitions are fetched meanwhile, this one is full
            seen = partition_status(worker.app)[TP(topic, 1)].last_fetch_ms or 0
            await until(
                functools.partial(
                    lambda seen: (partition_status(worker.app)[TP(topic, 1)].last_fetch_ms or 0) > seen, seen
                ),
                "another fetch",
            )
        assert worker.rows == 300
        worker.chunks[0].release()
        await until(lambda: worker.rows == 400, "one more")
        worker.keeps = False
        del worker.chunks[:2]
        await until(lambda: worker.rows == 1_000 - 200, "the rest")


class DamagedWire:
    """A client whose fetch responses have one byte of one batch flipped, for one partition."""

    def __init__(self, client: Any, base_offset: int, at: int) -> None:
        self._client, self._base_offset, self._at = client, base_offset, at
        self.is_used = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.is_used = self.is_used or isinstance(request, FetchRequest)
        response = await self._client.send(node_id, request, **options)
        if hasattr(response, "topics") and response.API_KEY == 1:
            response.topics = [(topic, [self._damage(part) for part in parts]) for topic, parts in response.topics]
        return response

    def _damage(self, part: Any) -> Any:
        raw = bytearray(part[-1] or b"")
        at = 0
        while at + 12 <= len(raw):
            if int.from_bytes(raw[at : at + 8], "big") == self._base_offset and at + self._at < len(raw):
                raw[at + self._at] ^= 0xFF
                break
            at += 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
        return (*part[:-1], bytes(raw))


@pytest.mark.parametrize(
    ("at", "detail"), [(100, "checksum"), (16, "unknown record format")], ids=["checksum", "format"]
)
async def test_a_corrupt_batch_is_reported_and_passed_over(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer, at: int, detail: str
) -> None:
    async with Worker(kafka_bootstrap, topic, group).running() as worker:
        tap = worker.thread._ensure_consumer()._fetcher._client
        wire = tap._client = DamagedWire(tap._client, base_offset=100, at=at)
        # The broker may still answer a fetch that went by the old wire; it takes one at a time.
        await until(lambda: wire.is_used, "a fetch on the damaged wire")
        await send(producer, topic, 0, 0, 300)
        await until(lambda: worker.offsets(0)[-1:] == [299], "the records behind it")
        assert worker.offsets(0) == [*range(100), *range(200, 300)]
        assert is_chain(worker.chunks)
        damaged = [chunk for chunk in worker.chunks if chunk.corrupt]
        reports = [chunk.corrupt for chunk in damaged if chunk.corrupt]
        # one report, or one per offset where no other batch in the fetch tells its end (Tansu sends them singly)
        assert [n for r in reports for n in range(r.first_offset, r.last_offset + 1)] == list(range(100, 200))
        assert all(detail in report.detail for report in reports)
        assert [(c.first_offset, c.next_offset) for c in damaged] == [
            (r.first_offset, r.last_offset + 1) for r in reports
        ]
        assert all(chunk.values == [] for chunk in damaged)
        assert len(reports[0].raw) == reports[0].size_bytes > 1_000


async def test_an_offset_out_of_range_is_reported_and_waits_for_a_seek(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    reports: list[tuple[TP, int, int, int]] = []

    async def on_out_of_range(*report: Any) -> None:
        reports.append(report)

    await send(producer, topic, 0, 0, 100)
    await send(producer, topic, 1, 0, 100)
    async with Worker(kafka_bootstrap, topic, group, on_out_of_range=on_out_of_range).running() as worker:
        tp = TP(topic, 0)
        await until(lambda: worker.rows == 200, "everything")
        with refuse_offsets(worker, tp, lambda offset: offset > 100):
            await seek(worker.app, tp, 5_000)
            await until(lambda: len(reports) == 1, "the report")
            assert reports[0][:3] == (tp, 5_000, 0)
            assert partition_status(worker.app)[tp].out_of_range
            await send(producer, topic, 1, 100, 100)
            await until(lambda: worker.rows == 300, "the other partition")
            await seek(worker.app, tp, 90)
            await until(lambda: worker.rows == 310, "the partition after the seek")
        assert worker.offsets(0) == [*range(100), *range(90, 100)]
        assert len(reports) == 1 and not partition_status(worker.app)[tp].out_of_range


async def test_records_deleted_before_they_were_read_are_reported(apache_kafka: str, group: str) -> None:
    topic = await make_topic(apache_kafka, 1)
    reports: list[tuple[TP, int, int, int]] = []
    tp = TP(topic, 0)

    async def on_out_of_range(tp: TP, wanted: int, start: int, end: int) -> None:
        reports.append((tp, wanted, start, end))

    async with AIOKafkaProducer(bootstrap_servers=apache_kafka) as producer:
        await send(producer, topic, 0, 0, 300)
    async with Worker(apache_kafka, topic, group).running() as first:
        await until(lambda: first.rows == 300, "everything")
        assert await commit(first.app, {tp: 120})
    admin = AIOKafkaAdminClient(bootstrap_servers=apache_kafka)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=200)})
    await admin.close()
    async with Worker(apache_kafka, topic, group, on_out_of_range=on_out_of_range).running() as second:
        await until(lambda: len(reports) == 1, "the report")
        assert reports == [(tp, 120, 200, 300)] and second.rows == 0
        await seek(second.app, tp, 200)
        await until(lambda: second.rows == 100, "what is left")
    assert second.offsets(0) == list(range(200, 300))


async def test_aborted_transactions_are_left_out(apache_kafka: str, group: str) -> None:
    topic = await make_topic(apache_kafka, 1)
    producer = AIOKafkaProducer(bootstrap_servers=apache_kafka, transactional_id=group)
    await producer.start()
    for text, commits in ((b"a", True), (b"b", False), (b"c", True)):
        await producer.begin_transaction()
        await producer.send_and_wait(topic, text, partition=0)
        await (producer.commit_transaction() if commits else producer.abort_transaction())
    await producer.stop()
    async with Worker(apache_kafka, topic, group).running() as worker:
        tp = TP(topic, 0)
        await until(lambda: partition_status(worker.app)[tp].end_reached, "the end")
        await until(lambda: bool(worker.chunks) and worker.chunks[-1].next_offset == 6, "the last marker")
        assert [value for chunk in worker.chunks for value in chunk.values] == [b"a", b"c"]
        assert worker.offsets(0) == [0, 4] and is_chain(worker.chunks)
        status = partition_status(worker.app)[tp]
        assert status.position == worker.chunks[-1].next_offset  # so an agent can tell that it is done


async def test_an_offset_out_of_range_stops_the_app_by_default(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.batching.fetching.BEYOND_END_MS", 500)
    await send(producer, topic, 0, 0, 100)
    worker = Worker(kafka_bootstrap, topic, group)
    async with worker.running():
        await until(lambda: worker.rows == 100, "everything")
        await seek(worker.app, TP(topic, 0), 5_000)
        await until(lambda: worker.app.crashed, "the crash")
    assert isinstance(worker.app.crash_reason, OffsetOutOfRange)
    assert "offset 5000 is wanted, the log holds 0 to 100" in str(worker.app.crash_reason)


@contextlib.contextmanager
def refuse_offsets(worker: Worker, tp: TP, refused: Callable[[int], bool]) -> Any:
    """Have fetches of these offsets answered as Kafka does (Tansu has no such answer)."""
    tap = worker.thread._ensure_consumer()._fetcher._client
    client = tap._client

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        async def send(self, node_id: int, request: Any, **options: Any) -> Any:
            response = await client.send(node_id, request, **options)
            if hasattr(response, "topics") and response.API_KEY == 1:
                wanted = {(topic, p[0]): p[1] for topic, parts in request.topics for p in parts}
                response.topics = [
                    (
                        topic,
                        [
                            (part[0], 1, -1, *part[3:-1], b"")
                            if (topic, part[0]) == tp and refused(wanted[topic, part[0]])
                            else part
                            for part in parts
                        ],
                    )
                    for topic, parts in response.topics
                ]
            return response

    tap._client = Refusing()
    try:
        yield
    finally:
        tap._client = client


async def test_commits_under_way_in_a_rebalance_do_not_begin_another(
    kafka_bootstrap: str, topic: str, group: str, producer: Any
) -> None:
    """A commit behind a JoinGroup on its connection comes too late; aiokafka's own left the new generation for that."""
    a, b = Worker(kafka_bootstrap, topic, group), Worker(kafka_bootstrap, topic, group)

    async def commit_on(worker: Worker) -> None:
        while True:
            for tp in partition_status(worker.app):
                await commit(worker.app, {tp: 0})
            await asyncio.sleep(0.02)

    async with a.running():
        before = a.thread._ensure_consumer()._coordinator.generation
        tasks = [asyncio.create_task(commit_on(a)) for _ in range(8)]
        try:
            async with b.running():
                await until(lambda: len(a.assigned()) == 1 and len(b.assigned()) == 1, "one each")
                tasks += [asyncio.create_task(commit_on(b)) for _ in range(8)]
                for partition in range(2):
                    await send(producer, topic, partition, 0, 50)
                await until(lambda: a.rows + b.rows >= 100, "the group to be at work")
            await until(lambda: len(a.assigned()) == 2 and not a.app.rebalancing, "all partitions on a again")
            after = a.thread._ensure_consumer()._coordinator.generation
            assert after - before <= 2, "one for b's coming, one for its going"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_refused_commit_leaves_the_generation_alone(kafka_bootstrap: str, topic: str, group: str) -> None:
    worker = Worker(kafka_bootstrap, topic, group)
    async with worker.running():
        coordinator = worker.thread._ensure_consumer()._coordinator
        send_request, generation = coordinator._send_req, coordinator.generation

        async def refuse(request: Any) -> Any:
            if isinstance(request, OffsetCommitRequest):
                return SimpleNamespace(topics=[(topic, [(0, IllegalGenerationError.errno)])])
            return await send_request(request)

        coordinator._send_req = refuse
        assert not await commit(worker.app, {TP(topic, 0): 1})
        assert coordinator.generation == generation
        assert not coordinator._rejoin_needed_fut.done()
        coordinator._send_req = send_request
        assert await commit(worker.app, {TP(topic, 0): 1})


async def test_a_batched_topic_with_automatic_commits_is_refused(
    kafka_bootstrap: str, topic: str, group: str, producer: AIOKafkaProducer
) -> None:
    app = Worker(kafka_bootstrap, topic, group).app
    app.agents.clear()

    @app.agent(app.topic(topic), name="wrong")
    async def _(stream: Any) -> None:
        async for _ in stream:
            pass

    await send(producer, topic, 0, 0, 1)
    await app.start()
    try:
        await until(lambda: app.crashed, "the crash")
        assert isinstance(app.crash_reason, ConfigurationError) and "acks=False" in str(app.crash_reason)
    finally:
        await app.stop()


async def test_the_documented_example_runs(kafka_bootstrap: str, topic: str, producer: AIOKafkaProducer) -> None:
    await send(producer, topic, 0, 0, 100)
    await send(producer, topic, 1, 0, 10)
    text = (ROOT / "docs" / "batching-transport.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", example, kafka_bootstrap, topic, "200"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert ast.literal_eval(out.decode()) == {0: 190, 1: 10}


async def test_an_app_without_the_transport_is_told_so() -> None:
    app = faust.App("plain", broker="kafka://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="use_batching"):
        partition_status(app)


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (aiokafka_fetcher.Fetcher.fetched_records, ["self", "partitions", "timeout", "max_records"]),
        (aiokafka_fetcher.Fetcher.seek_to, ["self", "tp", "offset"]),
        (aiokafka_fetcher.Fetcher._notify, ["self", "future"]),
        (aiokafka_fetcher.Fetcher._create_fetch_waiter, ["self"]),
        (aiokafka_fetcher.FetchResult.check_assignment, ["self", "tp"]),
        (aiokafka_fetcher.FetchResult._update_position, ["self"]),
        (aiokafka_fetcher.FetchError.check_raise, ["self"]),
        (AIOKafkaClient.send, ["self", "node_id", "request", "group"]),
        (GroupCoordinator._send_req, ["self", "request"]),
        (GroupCoordinator.ensure_coordinator_known, ["self"]),
        (GroupCoordinator.coordinator_dead, ["self"]),
        (AIOKafkaClient.force_metadata_update, ["self"]),
        (AIOKafkaConsumer.seek_to_committed, ["self", "partitions"]),
        (GroupCoordinator.fetch_committed_offsets, ["self", "partitions"]),
        (SubscriptionState.wait_for_assignment, ["self"]),
        (SubscriptionState.is_assigned, ["self", "tp"]),
        (SubscriptionState.fetch_context, ["self"]),
        (TopicPartitionState.await_reset, ["self", "strategy"]),
        (TopicPartitionState.pause, ["self"]),
        (TopicPartitionState.resume, ["self"]),
        (AIOKafkaConsumerThread.__post_init__, ["self"]),
        (AIOKafkaConsumerThread._create_worker_consumer, ["self", "transport"]),
        (
            AIOKafkaConsumerThread._fetch_records,
            ["self", "consumer", "active_partitions", "timeout", "max_records"],
        ),
        (AIOKafkaConsumerThread.seek_to_committed, ["self"]),
        (AIOKafkaConsumerThread._ensure_consumer, ["self"]),
        (Consumer._new_consumer_thread, ["self"]),
        (Consumer._to_message, ["self", "tp", "record"]),
        (FaustConsumer.perform_seek, ["self"]),
        (FaustConsumer.on_buffer_drop, ["self", "tp"]),
        (Consumer._seek, ["self", "partition", "offset"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_private_parts_have_the_signature_that_is_relied_upon(
    function: Callable[..., Any], expected: list[str]
) -> None:
    assert parameters(function) == expected


def test_versions_are_those_whose_private_parts_are_known() -> None:
    assert (faust.__version__, __import__("aiokafka").__version__) == ("0.15.3", "0.14.0")


async def test_private_attributes_exist(kafka_bootstrap: str, topic: str, group: str) -> None:
    async with Worker(kafka_bootstrap, topic, group).running() as worker:
        consumer = worker.thread._ensure_consumer()
        fetcher = consumer._fetcher
        expected: dict[Any, tuple[str, ...]] = {
            consumer: ("_coordinator", "_subscription", "_closed", "_fetch_max_wait_ms", "_isolation_level"),
            consumer._coordinator: ("generation", "member_id", "group_id", "coordinator_id"),
            fetcher: ("_client", "_records", "_closed", "_subscriptions", "_fetch_waiters", "_wait_consume_future"),
            fetcher._subscriptions: ("reassignment_in_progress", "subscription"),
            worker.app.consumer: ("flow_active", "_read_offset", "_thread"),
            worker.thread: ("thread_loop", "parent_loop"),
        }
        missing = [
            (type(owner).__name__, name)
            for owner, names in expected.items()
            for name in names
            if not hasattr(owner, name)
        ]
        assert missing == []
        assert fetcher._fetch_max_wait_ms == 200 and fetcher._isolation_level == aiokafka_fetcher.READ_COMMITTED
        assert {"generation_id", "acked"} <= set(Message.__slots__)
