"""The ingest worker: one source partition at a time, from fetched chunks to acknowledged records and committed offsets.

Kafka, clock and metrics come in through ports (ports.py), so a simulator can drive it. Within a source partition
everything is sequential: encode, dead letters acknowledged, every target's records acknowledged one after the other,
then the offset may be committed. Source partitions, and targets, go on side by side.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from models.graph.logic import LOGIC_VERSION
from schemas.dead_letter import DeadLetter
from schemas.errors import LossDetected
from schemas.ids import NO_POSITION, stable_hash64
from schemas.tenant_log import LogRecord, Progress, encode_record
from streams.clock import Clock
from streams.dead_letters import encode_dead_letter
from streams.ingest.chain import position_before
from streams.ingest.chunk import SourceChunk
from streams.ingest.flood import Flood, FloodRule
from streams.ingest.owned import LaneClock, OwnedPartition
from streams.ingest.ports import (
    CommitPort,
    FetchedChunk,
    FetchStatus,
    PausePort,
    ProducerPort,
    SeekPort,
    SourcePartition,
    StatusPort,
)
from streams.ingest.readers import Encoded, SourceReader
from streams.ingest.statements import statements
from streams.metrics import Metrics
from streams.result import short

log = logging.getLogger(__name__)

COMMIT_EVERY_MS = 500
QUEUED_CHUNKS = 2
"""Chunks of a source partition that may wait before fetching it is paused; a few more may be under way by then."""
DEAD_LETTERS_AT_ONCE = 500
LOOK_AGAIN_S = 0.1


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How a worker writes.

    Attributes:
        worker: its name in records.
        log_topic, targets: `tenant-log` and its partition count.
        dead_letter_topic, dead_letter_partitions: where dead letters go.
        statement_every_ms: at least so often each lane is stated to each target.
        idle_ms: by live lane, how long a clock must stand still at the end of its log.
        accept_loss: the operator accepts records that were deleted unread.
        floods: by source topic, when a partition is paused for its dead letters; topics without a rule never are.
    """

    worker: str
    log_topic: str
    targets: int
    dead_letter_topic: str
    dead_letter_partitions: int
    statement_every_ms: int
    idle_ms: Mapping[str, int]
    accept_loss: bool = False
    floods: Mapping[str, FloodRule] = field(default_factory=dict)


