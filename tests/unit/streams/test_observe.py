"""States at scrape time: ages grow by themselves, partitions that left leave no series."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry, generate_latest

from models.drift.telemetry_state import TenantTelemetry
from models.graph.clock import END_OF_TIME_MS
from models.graph.guard import SourceGuard
from schemas.tenant_log import LaneConfig
from streams.graph_scores.status import ModelStatus
from streams.ingest.ports import SourcePartition
from streams.lag import GroupLag
from streams.metrics import Metrics
from streams.observe import STATE_METRICS, WorkerStates


class Clock:
    """Virtual time."""

    now = 1_000_000

    def now_ms(self) -> int:
        return self.now


def partition(watermark_ms: int | None, windows: int = 2, mode: Any = "live", recovered: bool = True) -> Any:
    """Return as much of a `GraphPartition` as is looked at; the fields' names are checked by the real worker's test."""
    lane = SimpleNamespace(
        config=LaneConfig(name="default" if mode == "live" else "replay:x", mode=mode),
        clock=SimpleNamespace(watermark_ms=watermark_ms),
        windows=dict.fromkeys(range(windows)),
        guard=SourceGuard({0: TenantTelemetry(lost_until=7), 1: TenantTelemetry(lost_until=6), 2: TenantTelemetry()}),
        judged_index=7,
    )
    return SimpleNamespace(
        is_recovered=recovered,
        machine=SimpleNamespace(lanes={lane.config.name: lane}),
        checkpoint_age_ms=lambda now_ms: now_ms - 990_000,
        state_bytes=4_096,
        checkpoint_ms=250,
    )


@dataclass
class Seen:
    """A worker to look at."""

    clock: Clock = field(default_factory=Clock)
    partitions: dict[int, Any] = field(default_factory=dict)
    lags: dict[SourcePartition, int] = field(default_factory=dict)
    idle: dict[SourcePartition, str] = field(default_factory=dict)
    sinks: dict[TP, int] = field(default_factory=dict)
    waiting: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    lag: GroupLag | None = None
    is_held: bool = False
    models: tuple[ModelStatus, Mapping[int, int]] | None = None

    def graph_models(self) -> tuple[ModelStatus, Mapping[int, int]] | None:
        return self.models

    def graph_partitions(self) -> Mapping[int, Any]:
        return self.partitions

    def source_lags(self) -> Mapping[SourcePartition, int]:
        return self.lags

    def idle_sources(self) -> Mapping[SourcePartition, str]:
        return self.idle

    def sink_lags(self) -> Mapping[TP, int]:
        return self.sinks

    def log_lag(self, partition: int) -> tuple[int, int | None]:
        return self.waiting.get(partition, (0, None))

    def group_lag(self) -> GroupLag | None:
        return self.lag


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def registry(seen: Seen) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(WorkerStates(seen))
    return registry


def test_ages_grow_while_nothing_happens(seen: Seen, registry: CollectorRegistry) -> None:
    seen.partitions[3] = partition(watermark_ms=940_000)
    seen.waiting[3] = (17, 970_000)
    seen.lag = GroupLag(oldest_ms={0: 900_000, 3: 970_000}, measured_at_ms=999_000)

    def ages() -> list[float | None]:
        three = {"partition": "3"}
        return [
            registry.get_sample_value("drift_watermark_age_seconds", {"lane": "default"} | three),
            registry.get_sample_value("drift_checkpoint_age_seconds", three),
            registry.get_sample_value("drift_graph_lag_age_seconds", three),
            registry.get_sample_value("drift_group_lag_age_seconds"),
            registry.get_sample_value("drift_lag_measured_age_seconds"),
        ]

    assert ages() == [60, 10, 30, 100, 1]
    seen.clock.now += 5_000
    assert ages() == [65, 15, 35, 105, 6]


def test_a_partition_that_left_leaves_no_series(seen: Seen, registry: CollectorRegistry) -> None:
    seen.partitions = {0: partition(900_000), 1: partition(900_000)}
    seen.lags = {("flows", 0): 5, ("flows", 1): 6}
    seen.idle = {("flows", 1): "flood"}
    seen.sinks = {TP("drift-events", 1): 8}
    text = generate_latest(registry).decode()
    assert 'drift_source_lag{partition="1",topic="flows"} 6.0' in text
    assert 'drift_source_paused{partition="1",reason="flood",topic="flows"} 1.0' in text
    assert 'drift_sink_lag{partition="1",topic="drift-events"} 8.0' in text
    assert 'drift_open_windows{partition="1"} 2.0' in text
    assert 'drift_tenants_losing{lane="default",partition="1"} 1.0' in text
    del seen.partitions[1], seen.lags["flows", 1], seen.idle["flows", 1], seen.sinks[TP("drift-events", 1)]
    text = generate_latest(registry).decode()
    assert 'partition="1"' not in text
    assert 'drift_source_lag{partition="0",topic="flows"} 5.0' in text


def test_only_live_lanes_with_a_watermark_have_an_age(seen: Seen, registry: CollectorRegistry) -> None:
    seen.partitions = {0: partition(None), 1: partition(5, mode="replay"), 2: partition(END_OF_TIME_MS)}
    text = generate_latest(registry).decode()
    assert "drift_watermark_age_seconds{" not in text
    assert text.count("drift_open_windows{") == 3


def test_what_is_not_restored_yet_says_nothing(seen: Seen, registry: CollectorRegistry) -> None:
    seen.partitions = {0: partition(1, recovered=False)}
    assert 'partition="0"' not in generate_latest(registry).decode()


def test_nothing_behind_has_no_age_and_an_unknown_age_is_left_out(seen: Seen, registry: CollectorRegistry) -> None:
    seen.partitions = {0: partition(1), 1: partition(1)}
    seen.waiting = {0: (0, None), 1: (4, None)}
    value = registry.get_sample_value
    assert value("drift_graph_lag_age_seconds", {"partition": "0"}) == 0
    assert value("drift_graph_lag", {"partition": "1"}) == 4
    assert value("drift_graph_lag_age_seconds", {"partition": "1"}) is None


def test_every_metric_says_what_to_do_and_names_no_tenant() -> None:
    metrics = Metrics()
    metrics.registry.register(WorkerStates(Seen()))
    families = list(metrics.registry.collect())
    assert {family.name for family in families} >= set(STATE_METRICS)
    for family in families:
        assert family.documentation.count(".") >= 1 and len(family.documentation) > 30, family.name
    labels = {label for _, names in STATE_METRICS.values() for label in names}
    assert labels == {"topic", "partition", "reason", "lane"}


def test_the_graph_model_shows_its_lanes_and_lag_where_it_is_on(seen: Seen, registry: CollectorRegistry) -> None:
    assert registry.get_sample_value("drift_graph_lanes_scored") is None
    seen.models = (ModelStatus(scored=4, missing=2, refused=1), {3: 70})
    assert registry.get_sample_value("drift_graph_lanes_scored") == 4
    assert registry.get_sample_value("drift_graph_lanes_without_model") == 3
    assert registry.get_sample_value("drift_graph_score_lag", {"partition": "3"}) == 70
