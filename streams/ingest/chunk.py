"""What the pure part reads of a fetched chunk: neighbouring messages of one source partition, as columns. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from schemas.tenant_log import IntColumn

LOG_APPEND_TIME = 1
"""Kafka's timestamp type of times that the broker gave."""

Headers = Sequence[tuple[str, bytes | None]]


class SourceChunk(Protocol):
    """Row ``i`` of every column is the same message. `streams.batching.Chunk` is one; attributes as there."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def first_offset(self) -> int: ...
    @property
    def next_offset(self) -> int: ...
    @property
    def offsets(self) -> IntColumn: ...
    @property
    def values(self) -> Sequence[bytes | None]: ...
    @property
    def keys(self) -> Sequence[bytes | None]: ...
    @property
    def headers(self) -> Sequence[Headers]: ...
    @property
    def timestamps(self) -> Sequence[int]: ...
    @property
    def timestamp_type(self) -> int: ...
    @property
    def corrupt(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class MessageChunk:
    """A chunk of our own making: a cut of a fetched one, lines of a file, a test's."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: IntColumn
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    headers: Sequence[Headers]
    timestamps: Sequence[int]
    timestamp_type: int = 0
    corrupt: Any = None


@dataclass(frozen=True, slots=True)
class _Columns:
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)


def chunk_of(
    topic: str,
    partition: int,
    first_offset: int,
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    timestamps: Sequence[int] | None = None,
    timestamp_type: int = 0,
) -> MessageChunk:
    """Return messages with consecutive offsets as a chunk."""
    size = len(values)
    return MessageChunk(
        topic,
        partition,
        first_offset,
        first_offset + size,
        np.arange(first_offset, first_offset + size, dtype=np.int64),
        values,
        [None] * size if keys is None else keys,
        [()] * size if headers is None else headers,
        [-1] * size if timestamps is None else timestamps,
        timestamp_type,
    )


def cut(chunk: SourceChunk, start: int, stop: int, first_offset: int, next_offset: int) -> MessageChunk:
    """Return messages ``start`` to ``stop`` as a chunk of the offsets given; a corrupt range stays with its end."""
    return MessageChunk(
        chunk.topic,
        chunk.partition,
        first_offset,
        next_offset,
        chunk.offsets[start:stop],
        chunk.values[start:stop],
        chunk.keys[start:stop],
        chunk.headers[start:stop],
        chunk.timestamps[start:stop],
        chunk.timestamp_type,
        chunk.corrupt if next_offset == chunk.next_offset else None,
    )


def join(chunks: Sequence[SourceChunk]) -> SourceChunk:
    """Return neighbouring chunks of one partition as one: of one timestamp type, none but the last corrupt."""
    if len(chunks) == 1:
        return chunks[0]
    columns = _Columns()
    for chunk in chunks:
        columns.values.extend(chunk.values)
        columns.keys.extend(chunk.keys)
        columns.headers.extend(chunk.headers)
        columns.timestamps.extend(chunk.timestamps)
    first, last = chunks[0], chunks[-1]
    return MessageChunk(
        first.topic,
        first.partition,
        first.first_offset,
        last.next_offset,
        np.concatenate([chunk.offsets for chunk in chunks]),
        columns.values,
        columns.keys,
        columns.headers,
        columns.timestamps,
        first.timestamp_type,
        last.corrupt,
    )
