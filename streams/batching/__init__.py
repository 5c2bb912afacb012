"""Batching Faust transport: an agent gets one event per fetched chunk of a partition. Import from here.

    chunk.py      what an agent gets, and what it can ask
    records.py    fetched bytes to columns (pure)
    budget.py     how much may wait for agents
    fetching.py   the consumer thread, below aiokafka's records
    transport.py  the Faust side: messages, seeks, commits

See docs/batching-transport.md.
"""

from streams.batching.chunk import EARLIEST, LATEST, Chunk, CorruptBatch, OffsetOutOfRange, PartitionStatus
from streams.batching.transport import (
    BatchingOptions,
    BatchingTransport,
    batched_topic,
    commit,
    committed,
    log_range,
    partition_status,
    pause_partitions,
    resume_partitions,
    seek,
    use_batching,
)

__all__ = [
    "EARLIEST",
    "LATEST",
    "BatchingOptions",
    "BatchingTransport",
    "Chunk",
    "CorruptBatch",
    "OffsetOutOfRange",
    "PartitionStatus",
    "batched_topic",
    "commit",
    "committed",
    "log_range",
    "partition_status",
    "pause_partitions",
    "resume_partitions",
    "seek",
    "use_batching",
]
