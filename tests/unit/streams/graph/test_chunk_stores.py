"""Files as a chunk store: what a crash cuts short is no value, and does not stay. A topic: what a consumer gives."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from streams.graph.chunk_stores import READ_AT_ONCE, REMOVED_AT_ONCE, FileChunkStore, KafkaChunkStore


async def test_a_write_that_was_cut_short_is_no_value_and_is_cleared_away(tmp_path: Path) -> None:
    store = FileChunkStore(tmp_path)
    await store.put(2, "a/b@1", b"whole")
    torn = tmp_path / "partition-2" / "meta@7.tmp"
    torn.write_bytes(b"tor")
    assert await store.read_all(2) == {"a/b@1": b"whole"}
    assert not torn.exists()


async def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    store = FileChunkStore(tmp_path)
    await store.put(0, "meta@1", b"x")
    await store.remove(0, ["meta@1", "meta@2"])
    assert await store.read_all(0) == {}
    assert await store.read_all(1) == {}


class Topic:
    """One partition of a compacted topic, its producer and its consumers."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes | None, bytes | None]] = []
        self.sending = self.most_sending = self.reading = self.most_reading = 0

    async def send(self, topic: str, partition: int, value: bytes | None, key: bytes) -> int:
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        await asyncio.sleep(0)
        self.sending -= 1
        self.records.append((len(self.records), key, value))
        return len(self.records) - 1


class Consumer:
    """Gives three records at a time; ``gone`` were compacted away."""

    def __init__(self, topic: Topic, gone: frozenset[int]) -> None:
        self.topic, self.gone, self.at = topic, gone, 0

    async def start(self) -> None:
        self.topic.reading += 1
        self.topic.most_reading = max(self.topic.most_reading, self.topic.reading)

    async def stop(self) -> None:
        self.topic.reading -= 1

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tps[0]: 0}

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tps[0]: len(self.topic.records)}

    def assign(self, tps: list[TopicPartition]) -> None:
        pass

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.at = offset

    async def position(self, tp: TopicPartition) -> int:
        return self.at

    async def getmany(self, tp: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0)
        found = [record for record in self.topic.records[self.at :] if record[0] not in self.gone][:3]
        self.at = found[-1][0] + 1 if found else len(self.topic.records)
        return {tp: [SimpleNamespace(offset=offset, key=key, value=value) for offset, key, value in found]}


def store_of(topic: Topic, gone: frozenset[int] = frozenset()) -> KafkaChunkStore:
    producer: Any = topic
    return KafkaChunkStore("tenant-state", producer, lambda: Consumer(topic, gone))


async def test_a_topic_says_where_it_put_a_value_and_gives_spans_without_what_is_gone() -> None:
    topic = Topic()
    store = store_of(topic, gone=frozenset({1, 4}))
    assert [await store.put(0, f"k@{n}", b"%d" % n) for n in range(6)] == list(range(6))
    topic.records.append((6, None, b"no key: not ours"))
    await store.remove(0, ["k@2"])
    async with store.reading(0) as reader:
        assert (reader.first, reader.end) == (0, 8)
        assert [(record.position, record.key, record.value) async for record in reader.read(1, 6)] == [
            (2, "k@2", b"2"),
            (3, "k@3", b"3"),
            (5, "k@5", b"5"),
        ]
        assert [record.value async for record in reader.read(7, 8)] == [None]
    assert await store.read_all(0) == {"k@0": b"0", "k@3": b"3", "k@5": b"5"}


async def test_removals_go_side_by_side_and_reads_a_few_at_a_time() -> None:
    topic = Topic()
    store = store_of(topic)
    await store.remove(0, [f"k@{n}" for n in range(250)])
    assert len(topic.records) == 250 and topic.most_sending == REMOVED_AT_ONCE
    await asyncio.gather(*(store.read_all(partition) for partition in range(12)))
    assert topic.most_reading == READ_AT_ONCE and topic.reading == 0
