"""The graph agent's results on Kafka: `drift-events`, `graph-windows` (at the tenant's partition) and dead letters."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from models.graph.output import RowDeadLetter
from schemas.dead_letter import DeadLetter
from schemas.drift import DriftEvent
from schemas.graph import ClosedWindow, chunk_window, encode_chunk
from schemas.ids import split_position, stable_hash64
from schemas.ocsf import cloudevents_headers, encode_event, event_key
from streams.dead_letters import encode_dead_letter
from streams.graph.checkpoints import read_partition
from streams.producing import AcknowledgedProducer

EVENT_ID_HEADER = "ce_id"


class KafkaGraphSink:
    """Publishes through one acknowledged producer.

    Args:
        dead_letter_partitions: partitions of the dead-letter topic.
        make_consumer: returns an unstarted consumer without group.
    """

    def __init__(
        self,
        producer: AcknowledgedProducer,
        make_consumer: Callable[[], Any],
        *,
        drift_events: str,
        graph_windows: str,
        dead_letter: str,
        dead_letter_partitions: int,
    ) -> None:
        self._producer = producer
        self._make_consumer = make_consumer
        self._drift_events = drift_events
        self._graph_windows = graph_windows
        self._dead_letter = dead_letter
        self._dead_letter_partitions = dead_letter_partitions

    async def publish_events(self, partition: int, events: Sequence[DriftEvent]) -> int:
        """Publish events one after the other: a consumer sees a finding's Create before its Update."""
        offset = 0
        for event in events:
            headers = cloudevents_headers(event)
            offset = await self._producer.send(
                self._drift_events, partition, encode_event(event), event_key(event), headers
            )
        return offset + 1

    async def publish_windows(self, partition: int, windows: Sequence[ClosedWindow]) -> None:
        """Publish chunks, each window's marker after its shards are acknowledged."""
        for window in windows:
            *shards, marker = chunk_window(window)
            key = window.tenant.encode()
            await asyncio.gather(
                *(self._producer.send(self._graph_windows, partition, encode_chunk(chunk), key) for chunk in shards)
            )
            await self._producer.send(self._graph_windows, partition, encode_chunk(marker), key)

    async def publish_dead(self, dead: Sequence[RowDeadLetter]) -> None:
        """Publish refused rows by coordinate; their bytes are in the source topic."""
        for row in dead:
            topic = row.source.rpartition("#")[0]
            offset, index = split_position(row.position)
            letter = DeadLetter(topic, row.partition, offset, index, row.reason, row.detail, b"")
            message = encode_dead_letter(letter)
            partition = stable_hash64(letter.key) % self._dead_letter_partitions
            await self._producer.send(self._dead_letter, partition, message.value, message.key, message.headers)

    async def published_since(self, partition: int, offset: int) -> set[str]:
        """Read event ids back from the headers of `drift-events`."""
        found = set()
        async for record in read_partition(self._make_consumer(), self._drift_events, partition, offset):
            for name, value in record.headers:
                if name == EVENT_ID_HEADER and value is not None:
                    found.add(value.decode())
        return found
