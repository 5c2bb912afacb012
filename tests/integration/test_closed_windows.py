"""Stored windows come back as they closed, on a real ClickHouse: what the graph model is trained on."""

import asyncio

import numpy as np
import pytest

from deploy import closed_windows
from deploy.closed_windows import Query, rows_by, stored_windows
from deploy.sql_console import query_text
from models.gnn.windows import WindowEdges, edges_of
from schemas.errors import ConfigurationError
from schemas.graph import ClosedWindow
from streams.metrics import Metrics
from streams.sinks.rows import graph_rows
from streams.sinks.writer import PartitionWriter, Poison
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, ClickHouse, make_window, messages_of

WINDOWS = [
    make_window(
        HOUR_MS + number * MINUTE_MS,
        [
            {
                "src": "a'b\\",
                "dst": "c",
                "calls": 5 + number,
                "error_flows": 2,
                "errors": 9,
                "latencies_us": [900, 70_000],
            },
            {"src": "a'b\\", "dst": "d", "calls": 3, "bytes_in": 4_000, "bytes_in_flows": 1},
            {"src": "c", "dst": "d", "calls": 0, "late_calls": 4},
        ],
        tenant="o'neill",
    )
    for number in range(5)
]


async def _no_poison(poison: Poison) -> None:
    raise AssertionError(poison.detail)


def write(ch: ClickHouse, *windows: ClosedWindow) -> Query:
    writer = PartitionWriter(ch.client, ch.database, "graph-windows", 0, graph_rows, _no_poison, Metrics())
    asyncio.run(writer.write(messages_of(*windows)))
    return rows_by(lambda sql: query_text(ch.client, sql, "JSONCompactEachRow"))


def same(one: WindowEdges, other: WindowEdges) -> bool:
    return (
        (one.start_ms, one.keys, one.calls.tolist()) == (other.start_ms, other.keys, other.calls.tolist())
        and bool(np.allclose(one.signals, other.signals, equal_nan=True))
    )  # fmt: skip


def test_stored_windows_are_those_that_closed(clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    query = write(clickhouse, *WINDOWS, make_window(HOUR_MS, [{"src": "x", "dst": "y"}], tenant="other"))
    progress: list[tuple[int, int]] = []
    for edges_per_query in (1, 4, 100_000):
        monkeypatch.setattr(closed_windows, "EDGES_PER_QUERY", edges_per_query)
        lane, windows = stored_windows(
            query, clickhouse.database, "o'neill", None, 14, lambda done, total: progress.append((done, total))
        )
        found = list(windows)
        assert lane == "default" and progress[-1] == (5, 5)
        assert len(found) == 5 and all(same(one, edges_of(two)) for one, two in zip(found, WINDOWS, strict=True))


def test_windows_that_lack_records_old_ones_and_earlier_generations_are_left_out(clickhouse: ClickHouse) -> None:
    edge = [{"src": "a", "dst": "b"}]
    query = write(
        clickhouse,
        make_window(HOUR_MS - 86_400_000, edge, generation=1),
        make_window(HOUR_MS, edge, generation=1),
        make_window(HOUR_MS + MINUTE_MS, edge, generation=1, incomplete=("loss",)),
        make_window(HOUR_MS + 2 * MINUTE_MS, [], generation=1),
        make_window(HOUR_MS + 3 * MINUTE_MS, edge, generation=0),
    )
    found = list(stored_windows(query, clickhouse.database, "acme", None, 1)[1])
    assert [(one.start_ms - HOUR_MS, len(one)) for one in found] == [(0, 1), (2 * MINUTE_MS, 0)]


def test_a_lane_is_named_where_there_are_several(clickhouse: ClickHouse) -> None:
    edge = [{"src": "a", "dst": "b"}]
    query = write(clickhouse, make_window(HOUR_MS, edge), make_window(HOUR_MS, edge, lane="cloud"))
    with pytest.raises(ConfigurationError, match="--lane: cloud, default"):
        stored_windows(query, clickhouse.database, "acme", None, 14)
    with pytest.raises(ConfigurationError, match="--lane: cloud, default"):
        stored_windows(query, clickhouse.database, "acme", "dns", 14)
    with pytest.raises(ConfigurationError, match="nothing is stored of tenant 'none'"):
        stored_windows(query, clickhouse.database, "none", None, 14)
    assert stored_windows(query, clickhouse.database, "acme", "cloud", 14)[0] == "cloud"
