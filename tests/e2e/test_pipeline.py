"""The whole pipeline on real brokers says what `drift backtest` says, and counts what the independent check counts."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from deploy.brokers.process import free_port
from deploy.commands.run import (
    SAMPLE,
    SAMPLE_LATENESS_MS,
    SAMPLE_LEARNING_WINDOWS,
    SAMPLE_TENANT,
    SAMPLE_WINDOW_MS,
    SIEM_CONSUMER,
)
from schemas.drift import DriftKind
from schemas.settings import ClickHouseSettings, Settings
from streams.kafka_clients import make_producer
from streams.replay import ReplayLane
from tests.builders_clickhouse import ClickHouse
from tests.e2e import traffic
from tests.e2e.pipeline import (
    DEADLINE_S,
    GRACE_MS,
    Gate,
    Results,
    Topics,
    catch_up,
    ends_of,
    expected_of,
    following,
    is_stored,
    lag_of,
    pushing,
    raw_messages,
    running,
    until,
    write_config,
)
from tests.independent.check import Rules, check
from tests.property.test_law import settled

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]
ROOT = Path(__file__).parents[2]
SEED = 20
WORKER = {"checkpoint_every_ms": 500, "statement_every_ms": 100, "grace_ms": GRACE_MS}


@dataclass(frozen=True)
class Broker:
    """A broker to run on. ``in_files``: whether checkpoints go to files, as `drift run` has it, or to the topic."""

    name: str
    bootstrap: str
    in_files: bool


@pytest.fixture(params=["apache-kafka", "tansu"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Both brokers, one after the other."""
    fixture = {"apache-kafka": "apache_kafka", "tansu": "tansu_bootstrap"}[request.param]
    return Broker(request.param, request.getfixturevalue(fixture), in_files=request.param == "tansu")


MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(settings_for: Callable[..., Settings]) -> MakeSettings:
    """Make settings of a worker that states and checkpoints often: ``make_settings(broker, clickhouse settings)``."""

    def make(broker: Broker, clickhouse: ClickHouseSettings, **worker: Any) -> Settings:
        settings = settings_for(broker.bootstrap, clickhouse=clickhouse)
        changes = {**WORKER, **worker} | ({} if broker.in_files else {"state_directory": None})
        return settings.model_copy(update={"worker": settings.worker.model_copy(update=changes)})

    return make


def sample_lane(name: str) -> ReplayLane:
    """Return the lane `drift run` replays the sample into."""
    return ReplayLane(
        f"replay:{name}",
        SAMPLE_WINDOW_MS,
        SAMPLE_LATENESS_MS,
        {"learning_windows": SAMPLE_LEARNING_WINDOWS},
        generation=7,
    )


def traffic_lane(name: str) -> ReplayLane:
    """Return a lane for the generated traffic."""
    detection = {"learning_windows": traffic.LEARNING_WINDOWS, "removed_after_silences": 5}
    return ReplayLane(f"replay:{name}", traffic.WINDOW_MS, traffic.LATENESS_MS, detection, generation=7)


def assert_same(found: Results, expected: Results) -> None:
    """Compare topics with the backtest: nothing missing, nothing extra, no id twice, the same settled content."""
    ids = [event.event_id for event in found.events]
    assert len(ids) == len(set(ids)), "an event stands on the topic twice"
    assert found.chunks.keys() == expected.chunks.keys()
    assert [key for key, value in expected.chunks.items() if found.chunks[key] != value] == []
    assert expected.settled_counts() - found.settled_counts() == Counter(), "missing"
    assert found.settled_counts() - expected.settled_counts() == Counter(), "extra"
    assert settled(found.events) == settled(expected.events)
    assert {event.finding_id for event in found.events if event.is_early} <= settled(expected.events).keys()
    assert found.dead_by_reason() == expected.dead_by_reason()


