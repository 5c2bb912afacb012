"""The SQL of the API: constants only. All that varies is bound as ``{name:Type}``; tenant first; FINAL rows.

Only the newest generation of a lane is shown, so that a replay that was run again does not appear beside its first run.
"""

_EVENT_COLUMNS = """
    event_id, finding_id, fingerprint, incident_id, tenant, lane, generation, kind, activity_id, episode, severity_id,
    risk_score, confidence, is_alert, is_early, toUnixTimestamp64Milli(time), toUnixTimestamp64Milli(window_start),
    toUnixTimestamp64Milli(window_end), toUnixTimestamp64Milli(first_seen), src, dst, port, protocol, edges,
    edges_total, evidence, title, message, checks, close_reason, seen_in, verdict
"""

_NEWEST_OF_EVENTS = """(lane, generation) IN (
    SELECT lane, max(generation) FROM {database:Identifier}.drift_events
    WHERE tenant = {tenant:String} GROUP BY lane)"""
_NEWEST_OF_WINDOWS = """(lane, generation) IN (
    SELECT lane, max(generation) FROM {database:Identifier}.windows
    WHERE tenant = {tenant:String} GROUP BY lane)"""

_FILTERED_EVENTS = """{database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND $newest
    AND ({lane:String} = '' OR lane = {lane:String})
    AND (empty({kinds:Array(String)}) OR has({kinds:Array(String)}, kind))
    AND (empty({severities:Array(UInt8)}) OR has({severities:Array(UInt8)}, severity_id))
    AND severity_id >= {least_severity:UInt8}
    AND (empty({activities:Array(UInt8)}) OR has({activities:Array(UInt8)}, activity_id))
    AND ({incident:String} = '' OR incident_id = {incident:String})
    AND ({service:String} = '' OR src = {service:String} OR dst = {service:String}
        OR arrayExists(edge -> edge.1 = {service:String} OR edge.2 = {service:String}, edges))
    AND ({edge_src:String} = '' OR (src = {edge_src:String} AND dst = {edge_dst:String})
        OR arrayExists(edge -> edge.1 = {edge_src:String} AND edge.2 = {edge_dst:String}, edges))
    AND ({text:String} = '' OR positionCaseInsensitiveUTF8(title, {text:String}) > 0
        OR positionCaseInsensitiveUTF8(message, {text:String}) > 0
        OR positionCaseInsensitiveUTF8(src, {text:String}) > 0 OR positionCaseInsensitiveUTF8(dst, {text:String}) > 0)
    AND ({alert:Int8} < 0 OR is_alert = ({alert:Int8} = 1))
    AND time >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND time < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
""".replace("$newest", _NEWEST_OF_EVENTS)

EVENTS = """
SELECT $columns FROM $filtered
    AND ({after_id:String} = '' OR time < fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC')
        OR (time = fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC') AND event_id > {after_id:String}))
ORDER BY time DESC, event_id LIMIT {limit:UInt32}
""".replace("$columns", _EVENT_COLUMNS).replace("$filtered", _FILTERED_EVENTS)

EVENT_TOTALS = """
SELECT count(), uniqExact(finding_id), uniqExact(incident_id), countIf(is_alert),
    toUnixTimestamp64Milli(min(time)), toUnixTimestamp64Milli(max(time))
FROM $filtered
""".replace("$filtered", _FILTERED_EVENTS)

EVENT_COUNTS = """
SELECT kind, severity_id, activity_id, count() FROM $filtered
GROUP BY kind, severity_id, activity_id ORDER BY kind, severity_id, activity_id
""".replace("$filtered", _FILTERED_EVENTS)

EVENT_BUCKETS = """
SELECT intDiv(toUnixTimestamp64Milli(time), {bucket_ms:Int64}) * {bucket_ms:Int64} AS bucket, kind, severity_id, count()
FROM $filtered
GROUP BY bucket, kind, severity_id ORDER BY bucket, kind, severity_id
""".replace("$filtered", _FILTERED_EVENTS)

OPEN_FINDINGS = """
SELECT count(), uniqExact(incident), countIf(alert), max(severity)
FROM (
    SELECT finding_id, max(activity_id) AS last, argMax(e.incident_id, (e.activity_id, e.time, e.event_id)) AS incident,
        max(is_alert) AS alert, argMax(e.severity_id, (e.activity_id, e.time, e.event_id)) AS severity
    FROM {database:Identifier}.drift_events AS e FINAL
    WHERE tenant = {tenant:String} AND $newest
        AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
    GROUP BY finding_id HAVING last < 3
)
""".replace("$newest", _NEWEST_OF_EVENTS)

