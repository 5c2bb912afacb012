"""A source partition while it is ours: what waits, what is acknowledged, where its lanes' clocks are. No I/O."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.errors import LossDetected
from streams.ingest.chunk import SourceChunk, cut, join
from streams.ingest.flood import FloodWatch
from streams.ingest.ports import FetchedChunk, FetchStatus, SourcePartition
from streams.ingest.readers import LaneProgress, SourceReader
from streams.ingest.statements import SourceStanding

MAX_KINDS = 100
"""Kinds of skipped records, and of what sources say they lost, that are told apart; a format has fewer."""
JOINED_ROWS = 20_000
"""Waiting chunks are joined up to so many messages: fewer, larger records when there is much to do."""


@dataclass(slots=True)
class LaneClock:
    """The latest that a source partition said of a lane, and when (by the worker's clock) its event time moved."""

    progress: LaneProgress
    furthest_ms: int
    moved_at_ms: int


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """One source partition.

    Attributes:
        position: acknowledged by every target.
        next_offset: the same as an offset, what may be committed.
        expected: first offset of the next chunk that is to come.
        committed: the group's offset; ``None`` until there is one.
        is_busy: a chunk is under way.
        is_held: fetching is paused because too many chunks wait.
        is_stopped: an error ended it.
        is_dropping: what arrives is not kept; it will be fetched again from ``next_offset``.
        highwater: end of the log as the last chunk said.
        taken: fetched chunks that are being worked on.
        lanes: by (name, generation).
        flood: what of its records became dead letters lately.
        kinds: of skipped records and of losses, seen so far.
    """

    topic: str
    partition: int
    reader: SourceReader
    position: int
    next_offset: int
    expected: int
    committed: int | None
    started_at_ms: int
    lanes: dict[tuple[str, int], LaneClock] = field(default_factory=dict)
    queue: deque[FetchedChunk] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    is_busy: bool = False
    is_held: bool = False
    is_stopped: bool = False
    is_dropping: bool = False
    highwater: int = -1
    taken: list[FetchedChunk] = field(default_factory=list)
    flood: FloodWatch = field(default_factory=FloodWatch)
    kinds: set[str] = field(default_factory=set)

    @property
    def key(self) -> SourcePartition:
        """Return (topic, partition)."""
        return self.topic, self.partition

    def declare(self) -> None:
        """Take the reader's lane as it is declared now, so that it can be stated before the first chunk."""
        lane = self.reader.lane
        if lane is None:
            return
        known = self.lanes.get((lane.name, lane.generation))
        if known is None:
            self.lanes[lane.name, lane.generation] = LaneClock(LaneProgress(lane, (), False), -1, self.started_at_ms)
        else:
            known.progress = LaneProgress(lane, known.progress.clocks, known.progress.ended)

    def next_chunk(self) -> SourceChunk | None:
        """Take what waits, joined; ``None`` if it was all acknowledged before.

        Raises:
            LossDetected: offsets are missing between this chunk and the last.
        """
        taken: list[SourceChunk] = []
        rows = 0
        while self.queue:
            chunk = self.queue[0]
            if taken and (
                rows + len(chunk.values) > JOINED_ROWS
                or chunk.timestamp_type != taken[0].timestamp_type
                or taken[-1].corrupt is not None
            ):
                break
            self.taken.append(self.queue.popleft())
            if chunk.next_offset <= self.expected:
                continue
            if chunk.first_offset > self.expected:
                raise LossDetected(f"fetched from offset {chunk.first_offset} on, expected {self.expected}")
            fresh: SourceChunk = chunk
            if chunk.first_offset < self.expected:
                start = int(chunk.offsets.searchsorted(self.expected))
                fresh = cut(chunk, start, len(chunk.values), self.expected, chunk.next_offset)
            self.expected = chunk.next_offset
            taken.append(fresh)
            rows += len(fresh.values)
        return join(taken) if taken else None

    def release_taken(self) -> None:
        """Give back the share of the transport's budget that the chunks worked on had.

        Not by forgetting them: the frames of an exception, say of a record that cannot be read, hold a chunk until the
        next garbage collection, and after a few of them nothing more of the partition would be fetched.
        """
        for chunk in self.taken:
            chunk.release()
        self.taken.clear()

    def release_all(self) -> None:
        """Likewise for those that wait too; none of them is needed any more."""
        self.taken += self.queue
        self.queue.clear()
        self.release_taken()

    def note(self, lanes: Iterable[LaneProgress], now_ms: int) -> None:
        """Remember what an acknowledged chunk said of its lanes."""
        for progress in lanes:
            key = (progress.lane.name, progress.lane.generation)
            furthest_ms = progress.clocks[0][1] if progress.clocks else -1
            clock = self.lanes.get(key)
            if clock is None:
                self.lanes[key] = LaneClock(progress, furthest_ms, now_ms)
                continue
            if furthest_ms > clock.furthest_ms:
                clock.furthest_ms, clock.moved_at_ms = furthest_ms, now_ms
            clocks = progress.clocks or clock.progress.clocks
            clock.progress = LaneProgress(progress.lane, clocks, progress.ended)
        # A replay topic sees many lanes; those that ended were told so to every target and need no more statements.
        if len(self.lanes) > 1:
            open_lanes = {key: clock for key, clock in self.lanes.items() if not clock.progress.ended}
            self.lanes = open_lanes or dict([self.lanes.popitem()])

    def label_of(self, kind: str) -> str:
        """Return a kind as a metric's label: whatever a format calls them, there are few."""
        if kind not in self.kinds:
            if len(self.kinds) >= MAX_KINDS:
                return "other"
            self.kinds.add(kind)
        return kind

    def standings(self, fetch: FetchStatus, now_ms: int, *, is_paused: bool) -> Iterable[SourceStanding]:
        """Return what can be stated of each lane."""
        highwater = max(self.highwater, -1 if fetch.highwater is None else fetch.highwater)
        at_end = fetch.end_reached or self.next_offset >= highwater >= 0
        for clock in self.lanes.values():
            progress = clock.progress
            yield SourceStanding(
                lane=progress.lane,
                source=self.reader.source,
                partition=self.partition,
                position=self.position,
                clocks=progress.clocks,
                has_backlog=bool(self.queue) or self.is_busy or not at_end,
                fetched_ms_ago=fetch.fetched_ms_ago,
                unmoved_ms=now_ms - clock.moved_at_ms,
                ended=progress.ended,
                paused=is_paused,
            )
