"""Whatever is pushed: the record becomes a dead letter with its reason or is bounded, and the flows around it count."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.admin import NewTopic

from schemas.dead_letter import KEPT_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, Reason
from schemas.graph import chunk_columns, decode_chunk
from schemas.settings import FlowTopic, LaneSettings
from streams.kafka_clients import make_admin
from tests.builders_clickhouse import ClickHouse
from tests.e2e.hostile import (
    CALM_WINDOWS,
    CAP,
    EDGES,
    HOSTILE_WINDOWS,
    KNOWN,
    MIB,
    judge_apart,
    write_hostile,
)
from tests.e2e.pipeline import Results, following, is_stored, running, send_all
from tests.e2e.test_live import MakeSettings, live_settings, now_ms
from tests.e2e.traffic import as_line

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]
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


def test_a_million_edges_of_one_tenant_are_bounded_and_summed(tmp_path: Path) -> None:
    rows = write_hostile(tmp_path / "hostile.arrow")
    found = judge_apart(tmp_path / "hostile.arrow")
    flows, overflow = found.flows, found.overflow
    windows = CALM_WINDOWS + HOSTILE_WINDOWS
    assert flows["victim"] + overflow["victim"] == windows * KNOWN + EDGES
    assert overflow["victim"] >= EDGES - CAP
    assert (flows["neighbour"], overflow["neighbour"]) == (windows * KNOWN, 0)
    assert rows == flows.total() + overflow.total()
    assert found.largest <= CAP
    assert found.known_kept == {KNOWN}  # known edges never give way
    assert found.events < 10 * CAP
    # A quarter of the million fills every table there is; 750,000 services more, if kept, would need over 100 MiB.
    grown = found.resident_mib[-1] - found.resident_mib[CALM_WINDOWS + HOSTILE_WINDOWS // 4]
    assert grown < 50, f"grew by {grown:.0f} MiB"
