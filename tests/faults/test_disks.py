"""Disks that fill up and are freed again: nothing is lost, nothing is doubled, and everybody goes on."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from deploy.brokers.kafka import KafkaBroker
from schemas.clickhouse_dsn import is_embedded
from schemas.settings import KafkaSettings
from streams.clickhouse import connect
from streams.kafka_clients import make_admin, make_consumer, make_producer
from streams.metrics import Metrics
from streams.migrate import migrate
from streams.producing import AcknowledgedProducer
from streams.sinks.rows import graph_rows
from streams.sinks.writer import PartitionWriter, Poison
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, ClickHouse, make_window, messages_of
from tests.faults.clickhouse_front import ClickHouseFront
from tests.faults.disks import NoSmallDisk, SmallDisk

MIB = 1 << 20
DEADLINE_S = 300.0
WINDOWS = [
    make_window(HOUR_MS + number * MINUTE_MS, [{"src": f"s{edge}", "dst": "t", "calls": edge} for edge in range(50)])
    for number in range(4)
]
STORED = [(200, 4 * sum(range(50)))]


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mount a small disk, or skip and say why not."""
    made: list[SmallDisk] = []

    def make(size_bytes: int) -> SmallDisk:
        disk = SmallDisk(tmp_path / f"disk-{len(made)}", size_bytes)
        try:
            disk.mount()
        except NoSmallDisk as reason:
            print(f"no small disk: {reason}")
            pytest.skip(f"no small disk: {reason}")
        made.append(disk)
        return disk

    yield make
    for disk in made:
        disk.unmount()
        assert not disk.path.is_mount()


class FreesAfter:
    """The waits of a writer: after so many the disk has room again. ``count`` is how many there were."""

    def __init__(self, disk: SmallDisk, waits: int) -> None:
        self.disk, self.waits, self.count = disk, waits, 0

    async def __call__(self, _: float) -> None:
        self.count += 1
        if self.count == self.waits:
            self.disk.free()


