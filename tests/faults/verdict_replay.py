"""The first judge: one partition of `tenant-log` through a fresh state machine, against what stands on the topics.

Runs in a process of its own, one partition a call. What it says should stand goes into scratch tables, for ClickHouse.
"""

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from aiokafka import TopicPartition

from models.graph.machine import Machine
from models.graph.output import Output
from schemas.clickhouse_dsn import database_of
from schemas.errors import LossDetected
from schemas.graph import GraphChunk, chunk_window, decode_chunk, encode_chunk
from schemas.ids import NO_POSITION, end_position
from schemas.ocsf import decode_event, encode_event
from schemas.settings import ClickHouseSettings, Settings
from schemas.tenant_log import LogRecord, decode_record
from streams.clickhouse import connect
from streams.kafka_clients import make_consumer
from streams.sinks.rows import Rows, drift_rows, graph_rows

ROWS_PER_INSERT = 100_000
MAX_DETAILS = 30
FETCH_BYTES = 8 << 20
_LOUD = {"loss", "incarnation"}

ChunkKey = tuple[str, str, int, int, int]
"""Tenant, lane, generation, start of the window, shard."""
WindowKey = tuple[str, str, int, int]
Interval = tuple[str, int, int, int, int, int]
"""Source, its partition, ``after``, ``upto`` (positions), first open window (index), clock rows were folded by or 0."""


@dataclass
class Tally:
    """Counts by place and name, and the first differences in words."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    def add(self, place: str, name: str, what: str = "", count: int = 1) -> None:
        """Count a difference; its words are kept while there are few of its kind."""
        if not count:
            return
        if what and self.counts[place, name] < MAX_DETAILS:
            self.details.append(f"{place}: {name}: {what}"[:600])
        self.counts[place, name] += count

    def merge(self, other: "Tally") -> None:
        """Take in another tally."""
        self.counts.update(other.counts)
        self.details += other.details


@dataclass(frozen=True)
class Ends:
    """Where to stop in one partition.

    Attributes:
        log: end of `tenant-log`. committed: what workers had committed of it.
        events, windows: ends of `drift-events` and `graph-windows`; *_stored: what the sinks had committed of them.
    """

    log: int
    committed: int
    events: int
    windows: int
    events_stored: int
    windows_stored: int


@dataclass
class Replayed:
    """What came of one partition.

    Attributes:
        intervals: what each record of the log newly covers, in order.
        closed: by lane, the first window that was still open where the workers' commits end.
        pending_windows, pending_events: ClickHouse may lack them: the sinks had not committed them.
        tail_windows, tail_events: ClickHouse may have them: they come of records that no worker had committed.
        dead: rows the state machine refused, as (source, partition, position, reason).
    """

    partition: int
    tally: Tally = field(default_factory=Tally)
    counts: Counter[str] = field(default_factory=Counter)
    intervals: list[Interval] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)
    pending_windows: set[WindowKey] = field(default_factory=set)
    pending_events: set[str] = field(default_factory=set)
    tail_windows: set[WindowKey] = field(default_factory=set)
    tail_events: set[str] = field(default_factory=set)
    dead: list[tuple[str, int, int, str]] = field(default_factory=list)


@dataclass
class _Seen:
    """What a topic holds under one id. ``offset``: of its first message."""

    digest: bytes
    offset: int
    others: int = 0


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


async def read_partition(
    settings: Settings, topic: str, partition: int, end: int
) -> AsyncIterator[tuple[int, bytes | None, Any]]:
    """Yield (offset, value, record) from the partition's start to ``end``."""
    consumer = make_consumer(settings.kafka, max_partition_fetch_bytes=FETCH_BYTES)
    await consumer.start()
    try:
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(tp, timeout_ms=1_000)).values():
                for record in records:
                    if record.offset < end:
                        yield record.offset, record.value, record
    finally:
        await consumer.stop()


class Expected:
    """Writes what should be in ClickHouse into scratch tables, in large inserts. Blocking."""

    def __init__(self, scratch: ClickHouseSettings) -> None:
        self._client = connect(scratch)
        self._database = database_of(scratch)
        self._batches: dict[str, list[Any]] = defaultdict(list)
        self._counts: Counter[str] = Counter()

    def add(self, rows: Rows) -> None:
        """Take in the rows of one message."""
        name = rows.table.name
        self._batches[name].append(rows.batch)
        self._counts[name] += len(rows)
        if self._counts[name] >= ROWS_PER_INSERT:
            self._flush(name)

    def _flush(self, name: str) -> None:
        batches, self._batches[name], self._counts[name] = self._batches[name], [], 0
        if batches:
            self._client.insert_arrow(name, pa.Table.from_batches(batches), database=self._database)

    def close(self) -> None:
        """Write what is left."""
        for name in list(self._batches):
            self._flush(name)
        self._client.close()


