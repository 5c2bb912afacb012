"""Composition root of the stream worker: settings in, a started Faust app out. Embedded in the caller's event loop."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import faust
from aiokafka import TopicPartition
from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from faust.types import TP

from schemas.clickhouse_dsn import database_of
from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError, LossDetected
from schemas.ids import stable_hash64
from schemas.settings import Settings
from streams.batching import committed, pause_partitions, use_batching
from streams.batching.transport import BatchingConsumer
from streams.clock import Clock, SystemClock
from streams.dead_letters import encode_dead_letter
from streams.graph.checkpoints import Checkpoints, ChunkStore, FileChunkStore, KafkaChunkStore
from streams.graph.faust_agent import GraphAgent
from streams.graph.partition import GraphPartition
from streams.graph.sink import KafkaGraphSink
from streams.health import State
from streams.ingest.faust_agent import IngestAgents, register_ingest, tune_garbage_collection
from streams.kafka_clients import check_connection, faust_broker, make_consumer, make_producer
from streams.lag import GroupQuestions, LagWatch
from streams.metrics import Metrics
from streams.observe import WorkerStates
from streams.producing import AcknowledgedProducer
from streams.sinks.agents import register_sinks
from streams.sinks.faults import describe
from streams.sinks.rollup import rollup
from streams.sinks.writer import Poison
from streams.standing import Standing
from streams.topics import ensure_topics

logger = logging.getLogger(__name__)

WIRE_CHUNKS_BUFFERED = 4
"""Faust's stream buffer counts chunks here, not records: a few are enough and bound memory."""
ROLL_UP_EVERY_S = 600
LEAVING_SHARE = 0.2
"""Share of the grace that is kept for leaving the group; the rest is for finishing, storing and committing."""
SINKS_SHARE = 0.5
"""A ClickHouse that is away must not cost the whole grace: the chunk under way is inserted again by the next owner."""
SCORES_SHARE = 0.1
"""Share of the grace for storing what the graph model remembers; later owners can do without."""
BEAT_S = 1.0
POLL_S = 0.05


