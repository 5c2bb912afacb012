"""One simulated worker process: the shell that Faust is in production, around the production ingest, graph and sinks.

It does at assignments, fetches and commits what streams/ingest/faust_agent.py, streams/graph/faust_agent.py,
streams/sinks/agents.py and streams/app.py do. A killed process runs no more code: its ports answer never again.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from streams.graph.checkpoints import Checkpoints, KafkaChunkStore
from streams.graph.partition import GraphPartition
from streams.graph.sink import KafkaGraphSink
from streams.ingest.agent import IngestOptions, IngestWorker
from streams.ingest.ports import FetchStatus
from streams.producing import AcknowledgedProducer
from streams.sinks.writer import Message, PartitionWriter, Poison
from tests.simulation.broker import Headers, TopicPartition
from tests.simulation.clickhouse import SimulatedClient
from tests.simulation.lineage import follow
from tests.simulation.loop import Died
from tests.simulation.scenario import IDLE_MS, MAIN, SECOND

if TYPE_CHECKING:
    from tests.simulation.simulator import Simulator

FLOWS, CONTROLS, LOG, STATE = "flows", "drift-controls", "tenant-log", "tenant-state"
MORE = "more-flows"
"""Source topic of the second lane, in schedules that have one."""
SOURCES_OF_ROWS = (FLOWS, MORE)
READ_BY_INGEST = (*SOURCES_OF_ROWS, CONTROLS)
EVENTS, WINDOWS, DEAD_LETTERS = "drift-events", "graph-windows", "flows-dead-letter"
SINK_TOPICS = (EVENTS, WINDOWS)
TICK_S = 4.0
STATEMENT_EVERY_MS = 18_000


class Silence:
    """Metrics that nobody reads."""

    def __getattr__(self, name: str) -> "Silence":
        setattr(self, name, self)  # the next one finds it
        return self

    def labels(self, *_: str) -> "Silence":
        """Return itself, whatever the labels."""
        return self

    def inc(self, amount: float = 1) -> None:
        """Count nothing."""

    set = observe = inc


SILENCE: Any = Silence()


@dataclass(slots=True, eq=False)
class Chunk:
    """What a fetch hands over; attributes as `streams.batching.Chunk`."""

    topic: str
    partition: int
    first_offset: int
    next_offset: int
    offsets: npt.NDArray[np.int64]
    values: list[bytes | None]
    keys: list[bytes | None]
    headers: list[Headers]
    timestamps: list[int]
    timestamp_type: int
    highwater: int
    generation: int
    corrupt: Any = None

    def release(self) -> None:
        """Nothing is counted here."""


@dataclass(slots=True)
class Fetch:
    """Where fetching of an assigned partition stands."""

    position: int = -1
    highwater: int | None = None
    end_reached: bool = False
    fetched_s: float | None = None
    is_due: bool = False
    is_out_of_range: bool = False


@dataclass(slots=True)
class _Metadata:
    offset: int


class _Producer:
    """What `AcknowledgedProducer` uses of an aiokafka producer."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    async def send_and_wait(
        self, topic: str, *, value: bytes | None, key: bytes | None, partition: int, headers: Sequence[Any]
    ) -> _Metadata:
        return await self._process.produce((topic, partition), key, value, tuple(headers))


class _Consumer:
    """What `read_partition` uses of an aiokafka consumer: everything is there at once."""

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._position = 0

    async def start(self) -> None:
        await self._process.alive_only()

    async def stop(self) -> None:
        pass

    async def beginning_offsets(self, tps: list[Any]) -> dict[Any, int]:
        return {tp: self._process.sim.broker.logs[tp.topic, tp.partition].start for tp in tps}

    async def end_offsets(self, tps: list[Any]) -> dict[Any, int]:
        await self._process.alive_only()
        return {tp: self._process.sim.broker.logs[tp.topic, tp.partition].end for tp in tps}

    def assign(self, tps: list[Any]) -> None:
        pass

    def seek(self, tp: Any, position: int) -> None:
        self._position = position

    async def position(self, tp: Any) -> int:
        return self._position

    async def getmany(self, tp: Any, timeout_ms: int) -> dict[Any, list[Any]]:
        records = self._process.sim.broker.logs[tp.topic, tp.partition].read(self._position, 1 << 30)
        self._position += len(records)
        return {tp: records}


