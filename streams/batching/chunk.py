"""What an agent gets from the batching transport, and what it can ask about a partition."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import LossDetected

if TYPE_CHECKING:
    from streams.batching.budget import Lease

EARLIEST: Final = -2
"""A ``start_offset`` hook returns this to begin at the log's first record (Kafka's own code for it)."""
LATEST: Final = -1
"""A ``start_offset`` hook returns this to begin at the log's end."""

Headers = Sequence[tuple[str, bytes | None]]


class OffsetOutOfRange(LossDetected):
    """The log no longer, or not yet, holds the offset that is wanted next."""


@dataclass(frozen=True, slots=True)
class CorruptBatch:
    """A record batch that cannot be read. Its offsets are passed over and reported here.

    Attributes:
        first_offset: first offset passed over.
        last_offset: last offset passed over; compaction may have left fewer records in between.
        detail: what is wrong, for an operator.
        raw: the batch as fetched, at most its first 64 KiB; empty when the same batch was reported for an offset
            before.
        size_bytes: its whole length.
    """

    first_offset: int
    last_offset: int
    detail: str
    raw: bytes
    size_bytes: int


@dataclass(slots=True, eq=False)
class Chunk:
    """Neighbouring records of one partition, as columns. Row ``i`` of every column is the same record.

    A chunk may have no rows: then it carries a corrupt batch, or says that everything up to ``next_offset`` is
    control batches, aborted transactions or compacted away.

    Attributes:
        first_offset: where the chunk begins: the previous chunk's ``next_offset``, unless the partition was sought or
            assigned anew. So a consumer that remembers ``next_offset`` sees every skip and every repeat. In compacted
            topics the first row may lie above it.
        last_offset: ``next_offset - 1``; with compaction there may be no record there.
        next_offset: what to commit once the chunk is done with.
        offsets: int64, shape (rows,), rising; with gaps in compacted topics.
        timestamps: Unix epoch, ms, UTC; -1 where the record has none.
        timestamp_type: 0 the producer's clock (CreateTime), 1 the broker's (LogAppendTime); of all rows.
        highwater: end of the log when the chunk was fetched.
        generation: of the consumer group, when it was fetched.
        epoch: counts seeks of the partition; the transport drops chunks that a seek has outdated.
        size_bytes: memory it counts for in the transport's budget, about.
    """

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: NDArray[np.int64]
    values: list[bytes | None]
    keys: list[bytes | None]
    headers: list[Headers]
    timestamps: list[int]
    timestamp_type: int
    highwater: int
    generation: int
    epoch: int
    size_bytes: int
    corrupt: CorruptBatch | None = None
    lease: "Lease | None" = field(default=None, repr=False)
    kept: bool = False

    @property
    def last_offset(self) -> int:
        """Offset of the last row or, without rows, the last one passed over."""
        return self.next_offset - 1

    def keep(self) -> None:
        """Count in the budget until :meth:`release`, or until nobody holds the chunk.

        For agents that hand chunks on: otherwise a chunk counts until the agent asks for the next one.
        """
        self.kept = True

    def release(self) -> None:
        """Count no longer; again is harmless. The transport calls it for chunks that are not kept."""
        if self.lease is not None:
            self.lease.release()


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """What the transport knows about an assigned partition.

    Attributes:
        position: next offset to fetch; ``None`` until the start is known. Chunks below it may still wait for the agent.
        highwater: end of the log at the last fetch, ``None`` before the first one of this generation.
        last_fetch_ms: monotonic clock of the last answered fetch, ms; ``None`` as above. It stands still while fetched
            records wait, and while the partition is out of range.
        end_reached: the last fetch of this generation began at ``position`` and the broker had nothing more to give.
        paused: by :func:`pause_partitions`.
        out_of_range: stopped at an offset that the log does not hold; a seek starts it again.
    """

    position: int | None
    highwater: int | None
    last_fetch_ms: int | None
    end_reached: bool
    paused: bool
    out_of_range: bool