class Worker:
    """Ingest, graph and sink agents of one process.

    Args:
        connect: opens a ClickHouse client that may write; ``None`` leaves the sinks to other workers.
        broker_forgets: the broker's logs end with this process (embedded), so a stop waits until ClickHouse has all
            that was published: nobody could read it later.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Client] | None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        *,
        broker_forgets: bool = False,
    ) -> None:
        self.settings = settings
        self._broker_forgets = broker_forgets
        self.metrics = metrics or Metrics()
        self.clock = clock or SystemClock()
        self.standing = Standing(self.clock)
        self.beat_s = time.monotonic()
        self.counts: dict[str, int] = {}
        self._connect = connect
        self._producer = make_producer(settings.kafka)
        self._acknowledged = AcknowledgedProducer(self._producer, self.metrics)
        self._dead_letter_partitions = 1
        self._tasks: list[asyncio.Task[None]] = []
        self._is_running = False
        self.metrics.registry.register(WorkerStates(self.standing))

    @property
    def app(self) -> faust.App | None:
        """The Faust app, once started."""
        return self.standing.app

    @property
    def graph(self) -> GraphAgent | None:
        """The graph side, once started."""
        return self.standing.graph

    @property
    def ingest(self) -> IngestAgents | None:
        """The ingest side, once started."""
        return self.standing.ingest

    async def start(self) -> None:
        """Check the brokers, create missing topics, start all agents; return once partitions are assigned.

        Raises:
            ConfigurationError: brokers, topics or credentials are not as they should be.
        """
        self._begin(self._beat())
        await check_connection(self.settings.kafka)
        counts = self.counts = await ensure_topics(self.settings)
        self._dead_letter_partitions = counts[self.settings.topics.name("dead_letter")]
        await self._producer.start()
        app = self.standing.app = self._build(counts)
        await app.start()
        self._is_running = True
        tune_garbage_collection()
        if self._connect is not None:
            self._begin(self._roll_up(self._connect))
        assert self.standing.lag is not None
        self._begin(self.standing.lag.run())
        self._start_scores()
        if self.standing.state is State.STARTING:
            self.standing.state = State.READY

    def _start_scores(self) -> None:
        """Score closed windows by the graph model, where there is a folder of models and a ClickHouse to write to."""
        folder = self.settings.gnn.models_dir
        if folder is None or self._connect is None:
            return
        from streams.graph_scores.agent import GraphScores  # needs scipy, which a worker without models need not load

        self.standing.scores = GraphScores(self.settings, folder, self._connect, self.metrics)
        self.standing.scores.start()

    def must_store(self, ends: Mapping[tuple[str, int], int]) -> None:
        """Have a stop wait, where the broker forgets, for what others published up to these offsets by partition."""
        for at, end in ends.items():
            self._acknowledged.ends[at] = max(self._acknowledged.ends.get(at, 0), end)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _beat(self) -> None:
        """Show that the event loop turns."""
        while True:
            self.beat_s = time.monotonic()
            await asyncio.sleep(BEAT_S)

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
        names = {
            role: topics.name(role) for role in ("tenant_log", "graph_windows", "drift_events", "audit", "dead_letter")
        }
        app = faust.App(
            settings.worker.group,
            **faust_broker(settings.kafka),
            broker_max_poll_records=settings.worker.max_poll_records,
            consumer_max_fetch_size=settings.worker.max_fetch_bytes,
            consumer_auto_offset_reset="earliest",
            consumer_metadata_max_age_ms=settings.worker.metadata_every_ms,  # how soon a grown topic is noticed
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

        graph = self.standing.graph = GraphAgent(app, names["tenant_log"], make_partition)
        ingest = register_ingest(app, settings, counts, self._acknowledged, self.metrics, self.clock)
        self.standing.ingest = ingest
        batched = {graph.topic, *ingest.topics}
        if self._connect is not None:
            self.standing.sinks = register_sinks(
                app,
                self._connect,
                database_of(settings.clickhouse),
                self._on_poison,
                self.metrics,
                drift_events=names["drift_events"],
                graph_windows=names["graph_windows"],
                audit=names["audit"],
                incarnation=settings.topics.incarnation,
            )
            batched |= {names["drift_events"], names["graph_windows"], names["audit"]}
        app.on_partitions_assigned.connect(self._on_assigned)
        self.standing.lag = LagWatch(
            settings, counts[names["tenant_log"]], self._questions(app), self.clock, self._hold, self._take_counts
        )
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
        lag = self.standing.lag
        assert self.graph is not None and self.ingest is not None and lag is not None
        if tp.topic == self.graph.topic:
            return await self._recover(self.graph, tp)
        if tp.topic in self.ingest.topics:
            if tp.partition >= self.counts.get(tp.topic, 0):
                await lag.look_now()  # the topic has grown: lanes name the new member before its first record
            return await self.ingest.start_offset(tp)
        return None

    async def _recover(self, graph: GraphAgent, tp: TP) -> int | None:
        known = graph.partitions.get(tp.partition)
        started_s = time.monotonic()
        start = await graph.start_offset(tp)
        if known is None or not known.is_recovered:
            self.metrics.recovery.observe(time.monotonic() - started_s)
        return start

    async def _on_assigned(self, *_: Any, **__: Any) -> None:
        self.metrics.rebalances.inc()

    # -- lag and flow control --------------------------------------------------------------------------------------

    def _questions(self, app: faust.App) -> GroupQuestions:
        async def offsets(partitions: Iterable[TP], end: bool) -> Mapping[TP, int]:
            assert isinstance(app.consumer, BatchingConsumer)
            thread = app.consumer.thread
            client = thread._ensure_consumer()
            wanted = [TopicPartition(*tp) for tp in partitions]
            found = await thread.run(client.end_offsets if end else client.beginning_offsets, wanted)
            return {TP(*tp): offset for tp, offset in found.items()}

        return GroupQuestions(
            ends=lambda partitions: offsets(partitions, True),
            firsts=lambda partitions: offsets(partitions, False),
            committed=lambda partitions: committed(app, list(partitions)),
            assigned=lambda: app.consumer.assignment(),
        )

    def _hold(self, held: bool) -> None:
        assert self.ingest is not None
        self.ingest.worker.hold(held)

    def _take_counts(self, counts: Mapping[str, int]) -> None:
        """Declare the lanes anew if source topics have grown."""
        assert self.ingest is not None
        grown = {topic: count for topic, count in counts.items() if count > self.counts.get(topic, 0)}
        if not grown:
            return
        self.counts |= grown
        self.ingest.take_counts(self.counts)
        told = ", ".join(f"{topic} has {count} partitions" for topic, count in sorted(grown.items()))
        logger.warning("source topics have grown: %s", told)

    # -- trouble ---------------------------------------------------------------------------------------------------

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
            self.standing.state, self.standing.failure = State.FAILED, str(self.app.crash_reason)
            raise ConfigurationError(str(self.app.crash_reason)) from self.app.crash_reason

    async def stop(self) -> bool:
        """Stop fetching, finish what is under way, store the state, commit, leave the group, close all clients.

        Bounded by ``worker.grace_ms`` as far as an event loop can be: Faust waits for its threads without yielding, so
        a process that must end in time needs a watchdog beside it (deploy/serving.py).

        Returns:
            ``False`` if the grace was over first. Nothing is lost then: the next owner repeats what was not committed.
        """
        if self.standing.state is not State.FAILED:
            self.standing.state = State.DRAINING
        ends_s = asyncio.get_running_loop().time() + self.settings.worker.grace_ms / 1000
        for task in self._tasks:
            task.cancel()
        # Where the broker forgets, what is published meanwhile is scored first.
        scores = None if self._broker_forgets else asyncio.ensure_future(self._stop_scores())
        is_done = await self._within(self._drain, ends_s - LEAVING_SHARE * self.settings.worker.grace_ms / 1000)
        await (scores or self._stop_scores())
        if self.app is not None:
            is_done &= await self._within(self.app.stop, ends_s)
        is_done &= await self._within(self._producer.stop, ends_s)
        return is_done

    async def _within(self, work: Callable[[], Coroutine[Any, Any, None]], until_s: float) -> bool:
        try:
            async with asyncio.timeout_at(until_s):
                await work()
        except TimeoutError:
            return False
        except Exception as error:  # what fails now fails for the next owner too, who then says so by name
            logger.error("stopping: %s", f"{type(error).__name__}: {error}")
            return False
        return True

    async def _drain(self) -> None:
        if not self._is_running or self.app is None or self.app.crashed or self.ingest is None or self.graph is None:
            return
        to_sinks = {sink.topic for sink in self.standing.sinks} if self._broker_forgets else set()
        pause_partitions(self.app, {tp for tp in self.app.consumer.assignment() if tp.topic not in to_sinks})
        if not to_sinks:
            for sink in self.standing.sinks:
                sink.finish()
        await asyncio.gather(self.ingest.close(), self.graph.checkpoint_all())
        if to_sinks:
            while not (self._is_all_stored() and self._is_all_scored()):
                await asyncio.sleep(POLL_S)
            return
        ends_s = asyncio.get_running_loop().time() + SINKS_SHARE * self.settings.worker.grace_ms / 1000
        if not await self._within(self._sinks_finished, ends_s):
            logger.warning("ClickHouse has not taken what is under way: the next owner inserts it again")

    async def _stop_scores(self) -> None:
        """Bounded, and no part of what a stop must finish: scores can be had again."""
        if self.standing.scores is not None:
            await self.standing.scores.stop(SCORES_SHARE * self.settings.worker.grace_ms / 1000)

    def _is_all_scored(self) -> bool:
        """Say whether the graph model has taken what this process published, or is not to be waited for."""
        scores = self.standing.scores
        if scores is None:
            return True
        ends = {number: end for (topic, number), end in self._acknowledged.ends.items() if topic == scores.topic}
        return scores.is_failing or all(scores.taken.get(number, 0) >= end for number, end in ends.items())

    def _is_all_stored(self) -> bool:
        """Say whether ClickHouse has what this process published."""
        stored = {sink.topic: sink.stored for sink in self.standing.sinks}
        ends = self._acknowledged.ends.items()
        return all(stored[topic].get(partition, 0) >= end for (topic, partition), end in ends if topic in stored)

    async def _sinks_finished(self) -> None:
        while any(sink.is_busy for sink in self.standing.sinks):
            await asyncio.sleep(POLL_S)
