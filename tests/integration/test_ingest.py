"""Ingest on a real broker: what goes into source topics comes out of `tenant-log` exactly once, over restarts too."""

import asyncio
import contextlib
import gzip
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import faust
import pyarrow as pa
import pytest
from aiokafka import TopicPartition

from models.graph.clock import END_OF_TIME_MS
from models.graph.machine import Machine
from schemas.dead_letter import KEPT_PAYLOAD_BYTES, Reason
from schemas.ids import partition_of
from schemas.settings import FlowTopic, Settings
from schemas.tenant_log import END_REACHED, IDLE, LogRecord, decode_record
from streams.batching import use_batching
from streams.clock import SystemClock
from streams.dead_letters import decode_dead_letter
from streams.ingest.agent import IngestWorker
from streams.ingest.faust_agent import IngestAgents, register_ingest
from streams.kafka_clients import faust_broker, make_consumer, make_producer
from streams.metrics import Metrics
from streams.producing import AcknowledgedProducer
from streams.replay import ReplayLane, push_file
from streams.topics import ensure_topics

pytestmark = pytest.mark.kafka
NOW_MS = 1_700_000_000_000
DEADLINE_S = 180.0


def flow(number: int, **changes: object) -> bytes:
    tenant = f"tenant-{number % 7}"
    return json.dumps(
        {"time_ms": NOW_MS + number, "src": f"s{number % 11}", "dst": "d", "tenant": tenant, **changes}
    ).encode()


def arrow(numbers: range) -> bytes:
    table = pa.Table.from_pylist([json.loads(flow(number)) for number in numbers])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@contextlib.asynccontextmanager
async def ingesting(settings: Settings) -> AsyncIterator[tuple[IngestAgents, Metrics]]:
    """Run a worker with the ingest agents alone."""
    counts = await ensure_topics(settings)
    producer = make_producer(settings.kafka)
    await producer.start()
    app = faust.App(
        settings.worker.group,
        **faust_broker(settings.kafka),
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        store="memory://",
        datadir=tempfile.gettempdir(),
    )
    metrics = Metrics()
    ingest = register_ingest(app, settings, counts, AcknowledgedProducer(producer, metrics), metrics, SystemClock())
    use_batching(app, ingest.topics, start_offset=ingest.start_offset, on_out_of_range=ingest.on_out_of_range)
    await app.start()
    try:
        yield ingest, metrics
    finally:
        await ingest.close()
        await app.stop()
        await producer.stop()


@contextlib.asynccontextmanager
async def ingesting_until_death(settings: Settings) -> AsyncIterator[tuple[IngestAgents, Metrics]]:
    """Run a worker as `ingesting` does, one that never comes to commit what it has done."""

    async def never(*_: Any) -> bool:
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IngestWorker, "_commit", never)  # from the start: it commits twice a second
        async with ingesting(settings) as running:
            yield running


async def all_read(ingest: IngestAgents, settings: Settings) -> None:
    """Wait until all that stands in the source topics by now is acknowledged.

    Not by the worker's lags: they know the end of a log as of the last fetch, and none before the first.
    """
    names = [settings.flows[0].topic, settings.topics.name("replay")]
    count = settings.topics.partitions
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        found = await consumer.end_offsets([TopicPartition(name, number) for name in names for number in range(count)])
    finally:
        await consumer.stop()
    ends = {(tp.topic, tp.partition): end for tp, end in found.items()}
    owned = ingest.worker._sources
    await until(lambda: all(key in owned and owned[key].next_offset >= end for key, end in ends.items()))


async def push(settings: Settings, messages: list[tuple[int, bytes]], **changes: Any) -> None:
    producer = make_producer(settings.kafka, **changes)
    await producer.start()
    for partition, value in messages:
        await producer.send_and_wait(settings.flows[0].topic, value, partition=partition)
    await producer.stop()


async def read_all(settings: Settings, role: str) -> dict[int, list[Any]]:
    """Return everything that stands in one of our topics, by partition."""
    consumer = make_consumer(settings.kafka, settings.topics.name(role))
    await consumer.start()
    try:
        while not consumer.assignment():
            await asyncio.sleep(0.05)
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found: dict[int, list[Any]] = {tp.partition: [] for tp in ends}
        async with asyncio.timeout(DEADLINE_S):
            while any(len(found[tp.partition]) < end for tp, end in ends.items()):
                for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                    found[tp.partition] += records
        return found
    finally:
        await consumer.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.05)


