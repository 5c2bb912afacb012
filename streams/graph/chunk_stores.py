"""Where checkpoints are stored: files for the embedded mode, a compacted topic else. Does I/O."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from aiokafka import TopicPartition

from streams.graph.checkpoint_search import LogReader, StoredRecord
from streams.producing import AcknowledgedProducer

READ_AT_ONCE = 8
"""Partitions of the state topic that are read side by side."""
REMOVED_AT_ONCE = 100
POLL_MS = 500


class FileChunkStore:
    """Files in one folder per partition; each is written aside, synced and renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, partition: int, key: str) -> Path:
        return self._folder / f"partition-{partition}" / quote(key, safe="@")

    async def put(self, partition: int, key: str, value: bytes) -> None:
        """Write, sync and rename one file."""
        await asyncio.to_thread(self._put, self._path(partition, key), value)

    @staticmethod
    def _put(path: Path, value: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        with aside.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a rename outlives a power loss only with its folder
        finally:
            os.close(folder)

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        """Delete files."""
        for key in keys:
            self._path(partition, key).unlink(missing_ok=True)

    async def read_all(self, partition: int) -> dict[str, bytes]:
        """Read every file of the partition."""
        folder = self._folder / f"partition-{partition}"
        if not folder.is_dir():
            return {}
        found = {}
        for path in folder.iterdir():
            if path.suffix == ".tmp":
                path.unlink()  # a write that a crash cut short
            else:
                found[unquote(path.name)] = path.read_bytes()
        return found


class KafkaChunkStore:
    """A compacted topic, one partition for each partition of `tenant-log`; a removal is a tombstone."""

    def __init__(self, topic: str, producer: AcknowledgedProducer, make_consumer: Callable[[], Any]) -> None:
        self._topic = topic
        self._producer = producer
        self._make_consumer = make_consumer
        self._turns = asyncio.Semaphore(READ_AT_ONCE)

    async def put(self, partition: int, key: str, value: bytes) -> int:
        """Produce one record and await its acknowledgement; return its offset."""
        return await self._producer.send(self._topic, partition, value, key.encode())

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        """Produce tombstones."""
        left = iter(keys)
        while some := list(islice(left, REMOVED_AT_ONCE)):
            await asyncio.gather(*(self._producer.send(self._topic, partition, None, key.encode()) for key in some))

    async def read_all(self, partition: int) -> dict[str, bytes]:
        """Read the partition from its start to its end; later records of a key win."""
        found: dict[str, bytes] = {}
        async with self.reading(partition) as reader:
            async for record in reader.read(reader.first, reader.end):
                if record.value is None:
                    found.pop(record.key, None)
                else:
                    found[record.key] = record.value
        return found

    @asynccontextmanager
    async def reading(self, partition: int) -> AsyncIterator[LogReader]:
        """Read one partition with a consumer of its own; a few partitions at a time, which bounds memory."""
        async with self._turns:
            consumer = self._make_consumer()
            await consumer.start()
            try:
                where = TopicPartition(self._topic, partition)
                # Asked for before the assignment: afterwards the answers wait behind the first long poll.
                first = (await consumer.beginning_offsets([where]))[where]
                end = (await consumer.end_offsets([where]))[where]
                consumer.assign([where])
                yield _PartitionReader(consumer, where, first, end)
            finally:
                await consumer.stop()


class _PartitionReader:
    """Reads spans of one partition."""

    def __init__(self, consumer: Any, where: TopicPartition, first: int, end: int) -> None:
        self._consumer = consumer
        self._where = where
        self.first = first
        self.end = end

    async def read(self, first: int, last: int) -> AsyncIterator[StoredRecord]:
        """Yield the records of a span that compaction has left."""
        consumer, where = self._consumer, self._where
        consumer.seek(where, first)
        while await consumer.position(where) < last:
            for record in (await consumer.getmany(where, timeout_ms=POLL_MS)).get(where, []):
                if record.offset >= last:
                    return
                if record.key is not None:
                    yield StoredRecord(record.offset, record.key.decode(errors="replace"), record.value)


async def read_partition(consumer: Any, topic: str, partition: int, start: int) -> Any:
    """Yield the records of a partition from ``start`` to the end it has now; owns the consumer."""
    await consumer.start()
    try:
        where = TopicPartition(topic, partition)
        # Asked for before the assignment: afterwards the answers wait behind the first long poll.
        first = (await consumer.beginning_offsets([where]))[where]
        end = (await consumer.end_offsets([where]))[where]
        position = max(first, start)
        if position >= end:
            return
        consumer.assign([where])
        consumer.seek(where, position)
        while await consumer.position(where) < end:
            fetched = await consumer.getmany(where, timeout_ms=POLL_MS)
            for record in fetched.get(where, []):
                yield record
    finally:
        await consumer.stop()
