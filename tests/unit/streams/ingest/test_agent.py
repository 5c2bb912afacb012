"""The ingest worker on a simulated Kafka: order of acknowledgements, commits, restarts, loss, pauses, statements."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from models.graph.machine import Machine
from schemas.errors import LossDetected
from schemas.ids import end_position
from schemas.settings import FlowTopic
from schemas.tenant_log import ACTIVE, END_REACHED, IDLE, PAUSED, LaneConfig, LogRecord, Member, decode_record
from streams.ingest.agent import COMMIT_EVERY_MS, QUEUED_CHUNKS, IngestOptions, IngestWorker
from streams.ingest.chain import position_before
from streams.ingest.ports import FetchStatus, SourcePartition
from streams.ingest.readers import ControlReader, FlowReader, SourceReader
from streams.metrics import Metrics

TARGETS = 3
LANE = LaneConfig("default", members=(Member("flows#1", 2),), max_wait_ms=60_000)


@dataclass
class Simulated:
    """Kafka, clock and all, in memory. Sends wait while ``gate`` is closed."""

    now: int = 1_000
    log: list[list[LogRecord]] = field(default_factory=lambda: [[] for _ in range(TARGETS)])
    dead: list[tuple[bytes, dict[str, bytes]]] = field(default_factory=list)
    offsets: dict[SourcePartition, int] = field(default_factory=dict)
    paused: set[SourcePartition] = field(default_factory=set)
    assigned: dict[SourcePartition, FetchStatus] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    commits_work: bool = True
    refuse: Exception | None = None
    counts: Counter[str] = field(default_factory=Counter)
    under_way: dict[tuple[int, str, int], int] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def now_ms(self) -> int:
        return self.now

    async def send(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None = None, headers: Any = ()
    ) -> int:
        assert value is not None
        if topic == "dead":
            await self.gate.wait()
            assert key is not None
            self.dead.append((key, dict(headers)))
            self.history.append("dead letter")
            return len(self.dead)
        record = decode_record(value)
        if self.refuse is not None and record.rows is not None:
            raise self.refuse
        is_statement = all(progress.after == progress.upto for progress in record.progress)
        first = record.progress[0]
        key3 = (partition, first.source, first.partition)
        if not is_statement:
            assert not self.under_way.get(key3), "one unacknowledged record per source partition and target"
            self.under_way[key3] = 1
        await self.gate.wait()
        await asyncio.sleep(0)
        self.under_way[key3] = 0
        self.log[partition].append(record)
        self.history.append(f"statement {partition}" if is_statement else f"record {partition}")
        return len(self.log[partition])

    async def commit(self, offsets: Mapping[SourcePartition, int]) -> bool:
        if self.commits_work:
            self.offsets.update(offsets)
            self.history.append("commit")
        return self.commits_work

    def pause(self, partitions: Iterable[SourcePartition]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[SourcePartition]) -> None:
        self.paused -= set(partitions)

    def status(self) -> dict[SourcePartition, FetchStatus]:
        return self.assigned

    async def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1000)
        await asyncio.sleep(0)

    def worker(self, **options: Any) -> IngestWorker:
        readers: dict[str, SourceReader] = {
            "flows": FlowReader(FlowTopic(), "flows#1", LANE, TARGETS),
            "drift-controls": ControlReader("drift-controls#1", TARGETS),
        }
        chosen: dict[str, Any] = {
            "worker": "w",
            "log_topic": "tenant-log",
            "targets": TARGETS,
            "dead_letter_topic": "dead",
            "dead_letter_partitions": 2,
            "statement_every_ms": 1_000,
            "idle_ms": {"default": 5_000},
            **options,
        }
        return IngestWorker(
            IngestOptions(**chosen),
            readers,
            producer=self,
            commits=self,
            pauses=self,
            status=self,
            clock=self,
            metrics=Metrics(),
            sleep=self.sleep,
        )

    def rows(self) -> int:
        return sum(r.rows.count for records in self.log for r in records if r.rows is not None)

    def replay_log(self) -> list[Machine]:
        """Apply each partition's log as the graph side would; raises on a broken chain."""
        machines = [Machine() for _ in self.log]
        for machine, records in zip(machines, self.log, strict=True):
            for offset, record in enumerate(records):
                self.counts.update(machine.apply(offset, record).counts)
        return machines


