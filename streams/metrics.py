"""What a worker counts: name, labels, help. Built on a registry that the entry point owns: nothing happens at import.

States (lag, ages, sizes) are not kept here: `streams.observe` reads them from the live objects whenever somebody asks.
A help text says what is counted, then what to do when it rises; docs/operations.md lists all of them.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram


class Metrics:
    """All counters of a worker. Labels never hold tenants or services: their number is not ours to bound."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self.registry)

        # ingest
        self.flows_in = counter("drift_ingest_flows", "Flows written to tenant-log. Rises with load.", ("topic",))
        self.dead_letters = counter(
            "drift_dead_letters",
            "Records kept as dead letters. Read the reasons with `drift dead-letters`: a producer has changed.",
            ("topic", "reason"),
        )
        self.records_skipped = counter(
            "drift_records_skipped",
            "Sound records that are no flows (other logs of the tool, comments, headers), by kind. If it nears the "
            "number of flows: keep them out of the topic, they are read for nothing.",
            ("topic", "kind"),
        )
        self.loss_reports = counter(
            "drift_loss_reports",
            "Records by which a source says that it lost something, by kind. Removed edges and drops of rates of its "
            "tenants are withheld meanwhile: give the source more room (ring buffers, queues) or less to do.",
            ("topic", "kind"),
        )
        self.produce_retries = counter(
            "drift_produce_retries",
            "Produce requests that were repeated; nothing is lost. Check the brokers and the network to them.",
            ("topic",),
        )
        # graph
        self.rows_folded = counter(
            "drift_rows_folded",
            "Rows that came to the graph side, by outcome. Late rows: raise the lane's lateness_ms, or mend the "
            "producer that delays. Skewed rows: mend a producer's clock.",
            ("outcome",),
        )
        self.halves = counter(
            "drift_halves",
            "Halves of calls (spans), by what became of them; they are rows too. Alone: the other end is not traced, "
            "or its span came late or nowhere. Crowded out: counted alone for want of room; raise max_pending_pairs.",
            ("outcome",),
        )
        self.findings_withheld = counter(
            "drift_findings_withheld",
            "Removed edges and drops of rates kept back because a window was incomplete, or the source of a tenant was "
            "losing data. Find out why: a silent or paused source partition, records lost, or what the findings about "
            "sources say.",
        )
        self.removals_expected_back = counter(
            "drift_removals_expected_back",
            "Removed edges kept back because silences of theirs that began at this hour have ended before (nightly "
            "jobs). Each is told if it is not back an hour after its time.",
        )
        self.removals_seen_elsewhere = counter(
            "drift_removals_seen_elsewhere",
            "Removed edges kept back because another lane of the tenant still sees them. Many at once: a source has "
            "lost sight of a part of the estate (an agent, a flow log that was switched off).",
        )
        self.windows_closed = counter(
            "drift_windows_closed",
            "Windows closed. Incomplete ones: a source partition was silent for max_wait_ms, was paused, or lost "
            "records.",
            ("incomplete",),
        )
        self.events = counter("drift_events", "Drift events published. Rises with drift.", ("kind", "activity"))
        self.detection_delay = histogram(
            "drift_detection_delay_seconds",
            "From a record's event time to the publication of an early finding. If it rises, look at source lag and "
            "graph lag first: add workers.",
            (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
        )
        self.recovery = histogram(
            "drift_recovery_seconds",
            "Reading the saved state of one partition back, after a start or a rebalance. Its count is that of "
            "recoveries: if it rises without deployments, workers die or leave the group. If it takes longer, "
            "compact the state topic.",
            (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300),
        )
        self.rebalances = counter(
            "drift_rebalances",
            "Assignments of partitions to this worker. If it rises without deployments: workers die, or a worker is "
            "too busy to answer within kafka.session_timeout_ms.",
        )
        # graph model
        self.graph_score_windows = counter(
            "drift_graph_score_windows",
            "Closed windows that came to the graph model, by outcome. no_model: train one, /readyz names the lanes. "
            "damaged: messages of graph-windows are missing or cannot be read.",
            ("outcome",),
        )
        self.graph_score_seconds = histogram(
            "drift_graph_score_seconds",
            "Scoring one window by the graph model, on a thread of its own. If it nears the length of the windows: "
            "spread the tenants over more workers.",
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        # sinks
        self.rows_inserted = counter("drift_clickhouse_rows", "Rows inserted. Rises with load.", ("table",))
        self.sink_retries = counter(
            "drift_sink_retries",
            "Inserts that were repeated; Kafka holds the data meanwhile. Check that ClickHouse is up and has space.",
            ("table",),
        )
