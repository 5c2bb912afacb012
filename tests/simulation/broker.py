"""A simulated Kafka: logs, committed offsets, one consumer group. It holds facts; who may do what is decided here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

TopicPartition = tuple[str, int]
Headers = tuple[tuple[str, bytes], ...]


class Record(NamedTuple):
    """One record of a log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


@dataclass(slots=True)
class Log:
    """One partition: ``start`` is the first offset that retention has left."""

    records: list[Record] = field(default_factory=list)
    start: int = 0

    @property
    def end(self) -> int:
        """Return the offset after the last record."""
        return len(self.records)

    def append(self, key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int) -> int:
        """Append a record and return its offset."""
        offset = len(self.records)
        self.records.append(Record(offset, key, value, headers, timestamp_ms))
        return offset

    def read(self, position: int, count: int) -> list[Record]:
        """Return up to ``count`` records from ``position`` on."""
        return self.records[position : position + count]

    def truncate(self, start: int) -> None:
        """Delete what lies before ``start``."""
        self.start = max(self.start, start)


class Broker:
    """All logs and the one group of all workers.

    Attributes:
        generation: of the group. assignment: member to its partitions in that generation.
        on_append: called with the partition after each append.
    """

    def __init__(self) -> None:
        self.logs: dict[TopicPartition, Log] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.generation = 0
        self.assignment: dict[str, frozenset[TopicPartition]] = {}
        self.on_append: Callable[[TopicPartition], None] = lambda _: None

    def make(self, topic: str, partitions: int) -> None:
        """Make a topic."""
        for partition in range(partitions):
            self.logs[topic, partition] = Log()

    def append(
        self, tp: TopicPartition, key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int
    ) -> int:
        """Append a record and return its offset."""
        offset = self.logs[tp].append(key, value, headers, timestamp_ms)
        self.on_append(tp)
        return offset

    def assign(self, assignment: dict[str, frozenset[TopicPartition]]) -> int:
        """Begin a new generation of the group."""
        self.generation += 1
        self.assignment = assignment
        return self.generation

    def commit(self, member: str, generation: int, offsets: dict[TopicPartition, int]) -> bool:
        """Take offsets of a member of the current generation; refuse all others."""
        if generation != self.generation or not offsets.keys() <= self.assignment.get(member, frozenset()):
            return False
        self.committed.update(offsets)
        return True