@dataclass
class Fetched:
    """A chunk as the transport hands it over."""

    partition: int
    first_offset: int
    values: list[bytes | None]
    topic: str = "flows"
    keys: list[bytes | None] = field(default_factory=list)
    highwater: int = 1 << 30
    generation: int = 1
    timestamp_type: int = 0
    corrupt: Any = None
    is_released: bool = False

    def release(self) -> None:
        self.is_released = True

    def __post_init__(self) -> None:
        self.next_offset = self.first_offset + len(self.values)
        self.offsets = np.arange(self.first_offset, self.next_offset, dtype=np.int64)
        self.keys = self.keys or [None] * len(self.values)
        self.headers: list[Any] = [()] * len(self.values)
        self.timestamps = [-1] * len(self.values)


def flow(time_ms: int = 1_000, tenant: str = "acme", **changes: object) -> bytes:
    return json.dumps({"time_ms": time_ms, "src": "a", "dst": "b", "tenant": tenant, **changes}).encode()


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def started(kafka: Simulated, *partitions: int, **options: Any) -> IngestWorker:
    worker = kafka.worker(**options)
    for partition in partitions:
        kafka.assigned["flows", partition] = FetchStatus(0, True, 0)
        await worker.start("flows", partition, kafka.offsets.get(("flows", partition)), 0)
    return worker


async def test_dead_letters_then_records_of_every_target_then_the_commit() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    kafka.history.clear()
    worker.submit(Fetched(0, 0, [flow(), b"junk", flow(tenant="globex")]))
    await worker.drain()
    assert kafka.history[0] == "dead letter"
    assert sorted(kafka.history[1:]) == ["record 0", "record 1", "record 2"]
    assert kafka.offsets["flows", 0] == 0, "nothing is committed by the way"
    kafka.now += COMMIT_EVERY_MS
    await worker.tick()
    assert kafka.offsets["flows", 0] == 3
    assert kafka.dead[0][0] == b"flows:0:1:1048575"
    kafka.replay_log()
    await worker.close()


async def test_a_chunk_gives_its_share_of_the_budget_back_when_it_is_done_or_no_longer_ours() -> None:
    worker = await started(Simulated(), 0)
    done, waiting = Fetched(0, 0, [flow(), b"junk"]), Fetched(0, 2, [flow()])
    worker.submit(done)
    await worker.drain()
    await until(lambda: done.is_released)
    worker.hold(True)
    worker.submit(waiting)
    assert not waiting.is_released
    await worker.revoke([("flows", 0)])
    assert waiting.is_released


async def test_nothing_is_committed_before_every_target_has_it() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    kafka.gate.clear()
    worker.submit(Fetched(0, 0, [flow()]))
    await until(lambda: len(kafka.under_way) == TARGETS)
    kafka.now += COMMIT_EVERY_MS
    await worker.tick()
    assert kafka.offsets["flows", 0] == 0
    kafka.gate.set()
    await worker.drain()
    kafka.now += COMMIT_EVERY_MS
    await worker.tick()
    assert kafka.offsets["flows", 0] == 1
    await worker.close()


