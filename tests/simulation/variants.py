"""Deliberately broken variants: each takes one promise out of the production code. The simulator must find them all.

Without faults every one of them gives exact results: it takes a crash, a delay or a move at the wrong moment.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from models.graph.clock import LaneClock
from models.graph.closing import advance
from models.graph.halves import Halves
from models.graph.lane import LaneState
from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore
from schemas.ids import end_position
from schemas.tenant_log import ACTIVE, IDLE, IntColumn, LaneConfig, LogRecord
from streams.graph.checkpoints import Checkpoints
from streams.graph.manifests import is_manifest
from streams.graph.partition import GraphPartition
from streams.ingest.agent import IngestWorker
from streams.ingest.chunk import MessageChunk, SourceChunk
from streams.ingest.lanes import source_name
from streams.ingest.readers import ControlReader, Encoded, FlowReader, SourceReader
from streams.ingest.statements import SourceStanding, state_of
from streams.sinks.writer import PartitionWriter
from streams.sources.format import Decoded, SourceFormat

if TYPE_CHECKING:
    from tests.simulation.simulator import Simulator


_PAIR = re.compile(rb'"pair":(\d+)')


class _WithHalves:
    """Canonical flows, of which messages of one record may name the pair that they are a half of."""

    def __init__(self, plain: SourceFormat) -> None:
        self._plain = plain
        self.name = plain.name

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        decoded = self._plain.decode(values)
        for run in decoded.runs:
            found = [_PAIR.search(values[number]) for number in run.message.tolist()]
            if any(found):
                pairs = [-1 if match is None else int(match[1]) for match in found]
                run.columns["pair"] = np.array(pairs, dtype=np.int64)
        return decoded


def _readers(sim: "Simulator", reader: Callable[..., FlowReader]) -> dict[str, SourceReader]:
    """Return readers as streams/ingest/faust_agent.py makes them, of a format that has halves of calls too."""
    from tests.simulation.process import FLOWS, MORE
    from tests.simulation.scenario import MAIN, SECOND
    from tests.simulation.simulator import FLOW_TOPIC, SECOND_TOPIC, lane_of

    readers: dict[str, SourceReader] = {
        "drift-controls": ControlReader(sim.variant.source("drift-controls", sim.incarnation), sim.partitions)
    }
    topics = ((FLOWS, FLOW_TOPIC, MAIN), (MORE, SECOND_TOPIC, SECOND))
    for name, topic, lane in topics if sim.scenario.has_second_lane else topics[:1]:
        source = sim.variant.source(name, sim.incarnation)
        config = lane_of(source, sim.scenario.learning_windows, lane)
        flows = readers[name] = reader(topic, source, config, sim.partitions)
        flows.rules = replace(flows.rules, format=_WithHalves(flows.rules.format))
    return readers


@dataclass(frozen=True)
class Variant:
    """Which pieces a simulated worker is made of. ``applied`` holds while a schedule runs."""

    name: str = "sound"
    ingest: Callable[..., IngestWorker] = IngestWorker
    reader: Callable[..., FlowReader] = FlowReader
    checkpoints: Callable[..., Checkpoints] = Checkpoints
    partition: Callable[..., GraphPartition] = GraphPartition
    writer: Callable[..., PartitionWriter] = PartitionWriter
    source: Callable[[str, str], str] = source_name
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext

    def readers(self, sim: "Simulator") -> Mapping[str, SourceReader]:
        """Return a worker's readers by topic."""
        return _readers(sim, self.reader)


SOUND = Variant()


# -- ingest ------------------------------------------------------------------------------------------------------------


class _CommitsEarly(IngestWorker):
    async def _ingest(self, source: Any, chunk: SourceChunk) -> None:
        await self._commits.commit({source.key: chunk.next_offset})
        await super()._ingest(source, chunk)


class _StatesEarly(IngestWorker):
    """States where a chunk under way will end."""

    async def _ingest(self, source: Any, chunk: SourceChunk) -> None:
        self._claims = {**getattr(self, "_claims", {}), source.key: end_position(chunk.next_offset - 1)}
        await super()._ingest(source, chunk)

    def _state(self, status: Any, now_ms: int) -> None:
        sources = list(self._sources.values())
        positions = [source.position for source in sources]
        for source in sources:
            source.position = max(source.position, getattr(self, "_claims", {}).get(source.key, -1))
        super()._state(status, now_ms)
        for source, position in zip(sources, positions, strict=True):
            source.position = position


