"""The graph agent's results on Kafka: `drift-events`, `graph-windows` (at the tenant's partition) and dead letters."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
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
AT_ONCE = 200
"""Findings or windows under way at once: one after the other, each would wait for the acknowledgement before it."""


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
        """Publish findings side by side, the events of each one after the other: its Create goes before its Update."""
        findings: dict[str, list[DriftEvent]] = {}
        for event in events:
            findings.setdefault(event.finding_id, []).append(event)
        offsets = await _all(self._publish_finding(partition, found) for found in findings.values())
        return max(offsets, default=-1) + 1

    async def _publish_finding(self, partition: int, events: Sequence[DriftEvent]) -> int:
        offset = -1
        for event in events:
            headers = cloudevents_headers(event)
            offset = await self._producer.send(
                self._drift_events, partition, encode_event(event), event_key(event), headers
            )
        return offset

    async def publish_windows(self, partition: int, windows: Sequence[ClosedWindow]) -> None:
        """Publish windows side by side, each one's marker after its shards are acknowledged."""
        await _all(self._publish_window(partition, window) for window in windows)

    async def _publish_window(self, partition: int, window: ClosedWindow) -> int:
        *shards, marker = chunk_window(window)
        key = window.tenant.encode()
        await _all(self._producer.send(self._graph_windows, partition, encode_chunk(chunk), key) for chunk in shards)
        return await self._producer.send(self._graph_windows, partition, encode_chunk(marker), key)

    async def publish_dead(self, dead: Sequence[RowDeadLetter]) -> None:
        """Publish refused rows by coordinate; their bytes are in the source topic."""
        for row in dead:
            topic, _, incarnation = row.source.partition("#")
            offset, index = split_position(row.position)
            letter = DeadLetter(
                topic, row.partition, offset, index, row.reason, row.detail, b"", incarnation=incarnation
            )
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


async def _all(sends: Iterable[Awaitable[int]]) -> list[int]:
    """Await all, so many at once; the first failure comes out once none is under way any more."""
    offsets: list[int] = []
    under_way = iter(sends)
    while some := list(islice(under_way, AT_ONCE)):
        results = await asyncio.gather(*some, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
            offsets.append(result)
    return offsets
