"""Ingest as Faust agents over the batching transport: one per source topic, all feeding one `IngestWorker`."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

import faust
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import TopicPartition
from faust.types import TP

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from schemas.tenant_log import LaneConfig, Member
from streams.batching import (
    batched_topic,
    commit,
    committed,
    partition_status,
    pause_partitions,
    resume_partitions,
    seek,
)
from streams.batching.transport import BatchingConsumer
from streams.clock import Clock
from streams.ingest.agent import IngestOptions, IngestWorker
from streams.ingest.flood import rule_of
from streams.ingest.lanes import declare_lane, source_name
from streams.ingest.ports import FetchStatus, ProducerPort, SourcePartition
from streams.ingest.readers import ControlReader, FlowReader, ReplayReader, SourceReader
from streams.metrics import Metrics

log = logging.getLogger(__name__)

TICK_S = 0.1
REPLAY_MAX_MESSAGE_BYTES = 8 * 1024 * 1024


class _Kafka:
    """The worker's ports, on the app's consumer."""

    def __init__(self, app: faust.App, topics: frozenset[str]) -> None:
        self._app = app
        self._topics = topics

    async def commit(self, offsets: Mapping[SourcePartition, int]) -> bool:
        try:
            return await commit(self._app, {TP(*key): offset for key, offset in offsets.items()})
        except KafkaError as error:
            log.warning("offsets of %d source partitions are not committed yet: %s", len(offsets), error)
            return False

    def pause(self, partitions: Iterable[SourcePartition]) -> None:
        pause_partitions(self._app, [TP(*key) for key in partitions])

    def resume(self, partitions: Iterable[SourcePartition]) -> None:
        resume_partitions(self._app, [TP(*key) for key in partitions])

    async def seek(self, partition: SourcePartition, offset: int) -> None:
        with contextlib.suppress(IllegalStateError):  # assigned elsewhere meanwhile
            await seek(self._app, TP(*partition), offset)

    def status(self) -> dict[SourcePartition, FetchStatus]:
        now_ms = int(time.monotonic() * 1000)  # the clock that the transport stamps fetches with
        return {
            (tp.topic, tp.partition): FetchStatus(
                highwater=status.highwater,
                end_reached=status.end_reached,
                fetched_ms_ago=None if status.last_fetch_ms is None else now_ms - status.last_fetch_ms,
            )
            for tp, status in partition_status(self._app).items()
            if tp.topic in self._topics
        }


class IngestAgents:
    """The ingest side of a worker. `topics`, `start_offset` and `on_out_of_range` belong into the app's `use_batching`.

    Attributes:
        topics: source topics, the replay topic and the controls.
        worker: what does the work.
    """

    def __init__(
        self,
        app: faust.App,
        settings: Settings,
        counts: Mapping[str, int],
        producer: ProducerPort,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._app = app
        self._settings = settings
        self._latest = {flow.topic for flow in settings.flows if flow.start == "latest"}
        self._lanes: dict[str, LaneConfig] = {}
        self._starts: tuple[int, dict[TP, tuple[int | None, int]]] | None = None
        self._starting = asyncio.Lock()
        self._readers = self._make_readers(counts)
        self.topics = frozenset(self._readers)
        topics = settings.topics
        kafka = _Kafka(app, self.topics)
        self.worker = IngestWorker(
            IngestOptions(
                worker=f"{socket.gethostname()}:{os.getpid()}",
                log_topic=topics.name("tenant_log"),
                targets=counts[topics.name("tenant_log")],
                dead_letter_topic=topics.name("dead_letter"),
                dead_letter_partitions=counts[topics.name("dead_letter")],
                statement_every_ms=settings.worker.statement_every_ms,
                idle_ms={lane.name: lane.idle_ms for lane in settings.lanes},
                accept_loss=settings.worker.accept_loss,
                floods={flow.topic: rule_of(flow) for flow in settings.flows},
            ),
            self._readers,
            producer=producer,
            commits=kafka,
            pauses=kafka,
            status=kafka,
            seeks=kafka,
            clock=clock,
            metrics=metrics,
        )
        for topic in sorted(self.topics):
            app.agent(batched_topic(app, topic), name=f"ingest-{topic}", concurrency=1)(self._take)
        app.on_partitions_assigned.connect(self._on_assigned)  # type: ignore[arg-type]
        app.task(self._tick)

    def _make_readers(self, counts: Mapping[str, int]) -> dict[str, SourceReader]:
        settings, topics = self._settings, self._settings.topics
        targets, replay = counts[topics.name("tenant_log")], topics.name("replay")
        flows = [flow for flow in settings.flows if flow.topic != replay]
        self._lanes.update(
            (lane.name, declare_lane(lane, flows, counts, topics.incarnation)) for lane in settings.lanes
        )
        sources: dict[str, FlowReader] = {}
        for flow in flows:
            if flow.topic in sources:
                raise ConfigurationError(f"flows: topic {flow.topic!r} is configured twice")
            source = source_name(flow.topic, topics.incarnation)
            sources[flow.topic] = FlowReader(flow, source, self._lanes[flow.lane], targets)
        readers: dict[str, SourceReader] = {**sources}
        member = Member(source_name(replay, topics.incarnation), counts[replay])
        readers[replay] = ReplayReader(replay, member, lambda: self._lanes, targets, REPLAY_MAX_MESSAGE_BYTES, sources)
        controls = topics.name("drift_controls")
        readers[controls] = ControlReader(source_name(controls, topics.incarnation), targets)
        return readers

    async def start_offset(self, tp: TP) -> int:
        """Return where a partition of a new assignment goes on; a hook of the batching transport."""
        generation = self._app.consumer_generation_id
        async with self._starting:  # asked for all partitions at once: the first one finds out for all
            if self._starts is None or self._starts[0] != generation or tp not in self._starts[1]:
                self._starts = generation, await self._find_starts(tp)
            found, first = self._starts[1].pop(tp)
        return await self.worker.start(tp.topic, tp.partition, found, first)

    async def _find_starts(self, wanted: TP) -> dict[TP, tuple[int | None, int]]:
        """Return (committed offset, offset to start from without one) of all our partitions, in a few requests."""
        assigned = {tp for tp in self._app.consumer.assignment() if tp.topic in self.topics} | {wanted}
        found = await committed(self._app, assigned)
        new = [TopicPartition(*tp) for tp, offset in found.items() if offset is None]
        latest = [tp for tp in new if tp.topic in self._latest]
        earliest = [tp for tp in new if tp.topic not in self._latest]
        thread = cast(BatchingConsumer, self._app.consumer).thread
        consumer = thread._ensure_consumer()
        firsts: dict[TopicPartition, int] = {}
        if earliest:
            firsts.update(await thread.run(consumer.beginning_offsets, earliest))
        if latest:
            firsts.update(await thread.run(consumer.end_offsets, latest))
        keeping = {
            tp: firsts[TopicPartition(*tp)] for tp, offset in found.items() if offset is None and self._keeps(tp)
        }
        if keeping and await commit(self._app, keeping):
            found.update(keeping)
        return {tp: (offset, firsts.get(TopicPartition(*tp), 0)) for tp, offset in found.items()}

    def _keeps(self, tp: TP) -> bool:
        return self._readers[tp.topic].commits

    async def on_out_of_range(self, tp: TP, wanted: int, start: int, end: int) -> None:
        """Stop a partition whose log has lost what is wanted, or go on if the operator accepts it; a hook likewise."""
        offset = await self.worker.accept_loss(tp.topic, tp.partition, wanted, start, end)
        if offset is not None:
            with contextlib.suppress(IllegalStateError):  # assigned elsewhere meanwhile
                await seek(self._app, tp, offset)

    async def _take(self, stream: Any) -> None:
        async for chunk in stream:
            chunk.keep()  # it counts in the transport's budget until the worker is done with it
            self.worker.submit(chunk)

    async def _on_assigned(self, _app: Any, *arguments: Any, **_: Any) -> None:
        assigned: set[TP] = arguments[0]
        mine = {(tp.topic, tp.partition) for tp in assigned if tp.topic in self.topics}
        await self.worker.revoke([key for key in self.worker.sources() if key not in mine])

    async def _tick(self) -> None:
        while not self._app.should_stop:
            try:
                await self.worker.tick()
            except Exception:
                log.exception("commits and statements are late")  # tried again with the next tick
            await asyncio.sleep(TICK_S)

    def take_counts(self, counts: Mapping[str, int]) -> bool:
        """Declare lanes with the partition counts that source topics have now; say whether any has changed."""
        flows = [flow for flow in self._settings.flows if flow.topic != self._settings.topics.name("replay")]
        lanes = {
            lane.name: declare_lane(lane, flows, counts, self._settings.topics.incarnation)
            for lane in self._settings.lanes
        }
        if lanes == self._lanes:
            return False
        self._lanes.update(lanes)
        for flow in flows:
            reader = self._readers[flow.topic]
            assert isinstance(reader, FlowReader)
            reader.lane = self._lanes[flow.lane]
        self.worker.redeclare()
        return True

    async def close(self) -> None:
        """Finish what is under way, commit what is acknowledged and stop; before the app stops."""
        await self.worker.finish()
        await self.worker.close()


def tune_garbage_collection() -> None:
    """Make collections rare, for a process that reads millions of records: call it once, when it has started.

    Every fetched record brings a list of headers that the collector counts; with Python's thresholds it looks through
    the whole heap several times a second and finds nothing, for hardly anything here is cyclic.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def register_ingest(
    app: faust.App,
    settings: Settings,
    counts: Mapping[str, int],
    producer: ProducerPort,
    metrics: Metrics,
    clock: Clock,
) -> IngestAgents:
    """Put the ingest agents on an app that has not started.

    Args:
        counts: partition counts of all our topics and source topics.

    Raises:
        ConfigurationError: a topic's format or tenant rule cannot be used.
    """
    return IngestAgents(app, settings, counts, producer, metrics, clock)
