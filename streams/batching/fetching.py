"""The consumer thread of the batching transport: takes batched topics out of aiokafka's fetches, below its records.

Relies on private parts of faust-streaming 0.15.3 and aiokafka 0.14.0; tests/contract/test_batching_transport.py pins
each.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import FetchError, OffsetResetStrategy
from aiokafka.errors import (
    ConsumerStoppedError,
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from streams.batching.budget import Budget
from streams.batching.chunk import EARLIEST, LATEST, Chunk, PartitionStatus
from streams.batching.records import FetchedRecords
from streams.kafka_clients import pace_metadata_updates

if TYPE_CHECKING:
    from streams.batching.transport import BatchingConsumer

T = TypeVar("T")

BEYOND_END_MS = 10_000
"""How long a broker may answer, without an error, that the log ends below the position. After a change of leader
Kafka does so for a moment; Tansu does so for ever, where Kafka says "out of range"."""

COMMIT_AGAIN_S = 0.1
_GENERATION_IS_OVER = (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError)
_COORDINATOR_IS_GONE = (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError, RequestTimedOutError)

_PLACEHOLDER = bytes(
    DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    ).build()
)
"""A batch without records. aiokafka is given it in place of a batched partition's bytes, so it keeps its own books
(which partition has unconsumed data, when to fetch on) and its parser never meets bytes that may be damaged."""


@dataclass(frozen=True, slots=True)
class _Fetch:
    """The last answered fetch of a partition."""

    generation: int
    offset: int
    highwater: int
    at_end: bool
    at_ms: int
    beyond_since_ms: int | None


class FetchTap:
    """Stands between aiokafka's fetcher and its client and keeps what fetch responses say about batched partitions."""

    def __init__(self, client: Any, thread: "BatchingThread") -> None:
        self._client = client
        self._thread = thread

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        """Send as the client does; in a fetch response, batched partitions have a placeholder for their records."""
        response = await self._client.send(node_id, request, **options)
        if isinstance(request, FetchRequest):
            wanted = {(topic, part[0]): part[1] for topic, parts in request.topics for part in parts}
            response.topics = [
                (
                    topic,
                    parts
                    if topic not in self._thread.batched
                    else self._keep(topic, parts, wanted, response.API_VERSION),
                )
                for topic, parts in response.topics
            ]
        return response

    def _keep(self, topic: str, parts: Iterable[Any], wanted: Mapping[tuple[str, int], int], version: int) -> list[Any]:
        kept = []
        for part in parts:
            tp = TopicPartition(topic, part[0])
            state = self._thread.state_of(tp)
            offset = wanted[tp]
            if state is None or not state.has_valid_position or state.position != offset:
                kept.append(part)  # sought or revoked meanwhile: aiokafka throws it away
            elif part[1] == OffsetOutOfRangeError.errno:
                state.pause()  # or it would be asked again and again; a seek resumes it
                self._thread.report_out_of_range(tp, offset)
            elif part[1] != 0:
                kept.append(part)
            else:
                self._thread.keep_fetch(tp, offset, part, version)
                kept.append((*part[:-1], _PLACEHOLDER if part[-1] else part[-1]))
        return kept


class BatchingThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, handing out a :class:`Chunk` per fetched partition of the batched topics."""

    consumer: "BatchingConsumer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options = self.consumer.options
        self.batched = self.options.topics
        self.held: set[TP] = set()
        """Partitions paused by the agent, apart from Faust's own set, which rebalances and full buffers rewrite."""
        self.epochs: dict[TP, int] = {}
        self.budget = Budget(self.options.max_buffered_bytes, self.options.max_chunks_per_partition, self.wake)
        self._fetches: dict[TP, _Fetch] = {}
        self._records: dict[TP, FetchedRecords] = {}
        self._out_of_range: set[TP] = set()

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = self.options.fetch_max_wait_ms  # Faust's 1.5 s would delay each empty answer
        if self.options.read_committed:
            consumer._isolation_level = "read_committed"
        return consumer

    async def on_start(self) -> None:
        """Start aiokafka's consumer and tap its fetcher, which has nothing to fetch yet."""
        await super().on_start()
        consumer = self._ensure_consumer()
        pace_metadata_updates(consumer._client)
        fetcher = consumer._fetcher
        fetcher._client = FetchTap(fetcher._client, self)

    # -- called by the tap, in this thread

    def state_of(self, tp: TP) -> Any:
        """aiokafka's state of an assigned partition, or ``None``."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        return assignment.state_value(tp) if assignment is not None and assignment.active else None

    def keep_fetch(self, tp: TP, offset: int, part: Any, version: int) -> None:
        """Remember a good answer.

        ``part``, by version: partition, error, highwater, [last stable offset, ..., aborted,] [replica,] records.
        """
        raw, highwater = part[-1], part[2]
        stable, aborted = highwater, None
        if version >= 4:
            stable, aborted = part[3], part[-3] if version >= 11 else part[-2]
        end = stable if self.options.read_committed and stable >= 0 else highwater
        generation = self._ensure_consumer()._coordinator.generation
        now_ms, last, beyond_since_ms = _now_ms(), self._fetches.get(tp), None
        if offset > highwater:
            beyond_since_ms = now_ms if last is None or last.beyond_since_ms is None else last.beyond_since_ms
            if now_ms - beyond_since_ms >= BEYOND_END_MS:
                self.state_of(tp).pause()
                self.report_out_of_range(tp, offset, highwater)
        at_end = not raw and end <= offset <= highwater
        self._fetches[tp] = _Fetch(generation, offset, highwater, at_end, now_ms, beyond_since_ms)
        if raw:
            self._records[tp] = FetchedRecords(
                raw,
                position=offset,
                log_end=highwater,
                aborted=aborted or (),
                read_committed=self.options.read_committed,
                check_crcs=self.app.conf.broker_check_crcs,
            )

    def report_out_of_range(self, tp: TP, wanted: int, log_end: int | None = None) -> None:
        """Tell the Faust side, once until the partition is sought, that the log does not hold ``wanted``."""
        if tp not in self._out_of_range:
            self._out_of_range.add(tp)
            self.parent_loop.call_soon_threadsafe(self.consumer.on_out_of_range, TP(*tp), wanted, log_end)

    # -- handing out

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: Collection[TP] | None,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        """Return what is fetched: chunks of batched partitions, records of others; wait up to ``timeout`` s for some.

        Nothing is taken once Faust has stopped the flow. So what is taken always reaches the agents' side within its
        generation, or belongs to a generation that is over, after which every partition starts at its committed
        offset again.
        """
        fetcher = consumer._fetcher
        subscriptions = fetcher._subscriptions
        deadline = monotonic() + (timeout or 0.0)
        with subscriptions.fetch_context():
            while self.consumer.flow_active:
                if consumer._closed or fetcher._closed:
                    raise ConsumerStoppedError()
                taken: dict[TP, list[Any]] = {}
                if subscriptions.reassignment_in_progress:
                    waiter = subscriptions.wait_for_assignment()
                else:
                    others = {tp for tp in active_partitions or () if tp.topic not in self.batched}
                    if others:  # an empty set would mean all to aiokafka
                        taken = await fetcher.fetched_records(others, timeout=0, max_records=max_records)
                    self._take_chunks(fetcher, active_partitions or (), taken)
                    waiter = fetcher._create_fetch_waiter()
                left = deadline - monotonic()
                if not taken and left > 0:
                    await asyncio.wait([waiter], timeout=left)
                if waiter.done():
                    waiter.result()  # coordination errors come this way
                else:
                    waiter.cancel()
                if taken or left <= 0:
                    return taken
        return {}

    def _take_chunks(self, fetcher: Any, active: Collection[TP], taken: dict[TP, list[Any]]) -> None:
        for tp in list(fetcher._records):
            if tp.topic not in self.batched:
                continue
            if tp not in active:
                if not fetcher._subscriptions.is_assigned(tp):
                    self._forget(fetcher, tp)
            elif tp not in self.held and self.budget.admits(tp):
                entry = fetcher._records[tp]
                if isinstance(entry, FetchError):
                    if taken:
                        return  # raised with the next call
                    self._forget(fetcher, tp)
                    entry.check_raise()
                chunk = self._take_chunk(fetcher, tp, entry)
                if chunk is not None:
                    taken[TP(*tp)] = [chunk]

    def _take_chunk(self, fetcher: Any, tp: TP, entry: Any) -> Chunk | None:
        """Take the next chunk of a fetch and move aiokafka's position behind it."""
        records = self._records.get(tp)
        if (
            not entry.check_assignment(tp)
            or records is None
            or records.position != entry._partition_records.next_fetch_offset
        ):
            self._forget(fetcher, tp)  # sought, revoked or paused since the fetch: it is fetched again
            return None
        columns = records.take(self.options.max_chunk_bytes)
        entry._partition_records.next_fetch_offset = records.position
        entry._update_position()
        if records.exhausted:
            self._forget(fetcher, tp)
        if columns.next_offset == columns.first_offset:
            return None
        fetch = self._fetches[tp]
        return Chunk(
            topic=tp.topic,
            partition=tp.partition,
            first_offset=columns.first_offset,
            next_offset=columns.next_offset,
            offsets=columns.offsets,
            values=columns.values,
            keys=columns.keys,
            headers=columns.headers,
            timestamps=columns.timestamps,
            timestamp_type=columns.timestamp_type,
            highwater=fetch.highwater,
            generation=fetch.generation,
            epoch=self.epochs.get(tp, 0),
            size_bytes=columns.size_bytes,
            corrupt=columns.corrupt,
            lease=self.budget.lend(tp, columns.size_bytes),
        )

    def _forget(self, fetcher: Any, tp: TP) -> None:
        """Drop what is left of a fetch and let aiokafka fetch the partition on."""
        self._records.pop(tp, None)
        fetcher._records.pop(tp, None)
        fetcher._notify(fetcher._wait_consume_future)

    def wake(self) -> None:
        """Have a waiting fetch look again. Any thread."""
        try:
            self.thread_loop.call_soon_threadsafe(self._notify_waiters)
        except RuntimeError:
            pass  # the thread is gone, and nobody waits

    def _notify_waiters(self) -> None:
        if self._consumer is not None:
            fetcher = self._consumer._fetcher
            for waiter in list(fetcher._fetch_waiters):
                fetcher._notify(waiter)

    # -- called from the Faust side

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine in this thread. Not by Faust's method queue, whose two workers a waiting commit could fill.

        Raises:
            ConsumerStoppedError: the thread has stopped, or stops meanwhile.
        """
        if not self.thread_loop.is_running():
            raise ConsumerStoppedError()
        future = asyncio.run_coroutine_threadsafe(_await(function, args), self.thread_loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ConsumerStoppedError() from None  # the thread cancels what still runs when it stops

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the committed offsets, except batched partitions: each assignment starts them there by itself.

        Faust may call this late, from a rebalance that is already over; a batched partition would then jump.
        """
        consumer = self._ensure_consumer()
        others = [tp for tp in consumer.assignment() if tp.topic not in self.batched]
        result: Mapping[TP, int] = await self.call_thread(consumer.seek_to_committed, *others) if others else {}
        return result

    async def seek_batched(self, targets: Mapping[TP, int], generation: int | None = None) -> None:
        """Move partitions to an offset, ``EARLIEST`` or ``LATEST``; chunks taken before are outdated from here on.

        Args:
            targets: new positions.
            generation: do nothing if the group has moved on from it.

        Raises:
            IllegalStateError: a partition is not assigned.
        """
        consumer = self._ensure_consumer()
        if generation is not None and consumer._coordinator.generation != generation:
            return
        fetcher = consumer._fetcher
        for tp, offset in targets.items():
            state = self.state_of(tp)
            if state is None:
                raise IllegalStateError(f"Partition {tp} is not assigned")
            self.epochs[tp] = self.epochs.get(tp, 0) + 1
            self._records.pop(tp, None)
            self._fetches.pop(tp, None)
            self._out_of_range.discard(tp)
            if offset in (EARLIEST, LATEST):
                fetcher._records.pop(tp, None)
                state.await_reset(OffsetResetStrategy.EARLIEST if offset == EARLIEST else OffsetResetStrategy.LATEST)
                fetcher._notify(fetcher._wait_consume_future)
            else:
                fetcher.seek_to(TopicPartition(*tp), offset)
            state.resume()

    async def commit_exactly(self, offsets: Mapping[TP, int], generation: int) -> bool:
        """Commit; ``False`` if the generation is over or a partition is not ours. Waits while the broker is away.

        Raises:
            KafkaError: the broker refuses for another reason.
        """
        coordinator, committed = self._ensure_consumer()._coordinator, defaultdict(list)
        for tp, offset in offsets.items():
            committed[tp.topic].append((tp.partition, offset, ""))
        while self._is_current(generation, offsets):
            await coordinator.ensure_coordinator_known()
            if not self._is_current(generation, offsets):
                break
            # Not by consumer.commit(): a commit that waited behind a JoinGroup on the same connection is refused as one
            # of an old generation, upon which aiokafka leaves the new one, and so on for ever. Here a refusal is an
            # answer like any other; the heartbeat finds out by itself whether we are still a member.
            request = OffsetCommitRequest(
                coordinator.group_id,
                generation,
                coordinator.member_id,
                OffsetCommitRequest.DEFAULT_RETENTION_TIME,
                list(committed.items()),
            )
            try:
                response = await coordinator._send_req(request)
            except KafkaError as error:
                if not error.retriable:
                    raise
            else:
                codes = {for_code(code) for _, partitions in response.topics for _, code in partitions} - {NoError}
                if codes & set(_GENERATION_IS_OVER):
                    return False
                if codes & set(_COORDINATOR_IS_GONE) and coordinator.coordinator_id is not None:
                    coordinator.coordinator_dead()
                final = [code for code in codes if not code.retriable]
                if final:
                    raise final[0](coordinator.group_id)
                if not codes:
                    return True
            await asyncio.sleep(COMMIT_AGAIN_S)
        return False

    def _is_current(self, generation: int, tps: Collection[TP]) -> bool:
        """Say whether we are members of this generation, not about to join another, and these partitions are ours."""
        consumer = self._ensure_consumer()
        return (
            consumer._coordinator.generation == generation
            and not consumer._subscription.reassignment_in_progress
            and set(tps) <= consumer.assignment()
        )

    async def fetch_committed(self, tps: Collection[TP]) -> dict[TP, int | None]:
        """Ask the group's coordinator for committed offsets; ``None`` where there is none."""
        found = await self._ensure_consumer()._coordinator.fetch_committed_offsets([TopicPartition(*tp) for tp in tps])
        return {tp: found[tp].offset if tp in found and found[tp].offset >= 0 else None for tp in tps}

    async def log_range(self, tp: TP) -> tuple[int, int]:
        """First offset of the log and offset after its last record.

        A fetch of this generation may know the end better: Tansu 0.6 answers with the offset after the *first*
        record of the last batch.
        """
        consumer, partition = self._ensure_consumer(), TopicPartition(*tp)
        start, end = await consumer.beginning_offsets([partition]), await consumer.end_offsets([partition])
        fetch = self._fetches.get(tp)
        known = fetch.highwater if fetch is not None and fetch.generation == consumer._coordinator.generation else 0
        return start[partition], max(end[partition], known)

    def status(self) -> dict[TP, PartitionStatus]:
        """What is known about each assigned batched partition. Any thread: it only reads."""
        if self._consumer is None:
            return {}
        generation = self._consumer._coordinator.generation
        result = {}
        for tp in self._consumer.assignment():
            state = self.state_of(tp) if tp.topic in self.batched else None
            if state is not None:
                position, fetch = state._position, self._fetches.get(tp)
                if fetch is not None and fetch.generation != generation:
                    fetch = None
                result[TP(*tp)] = PartitionStatus(
                    position=position,
                    highwater=fetch.highwater if fetch else None,
                    last_fetch_ms=fetch.at_ms if fetch else None,
                    end_reached=fetch is not None and fetch.at_end and fetch.offset == position,
                    paused=tp in self.held,
                    out_of_range=tp in self._out_of_range,
                )
        return result


async def _await(function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    return await function(*args)


def _now_ms() -> int:
    return int(monotonic() * 1000)
