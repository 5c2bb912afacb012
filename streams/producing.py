"""One record, one acknowledgement: retriable errors repeat the same bytes for ever, with backoff; others are raised."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownError

from streams.metrics import Metrics

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0

Headers = Sequence[tuple[str, bytes]]


class AcknowledgedProducer:
    """Sends through an aiokafka producer and returns once all in-sync replicas have the record.

    Attributes:
        ends: by (topic, partition), the offset behind the furthest record that was acknowledged.
    """

    def __init__(self, producer: Any, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self.ends: dict[tuple[str, int], int] = {}

    async def send(
        self, topic: str, partition: int | None, value: bytes | None, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Return the record's offset.

        Raises:
            KafkaError: an error that repeating cannot mend (record too large, not authorised).
        """
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                metadata = await self._producer.send_and_wait(
                    topic, value=value, key=key, partition=partition, headers=list(headers)
                )
                offset = int(metadata.offset)
                at = topic, int(metadata.partition) if partition is None else partition
                self.ends[at] = max(self.ends.get(at, 0), offset + 1)
                return offset
            except KafkaError as error:
                # aiokafka calls its own time-out final; for us a broker that is away is one that comes back.
                if not (error.retriable or isinstance(error, KafkaTimeoutError | UnknownError)):
                    raise
                self._metrics.produce_retries.labels(topic).inc()
                logger.warning("produce to %s[%s] failed (%s), again in %.1f s", topic, partition, error, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
