"""The graph model on the stream, on a real broker and a real ClickHouse: rows, fallback, restarts, two workers."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from deploy.diagnosis.finding import Level
from deploy.diagnosis.graph_model import diagnose_graph_model
from schemas.drift import EdgeRef
from schemas.graph import ClosedWindow
from schemas.ids import partition_of
from schemas.ocsf import encode_event
from schemas.settings import GraphModelSettings, Settings
from streams.clickhouse import connect
from streams.graph_scores.agent import GraphScores
from streams.graph_scores.lanes import LaneMemory
from streams.graph_scores.model_folder import ModelFolder
from streams.graph_scores.partition import PartitionScores
from streams.kafka_clients import make_consumer
from streams.metrics import Metrics
from streams.sinks.rows import drift_rows, graph_rows
from streams.sinks.writer import Message, PartitionWriter, Poison
from streams.topics import ensure_topics
from tests.builders_clickhouse import ClickHouse, make_event
from tests.e2e.pipeline import running, send_all, until
from tests.graph_scores import estate_windows, numbered, put_model, values_of

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("clickhouse")]
MakeSettings = Callable[..., Settings]
STOPPED_S = 300.0
ROWS = (
    "SELECT toUnixTimestamp64Milli(window_start), src, dst, round(combined, 3), model FROM {db}.edge_scores FINAL "
    "WHERE tenant = {tenant:String} ORDER BY window_start, src, dst"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_model(tmp_path / "models", "acme")
    return tmp_path / "models"


@pytest.fixture
def settings(kafka_bootstrap: str, settings_for: MakeSettings, clickhouse: ClickHouse, folder: Path) -> Settings:
    """Two partitions, the test's ClickHouse, and all the time that a stop may need to store and commit."""
    made = settings_for(
        kafka_bootstrap, partitions=2, clickhouse=clickhouse.settings, gnn=GraphModelSettings(models_dir=folder)
    )
    return made.model_copy(update={"worker": made.worker.model_copy(update={"grace_ms": 600_000})})


def expected(folder: Path, windows: list[ClosedWindow]) -> list[tuple[Any, ...]]:
    """Return the rows that one reading of the windows gives."""
    scored = PartitionScores(ModelFolder(folder), LaneMemory, lambda: 0.0).take(numbered(values_of(windows))).scored
    rows = [
        (one.place[1], src, dst, round(float(combined), 3), one.model)
        for one in scored
        for (src, dst, _, _), combined in zip(one.keys, one.combined, strict=True)
    ]
    return sorted(rows)


def rows_of(ch: ClickHouse, tenant: str = "acme") -> list[tuple[Any, ...]]:
    return [
        (start, src, dst, round(float(score), 3), model)
        for start, src, dst, score, model in ch.rows(ROWS, tenant=tenant)
    ]


async def publish(settings: Settings, *windows: ClosedWindow) -> None:
    """Write windows as workers do, each at its tenant's partition."""
    topic = settings.topics.name("graph_windows")
    messages = [
        (partition_of(window.tenant, settings.topics.partitions), value)
        for window in windows
        for value in values_of([window])
    ]
    await send_all(settings, topic, messages)


async def committed(settings: Settings, scores: GraphScores) -> int:
    """Return how many messages of all partitions the group has committed."""
    consumer = make_consumer(settings.kafka, group_id=scores.group)
    await consumer.start()
    try:
        return sum([await consumer.committed(TopicPartition(scores.topic, number)) or 0 for number in range(2)])
    finally:
        await consumer.stop()


