"""`drift-events` for the API's live clients: the last records of each partition, then what comes. No group, no commits.

For processes of the API (schemas/live_events.py says what is asked of it). All run in one event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.errors import ConfigurationError, WireFormatError
from schemas.live_events import PlacedEvent
from schemas.ocsf import decode_event
from schemas.settings import Settings
from schemas.topics import DRIFT_EVENTS
from streams.kafka_clients import make_consumer
from streams.topics import ensure_topics

logger = logging.getLogger(__name__)

LOOKBACK = 2_000
"""Records before a partition's end that are read at the start: what a client missed a moment ago is there at once."""
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 15.0
STOP_WITHIN_S = 3.0
POLL_MS = 500
MAX_POLL_RECORDS = 500

OnEvent = Callable[[PlacedEvent], None]


class KafkaEventFeed:
    """`schemas.live_events.EventFeed` on Kafka.

    Attributes:
        unreadable: records that were no event.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topics.name(DRIFT_EVENTS.role)
        self._on_event: OnEvent = lambda _: None
        self._on_gap: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None
        self._next: dict[TopicPartition, int] = {}
        self._is_live = False
        self.unreadable = 0

    @property
    def is_live(self) -> bool:
        """Whether what was there at the start has been read and the topic answers."""
        return self._is_live

    async def start(self, on_event: OnEvent, on_gap: Callable[[], None]) -> None:
        """Begin to read in the background; see `EventFeed`."""
        self._on_event, self._on_gap = on_event, on_gap
        self._task = asyncio.create_task(self._follow(), name="follow drift-events")

    async def stop(self) -> None:
        """Stop reading; while Kafka is away its client is left as it is after a moment."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_WITHIN_S)

    async def _follow(self) -> None:
        backoff_s, is_away = FIRST_BACKOFF_S, False
        while True:
            try:
                await self._read()
            except (KafkaError, ConfigurationError, OSError) as error:
                if not is_away:
                    said = str(error) if isinstance(error, ConfigurationError) else type(error).__name__
                    logger.warning("live events cannot be read from Kafka (%s): tried again", said)
                is_away = True
            if self._is_live:
                backoff_s, is_away = FIRST_BACKOFF_S, False
            self._is_live = False
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _read(self) -> None:
        count = (await ensure_topics(self._settings))[self._topic]
        consumer = make_consumer(self._settings.kafka, max_poll_records=MAX_POLL_RECORDS)
        await consumer.start()
        try:
            partitions = [TopicPartition(self._topic, number) for number in range(count)]
            consumer.assign(partitions)
            begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, self._start_of(partition, begins[partition], ends[partition]))
            while True:
                fetched = await consumer.getmany(timeout_ms=POLL_MS)
                for partition, records in fetched.items():
                    self._take(partition, records)
                if not self._is_live:
                    self._is_live = all([await consumer.position(one) >= end for one, end in ends.items()])
        finally:
            await consumer.stop()

    def _start_of(self, partition: TopicPartition, begin: int, end: int) -> int:
        at = self._next.get(partition)
        if at is not None and not begin <= at <= end:
            self._on_gap()  # retention has passed us, or the topic is another one
            at = None
        start = max(begin, end - LOOKBACK) if at is None else at
        self._next[partition] = start
        return start

    def _take(self, partition: TopicPartition, records: list[Any]) -> None:
        for record in records:
            if record.offset > self._next[partition]:
                self._on_gap()
            self._next[partition] = record.offset + 1
            try:
                event = decode_event(record.value or b"")
            except WireFormatError:
                self.unreadable += 1
                continue
            self._on_event(PlacedEvent(self._settings.topics.incarnation, record.offset, event))
