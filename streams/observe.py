"""The states of a worker as Prometheus sees them: read from the live objects at every scrape, so nothing gets stale.

A partition that hangs shows growing ages, one that left shows nothing. Only reads; any thread may scrape.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from faust.types import TP
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.graph.clock import END_OF_TIME_MS
from streams.clock import Clock
from streams.graph.partition import GraphPartition
from streams.graph_scores.status import ModelStatus
from streams.ingest.ports import SourcePartition
from streams.lag import GroupLag

STATE_METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "drift_source_lag": (
        "Messages of a source partition that are not yet written to tenant-log. If it keeps rising: add workers, or "
        "see whether ingest is held or the partition paused.",
        ("topic", "partition"),
    ),
    "drift_source_paused": (
        "1 for a source partition of which nothing is read. flood: too many of its records are undecodable, read the "
        "dead letters. stopped: an error ended it, the log says which; restart the worker once it is mended.",
        ("topic", "partition", "reason"),
    ),
    "drift_ingest_held": (
        "1 while ingest waits because the graph side is too far behind (half of the retention of tenant-log). "
        "Add workers, or raise the topic's retention.ms.",
        (),
    ),
    "drift_graph_lag": (
        "Records of a partition of tenant-log that are not yet applied. If it keeps rising: add workers.",
        ("partition",),
    ),
    "drift_graph_lag_age_seconds": (
        "Age of the oldest record of a partition of tenant-log that is not yet applied. It must stay far below the "
        "topic's retention: add workers.",
        ("partition",),
    ),
    "drift_group_lag_age_seconds": (
        "Age of the oldest record of tenant-log that no checkpoint of the whole group covers. Ingest is held above "
        "half of the topic's retention: add workers.",
        (),
    ),
    "drift_lag_measured_age_seconds": (
        "Since the brokers were last asked how far the group is behind. If it rises: they do not answer.",
        (),
    ),
    "drift_watermark_age_seconds": (
        "Clock minus watermark, of live lanes. If it rises beyond lateness and window: a source partition holds the "
        "lane; look at source lag and paused partitions.",
        ("lane", "partition"),
    ),
    "drift_open_windows": (
        "Windows open in a partition of tenant-log. If it rises: the watermark stands still.",
        ("partition",),
    ),
    "drift_tenants_losing": (
        "Tenants of a live lane whose source was losing data in the last window judged: removed edges and drops of "
        "rates of theirs are withheld. The findings telemetry_loss, silent_host, sampling_change and delivery_lag say "
        "which source, and why.",
        ("lane", "partition"),
    ),
    "drift_state_bytes": (
        "Size of a partition's live state as stored. If it keeps rising: a tenant brings ever new edges; lower "
        "max_edges_per_tenant.",
        ("partition",),
    ),
    "drift_checkpoint_age_seconds": (
        "For how long applied records have been waiting for a checkpoint. If it rises beyond checkpoint_every_ms: the "
        "state topic or drift-events takes no records; check the brokers.",
        ("partition",),
    ),
    "drift_checkpoint_seconds": (
        "How long the last checkpoint of a partition took. If it nears checkpoint_every_ms: raise that, or look at "
        "the brokers' disks.",
        ("partition",),
    ),
    "drift_graph_lanes_scored": (
        "Lanes whose windows came to the graph model lately and have a model. No sample: gnn.models_dir is not set.",
        (),
    ),
    "drift_graph_lanes_without_model": (
        "Lanes whose windows came to the graph model lately and have no model that can be used. /readyz names them and "
        "says what to do; detection does without.",
        (),
    ),
    "drift_graph_score_lag": (
        "Messages of a partition of graph-windows that the graph model has not taken. If it keeps rising: add workers. "
        "Detection does not wait for it.",
        ("partition",),
    ),
    "drift_sink_lag": (
        "Messages of a partition that are not yet in ClickHouse. If it keeps rising: look at sink retries and at "
        "ClickHouse; Kafka keeps them for the topic's retention.",
        ("topic", "partition"),
    ),
}
"""Every state: name, help, labels. Lanes are those of the settings: their number is bounded."""


class Observed(Protocol):
    """What a worker shows of itself; `streams.app.Worker` does."""

    @property
    def clock(self) -> Clock:
        """Processing time."""
        ...

    def graph_partitions(self) -> Mapping[int, GraphPartition]:
        """Return the partitions of `tenant-log` that are ours."""
        ...

    def source_lags(self) -> Mapping[SourcePartition, int]:
        """Return messages behind by source partition of ours."""
        ...

    def idle_sources(self) -> Mapping[SourcePartition, str]:
        """Return source partitions of which nothing is read, and why."""
        ...

    def sink_lags(self) -> Mapping[TP, int]:
        """Return messages behind by partition of our sinks."""
        ...

    def log_lag(self, partition: int) -> tuple[int, int | None]:
        """Return how many records of a partition of `tenant-log` wait, and since when at the longest."""
        ...

    def group_lag(self) -> GroupLag | None:
        """Return the last measurement, if there was one."""
        ...

    def graph_models(self) -> tuple[ModelStatus, Mapping[int, int]] | None:
        """Return how the graph model stands and messages behind by partition; ``None`` where it is off."""
        ...

    @property
    def is_held(self) -> bool:
        """Say whether ingest waits for the graph side."""
        ...


@dataclass(frozen=True, eq=False)
class WorkerStates(Collector):
    """Collects the states of one worker."""

    worker: Observed

    def describe(self) -> list[Metric]:
        """Return the metrics without samples; a registry asks this to find names that are taken."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """Read all states now."""
        families, now_ms = _families(), self.worker.clock.now_ms()

        def add(name: str, value: float, *labels: str) -> None:
            families[name].add_metric(list(labels), value)

        for (topic, number), lag in self.worker.source_lags().items():
            add("drift_source_lag", lag, topic, str(number))
        for (topic, number), reason in self.worker.idle_sources().items():
            add("drift_source_paused", 1, topic, str(number), reason)
        for tp, lag in self.worker.sink_lags().items():
            add("drift_sink_lag", lag, tp.topic, str(tp.partition))
        add("drift_ingest_held", float(self.worker.is_held))
        scores = self.worker.graph_models()
        if scores is not None:
            add("drift_graph_lanes_scored", scores[0].scored)
            add("drift_graph_lanes_without_model", scores[0].missing + scores[0].refused)
            for number, lag in scores[1].items():
                add("drift_graph_score_lag", lag, str(number))
        group = self.worker.group_lag()
        if group is not None and group.measured_at_ms:
            add("drift_group_lag_age_seconds", group.age_ms(now_ms) / 1000)
            add("drift_lag_measured_age_seconds", max(0, now_ms - group.measured_at_ms) / 1000)
        for number, partition in self.worker.graph_partitions().items():
            if partition.is_recovered:
                self._add_partition(families, number, partition, now_ms)
        yield from families.values()

    def _add_partition(
        self, families: dict[str, GaugeMetricFamily], number: int, partition: GraphPartition, now_ms: int
    ) -> None:
        def add(name: str, value: float, *labels: str) -> None:
            families[name].add_metric([*labels, str(number)], value)

        behind, since_ms = self.worker.log_lag(number)
        add("drift_graph_lag", behind)
        if behind == 0 or since_ms is not None:
            add("drift_graph_lag_age_seconds", 0 if since_ms is None else max(0, now_ms - since_ms) / 1000)
        lanes = list(partition.machine.lanes.items())
        add("drift_open_windows", sum(len(lane.windows) for _, lane in lanes))
        for name, lane in lanes:
            watermark_ms = lane.clock.watermark_ms
            # A replay's event time is of another day, and its name is of whoever replays.
            if lane.config.mode == "live" and watermark_ms is not None and watermark_ms < END_OF_TIME_MS:
                add("drift_watermark_age_seconds", (now_ms - watermark_ms) / 1000, name)
                add("drift_tenants_losing", lane.guard.count_losing(lane.judged_index), name)
        add("drift_checkpoint_age_seconds", partition.checkpoint_age_ms(now_ms) / 1000)
        if partition.state_bytes is not None:
            add("drift_state_bytes", partition.state_bytes)
        if partition.checkpoint_ms is not None:
            add("drift_checkpoint_seconds", partition.checkpoint_ms / 1000)


def _families() -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in STATE_METRICS.items()}
