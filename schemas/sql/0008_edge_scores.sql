-- What the graph model says of the edges of closed windows, as the stream goes on (docs/gnn.md). Never edit this file once released: add a new one.

-- One row an edge with calls and closed window. A window that is read again, after a crash, gives the same row.
CREATE TABLE IF NOT EXISTS ${database}.edge_scores
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    window_start DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    src String COMMENT 'the caller' CODEC(ZSTD(1)),
    dst String COMMENT 'the callee' CODEC(ZSTD(1)),
    port Int32 COMMENT '-1 is unknown',
    protocol Int16 COMMENT 'IANA number, -1 is unknown',
    is_new Bool COMMENT 'the model remembers no calls of this edge before this window',
    statistical Float32 COMMENT '-log10 of the share of normal edges that are as far from their own past' CODEC(ZSTD(1)),
    graph Float32 COMMENT '-log10 of the share of normal edges that the rest of the window explains as little' CODEC(ZSTD(1)),
    combined Float32 COMMENT 'statistical and graph added up' CODEC(ZSTD(1)),
    model LowCardinality(String) COMMENT 'which model: the first 12 hexadecimal digits of the SHA-256 of its file',
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree
PARTITION BY toDate(window_start)
ORDER BY (tenant, lane, generation, window_start, src, dst, protocol, port)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

-- What the model remembers of a lane after the window named: written before the offsets of the windows it holds are committed.
CREATE TABLE IF NOT EXISTS ${database}.edge_score_memory
(
    tenant LowCardinality(String),
    lane LowCardinality(String),
    generation UInt64 CODEC(T64, ZSTD(1)),
    window_start DateTime64(3, 'UTC') COMMENT 'the last window it holds' CODEC(DoubleDelta, LZ4),
    memory String COMMENT 'for workers alone: models/gnn/remembered.py, in base64' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC') CODEC(DoubleDelta, LZ4)
)
ENGINE = ReplacingMergeTree(window_start)
ORDER BY (tenant, lane, generation)
TTL toDateTime(inserted_at) + toIntervalDay(${retention_days})
SETTINGS non_replicated_deduplication_window = 10000;

-- Drift events with the scores of their edges in the event's window: a row an event and edge. Events whose window has no scores
-- (no model, an incomplete window, an edge without calls) are not in it. The newest generation of a lane alone.
CREATE VIEW IF NOT EXISTS ${database}.v_event_scores AS
SELECT
    e.tenant AS tenant,
    e.lane AS lane,
    e.window_start AS window_start,
    e.src AS src,
    e.dst AS dst,
    e.port AS port,
    e.protocol AS protocol,
    s.statistical AS statistical,
    s.graph AS graph,
    s.combined AS combined,
    s.is_new AS is_new,
    s.model AS model,
    e.finding_id AS finding_id,
    e.event_id AS event_id,
    e.incident_id AS incident_id,
    e.kind AS kind,
    e.activity AS activity,
    e.severity AS severity,
    e.severity_id AS severity_id,
    e.risk_score AS risk_score,
    e.is_alert AS is_alert,
    e.time AS time,
    e.title AS title
FROM
(
    SELECT
        tenant, lane, generation, window_start, finding_id, event_id, incident_id, kind, activity, severity, severity_id,
        risk_score, is_alert, time, title, edge.1 AS src, edge.2 AS dst, edge.3 AS port, edge.4 AS protocol
    FROM ${database}.drift_events FINAL
    ARRAY JOIN edges AS edge
    WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane)
) AS e
INNER JOIN
(
    SELECT tenant, lane, generation, window_start, src, dst, port, protocol, is_new, statistical, graph, combined, model
    FROM ${database}.edge_scores FINAL
) AS s ON e.tenant = s.tenant AND e.lane = s.lane AND e.generation = s.generation AND e.window_start = s.window_start
    AND e.src = s.src AND e.dst = s.dst AND e.port = s.port AND e.protocol = s.protocol;
