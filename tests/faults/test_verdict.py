"""A small real run is found clean; each thing broken in it is found, under the right count."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from schemas.graph import decode_chunk, encode_chunk
from schemas.ocsf import decode_event, encode_event
from schemas.settings import (
    FlowTopic,
    KafkaSettings,
    LaneSettings,
    Settings,
    TopicSettings,
    WorkerSettings,
)
from schemas.topics import INTERNAL_AND_PUBLIC
from streams.clickhouse import connect
from streams.kafka_clients import make_admin, make_consumer, make_producer
from streams.migrate import migrate
from tests.e2e.pipeline import running
from tests.faults.clickhouse_front import ROOT, ClickHouseFront
from tests.faults.load import read_ledger
from tests.faults.verdict import Verdict, judge

PARTITIONS = 3
LEAST = {"drift_events_total": 30, "drift_windows_closed_total": 30, "drift_dead_letters_total": 3}
"""What a run must have brought about before it ends, beside rows of every fate: the tests need something to break."""
STOP_S = 300.0
DATABASE = "drift"

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Finished:
    """A run that has ended, its ClickHouse still up."""

    settings: Settings
    front: ClickHouseFront
    flows: int


def settings_of(bootstrap: str, front: ClickHouseFront) -> Settings:
    prefix = f"v{uuid.uuid4().hex[:8]}"
    lane = LaneSettings(
        name="default", window_ms=2_000, lateness_ms=1_000, idle_ms=1_000, detection={"learning_windows": 2}
    )
    names = {topic.role: f"{prefix}-{topic.default_name}" for topic in INTERNAL_AND_PUBLIC}
    return Settings(
        # Nobody dies here: a busy machine must not cost the worker its session, after which it would repeat itself.
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=60_000, rebalance_timeout_ms=60_000),
        topics=TopicSettings(names=names, partitions=PARTITIONS),
        lanes=(lane,),
        flows=(FlowTopic(topic=f"{prefix}-flows"),),
        worker=WorkerSettings(group=prefix, checkpoint_every_ms=2_000),
        clickhouse=front.settings(DATABASE),
    )


async def make_run(settings: Settings, folder: Path) -> int:
    """Run a worker under load until there is enough to judge and all is stored; return the acknowledged flows."""
    admin = make_admin(settings.kafka)
    await admin.start()
    config = {"message.timestamp.type": "LogAppendTime"}
    await admin.create_topics([NewTopic(settings.flows[0].topic, PARTITIONS, 1, topic_configs=config)])
    await admin.close()
    migrate(connect(settings.clickhouse), DATABASE, 90)
    command = [sys.executable, "-m", "tests.faults.load", "--bootstrap", settings.kafka.bootstrap]
    command += ["--topic", settings.flows[0].topic, "--ledger", str(folder / "ledger.json"), "--rate", "1500"]
    command += [
        "--edges",
        "400",
        "--tenants",
        "5",
        "--partitions",
        str(PARTITIONS),
        "--log-partitions",
        str(PARTITIONS),
    ]
    client = connect(settings.clickhouse)
    sums = f"SELECT sum(flows + other_side_flows + late_flows) FROM {DATABASE}.edges_1m FINAL"
    async with running(settings) as run:
        load = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        fates = [("drift_rows_folded_total", fate) for fate in ("on_time", "late", "skewed")]

        def is_enough() -> bool:
            assert load.poll() is None, "the load ended by itself"
            whole = all(run.total(name) >= count for name, count in LEAST.items())
            return whole and all(run.total(name, outcome=fate) for name, fate in fates)

        try:
            await run.until(is_enough, "there is enough to judge")
        finally:
            await asyncio.to_thread(load.communicate, b'{"do": "stop"}\n', STOP_S)
        flows = sum(read_ledger(folder / "ledger.json").flows)

        async def is_stored() -> bool:
            return bool((await asyncio.to_thread(client.query, sums)).result_rows[0][0] == flows)

        await run.until(is_stored, "all flows are stored")
    return flows


@pytest.fixture(scope="module")
def finished(apache_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("verdict")
    with ClickHouseFront(folder / "clickhouse") as front:
        settings = settings_of(apache_kafka, front)
        yield Finished(settings, front, asyncio.run(make_run(settings, folder)))


def find(verdict: Verdict) -> str:
    return "\n".join([verdict.line, str(verdict.by_place), *verdict.details[:40]])


async def test_a_run_without_faults_is_clean(finished: Finished, tmp_path: Path) -> None:
    verdict = await judge(finished.settings, work=tmp_path)
    print(verdict.line, verdict.counts, verdict.seconds, *verdict.notes, sep="\n")
    assert verdict.is_clean, find(verdict)
    assert verdict.raw_duplicates == 0
    assert verdict.counts["flows"] == finished.flows
    assert verdict.counts["late"] > 0
    assert verdict.counts["skewed"] > 0
    assert verdict.counts["dead_letters"] > 0
    assert verdict.counts["events"] > 0
    assert verdict.counts["edge_rows"] > 0
    assert list(tmp_path.iterdir()) == []


Record = tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]
"""Partition, key, value, headers."""


async def records_of(settings: Settings, topic: str) -> list[Record]:
    """Return all records of a topic, partition by partition."""
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    found: list[Record] = []
    try:
        for number in range(PARTITIONS):
            tp = TopicPartition(topic, number)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                    found += [(number, record.key, record.value, record.headers) for record in records]
    finally:
        await consumer.stop()
    return found


async def with_topic(settings: Settings, role: str, records: Sequence[Record]) -> Settings:
    """Write records to a fresh topic and return settings in which it has the role. Nothing of it is committed."""
    topic = f"{settings.topics.name(role)}-{uuid.uuid4().hex[:6]}"
    admin = make_admin(settings.kafka)
    producer = make_producer(settings.kafka)
    await admin.start()
    await producer.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs={"max.message.bytes": "2097152"})])
        for partition, key, value, headers in records:
            await producer.send(topic, value, key=key, partition=partition, headers=list(headers))
        await producer.flush()
    finally:
        await producer.stop()
        await admin.close()
    names = {**settings.topics.names, role: topic}
    return settings.model_copy(update={"topics": settings.topics.model_copy(update={"names": names})})


def altered_event(value: bytes, **changes: Any) -> bytes:
    return encode_event(msgspec.structs.replace(decode_event(value), **changes))


async def test_what_is_broken_on_the_topics_is_counted_where_it_belongs(finished: Finished, tmp_path: Path) -> None:
    settings = finished.settings
    events = await records_of(settings, settings.topics.name("drift_events"))
    assert len(events) > 6
    partition, key, value, headers = events[0]
    assert value is not None
    broken = events[2:]  # two are lost
    broken.append(events[2])  # a zombie's repetition
    other = decode_event(events[3][2] or b"")
    broken.append((events[3][0], key, altered_event(events[3][2] or b"", message="other"), headers))  # two contents
    broken.append((partition, key, altered_event(value, event_id="0" * 32), headers))  # of nobody
    broken = [
        (p, k, altered_event(v or b"", risk_score=1) if v == events[5][2] else v, h) for p, k, v, h in broken
    ]  # another content than the log says
    assert other.risk_score != 1
    settings = await with_topic(settings, "drift_events", broken)
    chunks = await records_of(settings, settings.topics.name("graph_windows"))
    # One chunk is lost; one has another total; one hides what it is marked with.
    edges = [record for record in chunks if record[2] and not decode_chunk(record[2]).is_marker]
    wrong = decode_chunk(edges[1][2] or b"")
    changed = {
        edges[1][2]: msgspec.structs.replace(wrong, src=[f"x{name}" for name in wrong.src]),
        edges[2][2]: msgspec.structs.replace(decode_chunk(edges[2][2] or b""), incomplete=("loss",)),
    }
    chunks = [(p, k, encode_chunk(changed[v]) if v in changed else v, h) for p, k, v, h in chunks if v != edges[0][2]]
    settings = await with_topic(settings, "graph_windows", chunks)
    verdict = await judge(settings, work=tmp_path, sample_tenants=["tenant-00"])
    assert verdict.by_place["drift-events"] == {
        "lost": 2,
        "duplicated_by_id": 1,
        "raw_duplicates": 1,
        "unexpected": 1,
        "wrong_totals": 1,
    }, find(verdict)
    assert verdict.by_place["graph-windows"] == {"lost": 1, "wrong_totals": 2, "false_gaps": 1}, find(verdict)
    assert (verdict.lost, verdict.duplicated_by_id, verdict.raw_duplicates) == (3, 1, 1), find(verdict)
    assert (verdict.unexpected, verdict.wrong_totals, verdict.false_gaps) == (1, 3, 1), find(verdict)
    assert not verdict.is_clean


async def test_what_is_broken_in_clickhouse_is_counted_where_it_belongs(finished: Finished, tmp_path: Path) -> None:
    client = connect(finished.settings.clickhouse)
    copy = "broken"
    client.command(f"DROP DATABASE IF EXISTS {copy}")
    migrate(client, copy, 90)
    for table in ("edges_1m", "windows", "drift_events"):
        client.command(f"INSERT INTO {copy}.{table} SELECT * FROM {DATABASE}.{table} FINAL")
    some = f"SELECT event_id FROM {copy}.drift_events ORDER BY event_id LIMIT"
    edge = (
        f"(tenant, window_start, src, dst) IN (SELECT tenant, window_start, src, dst FROM {copy}.edges_1m ORDER BY ALL"
    )
    settled = {"mutations_sync": 2}
    for sql in (
        f"ALTER TABLE {copy}.drift_events DELETE WHERE event_id IN ({some} 2)",
        f"ALTER TABLE {copy}.edges_1m DELETE WHERE {edge} LIMIT 1)",
        f"ALTER TABLE {copy}.edges_1m UPDATE calls = calls + 1 WHERE {edge} LIMIT 3)",
        f"ALTER TABLE {copy}.windows UPDATE edges = edges + 1 WHERE (tenant, window_start) IN "
        f"(SELECT tenant, window_start FROM {copy}.windows ORDER BY ALL LIMIT 1)",
    ):
        client.command(sql, settings=settled)
    client.command(f"INSERT INTO {copy}.edges_1m SELECT * REPLACE ('nobody' AS src) FROM {copy}.edges_1m LIMIT 1")
    changed = finished.settings.clickhouse.model_copy(update={"database": copy})
    verdict = await judge(finished.settings.model_copy(update={"clickhouse": changed}), work=tmp_path)
    assert verdict.by_place["clickhouse drift_events"] == {"lost": 2}, find(verdict)
    assert verdict.by_place["clickhouse edges_1m"] == {"lost": 1, "wrong_totals": 3, "unexpected": 1}, find(verdict)
    assert verdict.by_place["clickhouse windows"] == {"wrong_totals": 1}, find(verdict)
    assert (verdict.lost, verdict.wrong_totals, verdict.unexpected) == (3, 4, 1), find(verdict)
    assert verdict.duplicated_by_id == verdict.missed_gaps == verdict.false_gaps == 0
    client.close()


async def test_a_hole_in_the_log_and_a_lost_dead_letter_are_found(finished: Finished, tmp_path: Path) -> None:
    settings = finished.settings
    log = await records_of(settings, settings.topics.name("tenant_log"))
    mine = [record for record in log if record[0] == 0]
    gone = max(mine[len(mine) // 2 :], key=lambda record: len(record[2] or b""))  # one with rows
    changed = await with_topic(settings, "tenant_log", [record for record in log if record is not gone])
    letters = await records_of(settings, settings.topics.name("dead_letter"))
    changed = await with_topic(changed, "dead_letter", letters[1:])
    verdict = await judge(changed, work=tmp_path)
    assert verdict.missed_gaps == verdict.by_place["tenant-log[0]"]["missed_gaps"] >= 1, find(verdict)
    assert verdict.by_place["sql default dead"] == {"lost": 1}, find(verdict)
    assert verdict.by_place["sql default"]["lost"] > 0, find(verdict)  # its rows are in no record of the log
    assert verdict.false_gaps == 0
