"""Whatever is pushed: the record becomes a dead letter with its reason or is bounded, and the flows around it count."""

import gc
import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiokafka.admin import NewTopic

from deploy.commands.backtest import run_backtest
from schemas.dead_letter import KEPT_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, Reason
from schemas.graph import MEASURE_INDEX, chunk_columns, decode_chunk
from schemas.settings import FlowTopic, LaneSettings
from streams.kafka_clients import make_admin
from streams.log_files import ARROW_ROWS
from streams.replay import ReplayLane
from tests.builders_clickhouse import ClickHouse
from tests.e2e.pipeline import Results, following, is_stored, running, send_all
from tests.e2e.test_live import MakeSettings, live_settings, now_ms
from tests.e2e.traffic import as_line

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]
MIB = 1 << 20
YEAR_2100_MS = 4_102_444_800_000


def bad_messages(at_ms: int) -> list[tuple[str, bytes, Reason]]:
    """Return what no good producer sends, and what is to be said of it."""
    good: dict[str, Any] = {"time_ms": at_ms, "src": "web", "dst": "cart", "tenant": "acme"}

    def message(**changes: Any) -> bytes:
        return json.dumps(good | changes).encode()

    noise = np.random.default_rng(11).integers(128, 256, 5_000, dtype=np.uint8).tobytes()
    return [
        ("truncated", message()[:-12], Reason.MALFORMED),
        ("wrong type: time", message(time_ms="yesterday"), Reason.MALFORMED),
        ("wrong type: source", message(src=7), Reason.MALFORMED),
        ("wrong type: fraction", message(bytes_out=1.5), Reason.MALFORMED),
        ("not a number", message(latency_us=float("nan")), Reason.MALFORMED),
        ("infinite", message(latency_us=float("inf")), Reason.MALFORMED),
        ("10 MB", message(host="h" * 10 * MIB), Reason.OVERSIZED),
        ("year 2100", message(time_ms=YEAR_2100_MS), Reason.FUTURE),
        ("negative time", message(time_ms=-1), Reason.INVALID_VALUE),
        ("empty name", message(src=""), Reason.INVALID_VALUE),
        ("name of a megabyte", message(dst="d" * MIB), Reason.INVALID_VALUE),
        ("tenant of a megabyte", message(tenant="t" * MIB), Reason.INVALID_VALUE),
        ("binary noise", noise, Reason.MALFORMED),
        ("zeros", bytes(300), Reason.MALFORMED),
        ("Confluent prefix", struct.pack(">bI", 0, 42) + message(), Reason.MALFORMED),
        ("deep nesting", b"[" * 100_000, Reason.MALFORMED),
        ("no tenant", message(tenant=None), Reason.UNKNOWN_TENANT),
        ("another's tenant", message(tenant="mallory"), Reason.TENANT_NOT_ALLOWED),
        ("empty", b"", Reason.EMPTY),
        ("no record", b"[]", Reason.EMPTY),
    ]


def totals(results: Results, name: str) -> Counter[tuple[str, str]]:
    """Sum a measure over all closed windows, both reporting sides, by client and server service."""
    found: Counter[tuple[str, str]] = Counter()
    for value in results.chunks.values():
        chunk = decode_chunk(value)
        for src, dst, count in zip(chunk.src, chunk.dst, chunk_columns(chunk)[name].tolist(), strict=True):
            found[src, dst] += count
    return found


@pytest.mark.parametrize("broker", ["apache_kafka", "tansu_bootstrap"])
async def test_bad_records_are_kept_with_their_reason_and_those_around_them_count(
    broker: str,
    request: pytest.FixtureRequest,
    settings_for: MakeSettings,
    clickhouse: ClickHouse,
    unique_name: str,
) -> None:
    lane = LaneSettings(name="default", window_ms=1_000, lateness_ms=500, idle_ms=300)
    flows = FlowTopic(topic=f"{unique_name}-flows", tenants=("acme", "globex*"))
    settings = live_settings(settings_for, request.getfixturevalue(broker), clickhouse, lane, flows=(flows,))
    admin = make_admin(settings.kafka)
    await admin.start()
    try:  # larger than what the worker takes: a topic that was there before us
        config = {"max.message.bytes": str(16 * MIB)}
        await admin.create_topics([NewTopic(flows.topic, settings.topics.partitions, 1, topic_configs=config)])
    finally:
        await admin.close()

    def good(count: int, edge: str) -> list[bytes]:
        return [as_line(now_ms(), "web", edge, tenant=("acme", "globex-eu")[n % 2]) for n in range(count)]

    async with following(settings) as topics, running(settings) as worker:
        before = [(n % settings.topics.partitions, line) for n, line in enumerate(good(60, "cart"))]
        await send_all(settings, flows.topic, before)
        await worker.until(lambda: topics.results.markers, "a window closed")
        bad = bad_messages(now_ms())
        sent: list[tuple[int, bytes]] = []
        expected: dict[int, tuple[str, bytes, Reason]] = {}
        around = good(3 * len(bad) + 3, "pay")
        for number, (name, value, reason) in enumerate(bad):
            partition = number % settings.topics.partitions
            expected[len(sent) + 1] = (name, value, reason)
            sent += [(partition, around.pop()), (partition, value), (partition, around.pop())]
        sent += [(0, line) for line in around]
        sent.append((1, as_line(0, "web", "epoch")))
        offsets = await send_all(settings, flows.topic, sent, max_request_size=20 * MIB, compression_type=None)
        in_all = len(before) + len(sent) - len(bad)
        await worker.until(lambda: len(topics.results.dead) >= len(bad), "all dead letters are kept")
        await worker.until(
            lambda: totals(topics.results, "flows").total() + totals(topics.results, "late_flows").total() >= in_all,
            "all windows closed",
        )
        await worker.until(lambda: is_stored(topics), "all is stored")
    found = {
        next((name for at, (name, *_) in expected.items() if (sent[at][0], offsets[at]) == key[:2]), str(key)): letter
        for key, letter in topics.results.dead.items()
    }
    assert {name: letter.reason for name, letter in found.items()} == {n: r for n, _, r in bad}
    for name, value, reason in bad:
        if reason is not Reason.FUTURE:  # found out behind ingest: its bytes are in the source topic, at its coordinate
            kept = value if len(value) <= MAX_PAYLOAD_BYTES else value[:KEPT_PAYLOAD_BYTES]
            assert found[name].payload == kept, name
    counted = totals(topics.results, "flows") + totals(topics.results, "late_flows")
    assert counted == {("web", "cart"): len(before), ("web", "pay"): 3 * len(bad) + 3, ("web", "epoch"): 1}
    assert totals(topics.results, "late_flows")["web", "epoch"] == 1
    [(stored,)] = clickhouse.rows("SELECT sum(flows + late_flows) FROM {db}.edges_1m FINAL")
    assert stored == counted.total()


