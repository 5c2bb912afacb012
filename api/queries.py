"""The SQL of the API: constants only. All that varies is bound as ``{name:Type}``; tenant first; FINAL rows.

Only the newest generation of a lane is shown, so that a replay that was run again does not appear beside its first run.
"""

_EVENT_COLUMNS = """
    event_id, finding_id, fingerprint, incident_id, tenant, lane, generation, kind, activity_id, episode, severity_id,
    risk_score, confidence, is_alert, is_early, toUnixTimestamp64Milli(time), toUnixTimestamp64Milli(window_start),
    toUnixTimestamp64Milli(window_end), toUnixTimestamp64Milli(first_seen), src, dst, port, protocol, edges,
    edges_total, evidence, title, message, checks, close_reason, seen_in
"""

_NEWEST_OF_EVENTS = """(lane, generation) IN (
    SELECT lane, max(generation) FROM {database:Identifier}.drift_events
    WHERE tenant = {tenant:String} GROUP BY lane)"""
_NEWEST_OF_WINDOWS = """(lane, generation) IN (
    SELECT lane, max(generation) FROM {database:Identifier}.windows
    WHERE tenant = {tenant:String} GROUP BY lane)"""

EVENTS = """
SELECT $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND $newest
    AND ({lane:String} = '' OR lane = {lane:String})
    AND (empty({kinds:Array(String)}) OR has({kinds:Array(String)}, kind))
    AND (empty({severities:Array(UInt8)}) OR has({severities:Array(UInt8)}, severity_id))
    AND severity_id >= {least_severity:UInt8}
    AND (empty({activities:Array(UInt8)}) OR has({activities:Array(UInt8)}, activity_id))
    AND ({incident:String} = '' OR incident_id = {incident:String})
    AND ({service:String} = '' OR src = {service:String} OR dst = {service:String}
        OR arrayExists(edge -> edge.1 = {service:String} OR edge.2 = {service:String}, edges))
    AND ({alert:Int8} < 0 OR is_alert = ({alert:Int8} = 1))
    AND time >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND time < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND ({after_id:String} = '' OR time < fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC')
        OR (time = fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC') AND event_id > {after_id:String}))
ORDER BY time DESC, event_id LIMIT {limit:UInt32}
""".replace("$columns", _EVENT_COLUMNS).replace("$newest", _NEWEST_OF_EVENTS)

EVENT = """
SELECT $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND event_id = {event_id:String} LIMIT 1
""".replace("$columns", _EVENT_COLUMNS)

FINDING = """
SELECT $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND finding_id = {finding_id:String}
ORDER BY activity_id = 1 DESC, activity_id = 3, window_start, time, event_id LIMIT {limit:UInt32}
""".replace("$columns", _EVENT_COLUMNS)

WINDOWS = """
SELECT lane, generation, toUnixTimestamp64Milli(window_start), toUnixTimestamp64Milli(window_end), edges, incomplete,
    is_learning, overflow_calls
FROM {database:Identifier}.windows FINAL
WHERE tenant = {tenant:String} AND $newest
    AND ({lane:String} = '' OR lane = {lane:String})
    AND window_end > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND ({after_ms:Int64} < 0 OR window_start < fromUnixTimestamp64Milli(greatest({after_ms:Int64}, 0), 'UTC')
        OR (window_start = fromUnixTimestamp64Milli(greatest({after_ms:Int64}, 0), 'UTC')
            AND lane > {after_lane:String}))
ORDER BY window_start DESC, lane LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)

NEWEST_END = """
SELECT max(toUnixTimestamp64Milli(window_end)) FROM {database:Identifier}.windows
WHERE tenant = {tenant:String} AND $newest AND ({lane:String} = '' OR lane = {lane:String})
""".replace("$newest", _NEWEST_OF_WINDOWS)

NEWEST_EVENT = """
SELECT max(toUnixTimestamp64Milli(time)) FROM {database:Identifier}.drift_events
WHERE tenant = {tenant:String} AND ({lane:String} = '' OR lane = {lane:String})
"""

GRAPH = """
SELECT src, dst, port, protocol, calls, errors, denied, bytes_out, bytes_in, latency_calls, latency_sum_us, p50_us,
    p95_us, p99_us
