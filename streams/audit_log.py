"""Audit records to `drift-audit`: kept in memory until Kafka has acknowledged them, then the stream worker's to store.

At least once from the moment a record is taken for as long as the process lives; by id there are no duplicates.
"""

import asyncio
import logging
from collections import deque

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.audit import AuditRecord, encode_audit
from schemas.settings import Settings
from schemas.topics import AUDIT
from streams.kafka_clients import make_producer

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 15.0
STOP_WITHIN_S = 3.0


class KafkaAuditLog:
    """Takes records without waiting and sends them one after the other.

    Attributes:
        ends: by (topic, partition), the offset behind the last record that was acknowledged.
        dropped: records given up because too many waited; each is in the log of the process.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.topics.name(AUDIT.role)
        self._waiting: deque[AuditRecord] = deque()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._producer: AIOKafkaProducer | None = None
        self.ends: dict[tuple[str, int], int] = {}
        self.dropped = 0

    async def start(self) -> None:
        """Begin to send in the background."""
        self._task = asyncio.create_task(self._send_all(), name="send drift-audit")

    def take(self, record: AuditRecord) -> None:
        """Keep a record until it is acknowledged."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            logger.error("audit record given up, %d wait for Kafka: %s", MAX_WAITING, encode_audit(record).decode())
            return
        self._waiting.append(record)
        self._news.set()

    async def _send_all(self) -> None:
        backoff_s, is_away = FIRST_BACKOFF_S, False
        while True:
            await self._news.wait()
            try:
                while self._waiting:
                    await self._send(self._waiting[0])
                    self._waiting.popleft()
                    backoff_s, is_away = FIRST_BACKOFF_S, False
                self._news.clear()
            except (KafkaError, OSError) as error:
                if not is_away:
                    logger.warning("audit records wait for Kafka (%s)", type(error).__name__)
                is_away = True
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _send(self, record: AuditRecord) -> None:
        if self._producer is None:
            producer = make_producer(self._settings.kafka)
            await producer.start()
            self._producer = producer
        metadata = await self._producer.send_and_wait(
            self._topic, value=encode_audit(record), key=record.tenant.encode()
        )
        at = self._topic, int(metadata.partition)
        self.ends[at] = max(self.ends.get(at, 0), int(metadata.offset) + 1)

    async def stop(self) -> None:
        """Send what waits, for a moment, and stop; what is left is said."""
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                while self._waiting and self._task is not None and not self._task.done():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.error("%d audit records were not taken by Kafka before the stop", len(self._waiting))
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                if self._task is not None:
                    self._task.cancel()
                    await asyncio.wait({self._task})
                if self._producer is not None:
                    await self._producer.stop()
        except TimeoutError:
            logger.warning("the stop does not wait for Kafka, which does not answer")
