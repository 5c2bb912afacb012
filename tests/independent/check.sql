-- The independent check. `table`: made in this order, in the scratch database $s, from its table `raw` of messages.
-- `stored`: what the pipeline wrote into $db. Columns named _x are not compared. {x:T}: fields of Rules (check.py).

-- table: records
WITH trim(BOTH ' \t\r\n' FROM if(startsWith(value, '\xEF\xBB\xBF'), substring(value, 4), value)) AS text,
    startsWith(text, '[') AS is_array,
    multiIf(is_array AND isValidJSON(text), JSONExtractArrayRaw(text),
        is_array OR isValidJSON(text), [text],
        splitByRegexp('\\s*\n\\s*', text)) AS found,
    emptyArrayToSingle(arrayFilter(line -> line != '', found)) AS pieces
SELECT * EXCEPT value, piece, number - 1 AS record, is_array, length(pieces) AS size
FROM $s.raw ARRAY JOIN pieces AS piece, arrayEnumerate(pieces) AS number

-- table: judged
WITH JSONExtractKeysAndValuesRaw(piece) AS pairs,
    CAST(arrayFilter(pair -> pair.2 != 'null', arrayReverse(pairs)), 'Map(String, String)') AS given,
    ['time_ms', 'calls', 'port', 'errors', 'denied', 'bytes_out', 'bytes_in', 'packets_out', 'packets_in', 'latency_us']
        AS integers, arrayMap(key -> given[key], integers) AS digits, arrayMap(t -> toInt128OrNull(t), digits) AS v,
    ['src', 'dst', 'protocol', 'reporter', 'tenant', 'host'] AS names, arrayMap(key -> given[key], names) AS quoted,
    arrayMap(t -> JSONExtractString(concat('[', t, ']'), 1), quoted) AS n,
    if({tenant:String} = '', n[5], {tenant:String}) AS whose, ifNull(v[1], 0) AS at
