"""Checkpoints of the state machine: chunks first, then the manifest that names them; recovery from the last whole one.

A manifest is visible only when all its chunks are durable; chunks of the last two manifests are kept. A worker that
is no longer the owner, and does not know it yet, can add a checkpoint, which is as true as the owner's; it can remove
nothing.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import cramjam
import msgspec

from schemas.errors import CheckpointError
from streams.graph.checkpoint_search import Found, LogReader, find_in_log, find_in_values
from streams.graph.chunk_stores import FileChunkStore as FileChunkStore
from streams.graph.chunk_stores import KafkaChunkStore as KafkaChunkStore
from streams.graph.chunk_stores import read_partition as read_partition
from streams.graph.manifests import (
    UNKNOWN_POSITION,
    ChunkRef,
    Manifest,
    chunk_key,
    encode_manifest,
    is_manifest,
    order_of,
)

_KEPT_MANIFESTS = 2
STORED_AT_ONCE = 16
"""Chunks under way at once: one after the other, each would wait for the acknowledgement before it."""


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
        changed: list[tuple[str, bytes, ChunkRef]] = []
        for name, content in chunks:
            if content is None:
                refs[name] = before[name]
                continue
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            if name in before and before[name].digest == digest:
                refs[name] = before[name]
                continue
            refs[name] = ChunkRef(offset, 0, digest, epoch)
            changed.append((name, content, refs[name]))
        for first in range(0, len(changed), STORED_AT_ONCE):
            some = changed[first : first + STORED_AT_ONCE]
            stored = await asyncio.gather(*(self._store_chunk(partition, *one) for one in some), return_exceptions=True)
            for (name, _, _), ref in zip(some, stored, strict=True):
                if isinstance(ref, BaseException):
                    raise ref  # once none of them is under way any more
                refs[name] = ref
        previous = self._position.get(partition, UNKNOWN_POSITION)
        manifest = Manifest(offset, events_offset, self._incarnation, refs, epoch=epoch, previous=previous)
        position = await self._store.put(partition, manifest.key, encode_manifest(manifest))
        self._position[partition] = UNKNOWN_POSITION if position is None else position
        history.append(manifest)
        return sum(ref.size_bytes for ref in refs.values())

    async def _store_chunk(self, partition: int, name: str, content: bytes, ref: ChunkRef) -> ChunkRef:
        packed = await asyncio.to_thread(lambda: bytes(cramjam.zstd.compress(content, level=1)))
        position = await self._store.put(partition, chunk_key(name, ref), packed)
        place = UNKNOWN_POSITION if position is None else position
        return msgspec.structs.replace(ref, size_bytes=len(packed), position=place)

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
