"""Tables, views, migrations, inserts and roll-ups on a real ClickHouse: a server if there is one, else chdb."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clickhouse_connect.driver.exceptions import OperationalError

from models.graph.histogram import quantiles
from schemas.clickhouse_dsn import is_embedded
from schemas.drift import Activity, DriftEvent, DriftKind, Severity
from schemas.errors import ConfigurationError
from schemas.graph import MEASURES
from schemas.ocsf import encode_event
from schemas.settings import MAX_RETENTION_DAYS
from schemas.tables import DRIFT_EVENTS, EDGES_1H, EDGES_1M, KNOWN_BY, SERVICES, TABLES, VIEWS, WINDOWS
from streams.metrics import Metrics
from streams.migrate import Migration, load_migrations, migrate, pending
from streams.sinks.rollup import rollup
from streams.sinks.rows import drift_rows, graph_rows
from streams.sinks.writer import Message, PartitionWriter, Poison
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, ClickHouse, make_event, make_window, messages_of


async def _no_poison(poison: Poison) -> None:
    raise AssertionError(f"offset {poison.offset} set aside: {poison.detail}")


def _writer(ch: ClickHouse, rows_of: Any = graph_rows, client: Any = None) -> PartitionWriter:
    return PartitionWriter(client or ch.client, ch.database, "graph-windows", 0, rows_of, _no_poison, Metrics())


def _write(ch: ClickHouse, *windows: Any) -> int:
    return asyncio.run(_writer(ch).write(messages_of(*windows)))


def _write_events(ch: ClickHouse, *events: DriftEvent) -> None:
    messages = [Message(offset, encode_event(event)) for offset, event in enumerate(events)]
    asyncio.run(_writer(ch, drift_rows).write(messages))


# --- migrations


def test_migrations_apply_once(empty_clickhouse: ClickHouse) -> None:
    ch = empty_clickhouse
    names = [migration.name for migration in load_migrations()]
    assert pending(ch.client, ch.database) == names
    assert migrate(ch.client, ch.database, 90) == names
    assert migrate(ch.client, ch.database, 90) == []
    assert pending(ch.client, ch.database) == []


def test_an_interrupted_migration_is_finished(empty_clickhouse: ClickHouse) -> None:
    ch = empty_clickhouse
    shipped = load_migrations()
    broken = Migration(1, shipped[0].name, shipped[0].sql + "\nSELECT no_such_function();\n")
    with pytest.raises(Exception, match="no_such_function"):
        migrate(ch.client, ch.database, 90, [broken])
    assert migrate(ch.client, ch.database, 90) == [migration.name for migration in shipped]


def test_a_changed_applied_file_is_refused_and_a_newer_database_too(clickhouse: ClickHouse) -> None:
    first, *rest = load_migrations()
    with pytest.raises(ConfigurationError, match=r"0001_tables\.sql was changed after it was applied"):
        migrate(
            clickhouse.client, clickhouse.database, 90, [Migration(1, first.name, first.sql + "\nSELECT 1;"), *rest]
        )
    with pytest.raises(ConfigurationError, match="newer release"):
        migrate(clickhouse.client, clickhouse.database, 90, [first])
    migrate(
        clickhouse.client, clickhouse.database, 90, [Migration(1, first.name, first.sql.replace("\n", "  \n")), *rest]
    )


@pytest.mark.parametrize("database", ["drift; DROP DATABASE x", "a.b", "", "1a", "ä"])
def test_a_database_name_is_never_more_than_a_name(empty_clickhouse: ClickHouse, database: str) -> None:
    with pytest.raises(ConfigurationError, match="letters, digits and underscores"):
        migrate(empty_clickhouse.client, database, 90)


def test_the_longest_retention_keeps_rows_and_a_longer_one_is_refused(empty_clickhouse: ClickHouse) -> None:
    ch = empty_clickhouse
    with pytest.raises(ConfigurationError, match="retention_days"):
        migrate(ch.client, ch.database, MAX_RETENTION_DAYS + 1)
    migrate(ch.client, ch.database, MAX_RETENTION_DAYS)
    _write(ch, make_window(HOUR_MS, [{"src": "a", "dst": "b"}]))
    ch.client.command(f"OPTIMIZE TABLE {ch.database}.edges_1m FINAL")
    assert ch.rows("SELECT count() FROM {db}.edges_1m FINAL") == [(1,)]


def test_a_changed_retention_reaches_the_tables(clickhouse: ClickHouse) -> None:
    assert migrate(clickhouse.client, clickhouse.database, 7) == []
    definitions = clickhouse.rows(
        "SELECT name, create_table_query FROM system.tables WHERE database = '{db}' AND name IN {names:Array(String)}",
        names=[table.name for table in TABLES],
    )
    assert len(definitions) == len(TABLES)
    for name, definition in definitions:
        assert "toIntervalDay(7)" in definition, name


# --- declarations


def test_tables_are_what_schemas_declares(clickhouse: ClickHouse) -> None:
    for table in TABLES:
        columns = clickhouse.rows(
            "SELECT name, type FROM system.columns WHERE database = '{db}' AND table = {t:String} ORDER BY position",
            t=table.name,
        )
        assert dict(columns) == table.columns, table.name
        assert [name for name, _ in columns] == list(table.columns), table.name
        [(sorting, partition, engine)] = clickhouse.rows(
            "SELECT sorting_key, partition_key, engine_full FROM system.tables "
            "WHERE database = '{db}' AND name = {t:String}",
            t=table.name,
        )
        assert tuple(sorting.split(", ")) == table.sorting_key
        assert partition == table.partitioning.value
        assert engine.startswith(f"ReplacingMergeTree({table.version})" if table.version else "ReplacingMergeTree ")
        assert "non_replicated_deduplication_window = 10000" in engine
        assert "TTL" in engine


def test_tenant_leads_every_sorting_key_and_partitions_follow_the_identity(clickhouse: ClickHouse) -> None:
    keys = clickhouse.rows(
        "SELECT name, sorting_key, partition_key FROM system.tables "
        "WHERE database = '{db}' AND engine LIKE '%MergeTree' AND name != 'schema_migrations'"
    )
    assert {name for name, _, _ in keys} == {table.name for table in TABLES}
    for name, sorting, partition in keys:
        columns = sorting.split(", ")
        assert columns[0] == "tenant", name
        assert set(re.findall(r"\((\w+)\)", partition)) <= set(columns), name


def test_no_view_aggregates_as_rows_arrive(clickhouse: ClickHouse) -> None:
    engines = dict(clickhouse.rows("SELECT name, engine FROM system.tables WHERE database = '{db}'"))
    assert {name for name, engine in engines.items() if engine == "View"} == set(VIEWS)
    assert "MaterializedView" not in engines.values()


# --- inserts


def test_rows_come_back_as_they_went_in(clickhouse: ClickHouse) -> None:
    values = {name: 1000 + index for index, name in enumerate(MEASURES)}
    _write(
        clickhouse,
        make_window(HOUR_MS, [{"src": "a", "dst": "b", **values, "other_side_flows": 5}], incomplete=("loss",)),
    )
    [row] = clickhouse.dicts("SELECT * FROM {db}.edges_1m")
    assert {name: row[name] for name in MEASURES} == values
    assert (row["tenant"], row["src"], row["port"], row["protocol"], row["incomplete"]) == (
        "acme",
        "a",
        8080,
        6,
        ["loss"],
    )
    assert (row["other_side_flows"], row["is_learning"]) == (5, False)
    [(start, end, now_known)] = clickhouse.rows(
        "SELECT toUnixTimestamp64Milli(window_start), toUnixTimestamp64Milli(window_end), "
        "inserted_at > '2020-01-01' FROM {db}.edges_1m"
    )
    assert (start, end, now_known) == (HOUR_MS, HOUR_MS + MINUTE_MS, 1)


def test_unknown_is_null_in_the_table_and_in_sums(clickhouse: ClickHouse) -> None:
    _write(
        clickhouse,
        make_window(HOUR_MS, [{"src": "a", "dst": "b", "port": -1, "protocol": -1}]),
        make_window(HOUR_MS + MINUTE_MS, [{"src": "k", "dst": "b", "bytes_out": 0, "bytes_out_flows": 1}]),
    )
    unknown = ", ".join(f"sum({name}) IS NULL" for name in KNOWN_BY)
    assert clickhouse.rows(f"SELECT {unknown} FROM {{db}}.edges_1m WHERE src = 'a'") == [(1,) * len(KNOWN_BY)]
    assert clickhouse.rows("SELECT bytes_out, bytes_in, errors, p95_us, port FROM {db}.edges_1m WHERE src = 'k'") == [
        (0, None, None, None, 8080)
    ]
    assert clickhouse.rows("SELECT port, protocol FROM {db}.edges_1m WHERE src = 'a'") == [(-1, -1)]


def test_samples_are_told_by_window_and_hour(clickhouse: ClickHouse) -> None:
    sampled = {"src": "a", "dst": "b", "flows": 4, "calls": 0, "errors": 1, "error_flows": 4}
    seen = {"src": "a", "dst": "c", "calls": 2, "errors": 3, "error_flows": 1}
    rows = [
        [{**sampled, "sampled_flows": 3, "sampling_sum": 90}, seen],
        [{**sampled, "sampled_flows": 1, "sampling_sum": 30}],
    ]
    _write(clickhouse, *(make_window(HOUR_MS + MINUTE_MS * number, edges) for number, edges in enumerate(rows)))
    rollup(clickhouse.client, clickhouse.database)
    query = "SELECT dst, sampled_1_in, error_ratio FROM {db}.%s WHERE tenant = 'acme' ORDER BY dst, sampled_1_in"
    assert clickhouse.rows(query % "v_edges") == [("b", 30, None), ("b", 30, None), ("c", 1, 1)]
    assert clickhouse.rows(query % "v_service_map") == [("b", 30, None), ("c", 1, 1)]


def test_the_same_messages_twice_are_in_once_without_final(clickhouse: ClickHouse) -> None:
    windows = [
        make_window(HOUR_MS + i * MINUTE_MS, [{"src": f"s{e}", "dst": "d"} for e in range(20)]) for i in range(3)
    ]
    for _ in range(3):
        _write(clickhouse, *windows)
    assert clickhouse.rows("SELECT count() FROM {db}.edges_1m") == [(60,)]
    assert clickhouse.rows("SELECT count() FROM {db}.windows") == [(3,)]


def test_the_same_messages_cut_into_other_batches_are_in_once_under_final(clickhouse: ClickHouse) -> None:
    windows = [
        make_window(HOUR_MS + i * MINUTE_MS, [{"src": f"s{e}", "dst": "d"} for e in range(20)]) for i in range(4)
    ]
    clickhouse.client.command(f"SYSTEM STOP MERGES {clickhouse.database}.edges_1m")
    messages = messages_of(*windows)
    for size in (len(messages), 3, 1):
        for start in range(0, len(messages), size):
            asyncio.run(_writer(clickhouse).write(messages[start : start + size]))
    assert clickhouse.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == [(80, 80)]
    assert clickhouse.rows("SELECT count() FROM {db}.windows FINAL") == [(4,)]
    # All four, then [0, 1] [2] [3], then each alone, of which [2] and [3] are known by their tokens.
    assert clickhouse.rows("SELECT count() FROM {db}.edges_1m") == [(80 + 80 + 40,)]


def test_other_bytes_at_the_same_offsets_are_not_taken_for_a_repeat(clickhouse: ClickHouse) -> None:
    _write(clickhouse, make_window(HOUR_MS, [{"src": "a", "dst": "b"}]))
    _write(clickhouse, make_window(HOUR_MS, [{"src": "a", "dst": "other"}]))
    assert clickhouse.rows("SELECT dst FROM {db}.edges_1m ORDER BY dst") == [("b",), ("other",)]


def test_an_insert_is_one_part(clickhouse: ClickHouse) -> None:
    edges = [{"src": f"s{e:04}", "dst": "d", "latencies_us": [e]} for e in range(4_000)]
    _write(clickhouse, make_window(HOUR_MS, edges), make_window(HOUR_MS + MINUTE_MS, edges))
    parts = clickhouse.rows(
        "SELECT min_block_number, max_block_number, rows FROM system.parts "
        "WHERE database = '{db}' AND table = 'edges_1m' AND active"
    )
    assert parts == [(1, 1, 8_000)]


class _LosesAnswers:
    """A client whose first insert of each kind is carried out and then reported as failed."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.server_settings = client.server_settings
        self.lost: list[str] = []

    def insert_arrow(self, table: str, *args: Any, **kwargs: Any) -> None:
        self._client.insert_arrow(table, *args, **kwargs)
        if table not in self.lost:
            self.lost.append(table)
            raise OperationalError("connection closed")


