"""Every metric: name, labels, help. Built on a registry that the entry point owns, so nothing happens at import."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """All counters of a worker. Labels never hold tenants or services: their number is not ours to bound."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        # ingest
        self.flows_in = counter("drift_ingest_flows", "Flows written to tenant-log.", ("topic",))
        self.dead_letters = counter(
            "drift_dead_letters",
            "Records kept as dead letters. A rising share means a producer changed.",
            ("topic", "reason"),
        )
        self.source_lag = gauge(
            "drift_source_lag", "Messages behind the end, by source partition.", ("topic", "partition")
        )
        self.source_paused = gauge(
            "drift_source_paused", "1 while a source partition is paused.", ("topic", "partition")
        )
        self.produce_retries = counter("drift_produce_retries", "Repeated produce requests.", ("topic",))
        # graph
        self.rows_folded = counter("drift_rows_folded", "Rows folded into windows.", ("outcome",))
        self.windows_closed = counter("drift_windows_closed", "Windows closed.", ("incomplete",))
        self.open_windows = gauge("drift_open_windows", "Windows open.", ("partition",))
        self.watermark_age = gauge("drift_watermark_age_seconds", "Clock minus watermark.", ("lane", "partition"))
        self.events = counter("drift_events", "Drift events published.", ("kind", "activity"))
        self.detection_delay = Histogram(
            "drift_detection_delay_seconds",
            "Record's event time to publication, early findings of live lanes.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
            registry=self.registry,
        )
        self.checkpoint_seconds = gauge("drift_checkpoint_seconds", "Duration of the last checkpoint.", ("partition",))
        self.checkpoint_bytes = gauge("drift_checkpoint_bytes", "Bytes of live state.", ("partition",))
        # sinks
        self.rows_inserted = counter("drift_clickhouse_rows", "Rows inserted.", ("table",))
        self.sink_retries = counter("drift_sink_retries", "Repeated inserts.", ("table",))
