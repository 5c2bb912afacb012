"""The independent check agrees with the pipeline, and says so when it does not."""

import base64
import gzip
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.ids import MAX_RECORDS_PER_MESSAGE
from tests.builders_clickhouse import ClickHouse
from tests.independent.check import Report, Rules, check, messages_of
from tests.independent.pipeline import Run, lane_of, run_pipeline, store
from tests.independent.traffic import START_MS, TENANTS, WINDOW_MS, make_chunks, make_flows

SAMPLE = Path(__file__).parents[2] / "deploy" / "sample" / "online-boutique.jsonl.gz"
LEARNING_WINDOWS = 6
RULES = Rules("test", WINDOW_MS, 5_000, LEARNING_WINDOWS)
NEW_KINDS = {"new_service", "new_edge", "new_port", "new_external_egress"}


def without_batches(run: Run) -> list[tuple[int, int, bytes, int, int]]:
    """Return the raw messages as one knows them who has not seen the log."""
    return [(partition, offset, value, 0, clock_ms) for partition, offset, value, _, clock_ms in run.raw]


def assert_counts(report: Report, run: Run) -> None:
    counts = report.counts
    assert counts["late"] == run.counts["late"]
    assert counts["dead"] == len(run.dead)
    if not counts["skewed"]:
        assert counts["on_time"] == run.counts["on_time"]
    assert counts["input"] == counts["on_time"] + counts["skewed"] + counts["late"] + counts["dead"]


async def sample_report(ch: ClickHouse, **changes: Any) -> Report:
    raw = messages_of(str(SAMPLE))
    lane = lane_of("test", 1, 12)
    chunks = [(0, [(message[2], 0) for message in raw[at : at + 1_000]]) for at in range(0, len(raw), 1_000)]
    run = run_pipeline(lane, chunks)
    await store(run, ch)
    return check(ch.client, ch.database, raw, RULES._replace(learning_windows=12, **changes), run.dead)


async def test_the_sample_is_counted_alike(clickhouse: ClickHouse) -> None:
    report = await sample_report(clickhouse)
    assert report.differences == []
    assert report.is_exact
    with gzip.open(SAMPLE) as file:
        lines = sum(1 for _ in file)
    assert report.counts == {"on_time": lines, "late": 0, "skewed": 0, "dead": 0, "input": lines}
    assert report.compared["windows"] == 3 * 121


async def generated(ch: ClickHouse, seed: int, partitions: int = 2, disorder_ms: int = 5_000) -> Run:
    flows = make_flows(seed, windows=20, news_from=10)
    run = run_pipeline(lane_of("test", partitions, LEARNING_WINDOWS), make_chunks(seed, flows, partitions, disorder_ms))
    await store(run, ch)
    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_generated_traffic_is_counted_and_judged_alike(clickhouse: ClickHouse, seed: int) -> None:
    run = await generated(clickhouse, seed)
    report = check(clickhouse.client, clickhouse.database, without_batches(run), RULES, run.dead)
    assert report.differences == []
    assert report.is_exact
    assert_counts(report, run)
    assert report.counts["dead"] > 0
    assert report.counts["late"] == 0
    assert {event.tenant for event in run.events} == set(TENANTS)
    assert {event.kind.value for event in run.events} >= NEW_KINDS
    assert report.compared["findings"] > 0


async def test_late_records_are_found_where_the_log_put_them(clickhouse: ClickHouse) -> None:
    run = await generated(clickhouse, 4, disorder_ms=25_000)
    report = check(clickhouse.client, clickhouse.database, run.raw, RULES, run.dead)
    assert report.differences == []
    assert report.is_exact
    assert report.counts["late"] > 0
    assert_counts(report, run)


async def test_with_late_records_and_an_unknown_log_the_input_is_conserved(clickhouse: ClickHouse) -> None:
    run = await generated(clickhouse, 4, disorder_ms=25_000)
    report = check(clickhouse.client, clickhouse.database, without_batches(run), RULES, run.dead)
    assert report.differences == []
    assert not report.is_exact
    assert set(report.compared) == {"input", "dead"}


def skewed_run() -> Run:
    rng = np.random.default_rng(5)
    messages = []
    for flow in make_flows(5, windows=12, news_from=8):
        arrived_ms = flow["time_ms"] + int(rng.integers(1_000))
        flow["time_ms"] += int(rng.choice([0, 9_000, 15_000, 90_000_000], p=[0.9, 0.04, 0.04, 0.02]))
        messages.append((json.dumps(flow).encode(), arrived_ms))
    lane = lane_of("test", 1, LEARNING_WINDOWS, mode="live", skew_ms=10_000, lateness_ms=20_000)
    return run_pipeline(lane, [(0, messages[at : at + 30]) for at in range(0, len(messages), 30)])


async def test_skewed_and_future_records_are_found_by_the_brokers_clock(clickhouse: ClickHouse) -> None:
    run = skewed_run()
    await store(run, clickhouse)
    rules = RULES._replace(skew_ms=10_000, lateness_ms=20_000)
    report = check(clickhouse.client, clickhouse.database, run.raw, rules, run.dead)
    assert report.differences == []
    assert report.counts["skewed"] > 0
    assert {reason for *_, reason in run.dead} == {"future"}
    assert_counts(report, run)


def test_the_machines_counters_and_dead_letters_add_up_to_the_input() -> None:
    run = skewed_run()
    assert sum(run.counts[fate] for fate in ("on_time", "late", "skewed")) + len(run.dead) == len(run.raw)


