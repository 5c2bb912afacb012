"""The sink agents on Faust: events, windows and audit records into ClickHouse, committed once they are in."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import faust
from clickhouse_connect.driver import Client
from faust.types import TP

from schemas.errors import ConfigurationError
from streams.batching import Chunk, CorruptBatch, batched_topic, commit
from streams.metrics import Metrics
from streams.sinks.rows import RowsOf, audit_rows, drift_rows, graph_rows
from streams.sinks.writer import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Message, PartitionWriter, Poison

logger = logging.getLogger(__name__)


class SinkAgent:
    """Writes one topic; a writer per partition keeps order, all share a client.

    Chunks wait in a queue of its own, bounded by the transport's budget: in Faust's, a sink whose ClickHouse is away or
    slow would hold up the messages of all other agents of the app.

    Attributes:
        topic: what it reads.
        stored: by partition, the offset up to which messages are in ClickHouse and committed, by this worker.
        is_busy: a chunk is being written.
    """

    def __init__(
        self,
        app: faust.App,
        topic: str,
        rows_of: RowsOf,
        connect: Callable[[], Client],
        database: str,
        on_poison: Callable[[Poison], Awaitable[None]],
        metrics: Metrics,
        incarnation: str = "",
    ) -> None:
        self._incarnation = incarnation
        self._app = app
        self._topic = topic
        self._rows_of = rows_of
        self._connect = connect
        self._client: Client | None = None
        self._database = database
        self._on_poison = on_poison
        self._metrics = metrics
        self._writers: dict[int, PartitionWriter] = {}
        self._is_finishing = False
        self.topic = topic
        self.stored: dict[int, int] = {}
        self.is_busy = False
        self._queue: deque[Chunk] = deque()
        self._task: asyncio.Task[None] | None = None
        app.agent(batched_topic(app, topic), name=f"sink-{topic}", concurrency=1)(self._run)
        app.on_partitions_assigned.connect(self._on_assigned)  # type: ignore[arg-type]

    async def _on_assigned(self, _app: Any, *_: Any, **__: Any) -> None:
        """Drop what waits: each partition of the new generation starts at its committed offset again."""
        while self._queue:
            self._queue.pop().release()

    def finish(self) -> None:
        """Begin no further chunk: the worker stops."""
        self._is_finishing = True

    async def _connected(self) -> Client:
        """Open the client; while ClickHouse is away, Kafka holds the data and detection goes on."""
        backoff_s = FIRST_BACKOFF_S
        while self._client is None:
            try:
                self._client = await asyncio.to_thread(self._connect)
            except ConfigurationError as error:
                self._metrics.sink_retries.labels(self._topic).inc()
                logger.error("%s waits: %s; again in %.0f s", self._topic, error, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
        return self._client

    async def _writer(self, partition: int) -> PartitionWriter:
        writer = self._writers.get(partition)
        if writer is None:
            client = await self._connected()
            writer = self._writers[partition] = PartitionWriter(
                client,
                self._database,
                self._topic,
                partition,
                self._rows_of,
                self._on_poison,
                self._metrics,
                incarnation=self._incarnation,
            )
        return writer

    async def _run(self, stream: Any) -> None:
        async for event in stream.events():
            chunk: Chunk = event.value
            if self._app.crashed or self._is_finishing:
                continue  # it must not go on, and commit, behind what failed
            chunk.keep()
            self._queue.append(chunk)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._work(), name=f"sink {self._topic}")

    async def _work(self) -> None:
        """Store what waits, in order; ends with the last, or with the first that cannot be stored."""
        while self._queue and not self._app.crashed and not self._is_finishing:
            chunk = self._queue.popleft()
            if chunk.generation != self._app.consumer_generation_id:
                chunk.release()  # its partition may be another worker's; if it is ours, it comes again
                continue
            self.is_busy = True
            try:
                await self._store(chunk)
            except Exception as error:
                logger.error("%s[%d]: the sink stops: %s", chunk.topic, chunk.partition, error)
                await self._app.crash(error)
                return
            finally:
                self.is_busy = False
                chunk.release()

    async def _store(self, chunk: Chunk) -> None:
        messages = [
            Message(offset, value)
            for offset, value in zip(chunk.offsets.tolist(), chunk.values, strict=True)
            if value is not None
        ]
        writer = await self._writer(chunk.partition)
        await writer.write(messages)
        if chunk.corrupt is not None:
            await self._on_poison(_poison_of(chunk, chunk.corrupt))
        at = {TP(chunk.topic, chunk.partition): chunk.next_offset}
        if await commit(self._app, at, generation=chunk.generation):
            self.stored[chunk.partition] = chunk.next_offset


def _poison_of(chunk: Chunk, corrupt: CorruptBatch) -> Poison:
    """A batch of our own topic that cannot be read: nothing of it can be stored, so it is kept and said."""
    detail = f"offsets {corrupt.first_offset} to {corrupt.last_offset}: {corrupt.detail}"
    return Poison(chunk.topic, chunk.partition, corrupt.first_offset, corrupt.raw, detail)


def register_sinks(
    app: faust.App,
    connect: Callable[[], Client],
    database: str,
    on_poison: Callable[[Poison], Awaitable[None]],
    metrics: Metrics,
    *,
    drift_events: str,
    graph_windows: str,
    audit: str,
    incarnation: str,
) -> list[SinkAgent]:
    """Register the sink agents on ``app``."""
    return [
        SinkAgent(app, drift_events, drift_rows, connect, database, on_poison, metrics, incarnation),
        SinkAgent(app, graph_windows, graph_rows, connect, database, on_poison, metrics, incarnation),
        SinkAgent(app, audit, audit_rows, connect, database, on_poison, metrics, incarnation),
    ]
