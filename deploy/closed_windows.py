"""Closed windows of one tenant and lane, in order of time: from ClickHouse, or from a file of flows."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from deploy.commands.backtest import DEFAULT_TENANT, run_backtest
from deploy.sql_console import FILE, ask_running, query_text
from models.gnn.windows import WindowEdges, edges_of, window_of
from schemas.clickhouse_dsn import is_embedded
from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.clickhouse import connect
from streams.clock import SystemClock
from streams.log_files import format_for, holds_tenants
from streams.replay import ReplayLane

_FORM = "JSONCompactEachRow"
EDGES_PER_QUERY = 100_000
"""Windows are fetched together up to so many edges: bounds memory and the answer's size."""
Progress = Callable[[int, int], None]
Query = Callable[[str], list[list[object]]]

_LANES = """
SELECT lane, max(generation), uniqExact(window_start) FROM {database}.windows
WHERE tenant = {tenant} GROUP BY lane ORDER BY lane
"""
_WINDOWS = """
SELECT toUnixTimestamp64Milli(window_start), edges FROM {database}.windows FINAL
WHERE tenant = {tenant} AND lane = {lane} AND generation = {generation} AND empty(incomplete)
    AND window_start >= (SELECT max(window_start) FROM {database}.windows
        WHERE tenant = {tenant} AND lane = {lane} AND generation = {generation}) - INTERVAL {days} DAY
ORDER BY window_start
"""
_EDGES = """
SELECT toUnixTimestamp64Milli(window_start), src, dst, port, protocol, calls,
    if(isNull(bytes_out) AND isNull(bytes_in), -1, toInt64(ifNull(bytes_out, 0) + ifNull(bytes_in, 0))),
    if(isNull(errors), -1, toInt64(least(ifNull(errors, 0), calls))),
    if(isNull(p50_us), -1, toInt64(ifNull(p50_us, 0))), if(isNull(p95_us), -1, toInt64(ifNull(p95_us, 0)))
FROM {database}.edges_1m FINAL
WHERE tenant = {tenant} AND lane = {lane} AND generation = {generation} AND calls > 0 AND empty(incomplete)
    AND window_start >= fromUnixTimestamp64Milli(toInt64({first}))
    AND window_start <= fromUnixTimestamp64Milli(toInt64({last}))
ORDER BY window_start, src, dst, port, protocol
"""


def stored_windows(
    query: Query, database: str, tenant: str, lane: str | None, days: int, progress: Progress | None = None
) -> tuple[str, Iterator[WindowEdges]]:
    """Return the lane's name and its whole windows of the last days; those that lack records are left out.

    Raises:
        ConfigurationError: nothing is stored of this tenant, or several lanes and none is named.
    """
    values = {"database": database, "tenant": _quoted(tenant), "days": str(days)}
    lanes = {str(name): int(str(generation)) for name, generation, _ in query(_LANES.format(**values))}
    if not lanes:
        raise ConfigurationError(f"nothing is stored of tenant {tenant!r}: check its name")
    chosen = lane if lane is not None else next(iter(lanes))
    if chosen not in lanes or (lane is None and len(lanes) > 1):
        raise ConfigurationError(f"name one of the lanes of tenant {tenant!r} with --lane: {', '.join(lanes)}")
    values |= {"lane": _quoted(chosen), "generation": str(lanes[chosen])}
    windows = [(int(str(start)), int(str(edges))) for start, edges in query(_WINDOWS.format(**values))]
    return chosen, _fetched(query, values, windows, progress)


def _fetched(
    query: Query, values: dict[str, str], windows: Sequence[tuple[int, int]], progress: Progress | None
) -> Iterator[WindowEdges]:
    first = 0
    while first < len(windows):
        last, edges = first, windows[first][1]
        while last + 1 < len(windows) and edges + windows[last + 1][1] <= EDGES_PER_QUERY:
            last += 1
            edges += windows[last][1]
        span = {"first": str(windows[first][0]), "last": str(windows[last][0])}
        found: dict[int, list[list[object]]] = {start: [] for start, _ in windows[first : last + 1]}
        for row in query(_EDGES.format(**values, **span)):
            found.get(int(str(row[0])), []).append(row)
        for start_ms, rows in found.items():
            yield _window(start_ms, rows)
        first = last + 1
        if progress is not None:
            progress(first, len(windows))


def _window(start_ms: int, rows: list[list[object]]) -> WindowEdges:
    keys = [(str(row[1]), str(row[2]), int(str(row[3])), int(str(row[4]))) for row in rows]
    columns = np.array([[int(str(value)) for value in row[5:10]] for row in rows], dtype=np.int64).reshape(-1, 5)
    return window_of(start_ms, keys, *(columns[:, place] for place in range(5)))


def query_of(settings: Settings, data: Path) -> Query:
    """Return what answers queries: a running instance on ``data`` where that is embedded, else the server.

    Raises:
        ConfigurationError: the server cannot be reached; the query raises it where no instance runs.
    """
    if is_embedded(settings.clickhouse) or (data / FILE).exists():
        return rows_by(lambda sql: asyncio.run(ask_running(data, sql, _FORM)))
    client = connect(settings.clickhouse)
    return rows_by(lambda sql: query_text(client, sql, _FORM))


def rows_by(ask: Callable[[str], str]) -> Query:
    """Return a query that reads the rows of a text of one JSON list a line."""
    decoder = msgspec.json.Decoder(list[object])
    return lambda sql: [decoder.decode(row) for row in ask(sql).splitlines()]


def _quoted(text: str) -> str:
    """Return a string literal of ClickHouse: what answers for a running instance takes text alone, no parameters."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def windows_of_file(
    file: Path, format_name: str, lane: ReplayLane, progress: Progress | None = None
) -> Iterator[WindowEdges]:
    """Yield the windows that a file of flows closes, as `drift backtest` closes them.

    Raises:
        ConfigurationError: the file cannot be read, or holds flows of several tenants.
    """
    spelling = format_for(file, format_name)
    if lane.tenant is None and not holds_tenants(spelling):
        lane = replace(lane, tenant=DEFAULT_TENANT)
    tenant: str | None = None
    outputs = run_backtest(file, spelling, lane, as_of_ms=SystemClock().now_ms(), progress=progress)
    for window in (window for output in outputs for window in output.windows):
        tenant = tenant or window.tenant
        if window.tenant != tenant:
            raise ConfigurationError(
                f"{file.name} holds flows of several tenants ({tenant}, {window.tenant}): "
                "a model is of one; --tenant NAME gives all flows to one owner"
            )
        if not window.incomplete:
            yield edges_of(window)
