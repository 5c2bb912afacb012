-- Tables. Rules every statement here keeps:
--   tenant first in the sorting key, which holds the row's identity wholly: repeats collapse under FINAL;
--   the partition key depends on the identity alone, or repeats in two partitions would never meet;
--   non_replicated_deduplication_window: an insert repeated with its token changes nothing;
--   retention counts from arrival (inserted_at), so that a replay of old logs is not deleted as it is written.
-- A statement ends with a semicolon at the end of a line. ${database} and ${retention_days} are filled in by streams/migrate.py.
-- Never edit this file once released: add a new one.

-- Edges of closed windows. NULL is unknown (nobody reported the measure); port and protocol -1 are unknown.
CREATE TABLE IF NOT EXISTS ${database}.edges_1m
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    window_start DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    window_end DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    src String CODEC(ZSTD(1)),
    dst String CODEC(ZSTD(1)),
    port Int32,
    protocol Int16,
    flows UInt64 CODEC(T64, ZSTD(1)),
    calls UInt64 CODEC(T64, ZSTD(1)),
    errors Nullable(UInt64) CODEC(T64, ZSTD(1)),
    error_flows UInt64 CODEC(T64, ZSTD(1)),
    denied Nullable(UInt64) CODEC(T64, ZSTD(1)),
    denied_flows UInt64 CODEC(T64, ZSTD(1)),
    bytes_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    bytes_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    bytes_out_flows UInt64 CODEC(T64, ZSTD(1)),
    bytes_in_flows UInt64 CODEC(T64, ZSTD(1)),
    packets_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    packets_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    packets_out_flows UInt64 CODEC(T64, ZSTD(1)),
    packets_in_flows UInt64 CODEC(T64, ZSTD(1)),
    latency_calls UInt64 CODEC(T64, ZSTD(1)),
    latency_sum_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    skewed_flows UInt64 CODEC(T64, ZSTD(1)),
    late_flows UInt64 CODEC(T64, ZSTD(1)),
    late_calls UInt64 CODEC(T64, ZSTD(1)),
    late_bytes UInt64 CODEC(T64, ZSTD(1)),
    other_side_flows UInt64 CODEC(T64, ZSTD(1)),
    p50_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    p95_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    p99_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    latency_buckets Array(UInt16) CODEC(ZSTD(1)),
    latency_counts Array(UInt64) CODEC(ZSTD(1)),
    incomplete Array(LowCardinality(String)),
    is_learning Bool,
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    INDEX by_arrival inserted_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(window_start)
ORDER BY (tenant, lane, generation, window_start, src, dst, protocol, port)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- One row a closed window, written after its edges.
CREATE TABLE IF NOT EXISTS ${database}.windows
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    window_start DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    window_end DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    edges UInt32 CODEC(T64, ZSTD(1)),
    incomplete Array(LowCardinality(String)),
    is_learning Bool,
    overflow_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_calls UInt64 CODEC(T64, ZSTD(1)),
    overflow_errors Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_error_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_denied Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_denied_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_bytes_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_bytes_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_bytes_out_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_bytes_in_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_packets_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_packets_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_packets_out_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_packets_in_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_latency_calls UInt64 CODEC(T64, ZSTD(1)),
    overflow_latency_sum_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    overflow_skewed_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_late_flows UInt64 CODEC(T64, ZSTD(1)),
    overflow_late_calls UInt64 CODEC(T64, ZSTD(1)),
    overflow_late_bytes UInt64 CODEC(T64, ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(window_start)
ORDER BY (tenant, lane, generation, window_start)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- Hours, recomputed from FINAL rows of edges_1m by streams/sinks/rollup.py. More windows win: an hour whose minutes have
-- partly expired never overwrites the whole one.
CREATE TABLE IF NOT EXISTS ${database}.edges_1h
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    hour DateTime('UTC') CODEC(DoubleDelta, LZ4),
    src String CODEC(ZSTD(1)),
    dst String CODEC(ZSTD(1)),
    port Int32,
    protocol Int16,
    windows UInt32 CODEC(T64, ZSTD(1)),
    incomplete_windows UInt32 CODEC(T64, ZSTD(1)),
    learning_windows UInt32 CODEC(T64, ZSTD(1)),
    first_window DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    last_window_end DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    flows UInt64 CODEC(T64, ZSTD(1)),
    calls UInt64 CODEC(T64, ZSTD(1)),
    errors Nullable(UInt64) CODEC(T64, ZSTD(1)),
    error_flows UInt64 CODEC(T64, ZSTD(1)),
    denied Nullable(UInt64) CODEC(T64, ZSTD(1)),
    denied_flows UInt64 CODEC(T64, ZSTD(1)),
    bytes_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    bytes_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    bytes_out_flows UInt64 CODEC(T64, ZSTD(1)),
    bytes_in_flows UInt64 CODEC(T64, ZSTD(1)),
    packets_out Nullable(UInt64) CODEC(T64, ZSTD(1)),
    packets_in Nullable(UInt64) CODEC(T64, ZSTD(1)),
    packets_out_flows UInt64 CODEC(T64, ZSTD(1)),
    packets_in_flows UInt64 CODEC(T64, ZSTD(1)),
    latency_calls UInt64 CODEC(T64, ZSTD(1)),
    latency_sum_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    skewed_flows UInt64 CODEC(T64, ZSTD(1)),
    late_flows UInt64 CODEC(T64, ZSTD(1)),
    late_calls UInt64 CODEC(T64, ZSTD(1)),
    late_bytes UInt64 CODEC(T64, ZSTD(1)),
    other_side_flows UInt64 CODEC(T64, ZSTD(1)),
    p50_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    p95_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    p99_us Nullable(UInt64) CODEC(T64, ZSTD(1)),
    latency_buckets Array(UInt16) CODEC(ZSTD(1)),
    latency_counts Array(UInt64) CODEC(ZSTD(1)),
    source_inserted_at DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree(windows)
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, lane, generation, hour, src, dst, protocol, port)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- First and last time a service was seen; each row is complete, the latest wins.
CREATE TABLE IF NOT EXISTS ${database}.services
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    service String CODEC(ZSTD(1)),
    is_external Bool,
    first_seen DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    last_seen DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree(last_seen)