async def test_tenants_a_topic_may_not_carry_are_dead(clickhouse: ClickHouse) -> None:
    chunks = make_chunks(6, make_flows(6, windows=8, news_from=7), 1, 1_000)
    run = run_pipeline(lane_of("test", 1, 3), chunks, tenants=("acme", "globex"))
    await store(run, clickhouse)
    rules = RULES._replace(learning_windows=3, tenants="acme,globex")
    report = check(clickhouse.client, clickhouse.database, run.raw, rules, run.dead)
    assert report.differences == []
    assert "tenant-not-allowed" in {reason for *_, reason in run.dead}


def test_bad_messages_are_judged_as_the_examples_say(clickhouse: ClickHouse) -> None:
    lines = (
        importlib.resources.files("schemas").joinpath("examples/flows.jsonl").read_text(encoding="utf-8").splitlines()
    )
    cases = [json.loads(line) for line in lines]
    raw, dead, flows = [], [], 0
    for offset, case in enumerate(cases):
        value = base64.b64decode(case["base64"]) if "base64" in case else case["value"].encode()
        if value.startswith((b"\xff\xff\xff\xff", b"ARROW1")):
            continue  # SQL reads JSON alone
        raw.append((0, offset, value, 0, 0))
        flows += case["flows"]
        for rejected in case["rejected"]:
            index = MAX_RECORDS_PER_MESSAGE if rejected["index"] is None else rejected["index"]
            dead.append((0, offset, index, rejected["reason"]))
    report = check(clickhouse.client, clickhouse.database, raw, RULES._replace(tenant="acme"), dead)
    assert [difference for difference in report.differences if difference[0] == "dead"] == []
    assert report.counts["dead"] == len(dead) > 20
    assert report.counts["input"] == flows + len(dead)


async def altered(ch: ClickHouse, statement: str) -> list[Any]:
    run = await generated(ch, 1)
    assert check(ch.client, ch.database, run.raw, RULES, run.dead).differences == []
    ch.client.command(statement.format(db=ch.database), settings={"mutations_sync": 2})
    return check(ch.client, ch.database, run.raw, RULES, run.dead).differences


EDGE = "tenant = 'acme' AND src = 'shop/web' AND dst = 'shop/cart'"


async def test_a_changed_measure_is_named(clickhouse: ClickHouse) -> None:
    at = f"{EDGE} AND window_start = (SELECT max(window_start) FROM {{db}}.edges_1m WHERE {EDGE})"
    differences = await altered(clickhouse, f"ALTER TABLE {{db}}.edges_1m UPDATE calls = calls + 1 WHERE {at}")
    assert differences
    for what, subject, name, expected, stored in differences:
        assert (what, name) == ("edges", "calls")
        assert "'acme','shop/web','shop/cart'" in subject
        assert expected is not None and int(stored) == int(expected) + 1


async def test_a_lost_edge_is_named_in_its_windows_and_in_the_input(clickhouse: ClickHouse) -> None:
    differences = await altered(clickhouse, f"ALTER TABLE {{db}}.edges_1m DELETE WHERE {EDGE}")
    assert {(what, name, expected, stored) for what, _, name, expected, stored in differences} == {
        ("edges", "row", "there", None),
        ("input", "row", "there", None),
    }
    assert all("'acme','shop/web','shop/cart'" in subject for _, subject, *_ in differences)


async def test_a_lost_finding_is_named(clickhouse: ClickHouse) -> None:
    differences = await altered(clickhouse, "ALTER TABLE {db}.drift_events DELETE WHERE kind = 'new_external_egress'")
    assert {(what, name, stored) for what, _, name, _, stored in differences} == {("findings", "row", None)}
    assert all("new_external_egress" in subject for _, subject, *_ in differences)


async def test_an_invented_row_a_late_settling_and_a_lost_dead_letter_are_named(clickhouse: ClickHouse) -> None:
    run = await generated(clickhouse, 1)
    db = clickhouse.database
    clickhouse.client.command(
        f"INSERT INTO {db}.edges_1m (tenant, lane, generation, window_start, src, dst, port, protocol, flows) "
        f"VALUES ('acme', 'test', 0, fromUnixTimestamp64Milli({START_MS}), 'nobody', 'nowhere', 1, 6, 3)"
    )
    clickhouse.client.command(
        f"ALTER TABLE {db}.drift_events UPDATE is_early = true WHERE kind = 'new_service'",
        settings={"mutations_sync": 2},
    )
    differences = check(clickhouse.client, db, run.raw, RULES, run.dead[1:]).differences
    found = {(what, name) for what, _, name, _, _ in differences}
    assert {("edges", "row"), ("input", "row"), ("findings", "early"), ("dead", "row")} <= found


async def test_a_measure_known_in_one_direction_alone_is_stored_so(clickhouse: ClickHouse) -> None:
    flow = {"time_ms": START_MS, "src": "a", "tenant": "acme", "port": 80, "protocol": "tcp"}
    one_way = [
        {**flow, "dst": "in", "bytes_in": 7, "packets_in": 1},
        {**flow, "dst": "out", "bytes_out": 7, "packets_out": 1},
    ]
    run = run_pipeline(lane_of("test", 1, 3), [(0, [(json.dumps(one_way).encode(), 0)])])
    await store(run, clickhouse)
    assert check(clickhouse.client, clickhouse.database, run.raw, RULES).differences == []