LANE_STATISTICS = """
SELECT lane, any(generation), count(), countIf(notEmpty(incomplete)), countIf(is_learning), max(edges),
    sum(overflow_calls), toUnixTimestamp64Milli(min(window_start)), toUnixTimestamp64Milli(max(window_end))
FROM {database:Identifier}.windows FINAL
WHERE tenant = {tenant:String} AND $newest AND ({lane:String} = '' OR lane = {lane:String})
    AND window_end > fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
GROUP BY lane ORDER BY lane LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)

SERVICE_COUNTS = """
SELECT uniqExact(name), uniqExactIf(name, startsWith(name, 'ext:'))
FROM (
    SELECT arrayJoin([src, dst]) AS name FROM {database:Identifier}.edges_1m FINAL
    WHERE tenant = {tenant:String} AND $newest
        AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
        AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
)
""".replace("$newest", _NEWEST_OF_WINDOWS)

EDGE_COUNTS = """
SELECT uniqExact(src, dst, protocol, port)
FROM {database:Identifier}.edges_1m FINAL
WHERE tenant = {tenant:String} AND $newest
    AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
""".replace("$newest", _NEWEST_OF_WINDOWS)

EVENT = """
SELECT $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND event_id = {event_id:String} LIMIT 1
""".replace("$columns", _EVENT_COLUMNS)

FINDING = """
SELECT $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND finding_id = {finding_id:String}
ORDER BY activity_id = 1 DESC, activity_id = 3, window_start, time, event_id LIMIT {limit:UInt32}
""".replace("$columns", _EVENT_COLUMNS)

EDGE_SCORES = """
SELECT src, dst, port, protocol, is_new, round(toFloat64(s.statistical), 3) AS statistical,
    round(toFloat64(s.graph), 3) AS graph, round(toFloat64(s.combined), 3) AS combined, model
FROM {database:Identifier}.edge_scores AS s FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start = fromUnixTimestamp64Milli({start_ms:Int64}, 'UTC')
    AND src IN {src:Array(String)} AND dst IN {dst:Array(String)}
    AND has(arrayZip({src:Array(String)}, {dst:Array(String)}, {port:Array(Int32)}, {protocol:Array(Int16)}),
        (src, dst, port, protocol))
ORDER BY combined DESC, src, dst, protocol, port
"""

PLACE_OF_EVENT = """
SELECT incarnation, position, toUnixTimestamp64Milli(inserted_at) FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND event_id = {event_id:String} AND incarnation != '' LIMIT 1
"""

EVENTS_BEHIND = """
SELECT position, $columns FROM {database:Identifier}.drift_events FINAL
WHERE tenant = {tenant:String} AND incarnation = {incarnation:String} AND position > {position:Int64}
ORDER BY position, event_id LIMIT {limit:UInt32}
""".replace("$columns", _EVENT_COLUMNS)

NEXT_INCARNATION = """
SELECT incarnation, toUnixTimestamp64Milli(min(inserted_at)) AS first_ms
FROM {database:Identifier}.drift_events
WHERE tenant = {tenant:String} AND incarnation != {incarnation:String}
    AND inserted_at > fromUnixTimestamp64Milli({after_ms:Int64}, 'UTC')
GROUP BY incarnation ORDER BY first_ms LIMIT 1
"""

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
    ifNull(toInt64(p50_us), -1)
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

EDGE_LANES = """
SELECT lane, any(generation), toUnixTimestamp64Milli(min(e.window_start)), toUnixTimestamp64Milli(max(e.window_end)),
    count(), sum(e.calls), sum(e.errors), sum(e.denied), sum(e.bytes_out), sum(e.bytes_in), sum(e.latency_calls),
    sum(e.latency_sum_us)
FROM {database:Identifier}.edges_1m AS e FINAL
WHERE tenant = {tenant:String} AND $newest
    AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND src = {src:String} AND dst = {dst:String} AND ({port:Int32} < -1 OR port = {port:Int32})
    AND ({protocol:Int16} < -1 OR protocol = {protocol:Int16})
GROUP BY lane ORDER BY lane
""".replace("$newest", _NEWEST_OF_WINDOWS)

EDGE_SERIES = """
SELECT intDiv(toUnixTimestamp64Milli(e.window_start), {bucket_ms:Int64}) * {bucket_ms:Int64} AS start, sum(e.calls),
    sum(e.errors), sum(e.denied), sum(e.bytes_out), sum(e.bytes_in), sum(e.latency_calls), sum(e.latency_sum_us),
    max(e.p50_us), max(e.p95_us), max(e.p99_us)
FROM {database:Identifier}.edges_1m AS e FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND src = {src:String} AND dst = {dst:String} AND ({port:Int32} < -1 OR port = {port:Int32})
    AND ({protocol:Int16} < -1 OR protocol = {protocol:Int16})