class FolderStore:
    """The files of an embedded installation: they outlive the broker."""

    def __init__(self, process: "Process", files: dict[int, dict[str, bytes]]) -> None:
        self._process = process
        self._files = files

    async def put(self, partition: int, key: str, value: bytes) -> None:
        """Store a value; see `ChunkStore`."""
        await self._process.write_file(self._files.setdefault(partition, {}), key, value)

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        """Remove values; see `ChunkStore`."""
        for key in keys:
            await self._process.write_file(self._files.setdefault(partition, {}), key, None)

    async def read_all(self, partition: int) -> dict[str, bytes]:
        """Return all values; see `ChunkStore`."""
        await self._process.alive_only()
        return dict(self._files.get(partition, {}))


class Process:
    """A worker process from its start to its death."""

    def __init__(self, sim: "Simulator", number: int, skew_ms: int, *, accept_loss: bool) -> None:
        self.sim = sim
        self.number = number
        self.name = f"w{number}.{sim.starts}"
        self.alive = True
        self.generation = -1
        self.skew_ms = skew_ms
        self.fetches: dict[TopicPartition, Fetch] = {}
        self.held: set[TopicPartition] = set()
        self.graph: dict[int, GraphPartition] = {}
        self.errors: list[Exception] = []
        self._owned_in: dict[int, int] = {}
        self._graph_queues: dict[int, asyncio.Queue[Chunk]] = {}
        self._graph_tasks: dict[int, asyncio.Task[None]] = {}
        self._sink_queues: dict[str, asyncio.Queue[Chunk]] = {topic: asyncio.Queue() for topic in SINK_TOPICS}
        self._writers: dict[TopicPartition, PartitionWriter] = {}
        self._assigning = asyncio.Lock()
        self._build(accept_loss)

    def _build(self, accept_loss: bool) -> None:
        sim, variant = self.sim, self.sim.variant
        metrics = SILENCE
        self._metrics = metrics
        producer = AcknowledgedProducer(_Producer(self), metrics)
        self.acknowledged = producer
        store: Any = FolderStore(self, sim.files)
        if sim.scenario.incarnation_s is None:
            store = KafkaChunkStore(STATE, producer, lambda: _Consumer(self))
        self.checkpoints: Checkpoints = variant.checkpoints(store, sim.incarnation)
        self._sink = KafkaGraphSink(
            producer,
            lambda: _Consumer(self),
            drift_events=EVENTS,
            graph_windows=WINDOWS,
            dead_letter=DEAD_LETTERS,
            dead_letter_partitions=1,
        )
        options = IngestOptions(
            worker=self.name,
            log_topic=LOG,
            targets=sim.partitions,
            dead_letter_topic=DEAD_LETTERS,
            dead_letter_partitions=1,
            statement_every_ms=STATEMENT_EVERY_MS,
            idle_ms={MAIN: IDLE_MS, SECOND: IDLE_MS},
            accept_loss=accept_loss,
        )
        self.ingest: IngestWorker = variant.ingest(
            options,
            variant.readers(sim),
            producer=producer,
            commits=self,
            pauses=self,
            status=self,
            clock=self,
            metrics=metrics,
        )
        stop = self.ingest._stop

        def note_stop(source: Any, error: Exception) -> None:
            self.errors.append(error)
            sim.report(self, f"stops {source.topic}[{source.partition}]", error)
            stop(source, error)

        self.ingest._stop = note_stop  # type: ignore[method-assign]

    def start(self) -> None:
        """Begin to tick and to write."""
        self.sim.loop.spawn(self._tick())
        for topic in SINK_TOPICS:
            self.sim.loop.spawn(self._write_sink(topic))

    # -- life and death --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Die at once: nothing of this process runs any more."""
        self.alive = False
        self.sim.on_death(self)

    async def alive_only(self) -> None:
        """Return, unless the process is dead: then never."""
        if not self.alive:
            await self.sim.loop.create_future()

    def now_ms(self) -> int:
        """Return the worker's clock; see `Clock`."""
        return self.sim.now_ms() + self.skew_ms

    def fail(self, error: Exception) -> None:
        """Crash the application, as an agent that raises does."""
        if self.alive:
            self.errors.append(error)
            self.sim.report(self, "crashes", error)
            self.kill()

    # -- effects ---------------------------------------------------------------------------------------------------

    async def produce(self, tp: TopicPartition, key: bytes | None, value: bytes | None, headers: Headers) -> _Metadata:
        """Produce one record: it lands, fails, lands unseen or lands late, as the schedule has it."""
        sim = self.sim
        future: asyncio.Future[_Metadata] = sim.loop.create_future()
        if not self.alive:
            return await future
        side = sim.next_effect(self, "produce", tp)
        if side == "before":
            self.kill()
            return await future
        outcome, delay_s = sim.produce_outcome(tp)
        if side == "wire":
            sim.loop.call_later(delay_s, sim.land, tp, key, value, headers)
            self.kill()
            return await future
        sim.loop.call_later(delay_s, self._answer, future, outcome, side, (tp, key, value, headers))
        return await future

    def _answer(self, future: asyncio.Future[_Metadata], outcome: str, side: str, record: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if future.done():  # whoever waited was cancelled; the request was under way
            if outcome != "fail":
                self.sim.land(*record)
            return
        if outcome == "fail":
            future.set_exception(KafkaConnectionError("simulated: no broker"))
            return
        if outcome == "late":
            self.sim.loop.call_later(self.sim.rng.random() * 12.0, self.sim.land, *record)
            future.set_exception(KafkaTimeoutError("simulated: no answer"))
            return
        offset = self.sim.land(*record)
        if side == "after":
            self.kill()
        elif outcome == "timeout":
            future.set_exception(KafkaTimeoutError("simulated: the answer was lost"))
        else:
            future.set_result(_Metadata(offset))

    async def write_file(self, folder: dict[str, bytes], key: str, value: bytes | None) -> None:
        """Write or remove one file."""
        await self.alive_only()
        side = self.sim.next_effect(self, "file", (key, 0))
        if side in ("before", "wire"):
            self.kill()
            await self.alive_only()
        if value is None:
            folder.pop(key, None)
        else:
            folder[key] = value
        if side:
            self.kill()
            await self.alive_only()

    def insert(self, table: str, arrow: Any, token: str) -> None:
        """Insert into the simulated ClickHouse: it may fail before or after it took hold, or kill us."""
        sim = self.sim
        if not self.alive:
            raise Died
        side = sim.next_effect(self, "insert", (table, 0))
        if side == "before":
            self.kill()
            raise Died
        sim.insert(table, arrow, token, lambda: self._die_after(side))

    def _die_after(self, side: str) -> None:
        if side:
            self.kill()
            raise Died

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit as this process's generation; see `CommitPort`."""
        return await self.commit_as(self.generation, offsets)

    async def commit_as(self, generation: int, offsets: Mapping[TopicPartition, int]) -> bool:
        """Commit offsets of a generation."""
        await self.alive_only()
        side = self.sim.next_effect(self, "commit", next(iter(offsets)))
        if side == "before":
            self.kill()
            await self.alive_only()
        taken = self.sim.broker.commit(str(self.number), generation, dict(offsets))
        if side:
            self.kill()
            await self.alive_only()
        return taken

    # -- flow control ----------------------------------------------------------------------------------------------

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See `PausePort`."""
        self.held.update(partitions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See `PausePort`."""
        self.held.difference_update(partitions)
        for tp in self.fetches:
            self.fetch_soon(tp)

    def status(self) -> dict[TopicPartition, FetchStatus]:
        """See `StatusPort`."""
        now_s = self.sim.loop.now_s
        return {
            tp: FetchStatus(
                fetch.highwater,
                fetch.end_reached,
                None if fetch.fetched_s is None else int((now_s - fetch.fetched_s) * 1000),
            )
            for tp, fetch in self.fetches.items()
            if tp[0] in READ_BY_INGEST
        }

    # -- fetching --------------------------------------------------------------------------------------------------

    def fetch_soon(self, tp: TopicPartition) -> None:
        """Have a partition fetched after a while, if it is assigned and nothing is on its way."""
        fetch = self.fetches.get(tp)
        if fetch is None or fetch.is_due or fetch.position < 0 or fetch.is_out_of_range:
            return
        fetch.is_due = True
        self.sim.loop.call_later(self.sim.fetch_delay_s(tp), self._fetch, tp, fetch)

    def _fetch(self, tp: TopicPartition, fetch: Fetch) -> None:
        fetch.is_due = False
        if not self.alive or self.fetches.get(tp) is not fetch or tp in self.held:
            return
        sim = self.sim
        if sim.is_stalled(tp):
            fetch.is_due = True
            sim.loop.call_later(1.0, self._fetch, tp, fetch)
            return
        log = sim.broker.logs[tp]
        if not log.start <= fetch.position <= log.end:
            fetch.is_out_of_range = True
            sim.loop.spawn(self._out_of_range(tp, fetch, fetch.position, log.start, log.end))
            return
        fetch.fetched_s, fetch.highwater = sim.loop.now_s, log.end
        fetch.end_reached = fetch.position == log.end
        if fetch.end_reached:
            return
        records = log.read(fetch.position, sim.chunk_size(tp))
        first = fetch.position
        fetch.position += len(records)
        chunk = Chunk(
            tp[0],
            tp[1],
            first,
            fetch.position,
            np.arange(first, fetch.position, dtype=np.int64),
            [record.value for record in records],
            [record.key for record in records],
            [record.headers for record in records],
            [record.timestamp_ms for record in records],
            int(tp[0] in SOURCES_OF_ROWS and sim.scenario.append_time),
            log.end,
            self.generation,
        )
        self._hand_over(chunk)
        if fetch.position < log.end:
            self.fetch_soon(tp)

    def poll_empty(self) -> None:
        """Answer the long polls of partitions that have nothing to give: their end is reached."""
        for tp, fetch in self.fetches.items():
            at_end = tp[0] in READ_BY_INGEST and fetch.position == self.sim.broker.logs[tp].end
            if at_end and tp not in self.held and not self.sim.is_stalled(tp):
                fetch.fetched_s, fetch.highwater, fetch.end_reached = self.sim.loop.now_s, fetch.position, True

    def _hand_over(self, chunk: Chunk) -> None:
        if chunk.topic in READ_BY_INGEST:
            self.ingest.submit(chunk)
        elif chunk.topic == LOG:
            if chunk.partition in self._graph_queues:
                self._graph_queues[chunk.partition].put_nowait(chunk)
        else:
            self._sink_queues[chunk.topic].put_nowait(chunk)

    async def _out_of_range(self, tp: TopicPartition, fetch: Fetch, wanted: int, start: int, end: int) -> None:
        if tp[0] not in READ_BY_INGEST:
            raise AssertionError(f"only sources lose records here, not {tp}")
        offset = await self.ingest.accept_loss(tp[0], tp[1], wanted, start, end)
        if offset is not None and self.fetches.get(tp) is fetch:
            fetch.position, fetch.is_out_of_range = offset, False
            self.fetch_soon(tp)

    # -- assignment ------------------------------------------------------------------------------------------------

    async def assign(self, generation: int, assigned: frozenset[TopicPartition]) -> None:
        """Take a new assignment: revoke what is gone, find where each partition goes on, fetch from there."""
        async with self._assigning:
            if not self.alive or self.sim.is_stopping or generation != self.sim.broker.generation:
                return
            self.generation = generation
            self.fetches = {tp: Fetch() for tp in sorted(assigned)}
            await self.ingest.revoke([key for key in self.ingest.sources() if key not in assigned])
            for partition in [p for p in self.graph if (LOG, p) not in assigned]:
                await self._stop_graph(partition)
                del self.graph[partition]
            fetches = self.fetches
            try:
                starts = await asyncio.gather(*(self._start_offset(tp) for tp in fetches))
            except Exception as error:
                self.fail(error)
                return
            if not self.alive or self.fetches is not fetches:
                return
            for (tp, fetch), start in zip(fetches.items(), starts, strict=True):
                fetch.position = start
                self.fetch_soon(tp)

    async def _start_offset(self, tp: TopicPartition) -> int:
        log = self.sim.broker.logs[tp]
        if tp[0] == LOG:
            start = await self._start_graph(tp[1])
            return log.start if start is None else start
        committed = self.sim.broker.committed.get(tp)
        if tp[0] not in READ_BY_INGEST:
            return log.start if committed is None else committed
        first = log.start
        if committed is None and tp[0] in SOURCES_OF_ROWS and await self.commit({tp: first}):
            committed = first
        return await self.ingest.start(tp[0], tp[1], committed, first)

    async def _start_graph(self, number: int) -> int | None:
        if self.generation - self._owned_in.get(number, self.generation) > 1:
            await self._stop_graph(number)  # another worker may have owned it meanwhile
            self.graph.pop(number, None)
        self._owned_in[number] = self.generation
        partition = self.graph.get(number)
        if partition is None:
            partition = self.graph[number] = self.sim.variant.partition(
                number,
                self.sim.incarnation,
                self.checkpoints,
                self._sink,
                self,
                self._metrics,
                self.sim.scenario.checkpoint_every_ms,
            )
            self.sim.lineages.setdefault(number, []).append(follow(partition))
        if partition.is_recovered:
            start = await partition.recover()
        else:
            start = await partition.recover(self.sim.broker.committed.get((LOG, number), 0) - 1)
        if number not in self._graph_tasks:
            queue = self._graph_queues[number] = asyncio.Queue()
            self._graph_tasks[number] = asyncio.create_task(self._work(partition, queue))
        return start

    async def _stop_graph(self, number: int) -> None:
        task = self._graph_tasks.pop(number, None)
        self._graph_queues.pop(number, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- work ------------------------------------------------------------------------------------------------------

    async def _work(self, partition: GraphPartition, queue: asyncio.Queue[Chunk]) -> None:
        while self.alive:
            chunk = await queue.get()
            try:
                offset = await partition.apply(chunk.offsets.tolist(), chunk.values)
                if offset is not None and await self.commit({(LOG, chunk.partition): offset}):
                    await partition.prune()
            except Exception as error:
                self.fail(error)
                return

    async def _write_sink(self, topic: str) -> None:
        queue = self._sink_queues[topic]
        while self.alive:
            chunk = await queue.get()
            if chunk.generation != self.generation:
                continue  # the transport drops what an older generation fetched
            messages = [
                Message(offset, value)
                for offset, value in zip(chunk.offsets.tolist(), chunk.values, strict=True)
                if value is not None
            ]
            try:
                await self._writer((topic, chunk.partition)).write(messages)
            except Exception as error:
                self.fail(error)
                return
            await self.commit_as(chunk.generation, {(topic, chunk.partition): chunk.next_offset})

    def _writer(self, tp: TopicPartition) -> PartitionWriter:
        writer = self._writers.get(tp)
        if writer is None:
            client: Any = SimulatedClient(self.insert)
            writer = self._writers[tp] = self.sim.variant.writer(
                client,
                "drift",
                tp[0],
                tp[1],
                self.sim.rows_of(tp[0]),
                self._on_poison,
                self._metrics,
                jitter=self.sim.rng.random,
            )
        return writer

    async def _on_poison(self, poison: Poison) -> None:
        raise AssertionError(f"no message of ours is poison: {poison.detail}")

    async def _tick(self) -> None:
        await asyncio.sleep(TICK_S * self.sim.rng.random())
        while self.alive and not self.sim.is_settled:
            self.poll_empty()
            try:
                await self.ingest.tick()
            except Exception as error:
                self.errors.append(error)
            await asyncio.sleep(TICK_S)

    async def checkpoint_all(self) -> None:
        """Stop as SIGTERM does: commit, store every partition's state."""
        await self._assigning.acquire()  # once an assignment under way is through, and no more after it
        await self.ingest.finish()
        await self.ingest.close()
        for number, partition in list(self.graph.items()):
            if not partition.is_recovered:
                continue
            async with partition.turn:
                await self._stop_graph(number)
            offset = await partition.checkpoint()
            if offset is not None and await self.commit({(LOG, number): offset}):
                await partition.prune()
