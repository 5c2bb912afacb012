"""Finds the checkpoint to go on from: among all that a store holds, or in a log of chunks, searched from its end.

A log holds far more than the live state: every page as often as it changed, until compaction comes by. So the search
goes back from the end in growing steps until it has met a whole checkpoint that is recent enough, and then reads just
the chunks which that one names, where it says they are. Only where this fails (the manifest of a worker that noted no
positions, another incarnation, a zombie's checkpoint last in the log) is the log read from its start: for its keys.
Never are more values held than those of one checkpoint and `KEPT_BYTES`. What a tombstone names counts as gone, even if
it can still be read.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from schemas.errors import CheckpointError
from streams.graph.manifests import Manifest, chunk_key, is_manifest, read_manifest

FIRST_STEP = 64
STEP_GROWTH = 4
KEPT_BYTES = 16 << 20
"""Of what the search comes across; the live state of a partition is rarely larger."""
LARGEST_GAP = 8
"""Records between two wanted ones that are rather read over than sought across."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a chunk log; without value it is a tombstone."""

    position: int
    key: str
    value: bytes | None


class LogReader(Protocol):
    """One partition of a chunk log, from ``first`` to before ``end``; both as they were when reading began."""

    first: int
    end: int

    def read(self, first: int, last: int) -> AsyncIterator[StoredRecord]:
        """Yield what is left of the records from ``first`` to before ``last``, in order."""
        ...


class ChunkLog(Protocol):
    """A chunk store that is a log; its ``put`` returns positions."""

    def reading(self, partition: int) -> AbstractAsyncContextManager[LogReader]:
        """Read one partition."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint.

    Attributes:
        chunks: stored bytes by name.
        position: of the manifest, -1 if the store is no log.
        older: manifests before it, oldest first: the next write prunes them.
        strays: keys that no manifest up to this one names: chunks of a checkpoint that was never finished, or another
            worker's that is ahead of this one.
    """

    manifest: Manifest
    chunks: dict[str, bytes]
    position: int = -1
    older: list[Manifest] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def find_in_values(values: Mapping[str, bytes]) -> Found | None:
    """Return the latest whole checkpoint of all keys and values of a partition; ``None`` if there never was one.

    Raises:
        CheckpointError: none is whole, or one is of a version that this worker cannot read.
    """
    manifests = _latest_first(read_manifest(value) for key, value in values.items() if is_manifest(key))
    for number, manifest in enumerate(manifests):
        keys = manifest.keys()
        if all(key in values for key in keys.values()):
            older = manifests[:number:-1]
            chunks = {name: values[key] for name, key in keys.items()}
            return Found(manifest, chunks, -1, older, _strays(values, [*older, manifest]))
    if manifests:
        raise _none_is_whole(len(manifests))
    return None


async def find_in_log(reader: LogReader, incarnation: str, at_least: int) -> Found | None:
    """Return a whole checkpoint of a log; ``None`` if there never was one.

    Args:
        at_least: a `tenant-log` offset. A checkpoint of this incarnation that contains it ends the search at once: any
            whole checkpoint is true, a later one only spares replay. Without such a one the latest of all is taken.

    Raises:
        CheckpointError: none is whole, or one is of a version that this worker cannot read.
    """
    index = _Index()
    low, step, failed = reader.end, FIRST_STEP, set[str]()
    while low > reader.first:
        high, low = low, max(reader.first, low - step)
        await index.add(reader.read(low, high))
        step *= STEP_GROWTH
        is_all = low <= reader.first
        for manifest in _latest_first(index.manifests.values()):
            is_enough = manifest.incarnation == incarnation and manifest.offset >= at_least
            if not is_all and (not is_enough or manifest.key in failed):
                continue
            values = await _read_chunks(reader, index.positions_of(manifest, is_all), index.values)
            if values is None:
                failed.add(manifest.key)
                continue
            older = await _older(reader, index, manifest)
            chunks = {name: values[key] for name, key in manifest.keys().items()}
            strays = _strays(index.positions, [*older, manifest])
            return Found(_placed(manifest, index), chunks, index.positions[manifest.key], older, strays)
    if index.manifests:
        raise _none_is_whole(len(index.manifests))
    return None