def assert_stored(clickhouse: ClickHouse, found: Results) -> None:
    """Compare ClickHouse with the topics."""
    stored = dict(clickhouse.rows("SELECT event_id, ocsf FROM {db}.drift_events FINAL"))
    assert stored.keys() == found.values.keys()
    assert {event_id for event_id, ocsf in stored.items() if ocsf.encode() != found.values[event_id]} == set()
    windows = {tuple(row) for row in clickhouse.rows("SELECT tenant, lane, generation FROM {db}.windows FINAL")}
    assert windows == {key[:3] for key in found.markers}
    assert clickhouse.rows("SELECT count() FROM {db}.windows FINAL") == [(len(found.markers),)]


async def assert_checked(settings: Settings, clickhouse: ClickHouse, found: Results, rules: Rules, flows: int) -> None:
    """Hold ClickHouse against totals, windows and new-edge findings recomputed from the messages."""
    raw = await raw_messages(settings)
    dead = [(*coordinate, letter.reason.value) for coordinate, letter in found.dead.items()]
    report = await asyncio.to_thread(check, clickhouse.client, clickhouse.database, raw, rules, dead)
    assert report.differences == []
    assert report.is_exact
    assert report.counts == {
        "on_time": flows,
        "late": 0,
        "skewed": 0,
        "dead": len(dead),
        "input": flows + len(dead),
    }
    assert min(report.compared[what] for what in ("edges", "windows", "input")) > 0
    new_kinds = {"new_service", "new_edge", "new_port", "new_external_egress"}
    assert ("findings" in report.compared) == bool({event.kind.value for event in found.events} & new_kinds)


async def siem_lines(settings: Settings) -> list[str]:
    """Run the example consumer until it has committed all that stands on the topic; return what it printed."""
    group, ends = f"{settings.worker.group}-siem", await ends_of(settings, "drift_events")
    process = await siem_consumer(settings, group)
    printed = asyncio.create_task(process.communicate())

    async def is_through() -> bool:
        assert process.returncode is None, "the example consumer ended by itself"
        return await lag_of(settings, group, ends) <= 0

    try:
        await until(is_through, "the example consumer has read everything, repeats included")
        process.send_signal(signal.SIGINT)  # as Ctrl-C: it leaves its group
        out, _ = await printed
    finally:
        if process.returncode is None:
            process.kill()
    again = await siem_consumer(settings, group, "--timeout", "1")
    assert (await again.communicate())[0] == b"" and again.returncode == 0, "it ends by itself and repeats nothing"
    return out.decode().splitlines()


async def siem_consumer(settings: Settings, group: str, *arguments: str) -> Process:
    """Start the example consumer."""
    topic = settings.topics.name("drift_events")
    command = [str(SIEM_CONSUMER), settings.kafka.bootstrap, topic, "--group", group, *arguments]
    return await asyncio.create_subprocess_exec(sys.executable, *command, stdout=PIPE, start_new_session=True)


async def publish_again(settings: Settings, found: Results, count: int) -> None:
    """Write some events once more, as a zombie would. The repeats go to one partition: order is not what they test."""
    producer = make_producer(settings.kafka)
    await producer.start()
    try:
        for event_id, value in list(found.values.items())[:count]:
            headers = [("ce_id", event_id.encode())]
            await producer.send_and_wait(settings.topics.name("drift_events"), value, partition=0, headers=headers)
    finally:
        await producer.stop()


async def test_the_sample_is_judged_as_the_backtest_judges_it(
    broker: Broker, make_settings: MakeSettings, clickhouse: ClickHouse, unique_name: str
) -> None:
    lane = sample_lane(unique_name)
    expected = expected_of(SAMPLE, lane)
    settings = make_settings(broker, clickhouse.settings)
    async with following(settings) as topics:
        async with running(settings) as worker, pushing(settings, SAMPLE, lane) as push:
            await worker.until(lambda: push.done() and worker.is_closed(lane.name), "the lane is closed")
            found = await catch_up(topics)
            await worker.until(lambda: is_stored(topics), "all is stored")
        assert_same(await catch_up(topics), expected)
    flows = push.result()
    assert len(found.events) > 0
    assert_stored(clickhouse, found)
    await publish_again(settings, found, 5)
    lines, _ = await asyncio.gather(
        siem_lines(settings),
        assert_checked(settings, clickhouse, found, rules_of(lane, SAMPLE_LEARNING_WINDOWS), flows),
    )
    assert len(lines) == len(found.values)
    assert {line.rpartition("[")[2].rstrip("]") for line in lines} == {event.finding_id for event in found.events}
    assert {event.tenant for event in found.events} == {SAMPLE_TENANT}