async def test_a_start_without_a_committed_offset_is_committed_before_any_row_is_written() -> None:
    kafka = Simulated(commits_work=False)
    worker = kafka.worker()
    kafka.assigned["flows", 0] = FetchStatus(0, True, 0)
    assert await worker.start("flows", 0, None, 40) == 40
    worker.submit(Fetched(0, 40, [flow()]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert kafka.rows() == 0
    kafka.commits_work = True
    await worker.tick()
    assert kafka.offsets["flows", 0] == 40
    await until(lambda: kafka.rows() == 1)
    assert min(p.after for records in kafka.log for r in records for p in r.progress) == position_before(40)
    await worker.close()


async def test_waiting_chunks_are_joined_and_source_partitions_go_on_side_by_side() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, 1)
    kafka.gate.clear()
    for at in range(0, 40, 10):
        worker.submit(Fetched(0, at, [flow()] * 10))
    worker.submit(Fetched(1, 0, [flow()] * 5))
    await until(lambda: len(kafka.under_way) == 2 * TARGETS)
    kafka.gate.set()
    await worker.drain()
    assert kafka.rows() == 45
    ranges = [(p.partition, p.upto) for r in kafka.log[0] for p in r.progress]
    assert sorted(ranges) == [(0, end_position(39)), (1, end_position(4))]
    await worker.close()


async def test_repeated_chunks_are_skipped_and_overlapping_ones_trimmed() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    for first, count in ((0, 4), (0, 4), (2, 4), (6, 1)):
        worker.submit(Fetched(0, first, [flow()] * count))
        await worker.drain()
    assert kafka.rows() == 7
    kafka.replay_log()
    await worker.close()


async def test_a_hole_between_chunks_stops_that_source_partition_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, 1)
    worker.submit(Fetched(0, 0, [flow()]))
    await worker.drain()
    worker.submit(Fetched(0, 5, [flow()]))
    worker.submit(Fetched(1, 0, [flow()]))
    await worker.drain()
    assert "ingest of flows[0] stopped at offset 1: fetched from offset 5 on, expected 1" in caplog.text
    assert kafka.rows() == 2
    assert ("flows", 0) in kafka.paused and ("flows", 1) not in kafka.paused
    worker.submit(Fetched(0, 1, [flow()]))
    await worker.drain()
    assert kafka.rows() == 2
    await worker.close()


async def test_an_error_that_repeating_cannot_mend_stops_the_partition_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kafka = Simulated(refuse=PermissionError("not authorised"))
    worker = await started(kafka, 1)
    worker.submit(Fetched(1, 0, [flow()]))
    await worker.drain()
    assert "ingest of flows[1] stopped at offset 0: PermissionError: not authorised" in caplog.text
    kafka.now += COMMIT_EVERY_MS
    await worker.tick()
    assert kafka.offsets["flows", 1] == 0
    await worker.close()


@pytest.mark.parametrize("crash_at", range(0, 12, 2))
async def test_a_crash_anywhere_loses_nothing_and_changes_nothing(crash_at: int) -> None:
    kafka = Simulated()
    messages = [flow(tenant=f"t{i % 5}", time_ms=i) for i in range(30)]
    worker = await started(kafka, 0)
    for at in range(0, 30, 3):
        worker.submit(Fetched(0, at, list(messages[at : at + 3])))
        for _ in range(crash_at):
            await asyncio.sleep(0)
        kafka.now += COMMIT_EVERY_MS
        if at == 15:
            await worker.tick()
    await worker.revoke([("flows", 0)])
    next_worker = await started(kafka, 0)
    committed = kafka.offsets["flows", 0]
    next_worker.submit(Fetched(0, committed, list(messages[committed:])))
    await next_worker.drain()
    machines = kafka.replay_log()
    assert {m.applied["flows#1", 0] for m in machines} == {end_position(29)}
    assert kafka.counts["on_time"] + kafka.counts["late"] == 30, "rows sent again are skipped, none is missing"
    assert kafka.counts["repeated"] == kafka.rows() - 30
    await next_worker.close()


async def test_a_kept_partition_goes_on_from_what_was_acknowledged() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    worker.submit(Fetched(0, 0, [flow()] * 4))
    await worker.drain()
    kafka.gate.clear()
    worker.submit(Fetched(0, 4, [flow()] * 2))
    await until(lambda: any(kafka.under_way.values()))
    assert await worker.start("flows", 0, 0, 0) == 4, "the committed offset is older, what is under way does not count"
    kafka.under_way.clear()
    kafka.gate.set()
    worker.submit(Fetched(0, 4, [flow()] * 3))
    await worker.drain()
    kafka.replay_log()
    await worker.close()


