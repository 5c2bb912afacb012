-- How a finding's risk came about, and why it is an alert or none. Never edit this file once released: add a new one.

ALTER TABLE ${database}.drift_events ADD COLUMN IF NOT EXISTS verdict Tuple(reason String, effect UInt8, windows UInt32, windows_alike UInt32, budget UInt32, alerts UInt32, level UInt8, feedback Int8, note String) CODEC(ZSTD(1)) AFTER seen_in;

-- As in 0003, with the verdict of the finding's last event.
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
    argMax(e.verdict, (e.activity_id, e.time, e.event_id)) AS verdict,
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
