-- Numbers that stand for more than was seen: records whose source saw a sample only, and by what they were multiplied.

ALTER TABLE ${database}.edges_1m ADD COLUMN IF NOT EXISTS sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER late_bytes;
ALTER TABLE ${database}.edges_1m ADD COLUMN IF NOT EXISTS sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER sampled_flows;
ALTER TABLE ${database}.edges_1h ADD COLUMN IF NOT EXISTS sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER late_bytes;
ALTER TABLE ${database}.edges_1h ADD COLUMN IF NOT EXISTS sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER sampled_flows;
ALTER TABLE ${database}.windows ADD COLUMN IF NOT EXISTS overflow_sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER overflow_late_bytes;
ALTER TABLE ${database}.windows ADD COLUMN IF NOT EXISTS overflow_sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER overflow_sampled_flows;

-- As in 0002, with the factor that numbers were multiplied by. A call and its reply may both tell of the same error.
CREATE OR REPLACE VIEW ${database}.v_edges AS
SELECT
    tenant,
    lane,
    window_start,
    window_end,
    src,
    dst,
    port,
    protocol,
    calls,
    errors,
    multiIf(calls = 0, NULL, errors > calls, 1, errors / calls) AS error_ratio,
    denied,
    bytes_out,
    bytes_in,
    packets_out,
    packets_in,
    p50_us / 1000 AS p50_ms,
    p95_us / 1000 AS p95_ms,
    p99_us / 1000 AS p99_ms,
    late_calls,
    if(sampled_flows = 0, 1, sampling_sum / sampled_flows) AS sampled_1_in,
    notEmpty(incomplete) AS is_incomplete,
    is_learning
FROM ${database}.edges_1m FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);

CREATE OR REPLACE VIEW ${database}.v_service_map AS
SELECT
    tenant,
    lane,
    hour,
    src,
    dst,
    port,
    protocol,
    first_window,
    last_window_end,
    windows,
    incomplete_windows,
    calls,
    errors,
    multiIf(calls = 0, NULL, errors > calls, 1, errors / calls) AS error_ratio,
    denied,
    bytes_out,
    bytes_in,
    p50_us / 1000 AS p50_ms,
    p95_us / 1000 AS p95_ms,
    p99_us / 1000 AS p99_ms,
    if(sampled_flows = 0, 1, sampling_sum / sampled_flows) AS sampled_1_in
FROM ${database}.edges_1h FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);