async def test_deleted_records_stop_the_partition_unless_their_loss_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for accepts in (False, True):
        kafka = Simulated()
        worker = await started(kafka, 0, accept_loss=accepts)
        worker.submit(Fetched(0, 0, [flow()]))
        await worker.drain()
        answer = await worker.accept_loss("flows", 0, 1, 10, 20)
        if not accepts:
            assert answer is None and "9 records from offset 1 on were deleted unread" in caplog.text
            await worker.close()
            continue
        assert answer == 10
        worker.submit(Fetched(0, 10, [flow()]))
        await worker.drain()
        assert [r.loss for r in kafka.log[0]] == [False, True, False]
        machines = kafka.replay_log()
        assert all(lane.lost for m in machines for lane in m.lanes.values())
        without_the_mark = [record for record in kafka.log[0] if not record.loss]
        machine = Machine()
        machine.apply(0, without_the_mark[0])
        with pytest.raises(LossDetected):
            machine.apply(1, without_the_mark[1])
        await worker.close()


async def test_a_log_that_ends_below_what_was_read_is_never_accepted(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, accept_loss=True)
    assert await worker.accept_loss("flows", 0, 50, 0, 3) is None
    assert "give it a new topics.incarnation" in caplog.text
    await worker.close()


async def test_fetching_pauses_while_chunks_wait_and_goes_on_afterwards() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    kafka.gate.clear()
    for at in range(QUEUED_CHUNKS + 1):
        worker.submit(Fetched(0, at, [flow()]))
    assert ("flows", 0) in kafka.paused
    kafka.gate.set()
    await worker.drain()
    await until(lambda: ("flows", 0) not in kafka.paused)
    await worker.close()


async def test_a_partition_far_ahead_waits_for_one_with_backlog() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, 1)
    worker.submit(Fetched(0, 0, [flow(time_ms=1_000)]))
    worker.submit(Fetched(1, 0, [flow(time_ms=100_000)]))
    await worker.drain()
    kafka.gate.clear()
    worker.submit(Fetched(0, 1, [flow(time_ms=2_000)]))
    worker.submit(Fetched(0, 2, [flow(time_ms=3_000)]))
    await until(lambda: any(kafka.under_way.values()))
    worker.submit(Fetched(0, 3, [flow(time_ms=4_000)]))
    worker.submit(Fetched(1, 1, [flow(time_ms=101_000)]))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not any(source == "flows#1" and number == 1 for (_, source, number), n in kafka.under_way.items() if n)
    kafka.gate.set()
    await worker.drain()
    assert kafka.rows() == 6
    await worker.close()


def statements_of(kafka: Simulated, target: int = 0) -> list[LogRecord]:
    return [r for r in kafka.log[target] if all(p.after == p.upto for p in r.progress)]


async def state(kafka: Simulated, worker: IngestWorker) -> dict[int, tuple[int, int]]:
    """Have everything stated; return (position, state) by source partition."""
    before = len(statements_of(kafka))
    kafka.now += 1_000
    now_ms = kafka.now
    await worker.tick()
    await until(lambda: not worker._statements)
    assert all(len(statements_of(kafka, target)) == before + 1 for target in range(TARGETS))
    last = statements_of(kafka)[-1]
    assert last.as_of_ms == now_ms and last.lane == LANE
    return {p.partition: (p.upto, p.state) for p in last.progress}


async def test_statements_speak_of_acknowledged_positions_only() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, 1)
    assert await state(kafka, worker) == {0: (-1, END_REACHED), 1: (-1, END_REACHED)}
    kafka.gate.clear()
    worker.submit(Fetched(0, 0, [flow()]))
    await until(lambda: any(kafka.under_way.values()))
    kafka.now += 1_000
    await worker.tick()
    kafka.gate.set()
    await worker.drain()
    await until(lambda: len(statements_of(kafka)) == 2)
    assert statements_of(kafka)[1].progress[0].upto == -1
    assert statements_of(kafka)[1].progress[0].state == ACTIVE
    kafka.assigned["flows", 0] = FetchStatus(1, True, 0)
    assert (await state(kafka, worker))[0] == (end_position(0), END_REACHED)
    kafka.replay_log()
    await worker.close()