ORDER BY (tenant, lane, generation, service)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000;

-- One row a drift event; ocsf is the message of the topic, byte for byte. Flushed to disk before the insert returns.
CREATE TABLE IF NOT EXISTS ${database}.drift_events
(
    tenant LowCardinality(String),
    finding_id String CODEC(ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    fingerprint String CODEC(ZSTD(1)),
    incident_id String CODEC(ZSTD(1)),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    kind LowCardinality(String),
    activity LowCardinality(String),
    activity_id UInt8,
    episode UInt32 CODEC(T64, ZSTD(1)),
    severity LowCardinality(String),
    severity_id UInt8,
    risk_score UInt8,
    confidence UInt8,
    is_alert Bool,
    is_early Bool,
    time DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    window_start DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    window_end DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    first_seen DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    src String CODEC(ZSTD(1)),
    dst String CODEC(ZSTD(1)),
    port Int32,
    protocol Int16,
    edges Array(Tuple(src String, dst String, port Int32, protocol Int16)) CODEC(ZSTD(1)),
    edges_total UInt32 CODEC(T64, ZSTD(1)),
    evidence Array(Tuple(signal String, observed Float64, expected Float64, unit String, score Float64, sample Int64, history Int64, detector String)) CODEC(ZSTD(1)),
    title String CODEC(ZSTD(1)),
    message String CODEC(ZSTD(1)),
    checks Array(String) CODEC(ZSTD(1)),
    close_reason LowCardinality(String),
    ocsf String CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant, finding_id, event_id)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
