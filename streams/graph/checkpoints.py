"""Where checkpoints live: a compacted topic, or files for the embedded mode. Chunks first, then their manifest.

A manifest is visible only when all its chunks are durable; chunks of the last two manifests are kept. A worker that
is no longer the owner, and does not know it yet, can add a checkpoint, which is as true as the owner's; it can remove
nothing.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import cramjam
import msgspec
from aiokafka import TopicPartition

from schemas.errors import CheckpointError
from streams.graph.checkpoint_search import Found, LogReader, StoredRecord, find_in_log, find_in_values
from streams.graph.manifests import (
    UNKNOWN_POSITION,
    ChunkRef,
    Manifest,
    chunk_key,
    encode_manifest,
    is_manifest,
    order_of,
)
from streams.producing import AcknowledgedProducer

_KEPT_MANIFESTS = 2
READ_AT_ONCE = 4
"""Partitions of the state topic that are read side by side."""
REMOVED_AT_ONCE = 100
POLL_MS = 500


class ChunkStore(Protocol):
    """Durable key-value storage for one partition's chunks and manifests.

    A store that is a log (``checkpoint_search.ChunkLog``) also has ``reading``: then recovery need not read all of it.
    """

    async def put(self, partition: int, key: str, value: bytes) -> int | None:
        """Return once the value is durable; a store that is a log says where it is."""
        ...

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        """Let values go; best effort."""
        ...

    async def read_all(self, partition: int) -> dict[str, bytes]:
        """Return all keys and values of a partition."""
        ...


class Checkpoints:
    """Writes and reads checkpoints of partitions through a chunk store."""

    def __init__(self, store: ChunkStore, incarnation: str) -> None:
        self._store = store
        self._incarnation = incarnation
        self._last: dict[int, list[Manifest]] = {}
        self._position: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._strays: dict[int, list[str]] = {}

    async def write(
        self, partition: int, offset: int, events_offset: int, chunks: Iterable[tuple[str, bytes | None]]
    ) -> int:
        """Store what changed, then the manifest; return the bytes of the live state as stored.

        ``chunks``: every live chunk by name, ``None`` for one that has not changed since the last write.
        """
        history = self._last.setdefault(partition, [])
        before = history[-1].chunks if history else {}
        epoch = self._epochs.get(partition, 0)
        refs: dict[str, ChunkRef] = {}
        for name, content in chunks:
            if content is None:
                refs[name] = before[name]
                continue
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            if name in before and before[name].digest == digest:
                refs[name] = before[name]
                continue
            packed = await asyncio.to_thread(lambda data: bytes(cramjam.zstd.compress(data, level=1)), content)
            ref = ChunkRef(offset, len(packed), digest, epoch)
            refs[name] = await self._placed(partition, chunk_key(name, ref), packed, ref)
        previous = self._position.get(partition, UNKNOWN_POSITION)
        manifest = Manifest(offset, events_offset, self._incarnation, refs, epoch=epoch, previous=previous)
        position = await self._store.put(partition, manifest.key, encode_manifest(manifest))
        self._position[partition] = UNKNOWN_POSITION if position is None else position
        history.append(manifest)
        return sum(ref.size_bytes for ref in refs.values())

    async def _placed(self, partition: int, key: str, packed: bytes, ref: ChunkRef) -> ChunkRef:
        position = await self._store.put(partition, key, packed)
        return ref if position is None else msgspec.structs.replace(ref, position=position)

    async def prune(self, partition: int) -> None:
        """Let go of what the last two checkpoints do not need.

        Call it only once the group offset of the last checkpoint is committed, which brokers refuse to anyone but the
        owner. A zombie must never remove: the owner builds on the same chunks. Nor is anything removed that is later
        than our own checkpoints: another worker may be about to build on it.
        """
        history = self._last.get(partition, [])
        if len(history) < _KEPT_MANIFESTS:
            return
        old, self._last[partition] = history[:-_KEPT_MANIFESTS], history[-_KEPT_MANIFESTS:]
        kept = _keys(self._last[partition])
        oldest = self._last[partition][0].order
        strays = self._strays.get(partition, [])
        overtaken = {key for key in strays if (order := order_of(key)) is not None and order <= oldest}
        self._strays[partition] = [key for key in strays if key not in overtaken]
        gone = (_keys(old) | overtaken) - kept
        await self._store.remove(partition, sorted(gone, key=lambda key: (not is_manifest(key), key)))

    async def load(self, partition: int, at_least: int = -1) -> tuple[Manifest, dict[str, bytes]] | None:
        """Return a manifest and its chunks; ``None`` if there never was one.

        It is the latest one (by epoch, then offset) of a store that is read whole. Of a log it is one that contains
        the `tenant-log` offset ``at_least``, if there is one, else the latest too.

        Raises:
            CheckpointError: no manifest is complete, or of a version this worker cannot read.
        """
        found = await self._find(partition, at_least)
        if found is None:
            return None
        manifest = found.manifest
        self._last[partition] = [*found.older, manifest]  # the next write prunes what lies before
        self._position[partition] = found.position
        self._strays[partition] = found.strays
        self._epochs[partition] = manifest.epoch + (manifest.incarnation != self._incarnation)
        return manifest, {name: _unpack(stored, manifest.chunks[name]) for name, stored in found.chunks.items()}

    async def _find(self, partition: int, at_least: int) -> Found | None:
        reading: Callable[[int], AbstractAsyncContextManager[LogReader]] | None = getattr(self._store, "reading", None)
        if reading is None:
            return find_in_values(await self._store.read_all(partition))
        async with reading(partition) as reader:
            return await find_in_log(reader, self._incarnation, at_least)

    def forget(self, partition: int) -> None:
        """Drop what is remembered of a partition that is no longer ours."""
        for remembered in (self._last, self._position, self._epochs, self._strays):
            remembered.pop(partition, None)


def _keys(manifests: Iterable[Manifest]) -> set[str]:
    return {key for manifest in manifests for key in (manifest.key, *manifest.keys().values())}


def _unpack(stored: bytes, ref: ChunkRef) -> bytes:
    try:
        content = bytes(cramjam.zstd.decompress(stored))
    except cramjam.DecompressionError as error:
        raise CheckpointError(f"a checkpoint chunk is damaged: {error}") from error
    if hashlib.blake2b(content, digest_size=16).hexdigest() != ref.digest:
        raise CheckpointError("a checkpoint chunk is damaged: its digest does not match")
    return content


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