async def test_an_answer_lost_after_the_insert_doubles_nothing(clickhouse: ClickHouse) -> None:
    client = _LosesAnswers(clickhouse.client)

    async def no_wait(_: float) -> None:
        return None

    writer = PartitionWriter(
        client,  # type: ignore[arg-type]
        clickhouse.database,
        "graph-windows",
        0,
        graph_rows,
        _no_poison,
        Metrics(),
        sleep=no_wait,
    )
    await writer.write(messages_of(make_window(HOUR_MS, [{"src": "a", "dst": "b"}])))
    assert client.lost == ["edges_1m", "windows"]
    assert clickhouse.rows("SELECT count() FROM {db}.edges_1m") == [(1,)]
    assert clickhouse.rows("SELECT count() FROM {db}.windows") == [(1,)]


_KILLED_WRITER = """
import asyncio, sys
from pydantic import SecretStr
from schemas.settings import ClickHouseSettings
from streams.clickhouse import connect
from streams.metrics import Metrics
from streams.migrate import migrate
from streams.sinks.rows import graph_rows
from streams.sinks.writer import PartitionWriter
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, make_window, messages_of

client = connect(ClickHouseSettings(dsn=SecretStr(sys.argv[1])))
migrate(client, "drift", 90)
if sys.argv[4] == "parts":
    client.command("SYSTEM STOP MERGES")

async def poison(p): raise SystemExit(p.detail)
async def main():
    writer = PartitionWriter(client, "drift", "graph-windows", 0, graph_rows, poison, Metrics())
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        window = make_window(HOUR_MS + i * MINUTE_MS, [{"src": f"s{e}", "dst": "d"} for e in range(10)])
        await writer.write(messages_of(window, first_offset=2 * i))
        print(i, flush=True)
asyncio.run(main())
[counts] = client.query("SELECT count(), uniqExact(window_start, src) FROM drift.edges_1m").result_rows
print(*counts, "done", flush=True)
"""


