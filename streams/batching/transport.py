"""The Faust side of the batching transport, and the functions an application calls. Does Kafka I/O through Faust."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import faust
from aiokafka.errors import ConsumerStoppedError
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from schemas.errors import ConfigurationError
from streams.batching.chunk import Chunk, OffsetOutOfRange, PartitionStatus
from streams.batching.fetching import BatchingThread

StartOffset = Callable[[TP], Awaitable[int | None]]
OnOutOfRange = Callable[[TP, int, int, int], Awaitable[None]]

_OUTDATED = -2  # no generation of a group has this number: Faust's streams drop such a message


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """How topics are batched.

    Attributes:
        topics: names of the batched topics; all others stay as Faust has them.
        start_offset: where a partition of a new assignment starts, kept ones included: an offset, ``EARLIEST``,
            ``LATEST``, or ``None`` for the committed offset (without one, the app's ``consumer_auto_offset_reset``).
            Awaited before the first chunk of the generation; an error stops the app.
        on_out_of_range: (partition, wanted offset, first offset of the log, offset after the last) where the log does
            not hold what is wanted. The partition stays paused until it is sought. Default: the app stops with
            ``OffsetOutOfRange``.
        max_buffered_bytes: fetched data that may wait for agents, beside one chunk per partition, which is always let
            through.
        max_chunk_bytes: a chunk ends with the first record batch that reaches it.
        max_chunks_per_partition: chunks of one partition that may wait, the one being worked on included.
        fetch_max_wait_ms: how long the broker may hold an empty answer; also how old ``end_reached`` gets.
        read_committed: leave out aborted transactions. It holds for all topics of the app's consumer.
    """

    topics: frozenset[str]
    start_offset: StartOffset | None = None
    on_out_of_range: OnOutOfRange | None = None
    max_buffered_bytes: int = 64 * 1024 * 1024
    max_chunk_bytes: int = 4 * 1024 * 1024
    max_chunks_per_partition: int = 4
    fetch_max_wait_ms: int = 500
    read_committed: bool = True


class ChunkSchema(faust.Schema[Any, Any]):
    """Hands chunks through: there is nothing for Faust to decode."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        """Return no key: a chunk has one per row."""
        return None

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        """Return the chunk."""
        return message.value


class ChunkMessage(ConsumerMessage):
    """A chunk on its way to agents. Its generation turns invalid when the partition is sought, so streams drop it."""

    __slots__ = ("_acked", "_chunk", "_epochs", "_generation")

    def __init__(self, tp: TP, chunk: Chunk, epochs: Mapping[TP, int]) -> None:
        self._chunk = chunk
        self._epochs = epochs
        super().__init__(
            topic=chunk.topic,
            partition=chunk.partition,
            offset=chunk.first_offset,
            timestamp=chunk.timestamps[-1] / 1000 if chunk.timestamps else 0.0,
            timestamp_type=chunk.timestamp_type,
            headers=None,
            key=None,
            value=cast(Any, chunk),
            checksum=None,
            serialized_key_size=0,
            serialized_value_size=chunk.size_bytes,
            tp=tp,
            generation_id=chunk.generation,
        )

    @property
    def generation_id(self) -> int | None:
        """Generation of the group in which the chunk was fetched; one that never exists once a seek has outdated it."""
        return self._generation if self._chunk.epoch == self._epochs.get(self.tp, 0) else _OUTDATED

    @generation_id.setter
    def generation_id(self, value: int | None) -> None:
        self._generation = value

    @property
    def acked(self) -> bool:
        """Whether the last stream is done with the chunk: Faust sets it, in Python and in Cython."""
        return self._acked

    @acked.setter
    def acked(self, value: bool) -> None:
        self._acked = value
        if value and not self._chunk.kept:
            self._chunk.release()


class _ReadOffsets(defaultdict[TP, int | None]):
    """Faust's last offset handed out, by partition; it drops what lies below.

    Batched partitions are never held against it: a rebalance can leave a stale offset here, and a chunk's generation
    and epoch say whether it is current.
    """

    def __init__(self, batched: frozenset[str]) -> None:
        super().__init__(lambda: None)
        self._batched = batched

    def __getitem__(self, tp: TP) -> int | None:
        return None if tp[0] in self._batched else super().__getitem__(tp)


class BatchingConsumer(Consumer):
    """Faust's aiokafka consumer with batched topics."""

    _thread: BatchingThread

    def __init__(self, transport: "BatchingTransport", *args: Any, **kwargs: Any) -> None:
        self.options = transport.options
        self._placed: dict[TP, int] = {}
        super().__init__(transport, *args, **kwargs)
        self._read_offset = _ReadOffsets(self.options.topics)

    @property
    def thread(self) -> BatchingThread:
        """The thread that fetches."""
        return self._thread

    def _new_consumer_thread(self) -> BatchingThread:
        return BatchingThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, Chunk):
            return super()._to_message(tp, record)
        if self.app.topics.acks_enabled_for(tp.topic):
            raise ConfigurationError(
                f"topic {tp.topic!r} is batched, so Faust must not commit it: use batched_topic() or acks=False"
            )
        return ChunkMessage(tp, record, self._thread.epochs)

    async def perform_seek(self) -> None:
        """Seek other topics to their committed offsets, a new generation's batched partitions where the hook says."""
        await super().perform_seek()
        generation = self.app.consumer_generation_id
        batched = {tp for tp in self.assignment() if tp.topic in self.options.topics}
        self._thread.held &= batched
        fresh = [tp for tp in sorted(batched) if self._placed.get(tp) != generation]
        if self.options.start_offset is not None and fresh:
            # Side by side: each answer of a broker can wait behind a long poll of the same connection.
            starts = await asyncio.gather(*(self.options.start_offset(tp) for tp in fresh))
            wanted = dict(zip(fresh, starts, strict=True))
            targets = {tp: offset for tp, offset in wanted.items() if offset is not None}
            await self._thread.run(self._thread.seek_batched, targets, generation)
        self._placed = dict.fromkeys(batched, generation)

    async def _seek(self, partition: TP, offset: int) -> None:
        if partition.topic in self.options.topics:
            await self._thread.run(self._thread.seek_batched, {partition: offset})
        else:
            await super()._seek(partition, offset)

    def on_buffer_drop(self, tp: TP) -> None:
        """Resume as Faust does, without the second it takes Faust to notice."""
        super().on_buffer_drop(tp)
        self._thread.wake()

    def on_out_of_range(self, tp: TP, wanted: int, log_end: int | None) -> None:
        """Start the hook (main thread)."""
        self.add_future(self._report_out_of_range(tp, wanted, log_end))

    async def _report_out_of_range(self, tp: TP, wanted: int, log_end: int | None) -> None:
        start, end = await self._thread.run(self._thread.log_range, tp)
        end = end if log_end is None else log_end
        if self.options.on_out_of_range is not None:
            await self.options.on_out_of_range(tp, wanted, start, end)
            return
        happened = (
            f"{start - wanted} records were deleted unread"
            if wanted < start
            else "the log lost its end, or the topic was created anew"
        )
        error = OffsetOutOfRange(
            f"{tp.topic}[{tp.partition}]: offset {wanted} is wanted, the log holds {start} to {end}: {happened}. "
            f"To go on without them, move the group's offset of this partition to {start}."
        )
        await self.app.crash(error)