def rules_of(lane: ReplayLane, learning_windows: int) -> Rules:
    """Return the lane's declaration as the independent check takes it."""
    return Rules(lane.name, lane.window_ms, lane.lateness_ms, learning_windows)


async def test_generated_traffic_of_many_tenants_is_judged_as_the_backtest_judges_it(
    broker: Broker, make_settings: MakeSettings, clickhouse: ClickHouse, unique_name: str, tmp_path: Path
) -> None:
    made = traffic.write_traffic(tmp_path / "traffic.jsonl", SEED)
    lane = traffic_lane(unique_name)
    expected = expected_of(made.path, lane)
    settings = make_settings(broker, clickhouse.settings)
    # Nobody dies here: a busy machine must not cost the worker its session, after which it would repeat dead letters.
    kafka = settings.kafka.model_copy(update={"session_timeout_ms": 60_000})
    settings = settings.model_copy(update={"kafka": kafka})
    async with following(settings) as topics:
        async with running(settings) as worker, pushing(settings, made.path, lane) as push:
            await worker.until(lambda: push.done() and worker.is_closed(lane.name), "the lane is closed")
            await catch_up(topics)
            await worker.until(lambda: is_stored(topics), "all is stored")
        found = await catch_up(topics)
    assert_same(found, expected)
    assert {reason: len(values) for reason, values in found.dead_by_reason().items()} == made.dead
    assert found.repeated == 0
    assert_stored(clickhouse, found)
    await assert_checked(settings, clickhouse, found, rules_of(lane, traffic.LEARNING_WINDOWS), made.flows)
    kinds = {event.kind for event in found.events}
    assert kinds >= {
        DriftKind.NEW_EDGE,
        DriftKind.NEW_PORT,
        DriftKind.NEW_EXTERNAL_EGRESS,
        DriftKind.NEW_SERVICE,
        DriftKind.FAN_OUT_BURST,
        DriftKind.DENIED_BURST,
        DriftKind.REMOVED_EDGE,
        DriftKind.LATENCY_INCREASE,
    }
    assert {event.tenant for event in found.events} == set(traffic.TENANTS)


async def test_a_worker_that_stops_midway_and_starts_again_changes_nothing(
    broker: Broker, make_settings: MakeSettings, clickhouse: ClickHouse, unique_name: str, tmp_path: Path
) -> None:
    made = traffic.write_traffic(tmp_path / "traffic.jsonl", SEED + 1)
    lane = traffic_lane(unique_name)
    expected = expected_of(made.path, lane)
    settings = make_settings(broker, clickhouse.settings)
    gate = Gate(at_s=traffic.WINDOWS * traffic.WINDOW_MS / 2_000)
    async with following(settings) as topics:
        async with pushing(settings, made.path, lane, gate):
            async with running(settings) as worker:
                await worker.until(gate.reached.is_set, "half is pushed")
                await worker.until(lambda: topics.results.events, "the first event is published")
            half = await catch_up(topics)
            assert 0 < len(half.markers) < len(expected.markers)
            gate.opened.set()
            async with running(settings) as worker:
                await worker.until(lambda: worker.is_closed(lane.name), "the lane is closed")
                await catch_up(topics)
                await worker.until(lambda: is_stored(topics), "all is stored")
        found = await catch_up(topics)
    assert_same(found, expected)
    assert_stored(clickhouse, found)
    await assert_checked(settings, clickhouse, found, rules_of(lane, traffic.LEARNING_WINDOWS), made.flows)


