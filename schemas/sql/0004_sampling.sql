-- Numbers that stand for more than was seen: records whose source saw a sample only, and by what they were multiplied.

ALTER TABLE ${database}.edges_1m ADD COLUMN IF NOT EXISTS sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER late_bytes;
ALTER TABLE ${database}.edges_1m ADD COLUMN IF NOT EXISTS sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER sampled_flows;
ALTER TABLE ${database}.edges_1h ADD COLUMN IF NOT EXISTS sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER late_bytes;
ALTER TABLE ${database}.edges_1h ADD COLUMN IF NOT EXISTS sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER sampled_flows;
ALTER TABLE ${database}.windows ADD COLUMN IF NOT EXISTS overflow_sampled_flows UInt64 CODEC(T64, ZSTD(1)) AFTER overflow_late_bytes;
ALTER TABLE ${database}.windows ADD COLUMN IF NOT EXISTS overflow_sampling_sum UInt64 CODEC(T64, ZSTD(1)) AFTER overflow_sampled_flows;
