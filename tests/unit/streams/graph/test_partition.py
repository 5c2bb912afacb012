"""The graph partition's promise: crash it at any effect, start it again: the results are those of an uncrashed run."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from models.graph.output import RowDeadLetter
from schemas.drift import Activity, DriftEvent
from schemas.errors import CheckpointError, LossDetected
from schemas.graph import ClosedWindow, chunk_window, encode_chunk
from schemas.tenant_log import encode_record
from streams.graph.checkpoints import Checkpoints, FileChunkStore
from streams.graph.partition import GraphPartition
from streams.metrics import Metrics
from tests.builders import end_of, make_flow, make_lane, record_of


class Crash(Exception):
    """The process dies here."""


class Bomb:
    """Counts effects and crashes before or after the one it is set to."""

    def __init__(self, at: int | None = None, after: bool = False) -> None:
        self.at, self.after, self.count = at, after, 0

    def before(self) -> None:
        self.count += 1
        if self.count == self.at and not self.after:
            raise Crash

    def done(self) -> None:
        if self.count == self.at and self.after:
            raise Crash


class MemoryStore:
    """A chunk store that survives crashes of its users."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.bomb = Bomb()

    async def put(self, partition: int, key: str, value: bytes) -> None:
        self.bomb.before()
        self.values[key] = value
        self.bomb.done()

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        self.bomb.before()
        for key in keys:
            self.values.pop(key, None)
        self.bomb.done()

    async def read_all(self, partition: int) -> dict[str, bytes]:
        return dict(self.values)


class MemorySink:
    """Topics that survive crashes."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.events: list[DriftEvent] = []
        self.chunks: dict[tuple[str, int, int], bytes] = {}

    async def publish_events(self, partition: int, events: Sequence[DriftEvent]) -> int:
        for event in events:
            self.store.bomb.before()
            self.events.append(event)
            self.store.bomb.done()
        return len(self.events)

    async def publish_windows(self, partition: int, windows: Sequence[ClosedWindow]) -> None:
        for window in windows:
            for chunk in chunk_window(window):
                self.store.bomb.before()
                key, value = (chunk.tenant, chunk.start_ms, chunk.shard), encode_chunk(chunk)
                assert self.chunks.setdefault(key, value) == value, "a repeated chunk has other bytes"
                self.store.bomb.done()

    async def publish_dead(self, dead: Sequence[RowDeadLetter]) -> None:
        assert not dead

    async def published_since(self, partition: int, offset: int) -> set[str]:
        return {event.event_id for event in self.events[offset:]}


class StepClock:
    """Advances with every look: checkpoints come often."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        self.ms += 40
        return self.ms


def partition_of(store: MemoryStore, sink: MemorySink, incarnation: str = "1") -> GraphPartition:
    return GraphPartition(0, incarnation, Checkpoints(store, incarnation), sink, StepClock(), Metrics(), 120)


def log_of(windows: int = 9) -> list[bytes]:
    """Records of steady edges with a slow-down, a new edge and an edge that stops."""
    lane = make_lane(lateness_ms=2_000)
    flows = []
    for window in range(windows):
        for call in range(12):
            for src, dst in (("web", "cart"), ("web", "pay"), ("cart", "db")):
                if dst == "pay" and window >= 7:
                    continue
                slow = 9 if dst == "db" and window == 8 else 1
                flows.append(make_flow(window * 10_000 + call * 800, src=src, dst=dst, latency_us=1_000 * slow + call))
        if window >= 5:
            flows.append(make_flow(window * 10_000 + 9_000, src="cart", dst="ext:mail"))
    records, offset = [], 0
    for start in range(0, len(flows), 25):
        batch = flows[start : start + 25]
        records.append(encode_record(record_of(lane, 0, offset, batch)))
        offset += len(batch)
    records.append(encode_record(end_of(lane, 0, offset)))
    return records


