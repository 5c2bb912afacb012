"""Where checkpoints live: a compacted topic, or files for the embedded mode. Chunks first, then their manifest.

A manifest is visible only when all its chunks are durable; chunks of the last two manifests are kept.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import cramjam
import msgspec
from aiokafka import TopicPartition

from schemas.errors import CheckpointError
from streams.producing import AcknowledgedProducer

MANIFEST_VERSION = 1
_KEPT_MANIFESTS = 2
_MANIFEST = "manifest"


class ChunkRef(msgspec.Struct, frozen=True, array_like=True):
    """A stored chunk: at which log offset it was written, its stored size and the digest of its content.

    ``epoch`` is that of the manifest it was written for: offsets begin anew with each incarnation of the log.
    """

    offset: int
    size_bytes: int
    digest: str
    epoch: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """Names the chunks of one checkpoint.

    Attributes:
        offset: last `tenant-log` offset that the state contains.
        events_offset: offset of `drift-events` from which replayed events may have been published already.
        incarnation: of the log; another one means that offsets and coordinates say nothing any more.
        epoch: how many incarnations the state had been through before: offsets of a later one are later, however low.
    """

    offset: int
    events_offset: int
    incarnation: str
    chunks: dict[str, ChunkRef]
    v: int = MANIFEST_VERSION
    epoch: int = 0


class ChunkStore(Protocol):
    """Durable key-value storage for one partition's chunks and manifests."""

    async def put(self, partition: int, key: str, value: bytes) -> None:
        """Return once the value is durable."""
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
        self._epochs: dict[int, int] = {}

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
            refs[name] = ChunkRef(offset, len(packed), digest, epoch)
            await self._store.put(partition, _key(name, refs[name]), packed)
        manifest = Manifest(offset, events_offset, self._incarnation, refs, epoch=epoch)
        await self._store.put(partition, _key(_MANIFEST, manifest), msgspec.json.encode(manifest))
        history.append(manifest)
        while len(history) > _KEPT_MANIFESTS:
            await self._prune(partition, history)
        return sum(ref.size_bytes for ref in refs.values())

    async def _prune(self, partition: int, history: list[Manifest]) -> None:
        old = history.pop(0)
        kept = {_key(name, ref) for manifest in history for name, ref in manifest.chunks.items()}
        gone = {_key(name, ref) for name, ref in old.chunks.items()} - kept
        stale = {_key(_MANIFEST, old)} - {_key(_MANIFEST, manifest) for manifest in history}
        await self._store.remove(partition, [*stale, *sorted(gone)])

    async def load(self, partition: int) -> tuple[Manifest, dict[str, bytes]] | None:
        """Return the latest manifest (by epoch, then offset) and its chunks; ``None`` if there never was one.

        Raises:
            CheckpointError: no manifest is complete, or of a version this worker cannot read.
        """
        found = await self._store.read_all(partition)
        manifests = sorted(
            (_read_manifest(value) for key, value in found.items() if key.startswith(f"{_MANIFEST}@")),
            key=lambda manifest: (manifest.epoch, manifest.offset),
        )
        if not manifests:
            return None
        for number, manifest in reversed(list(enumerate(manifests))):
            keys = {name: _key(name, ref) for name, ref in manifest.chunks.items()}
            if all(key in found for key in keys.values()):
                self._last[partition] = manifests[: number + 1]  # the next write prunes what lies before
                self._epochs[partition] = manifest.epoch + (manifest.incarnation != self._incarnation)
                return manifest, {name: _unpack(found[key], manifest.chunks[name]) for name, key in keys.items()}
        raise CheckpointError(f"no checkpoint of partition {partition} is complete: chunks are missing")

    def forget(self, partition: int) -> None:
        """Drop what is remembered of a partition that is no longer ours."""
        self._last.pop(partition, None)
        self._epochs.pop(partition, None)


def _key(name: str, written: ChunkRef | Manifest) -> str:
    """Name what was written; two epochs never share a key, or a new one could overwrite what an old one needs."""
    return f"{name}@{written.epoch}.{written.offset}" if written.epoch else f"{name}@{written.offset}"


def _read_manifest(value: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(value).get("v")
        if version != MANIFEST_VERSION:
            raise CheckpointError(f"checkpoint is of version {version}; this worker reads version {MANIFEST_VERSION}")
        return msgspec.json.decode(value, type=Manifest)
    except (msgspec.MsgspecError, AttributeError) as error:
        raise CheckpointError(f"a checkpoint manifest cannot be read: {error}") from error


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
        return {unquote(path.name): path.read_bytes() for path in folder.iterdir() if path.suffix != ".tmp"}


class KafkaChunkStore:
    """A compacted topic, one partition for each partition of `tenant-log`; a removal is a tombstone."""

    def __init__(self, topic: str, producer: AcknowledgedProducer, make_consumer: Callable[[], Any]) -> None:
        self._topic = topic
        self._producer = producer
        self._make_consumer = make_consumer

    async def put(self, partition: int, key: str, value: bytes) -> None:
        """Produce one record and await its acknowledgement."""
        await self._producer.send(self._topic, partition, value, key.encode())

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        """Produce tombstones."""
        for key in keys:
            await self._producer.send(self._topic, partition, None, key.encode())

    async def read_all(self, partition: int) -> dict[str, bytes]:
        """Read the partition from its start to its end; later records of a key win."""
        found: dict[str, bytes] = {}
        async for record in read_partition(self._make_consumer(), self._topic, partition, 0):
            key = record.key.decode()
            if record.value is None:
                found.pop(key, None)
            else:
                found[key] = record.value
        return found


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
            fetched = await consumer.getmany(where, timeout_ms=500)
            for record in fetched.get(where, []):
                yield record
    finally:
        await consumer.stop()
