"""One owned partition of `tenant-log`: applies records, performs what they bring about, checkpoints, commits.

The order of a checkpoint is the guarantee: events and graph chunks up to offset S acknowledged, then state chunks, then
the manifest, then the group offset.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from models.graph.logic import UNDECIDED
from models.graph.machine import Machine
from models.graph.output import EXPECTED_BACK, HALVES, SEEN_ELSEWHERE, WITHHELD, Output, RowDeadLetter
from models.graph.snapshot import mark_clean, restore, take
from schemas.drift import DriftEvent
from schemas.errors import LossDetected
from schemas.graph import ClosedWindow
from schemas.tenant_log import decode_record
from streams.clock import Clock
from streams.graph.checkpoints import Checkpoints
from streams.metrics import Metrics

logger = logging.getLogger(__name__)


class GraphSink(Protocol):
    """Where a partition's results go. Every call returns once all of it is acknowledged."""

    async def publish_events(self, partition: int, events: Sequence[DriftEvent]) -> int:
        """Publish events in order; return the offset after the last one."""
        ...

    async def publish_windows(self, partition: int, windows: Sequence[ClosedWindow]) -> None:
        """Publish the chunks of closed windows, markers last."""
        ...

    async def publish_dead(self, dead: Sequence[RowDeadLetter]) -> None:
        """Publish rows the state machine refused."""
        ...

    async def published_since(self, partition: int, offset: int) -> set[str]:
        """Return ids of events that stand in `drift-events` from ``offset`` on."""
        ...