class IngestWorker:
    """Feeds `tenant-log` from the source partitions assigned to this process.

    Call `start` for each partition of a new assignment (it says where to read from), `submit` for each chunk in order,
    `tick` several times a second, `revoke` for partitions that are gone, `close` at the end. One event loop.
    """

    def __init__(
        self,
        options: IngestOptions,
        readers: Mapping[str, SourceReader],
        *,
        producer: ProducerPort,
        commits: CommitPort,
        pauses: PausePort,
        status: StatusPort,
        clock: Clock,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        seeks: SeekPort | None = None,
    ) -> None:
        self._options = options
        self._seeks = seeks
        self._readers = readers
        self._producer = producer
        self._commits = commits
        self._pauses = pauses
        self._status = status
        self._clock = clock
        self._metrics = metrics
        self._sleep = sleep
        self._sources: dict[SourcePartition, OwnedPartition] = {}
        self._paused: set[SourcePartition] = set()
        self._retried_at_ms: dict[SourcePartition, int] = {}
        self._is_held = self._is_finishing = False
        self._committed_at_ms = self._stated_at_ms = 0
        self._commit_lock = asyncio.Lock()
        self._statements: dict[tuple[str, int, int], asyncio.Task[None]] = {}

    # -- assignment ------------------------------------------------------------------------------------------------

    async def start(self, topic: str, partition: int, committed: int | None, first: int) -> int:
        """Take over a source partition and return the offset to read it from.

        A partition that was ours before goes on from what was acknowledged; chunks fetched before are forgotten.

        Args:
            committed: the group's offset, ``None`` if there is none.
            first: where to start without one; committed before any record is written, so that a later owner starts
                there too.
        """
        reader = self._readers[topic]
        known = self._sources.get((topic, partition))
        await self._let_go([(topic, partition)])
        at = first if committed is None or not reader.commits else committed
        position = position_before(at) if reader.commits else NO_POSITION
        lanes: dict[tuple[str, int], LaneClock] = {}
        if known is not None and reader.commits and known.next_offset > at:
            at, position = known.next_offset, known.position
        if known is not None:
            lanes = known.lanes
        if reader.commits and committed is None and await self._commits.commit({(topic, partition): at}):
            committed = at
        source = OwnedPartition(
            topic=topic,
            partition=partition,
            reader=reader,
            position=position,
            next_offset=at,
            expected=at,
            committed=committed,
            started_at_ms=self._clock.now_ms(),
            lanes=lanes,
        )
        if known is not None:
            source.flood = known.flood
        source.declare()
        self._sources[source.key] = source
        if source.key in self._paused:
            self._switch(source.key)
        source.task = asyncio.create_task(self._work(source), name=f"ingest {topic}[{partition}]")
        return at

    def redeclare(self) -> None:
        """State lanes as the readers have them now: their members have changed."""
        for source in self._sources.values():
            source.declare()

    def sources(self) -> list[SourcePartition]:
        """Return the source partitions taken over."""
        return list(self._sources)

    def lags(self, ends: Mapping[SourcePartition, int] | None = None) -> dict[SourcePartition, int]:
        """Return how many messages of each source partition are not yet acknowledged. Any thread.

        Args:
            ends: ends of logs asked for lately: while fetching is held, the last fetch tells too little.
        """
        status = self._status.status()
        found = {}
        for key, source in list(self._sources.items()):
            known = [source.highwater, source.next_offset, (ends or {}).get(key, -1)]
            fetch = status.get(key)
            if fetch is not None and fetch.highwater is not None:
                known.append(fetch.highwater)
            found[key] = max(known) - source.next_offset
        return found

    def idle_reasons(self) -> dict[SourcePartition, str]:
        """Return source partitions of which nothing is read, and why: ``stopped`` or ``flood``. Any thread."""
        stopped = {key: "stopped" for key, source in list(self._sources.items()) if source.is_stopped}
        return dict.fromkeys(self._paused.copy(), "flood") | stopped

    async def revoke(self, partitions: Iterable[SourcePartition]) -> None:
        """Forget source partitions. What is under way is abandoned: the next owner repeats it, which is harmless."""
        partitions = list(partitions)
        await self._let_go(partitions)
        for key in partitions:  # whoever has it now finds out about a flood anew
            self._paused.discard(key)
            self._retried_at_ms.pop(key, None)

    async def _let_go(self, partitions: Iterable[SourcePartition]) -> None:
        gone = [self._sources.pop(key) for key in partitions if key in self._sources]
        for source in gone:
            self._release(source)
            await _cancel(source.task)
            source.release_all()

    async def finish(self) -> None:
        """Take no more chunks; return once none is under way."""
        self._is_finishing = True
        while any(source.is_busy and not source.is_stopped for source in self._sources.values()):
            await self._sleep(LOOK_AGAIN_S)

    async def close(self) -> None:
        """Commit what is acknowledged and stop."""
        with contextlib.suppress(Exception):
            await self._commit(self._status.status())
        await self.revoke(list(self._sources))
        for task in list(self._statements.values()):
            await _cancel(task)

    async def accept_loss(self, topic: str, partition: int, wanted: int, first: int, end: int) -> int | None:
        """Decide what to do where the log no longer holds the offset that is wanted; return the offset to go on from.

        Only records deleted at the log's start can be accepted as lost. Otherwise the partition stops.
        """
        source = self._sources.get((topic, partition))
        while source is not None and (source.is_busy or source.queue) and not source.is_stopped:
            await self._sleep(LOOK_AGAIN_S)  # what was fetched before is still under way
        if source is None or source.is_stopped or self._sources.get(source.key) is not source:
            return None
        if wanted > end:
            self._stop(
                source,
                LossDetected(
                    f"offset {wanted} is wanted and the log ends at {end}: the topic was created anew or lost its end; "
                    "give it a new topics.incarnation"
                ),
            )
            return None
        if not self._options.accept_loss:
            self._stop(
                source,
                LossDetected(
                    f"{first - wanted} records from offset {wanted} on were deleted unread; "
                    "restart the worker with --accept-loss to go on without them"
                ),
            )
            return None
        position = position_before(first)
        progress = Progress(source.reader.source, partition, position, position)
        record = LogRecord(self._options.worker, self._clock.now_ms(), (progress,), loss=True, logic=LOGIC_VERSION)
        await self._send_all([[encode_record(record)]] * self._options.targets)
        log.warning("%s[%d]: %d records were deleted unread: accepted as lost", topic, partition, first - wanted)
        source.position, source.next_offset, source.expected = position, first, first
        return first

    # -- chunks ----------------------------------------------------------------------------------------------------

    def submit(self, chunk: FetchedChunk) -> None:
        """Queue a chunk behind those of its source partition. Never blocks: fetching is paused where too many wait."""
        source = self._sources.get((chunk.topic, chunk.partition))
        if source is None or source.is_stopped:
            return
        if source.is_dropping:
            chunk.release()
            return
        source.queue.append(chunk)
        source.highwater = chunk.highwater
        source.wake.set()
        if len(source.queue) >= QUEUED_CHUNKS and not source.is_held:
            source.is_held = True
            self._pauses.pause([source.key])

    def _release(self, source: OwnedPartition) -> None:
        if source.is_held:
            source.is_held = False
            if source.key not in self._paused:
                self._pauses.resume([source.key])

    async def drain(self) -> None:
        """Wait until all that was submitted is acknowledged, or its source partition stopped."""
        while any((s.queue or s.is_busy) and not s.is_stopped for s in self._sources.values()):
            await asyncio.sleep(0)

    async def _work(self, source: OwnedPartition) -> None:
        try:
            while True:
                await source.wake.wait()
                if self._must_wait(source):
                    await self._sleep(LOOK_AGAIN_S)
                    continue
                source.is_busy = True
                chunk = source.next_chunk()
                if chunk is not None:
                    await self._ingest(source, chunk)
                source.release_taken()
                source.is_busy = False
                if len(source.queue) < QUEUED_CHUNKS:
                    self._release(source)
                if not source.queue:
                    source.wake.clear()
        except Exception as error:
            self._stop(source, error)

    def _stop(self, source: OwnedPartition, error: Exception) -> None:
        """Read no more of this source partition until the worker restarts; all others go on."""
        source.is_stopped, source.is_held, source.is_busy = True, True, False
        source.release_all()
        self._pauses.pause([source.key])
        expected = isinstance(error, LossDetected)
        log.error(
            "ingest of %s[%d] stopped at offset %d: %s",
            source.topic,
            source.partition,
            source.next_offset,
            error if expected else f"{type(error).__name__}: {error}",
            exc_info=None if expected else error,
        )

    async def _ingest(self, source: OwnedPartition, chunk: SourceChunk) -> None:
        with _no_garbage_collection():
            encoded = source.reader.encode(chunk, source.position, self._options.worker, self._clock.now_ms())
        await self._send_dead_letters(encoded.dead_letters)
        await self._send_all(encoded.records)
        source.position, source.next_offset = encoded.upto, chunk.next_offset
        self._note(source, encoded)

    def _note(self, source: OwnedPartition, encoded: Encoded) -> None:
        now_ms, letters, skipped = self._clock.now_ms(), encoded.dead_letters, encoded.skipped
        self._metrics.flows_in.labels(source.topic).inc(encoded.rows)
        for letter in letters:
            # The topic that a replayed record says it comes from may be anything: labels are of topics that are ours.
            topic = letter.topic if letter.topic in self._readers else source.topic
            self._metrics.dead_letters.labels(topic, letter.reason.value).inc()
        for counter, counts in (
            (self._metrics.records_skipped, skipped),
            (self._metrics.loss_reports, encoded.losses),
        ):
            for kind, count in counts.items():
                counter.labels(source.topic, source.label_of(kind)).inc(count)
        source.note(encoded.lanes, now_ms)
        rule = self._options.floods.get(source.topic)
        if rule is not None:
            records = encoded.rows + len(letters) + skipped.total()
            flood = source.flood.note(rule, now_ms, records, len(letters))
            if flood is not None:
                self._pause_for(flood, rule, source, letters[-1] if letters else None)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def _send_dead_letters(self, letters: list[DeadLetter]) -> None:
        for start in range(0, len(letters), DEAD_LETTERS_AT_ONCE):
            await _all(self._send_dead_letter(letter) for letter in letters[start : start + DEAD_LETTERS_AT_ONCE])

    async def _send_dead_letter(self, letter: DeadLetter) -> None:
        message = encode_dead_letter(letter)
        partition = stable_hash64(letter.key) % self._options.dead_letter_partitions
        topic = self._options.dead_letter_topic
        await self._producer.send(topic, partition, message.value, message.key, message.headers)

    async def _send_all(self, records: list[list[bytes]]) -> None:
        """Send every target its records, one at a time; targets side by side."""
        await _all(self._send_in_order(target, mine) for target, mine in enumerate(records))

    async def _send_in_order(self, target: int, records: list[bytes]) -> None:
        for record in records:
            await self._producer.send(self._options.log_topic, target, record)

    # -- flow control ----------------------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """Stop taking chunks, or go on: for the time that the graph side lags too far behind."""
        self._is_held = held

    def pause(self, partitions: Iterable[SourcePartition]) -> None:
        """Stop source partitions for a flood: they are stated as paused, and windows are marked incomplete."""
        self._set_paused(set(partitions), True)

    def resume(self, partitions: Iterable[SourcePartition]) -> None:
        """Undo `pause`, with the next tick where something must be fetched again."""
        keys = set(partitions)
        dropping = {key for key in keys if (source := self._sources.get(key)) is not None and source.is_dropping}
        self._retried_at_ms.update(dict.fromkeys(dropping, 0))
        self._set_paused(keys - dropping, False)

    def _set_paused(self, partitions: set[SourcePartition], paused: bool) -> None:
        self._paused = self._paused | partitions if paused else self._paused - partitions
        for key in partitions:
            self._retried_at_ms.pop(key, None)
            self._switch(key)

    def _switch(self, key: SourcePartition) -> None:
        """Fetch a source partition or not: whatever ends one reason to pause it, another may still stand."""
        source = self._sources.get(key)
        if key in self._paused or (source is not None and source.is_held):
            self._pauses.pause([key])
        else:
            self._pauses.resume([key])

    def _pause_for(self, flood: Flood, rule: FloodRule, source: OwnedPartition, last: DeadLetter | None) -> None:
        """Pause one source partition for a flood; it is tried again by itself. What was read of it is kept."""
        self.pause([source.key])
        if self._seeks is not None:
            # What waits would take its share of the budget from all other partitions for as long as the pause lasts.
            source.is_dropping = True
            source.release_all()
        self._retried_at_ms[source.key] = self._clock.now_ms() + rule.pause_ms
        log.error(
            "%s[%d] is paused: %d of its last %d records (%.1f %%) became dead letters, the last one %s; mend what "
            "writes them or the topic's configuration, and see `drift dead-letters list --topic %s`; it is tried "
            "again in %.0f s",
            source.topic,
            source.partition,
            flood.dead,
            flood.records,
            100 * flood.dead / flood.records,
            f"{last.reason.value} ({short(last.detail)})" if last is not None else "earlier",
            source.topic,
            rule.pause_ms / 1000,
        )

    async def _try_again(self, now_ms: int) -> None:
        for key in [key for key, at_ms in self._retried_at_ms.items() if at_ms <= now_ms]:
            source = self._sources.get(key)
            if source is not None and source.is_dropping and self._seeks is not None:
                await self._seeks.seek(key, source.next_offset)
                source.is_dropping = False
            if key in self._retried_at_ms:  # and was not given away meanwhile
                log.warning("%s[%d] is tried again after a flood of dead letters", *key)
                self._set_paused({key}, False)

    def _must_wait(self, source: OwnedPartition) -> bool:
        without_start = source.reader.commits and source.committed is None  # a later owner might start elsewhere
        if self._is_held or self._is_finishing:
            return True
        return without_start or source.key in self._paused or self._runs_ahead(source)

    def _runs_ahead(self, source: OwnedPartition) -> bool:
        """Say whether a source partition is so far ahead of others with backlog that open windows would pile up.

        It bounds memory and decides nothing. The one furthest behind never waits; none waits for a clock that stands.
        """
        lane = source.reader.lane
        if lane is None or lane.mode != "live" or not lane.max_wait_ms:
            return False
        key = (lane.name, lane.generation)
        since_ms = self._clock.now_ms() - lane.max_wait_ms
        behind = [
            clock.furthest_ms
            for other in self._sources.values()
            if other.reader.lane is not None and other.queue and not other.is_stopped and other.key not in self._paused
            if (clock := other.lanes.get(key)) is not None and clock.furthest_ms >= 0 and clock.moved_at_ms >= since_ms
        ]
        return bool(behind) and source.lanes[key].furthest_ms > min(behind) + lane.max_wait_ms // 2

    # -- statements and commits ------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Commit and state what is due."""
        now_ms = self._clock.now_ms()
        status = self._status.status()
        await self._try_again(now_ms)
        if now_ms - self._stated_at_ms >= self._options.statement_every_ms:
            self._stated_at_ms = now_ms
            self._state(status, now_ms)
        if now_ms - self._committed_at_ms >= COMMIT_EVERY_MS:
            self._committed_at_ms = now_ms
            await self._commit(status)

    async def _commit(self, assigned: Collection[SourcePartition]) -> None:
        async with self._commit_lock:
            offsets = {
                key: source.next_offset
                for key, source in self._sources.items()
                if key in assigned and source.reader.commits and source.committed != source.next_offset
            }
            if offsets and await self._commits.commit(offsets):
                for key, offset in offsets.items():
                    if key in self._sources:
                        self._sources[key].committed = offset

    def _state(self, status: Mapping[SourcePartition, FetchStatus], now_ms: int) -> None:
        """Send each lane's statement to each target that has acknowledged the last one.

        It may arrive beside a record under way: it speaks of acknowledged positions alone, so whichever comes first,
        nothing changes that should not.
        """
        standings = [
            standing
            for key, fetch in status.items()
            if (source := self._sources.get(key)) is not None and not source.is_stopped
            for standing in source.standings(fetch, now_ms, is_paused=key in self._paused)
        ]
        for record in statements(standings, self._options.idle_ms, self._options.worker, now_ms):
            assert record.lane is not None
            data = encode_record(record)
            for target in range(self._options.targets):
                key3 = (record.lane.name, record.lane.generation, target)
                if key3 not in self._statements:
                    task = asyncio.create_task(self._send_statement(target, data))
                    self._statements[key3] = task
                    task.add_done_callback(lambda _, key=key3: self._statements.pop(key, None))  # type: ignore[misc]

    async def _send_statement(self, target: int, data: bytes) -> None:
        try:
            await self._producer.send(self._options.log_topic, target, data)
        except Exception as error:
            log.error("a statement to %s[%d] was refused: %s", self._options.log_topic, target, error)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hold the collector back: decoding makes thousands of small tuples and no cycles, and each scan looks at them all.

    It halves the cost of a chunk. What is made meanwhile is freed by reference counts before the collector is back.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


async def _all(sends: Iterable[Awaitable[None]]) -> None:
    """Await all; the first failure comes out once none is under way any more."""
    results = await asyncio.gather(*sends, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