async def test_a_worker_scores_windows_and_shows_who_has_no_model(
    settings: Settings, clickhouse: ClickHouse, folder: Path
) -> None:
    mine, theirs = estate_windows(14), estate_windows(14, seed=2, tenant="other")
    await ensure_topics(settings)
    async with running(settings) as worker:
        await publish(settings, *mine[:9], *theirs[:9])
        count = partial(worker.total, "drift_graph_score_windows_total")
        await worker.until(lambda: count(outcome="scored") == 4, "the windows of the tenant with a model are scored")
        await worker.until(lambda: count(outcome="no_model") == 4, "those of the other one have passed")
        why = "graph model: no model for tenant other, lane default: train one by `drift train --tenant other"

        def reasons() -> tuple[str, ...]:
            return worker.worker.standing.readiness().reasons

        await worker.until(lambda: len(reasons()) == 1 and reasons()[0].startswith(why), "that alone is told")
        await worker.until(lambda: worker.total("drift_clickhouse_rows_total", table="edges_1m") > 0, "sinks go on")
        assert (worker.total("drift_graph_lanes_scored"), worker.total("drift_graph_lanes_without_model")) == (1, 1)
        put_model(folder, "other", seed=8)
        await publish(settings, *theirs[9:12])
        await worker.until(lambda: count(outcome="scored") == 7, "a model that came is taken without a restart")
        await worker.until(lambda: reasons() == (), "nothing is told any more")
    before = rows_of(clickhouse)
    assert before == expected(folder, mine[:9])

    async with running(settings) as worker:  # a new process: its memories come from ClickHouse
        await publish(settings, *mine[9:], *theirs[12:])
        await worker.until(
            lambda: worker.total("drift_graph_score_windows_total", outcome="scored") == 7, "both are scored at once"
        )
        assert worker.total("drift_graph_score_windows_total", outcome="repeated") == 0, "the stop has committed"
    assert rows_of(clickhouse) == expected(folder, mine)
    assert rows_of(clickhouse, "other") == [row for row in expected(folder, theirs) if row[0] >= theirs[9].start_ms]


async def test_what_was_not_committed_is_scored_again_to_the_same_rows(
    settings: Settings, clickhouse: ClickHouse, folder: Path
) -> None:
    windows = estate_windows(12)
    await ensure_topics(settings)
    await publish(settings, *windows)
    metrics = Metrics()

    def scored() -> float:
        return metrics.registry.get_sample_value("drift_graph_score_windows_total", {"outcome": "scored"}) or 0

    first = GraphScores(settings, folder, partial(connect, settings.clickhouse), metrics)
    first.start()
    await until(lambda: scored() == 7, "all windows are scored")
    assert first._task is not None
    first._task.cancel()  # as a kill would: nothing is stored, nothing committed
    await asyncio.wait({first._task})
    assert await committed(settings, first) == 0
    rows = rows_of(clickhouse)
    assert rows == expected(folder, windows)

    second = GraphScores(settings, folder, partial(connect, settings.clickhouse), metrics)
    second.start()
    await until(lambda: scored() == 14, "the next owner has read them again")
    await second.stop(STOPPED_S)
    assert not second.is_cut and await committed(settings, second) == len(values_of(windows))
    assert rows_of(clickhouse) == rows
    assert clickhouse.rows("SELECT count() FROM {db}.edge_scores") == [(len(rows),)], "the same insert is in once"


async def test_two_workers_share_the_partitions(settings: Settings, clickhouse: ClickHouse, folder: Path) -> None:
    tenants = [f"tenant-{number}" for number in range(6)]
    for tenant in tenants:
        put_model(folder, tenant)
    windows = {tenant: estate_windows(10, seed=number, tenant=tenant) for number, tenant in enumerate(tenants)}
    assert {partition_of(tenant, 2) for tenant in tenants} == {0, 1}
    await ensure_topics(settings)
    both = [
        GraphScores(settings, folder, partial(connect, settings.clickhouse), Metrics(), store_every_s=0.2)
        for _ in range(2)
    ]
    for one in both:
        one.start()
    await until(lambda: sorted(n for one in both for n in one._partitions) == [0, 1], "each has a partition")
    await until(lambda: all(len(one._partitions) == 1 for one in both), "each has one")
    await publish(settings, *(windows[tenant][number] for number in range(7) for tenant in tenants))
    await until(lambda: sum(sum(one.stored.values()) for one in both) >= 6 * 7 * 2, "all is stored and committed")
    await both[0].stop(STOPPED_S)
    await publish(settings, *(windows[tenant][number] for number in range(7, 10) for tenant in tenants))
    counted = "SELECT count() FROM {db}.edge_scores FINAL"
    every = {tenant: expected(folder, windows[tenant]) for tenant in tenants}
    total = sum(len(rows) for rows in every.values())
    await until(lambda: clickhouse.rows(counted) == [(total,)], "the other one has taken all over")
    await both[1].stop(STOPPED_S)
    for tenant in tenants:
        assert rows_of(clickhouse, tenant) == every[tenant], tenant