async def run(partition: GraphPartition, log: list[bytes], start: int | None) -> None:
    first = start or 0
    for offset in range(first, len(log)):
        if await partition.apply([offset], [log[offset]]) is not None:
            await partition.prune()
    if await partition.checkpoint() is not None:
        await partition.prune()


async def straight(log: list[bytes]) -> tuple[MemoryStore, MemorySink]:
    store = MemoryStore()
    sink = MemorySink(store)
    partition = partition_of(store, sink)
    await run(partition, log, await partition.recover())
    return store, sink


async def test_a_crash_at_any_effect_and_a_restart_change_no_result() -> None:
    log = log_of()
    reference_store, reference = await straight(log)
    expected = [event.event_id for event in reference.events]
    assert {event.kind.value for event in reference.events} >= {"new_external_egress"}
    effects = reference_store.bomb.count
    assert effects > 40
    # A crash after one effect leaves what a crash before the next one leaves; only the last has no next.
    for at, after in [*((number, False) for number in range(1, effects + 1)), (effects, True)]:
        store = MemoryStore()
        sink = MemorySink(store)
        store.bomb = Bomb(at, after)
        partition = partition_of(store, sink)
        with pytest.raises(Crash):
            await run(partition, log, await partition.recover())
        store.bomb = Bomb()
        again = partition_of(store, sink)
        await run(again, log, await again.recover())
        assert [event.event_id for event in sink.events] == expected, f"crash at effect {at}, after={after}"
        assert sink.chunks == reference.chunks