def total(metrics: Metrics, name: str) -> int:
    samples = (sample for metric in metrics.registry.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name == name))


async def fold(settings: Settings) -> tuple[list[Machine], Counter[str]]:
    """Apply `tenant-log` as the graph side would: raises on a broken chain."""
    machines, counts = [], Counter[str]()
    log = await read_all(settings, "tenant_log")
    for partition, records in sorted(log.items()):
        machine = Machine()
        for record in records:
            decoded = decode_record(record.value)
            if decoded.rows is not None:
                assert {partition_of(edge[0], len(log)) for edge in decoded.rows.edges} == {partition}
            counts.update(machine.apply(record.offset, decoded).counts)
        machines.append(machine)
    return machines, counts


async def test_every_record_is_counted_once_over_a_restart(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    await ensure_topics(settings)
    first = [(number % 3, flow(number)) for number in range(900)]
    first += [(1, arrow(range(900, 1_100))), (2, b"junk"), (0, b"[" + flow(1_100) + b",{}," + flow(1_101) + b"]")]
    await push(settings, first)
    async with ingesting(settings) as (_, metrics):
        await until(lambda: total(metrics, "drift_ingest_flows_total") == 1_102)
    await push(settings, [(number % 3, flow(number)) for number in range(1_102, 1_402)])
    async with ingesting(settings) as (ingest, metrics):
        await until(lambda: total(metrics, "drift_ingest_flows_total") >= 300)
        await all_read(ingest, settings)
        ends = {key: source.next_offset for key, source in ingest.worker._sources.items()}
    assert sum(offset for (topic, _), offset in ends.items() if topic == settings.flows[0].topic) == 1_203
    machines, counts = await fold(settings)
    assert counts["on_time"] + counts["late"] == 1_402
    assert counts["repeated"] == 0, "the first worker committed what it had done"
    letters = [record for records in (await read_all(settings, "dead_letter")).values() for record in records]
    reasons = sorted(decode_dead_letter(record.value, record.headers).reason for record in letters)
    assert reasons == [Reason.MALFORMED, Reason.MALFORMED]
    assert len({tuple(sorted(machine.applied.items())) for machine in machines}) == 1, "every target heard the same"


async def test_a_worker_that_dies_repeats_and_changes_nothing(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    await ensure_topics(settings)
    await push(settings, [(number % 3, flow(number)) for number in range(600)])
    for run in (ingesting_until_death, ingesting):  # all is written, and nothing of it committed; then by the next one
        async with run(settings) as (ingest, metrics):
            await all_read(ingest, settings)
            assert total(metrics, "drift_ingest_flows_total") == 600
    _, counts = await fold(settings)
    assert counts["on_time"] + counts["late"] == 600
    assert counts["repeated"] == 600, "the second worker wrote all of it again"


def hubble(number: int) -> bytes:
    """A flow of Hubble's, or a report that it lost two; every tenth is something else."""
    time, node = f"1970-01-01T00:20:{number // 20:02d}Z", f"node-{number % 3}"
    if number % 10 == 0:
        return json.dumps({"agent_event": {"type": "ENDPOINT_CREATED"}, "node_name": node, "time": time}).encode()
    if number % 10 == 5:
        lost = {"source": "HUBBLE_RING_BUFFER", "num_events_lost": "2"}
        return json.dumps({"lost_events": lost, "node_name": node, "time": time}).encode()
    ends = {"source": {"namespace": "shop", "pod_name": "web"}, "destination": {"namespace": "shop", "pod_name": "db"}}
    return json.dumps(
        {"flow": {"time": time, "verdict": "FORWARDED", **ends}, "node_name": node, "time": time}
    ).encode()


async def test_what_a_source_lost_and_who_reported_is_in_the_log_once_over_a_death(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    topic = FlowTopic(topic=settings.flows[0].topic, format="hubble", tenant_from="fixed:acme")
    settings = settings.model_copy(update={"flows": (topic,)})
    await ensure_topics(settings)
    await push(settings, [(number % 3, hubble(number)) for number in range(600)])
    for run in (ingesting_until_death, ingesting):
        async with run(settings) as (ingest, metrics):
            await all_read(ingest, settings)
            assert total(metrics, "drift_ingest_flows_total") == 480
            assert total(metrics, "drift_records_skipped_total") == 120
            assert total(metrics, "drift_loss_reports_total") == 60
    machines, counts = await fold(settings)
    assert counts["repeated"] > 0, "the second worker wrote it again"
    assert counts["on_time"] + counts["late"] == 480
    target = partition_of("acme", settings.topics.partitions)
    guard = machines[target].lanes["default"].guard
    guard.settle()
    noted = [window[0] for window in guard.open.values()]
    seen = Counter[str]()
    for some in noted:
        seen.update({host: found.rows for host, found in some.hosts.items()})
    assert seen == {f"node-{number}": 160 for number in range(3)}
    lost = [by_host for some in noted for by_host in some.lost.values()]
    assert sum(entry.records for by_host in lost for entry in by_host.values()) == 120
    assert sum(entry.reports for by_host in lost for entry in by_host.values()) == 60
    assert not any(machine.lanes["default"].guard.open for n, machine in enumerate(machines) if n != target)
    # Rows, dead letters and skipped records are the input, by coordinate, as each partition of the log tells it.
    for records in (await read_all(settings, "tenant_log")).values():
        reached: dict[tuple[str, int], int] = {}
        skipped = 0
        for record in records:
            for progress in decode_record(record.value).progress:
                key = (progress.source, progress.partition)
                if progress.upto > reached.get(key, -1) and progress.after >= reached.get(key, -1):
                    skipped += progress.skipped
                    reached[key] = progress.upto
        assert skipped == 120


async def test_a_huge_record_stops_nothing(kafka_bootstrap: str, settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(kafka_bootstrap)
    topic = settings.flows[0].topic
    roomy = settings.model_copy(update={"flows": (FlowTopic(topic=topic, max_message_bytes=12 << 20),)})
    await ensure_topics(roomy)
    huge = flow(1, src="x" * (10 << 20))
    await push(settings, [(0, flow(0)), (0, huge), (0, flow(2))], max_request_size=12 << 20)
    async with ingesting(settings) as (_, metrics):
        await until(lambda: total(metrics, "drift_ingest_flows_total") == 2)
    (record,) = [record for records in (await read_all(settings, "dead_letter")).values() for record in records]
    letter = decode_dead_letter(record.value, record.headers)
    assert (letter.reason, letter.offset, letter.payload) == (Reason.OVERSIZED, 1, huge[:KEPT_PAYLOAD_BYTES])
    assert dict(record.headers)["length"] == str(len(huge)).encode()


async def test_a_silent_worker_states_where_it_stands(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    async with ingesting(settings) as (ingest, _):
        await until(lambda: len(ingest.worker._sources) == 9)
        log = await asyncio.wait_for(_stated(settings), DEADLINE_S)
    for stated in log:
        assert stated.lane is not None and stated.lane.members[0].partitions == 3
        assert [progress.partition for progress in stated.progress] == [0, 1, 2]
        assert {progress.state for progress in stated.progress} <= {END_REACHED, IDLE}
        assert stated.as_of_ms > NOW_MS


async def _stated(settings: Settings) -> list[LogRecord]:
    """Wait until every target has heard that each source partition was read to its end; return the last it heard."""
    while True:
        log = await read_all(settings, "tenant_log")
        last = [decode_record(records[-1].value) for records in log.values() if records]
        states = {progress.state for record in last for progress in record.progress}
        if len(last) == len(log) and states <= {END_REACHED, IDLE}:
            return last


async def test_a_pushed_file_is_a_lane_of_its_own_that_ends(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for(kafka_bootstrap)
    path = tmp_path / "flows.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(flow(number) for number in range(500))))
    async with ingesting(settings) as (ingest, metrics):
        lane = ReplayLane("replay:test", window_ms=1_000, lateness_ms=0)
        assert await push_file(settings, path, "canonical", lane, clock=SystemClock()) == 500
        await all_read(ingest, settings)
        assert total(metrics, "drift_ingest_flows_total") == 500
    machines, counts = await fold(settings)
    assert counts["on_time"] == 500, "a replay waits for all its partitions: nothing is late"
    assert {machine.lanes["replay:test"].clock.watermark_ms for machine in machines} == {END_OF_TIME_MS}