GROUP BY start ORDER BY start
"""

SERVICE_SERIES = """
SELECT intDiv(toUnixTimestamp64Milli(e.window_start), {bucket_ms:Int64}) * {bucket_ms:Int64} AS start,
    sumIf(e.calls, dst = {service:String}), sumIf(e.errors, dst = {service:String}),
    sumIf(e.latency_calls, dst = {service:String}), sumIf(e.latency_sum_us, dst = {service:String}),
    sumIf(e.calls, src = {service:String}), sumIf(e.errors, src = {service:String}),
    uniqExactIf(src, dst = {service:String}), uniqExactIf(dst, src = {service:String})
FROM {database:Identifier}.edges_1m AS e FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    AND (src = {service:String} OR dst = {service:String})
GROUP BY start ORDER BY start
"""

WINDOW_BUCKETS = """
SELECT intDiv(toUnixTimestamp64Milli(window_start), {bucket_ms:Int64}) * {bucket_ms:Int64} AS start, count(),
    countIf(notEmpty(incomplete))
FROM {database:Identifier}.windows FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
GROUP BY start ORDER BY start
"""

DIFFERENCE = """
WITH (window_start >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({from_end_ms:Int64}, 'UTC')) AS is_before,
    (window_start >= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({to_end_ms:Int64}, 'UTC')) AS is_after
SELECT src, dst, port, protocol,
    countIf(is_before), sumIf(e.calls, is_before), sumIf(e.errors, is_before), sumIf(e.denied, is_before),
    sumIf(e.bytes_out + e.bytes_in, is_before), sumIf(e.latency_calls, is_before), sumIf(e.latency_sum_us, is_before),
    countIf(is_after), sumIf(e.calls, is_after), sumIf(e.errors, is_after), sumIf(e.denied, is_after),
    sumIf(e.bytes_out + e.bytes_in, is_after), sumIf(e.latency_calls, is_after), sumIf(e.latency_sum_us, is_after)
FROM {database:Identifier}.edges_1m AS e FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64} AND (is_before OR is_after)
GROUP BY src, dst, port, protocol ORDER BY src, dst, protocol, port LIMIT {limit:UInt32}
"""

LEARNED_EDGES = """
SELECT src, dst, port, protocol, max(calls_of_lane) AS most
FROM (
    SELECT lane, src, dst, port, protocol, sum(e.calls) AS calls_of_lane
    FROM {database:Identifier}.edges_1m AS e FINAL
    WHERE tenant = {tenant:String} AND $newest
        AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
        AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    GROUP BY lane, src, dst, port, protocol
)
GROUP BY src, dst, port, protocol ORDER BY most DESC, src, dst, protocol, port LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)
"""One edge may be seen in several lanes: the calls are those of the lane that sees most, never their sum."""

CALLED_PAIRS = """
SELECT src, dst, toInt64(max(calls_of_lane)) AS most
FROM (
    SELECT lane, src, dst, sum(e.calls) AS calls_of_lane
    FROM {database:Identifier}.edges_1m AS e FINAL
    WHERE tenant = {tenant:String} AND $newest
        AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
        AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
    GROUP BY lane, src, dst
)
GROUP BY src, dst HAVING most > 0 ORDER BY src, dst LIMIT {limit:UInt32}
""".replace("$newest", _NEWEST_OF_WINDOWS)

CALLED_PAIRS_OF_LANE = """
SELECT src, dst, toInt64(sum(e.calls)) AS most
FROM {database:Identifier}.edges_1m AS e FINAL
WHERE tenant = {tenant:String} AND lane = {lane:String} AND generation = {generation:UInt64}
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
GROUP BY src, dst HAVING most > 0 ORDER BY src, dst LIMIT {limit:UInt32}
"""

CLOSED_LANES = """
SELECT lane, any(generation), count(), toInt64(sum(edges)), toUnixTimestamp64Milli(max(window_end))
FROM {database:Identifier}.windows FINAL
WHERE tenant = {tenant:String} AND $newest
    AND (lane = {lane:String} OR ({lane:String} = '' AND NOT startsWith(lane, 'replay:')))
    AND window_start >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
    AND window_start < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
GROUP BY lane ORDER BY lane
""".replace("$newest", _NEWEST_OF_WINDOWS)
"""What the calls of a range rest on: as long as it stays the same, so do they."""

SERVICE = """
SELECT lane, service, is_external, toUnixTimestamp64Milli(first_seen), toUnixTimestamp64Milli(last_seen)
FROM {database:Identifier}.services FINAL
WHERE tenant = {tenant:String} AND $newest AND service = {service:String} ORDER BY lane
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
