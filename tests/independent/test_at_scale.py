"""The check at scale says what the plain check says, in blocks and slices, and names what differs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

import tests.independent.at_scale as at_scale
from models.graph.machine import Machine
from models.graph.output import Output
from schemas.ids import NO_POSITION
from schemas.tenant_log import LogRecord
from tests.builders_clickhouse import ClickHouse
from tests.independent.at_scale import Cover, ScaledCheck, ScaledReport
from tests.independent.check import check
from tests.independent.pipeline import TARGETS, Run, store
from tests.independent.test_check import RULES, generated, skewed_run

Covers = list[Cover]


@pytest.fixture
def covers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Covers, dict[int, int]]]:
    """Notes what records of the log cover, and the first open window at the end, while machines apply them."""
    noted: Covers = []
    closed: dict[int, int] = {}
    targets: dict[int, int] = {}
    plain = Machine.apply

    def apply(machine: Machine, offset: int, record: LogRecord) -> Output:
        target = targets.setdefault(id(machine), len(targets))
        lane = machine.lanes.get("test")
        floor = (lane.closed_index or 0) if lane is not None else 0
        for progress in record.progress:
            after = max(progress.after, machine.applied.get((progress.source, progress.partition), NO_POSITION))
            if progress.upto > after:
                noted.append(Cover(target, progress.partition, after, progress.upto, floor, 0))
        output = plain(machine, offset, record)
        closed[target] = machine.lanes["test"].closed_index or 0
        return output

    monkeypatch.setattr(Machine, "apply", apply)
    yield noted, closed


def scaled(ch: ClickHouse, run: Run, covers: Any, rules: Any = RULES, tenants: Any = None) -> ScaledReport:
    """Check in small blocks and small slices."""
    scale = ScaledCheck(ch.client, ch.database, rules, TARGETS)
    messages = [(partition, offset, value, clock_ms) for partition, offset, value, _, clock_ms in run.raw]
    for start in range(0, len(messages), 50):
        scale.add(messages[start : start + 50])
    committed = {partition: 1 << 40 for partition, *_ in run.raw}
    noted, closed = covers
    return scale.compare(noted, closed, run.dead, committed, tenants)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_scale, "ROWS_PER_SLICE", 400)


@pytest.mark.parametrize("disorder_ms", [5_000, 25_000])
async def test_it_says_what_the_plain_check_says(clickhouse: ClickHouse, covers: Any, disorder_ms: int) -> None:
    run = await generated(clickhouse, 4, disorder_ms=disorder_ms)
    plain = check(clickhouse.client, clickhouse.database, run.raw, RULES, run.dead)
    found = scaled(clickhouse, run, covers)
    assert found.report.differences == []
    assert found.report.counts == plain.counts
    assert found.report.compared == plain.compared
    assert (found.uncovered, found.open) == (0, 0)
    assert (found.report.counts["late"] > 0) == (disorder_ms > 5_000)
    databases = clickhouse.rows("SELECT name FROM system.databases WHERE name LIKE 'independent%'")
    assert databases == []


async def test_skewed_records_are_found_by_the_brokers_clock(clickhouse: ClickHouse, covers: Any) -> None:
    run = skewed_run()
    await store(run, clickhouse)
    found = scaled(clickhouse, run, covers, RULES._replace(skew_ms=10_000, lateness_ms=20_000))
    assert found.report.differences == []
    assert found.report.counts["skewed"] > 0


async def test_what_differs_is_counted_by_kind(clickhouse: ClickHouse, covers: Any) -> None:
    run = await generated(clickhouse, 1)
    db = clickhouse.database
    edge = "tenant = 'acme' AND src = 'shop/web' AND dst = 'shop/cart'"
    at = f"{edge} AND window_start = (SELECT {{which}}(window_start) FROM {db}.edges_1m WHERE {edge})"
    settled = {"mutations_sync": 2}
    clickhouse.client.command(
        f"ALTER TABLE {db}.edges_1m UPDATE calls = calls + 1 WHERE {at.format(which='max')}", settings=settled
    )
    rows = clickhouse.rows(f"SELECT count() FROM {db}.edges_1m FINAL WHERE {at.format(which='max')}")[0][0]
    lost = clickhouse.rows(f"SELECT count() FROM {db}.edges_1m FINAL WHERE {at.format(which='min')}")[0][0]
    clickhouse.client.command(f"ALTER TABLE {db}.edges_1m DELETE WHERE {at.format(which='min')}", settings=settled)
    clickhouse.client.command(
        f"INSERT INTO {db}.edges_1m SELECT * REPLACE ('nobody' AS src) "
        f"FROM (SELECT * FROM {db}.edges_1m FINAL WHERE {edge} LIMIT 1)"
    )
    found = scaled(clickhouse, run, covers)
    assert found.wrong["edges"] == rows > 0
    assert found.lost["edges"] == lost > 0
    assert found.unexpected["edges"] == 1
    assert {what for what, *_ in found.report.differences} == {"edges", "input"}
    other = scaled(clickhouse, run, covers, tenants=["globex"])
    assert other.wrong["edges"] == other.lost["edges"] == other.unexpected["edges"] == 0
    assert {what for what, *_ in other.report.differences} == {"input"}  # totals are everybody's


async def test_the_raw_messages_decide(clickhouse: ClickHouse, covers: Any) -> None:
    run = await generated(clickhouse, 1)
    at = next(n for n, message in enumerate(run.raw) if message[2].startswith(b"{") and message[2].count(b"\n") == 1)
    partition, offset, value, batch, clock_ms = run.raw[at]
    flow = json.loads(value)
    flow["bytes_out"] = (flow.get("bytes_out") or 0) + 1
    flow.pop("reporter", None)  # a client's: it is counted
    run.raw[at] = (partition, offset, json.dumps(flow).encode(), batch, clock_ms)
    found = scaled(clickhouse, run, covers)
    assert 1 <= found.wrong["edges"] <= 2
    assert "bytes_out" in {name for what, _, name, *_ in found.report.differences if what == "edges"}


async def test_a_record_that_the_log_does_not_cover_is_lost(clickhouse: ClickHouse, covers: Any) -> None:
    run = await generated(clickhouse, 1)
    noted, closed = covers
    assert scaled(clickhouse, run, covers).uncovered == 0
    cut = max((cover for cover in noted if cover.after > NO_POSITION), key=lambda cover: cover.upto - cover.after)
    found = scaled(clickhouse, run, ([cover for cover in noted if cover != cut], closed))
    assert found.uncovered > 0
    assert found.report.counts["input"] < len(run.raw) * 3
