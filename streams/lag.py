"""Watches how far the group is behind, and holds ingest while the graph side is too far. Does I/O: asks the brokers.

What counts for holding is the group's *committed* offset of every partition of `tenant-log`, not what this worker has
applied: a record that is deleted before a checkpoint covers it is lost to whoever recovers from the checkpoint before.
And it counts for all partitions, whoever owns them: every ingest worker writes to every partition, so the one furthest
behind decides for all of them (docs/adr/0008).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from schemas.topics import TENANT_LOG
from streams.backpressure import RELEASE_SHARE, AppendTimes, Brake, limit_of
from streams.clock import Clock
from streams.kafka_clients import make_admin, make_consumer
from streams.topics import partition_counts, topic_config

logger = logging.getLogger(__name__)

READ_DEADLINE_S = 10.0
MEASURE_DEADLINE_S = 60.0
Ask = Callable[[Iterable[TP]], Awaitable[Mapping[TP, int]]]


@dataclass(slots=True)
class GroupLag:
    """What the last measurement found.

    Attributes:
        ends: by partition, the offset after the last record. committed: of the group; the log's start without one.
        oldest_ms: by partition of `tenant-log`, a moment before which its first uncommitted record was not appended;
            partitions without one are left out.
        measured_at_ms: 0 before the first.
    """

    ends: dict[TP, int] = field(default_factory=dict)
    committed: dict[TP, int] = field(default_factory=dict)
    oldest_ms: dict[int, int] = field(default_factory=dict)
    measured_at_ms: int = 0

    def age_ms(self, now_ms: int) -> int:
        """Return the age of the oldest record of `tenant-log` that no checkpoint covers; it grows until measured."""
        return max((now_ms - since_ms for since_ms in self.oldest_ms.values()), default=0)


@dataclass(frozen=True, slots=True)
class GroupQuestions:
    """What is asked of the group's consumer. Each may raise `KafkaError`."""

    ends: Ask
    firsts: Ask
    committed: Callable[[Iterable[TP]], Awaitable[Mapping[TP, int | None]]]
    assigned: Callable[[], Iterable[TP]]