class SlowSink(MemorySink):
    """Publishes windows only when it may."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def publish_windows(self, partition: int, windows: Sequence[ClosedWindow]) -> None:
        self.asked.set()
        await self.may.wait()
        await super().publish_windows(partition, windows)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_checkpoint_beside_a_record_under_way_loses_none_of_its_results(is_cancelled: bool) -> None:
    log = log_of()
    _, reference = await straight(log)
    store = MemoryStore()
    sink = SlowSink(store)
    partition = partition_of(store, sink)
    await partition.recover()
    running = asyncio.create_task(run(partition, log, 0))
    await sink.asked.wait()
    checkpoint = asyncio.create_task(partition.checkpoint())
    await asyncio.sleep(0)
    if is_cancelled:
        running.cancel()
    else:
        sink.may.set()
    await checkpoint
    running.cancel()
    await asyncio.wait([running])
    sink.may.set()
    again = partition_of(store, sink)
    await run(again, log, await again.recover())
    assert sink.chunks == reference.chunks
    assert [event.event_id for event in sink.events] == [event.event_id for event in reference.events]


async def test_a_new_incarnation_keeps_baselines_and_closes_open_windows_as_incomplete() -> None:
    log = log_of()
    store = MemoryStore()
    sink = MemorySink(store)
    first = partition_of(store, sink)
    await run(first, log[:-2], await first.recover())
    open_before = len(first.machine.lanes["test"].windows)
    assert open_before > 0
    second = partition_of(store, sink, incarnation="2")
    assert await second.recover() is None
    lane = second.machine.lanes["test"]
    assert not lane.windows and second.machine.applied == {}
    assert lane.registry.edge.array["known"][: len(lane.registry)].all()
    assert lane.tenants[0].closed_windows == first.machine.lanes["test"].tenants[0].closed_windows + open_before


async def test_a_gap_in_the_log_stops_the_partition() -> None:
    log = log_of()
    store = MemoryStore()
    partition = partition_of(store, MemorySink(store))
    await partition.apply([0], [log[0]])
    with pytest.raises(LossDetected):
        await partition.apply([1], [log[2]])


async def test_a_finding_is_created_once_and_settled_once() -> None:
    _, sink = await straight(log_of())
    for finding in {event.finding_id for event in sink.events}:
        life = [event for event in sink.events if event.finding_id == finding]
        assert [event.activity for event in life].count(Activity.CREATE) == 1
        assert sum(event.activity is Activity.UPDATE for event in life) == sum(event.is_early for event in life)


async def test_a_damaged_chunk_is_refused_and_not_misread() -> None:
    store, _ = await straight(log_of())
    name = [key for key in store.values if "edges" in key][-1]
    store.values[name] = store.values[name][:-1] + bytes([store.values[name][-1] ^ 1])
    with pytest.raises(CheckpointError):
        await partition_of(store, MemorySink(store)).recover()


async def test_files_hold_the_last_two_manifests_and_what_they_name(tmp_path: Path) -> None:
    checkpoints = Checkpoints(FileChunkStore(tmp_path), "1")
    for offset in range(5):
        await checkpoints.write(3, offset, 0, [("meta", b"%d" % offset), ("same/edges/0", b"fixed")])
        await checkpoints.prune(3)
    loaded = await Checkpoints(FileChunkStore(tmp_path), "1").load(3)
    assert loaded is not None
    manifest, chunks = loaded
    assert manifest.offset == 4 and chunks == {"meta": b"4", "same/edges/0": b"fixed"}
    names = sorted(path.name for path in (tmp_path / "partition-3").iterdir())
    assert names == ["manifest@3", "manifest@4", "meta@3", "meta@4", "same%2Fedges%2F0@0"]


async def test_a_short_incarnation_is_remembered_after_a_long_one() -> None:
    """Offsets begin anew with the log: the lower ones of a later incarnation are the later state."""
    store = MemoryStore()
    before = Checkpoints(store, "1")
    await before.write(0, 900, 40, [("meta", b"old"), ("edges/0", b"kept")])
    await before.write(0, 1_000, 50, [("meta", b"older run"), ("edges/0", None)])

    second = Checkpoints(store, "2")
    loaded = await second.load(0)
    assert loaded is not None and loaded[0].offset == 1_000
    await second.write(0, 900, 3, [("meta", b"newer run"), ("edges/0", None)])

    third = await Checkpoints(store, "3").load(0)
    assert third is not None
    manifest, chunks = third
    assert (manifest.offset, manifest.events_offset, manifest.incarnation) == (900, 3, "2")
    assert chunks == {"meta": b"newer run", "edges/0": b"kept"}


async def test_a_restart_leaves_no_chunks_behind() -> None:
    store = MemoryStore()
    for offset in range(6):
        checkpoints = Checkpoints(store, "1")
        await checkpoints.load(0)
        await checkpoints.write(0, offset, 0, [("meta", b"%d" % offset)])
        await checkpoints.prune(0)
    assert sorted(store.values) == ["manifest@4", "manifest@5", "meta@4", "meta@5"]


async def test_an_interrupted_start_into_a_new_incarnation_publishes_nothing_twice() -> None:
    log, store = log_of(), MemoryStore()
    sink = MemorySink(store)
    partition = partition_of(store, sink)
    await partition.recover()
    await partition.apply(range(len(log) // 2), log[: len(log) // 2])
    await partition.checkpoint()
    for _ in range(2):  # no checkpoint in between: the second start begins where the first one did
        await partition_of(store, sink, "2").recover()
    ids = [event.event_id for event in sink.events]
    assert len(ids) == len(set(ids))


async def test_nothing_goes_on_behind_a_record_whose_results_were_not_published() -> None:
    """Its events would be missing for ever: the next checkpoint would stand behind them."""
    log, store = log_of(), MemoryStore()
    partition = partition_of(store, MemorySink(store))
    await partition.recover()
    store.bomb = Bomb(at=1)
    with pytest.raises(Crash):
        await partition.apply(range(len(log)), log)
    stopped_at = partition.machine.offset
    store.bomb = Bomb()
    with pytest.raises(LossDetected, match="is not out"):
        await partition.apply(range(len(log)), log)
    assert await partition.checkpoint() is None
    assert partition.machine.offset == stopped_at