class _Index:
    """What is known of the log so far, from its end backward: the last record of each key."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.removed: set[str] = set()
        self.manifests: dict[str, Manifest] = {}
        self.values: dict[str, bytes] = {}  # of chunks, as many as may be kept: they need not be read again
        self._room_bytes = KEPT_BYTES

    async def add(self, records: AsyncIterator[StoredRecord]) -> None:
        """Take in the records before those known."""
        positions: dict[str, int | None] = {}
        manifests: dict[str, bytes] = {}
        async for record in records:
            if record.key in self.positions or record.key in self.removed:
                continue
            positions[record.key] = None if record.value is None else record.position
            if record.value is None:
                continue
            if is_manifest(record.key):
                manifests[record.key] = record.value
            elif len(record.value) <= self._room_bytes:
                self._room_bytes -= len(record.value)
                self.values[record.key] = record.value
        for key, position in positions.items():
            if position is None:
                self.removed.add(key)
                self._room_bytes += len(self.values.pop(key, b""))
                continue
            self.positions[key] = position
            if key in manifests:
                self.manifests[key] = read_manifest(manifests[key])

    def positions_of(self, manifest: Manifest, is_all: bool) -> dict[str, int] | None:
        """Return where the chunks are, by key; ``None`` if one is gone, or nobody noted its place."""
        found = {}
        for name, ref in manifest.chunks.items():
            key = chunk_key(name, ref)
            position = self.positions.get(key, -1 if is_all or key in self.removed else ref.position)
            if position < 0:
                return None
            found[key] = position
        return found


async def _read_chunks(
    reader: LogReader, positions: Mapping[str, int] | None, known: Mapping[str, bytes]
) -> dict[str, bytes] | None:
    if positions is None:
        return None
    values = {key: known[key] for key in positions if key in known}
    wanted = {position: key for key, position in positions.items() if key not in values}
    for first, last in _runs(sorted(wanted)):
        async for record in reader.read(first, last + 1):
            if record.value is not None and wanted.get(record.position) == record.key:
                values[record.key] = record.value
    return values if len(values) == len(positions) else None


def _runs(positions: list[int]) -> Iterator[tuple[int, int]]:
    """Yield spans ``(first, last)`` that are worth one read each."""
    if not positions:
        return
    first = last = positions[0]
    for position in positions[1:]:
        if position - last > LARGEST_GAP:
            yield first, last
            first = position
        last = position
    yield first, last


async def _older(reader: LogReader, index: _Index, manifest: Manifest) -> list[Manifest]:
    """Return the manifests that lie before this one and were not removed, oldest first."""
    known = {key: other for key, other in index.manifests.items() if other.order < manifest.order}
    if manifest.previous >= 0:
        async for record in reader.read(manifest.previous, manifest.previous + 1):
            if is_manifest(record.key) and record.value is not None and record.key not in index.removed:
                known.setdefault(record.key, read_manifest(record.value))
    return _latest_first(other for other in known.values() if other.order < manifest.order)[::-1]


def _placed(manifest: Manifest, index: _Index) -> Manifest:
    """Return the manifest with the positions that were found, for those that are written after it."""
    refs = {
        name: msgspec.structs.replace(ref, position=index.positions.get(chunk_key(name, ref), ref.position))
        for name, ref in manifest.chunks.items()
    }
    return msgspec.structs.replace(manifest, chunks=refs)


def _strays(keys: Iterable[str], manifests: list[Manifest]) -> list[str]:
    named = {key for manifest in manifests for key in (manifest.key, *manifest.keys().values())}
    return sorted(key for key in keys if key not in named)


def _latest_first(manifests: Iterable[Manifest]) -> list[Manifest]:
    return sorted(manifests, key=lambda manifest: manifest.order, reverse=True)


def _none_is_whole(count: int) -> CheckpointError:
    return CheckpointError(
        f"the saved state cannot be used: chunks are missing of each of its {count} checkpoints; "
        "restore the state topic or folder from a backup, or give it a new name (topics.names) and learn anew"
    )