class Replay:
    """The state machine's words against those of the topics, for one partition."""

    def __init__(self, settings: Settings, partition: int, ends: Ends, expected: Expected) -> None:
        self._settings = settings
        self._ends = ends
        self._expected = expected
        self._machine = Machine()
        self._reached: dict[tuple[str, int], int] = {}
        self._events: dict[str, _Seen] = {}
        self._chunks: dict[ChunkKey, _Seen] = {}
        self._doubtful: dict[ChunkKey, bytes] = {}
        self.result = Replayed(partition)

    async def run(self) -> Replayed:
        """Read the topics, then the log."""
        settings, partition, topics = self._settings, self.result.partition, self._settings.topics
        async for offset, value, _ in read_partition(
            settings, topics.name("drift_events"), partition, self._ends.events
        ):
            self._see_event(offset, value or b"")
        windows = topics.name("graph_windows")
        async for offset, value, _ in read_partition(settings, windows, partition, self._ends.windows):
            self._see_chunk(offset, value or b"")
        async for offset, value, _ in read_partition(settings, topics.name("tenant_log"), partition, self._ends.log):
            if value is not None:
                self._apply(offset, decode_record(value))
        if self._ends.committed >= self._ends.log:
            self._note_closed()
        if not self.result.counts["chain_breaks"]:
            self._judge_leftovers()
        return self.result

    def _see_event(self, offset: int, value: bytes) -> None:
        try:
            event_id = decode_event(value).event_id
        except Exception as error:  # whatever it is, it is no event
            self.result.tally.add("drift-events", "unexpected", f"offset {offset} cannot be read: {error}")
            return
        self._see("drift-events", self._events, event_id, offset, value)
        if offset >= self._ends.events_stored:
            self.result.pending_events.add(event_id)

    def _see_chunk(self, offset: int, value: bytes) -> None:
        try:
            chunk = decode_chunk(value)
        except Exception as error:  # whatever it is, it is no chunk
            self.result.tally.add("graph-windows", "unexpected", f"offset {offset} cannot be read: {error}")
            return
        window = (chunk.tenant, chunk.lane, chunk.generation, chunk.start_ms)
        self._see("graph-windows", self._chunks, (*window, chunk.shard), offset, value)
        if set(chunk.incomplete) & _LOUD:
            self._doubtful[(*window, chunk.shard)] = value
        if offset >= self._ends.windows_stored:
            self.result.pending_windows.add(window)

    def _see(self, place: str, seen: dict[Any, _Seen], key: Any, offset: int, value: bytes) -> None:
        digest = _digest(value)
        before = seen.setdefault(key, _Seen(digest, offset))
        if before.offset == offset:
            return
        if before.digest == digest:
            self.result.tally.add(place, "raw_duplicates")
        else:
            before.others += 1
            self.result.tally.add(place, "duplicated_by_id", f"two contents of {key}, the second at offset {offset}")

    def _apply(self, offset: int, record: LogRecord) -> None:
        machine, result = self._machine, self.result
        if offset == self._ends.committed or (offset > self._ends.committed and not result.closed):
            self._note_closed()
        result.counts["log_records"] += 1
        result.counts["tail_records"] += offset >= self._ends.committed
        result.counts["loss_marks"] += record.loss
        lane = machine.lanes.get(record.lane.name) if record.lane is not None else None
        floor = (lane.closed_index or 0) if lane is not None else 0
        live = record.lane is not None and record.lane.mode == "live" and not record.append_time
        for progress in record.progress:
            key = (progress.source, progress.partition)
            after = max(progress.after, self._reached.get(key, NO_POSITION))
            if progress.upto > after:
                clock_ms = record.as_of_ms if live else 0
                result.intervals.append((*key, after, progress.upto, floor, clock_ms))
                self._reached[key] = progress.upto
        if result.counts["chain_breaks"]:
            return
        try:
            output = machine.apply(offset, record)
        except LossDetected as loss:
            # Workers stop here, too: what is said of later records cannot be judged, what they cover can.
            result.counts["chain_breaks"] += 1
            result.tally.details.append(f"tenant-log[{result.partition}] at offset {offset}: {loss}")
        else:
            self._take(output, is_required=offset < self._ends.committed)

    def _note_closed(self) -> None:
        for name, lane in self._machine.lanes.items():
            self.result.closed[name] = lane.closed_index or 0

    def _take(self, output: Output, is_required: bool) -> None:
        result = self.result
        result.counts.update(output.counts)
        for event in output.events:
            value = encode_event(event)
            result.counts["events"] += is_required
            if not is_required:
                result.tail_events.add(event.event_id)
            self._compare("drift-events", self._events, event.event_id, value, is_required)
            if is_required:
                self._expected.add(drift_rows(value))
        for window in output.windows:
            key = (window.tenant, window.lane, window.generation, window.start_ms)
            if not is_required:
                result.tail_windows.add(key)
            result.counts["windows"] += is_required
            for reason in window.incomplete:
                result.counts[f"incomplete_{reason}"] += is_required
            for chunk in chunk_window(window):
                value = encode_chunk(chunk)
                result.counts["chunks"] += is_required
                if not self._compare("graph-windows", self._chunks, (*key, chunk.shard), value, is_required):
                    self._judge_marks(chunk)
                if is_required:
                    rows = graph_rows(value)
                    result.counts["edge_rows"] += 0 if chunk.is_marker else len(rows)
                    self._expected.add(rows)
        for row in output.dead:
            result.dead.append((row.source, row.partition, row.position, row.reason.value))

    def _compare(self, place: str, found: dict[Any, _Seen], key: Any, value: bytes, is_required: bool) -> bool:
        seen = found.pop(key, None)
        if seen is None:
            if is_required:
                self.result.tally.add(place, "lost", str(key))
            return True
        if seen.digest != _digest(value) and not seen.others:
            self.result.tally.add(place, "wrong_totals", f"{key} has another content than the log says")
            return False
        return True

    def _judge_marks(self, expected: GraphChunk) -> None:
        """A chunk differs: does it tell of a gap that is none, or hide one?"""
        key = (expected.tenant, expected.lane, expected.generation, expected.start_ms, expected.shard)
        value = self._doubtful.get(key)
        stated = set(decode_chunk(value).incomplete) & _LOUD if value else set()
        true = set(expected.incomplete) & _LOUD
        if stated - true:
            self.result.tally.add("graph-windows", "false_gaps", f"{key} is marked {sorted(stated - true)}")
        if true - stated:
            self.result.tally.add("graph-windows", "missed_gaps", f"{key} lacks the mark {sorted(true - stated)}")

    def _judge_leftovers(self) -> None:
        leftovers: Iterable[tuple[str, dict[Any, _Seen]]]
        leftovers = (("drift-events", self._events), ("graph-windows", self._chunks))
        for place, found in leftovers:
            for key, seen in found.items():
                self.result.tally.add(place, "unexpected", f"{key} at offset {seen.offset}")


