"""Flow control of a worker on a real broker: a source topic that grows, a graph side that lags."""

import asyncio
import json
import time
from collections.abc import Callable

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from schemas.settings import LaneSettings, Settings
from streams.app import Worker
from streams.graph.partition import GraphPartition
from streams.health import State
from streams.kafka_clients import make_admin
from streams.topics import ensure_topics, topic_config
from tests.e2e.pipeline import running, send_all, until

pytestmark = pytest.mark.kafka
MakeSettings = Callable[..., Settings]


def operated(settings: Settings, **changes: object) -> Settings:
    values = {"lag_every_ms": 200, "checkpoint_every_ms": 500, **changes}
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=values)})


def open_lane() -> LaneSettings:
    """Return a lane whose windows stay open, however slow this machine is: the sinks have no ClickHouse here."""
    return LaneSettings(name="default", lateness_ms=600_000)


def flow(number: int) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    values = {"time_ms": now_ms, "tenant": f"t{number % 5}", "src": "a", "dst": f"b{number % 9}", "port": 443}
    return json.dumps(values).encode()


async def test_a_source_topic_that_grows_is_noticed_and_read(apache_kafka: str, settings_for: MakeSettings) -> None:
    settings = operated(settings_for(apache_kafka, partitions=2, lanes=(open_lane(),)))
    settings = operated(settings, metadata_every_ms=1_000)
    topic = settings.flows[0].topic
    await ensure_topics(settings)
    await send_all(settings, topic, [(number % 2, flow(number)) for number in range(20)])
    async with running(settings) as worker:
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 20, "the first flows are folded")
        admin = make_admin(settings.kafka)
        await admin.start()
        try:
            await admin.create_partitions({topic: NewPartitions(total_count=4)})
        finally:
            await admin.close()
        await send_all(settings, topic, [(2 + number % 2, flow(number)) for number in range(30)])
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 50, "flows of new partitions are folded")

        def members() -> set[int]:
            assert worker.worker.graph is not None
            lanes = [p.machine.lanes.get("default") for p in worker.worker.graph.partitions.values()]
            return {0 if lane is None else len(lane.clock.members) for lane in lanes}

        await worker.until(lambda: members() == {4}, "every partition of tenant-log waits for all four")
        assert worker.total("drift_rows_folded_total", outcome="late") == 0
        await worker.until(lambda: worker.worker.standing.readiness().state is State.READY, "it is ready")


async def test_ingest_waits_for_a_graph_side_that_lags_and_goes_on(
    apache_kafka: str, settings_for: MakeSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = operated(settings_for(apache_kafka, partitions=2, lanes=(open_lane(),)), hold_above_ms=3_000)
    topic = settings.flows[0].topic
    gate = asyncio.Event()
    gate.set()
    blocked: set[int] = set()
    held: list[bool] = []
    apply, hold = GraphPartition.apply, Worker._hold

    async def gated(self: GraphPartition, offsets: list[int], values: list[bytes | None]) -> int | None:
        if not gate.is_set():
            blocked.add(self.partition)
            await gate.wait()
        return await apply(self, offsets, values)

    def noted(self: Worker, is_held: bool) -> None:
        held.append(is_held)
        hold(self, is_held)

    monkeypatch.setattr(GraphPartition, "apply", gated)
    monkeypatch.setattr(Worker, "_hold", noted)
    await ensure_topics(settings)
    await send_all(settings, topic, [(number % 2, flow(number)) for number in range(10)])
    async with running(settings) as worker:
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 10, "the first flows are folded")
        gate.clear()
        await worker.until(lambda: blocked == {0, 1}, "statements wait: no partition comes to a checkpoint any more")
        await worker.until(lambda: worker.total("drift_ingest_held") == 1, "ingest is held")
        await send_all(settings, topic, [(number % 2, flow(number)) for number in range(40)])
        await worker.until(lambda: worker.total("drift_source_lag") == 40, "what waits is seen while ingest is held")
        assert worker.total("drift_ingest_flows_total") == 10, "nothing more was taken"
        assert worker.total("drift_graph_lag") > 0
        await worker.until(lambda: worker.total("drift_graph_lag_age_seconds") >= 3, "its age is told")
        readiness = worker.worker.standing.readiness()
        assert "ingest is held: the graph side is too far behind" in readiness.reasons
        gate.set()
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 50, "all is folded in the end")
        await worker.until(lambda: worker.total("drift_ingest_held") == 0, "ingest goes on")
        assert worker.total("drift_rows_folded_total", outcome="repeated") == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "streams.lag"]
    # A busy machine may hold it again for a moment: each change is said, once.
    assert held[:2] == [True, False]
    assert [line.startswith("ingest is held:") for line in lines] == held
    assert [line.startswith("ingest goes on:") for line in lines] == [not is_held for is_held in held]
    assert "worker.hold_above_ms" in lines[0]


async def test_the_limit_is_half_of_the_topics_retention(apache_kafka: str, settings_for: MakeSettings) -> None:
    settings = operated(settings_for(apache_kafka, partitions=2))
    await ensure_topics(settings)
    log = ConfigResource(ConfigResourceType.TOPIC, settings.topics.name("tenant_log"), {"retention.ms": "7200000"})
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        await admin.alter_configs([log])

        async def is_changed() -> bool:
            return (await topic_config(admin, log.name))["retention.ms"] == "7200000"

        await until(is_changed, "the broker has the new configuration")
    finally:
        await admin.close()
    async with running(settings) as worker:
        lag = worker.worker.standing.lag
        assert lag is not None
        await worker.until(lambda: lag.last.measured_at_ms > 0, "measured")
        assert lag.brake.limit_ms == 3_600_000
        assert worker.total("drift_group_lag_age_seconds") < 60
