"""Topics read from their start to the end they have now, for commands that look at one. Does I/O: reads Kafka."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.kafka_clients import make_admin, make_consumer
from streams.result import short
from streams.topics import partition_counts

ProgressCallback = Callable[[int, int], None]
POLL_MS = 500
SEEK_BEYOND = 2_000
"""Records nobody asked for are read over; a longer way is sought."""
SILENCE_S = 30.0
"""A broker that has nothing more to give for so long, short of the end it named, will not come back in time."""


@asynccontextmanager
async def consuming(settings: Settings, what: str) -> AsyncIterator[Any]:
    """Open a consumer without group; what Kafka refuses comes out as `ConfigurationError`."""
    consumer = make_consumer(settings.kafka)
    try:
        await consumer.start()
        yield consumer
    except KafkaError as error:
        raise ConfigurationError(f"{what} cannot be read: {type(error).__name__}: {short(str(error))}") from error
    finally:
        await consumer.stop()


async def topic_counts(settings: Settings, names: Iterable[str]) -> dict[str, int]:
    """Return partition counts of the topics that exist.

    Raises:
        ConfigurationError: the broker cannot say.
    """
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        return await partition_counts(admin, names)
    except KafkaError as error:
        raise ConfigurationError(f"topics cannot be looked up: {type(error).__name__}") from error
    finally:
        await admin.close()


async def read_to_end(
    consumer: Any, partitions: Sequence[TopicPartition], progress: ProgressCallback | None
) -> AsyncIterator[Any]:
    """Yield the records of some partitions; ``progress`` is called with (messages read, messages in all).

    Raises:
        ConfigurationError: the broker falls silent short of the end.
    """
    firsts = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    left = {tp for tp in partitions if ends[tp] > firsts[tp]}
    total, read = sum(ends[tp] - firsts[tp] for tp in left), 0
    if not left:
        return
    consumer.assign(sorted(left))
    for tp in left:
        consumer.seek(tp, firsts[tp])
    silent_s = 0.0
    settled: set[TopicPartition] = set()
    while left:
        fetched = await consumer.getmany(*left, timeout_ms=POLL_MS)
        silent_s = 0.0 if fetched else silent_s + POLL_MS / 1000
        if silent_s >= SILENCE_S:
            raise ConfigurationError(f"{min(left).topic}: the broker gives nothing more, {total - read} messages short")
        for tp, records in fetched.items():
            for record in records:
                yield record
            read += len(records)
            if tp not in settled:  # Tansu names the last batch's first offset as the end: the fetch knows better
                settled.add(tp)
                more = max(ends[tp], consumer.highwater(tp) or 0) - ends[tp]
                ends[tp], total = ends[tp] + more, total + more
        if progress is not None:
            progress(min(read, total), total)
        left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
    if progress is not None:
        progress(total, total)


async def log_range(consumer: Any, where: TopicPartition) -> tuple[int, int]:
    """Return the first offset of a partition's log and the offset behind its last record."""
    first, end = (await consumer.beginning_offsets([where]))[where], (await consumer.end_offsets([where]))[where]
    if end > first:  # a fetch says it as well, and right on Tansu too, which names the last batch's first offset
        consumer.assign([where])
        consumer.seek(where, end - 1)
        await consumer.getmany(where, timeout_ms=POLL_MS)
        end = max(end, consumer.highwater(where) or 0)
    return first, end


async def read_at(consumer: Any, where: TopicPartition, offsets: Sequence[int]) -> AsyncIterator[Any]:
    """Yield the records at rising offsets of one partition; those that are not there are left out."""
    if not offsets:
        return
    _, end = await log_range(consumer, where)
    consumer.assign([where])
    wanted = deque(offsets)
    at, silent_s = -1, 0.0
    while wanted and silent_s < SILENCE_S:
        if not at <= wanted[0] <= at + SEEK_BEYOND or at < 0:
            consumer.seek(where, wanted[0])
        records = (await consumer.getmany(where, timeout_ms=POLL_MS)).get(where, [])
        for record in records:
            while wanted and wanted[0] < record.offset:
                wanted.popleft()
            if wanted and wanted[0] == record.offset:
                wanted.popleft()
                yield record
        at = await consumer.position(where)
        if at >= end:
            return
        silent_s = 0.0 if records else silent_s + POLL_MS / 1000