class _Pairs(FlowReader):
    """Keeps the client's report of a call in memory until the server's comes, and writes both then."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: dict[tuple[Any, ...], bytes] = {}

    def encode(self, chunk: SourceChunk, after: int, worker: str, as_of_ms: int) -> Encoded:
        kept: list[int] = []
        values: list[bytes | None] = []
        for number, value in enumerate(chunk.values):
            if value is not None and value.startswith(b"{") and b'"reporter"' in value and b'"pair"' not in value:
                flow = json.loads(value)
                call = (flow["tenant"], flow["dst"], flow["calls"], flow["time_ms"])
                if flow["reporter"] == "client":
                    self._waiting[call] = value
                    continue
                other = self._waiting.pop(call, None)
                value = value if other is None else b"[" + other + b"," + value + b"]"
            kept.append(number)
            values.append(value)

        def take(column: Any) -> list[Any]:
            return [column[number] for number in kept]

        smaller = MessageChunk(
            chunk.topic,
            chunk.partition,
            chunk.first_offset,
            chunk.next_offset,
            np.array(take(chunk.offsets), dtype=np.int64),
            values,
            take(chunk.keys),
            take(chunk.headers),
            take(chunk.timestamps),
            chunk.timestamp_type,
        )
        return super().encode(smaller, after, worker, as_of_ms)


def _offset_alone(offsets: IntColumn, indexes: IntColumn) -> IntColumn:
    packed: IntColumn = offsets << 20
    return packed


def _idle_by_the_clock(standing: SourceStanding, idle_ms: int | None) -> int:
    state = state_of(standing, idle_ms)
    return IDLE if state == ACTIVE and idle_ms is not None and standing.unmoved_ms >= idle_ms else state


# -- checkpoints -------------------------------------------------------------------------------------------------------


class _ManifestFirstStore:
    def __init__(self, store: Any) -> None:
        self._store = store
        self._chunks: list[tuple[int, str, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, partition: int, key: str, value: bytes) -> None:
        if not is_manifest(key):
            self._chunks.append((partition, key, value))
            return
        mine = [chunk for chunk in self._chunks if chunk[0] == partition]
        self._chunks = [chunk for chunk in self._chunks if chunk[0] != partition]
        await self._store.put(partition, key, value)
        for chunk in mine:
            await self._store.put(*chunk)


class _ManifestFirst(Checkpoints):
    def __init__(self, store: Any, incarnation: str) -> None:
        super().__init__(_ManifestFirstStore(store), incarnation)


class _EventsLast(GraphPartition):
    """Publishes what a chunk brought about once the checkpoint that may be due is written."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._deferred: list[Output] = []

    async def _perform(self, output: Output) -> None:
        self._deferred.append(output)

    async def apply(self, offsets: Any, values: Any) -> int | None:
        result = await super().apply(offsets, values)
        async with self.turn:
            deferred, self._deferred = self._deferred, []
            for output in deferred:
                await super()._perform(output)
        return result


# -- the state machine -------------------------------------------------------------------------------------------------


@contextmanager
def _machine(kind: type[Machine], after_restore: Callable[[Machine], None] = lambda _: None) -> Iterator[None]:
    """Give partitions another state machine; the judge keeps the sound one."""

    def restored(chunks: dict[str, bytes]) -> Machine:
        machine = restore(chunks)
        machine.__class__ = kind
        after_restore(machine)
        return machine

    with patch("streams.graph.partition.Machine", kind), patch("streams.graph.partition.restore", restored):
        yield


class _FiltersNothing(Machine):
    def _apply_to_lane(self, record: LogRecord, config: LaneConfig) -> Output:
        applied, self.applied = self.applied, {}
        try:
            return super()._apply_to_lane(record, config)
        finally:
            self.applied = applied


class _KeepsCoordinates(Machine):
    def begin_incarnation(self) -> Output:
        applied = self.applied
        output = super().begin_incarnation()
        self.applied = applied
        return output


def _forget_clocks(machine: Machine) -> None:
    for lane in machine.lanes.values():
        lane.clock = LaneClock(lane.config)
        lane.clock.declare(lane.config)


def _forget_halves(machine: Machine) -> None:
    for lane in machine.lanes.values():
        lane.halves = Halves()


def _advance_of_members_heard(lane: LaneState) -> Output:
    everybody = lane.clock.members
    lane.clock.members = {key: member for key, member in everybody.items() if member.as_of_ms > 0}
    try:
        return advance(lane)
    finally:
        lane.clock.members = everybody


# -- sinks -------------------------------------------------------------------------------------------------------------


class _BareToken(PartitionWriter):
    """Cuts inserts by size and numbers them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, max_rows=3)
        self._number = 0

    async def _write_insert(self, insert: Any) -> int:
        self._number += 1
        return await super()._write_insert(insert)

    def _insert_blocking(self, insert: Any) -> None:
        settings = {"insert_deduplication_token": f"{self._topic}|{self._partition}|{self._number}"}
        self._client.insert_arrow(insert.table.name, insert.arrow_table(), database=self._database, settings=settings)


def _by_name(variants: Iterable[Variant]) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


VARIANTS = _by_name(
    [
        Variant("offset-committed-before-every-target", ingest=_CommitsEarly),
        Variant("no-coordinate-filter", applied=lambda: _machine(_FiltersNothing)),
        Variant("offset-without-index", applied=lambda: patch("streams.ingest.columns.positions_of", _offset_alone)),
        Variant("manifest-before-chunks", checkpoints=_ManifestFirst),
        Variant("events-after-manifest", partition=_EventsLast),
        Variant("statement-before-its-rows", ingest=_StatesEarly),
        Variant(
            "idle-without-empty-fetch",
            applied=lambda: patch("streams.ingest.statements.state_of", _idle_by_the_clock),
        ),
        Variant(
            "membership-ignored",
            applied=lambda: patch("models.graph.machine.advance", _advance_of_members_heard),
        ),
        Variant("pairing-kept-in-ingest", reader=_Pairs),
        Variant("clock-forgotten-at-restart", applied=lambda: _machine(Machine, _forget_clocks)),
        Variant("halves-forgotten-at-restart", applied=lambda: _machine(Machine, _forget_halves)),
        Variant(
            "new-incarnation-with-old-coordinates",
            source=lambda topic, _: topic,
            applied=lambda: _machine(_KeepsCoordinates),
        ),
        Variant("bare-insert-token", writer=_BareToken),
    ]
)
