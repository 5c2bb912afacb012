"""Composition root of the stream worker: settings in, a started Faust app out. Embedded in the caller's event loop."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faust
from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from faust.types import TP

from schemas.clickhouse_dsn import database_of
from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError, LossDetected
from schemas.ids import stable_hash64
from schemas.settings import Settings
from streams.batching import use_batching
from streams.clock import Clock, SystemClock
from streams.dead_letters import encode_dead_letter
from streams.graph.checkpoints import Checkpoints, ChunkStore, FileChunkStore, KafkaChunkStore
from streams.graph.faust_agent import GraphAgent
from streams.graph.partition import GraphPartition
from streams.graph.sink import KafkaGraphSink
from streams.ingest.faust_agent import IngestAgents, register_ingest, tune_garbage_collection
from streams.kafka_clients import check_connection, faust_broker, make_consumer, make_producer
from streams.metrics import Metrics
from streams.producing import AcknowledgedProducer
from streams.sinks.agents import register_sinks
from streams.sinks.faults import describe
from streams.sinks.rollup import rollup
from streams.sinks.writer import Poison
from streams.topics import ensure_topics

logger = logging.getLogger(__name__)

WIRE_CHUNKS_BUFFERED = 4
"""Faust's stream buffer counts chunks here, not records: a few are enough and bound memory."""
ROLL_UP_EVERY_S = 600
LAST_CHECKPOINT_S = 30.0
"""How long stopping waits for brokers; without the last checkpoint the next owner merely replays more."""