class GraphPartition:
    """Owner of one partition's state machine.

    Attributes:
        performed_offset: everything up to this offset was applied, and what it brought about is acknowledged.
        state_bytes, checkpoint_ms: size of the live state as stored, and how long this owner's last checkpoint took;
            ``None`` before there is one.
    """

    def __init__(
        self,
        partition: int,
        incarnation: str,
        checkpoints: Checkpoints,
        sink: GraphSink,
        clock: Clock,
        metrics: Metrics,
        checkpoint_every_ms: int,
    ) -> None:
        self.partition = partition
        self.machine = Machine()
        self._incarnation = incarnation
        self._checkpoints = checkpoints
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._checkpoint_every_ms = checkpoint_every_ms
        self._published: set[str] = set()
        self._events_offset = 0
        self._checkpointed_ms = clock.now_ms()
        self._checkpointed_offset = -1
        self._recovered = False
        self._turn = asyncio.Lock()
        self.performed_offset = -1
        self.state_bytes: int | None = None
        self.checkpoint_ms: int | None = None

    @property
    def is_recovered(self) -> bool:
        """Say whether the state is restored, so that records can be applied."""
        return self._recovered

    @property
    def turn(self) -> asyncio.Lock:
        """Held while a record is applied and its results published, or the state stored: hold it to come in between."""
        return self._turn

    def checkpoint_age_ms(self, now_ms: int) -> int:
        """Return for how long applied records have been waiting for a checkpoint; 0 if none wait."""
        return max(0, now_ms - self._checkpointed_ms) if self.machine.offset > self._checkpointed_offset else 0

    async def recover(self, at_least: int = -1) -> int | None:
        """Restore the last checkpoint; return the offset to go on from, ``None`` if there is none yet.

        Args:
            at_least: an offset that a checkpoint is known to contain, as the group's committed offset says.

        Raises:
            CheckpointError: the saved state cannot be used.
        """
        if self._recovered:
            return self.machine.offset + 1 if self.machine.offset >= 0 else None
        self._checkpoints.forget(self.partition)
        loaded = await self._checkpoints.load(self.partition, at_least)
        if loaded is not None:
            manifest, chunks = loaded
            self.machine = restore(chunks)
            self.state_bytes = sum(ref.size_bytes for ref in manifest.chunks.values())
            if manifest.incarnation == self._incarnation:
                self._events_offset = manifest.events_offset
        # Read back first: what an interrupted start into a new incarnation has published is not published again.
        self._published = await self._sink.published_since(self.partition, self._events_offset)
        if loaded is not None and loaded[0].incarnation != self._incarnation:
            await self._begin_incarnation()
        self._checkpointed_offset = self.performed_offset = self.machine.offset
        self._recovered = True
        return self.machine.offset + 1 if self.machine.offset >= 0 else None

    async def _begin_incarnation(self) -> None:
        output = self.machine.begin_incarnation()
        logger.info("partition %d: new incarnation of the log, baselines kept", self.partition)
        await self._perform(output)

    async def apply(self, offsets: Sequence[int], values: Sequence[bytes | None]) -> int | None:
        """Apply records and perform what they bring about; return the offset to commit if a checkpoint was due.

        Raises:
            LossDetected, WireFormatError: the log cannot be trusted; the partition must stop here.
            LogicVersionError: a later worker has to go on.
        """
        for offset, value in zip(offsets, values, strict=True):
            if offset <= self.machine.offset or value is None:
                continue
            async with self._turn:  # a checkpoint in between would hold a state whose results are not out yet
                if self.performed_offset != self.machine.offset:
                    raise LossDetected(
                        f"partition {self.partition}: what offset {self.machine.offset} brought about is not out; "
                        "restart the worker, it goes on from the last checkpoint"
                    )
                logic = self.machine.logic.in_force
                output = self.machine.apply(offset, decode_record(value))
                if self.machine.logic.in_force != logic != UNDECIDED:
                    logger.warning(
                        "partition %d: logic version %d takes over from %d at offset %d",
                        *(self.partition, self.machine.logic.in_force, logic, offset),
                    )
                await self._perform(output)
                self.performed_offset = offset
            # A chunk can hold seconds of work: let fetches, heartbeats and statements of this process in between.
            await asyncio.sleep(0)
        if self._clock.now_ms() - self._checkpointed_ms >= self._checkpoint_every_ms:
            return await self.checkpoint()
        return None

    async def _perform(self, output: Output) -> None:
        events = []
        for event in output.events:
            if event.event_id in self._published:
                self._published.discard(event.event_id)
            else:
                events.append(event)
        if events:
            self._events_offset = await self._sink.publish_events(self.partition, events)
            for event in events:
                self._metrics.events.labels(event.kind, event.activity.name.lower()).inc()
                if event.is_early:
                    self._metrics.detection_delay.observe(max(0, self._clock.now_ms() - event.time_ms) / 1000)
        if output.windows:
            await self._sink.publish_windows(self.partition, output.windows)
            for window in output.windows:
                self._metrics.windows_closed.labels("yes" if window.incomplete else "no").inc()
        if output.dead:
            await self._sink.publish_dead(output.dead)
        for outcome, count in output.counts.items():
            if outcome == WITHHELD:
                self._metrics.findings_withheld.inc(count)
            elif outcome == EXPECTED_BACK:
                self._metrics.removals_expected_back.inc(count)
            elif outcome == SEEN_ELSEWHERE:
                self._metrics.removals_seen_elsewhere.inc(count)
            elif outcome in HALVES:
                self._metrics.halves.labels(HALVES[outcome]).inc(count)
            else:
                self._metrics.rows_folded.labels(outcome).inc(count)

    async def checkpoint(self) -> int | None:
        """Store the state; return the group offset that may be committed now, ``None`` if nothing was applied since.

        Waits for the record under way, if there is one. Nothing is stored once its results could not be published.
        """
        async with self._turn:
            return await self._checkpoint()

    async def prune(self) -> None:
        """Let older checkpoints go; only once the offset of the last one is committed (`Checkpoints.prune`)."""
        await self._checkpoints.prune(self.partition)

    async def _checkpoint(self) -> int | None:
        started_ms = self._clock.now_ms()
        self._checkpointed_ms = started_ms
        if self.machine.offset <= self._checkpointed_offset or self.performed_offset != self.machine.offset:
            return None
        chunks = list(take(self.machine))
        size = await self._checkpoints.write(self.partition, self.machine.offset, self._events_offset, chunks)
        mark_clean(self.machine)
        self._checkpointed_offset = self.machine.offset
        self.state_bytes, self.checkpoint_ms = size, max(0, self._clock.now_ms() - started_ms)
        return self.machine.offset + 1
