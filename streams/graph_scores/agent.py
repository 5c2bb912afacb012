"""Reads `graph-windows` in a consumer group of its own and writes the graph model's scores. Does I/O.

Nothing of the worker waits for it, and nothing it meets stops the worker: what fails is said, waited out and read again
from the last commit. Rows go out first, then memories, then offsets: what is read twice gives the same rows.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from clickhouse_connect.driver import Client

from schemas.clickhouse_dsn import database_of
from schemas.errors import ConfigurationError, WireFormatError
from schemas.settings import Settings
from schemas.tables import EDGE_SCORE_MEMORY, EDGE_SCORES
from schemas.topics import GRAPH_WINDOWS
from streams.graph_scores.assembly import LaneKey
from streams.graph_scores.lanes import LaneMemory, Outcome
from streams.graph_scores.model_folder import ModelFolder
from streams.graph_scores.partition import PartitionScores, Work
from streams.graph_scores.rows import memory_message, memory_of, rows_of, score_message
from streams.graph_scores.status import ModelStatus, status_of
from streams.kafka_clients import make_consumer
from streams.metrics import Metrics
from streams.sinks.faults import describe
from streams.sinks.writer import Message, PartitionWriter, Poison

logger = logging.getLogger(__name__)

GROUP_SUFFIX = "-graph-scores"
STORE_EVERY_S = 300.0
"""A worker that takes a partition over reads so much again, at most."""
MAX_POLL_RECORDS = 200
POLL_MS = 500
CORE_SHARE = 0.25
"""At most this share of a core: a backlog must not take one from detection."""
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
NEVER_POLLED_MS = 24 * 3_600_000
"""A ClickHouse that is away holds the reading up; the group must not take the partitions away for that."""

_MEMORY = """
SELECT generation, toUnixTimestamp64Milli(window_start), memory FROM {database:Identifier}.edge_score_memory
WHERE tenant = {tenant:String} AND lane = {lane:String} ORDER BY generation DESC, window_start DESC LIMIT 1
"""


class GraphScores(ConsumerRebalanceListener):  # type: ignore[misc]
    """Scores the closed windows of the partitions that the group gives this worker.

    Args:
        folder: of the models. connect: opens a ClickHouse client that may write.

    Attributes:
        stored: by partition, the offset up to which windows are scored, stored and committed, by this worker.
        taken: by partition, the offset behind the last message whose rows are in ClickHouse.
        is_cut: it was stopped while ClickHouse had not taken what was under way.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        connect: Callable[[], Client],
        metrics: Metrics,
        *,
        store_every_s: float = STORE_EVERY_S,
    ) -> None:
        self._settings = settings
        self._database = database_of(settings.clickhouse)
        self._connect = connect
        self._metrics = metrics
        self._store_every_s = store_every_s
        self._models = ModelFolder(folder)
        self._partitions: dict[int, PartitionScores] = {}
        self._ends: dict[int, int] = {}
        self._client: Client | None = None
        self._failure = ""
        self._told: set[str] = set()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.topic = settings.topics.name(GRAPH_WINDOWS.role)
        self.group = settings.worker.group + GROUP_SUFFIX
        self.stored: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        self.is_cut = False

    # -- what others see -------------------------------------------------------------------------------------------

    def status(self) -> ModelStatus:
        """Say how it stands. Any thread."""
        return status_of([one.found.copy() for one in self._partitions.copy().values()], self._failure)

    @property
    def is_failing(self) -> bool:
        """Say whether the last try to read, score or store failed."""
        return bool(self._failure)

    def lags(self) -> dict[int, int]:
        """Return messages not yet scored by partition of ours, as far as the broker has told. Any thread."""
        ends = self._ends.copy()
        return {number: max(0, ends[number] - taken) for number, taken in self.taken.copy().items() if number in ends}

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read in the background."""
        self._task = asyncio.create_task(self._run(), name="graph scores")

    async def stop(self, within_s: float) -> None:
        """Finish what is under way, store and commit; what does not end in time is read again by the next owner."""
        self._stopping.set()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=within_s)
        if not self._task.done():
            logger.warning("the graph model's scores are not all stored: the next owner writes them again")
            self.is_cut = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            begin_s = time.monotonic()
            try:
                await self._read()
                return
            except Exception as error:  # whatever it is, scores are no reason to stop detecting
                if time.monotonic() - begin_s > LONGEST_BACKOFF_S:
                    backoff_s = FIRST_BACKOFF_S
                said = str(error) if isinstance(error, ConfigurationError | KafkaError) else describe(error)
                self._failure = " ".join(said.split())
                logger.warning("graph model: windows are not scored: %s; again in %.0f s", self._failure, backoff_s)
            await self._rest(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _rest(self, seconds: float) -> None:
        """Wait; a stop ends it."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until asked to stop."""
        self._forget()
        await self._open_client()
        assert self._client is not None
        write = [
            PartitionWriter(
                *(self._client, self._database, f"{self.topic}{GROUP_SUFFIX}", 0),
                rows_of(table),
                self._on_poison,
                self._metrics,
            )
            for table in (EDGE_SCORES, EDGE_SCORE_MEMORY)
        ]
        consumer = make_consumer(
            self._settings.kafka,
            group_id=self.group,
            max_poll_records=MAX_POLL_RECORDS,
            max_poll_interval_ms=NEVER_POLLED_MS,
        )
        consumer.subscribe([self.topic], listener=self)
        await consumer.start()
        try:
            await self._follow(consumer, *write)
        finally:
            self._forget()
            await consumer.stop()

    async def _open_client(self) -> None:
        if self._client is None:
            self._client = await asyncio.to_thread(self._connect)

    def _forget(self) -> None:
        self._partitions.clear()
        self._ends.clear()
        self.taken.clear()

    async def _follow(self, consumer: AIOKafkaConsumer, scores: PartitionWriter, memories: PartitionWriter) -> None:
        stored_s = time.monotonic()
        while not self._stopping.is_set():
            fetched = await consumer.getmany(timeout_ms=POLL_MS)
            for tp, records in fetched.items():
                worked_s = await self._take(tp.partition, records, scores)
                await self._rest(worked_s * (1 / CORE_SHARE - 1))
            self._failure = ""
            self._see_ends(consumer)
            self._say()
            if time.monotonic() - stored_s >= self._store_every_s:
                await self._store(consumer, memories)
                stored_s = time.monotonic()
        await self._store(consumer, memories)

    async def _take(self, number: int, records: list[Any], writer: PartitionWriter) -> float:
        """Score and store what was fetched of a partition; return the seconds of processor time that scoring took."""
        partition = self._partitions.get(number)
        if partition is None:
            return 0.0  # it went to another worker between the fetch and now
        messages = [(record.offset, record.value) for record in records]
        work, rows, worked_s = await asyncio.to_thread(_worked, partition, messages)
        await writer.write(rows)
        for outcome, count in work.outcomes.items():
            self._metrics.graph_score_windows.labels(outcome.value).inc(count)
        for seconds in work.seconds:
            self._metrics.graph_score_seconds.observe(seconds)
        if self._partitions.get(number) is partition:
            self.taken[number] = partition.next_offset
        return worked_s

    async def _store(self, consumer: AIOKafkaConsumer, writer: PartitionWriter) -> None:
        """Store memories that have changed, then commit."""
        partitions = {number: one for number, one in self._partitions.items() if one.next_offset}
        safe = {number: one.safe_offset for number, one in partitions.items()}
        for partition in partitions.values():
            for memory in partition.dirty():
                # One after the other: a large lane's takes megabytes.
                await writer.write([await asyncio.to_thread(memory_message, memory, 0)])
        mine = {
            TopicPartition(self.topic, number): offset
            for number, offset in safe.items()
            if self._partitions.get(number) is partitions[number]
        }
        try:
            if mine:
                await consumer.commit(mine)
        except KafkaError as error:  # the group moves on: the next owner reads it again
            logger.info("graph model: offsets are not committed (%s)", type(error).__name__)
            return
        self.stored |= {tp.partition: offset for tp, offset in mine.items()}

    def _load(self, lane: LaneKey) -> LaneMemory:
        """Return a lane's stored memory, else an empty one. Blocking."""
        assert self._client is not None
        found = self._client.query(
            _MEMORY, parameters={"database": self._database, "tenant": lane[0], "lane": lane[1]}
        ).result_rows
        if not found:
            return LaneMemory(lane)
        try:
            return memory_of(lane, (int(found[0][0]), int(found[0][1]), str(found[0][2])))
        except WireFormatError as error:
            logger.warning("%s: tenant %s, lane %s begins anew", error, *lane)
            return LaneMemory(lane)

    async def _on_poison(self, poison: Poison) -> None:
        """Rows that ClickHouse refuses are left out: they can be had again by `drift score`."""
        self._metrics.graph_score_windows.labels(Outcome.DAMAGED.value).inc()
        logger.error("graph model: rows at offset %d are left out: %s", poison.offset, poison.detail)

    def _see_ends(self, consumer: AIOKafkaConsumer) -> None:
        for number in list(self._partitions):
            end = consumer.highwater(TopicPartition(self.topic, number))
            if end is not None:
                self._ends[number] = end

    def _say(self) -> None:
        """Log each reason once, as long as it holds."""
        problems = set(self.status().problems)
        for problem in sorted(problems - self._told):
            logger.warning("%s", problem)
        self._told = problems

    # -- the group hands out partitions ----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let partitions go: their next owner reads on from the last commit."""
        for tp in revoked:
            self._partitions.pop(tp.partition, None)
            self._ends.pop(tp.partition, None)
            self.taken.pop(tp.partition, None)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Begin with partitions; memories are loaded as their lanes' windows come."""
        for tp in assigned:
            self._partitions[tp.partition] = PartitionScores(self._models, self._load, time.perf_counter)


def _worked(partition: PartitionScores, messages: list[tuple[int, bytes | None]]) -> tuple[Work, list[Message], float]:
    begin_s = time.thread_time()
    work = partition.take(messages)
    rows = [score_message(scored) for scored in work.scored]
    return work, rows, time.thread_time() - begin_s
