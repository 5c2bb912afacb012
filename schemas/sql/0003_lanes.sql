-- Lanes of one tenant side by side. Never edit this file once released: add a new one.

ALTER TABLE ${database}.drift_events ADD COLUMN IF NOT EXISTS seen_in Array(LowCardinality(String)) CODEC(ZSTD(1)) AFTER close_reason;

-- As in 0002, with the lanes that had seen the subject by the time of the last event.
CREATE OR REPLACE VIEW ${database}.v_findings AS
SELECT
    tenant,
    lane,
    generation,
    finding_id,
    any(e.fingerprint) AS fingerprint,
    any(e.kind) AS kind,
    if(max(e.activity_id) = 3, 'closed', 'open') AS status,
    argMax(e.severity, (e.activity_id, e.time, e.event_id)) AS severity,
    argMax(e.severity_id, (e.activity_id, e.time, e.event_id)) AS severity_id,
    argMax(e.risk_score, (e.activity_id, e.time, e.event_id)) AS risk_score,
    argMax(e.confidence, (e.activity_id, e.time, e.event_id)) AS confidence,
    max(e.is_alert) AS is_alert,
    min(e.first_seen) AS first_seen,
    min(e.time) AS opened_at,
    max(e.time) AS last_event_at,
    count() AS events,
    any(e.src) AS src,
    any(e.dst) AS dst,
    any(e.port) AS port,
    any(e.protocol) AS protocol,
    argMax(e.edges, (e.activity_id, e.time, e.event_id)) AS edges,
    max(e.edges_total) AS edges_total,
    argMax(e.evidence, (e.activity_id, e.time, e.event_id)) AS evidence,
    argMax(e.incident_id, (e.activity_id, e.time, e.event_id)) AS incident_id,
    argMax(e.title, (e.activity_id, e.time, e.event_id)) AS title,
    argMax(e.message, (e.activity_id, e.time, e.event_id)) AS message,
    argMax(e.checks, (e.activity_id, e.time, e.event_id)) AS checks,
    argMax(e.seen_in, (e.activity_id, e.time, e.event_id)) AS seen_in,
    argMax(e.close_reason, (e.activity_id, e.time, e.event_id)) AS close_reason
FROM ${database}.drift_events AS e FINAL
WHERE (tenant, lane, generation) IN (
        SELECT tenant, lane, max(generation)
        FROM
        (
            SELECT tenant, lane, generation FROM ${database}.drift_events
            UNION ALL
            SELECT tenant, lane, generation FROM ${database}.windows
        )
        GROUP BY tenant, lane
    )
GROUP BY tenant, lane, generation, finding_id;

CREATE OR REPLACE VIEW ${database}.v_open_findings AS
SELECT * EXCEPT (status, close_reason)
FROM ${database}.v_findings
WHERE status = 'open';

-- An edge of the tenant a row, whichever lanes see it. What each lane counted stays apart: two lanes see the same calls.
-- Replays have their own known edges and are left out.
CREATE VIEW IF NOT EXISTS ${database}.v_tenant_edges AS
SELECT
    tenant,
    src,
    dst,
    port,
    protocol,
    arrayMap(l -> l.lane, by_lane) AS lanes,
    min(s.first_seen) AS first_seen,
    max(s.last_seen) AS last_seen,
    CAST(
        arraySort(groupArray((s.lane, s.first_seen, s.last_seen, s.windows, s.calls, s.errors, s.denied, s.bytes_out, s.bytes_in))),
        'Array(Tuple(lane String, first_seen DateTime64(3, \'UTC\'), last_seen DateTime64(3, \'UTC\'), windows UInt64, calls UInt64, errors Nullable(UInt64), denied Nullable(UInt64), bytes_out Nullable(UInt64), bytes_in Nullable(UInt64)))'
    ) AS by_lane
FROM
(
    SELECT
        tenant,
        lane,
        src,
        dst,
        port,
        protocol,
        min(e.first_window) AS first_seen,
        max(e.last_window_end) AS last_seen,
        sum(e.windows) AS windows,
        sum(e.calls) AS calls,
        sum(e.errors) AS errors,
        sum(e.denied) AS denied,
        sum(e.bytes_out) AS bytes_out,
        sum(e.bytes_in) AS bytes_in
    FROM ${database}.edges_1h AS e FINAL
    WHERE NOT startsWith(lane, 'replay:')
        AND (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane)
    GROUP BY tenant, lane, src, dst, port, protocol
) AS s
GROUP BY tenant, src, dst, port, protocol;
