-- Views for analysts (docs/analysts.md shows each with a query). All read FINAL rows, so repeated inserts never count twice,
-- and the newest generation of a lane alone, so a replay that was run again does not count beside its first run.
-- Filter by tenant first: it leads every sorting key.

CREATE VIEW IF NOT EXISTS ${database}.v_lanes AS
SELECT
    tenant,
    lane,
    generation,
    min(window_start) AS first_window,
    max(window_end) AS last_window_end,
    count() AS windows,
    countIf(notEmpty(incomplete)) AS incomplete_windows,
    countIf(is_learning) AS learning_windows,
    max(edges) AS most_edges
FROM ${database}.windows FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane)
GROUP BY tenant, lane, generation;

CREATE VIEW IF NOT EXISTS ${database}.v_edges AS
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
    errors / nullIf(calls, 0) AS error_ratio,
    denied,
    bytes_out,
    bytes_in,
    packets_out,
    packets_in,
    p50_us / 1000 AS p50_ms,
    p95_us / 1000 AS p95_ms,
    p99_us / 1000 AS p99_ms,
    late_calls,
    notEmpty(incomplete) AS is_incomplete,
    is_learning
FROM ${database}.edges_1m FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);

CREATE VIEW IF NOT EXISTS ${database}.v_edge_latency AS
SELECT
    tenant,
    lane,
    window_start,
    src,
    dst,
    port,
    latency_calls AS measured_calls,
    latency_sum_us / latency_calls / 1000 AS mean_ms,
    p50_us / 1000 AS p50_ms,
    p95_us / 1000 AS p95_ms,
    p99_us / 1000 AS p99_ms
FROM ${database}.edges_1m FINAL
WHERE latency_calls > 0
    AND (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);

CREATE VIEW IF NOT EXISTS ${database}.v_service_map AS
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
    errors / nullIf(calls, 0) AS error_ratio,
    denied,
    bytes_out,
    bytes_in,
    p50_us / 1000 AS p50_ms,
    p95_us / 1000 AS p95_ms,
    p99_us / 1000 AS p99_ms
FROM ${database}.edges_1h FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);

CREATE VIEW IF NOT EXISTS ${database}.v_top_talkers AS
SELECT
    tenant,
    lane,
    hour,
    src AS service,
    uniqExact(dst) AS peers,
    sum(e.calls) AS calls,
    sum(e.errors) AS errors,
    sum(e.denied) AS denied,
    sum(e.bytes_out) AS bytes_out,
    sum(e.bytes_in) AS bytes_in
FROM ${database}.edges_1h AS e FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane)
GROUP BY tenant, lane, hour, service;

CREATE VIEW IF NOT EXISTS ${database}.v_services AS
SELECT
    tenant,
    lane,
    service,
    is_external,
    first_seen,
    last_seen
FROM ${database}.services FINAL
WHERE (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);

CREATE VIEW IF NOT EXISTS ${database}.v_findings AS
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

CREATE VIEW IF NOT EXISTS ${database}.v_open_findings AS
SELECT * EXCEPT (status, close_reason)
FROM ${database}.v_findings
WHERE status = 'open';

CREATE VIEW IF NOT EXISTS ${database}.v_new_edges AS
SELECT
    tenant,
    lane,
    time,
    edge.src AS src,
    edge.dst AS dst,
    edge.port AS port,
    edge.protocol AS protocol,
    kind,
    severity,
    risk_score,
    is_alert,
    is_early,
    finding_id,
    incident_id,
    message
FROM ${database}.drift_events AS e FINAL
ARRAY JOIN edges AS edge
WHERE activity_id = 1
    AND kind IN ('new_edge', 'new_port', 'new_external_egress', 'new_service')
    AND (tenant, lane, generation) IN (
        SELECT tenant, lane, max(generation)
        FROM
        (
            SELECT tenant, lane, generation FROM ${database}.drift_events
            UNION ALL
            SELECT tenant, lane, generation FROM ${database}.windows
        )
        GROUP BY tenant, lane
    );

CREATE VIEW IF NOT EXISTS ${database}.v_incidents AS
SELECT
    tenant,
    f.lane AS lane,
    incident_id,
    min(f.first_seen) AS first_seen,
    max(f.last_event_at) AS last_event_at,
    count() AS findings,
    countIf(f.status = 'open') AS open_findings,
    argMax(f.severity, f.severity_id) AS severity,
    max(f.severity_id) AS severity_id,
    max(f.risk_score) AS risk_score,
    max(f.is_alert) AS is_alert,
    arraySort(groupUniqArray(f.kind)) AS kinds,
    arraySort(arrayFilter(s -> s != '', arrayDistinct(arrayConcat(groupUniqArray(f.src), groupUniqArray(f.dst))))) AS services,
    arraySort(groupUniqArray(20)(f.title)) AS titles
FROM ${database}.v_findings AS f
GROUP BY tenant, lane, incident_id;

CREATE VIEW IF NOT EXISTS ${database}.v_incomplete_windows AS
SELECT
    tenant,
    lane,
    window_start,
    window_end,
    incomplete AS reasons,
    edges,
    overflow_flows,
    overflow_calls
FROM ${database}.windows FINAL
WHERE (notEmpty(incomplete) OR overflow_flows > 0)
    AND (tenant, lane, generation) IN (SELECT tenant, lane, max(generation) FROM ${database}.windows GROUP BY tenant, lane);