FROM {database:Identifier}.edges_1m FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start = fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC')
ORDER BY calls DESC, src, dst, protocol, port LIMIT {limit:UInt32}
"""

RANGE_EDGES = """
SELECT toUnixTimestamp64Milli(window_start), src, dst, toInt64(calls), ifNull(toInt64(errors), -1),
    ifNull(toInt64(denied), 0), toInt64(latency_calls), ifNull(toInt64(latency_sum_us), 0),
    ifNull(toInt64(p50_us), -1), ifNull(toInt64(p95_us), -1), ifNull(toInt64(bytes_out + bytes_in), -1)
FROM {database:Identifier}.edges_1m FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start >= fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({end_ms:Int64}, 'UTC')
    AND calls > 0
"""

LANES = """
SELECT lane, any(generation), toUnixTimestamp64Milli(min(window_start)), toUnixTimestamp64Milli(max(window_end)),
    max(dateDiff('millisecond', window_start, window_end)), toInt64(sum(edges))
FROM {database:Identifier}.windows FINAL
WHERE tenant = {tenant:String} AND $newest AND NOT startsWith(lane, 'replay:')
    AND window_end > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
GROUP BY lane ORDER BY lane
""".replace("$newest", _NEWEST_OF_WINDOWS)

GRAPH_LANES = """
SELECT src, dst, port, protocol, arraySort(groupUniqArray(lane))
FROM {database:Identifier}.edges_1m FINAL
WHERE tenant = {tenant:String} AND $newest AND lane != {lane:String} AND NOT startsWith(lane, 'replay:')
    AND window_start > fromUnixTimestamp64Milli({start_ms:Int64} - 86400000, 'UTC')
    AND window_end > fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({end_ms:Int64}, 'UTC')
    AND (src, dst, protocol, port) IN (
        SELECT src, dst, protocol, port FROM {database:Identifier}.edges_1m FINAL
        WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
            AND window_start = fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC')
        ORDER BY calls DESC, src, dst, protocol, port LIMIT {limit:UInt32})
GROUP BY src, dst, port, protocol
""".replace("$newest", _NEWEST_OF_WINDOWS)

EDGES = """
SELECT src, dst, port, protocol, min(first_ms), max(last_ms), arraySort(l -> l.1, groupArray((lane, first_ms, last_ms,
    windows, calls, errors, denied, bytes_out, bytes_in, latency_calls, latency_sum_us)))
FROM (
    SELECT lane, src, dst, port, protocol, toUnixTimestamp64Milli(min(e.window_start)) AS first_ms,
        toUnixTimestamp64Milli(max(e.window_end)) AS last_ms, count() AS windows, sum(e.calls) AS calls,
        sum(e.errors) AS errors, sum(e.denied) AS denied, sum(e.bytes_out) AS bytes_out, sum(e.bytes_in) AS bytes_in,
        sum(e.latency_calls) AS latency_calls, sum(e.latency_sum_us) AS latency_sum_us
    FROM {database:Identifier}.edges_1m AS e FINAL
    WHERE tenant = {tenant:String} AND $newest
        AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
        AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
        AND ({service:String} = '' OR src = {service:String} OR dst = {service:String})
        AND (src, dst, protocol, port) > ({after_src:String}, {after_dst:String}, {after_protocol:Int16},
            {after_port:Int32})
    GROUP BY lane, src, dst, port, protocol
)
GROUP BY src, dst, port, protocol
ORDER BY src, dst, protocol, port LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)

SERVICES = """
SELECT lane, service, is_external, toUnixTimestamp64Milli(first_seen), toUnixTimestamp64Milli(last_seen)
FROM {database:Identifier}.services FINAL
WHERE tenant = {tenant:String} AND $newest
    AND ({lane:String} = '' OR lane = {lane:String})
    AND (service, lane) > ({after_service:String}, {after_lane:String})
ORDER BY service, lane LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)

APPLIED = "SELECT name FROM {database:Identifier}.schema_migrations FINAL"

AUDIT_LOG = """
SELECT id, toUnixTimestamp64Milli(time), actor, action, outcome, target, detail, address, request_id
FROM {database:Identifier}.audit_log FINAL
WHERE tenant = {tenant:String}
    AND ({action:String} = '' OR action = {action:String})
    AND ({actor:String} = '' OR actor = {actor:String})
    AND ({outcome:String} = '' OR outcome = {outcome:String})
    AND time >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND time < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND ({after_id:String} = '' OR time < fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC')
        OR (time = fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC') AND id > {after_id:String}))
ORDER BY time DESC, id LIMIT {limit:UInt32}
"""