@contextmanager
def worker_process(config: Path) -> Iterator[Popen[bytes]]:
    """Run `drift worker` on its own; killed at the end if it still runs."""
    command = [sys.executable, "-m", "deploy.cli", "--config", str(config), "worker"]
    with config.with_name("worker.log").open("ab") as log:
        process = Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


QUERY = """
import sys
from pathlib import Path
import msgspec
from schemas.settings import load_settings
from streams.clickhouse import connect
settings = load_settings(Path(sys.argv[1])).clickhouse
client = connect(settings)
events = client.query(f"SELECT event_id, ocsf FROM {settings.database}.drift_events FINAL").result_rows
windows = client.query(f"SELECT count(), sum(edges) FROM {settings.database}.windows FINAL").result_rows
flows = "sum(flows + other_side_flows + late_flows)"
edges = client.query(f"SELECT {flows}, count() FROM {settings.database}.edges_1m FINAL").result_rows
sys.stdout.buffer.write(msgspec.json.encode([events, windows[0], edges[0]]))
"""


async def query_folder(config: Path) -> Any:
    """Ask the folder's ClickHouse in a process of its own: one process can have one folder open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", QUERY, str(config), stdout=PIPE, cwd=ROOT, start_new_session=True
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return msgspec.json.decode(out)


async def test_a_worker_that_is_killed_midway_and_starts_again_changes_nothing(
    apache_kafka: str, settings_for: MakeSettings, unique_name: str, tmp_path: Path
) -> None:
    made = traffic.write_traffic(tmp_path / "traffic.jsonl", SEED + 2)
    lane = traffic_lane(unique_name)
    expected = expected_of(made.path, lane)
    home = ClickHouseSettings(dsn=SecretStr(f"chdb://{tmp_path.resolve()}/clickhouse"))
    settings = settings_for(apache_kafka, clickhouse=home)
    worker = settings.worker.model_copy(update={**WORKER, "state_directory": None, "metrics_port": free_port()})
    settings = settings.model_copy(update={"worker": worker})
    config = write_config(settings, tmp_path / "drift.yaml")
    migrated = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.cli", "--config", str(config), "migrate", cwd=ROOT, stdout=PIPE
    )
    await migrated.communicate()
    assert migrated.returncode == 0
    log = config.with_name("worker.log")

    def alive(process: Popen[bytes], condition: Callable[[Topics], Any]) -> Callable[[], Any]:
        def met() -> Any:
            assert process.poll() is None, log.read_text()
            return condition(topics)

        return met

    total_s = traffic.WINDOWS * traffic.WINDOW_MS / 1_000
    gate = Gate(at_s=total_s / 2)
    async with following(settings) as topics:
        async with pushing(settings, made.path, lane, gate):
            with worker_process(config) as process:
                await until(alive(process, lambda t: t.results.events), "the first event is published")
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            assert len((await catch_up(topics)).markers) < len(expected.markers)
            gate.opened.set()
            with worker_process(config) as process:
                halfway = len(expected.markers) * 3 // 4
                await until(alive(process, lambda t: len(t.results.markers) >= halfway), "more windows closed")
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            with worker_process(config) as process:
                await until(alive(process, lambda t: t.results.markers >= expected.markers), "all windows closed")
                await until(
                    alive(process, lambda t: t.results.settled_counts() >= expected.settled_counts()),
                    "all events published",
                )
                await until(alive(process, is_stored), "all is stored")
                process.terminate()
                assert await asyncio.to_thread(process.wait, DEADLINE_S) == 0, log.read_text()
        found = await catch_up(topics)
    assert_same(found, expected)
    events, (windows, edges), (flows, rows) = await query_folder(config)
    assert {event_id: ocsf.encode() for event_id, ocsf in events} == found.values
    assert (windows, edges) == (len(found.markers), rows)
    assert flows == made.flows