def replay_partition(settings: Settings, partition: int, ends: Ends, scratch: ClickHouseSettings) -> Replayed:
    """Judge one partition of the log against the topics; blocking, for a process of its own."""
    expected = Expected(scratch)
    try:
        return asyncio.run(Replay(settings, partition, ends, expected).run())
    finally:
        expected.close()


# -- the chain ---------------------------------------------------------------------------------------------------------


def judge_chain(
    tally: Tally,
    replayed: Replayed,
    source: str,
    offsets: dict[int, npt.NDArray[np.int64]],
    committed: dict[int, int],
    from_start: bool,
) -> None:
    """Say which messages of a source are in no record of this partition of the log; ranges count, not messages.

    Where the chain breaks and nothing is missing, the break is a false alarm.

    Args:
        offsets: of all messages of each source partition, sorted. committed: the workers' offsets.
        from_start: the workers were to read from the start.
    """
    covered: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for name, partition, after, upto, _, _ in replayed.intervals:
        if name == source:
            covered[partition].append((after, upto))
    place, is_whole = f"tenant-log[{replayed.partition}]", True
    for partition, present in offsets.items():
        ranges = covered.get(partition, [])
        reached = ranges[0][0] if ranges and not from_start else NO_POSITION
        holes = []
        for after, upto in ranges:
            if after > reached:
                holes.append((reached, after))
            reached = max(reached, upto)
        holes.append((reached, end_position(committed.get(partition, 0) - 1)))
        ends = (present << 20) | ((1 << 20) - 1)
        for low, high in holes:
            missing = int(np.count_nonzero((ends > low) & (ends <= high)))
            if missing:
                is_whole = False
                what = f"{missing} messages of {source}[{partition}] between positions {low} and {high} are not in it"
                tally.add(place, "missed_gaps", what)
    if is_whole:
        tally.add(place, "false_gaps", "the chain breaks, and no message is missing", replayed.counts["chain_breaks"])
