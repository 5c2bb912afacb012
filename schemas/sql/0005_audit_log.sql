-- Log-ins, and changes of accounts and keys; a row that comes twice collapses under FINAL.
CREATE TABLE IF NOT EXISTS ${database}.audit_log
(
    tenant LowCardinality(String),
    time DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    id String CODEC(ZSTD(1)),
    actor String CODEC(ZSTD(1)),
    action LowCardinality(String),
    outcome LowCardinality(String),
    target String CODEC(ZSTD(1)),
    detail String CODEC(ZSTD(1)),
    address String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant, time, id)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1;