SELECT partition, offset, record, batch, is_array, size, whose AS tenant, n[1] AS src, n[2] AS dst,
    toInt64(ifNull(v[3], -1)) AS port, n[4] = 'server' AS is_server, toUInt64(ifNull(v[2], 1)) AS calls,
    toInt64(v[4]) AS errors, toInt64(v[5]) AS denied, toInt64(v[6]) AS bytes_out, toInt64(v[7]) AS bytes_in,
    toInt64(v[8]) AS packets_out, toInt64(v[9]) AS packets_in, toInt64(v[10]) AS latency_us,
    transform(n[3], ['icmp', 'tcp', 'udp', 'icmp6', 'sctp'], [1, 6, 17, 58, 132], -1) AS protocol, -- IANA
    clock_ms > 0 AND at > clock_ms + {skew_ms:Int64} AS skewed, toInt64(if(skewed, clock_ms, at)) AS time_ms,
    multiIf(piece = '', 'empty',
        NOT isValidJSON(piece) OR JSONType(piece) != 'Object' OR has(pairs, ('calls', 'null'))
        OR digits[1] = '' OR quoted[1] = '' OR quoted[2] = ''
        OR arrayExists((t, x) -> t != '' AND x IS NULL AND NOT match(t, '^-?[0-9]+$$'), digits, v)
        OR arrayExists(t -> t != '' AND NOT startsWith(t, '"'), quoted), 'malformed',
        arrayExists((t, x, low, high) -> t != '' AND ifNull(x < low OR x > high, 1), digits, v,
            [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            arrayConcat([8796093022208, 4294967296, 65535], arrayWithConstant(7, 4398046511104)))
        OR arrayExists((t, x) -> t != '' AND NOT lengthUTF8(x) BETWEEN 1 AND 256, quoted, n)
        OR n[3] != '' AND protocol < 0 OR n[4] NOT IN ('', 'client', 'server'), 'invalid-value',
        whose = '', 'unknown-tenant',
        {tenants:String} != '' AND NOT has(splitByChar(',', {tenants:String}), whose), 'tenant-not-allowed',
        clock_ms > 0 AND at > clock_ms + 86400000, 'future', '') AS reason
FROM $s.records

-- table: dead
-- A message of which nothing can be read is one dead letter, at the index of whole messages.
SELECT partition, offset, if(size = 1 AND is_unread OR NOT is_array AND good = 0, 1048575, record) AS index, reason
FROM (SELECT *, reason IN ('empty', 'malformed', 'invalid-value') AS is_unread,
    countIf(NOT is_unread) OVER (PARTITION BY partition, offset) AS good FROM $s.judged)
WHERE reason != '' ORDER BY partition, offset, record LIMIT 1 BY partition, offset, index

-- table: timed
-- Before a batch the watermark is the least of the partitions' largest times in earlier batches, minus lateness. A late
-- record falls into the first window that is open.
WITH clocks AS (SELECT b.batch AS batch, max(t.time_ms) OVER (PARTITION BY p.partition ORDER BY b.batch
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS heard
    FROM (SELECT DISTINCT batch FROM $s.judged) AS b CROSS JOIN (SELECT DISTINCT partition FROM $s.judged) AS p
    LEFT JOIN (SELECT batch, partition, max(time_ms) AS time_ms FROM $s.judged WHERE reason = '' GROUP BY ALL) AS t
    ON t.batch = b.batch AND t.partition = p.partition),
closed AS (SELECT batch, max(least) OVER (ORDER BY batch) AS floor FROM (SELECT batch, if(countIf(heard IS NULL) = 0,
    intDiv(min(heard) - {lateness_ms:Int64}, {window_ms:Int64}), NULL) AS least FROM clocks GROUP BY batch))
SELECT * EXCEPT (reason, floor), intDiv(time_ms, {window_ms:Int64}) AS own, own < ifNull(floor, 0) AS late,
    greatest(own, ifNull(floor, 0)) * {window_ms:Int64} AS window_ms
FROM $s.judged LEFT JOIN closed USING (batch) WHERE reason = ''

-- table: placed
-- Where the client reported an edge on time, the server is not counted.
SELECT *, ($edge, window_ms) IN (SELECT $edge, window_ms FROM $s.timed WHERE NOT late AND NOT is_server) AS by_client,
    NOT late AND is_server != by_client AS chosen FROM $s.timed

-- table: edges
WITH chosen AND latency_us IS NOT NULL AS timed
SELECT $edge, window_ms, countIf(chosen) AS flows, sumIf(r.calls, chosen) AS calls,
    sumOrNullIf(r.errors, chosen) AS errors, countIf(chosen AND r.errors IS NOT NULL) AS error_flows,
    sumOrNullIf(r.denied, chosen) AS denied, countIf(chosen AND r.denied IS NOT NULL) AS denied_flows,
    sumOrNullIf(r.bytes_out, chosen) AS bytes_out, sumOrNullIf(r.bytes_in, chosen) AS bytes_in,
    countIf(chosen AND r.bytes_out IS NOT NULL) AS bytes_out_flows,
    countIf(chosen AND r.bytes_in IS NOT NULL) AS bytes_in_flows,
    sumOrNullIf(r.packets_out, chosen) AS packets_out, sumOrNullIf(r.packets_in, chosen) AS packets_in,
    countIf(chosen AND r.packets_out IS NOT NULL) AS packets_out_flows,
    countIf(chosen AND r.packets_in IS NOT NULL) AS packets_in_flows,
    sumIf(r.calls, timed) AS latency_calls, sumOrNullIf(latency_us * r.calls, timed) AS latency_sum_us,
    quantilesExactWeightedIf(0.5, 0.95, 0.99)(ifNull(latency_us, 0), r.calls, timed) AS _q,
    minIf(time_ms, NOT (startsWith(dst, 'ext:') AND ifNull(r.packets_out = 0, 0) AND ifNull(r.bytes_out, 0) = 0)) AS _first_ms,
    if(latency_calls > 0, _q[1], NULL) AS p50_us, if(latency_calls > 0, _q[2], NULL) AS p95_us,
    if(latency_calls > 0, _q[3], NULL) AS p99_us, countIf(chosen AND skewed) AS skewed_flows,
    countIf(NOT late AND NOT chosen) AS other_side_flows, countIf(late) AS late_flows, sumIf(r.calls, late) AS late_calls,
    sumIf(ifNull(r.bytes_out, 0) + ifNull(r.bytes_in, 0), late) AS late_bytes
FROM $s.placed AS r GROUP BY $edge, window_ms

-- table: windows
SELECT tenant, window_ms, count() AS edges, window_ms + {window_ms:Int64} AS end_ms,
    rank() OVER (PARTITION BY tenant ORDER BY window_ms) <= {learning_windows:UInt32} AS is_learning
FROM $s.edges GROUP BY tenant, window_ms

-- table: seen
-- Calls from outside that nobody answered show nothing: no data back (packets without are of 40 to 80 bytes, where bytes
-- are those of whole packets), and all denied, none known to have succeeded, or no way back.
WITH ifNull(bytes_in, 0) AS back, ifNull(packets_in, 0) AS of
SELECT * FROM $s.edges WHERE NOT (startsWith(src, 'ext:') AND calls > 0
    AND (back = 0 OR back BETWEEN 40 * of AND 80 * of) AND (
    denied_flows > 0 AND denied >= calls OR error_flows > 0 AND errors >= if(error_flows = flows, calls, error_flows)
    OR error_flows = 0 AND bytes_in_flows + packets_in_flows > 0 AND ifNull(packets_in, 0) = 0))
    AND NOT (startsWith(dst, 'ext:') AND flows > 0 AND packets_out_flows = flows AND packets_out = 0
        AND ifNull(bytes_out, 0) = 0) -- nor do answers to calls in which nothing was sent

-- table: first_of_edge
SELECT $edge, min(window_ms) FROM $s.seen GROUP BY ALL

-- table: first_of_pair
SELECT tenant, src, dst, min(window_ms) FROM $s.seen GROUP BY ALL

-- table: first_of_service
SELECT tenant, name, min(window_ms) FROM $s.seen ARRAY JOIN [src, dst] AS name GROUP BY ALL

-- table: findings
-- A new service is one finding that lists its edges; a known pair gets a new port; the rest is a new edge or egress.
-- No service here meets strangers outside by habit, of which each would be none: there are too few (open_after_windows).
WITH ('', '', '', 0, 0) AS none, startsWith(e.dst, 'ext:') AS is_out,
    NOT startsWith(e.src, 'ext:') AND (tenant, e.src, window_ms) IN $s.first_of_service AS is_new_src,
    NOT is_out AND (tenant, e.dst, window_ms) IN $s.first_of_service AS is_new_dst,
    (tenant, e.src, e.dst, window_ms) IN $s.first_of_pair AS is_new_pair
SELECT tenant, subject.1 AS kind, subject.2 AS src, subject.3 AS dst, subject.4 AS port, subject.5 AS protocol, window_ms,
    count() AS edges_total, sum(e.calls + e.late_calls) AS calls,
    min(if(startsWith(e.src, 'ext:') OR _first_ms = 0, window_ms, _first_ms)) AS first_ms, 1 AS findings, 0 AS early
FROM $s.seen AS e ARRAY JOIN arrayDistinct(arrayFilter(news -> news.1 != '', [
    if(is_new_src, ('new_service', e.src, '', -1, -1), none), if(is_new_dst, ('new_service', e.dst, '', -1, -1), none),
    multiIf(NOT is_new_pair, ('new_port', e.src, e.dst, e.port, e.protocol),
        is_out, ('new_external_egress', e.src, e.dst, -1, -1),
        is_new_src OR is_new_dst, none, ('new_edge', e.src, e.dst, -1, -1))])) AS subject
WHERE (tenant, e.src, e.dst, e.port, e.protocol, window_ms) IN $s.first_of_edge
    AND (tenant, window_ms) IN (SELECT tenant, window_ms FROM $s.windows WHERE NOT is_learning) GROUP BY ALL

-- table: input
SELECT $edge, count() AS records FROM $s.timed GROUP BY $edge

-- stored: edges
SELECT *, toUnixTimestamp64Milli(window_start) AS window_ms FROM $db.edges_1m $newest

-- stored: windows
SELECT tenant, toUnixTimestamp64Milli(window_start) AS window_ms, toUnixTimestamp64Milli(window_end) AS end_ms, edges,
    is_learning::UInt8 AS is_learning FROM $db.windows $newest

-- stored: findings
-- The first event that is not early is the settled one; a finding that is never settled stays early.
SELECT $news, toUnixTimestamp64Milli(window_start) AS window_ms, toUnixTimestamp64Milli(first_seen) AS first_ms,
    edges_total, toInt64(evidence[1].observed) AS calls, is_early::UInt8 AS early,
    uniqExact(finding_id) OVER (PARTITION BY $news) AS findings
FROM $db.drift_events $newest AND activity_id < 3 AND kind IN ('new_service', 'new_edge', 'new_port', 'new_external_egress')
ORDER BY early, window_ms LIMIT 1 BY $news

-- stored: input
SELECT $edge, sum(flows + other_side_flows + late_flows) AS records FROM $db.edges_1m $newest GROUP BY $edge

-- stored: dead
SELECT * FROM $s.given

-- query: differences
SELECT DISTINCT what, subject, if(whole, 'row', name), if(whole, if(of_raw, 'there', NULL), expected),
    if(whole, if(of_stored, 'there', NULL), stored)
FROM (SELECT what, subject, name, anyOrNullIf(value, is_raw) AS expected, anyOrNullIf(value, NOT is_raw) AS stored,
        max(expected IS NOT NULL) OVER (PARTITION BY what, subject) AS of_raw,
        max(stored IS NOT NULL) OVER (PARTITION BY what, subject) AS of_stored, NOT (of_raw AND of_stored) AS whole
    FROM $s.facts GROUP BY what, subject, name)
WHERE ifNull(expected != stored, 1) AND NOT ifNull(match(name, '^p.._us') AND abs(toInt64OrNull(expected)
    - toInt64OrNull(stored)) <= 1 + {quantile_error:Float64} * toInt64OrNull(expected), 0)
ORDER BY ALL

-- query: is_exact
SELECT max(ahead) <= {lateness_ms:Int64} OR min(batch) > 0 FROM (SELECT batch,
    max(time_ms) OVER (PARTITION BY partition ORDER BY offset, record) - time_ms AS ahead FROM $s.timed)

-- query: fates
SELECT multiIf(late, 'late', skewed, 'skewed', 'on_time') AS fate, count() FROM $s.timed GROUP BY fate
UNION ALL SELECT 'dead', count() FROM $s.dead