class Worker:
    """Ingest, graph and sink agents of one process.

    Args:
        connect: opens a ClickHouse client that may write; ``None`` leaves the sinks to other workers.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Client] | None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.clock = clock or SystemClock()
        self.graph: GraphAgent | None = None
        self.ingest: IngestAgents | None = None
        self.app: faust.App | None = None
        self.failed: asyncio.Event = asyncio.Event()
        self._connect = connect
        self._producer = make_producer(settings.kafka)
        self._acknowledged = AcknowledgedProducer(self._producer, self.metrics)
        self._dead_letter_partitions = 1
        self._rolling_up: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Check the brokers, create missing topics, start all agents; return once partitions are assigned.

        Raises:
            ConfigurationError: brokers, topics or credentials are not as they should be.
        """
        await check_connection(self.settings.kafka)
        counts = await ensure_topics(self.settings)
        self._dead_letter_partitions = counts[self.settings.topics.name("dead_letter")]
        await self._producer.start()
        self.app = self._build(counts)
        await self.app.start()
        tune_garbage_collection()
        if self._connect is not None:
            self._rolling_up = asyncio.ensure_future(self._roll_up(self._connect))

    async def _roll_up(self, connect: Callable[[], Client]) -> None:
        """Keep the hourly tables current. Repeats and several workers at once are harmless: it rewrites whole hours."""
        while True:
            await asyncio.sleep(ROLL_UP_EVERY_S)
            try:
                client = await asyncio.to_thread(connect)
                try:
                    await asyncio.to_thread(rollup, client, database_of(self.settings.clickhouse))
                finally:
                    await asyncio.to_thread(client.close)
            except (ClickHouseError, ConfigurationError) as error:
                logger.warning("roll-up failed (%s), next try in %d s", describe(error), ROLL_UP_EVERY_S)

    def _build(self, counts: dict[str, int]) -> faust.App:
        settings, topics = self.settings, self.settings.topics
        names = {role: topics.name(role) for role in ("tenant_log", "graph_windows", "drift_events", "dead_letter")}
        app = faust.App(
            settings.worker.group,
            **faust_broker(settings.kafka),
            broker_max_poll_records=settings.worker.max_poll_records,
            consumer_max_fetch_size=settings.worker.max_fetch_bytes,
            consumer_auto_offset_reset="earliest",
            stream_buffer_maxsize=WIRE_CHUNKS_BUFFERED,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            web_enabled=False,
            store="memory://",
            datadir=str(settings.worker.state_directory or Path()),
        )
        sink = KafkaGraphSink(
            self._acknowledged,
            partial(make_consumer, settings.kafka),
            drift_events=names["drift_events"],
            graph_windows=names["graph_windows"],
            dead_letter=names["dead_letter"],
            dead_letter_partitions=self._dead_letter_partitions,
        )
        checkpoints = Checkpoints(self._chunk_store(), topics.incarnation)

        def make_partition(partition: int) -> GraphPartition:
            return GraphPartition(
                partition,
                topics.incarnation,
                checkpoints,
                sink,
                self.clock,
                self.metrics,
                settings.worker.checkpoint_every_ms,
            )

        self.graph = GraphAgent(app, names["tenant_log"], make_partition)
        self.ingest = register_ingest(app, settings, counts, self._acknowledged, self.metrics, self.clock)
        batched = {names["tenant_log"], *self.ingest.topics}
        if self._connect is not None:
            register_sinks(
                app,
                self._connect,
                database_of(settings.clickhouse),
                self._on_poison,
                self.metrics,
                drift_events=names["drift_events"],
                graph_windows=names["graph_windows"],
            )
            batched |= {names["drift_events"], names["graph_windows"]}
        use_batching(app, batched, start_offset=self._start_offset, on_out_of_range=self._on_out_of_range)
        return app

    def _chunk_store(self) -> ChunkStore:
        folder = self.settings.worker.state_directory
        if folder is not None:
            return FileChunkStore(folder)
        consumer = partial(make_consumer, self.settings.kafka)
        return KafkaChunkStore(self.settings.topics.name("state"), self._acknowledged, consumer)

    async def _start_offset(self, tp: TP) -> int | None:
        """Say where an assigned partition goes on: the state's offset for `tenant-log`, ingest's rule for sources."""
        assert self.graph is not None and self.ingest is not None
        if tp.topic == self.graph.topic:
            return await self.graph.start_offset(tp)
        if tp.topic in self.ingest.topics:
            return await self.ingest.start_offset(tp)
        return None

    async def _on_out_of_range(self, tp: TP, wanted: int, start: int, end: int) -> None:
        """Ingest may accept the loss of a source's records; a hole in our own topics stops the worker."""
        assert self.ingest is not None and self.app is not None
        if tp.topic in self.ingest.topics:
            await self.ingest.on_out_of_range(tp, wanted, start, end)
            return
        await self.app.crash(
            LossDetected(
                f"{tp.topic}[{tp.partition}]: offset {wanted} is wanted, the log holds {start} to {end}; "
                "the topic was created anew or its retention is too short for the outage"
            )
        )

    async def _on_poison(self, poison: Poison) -> None:
        letter = DeadLetter(
            poison.topic, poison.partition, poison.offset, 0, Reason.UNSTORABLE, poison.detail, poison.value
        )
        logger.error("%s cannot be stored, kept as a dead letter: %s", letter.key, poison.detail)
        self.metrics.dead_letters.labels(poison.topic, letter.reason.value).inc()
        message = encode_dead_letter(letter)
        partition = stable_hash64(letter.key) % self._dead_letter_partitions
        await self._acknowledged.send(
            self.settings.topics.name("dead_letter"), partition, message.value, message.key, message.headers
        )

    async def run_until(self, stop: asyncio.Event) -> None:
        """Wait for ``stop``; raise what made the app crash, if it does.

        Raises:
            ConfigurationError: an agent stopped for a reason that only an operator can mend.
        """
        assert self.app is not None
        stopping = asyncio.ensure_future(stop.wait())
        crashed = asyncio.ensure_future(self.app.wait_until_stopped())
        await asyncio.wait({stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        crashed.cancel()
        if self.app.crashed and self.app.crash_reason is not None:
            raise ConfigurationError(str(self.app.crash_reason)) from self.app.crash_reason

    async def stop(self) -> None:
        """Stop fetching, store the state, commit, and close all clients."""
        if self._rolling_up is not None:
            self._rolling_up.cancel()
        try:
            if self.app is not None and not self.app.crashed and self.ingest and self.graph:
                async with asyncio.timeout(LAST_CHECKPOINT_S):
                    await self.ingest.close()
                    await self.graph.checkpoint_all()
        except TimeoutError:
            logger.warning("stopped without a last checkpoint: no acknowledgement for %d s", LAST_CHECKPOINT_S)
        finally:
            if self.app is not None:
                await self.app.stop()
            await self._producer.stop()
