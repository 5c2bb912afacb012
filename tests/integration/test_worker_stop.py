"""SIGTERM to real workers on a real broker: what is committed, what is read again, and that it always ends."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from pydantic import SecretStr

from deploy.brokers.kafka import KafkaBroker
from deploy.serving import EXIT_UNFINISHED
from models.graph.machine import Machine
from schemas.ids import NO_POSITION
from schemas.settings import ClickHouseSettings, LaneSettings, Settings, WorkerSettings
from schemas.tenant_log import decode_record
from streams.graph.checkpoints import Checkpoints, FileChunkStore, read_partition
from streams.ingest.chain import position_before
from streams.kafka_clients import make_consumer
from streams.topics import ensure_topics
from tests.e2e.pipeline import send_all
from tests.worker_process import WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("worker-processes")]
MakeSettings = Callable[..., Settings]
FLOWS_A_MESSAGE = 50
PARTITIONS = 3


def operated(settings: Settings, **changes: object) -> Settings:
    """Give the worker an endpoint on a free port, and changes."""
    values = {"metrics_port": 0, "lag_every_ms": 500, **changes}
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=values)})


def backlog(messages: int) -> list[tuple[int, bytes]]:
    now_ms = time.time_ns() // 1_000_000 - 60_000
    made = []
    for number in range(messages):
        flows = [
            {
                "time_ms": now_ms + number,
                "tenant": f"tenant-{(number + row) % 7}",
                "src": f"a-{row}",
                "dst": f"b-{(row * 7 + number) % 40}",
                "port": 443,
            }
            for row in range(FLOWS_A_MESSAGE)
        ]
        made.append((number % PARTITIONS, json.dumps(flows).encode()))
    return made


async def committed_offsets(settings: Settings, topic: str, count: int) -> dict[int, int]:
    consumer = make_consumer(settings.kafka, group_id=settings.worker.group)
    await consumer.start()
    try:
        return {n: await consumer.committed(TopicPartition(topic, n)) or 0 for n in range(count)}
    finally:
        await consumer.stop()


async def test_sigterm_under_load_commits_all_that_was_done_and_nothing_is_read_twice(
    apache_kafka: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    # Small fetches, so that the signal comes long before the end of the load: after some hundred messages of 6,000.
    # No window closes, however slow this machine is: the sinks have no ClickHouse here.
    lane = LaneSettings(name="default", lateness_ms=3_600_000)
    settings = settings_for(apache_kafka, partitions=PARTITIONS, lanes=(lane,))
    settings = operated(settings, grace_ms=120_000, max_fetch_bytes=1 << 14)
    messages = backlog(6_000)
    await ensure_topics(settings)
    await send_all(settings, settings.flows[0].topic, messages)
    with WorkerProcess(settings, tmp_path / "first") as worker:
        worker.until(lambda: worker.metric("drift_rows_folded_total") > 0, "flows are applied")
        worker.terminate()
        assert worker.wait(180) == 0, worker.said()
        assert "drift worker: stopped" in worker.said()
    done = await committed_offsets(settings, settings.flows[0].topic, PARTITIONS)
    assert 0 < sum(done.values()) < len(messages), "stopped in the middle of the load"
    await check_log(settings, done)

    with WorkerProcess(settings, tmp_path / "second") as worker:
        wanted = len(messages) * FLOWS_A_MESSAGE
        left = wanted - sum(done.values()) * FLOWS_A_MESSAGE
        worker.until(lambda: worker.metric("drift_ingest_flows_total") >= left, "the rest is read")
        worker.until(lambda: worker.metric("drift_graph_lag") == 0, "the rest is applied")
        assert worker.metric("drift_ingest_flows_total") == left, "not a message is read twice"
        assert worker.metric("drift_rows_folded_total", outcome="repeated") == 0
        worker.terminate()
        assert worker.wait(180) == 0, worker.said()
    assert await rows_in_log(settings) == wanted


async def check_log(settings: Settings, done: dict[int, int]) -> None:
    """Every target holds exactly what is committed, and the checkpoint is what the group's offset says."""
    log = settings.topics.name("tenant_log")
    commits = await committed_offsets(settings, log, PARTITIONS)
    assert settings.worker.state_directory is not None
    checkpoints = Checkpoints(FileChunkStore(settings.worker.state_directory), settings.topics.incarnation)
    stored = []
    for target in range(PARTITIONS):
        reached = dict.fromkeys(done, NO_POSITION)
        machine, repeated = Machine(), 0
        async for record in read_partition(make_consumer(settings.kafka), log, target, 0):
            decoded = decode_record(record.value)
            for progress in decoded.progress:
                if progress.source.startswith(settings.flows[0].topic):
                    reached[progress.partition] = max(reached[progress.partition], progress.upto)
            repeated += machine.apply(record.offset, decoded).counts["repeated"]
        assert reached == {number: position_before(offset) for number, offset in done.items()}
        assert repeated == 0
        loaded = await checkpoints.load(target)
        stored.append(0 if loaded is None else loaded[0].offset + 1)
    assert stored == list(commits.values()), "what is committed is what is stored"
    assert max(stored) > 0