async def test_tables_that_are_missing_stop_no_worker(settings: Settings, clickhouse: ClickHouse, folder: Path) -> None:
    clickhouse.client.command(f"DROP TABLE {clickhouse.database}.edge_score_memory")
    await ensure_topics(settings)
    async with running(settings) as worker:
        await publish(settings, *estate_windows(7))
        standing = worker.worker.standing
        await worker.until(lambda: any("not scored" in one for one in standing.readiness().reasons), "it is told")
        assert standing.readiness().is_ready
        await worker.until(lambda: worker.total("drift_clickhouse_rows_total", table="edges_1m") > 0, "sinks go on")


async def test_events_are_sorted_by_the_score_of_their_edge(
    settings: Settings, clickhouse: ClickHouse, folder: Path
) -> None:
    windows = estate_windows(12)
    await ensure_topics(settings)
    await publish(settings, *windows)
    scores = GraphScores(settings, folder, partial(connect, settings.clickhouse), Metrics())
    scores.start()
    await until(lambda: len(rows_of(clickhouse)) > 0 and sum(scores.taken.values()) == 24, "all windows are scored")
    await scores.stop(STOPPED_S)

    async def no_poison(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    edge = EdgeRef("stranger", "store", 8080, 6)
    place: dict[str, Any] = {
        "window_start_ms": windows[8].start_ms,
        "window_end_ms": windows[8].end_ms,
        "time_ms": windows[8].end_ms,
    }
    events = [
        make_event(src="stranger", dst="store", port=8080, edges=(edge,), **place),
        make_event(src="stranger", dst="store", port=8080, edges=(edge,), tenant="other", **place),
    ]
    writer = PartitionWriter(clickhouse.client, clickhouse.database, "e", 0, drift_rows, no_poison, Metrics())
    await writer.write([Message(number, encode_event(event)) for number, event in enumerate(events)])
    writer = PartitionWriter(clickhouse.client, clickhouse.database, "w", 0, graph_rows, no_poison, Metrics())
    await writer.write([Message(n, value) for n, value in enumerate(values_of(windows))])
    [row] = clickhouse.dicts("SELECT * FROM {db}.v_event_scores ORDER BY combined DESC")
    assert (row["tenant"], row["src"], row["event_id"], row["is_new"]) == ("acme", "stranger", events[0].event_id, True)
    [score] = [one[3] for one in rows_of(clickhouse) if one[1] == "stranger"]
    assert round(row["combined"], 3) == score


def test_doctor_names_lanes_without_a_model_and_files_that_cannot_be_used(
    settings: Settings, clickhouse: ClickHouse, folder: Path
) -> None:
    async def no_poison(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    writer = PartitionWriter(clickhouse.client, clickhouse.database, "w", 0, graph_rows, no_poison, Metrics())
    windows = [*estate_windows(1), *estate_windows(1, tenant="other"), *estate_windows(1, lane="replay:x")]
    asyncio.run(writer.write([Message(number, value) for number, value in enumerate(values_of(windows))]))
    (folder / "broken.npz").write_bytes(b"nothing")

    findings = diagnose_graph_model(settings, partial(connect, settings.clickhouse))

    assert [f.level for f in findings] == [Level.OK, Level.WARNING, Level.WARNING]
    assert "of tenant acme, lane default" in findings[0].text and findings[1].check == "graph model broken.npz"
    assert findings[2].text.startswith("no model for tenant other, lane default: train one by")
    off = settings.model_copy(update={"gnn": GraphModelSettings()})
    assert [f.text for f in diagnose_graph_model(off, None)] == ["off (gnn.models_dir is not set)"]
    nowhere = settings.model_copy(update={"gnn": GraphModelSettings(models_dir=folder / "none")})
    assert [f.level for f in diagnose_graph_model(nowhere, None)] == [Level.PROBLEM]
