-- Where each event stands on the topic, so that a consumer of live events can go on behind the last one it has seen: the
-- order of a tenant's events is that of the offsets of its partition, within one incarnation of the topics
-- (topics.incarnation). Rows from before have no incarnation.

ALTER TABLE ${database}.drift_events ADD COLUMN IF NOT EXISTS incarnation LowCardinality(String) AFTER ocsf;
ALTER TABLE ${database}.drift_events ADD COLUMN IF NOT EXISTS position UInt64 CODEC(Delta, ZSTD(1)) AFTER incarnation;