class LagWatch:
    """Measures every ``worker.lag_every_ms``; looks at the topics every ``worker.metadata_every_ms``.

    Args:
        hold: called with ``True`` and ``False`` as ingest has to pause and may go on.
        counted: called with the partition counts of the source topics.
    """

    def __init__(
        self,
        settings: Settings,
        partitions: int,
        ask: GroupQuestions,
        clock: Clock,
        hold: Callable[[bool], None],
        counted: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._settings = settings
        self._log = settings.topics.name("tenant_log")
        self._partitions = [TP(self._log, number) for number in range(partitions)]
        self._ask = ask
        self._clock = clock
        self._hold = hold
        self._counted = counted
        self._retention_ms: int | None = int(TENANT_LOG.config["retention.ms"])
        self._looked_at_ms = 0
        self.appended = {number: AppendTimes() for number in range(partitions)}
        self.brake = Brake(limit_of(self._retention_ms, settings.worker.hold_above_ms))
        self.last = GroupLag()

    async def run(self) -> None:
        """Measure until cancelled. While brokers are away, the last decision holds."""
        failed = False
        while True:
            try:
                async with asyncio.timeout(MEASURE_DEADLINE_S):
                    await self.look()
                    await self.measure()
                failed = False
            except (KafkaError, ConfigurationError, TimeoutError, OSError) as error:
                if not failed:
                    logger.warning("lag is not measured at the moment: %s", error or type(error).__name__)
                failed = True
            await asyncio.sleep(self._settings.worker.lag_every_ms / 1000)

    async def look(self) -> None:
        """Read partition counts of the source topics and the retention of `tenant-log`, if it is time to."""
        now_ms = self._clock.now_ms()
        if self._looked_at_ms and now_ms - self._looked_at_ms < self._settings.worker.metadata_every_ms:
            return
        await self.look_now()
        self._looked_at_ms = now_ms

    async def look_now(self) -> None:
        """Do it in any case.

        Raises:
            KafkaError, ConfigurationError: the brokers do not answer, or refuse to.
        """
        admin = make_admin(self._settings.kafka)
        await admin.start()
        try:
            self._counted(await partition_counts(admin, {flow.topic for flow in self._settings.flows}))
            config = await topic_config(admin, self._log)
        finally:
            await admin.close()
        retention = config.get("retention.ms", TENANT_LOG.config["retention.ms"])
        self._retention_ms = int(retention)
        self.brake.limit_ms = limit_of(self._retention_ms, self._settings.worker.hold_above_ms)

    async def measure(self) -> None:
        """Ask for offsets, and hold or release ingest.

        Raises:
            KafkaError: the brokers do not answer.
        """
        wanted = {*self._partitions, *self._ask.assigned()}
        found = await self._ask.committed(wanted)
        ends = dict(await self._ask.ends(wanted))
        now_ms = self._clock.now_ms()
        unknown = [tp for tp, offset in found.items() if offset is None]
        firsts = await self._ask.firsts(unknown) if unknown else {}
        committed = {tp: firsts.get(tp, 0) if offset is None else offset for tp, offset in found.items()}
        behind = [tp for tp in self._partitions if committed.get(tp, 0) < ends.get(tp, 0)]
        for tp in self._partitions:
            times = self.appended[tp.partition]
            times.see(now_ms, ends.get(tp, 0))
            times.forget_below(committed.get(tp, 0))
        unseen = [tp for tp in behind if self.appended[tp.partition].not_before_ms(committed[tp]) is None]
        await self._read_times({tp: committed[tp] for tp in unseen})
        oldest_ms = {}
        for tp in behind:
            since_ms = self.appended[tp.partition].not_before_ms(committed[tp])
            if since_ms is not None:
                oldest_ms[tp.partition] = since_ms
        self.last = GroupLag(ends, committed, oldest_ms, now_ms)
        self._judge(now_ms)

    def _judge(self, now_ms: int) -> None:
        was_held, age_ms = self.brake.is_held, self.last.age_ms(now_ms)
        if self.brake.judge(age_ms) != was_held:
            self._say(age_ms)
            self._hold(self.brake.is_held)

    def _say(self, age_ms: int) -> None:
        age_s, limit_s = age_ms / 1000, (self.brake.limit_ms or 0) / 1000
        if self.brake.is_held:
            why = (
                "worker.hold_above_ms"
                if self._settings.worker.hold_above_ms is not None
                else f"half of the topic's retention of {(self._retention_ms or 0) / 1000:.0f} s"
            )
            logger.warning(
                "ingest is held: records of %s have been waiting for the graph side for %.0f s, the limit is %.0f s "
                "(%s); nothing is lost, add workers or raise the topic's retention.ms",
                *(self._log, age_s, limit_s, why),
            )
        else:
            logger.warning(
                "ingest goes on: records of %s have been waiting for %.0f s, less than %.0f s",
                *(self._log, age_s, limit_s * RELEASE_SHARE),
            )

    async def _read_times(self, wanted: Mapping[TP, int]) -> None:
        """Read the timestamps of records that were there before the first look: a backlog from before the start."""
        if not wanted:
            return
        consumer = make_consumer(self._settings.kafka, max_partition_fetch_bytes=4096, fetch_max_wait_ms=200)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(*tp) for tp in wanted])
            for tp, offset in wanted.items():
                consumer.seek(TopicPartition(*tp), offset)
            left = set(wanted)
            async with asyncio.timeout(READ_DEADLINE_S):
                while left:
                    for at, records in (await consumer.getmany(timeout_ms=200)).items():
                        tp = TP(*at)
                        if tp in left and records:
                            self.appended[tp.partition].read(wanted[tp], records[0].timestamp)
                            left.discard(tp)
                            consumer.pause(at)
        except TimeoutError:
            logger.debug("no timestamps of %s", sorted(left))
        finally:
            await consumer.stop()