async def rows_in_log(settings: Settings) -> int:
    rows = 0
    for target in range(PARTITIONS):
        consumer = make_consumer(settings.kafka)
        async for record in read_partition(consumer, settings.topics.name("tenant_log"), target, 0):
            decoded = decode_record(record.value)
            rows += 0 if decoded.rows is None else decoded.rows.count
    return rows


async def test_a_worker_whose_broker_hangs_ends_within_its_grace_and_says_so(
    own_kafka: Callable[..., KafkaBroker], settings_for: MakeSettings, tmp_path: Path
) -> None:
    broker = own_kafka().start()
    settings = operated(settings_for(broker.address), grace_ms=4_000)
    with WorkerProcess(settings, tmp_path / "worker") as worker:
        worker.until_said("drift worker: ready")
        assert worker.until(lambda: worker.get("/readyz")[0] == 200, "ready")
        broker.pause()
        try:
            worker.terminate()
            assert worker.wait(180) == EXIT_UNFINISHED  # while the broker hangs
        finally:
            broker.resume()
        # Who ended it, and after how long, is what it says: the clients' own patience with a broker that hangs is 40 s,
        # and a stop that they ended says something else. A clock here would measure the machine.
        lines = [line for line in worker.said().splitlines() if "worker.grace_ms" in line]
        assert len(lines) == 1 and "not finished within 4 s" in lines[0], worker.said()
        assert "nothing is lost" in lines[0] and "could not finish" not in worker.said()


async def test_a_clickhouse_that_is_away_costs_neither_the_grace_nor_the_exit_code(
    apache_kafka: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    lane = LaneSettings(name="default", window_ms=1_000, lateness_ms=0, idle_ms=200)
    away = ClickHouseSettings(dsn=SecretStr("http://drift:secret-word@127.0.0.1:1"))
    settings = operated(settings_for(apache_kafka, lanes=(lane,), clickhouse=away), grace_ms=32_000)
    await ensure_topics(settings)
    await send_all(settings, settings.flows[0].topic, backlog(60))
    with WorkerProcess(settings, tmp_path / "worker") as worker:
        worker.until(lambda: worker.metric("drift_windows_closed_total") > 0, "a window is closed")
        worker.until(lambda: worker.metric("drift_sink_retries_total") > 0, "a sink waits for ClickHouse")
        worker.until(lambda: worker.metric("drift_sink_lag") > 0, "its lag is told")
        worker.terminate()
        assert worker.wait(180) == 0, worker.said()
        assert "ClickHouse has not taken what is under way" in worker.said()
        assert "secret-word" not in worker.said()


def readiness(worker: WorkerProcess, state: str) -> tuple[int, dict[str, Any]] | None:
    """Return status and body of /readyz once it says this state."""
    found = worker.get("/readyz")
    return found if found[1].get("state") == state else None


async def test_a_second_signal_ends_a_worker_at_once(
    own_kafka: Callable[..., KafkaBroker], settings_for: MakeSettings, tmp_path: Path
) -> None:
    broker = own_kafka().start()
    settings = operated(settings_for(broker.address), grace_ms=60_000)
    with WorkerProcess(settings, tmp_path / "worker", "--no-sinks") as worker:
        worker.until_said("drift worker: ready")
        broker.pause()
        try:
            worker.terminate()
            worker.until_said("drift worker: stopping")
            # a moment after it said so
            status, _ = worker.until(lambda: readiness(worker, "draining"), "it is draining")
            assert status == 503
            worker.terminate(signal.SIGINT)
            assert worker.wait(180) == -signal.SIGINT
        finally:
            broker.resume()


async def test_a_worker_that_is_still_starting_can_be_stopped(
    own_kafka: Callable[..., KafkaBroker], settings_for: MakeSettings, tmp_path: Path
) -> None:
    broker = own_kafka().start()
    settings = operated(settings_for(broker.address), grace_ms=5_000)
    broker.pause()
    try:
        with WorkerProcess(settings, tmp_path / "worker", "--no-sinks") as worker:
            worker.until(lambda: worker.get("/readyz")[0] == 503, "it answers")
            assert worker.get("/readyz")[1]["state"] == "starting"
            assert worker.get("/livez") == (200, {"state": "alive"})
            worker.terminate()
            assert worker.wait(180) in (0, EXIT_UNFINISHED)
    finally:
        broker.resume()


def test_the_grace_has_a_least() -> None:
    with pytest.raises(ValueError, match="grace_ms"):
        WorkerSettings(grace_ms=10)
