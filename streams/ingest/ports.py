"""What the ingest worker needs of the world: Kafka stands behind these, or a simulator."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from streams.ingest.chunk import SourceChunk

Headers = Sequence[tuple[str, bytes]]
SourcePartition = tuple[str, int]
"""(topic, partition)."""


class ProducerPort(Protocol):
    """Writes records; `streams.producing.AcknowledgedProducer` is one."""

    async def send(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Return the record's offset once all replicas in sync have it.

        What may yet succeed (timeouts, brokers away) is repeated for ever with the same bytes: repeats are harmless.

        Raises:
            Exception: the record will never be taken.
        """
        ...


class CommitPort(Protocol):
    """Keeps the group's offsets."""

    async def commit(self, offsets: Mapping[SourcePartition, int]) -> bool:
        """Commit next offsets; ``False`` if they are not ours to commit (any more)."""
        ...


class PausePort(Protocol):
    """Flow control of fetching."""

    def pause(self, partitions: Iterable[SourcePartition]) -> None:
        """Fetch no more of these; what was fetched may still arrive."""
        ...

    def resume(self, partitions: Iterable[SourcePartition]) -> None:
        """Fetch these again."""
        ...


class SeekPort(Protocol):
    """Reads a source partition again from an offset."""

    async def seek(self, partition: SourcePartition, offset: int) -> None:
        """Fetch from ``offset`` next; once it returns, nothing that was fetched before arrives any more."""
        ...


@dataclass(frozen=True, slots=True)
class FetchStatus:
    """How fetching stands with one assigned source partition.

    Attributes:
        highwater: end of the log at the last fetch; ``None`` before the first of this generation.
        end_reached: the last fetch was empty.
        fetched_ms_ago: since the broker answered last; ``None`` as above.
    """

    highwater: int | None
    end_reached: bool
    fetched_ms_ago: int | None


class StatusPort(Protocol):
    """Knows the assigned source partitions."""

    def status(self) -> Mapping[SourcePartition, FetchStatus]:
        """Return every source partition assigned now, and no other."""
        ...


class FetchedChunk(SourceChunk, Protocol):
    """A chunk as the transport hands it over."""

    @property
    def highwater(self) -> int:
        """End of the log when the chunk was fetched."""
        ...

    @property
    def generation(self) -> int:
        """Generation of the group in which it was fetched."""
        ...

    def release(self) -> None:
        """Count no longer in the budget of what may wait; again is harmless."""
        ...
