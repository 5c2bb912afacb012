"""Hours and services, recomputed from FINAL rows. Run it as often as you like, on any worker: the outcome is the same.

A roll-up that adds (incremental materialized view, SummingMergeTree) would count a repeated insert twice, for ever.
"""

from clickhouse_connect.driver import Client

from schemas.graph import MEASURES
from schemas.ids import EXTERNAL_PREFIX
from schemas.tables import EDGES_1H, SERVICES

OVERLAP_MS = 10 * 60_000
"""Rows carry the time their insert began, and may appear later than others: no insert takes longer than this."""

_SETTINGS = {"async_insert": 0, "insert_deduplicate": 0, "max_bytes_before_external_group_by": 2**30}

_SINCE = "SELECT toUnixTimestamp64Milli(max(source_inserted_at)) FROM {database:Identifier}.edges_1h"
_TOUCHED_HOURS = """
SELECT DISTINCT toInt64(toUnixTimestamp(toStartOfHour(window_start))) AS hour_s FROM {database:Identifier}.edges_1m
WHERE inserted_at >= fromUnixTimestamp64Milli({since_ms:Int64}) ORDER BY hour_s
"""
# The quantiles are those of models/graph/histogram.py, whose buckets these are; a test holds the two equal.
_QUANTILES = """
    tupleElement(histogram, 1) AS latency_buckets,
    tupleElement(histogram, 2) AS latency_counts,
    arrayCumSum(latency_counts) AS running,
    arrayMap(b -> toUInt8(greatest(intDiv(b, 8), 1) - 1), latency_buckets) AS shifts,
    arrayMap((b, s) -> if(b < 8, toUInt64(b), bitShiftLeft(toUInt64(8 + b % 8), s)), latency_buckets, shifts) AS lows,
    arrayMap(s -> bitShiftLeft(toUInt64(1), s), shifts) AS widths,
    arrayMap(q -> toUInt64(greatest(1, ceil(arraySum(latency_counts) * q))), [0.5, 0.95, 0.99]) AS ranks,
    arrayMap(rank -> arrayFirstIndex(total -> total >= rank, running), ranks) AS places,
    arrayMap(
        (rank, i) -> lows[i]
            + intDiv(widths[i] * (2 * (rank - (running[i] - latency_counts[i])) - 1), 2 * latency_counts[i]),
        ranks, places) AS quantiles_us,
    if(empty(latency_counts), NULL, quantiles_us[1]) AS p50_us,
    if(empty(latency_counts), NULL, quantiles_us[2]) AS p95_us,
    if(empty(latency_counts), NULL, quantiles_us[3]) AS p99_us"""
_IDENTITY = "tenant, lane, generation, src, dst, port, protocol"
_ADDITIVE = (*MEASURES, "other_side_flows")
_ONE_HOUR = f"""
INSERT INTO {{database:Identifier}}.edges_1h ({", ".join(EDGES_1H.sent_columns)})
WITH {_QUANTILES}
SELECT {", ".join(EDGES_1H.sent_columns)}
FROM
(
    SELECT
        {_IDENTITY},
        toDateTime({{hour_s:Int64}}, 'UTC') AS hour,
        toUInt32(count()) AS windows,
        toUInt32(countIf(notEmpty(incomplete))) AS incomplete_windows,
        toUInt32(countIf(is_learning)) AS learning_windows,
        min(window_start) AS first_window,
        max(window_end) AS last_window_end,
        {", ".join(f"sum(e.{name}) AS {name}" for name in _ADDITIVE)},
        sumMap(e.latency_buckets, e.latency_counts) AS histogram,
        max(e.inserted_at) AS source_inserted_at
    FROM {{database:Identifier}}.edges_1m AS e FINAL
    WHERE window_start >= toDateTime({{hour_s:Int64}}, 'UTC')
        AND window_start < toDateTime({{hour_s:Int64}} + 3600, 'UTC')
    GROUP BY {_IDENTITY}
)
"""  # noqa: S608 - column names of schemas/tables.py; values are bound
_SERVICES_OF_HOUR = f"""
INSERT INTO {{database:Identifier}}.services ({", ".join(SERVICES.sent_columns)})
SELECT tenant, lane, generation, service, startsWith(service, {{external:String}}), min(first_at), max(last_at)
FROM
(
    SELECT
        tenant, lane, generation, arrayJoin([src, dst]) AS service,
        first_window AS first_at, last_window_end AS last_at, 1 AS is_new
    FROM {{database:Identifier}}.edges_1h FINAL
    WHERE hour = toDateTime({{hour_s:Int64}}, 'UTC')
    UNION ALL
    SELECT tenant, lane, generation, service, first_seen AS first_at, last_seen AS last_at, 0 AS is_new
    FROM {{database:Identifier}}.services FINAL
    WHERE (tenant, lane, generation) IN (
        SELECT tenant, lane, generation FROM {{database:Identifier}}.edges_1h
        WHERE hour = toDateTime({{hour_s:Int64}}, 'UTC')
    )
)
GROUP BY tenant, lane, generation, service
HAVING max(is_new) = 1
"""  # noqa: S608 - column names of schemas/tables.py; values are bound


def rollup(client: Client, database: str, since_ms: int | None = None) -> int:
    """Recompute the hours that got rows since the last roll-up, and the services seen in them. Blocking.

    ``since_ms``: arrival time (not event time) from which on rows count as new; ``None`` continues where the last
    roll-up ended, 0 recomputes everything that ``edges_1m`` still holds.

    Returns the number of hours recomputed. The hours of the last ``OVERLAP_MS`` of arrivals are always among them.
    """
    if since_ms is None:
        last_ms = client.query(_SINCE, parameters={"database": database}).result_rows[0][0]
        since_ms = max(0, last_ms - OVERLAP_MS)
    touched = client.query(_TOUCHED_HOURS, parameters={"database": database, "since_ms": since_ms}).result_rows
    for (hour_s,) in touched:  # an hour a statement: bounds memory, and an insert lies in one partition
        parameters = {"database": database, "hour_s": hour_s}
        client.command(_ONE_HOUR, parameters=parameters, settings=_SETTINGS)
        client.command(_SERVICES_OF_HOUR, parameters={**parameters, "external": EXTERNAL_PREFIX}, settings=_SETTINGS)
    return len(touched)
