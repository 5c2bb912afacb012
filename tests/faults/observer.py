"""What can be seen from outside while faults go on: new edges on `drift-events`, owners, lag and memory. Kafka I/O."""

import asyncio
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from schemas.drift import Activity
from schemas.ocsf import decode_event
from schemas.settings import Settings
from streams.kafka_clients import make_admin, make_consumer
from tests.faults.population import make_probes
from tests.faults.processes import WorkerProcess, memory_bytes

SAMPLE_S = 2.0
PROMPT_S = 2.0
"""A partition is well again when a new edge is reported so soon after it was sent."""


@dataclass
class Seen:
    """The new edges that a partition reported: when each was sent, and how long it took."""

    sent_ms: list[int] = field(default_factory=list)
    delay_s: list[float] = field(default_factory=list)
    last_at_s: float = 0.0
    longest_silence_s: float = 0.0


class Observer:
    """Follows `drift-events` and asks the group for owners and lag.

    Attributes:
        seen: by partition of `tenant-log`.
        lag_max: messages behind, by topic. memory_max: bytes, by worker.
    """

    def __init__(self, settings: Settings, seed: int, counts: dict[str, int]) -> None:
        self._settings = settings
        self._counts = counts
        self._probes = {probe.tenant: probe.partition for probe in make_probes(seed, settings.topics.partitions)}
        self.seen = {partition: Seen() for partition in self._probes.values()}
        self.lag: dict[str, int] = {}
        self.lag_max: Counter[str] = Counter()
        self.memory_max: Counter[str] = Counter()
        self.events = 0

    # -- new edges -------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Take in what is published until cancelled; brokers that are away are waited for."""
        topic = self._settings.topics.name("drift_events")
        consumer = make_consumer(self._settings.kafka)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(topic, number) for number in range(self._settings.topics.partitions)])
            while True:
                fetched = await consumer.getmany(timeout_ms=200)
                now_s = time.time()
                for records in fetched.values():
                    for record in records:
                        self._take(record, now_s)
        finally:
            await consumer.stop()

    def _take(self, record: Any, now_s: float) -> None:
        self.events += 1
        if not record.key.startswith(b"probe-"):
            return
        event = decode_event(record.value)
        if not event.is_early or event.activity is not Activity.CREATE:
            return
        seen = self.seen[self._probes[event.tenant]]
        if seen.last_at_s:
            seen.longest_silence_s = max(seen.longest_silence_s, now_s - seen.last_at_s)
        seen.last_at_s = now_s
        seen.sent_ms.append(event.time_ms)
        seen.delay_s.append(now_s - event.time_ms / 1000)

    def reported_since(self, since_s: float, within_s: float | None = None) -> set[int]:
        """Return partitions that reported an edge sent after ``since_s`` (Unix time), promptly if ``within_s`` says."""
        return {
            partition
            for partition, seen in self.seen.items()
            if any(
                sent_ms / 1000 > since_s and (within_s is None or delay_s <= within_s)
                for sent_ms, delay_s in zip(reversed(seen.sent_ms), reversed(seen.delay_s), strict=True)
            )
        }

    # -- the group -------------------------------------------------------------------------------------------------

    async def owners(self) -> dict[str, set[int]]:
        """Return which partitions of `tenant-log` each member of the group has, by the member's name."""
        topic = self._settings.topics.name("tenant_log")
        admin = make_admin(self._settings.kafka)
        await admin.start()
        try:
            found: dict[str, set[int]] = defaultdict(set)
            for response in await admin.describe_consumer_groups([self._settings.worker.group]):
                for member in response.to_object()["groups"][0]["members"]:
                    if member["member_assignment"]:
                        assigned = ConsumerProtocolMemberAssignment.decode(member["member_assignment"])
                        for name, partitions in assigned.assignment:
                            if name == topic:
                                found[member["client_id"]] |= set(partitions)
            return dict(found)
        finally:
            await admin.close()

    async def sample(self, workers: list[WorkerProcess]) -> None:
        """Note lag and memory until cancelled; while the brokers are away, memory alone."""
        while True:
            for worker in workers:
                if worker.pid is not None:
                    self.memory_max[worker.name] = max(self.memory_max[worker.name], memory_bytes(worker.pid))
            with suppress(KafkaError, TimeoutError, OSError):
                async with asyncio.timeout(10):
                    self.lag = await self.measure_lag()
                    for topic, lag in self.lag.items():
                        self.lag_max[topic] = max(self.lag_max[topic], lag)
            await asyncio.sleep(SAMPLE_S)

    async def committed(self) -> dict[TopicPartition, int]:
        """Return the group's committed offsets of all topics it reads."""
        admin = make_admin(self._settings.kafka)
        await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(self._settings.worker.group)
            return {tp: meta.offset for tp, meta in found.items() if meta.offset >= 0}
        finally:
            await admin.close()

    async def measure_lag(self) -> dict[str, int]:
        """Return messages between the group's offsets and the ends, by topic."""
        names = {self._settings.topics.name(role) for role in ("tenant_log", "drift_events", "graph_windows")}
        names.add(self._settings.flows[0].topic)
        committed = await self.committed()
        consumer = make_consumer(self._settings.kafka)
        await consumer.start()
        try:
            partitions = [TopicPartition(name, n) for name in sorted(names) for n in range(self._counts[name])]
            ends = await consumer.end_offsets(partitions)
        finally:
            await consumer.stop()
        lag: Counter[str] = Counter(dict.fromkeys(names, 0))
        for tp, end in ends.items():
            lag[tp.topic] += max(0, end - committed.get(tp, 0))
        return dict(lag)