CAP = 2_000
EDGES = 1_000_000
KNOWN = 100
CALM_WINDOWS, HOSTILE_WINDOWS = 25, 20
"""Long enough that the calm is learned before the first hostile row is read."""


def write_hostile(path: Path) -> int:
    """Write Arrow batches: two tenants' usual edges, then one that talks to a million services; return the rows."""
    usual = [(f"web-{n}", f"db-{n}", tenant) for n in range(KNOWN) for tenant in ("victim", "neighbour")]
    schema = pa.schema([("time_ms", pa.int64()), *((name, pa.string()) for name in ("src", "dst", "tenant"))])
    each, rows = EDGES // HOSTILE_WINDOWS, 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for window in range(CALM_WINDOWS + HOSTILE_WINDOWS):
            start_ms = window * 10_000
            columns: list[list[Any]] = [list(column) for column in zip(*usual, strict=True)]
            if window >= CALM_WINDOWS:
                first = (window - CALM_WINDOWS) * each
                columns[0] += ["web-0"] * each
                columns[1] += [f"target/{number:07}" for number in range(first, first + each)]
                columns[2] += ["victim"] * each
            size = len(columns[0])
            times = pa.array(start_ms + np.arange(size) * 9_000 // size)
            batch = pa.record_batch([times, *(pa.array(column) for column in columns)], schema=schema)
            for at in range(0, size, ARROW_ROWS):
                writer.write_batch(batch.slice(at, ARROW_ROWS))
            rows += size
    return rows


def resident_mib() -> float:
    """Return the memory this process has now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def test_a_million_edges_of_one_tenant_are_bounded_and_summed(tmp_path: Path) -> None:
    rows = write_hostile(tmp_path / "hostile.arrow")
    lane = ReplayLane(
        "replay:hostile", 10_000, 1_000, {"learning_windows": 3, "max_edges_per_tenant": CAP}, generation=1
    )
    flows: Counter[str] = Counter()
    overflow: Counter[str] = Counter()
    largest = 0
    known_kept = set()
    events = 0
    resident: list[float] = []
    for output in run_backtest(tmp_path / "hostile.arrow", "canonical", lane, as_of_ms=now_ms()):
        events += len(output.events)
        for window in output.windows:
            flows[window.tenant] += int(window.edges.measure("flows").sum())
            overflow[window.tenant] += int(window.overflow[MEASURE_INDEX["flows"]])
            largest = max(largest, len(window.edges))
            known_kept.add(sum(src.startswith("web-") and dst.startswith("db-") for src, dst in edges_of(window)))
            if window.tenant == "victim":
                resident.append(resident_mib())
    windows = CALM_WINDOWS + HOSTILE_WINDOWS
    assert flows["victim"] + overflow["victim"] == windows * KNOWN + EDGES
    assert overflow["victim"] >= EDGES - CAP
    assert (flows["neighbour"], overflow["neighbour"]) == (windows * KNOWN, 0)
    assert rows == flows.total() + overflow.total()
    assert largest <= CAP
    assert known_kept == {KNOWN}  # known edges never give way
    assert events < 10 * CAP
    # A quarter of the million fills every table there is; 750,000 services more, if kept, would need over 100 MiB.
    grown = resident[-1] - resident[CALM_WINDOWS + HOSTILE_WINDOWS // 4]
    assert grown < 50, f"grew by {grown:.0f} MiB"


def edges_of(window: Any) -> Any:
    """Return (src, dst) of a window's edges."""
    return zip(window.edges.src, window.edges.dst, strict=True)