def writer_of(ch: ClickHouse, sleep: FreesAfter) -> PartitionWriter:
    async def fail(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    return PartitionWriter(ch.client, ch.database, "graph-windows", 0, graph_rows, fail, Metrics(), sleep=sleep)


def test_a_small_disk_is_full_when_it_says_so_and_gone_afterwards(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", 4 * MIB)
    try:
        with disk:
            assert disk.free_bytes == 4 * MIB
            assert disk.fill(leave_bytes=MIB) == 3 * MIB
            disk.fill()
            assert disk.free_bytes == 0
            with pytest.raises(OSError, match="No space left"), (disk.path / "more").open("wb", buffering=0) as file:
                file.write(b"x")
            disk.free()
            assert disk.free_bytes == 4 * MIB
        assert not disk.path.is_mount()
    except NoSmallDisk as reason:
        pytest.skip(f"no small disk: {reason}")


async def test_clickhouses_disk_full_holds_the_sink_up_and_costs_nothing(
    disk_of: Callable[[int], SmallDisk], tmp_path: Path
) -> None:
    disk = disk_of(64 * MIB)
    front = ClickHouseFront(disk.path / "clickhouse", directory=tmp_path / "front")
    try:
        await asyncio.to_thread(front.start)
        ch = ClickHouse(connect(front.settings()), front.settings(), "drift")
        migrate(ch.client, ch.database, 90)
        # A merge that the full disk cuts short would give back what it had written: the next insert would find room.
        ch.client.command("SYSTEM STOP MERGES")
        waits = FreesAfter(disk, 3)
        writer = writer_of(ch, waits)
        await writer.write(messages_of(WINDOWS[0]))
        disk.fill()
        await writer.write(messages_of(*WINDOWS, first_offset=0))
        assert waits.count == 3
        assert front.stats().errors == {243: 3}
        # Again from the start, cut otherwise, as after a crash; and the disk filled up in between.
        disk.fill()
        waits.count = 0
        for message in messages_of(*WINDOWS):
            await writer.write([message])
        assert waits.count == 3
        assert ch.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
        assert ch.rows("SELECT count() FROM {db}.windows FINAL") == [(4,)]
        # What was stored survives a crash of the engine.
        front.kill()
        await asyncio.to_thread(front.start)
        assert ch.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
    finally:
        front.stop()


async def test_a_full_temporary_folder_holds_embedded_inserts_up(
    disk_of: Callable[[int], SmallDisk], clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_embedded(clickhouse.settings):
        pytest.skip("only embedded inserts go through a temporary file")
    disk = disk_of(4 * MIB)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    waits = FreesAfter(disk, 3)
    writer = writer_of(clickhouse, waits)
    disk.fill()
    await writer.write(messages_of(*WINDOWS))
    assert waits.count == 3
    disk.fill(leave_bytes=4096)  # room for a file, not for the rows
    waits.count = 0
    await writer.write(messages_of(*WINDOWS, first_offset=50))
    assert waits.count == 3
    assert clickhouse.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
    assert list(disk.path.iterdir()) == []  # and leaves nothing behind


class Sending:
    """Sends numbered records to a partition, one after the other, as ingest does; notes what was acknowledged."""

    def __init__(self, producer: AcknowledgedProducer, topic: str, partition: int) -> None:
        self.partition = partition
        self.acknowledged: list[bytes] = []
        self.ending = False
        self._producer, self._topic = producer, topic
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self.ending:
            value = b"%d:%d:" % (self.partition, len(self.acknowledged)) + os.urandom(20_000)
            await self._producer.send(self._topic, self.partition, value)
            self.acknowledged.append(value[:20])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.05)


async def values_of(kafka: KafkaSettings, topic: str, partitions: int) -> dict[int, list[bytes]]:
    """Return the first bytes of all records by partition, in order."""
    consumer = make_consumer(kafka)
    await consumer.start()
    found: dict[int, list[bytes]] = {}
    try:
        for number in range(partitions):
            tp = TopicPartition(topic, number)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            values = found[number] = []
            while await consumer.position(tp) < end:
                for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                    values += [record.value[:20] for record in records]
    finally:
        await consumer.stop()
    return found


@pytest.mark.kafka
async def test_the_brokers_disk_full_ends_the_broker_and_loses_no_acknowledged_record(
    disk_of: Callable[[int], SmallDisk], own_kafka: Callable[..., KafkaBroker], unique_name: str
) -> None:
    disk = disk_of(160 * MIB)
    broker = own_kafka()
    (disk.path / "data").mkdir()
    broker.directory.mkdir(parents=True)
    (broker.directory / "data").symlink_to(disk.path / "data")  # its log is not on the small disk
    await asyncio.to_thread(broker.start)
    kafka = KafkaSettings(bootstrap=broker.address)
    admin, raw = make_admin(kafka), make_producer(kafka)
    await admin.start()
    await raw.start()
    try:
        await admin.create_topics([NewTopic(unique_name, 3, 1)])
        producer = AcknowledgedProducer(raw, Metrics())
        sending = [Sending(producer, unique_name, number) for number in range(3)]
        await until(lambda: all(len(s.acknowledged) > 20 for s in sending))
        disk.fill()
        # Apache Kafka marks its only log directory as failed and halts.
        await until(lambda: not broker.process.is_running())
        before = [len(s.acknowledged) for s in sending]
        assert not any(s.task.done() for s in sending)  # a retriable error: they repeat
        disk.free()
        started = time.monotonic()
        await asyncio.to_thread(broker.start)
        print(f"Apache Kafka came back in {time.monotonic() - started:.1f} s")
        await until(lambda: all(len(s.acknowledged) > n + 20 for s, n in zip(sending, before, strict=True)))
        for s in sending:
            s.ending = True
        await asyncio.gather(*(s.task for s in sending))
        found = await values_of(kafka, unique_name, 3)
        for s in sending:
            assert list(dict.fromkeys(found[s.partition])) == s.acknowledged  # all, in order; repeats are allowed
    finally:
        await raw.stop()
        await admin.close()