async def test_a_partition_at_its_end_becomes_idle_and_active_again() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    kafka.now += 4_500
    assert (await state(kafka, worker))[0][1] == IDLE
    kafka.assigned["flows", 0] = FetchStatus(9, False, 0)
    assert (await state(kafka, worker))[0][1] == ACTIVE
    kafka.assigned["flows", 0] = FetchStatus(None, False, None)
    assert (await state(kafka, worker))[0][1] == ACTIVE, "before the first fetch of a generation nothing is known"
    kafka.assigned["flows", 0] = FetchStatus(0, True, 60_000)
    assert (await state(kafka, worker))[0][1] == ACTIVE, "an old fetch proves nothing"
    await worker.close()


async def test_garbage_alone_does_not_keep_a_partition_from_idling() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    worker.submit(Fetched(0, 0, [flow()], highwater=1))
    await worker.drain()
    for at in range(1, 8):
        worker.submit(Fetched(0, at, [b"junk"], highwater=at + 1))
        await worker.drain()
        kafka.assigned["flows", 0] = FetchStatus(at + 1, False, 0)
        stated = await state(kafka, worker)
    assert stated[0] == (end_position(7), IDLE)
    await worker.close()


async def test_partitions_of_others_and_stopped_ones_are_not_stated() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0, 1)
    del kafka.assigned["flows", 0]
    assert set(await state(kafka, worker)) == {1}
    await worker.close()


async def test_a_flooded_partition_is_stated_as_paused() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    worker.pause([("flows", 0)])
    worker.submit(Fetched(0, 0, [flow()]))
    assert (await state(kafka, worker))[0][1] == PAUSED
    assert kafka.rows() == 0 and ("flows", 0) in kafka.paused
    worker.resume([("flows", 0)])
    await worker.drain()
    assert kafka.rows() == 1 and ("flows", 0) not in kafka.paused
    await worker.close()


async def test_a_worker_on_hold_takes_nothing() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    worker.hold(True)
    worker.submit(Fetched(0, 0, [flow()]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert kafka.rows() == 0
    worker.hold(False)
    await worker.drain()
    assert kafka.rows() == 1
    await worker.close()


async def test_a_new_declaration_is_stated_without_new_records() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    reader = worker._readers["flows"]
    assert isinstance(reader, FlowReader)
    reader.lane = LaneConfig("default", members=(Member("flows#1", 9),))
    worker.redeclare()
    kafka.now += 1_000
    await worker.tick()
    await until(lambda: statements_of(kafka))
    assert statements_of(kafka)[-1].lane == reader.lane
    await worker.close()


async def test_controls_are_forwarded_from_the_start_at_every_start() -> None:
    kafka = Simulated()
    for _ in range(2):
        worker = kafka.worker()
        kafka.assigned["drift-controls", 0] = FetchStatus(1, True, 0)
        assert await worker.start("drift-controls", 0, None, 3) == 3
        worker.submit(Fetched(0, 3, [b"{}"], topic="drift-controls", keys=[b"acme:whitelist:1"]))
        await worker.drain()
        kafka.now += COMMIT_EVERY_MS
        await worker.tick()
        await worker.close()
    assert kafka.offsets == {}
    controls = [r for records in kafka.log for r in records if r.controls]
    assert [p.after for r in controls for p in r.progress] == [-1, -1]
    kafka.replay_log()


async def test_metrics_count_flows_and_dead_letters() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    worker.submit(Fetched(0, 0, [flow(), b"junk", flow(), b""], highwater=10))
    await worker.drain()
    kafka.assigned["flows", 0] = FetchStatus(10, False, 0)
    await worker.tick()
    value = worker._metrics.registry.get_sample_value
    assert value("drift_ingest_flows_total", {"topic": "flows"}) == 2
    assert value("drift_dead_letters_total", {"topic": "flows", "reason": "malformed"}) == 1
    assert value("drift_dead_letters_total", {"topic": "flows", "reason": "empty"}) == 1
    assert worker.lags() == {("flows", 0): 6}
    assert worker.lags({("flows", 0): 14}) == {("flows", 0): 10}, "the log has grown since the last fetch"
    await worker.revoke([("flows", 0)])
    assert worker.lags() == {}
    await worker.close()
