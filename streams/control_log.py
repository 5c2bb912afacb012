"""Records of accounts, keys and revocations in `drift-controls`: read from the start, followed, and written.

For processes of the API (schemas/access_records.py says what is asked of it). All run in one event loop.
"""

import asyncio
import logging
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.access_records import ACCESS_KINDS, Apply, RecordsUnavailable, record_key
from schemas.errors import ConfigurationError
from schemas.ids import partition_of
from schemas.settings import Settings
from schemas.topics import DRIFT_CONTROLS
from streams.kafka_clients import make_consumer, make_producer
from streams.topics import ensure_topics

logger = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 15.0
STOP_WITHIN_S = 3.0
POLL_MS = 500
SWEEP_EVERY = 1_000
"""Records between two chances for other tasks while the topic is read from its start."""


class KafkaControlLog:
    """`schemas.access_records.ControlLog` on Kafka. What it knows stays when Kafka goes away; writes then fail."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topics.name(DRIFT_CONTROLS.role)
        self._apply: Apply | None = None
        self._task: asyncio.Task[None] | None = None
        self._producer: AIOKafkaProducer | None = None
        self._partitions = 0
        self._caught_up = asyncio.Event()
        self._starting = asyncio.Lock()
        # Own writes that are applied and not read back yet: an older record of the same key, read then, is skipped.
        self._ahead: dict[bytes, int] = {}
        self._next: dict[TopicPartition, int] = {}

    @property
    def is_caught_up(self) -> bool:
        """Whether all that was there at the start has been applied."""
        return self._caught_up.is_set()

    async def wait_caught_up(self) -> None:
        """Wait until all that was there at the start has been applied."""
        await self._caught_up.wait()

    async def start(self, apply: Apply) -> None:
        """Begin to read and follow in the background; see `ControlLog`."""
        self._apply = apply
        self._task = asyncio.create_task(self._follow(), name="follow drift-controls")

    async def stop(self) -> None:
        """Stop following and close the clients; while Kafka is away they are left as they are after a moment."""
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                if self._task is not None:
                    self._task.cancel()
                    await asyncio.wait({self._task})
                if self._producer is not None:
                    await self._producer.stop()
        except TimeoutError:
            logger.warning("the stop does not wait for Kafka, which does not answer")

    async def _follow(self) -> None:
        backoff_s, is_away = FIRST_BACKOFF_S, False
        while True:
            try:
                await self._read()
            except (KafkaError, ConfigurationError, OSError) as error:
                if not is_away:
                    said = str(error) if isinstance(error, ConfigurationError) else type(error).__name__
                    state = "goes on with what it knows" if self.is_caught_up else "lets nobody in yet"
                    logger.warning("accounts cannot be read from Kafka (%s): the API %s, and tries again", said, state)
                is_away = True
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _read(self) -> None:
        """Read the topic, from its start or where the last try ended, for as long as it can be read."""
        self._partitions = (await ensure_topics(self._settings))[self._topic]
        consumer = make_consumer(self._settings.kafka)
        await consumer.start()
        try:
            partitions = [TopicPartition(self._topic, number) for number in range(self._partitions)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            for partition, end in ends.items():
                # An older record applied again would bring a removed account back for a moment.
                consumer.seek(partition, at if (at := self._next.get(partition, 0)) <= end else 0)
            while True:
                await self._take(await consumer.getmany(timeout_ms=POLL_MS))
                if not self._caught_up.is_set() and await self._has_reached(consumer, ends):
                    self._caught_up.set()
        finally:
            await consumer.stop()

    async def _has_reached(self, consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
        # The position also moves over what compaction has left of the end, which no record would tell.
        return all([await consumer.position(partition) >= end for partition, end in ends.items()])

    async def _take(self, fetched: dict[TopicPartition, list[Any]]) -> None:
        for partition, records in fetched.items():
            for number, record in enumerate(records):
                self._take_one(record.key, record.value, record.offset)
                self._next[partition] = record.offset + 1
                if number % SWEEP_EVERY == SWEEP_EVERY - 1:
                    await asyncio.sleep(0)

    def _take_one(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        ahead = self._ahead.get(key or b"")
        if ahead is not None:
            if offset >= ahead:
                del self._ahead[key or b""]
            if offset <= ahead:
                return
        try:
            tenant, kind, record_id = (key or b"").decode().split(":", 2)
        except ValueError:  # UnicodeDecodeError is one; whose it is, ingest says
            return
        if kind in ACCESS_KINDS and self._apply is not None:
            self._apply(tenant, kind, record_id, value)

    async def write(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        """Write a record and apply it once all replicas in sync have it; see `ControlLog`."""
        key = record_key(tenant, kind, record_id)
        if not self.is_caught_up:
            raise RecordsUnavailable("the records have not been read yet")
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                producer = await self._started_producer()
                partition = partition_of(tenant, self._partitions)
                metadata = await producer.send_and_wait(self._topic, value=value, key=key, partition=partition)
        except (KafkaError, OSError, TimeoutError) as error:
            raise RecordsUnavailable(f"Kafka does not take the record ({type(error).__name__})") from None
        self._ahead[key] = max(self._ahead.get(key, -1), metadata.offset)
        if self._apply is not None and self._ahead[key] == metadata.offset:
            self._apply(tenant, kind, record_id, value)

    async def _started_producer(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = make_producer(self._settings.kafka, linger_ms=0)
                await producer.start()
                self._producer = producer
            return self._producer