def _start_writer(folder: Path, first: int, end: int = 200, keep: str = "rows") -> "subprocess.Popen[str]":
    """``keep``: "parts" leaves each insert its own part; else the engine merges them when it comes to it."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_KILLED_WRITER), f"chdb://{folder}", str(first), str(end), keep],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        start_new_session=True,
    )


def test_a_killed_writer_that_repeats_its_last_inserts_loses_and_doubles_nothing(tmp_path: Path) -> None:
    acknowledged = 0
    for kill_after in (40, 90, 140):
        process = _start_writer(tmp_path / "clickhouse", max(0, acknowledged - 5))
        try:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= kill_after:
                    break
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
    process = _start_writer(tmp_path / "clickhouse", acknowledged - 5)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert output.splitlines()[-1] == "2000 2000 done"


def _finish_writer(folder: Path, first: int, end: int, keep: str = "rows") -> str:
    process = _start_writer(folder, first, end, keep)
    try:
        return process.communicate(timeout=300)[0].splitlines()[-1]
    finally:
        process.kill()


def test_a_kill_between_the_token_and_the_part_loses_nothing(tmp_path: Path) -> None:
    """ClickHouse notes the token first. The folder is left as a kill right after that leaves it."""
    folder = tmp_path / "clickhouse"
    assert _finish_writer(folder, 0, 8, keep="parts") == "80 80 done"
    logs = [log for log in folder.rglob("deduplication_log_1.txt") if log.stat().st_size]
    assert len(logs) >= 2
    for log in logs:
        _, part, _ = log.read_text().splitlines()[-1].split("\t")
        shutil.rmtree(log.parent.parent / part)
    assert _finish_writer(folder, 5, 8) == "80 80 done"
    assert _finish_writer(folder, 5, 12) == "120 120 done"


# --- roll-up


def _busy_hour() -> list[Any]:
    return [
        make_window(
            HOUR_MS + i * MINUTE_MS,
            [
                {
                    "src": "web",
                    "dst": "cart",
                    "calls": 10,
                    "errors": i % 2,
                    "error_flows": 1,
                    "latencies_us": [1000 + 37 * i, 90 * i],
                },
                {"src": "cart", "dst": "ext:pay", "calls": 3, "bytes_out": 100, "bytes_in": 7, "bytes_out_flows": 1},
            ],
            incomplete=("silent",) if i == 4 else (),
        )
        for i in range(70)
    ]


def test_hours_are_the_sums_and_merged_latencies_of_their_windows(clickhouse: ClickHouse) -> None:
    windows = _busy_hour()
    _write(clickhouse, *windows)
    assert rollup(clickhouse.client, clickhouse.database) == 2
    first, second = clickhouse.dicts("SELECT * FROM {db}.edges_1h FINAL WHERE src = 'web' ORDER BY hour")
    assert (first["windows"], second["windows"], first["incomplete_windows"]) == (60, 10, 1)
    assert (first["calls"], first["errors"], first["bytes_out"]) == (600, 30, None)
    groups, buckets, counts = [], [], []
    for window in windows[:60]:
        inside = np.array([window.edges.src[edge] == "web" for edge in window.edges.histogram_edge])
        buckets += window.edges.histogram_bucket[inside].tolist()
        counts += window.edges.histogram_count[inside].tolist()
    unique = sorted(set(buckets))
    merged = [sum(c for b, c in zip(buckets, counts, strict=True) if b == bucket) for bucket in unique]
    groups = np.zeros(len(unique), dtype=np.int64)
    expected = quantiles(groups, np.array(unique), np.array(merged), 1, (0.5, 0.95, 0.99))
    assert (first["latency_buckets"], first["latency_counts"]) == (unique, merged)
    assert [first["p50_us"], first["p95_us"], first["p99_us"]] == [int(column[0]) for column in expected]
    [pay] = clickhouse.dicts("SELECT * FROM {db}.edges_1h FINAL WHERE dst = 'ext:pay' AND windows = 60")
    assert (pay["bytes_out"], pay["p50_us"], pay["latency_buckets"], pay["errors"]) == (6000, None, [], None)


def test_quantiles_of_the_roll_up_equal_those_of_the_core(clickhouse: ClickHouse) -> None:
    random = np.random.default_rng(7)
    edges = [
        {
            "src": f"s{i}",
            "dst": "d",
            "latencies_us": random.lognormal(random.uniform(0, 16), 2, size=i + 1).astype(int).tolist(),
        }
        for i in range(60)
    ]
    edges += [{"src": f"small{v}", "dst": "d", "latencies_us": [v]} for v in (0, 1, 7, 8, 15, 16, 2**41)]
    window = make_window(HOUR_MS, edges)
    _write(clickhouse, window)
    rollup(clickhouse.client, clickhouse.database)
    assert clickhouse.rows(
        "SELECT count() FROM {db}.edges_1m AS m FINAL JOIN {db}.edges_1h AS h FINAL USING (tenant, src, dst) "
        "WHERE (m.p50_us, m.p95_us, m.p99_us) = (h.p50_us, h.p95_us, h.p99_us)"
    ) == [(len(edges),)]


_SNAPSHOT_COLUMNS = [name for name in EDGES_1H.sent_columns if name != "source_inserted_at"]


def _rolled_up(ch: ClickHouse) -> list[tuple[Any, ...]]:
    hours = ch.rows(
        f"SELECT {', '.join(_SNAPSHOT_COLUMNS)} FROM {{db}}.edges_1h FINAL ORDER BY {', '.join(EDGES_1H.sorting_key)}"
    )
    services = ch.rows(
        f"SELECT {', '.join(SERVICES.sent_columns)} FROM {{db}}.services FINAL "
        f"ORDER BY {', '.join(SERVICES.sorting_key)}"
    )
    return hours + services


def test_a_roll_up_run_again_and_over_repeated_inserts_gives_the_same(clickhouse: ClickHouse) -> None:
    windows = _busy_hour()
    _write(clickhouse, *windows)
    rollup(clickhouse.client, clickhouse.database)
    once = _rolled_up(clickhouse)
    assert len(once) == 4 + 3
    for batch in (windows[:7], windows[7:]):
        _write(clickhouse, *batch)  # other batches: raw duplicates in edges_1m
    assert rollup(clickhouse.client, clickhouse.database) == 2
    rollup(clickhouse.client, clickhouse.database, since_ms=0)
    assert _rolled_up(clickhouse) == once


def test_a_roll_up_takes_up_what_came_since_and_keeps_the_first_sighting(clickhouse: ClickHouse) -> None:
    later, earlier = (
        make_window(HOUR_MS + 5 * MINUTE_MS, [{"src": "a", "dst": "b"}]),
        make_window(HOUR_MS, [{"src": "a", "dst": "c"}]),
    )
    _write(clickhouse, later)
    rollup(clickhouse.client, clickhouse.database)
    _write(clickhouse, earlier)
    rollup(clickhouse.client, clickhouse.database)
    seen = {
        service: (first, last)
        for service, first, last in clickhouse.rows(
            "SELECT service, toUnixTimestamp64Milli(first_seen), toUnixTimestamp64Milli(last_seen) "
            "FROM {db}.v_services WHERE tenant = 'acme'"
        )
    }
    assert seen == {
        "a": (HOUR_MS, HOUR_MS + 6 * MINUTE_MS),
        "b": (HOUR_MS + 5 * MINUTE_MS, HOUR_MS + 6 * MINUTE_MS),
        "c": (HOUR_MS, HOUR_MS + MINUTE_MS),
    }


def test_an_hour_whose_windows_have_partly_expired_keeps_its_sums(clickhouse: ClickHouse) -> None:
    _write(clickhouse, *_busy_hour())
    rollup(clickhouse.client, clickhouse.database)
    once = _rolled_up(clickhouse)
    clickhouse.client.command(
        f"ALTER TABLE {clickhouse.database}.edges_1m DELETE WHERE toMinute(window_start) < 30",
        settings={"mutations_sync": 1},
    )
    rollup(clickhouse.client, clickhouse.database, since_ms=0)
    assert _rolled_up(clickhouse) == once


# --- events and views


def test_events_come_back_whole_and_once(clickhouse: ClickHouse) -> None:
    event = make_event()
    _write_events(clickhouse, event, make_event(Activity.CLOSE, close_reason="accepted"))
    _write_events(clickhouse, event)
    assert clickhouse.rows("SELECT count() FROM {db}.drift_events FINAL") == [(2,)]
    [row] = clickhouse.dicts("SELECT * FROM {db}.drift_events FINAL WHERE activity = 'create'")
    assert row["ocsf"].encode() == encode_event(event)
    assert row["evidence"] == [
        {
            "signal": "edge_presence",
            "observed": 1.0,
            "expected": 0.0,
            "unit": "windows",
            "score": 0.0,
            "sample": 3,
            "history": 40,
            "detector": "structural",
        }
    ]
    assert row["edges"] == [{"src": "shop/web", "dst": "ext:evil.example", "port": 443, "protocol": 6}]
    assert (row["event_id"], row["kind"], row["is_alert"], row["checks"]) == (
        event.event_id,
        "new_edge",
        True,
        ["Was there a deployment?"],
    )


@pytest.fixture
def story(clickhouse: ClickHouse) -> ClickHouse:
    """Two minutes of a shop; a finding updated and open, one closed, one of another tenant; a replay run twice."""
    _write(
        clickhouse,
        make_window(
            HOUR_MS,
            [
                {
                    "src": "web",
                    "dst": "cart",
                    "calls": 90,
                    "errors": 9,
                    "error_flows": 1,
                    "latencies_us": [2_000] * 9 + [100_000],
                },
                {"src": "web", "dst": "ads", "calls": 5, "bytes_out": 500, "bytes_in": 1, "bytes_out_flows": 1},
            ],
        ),
        make_window(HOUR_MS + MINUTE_MS, [{"src": "web", "dst": "cart", "calls": 10}], incomplete=("silent",)),
        make_window(HOUR_MS, [{"src": "x", "dst": "y", "calls": 7}], tenant="other"),
        make_window(HOUR_MS, [{"src": "old", "dst": "y"}], lane="replay:r", generation=1),
        make_window(HOUR_MS, [{"src": "new", "dst": "y"}], lane="replay:r", generation=2),
    )
    rollup(clickhouse.client, clickhouse.database)
    update = {"window_start_ms": HOUR_MS + MINUTE_MS, "time_ms": HOUR_MS + 2 * MINUTE_MS}
    closed = {
        "kind": DriftKind.ERROR_INCREASE,
        "src": "web",
        "dst": "cart",
        "incident_id": "incident-1",
        "title": "Errors",
    }
    _write_events(
        clickhouse,
        make_event(incident_id="provisional", is_early=True),
        make_event(Activity.UPDATE, severity=Severity.HIGH, risk_score=70, **update),
        make_event(**closed),
        make_event(
            Activity.CLOSE, **{**closed, "close_reason": "recovered", "window_start_ms": HOUR_MS + 5 * MINUTE_MS}
        ),
        make_event(tenant="other"),
        make_event(lane="replay:r", generation=1),
    )
    return clickhouse


def test_v_open_findings_shows_the_newest_state_of_what_is_open(story: ClickHouse) -> None:
    [row] = story.dicts("SELECT * FROM {db}.v_open_findings WHERE tenant = 'acme'")
    assert (row["severity"], row["risk_score"], row["events"], row["incident_id"]) == ("high", 70, 2, "incident-1")
    assert (row["src"], row["dst"], row["port"], row["kind"]) == ("shop/web", "ext:evil.example", 443, "new_edge")
    statuses = story.rows("SELECT kind, status, close_reason FROM {db}.v_findings WHERE tenant = 'acme' ORDER BY kind")
    assert statuses == [("error_increase", "closed", "recovered"), ("new_edge", "open", "")]


def test_v_incidents_joins_findings_of_one_cause(story: ClickHouse) -> None:
    [row] = story.dicts("SELECT * FROM {db}.v_incidents WHERE tenant = 'acme'")
    assert (row["incident_id"], row["findings"], row["open_findings"], row["severity"]) == ("incident-1", 2, 1, "high")
    assert row["kinds"] == ["error_increase", "new_edge"]
    assert row["services"] == ["cart", "ext:evil.example", "shop/web", "web"]


def test_v_new_edges_shows_an_edge_a_row(story: ClickHouse) -> None:
    [row] = story.dicts("SELECT * FROM {db}.v_new_edges WHERE tenant = 'acme'")
    assert (row["src"], row["dst"], row["port"], row["protocol"], row["is_early"]) == (
        "shop/web",
        "ext:evil.example",
        443,
        6,
        True,
    )


def test_v_edges_and_latency_speak_in_milliseconds_and_null(story: ClickHouse) -> None:
    rows = story.dicts(
        "SELECT * FROM {db}.v_edges WHERE tenant = 'acme' AND lane = 'default' ORDER BY window_start, dst"
    )
    assert [(r["dst"], r["calls"], r["error_ratio"], r["bytes_out"]) for r in rows] == [
        ("ads", 5, None, 500),
        ("cart", 90, 0.1, None),
        ("cart", 10, None, None),
    ]
    assert [r["is_incomplete"] for r in rows] == [0, 0, 1]
    [latency] = story.dicts("SELECT * FROM {db}.v_edge_latency WHERE tenant = 'acme'")
    assert (latency["measured_calls"], latency["mean_ms"]) == (10, 11.8)
    assert latency["p50_ms"] == pytest.approx(2.0, rel=0.07)
    assert latency["p99_ms"] == pytest.approx(100.0, rel=0.07)


def test_v_service_map_and_top_talkers_sum_the_hour(story: ClickHouse) -> None:
    edges = story.rows(
        "SELECT src, dst, calls, windows FROM {db}.v_service_map "
        "WHERE tenant = 'acme' AND lane = 'default' ORDER BY dst"
    )
    assert edges == [("web", "ads", 5, 1), ("web", "cart", 100, 2)]
    talkers = story.rows(
        "SELECT service, peers, calls, errors, bytes_out FROM {db}.v_top_talkers "
        "WHERE tenant = 'acme' AND lane = 'default'"
    )
    assert talkers == [("web", 2, 105, 9, 500)]


def test_v_tenant_edges_shows_an_edge_once_and_keeps_what_each_lane_counted_apart(story: ClickHouse) -> None:
    at_ms = HOUR_MS + 60 * MINUTE_MS
    _write(
        story,
        make_window(
            at_ms,
            [
                {"src": "web", "dst": "cart", "calls": 40, "bytes_out": 7, "bytes_out_flows": 1},
                {"src": "web", "dst": "db"},
            ],
            lane="vpc",
        ),
    )
    rollup(story.client, story.database)
    rows = story.dicts("SELECT * FROM {db}.v_tenant_edges WHERE tenant = 'acme' ORDER BY dst")
    assert [(row["src"], row["dst"], row["port"], row["protocol"], row["lanes"]) for row in rows] == [
        ("web", "ads", 8080, 6, ["default"]),
        ("web", "cart", 8080, 6, ["default", "vpc"]),
        ("web", "db", 8080, 6, ["vpc"]),
    ]
    cart = rows[1]
    assert cart["first_seen"].timestamp() * 1000 == HOUR_MS
    assert cart["last_seen"].timestamp() * 1000 == at_ms + MINUTE_MS
    default, vpc = cart["by_lane"]
    assert (default["lane"], default["windows"], default["calls"], default["errors"]) == ("default", 2, 100, 9)
    assert (vpc["lane"], vpc["windows"], vpc["calls"], vpc["errors"], vpc["bytes_out"]) == ("vpc", 1, 40, None, 7)
    assert vpc["first_seen"].timestamp() * 1000 == at_ms


def test_findings_name_the_lanes_of_their_last_event(story: ClickHouse) -> None:
    later = {"window_start_ms": HOUR_MS + MINUTE_MS, "time_ms": HOUR_MS + 2 * MINUTE_MS}
    names = {"src": "a", "dst": "b", "incident_id": "incident-2"}
    _write_events(
        story,
        make_event(**names, seen_in=("default",)),
        make_event(Activity.UPDATE, **names, **later, seen_in=("default", "vpc")),
    )
    for view in ("v_findings", "v_open_findings"):
        rows = story.rows(f"SELECT seen_in FROM {{db}}.{view} WHERE tenant = 'acme' AND src = 'a'")
        assert rows == [(["default", "vpc"],)], view
    sources = "SELECT seen_in FROM {db}.drift_events WHERE tenant = 'acme' AND src = 'shop/web' LIMIT 1"
    assert story.rows(sources) == [([],)], "lanes were not compared"


def test_views_show_the_newest_generation_of_a_lane_alone(story: ClickHouse) -> None:
    for view, column in (("v_edges", "src"), ("v_service_map", "src"), ("v_top_talkers", "service")):
        assert story.rows(f"SELECT {column} FROM {{db}}.{view} WHERE tenant = 'acme' AND lane = 'replay:r'") == [
            ("new",)
        ], view
    assert story.rows("SELECT service FROM {db}.v_services WHERE lane = 'replay:r' ORDER BY service") == [
        ("new",),
        ("y",),
    ]
    assert story.rows("SELECT count() FROM {db}.v_findings WHERE lane = 'replay:r'") == [(0,)]
    assert story.rows("SELECT lane, generation, windows FROM {db}.v_lanes WHERE tenant = 'acme' ORDER BY lane") == [
        ("default", 0, 2),
        ("replay:r", 2, 1),
    ]


def test_v_incomplete_windows_names_the_reason(story: ClickHouse) -> None:
    assert story.rows("SELECT tenant, reasons, edges FROM {db}.v_incomplete_windows") == [("acme", ["silent"], 1)]


def test_no_view_shows_another_tenant_and_each_uses_the_tenant_as_key(story: ClickHouse) -> None:
    for view in VIEWS:
        assert story.rows(f"SELECT count() FROM {{db}}.{view} WHERE tenant = 'nobody'") == [(0,)], view
        assert story.rows(f"SELECT DISTINCT tenant FROM {{db}}.{view} WHERE tenant = 'other'") in ([("other",)], []), (
            view
        )
        plan = "\n".join(
            row[0] for row in story.rows(f"EXPLAIN indexes = 1 SELECT * FROM {{db}}.{view} WHERE tenant = 'acme'")
        )
        assert "tenant in ['acme', 'acme']" in plan, (view, plan)


# --- the documentation


def test_every_query_of_the_analysts_page_runs(story: ClickHouse) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "analysts.md").read_text(encoding="utf-8")
    queries = re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL)
    assert len(queries) >= len(VIEWS)
    for query in queries:
        story.client.query(query.replace("drift.", f"{story.database}."))
    for name in (*VIEWS, *(table.name for table in TABLES)):
        assert f"`{name}`" in page, f"docs/analysts.md does not explain {name}"


def test_tables_of_the_writer_are_declared() -> None:
    assert {EDGES_1M.name, WINDOWS.name, DRIFT_EVENTS.name} < {table.name for table in TABLES}


def test_fixture_says_where_it_runs(clickhouse: ClickHouse) -> None:
    version = clickhouse.client.server_version
    assert re.match(r"\d+\.\d+", version)
    assert is_embedded(clickhouse.settings) == clickhouse.settings.dsn.get_secret_value().startswith("chdb:")
