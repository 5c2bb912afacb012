"""A small real run is found clean; each thing broken in it is found, under the right count."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
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
from tests.e2e.pipeline import running, until
from tests.faults.clickhouse_front import ROOT, ClickHouseFront
from tests.faults.load import read_ledger
from tests.faults.verdict import Verdict, judge

PARTITIONS = 3
LOAD_S = 14
DATABASE = "drift"

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


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
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=6_000, rebalance_timeout_ms=6_000),
        topics=TopicSettings(names=names, partitions=PARTITIONS),
        lanes=(lane,),
        flows=(FlowTopic(topic=f"{prefix}-flows"),),
        worker=WorkerSettings(group=prefix, checkpoint_every_ms=2_000),
        clickhouse=front.settings(DATABASE),
    )


async def make_run(settings: Settings, folder: Path) -> int:
    """Run a worker under load until all is stored; return the flows that were acknowledged."""
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
        try:
            await asyncio.sleep(LOAD_S)
        finally:
            await asyncio.to_thread(load.communicate, b'{"do": "stop"}\n', 30)
        flows = sum(read_ledger(folder / "ledger.json").flows)

        async def is_stored() -> bool:
            return bool((await asyncio.to_thread(client.query, sums)).result_rows[0][0] == flows)

        await run.until(lambda: True, "the worker runs")
        await until(is_stored, "all flows are stored", 60)
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