class BatchingTransport(Transport):
    """Faust's aiokafka transport with batched topics."""

    Consumer = BatchingConsumer

    def __init__(self, app: faust.App, options: BatchingOptions) -> None:
        self.options = options
        super().__init__([], app)

    @property
    def url(self) -> Any:
        """Brokers of the app's consumer; read late, for reading settles the app's configuration."""
        return self.app.conf.broker_consumer

    @url.setter
    def url(self, value: Any) -> None:
        pass  # the base class assigns what it is given; the app's configuration is the one source


def use_batching(app: faust.App, topics: Iterable[str], **options: Any) -> None:
    """Have the app's agents get one :class:`Chunk` per fetched chunk of these topics. Call it before the app starts.

    Agents on them run with ``concurrency=1``, on topics of :func:`batched_topic`, and commit with :func:`commit`.
    ``options`` are those of :class:`BatchingOptions`.
    """
    app.transport = BatchingTransport(app, BatchingOptions(topics=frozenset(topics), **options))


def batched_topic(app: faust.App, name: str) -> Any:
    """Declare a batched topic: no automatic commits, nothing decoded."""
    return app.topic(name, acks=False, schema=ChunkSchema())


async def commit(app: faust.App, offsets: Mapping[TP, int], *, generation: int | None = None) -> bool:
    """Commit next offsets of the app's group, now; return once the broker has them.

    Args:
        app: a started app.
        offsets: by partition, the offset to start from after a restart (:attr:`Chunk.next_offset`).
        generation: of the chunk that was worked on; without it, the current one.

    Returns:
        ``False`` if nothing was committed: the generation is over, a partition is not ours, or the consumer stops.

    Raises:
        KafkaError: the broker refuses for good, say for lack of permission. While it is away, the call waits.
    """
    thread = _consumer(app).thread
    try:
        return await thread.run(
            thread.commit_exactly, dict(offsets), app.consumer_generation_id if generation is None else generation
        )
    except ConsumerStoppedError:
        return False


async def committed(app: faust.App, tps: Collection[TP]) -> dict[TP, int | None]:
    """Ask the broker for the group's committed offsets, ``None`` where there is none; a ``start_offset`` hook may."""
    thread = _consumer(app).thread
    return await thread.run(thread.fetch_committed, tps)


async def log_range(app: faust.App, tp: TP) -> tuple[int, int]:
    """Ask the broker for the first offset of a partition's log and the offset after its last record."""
    thread = _consumer(app).thread
    return await thread.run(thread.log_range, tp)


async def seek(app: faust.App, tp: TP, offset: int) -> None:
    """Have the partition's next chunk begin at ``offset``, ``EARLIEST`` or ``LATEST``; chunks that wait are dropped.

    Raises:
        IllegalStateError: the partition is not assigned.
    """
    await _consumer(app).seek(tp, offset)


def pause_partitions(app: faust.App, tps: Iterable[TP]) -> None:
    """Hand out no more chunks of these partitions, across rebalances that keep them; those that wait still arrive."""
    _consumer(app).thread.held.update(tps)


def resume_partitions(app: faust.App, tps: Iterable[TP]) -> None:
    """Undo :func:`pause_partitions`."""
    thread = _consumer(app).thread
    thread.held.difference_update(tps)
    thread.wake()


def partition_status(app: faust.App) -> dict[TP, PartitionStatus]:
    """What is known about each batched partition assigned to this app."""
    return _consumer(app).thread.status()


def _consumer(app: faust.App) -> BatchingConsumer:
    consumer = app.consumer
    if not isinstance(consumer, BatchingConsumer):
        raise ConfigurationError(
            "the app does not use the batching transport: call use_batching(app, topics) before it starts"
        )
    return consumer
