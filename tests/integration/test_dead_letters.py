"""Dead letters on a real broker: listed, shown, replayed from the command line, each once; a flood pauses its own."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition
from click.testing import CliRunner

from deploy.cli import cli
from models.graph.output import RowDeadLetter
from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from schemas.graph import decode_chunk
from schemas.ids import position_of
from schemas.settings import FlowTopic, LaneSettings, Settings
from streams.clock import SystemClock
from streams.dead_letters import encode_dead_letter
from streams.graph.sink import KafkaGraphSink
from streams.idempotence import supports_idempotence
from streams.kafka_clients import make_admin, make_producer
from streams.metrics import Metrics
from streams.producing import AcknowledgedProducer
from streams.replay import ReplayLane, push_file
from streams.topics import ensure_topics
from tests.builders_clickhouse import ClickHouse
from tests.e2e.pipeline import following, running, send_all, write_config
from tests.e2e.test_live import live_settings, now_ms
from tests.e2e.traffic import as_line
from tests.integration.test_ingest import (
    all_read,
    flow,
    fold,
    ingesting,
    ingesting_until_death,
    read_all,
    total,
    until,
)
from tests.unit.streams.ingest.test_replayed import letter_of

pytestmark = pytest.mark.kafka
WHOLE = 1_048_575
RETRIED_S = 300.0

Message = tuple[int, bytes | None, dict[str, Any]]
"""Partition, value, and further arguments of the producer."""


async def push(settings: Settings, messages: list[Message]) -> None:
    producer = make_producer(settings.kafka, max_request_size=12 << 20)
    await producer.start()
    try:
        for partition, value, more in messages:
            await producer.send_and_wait(settings.flows[0].topic, value, partition=partition, **more)
    finally:
        await producer.stop()


async def drift(settings: Settings, tmp_path: Path, *arguments: str) -> Any:
    """Run `drift dead-letters` with these settings; return what it printed, as JSON if it was asked for."""
    config = write_config(settings, tmp_path / "drift.yaml")
    command = ["--config", str(config), "dead-letters", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, cli, command, standalone_mode=False, catch_exceptions=False)
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def with_flows(settings: Settings, **changes: Any) -> Settings:
    topic = settings.flows[0]
    return settings.model_copy(update={"flows": (topic.model_copy(update=changes),)})


async def ingest_all(settings: Settings) -> None:
    """Run an ingest worker until it has nothing more to read."""
    async with ingesting(settings) as (ingest, _):
        await until(lambda: len(ingest.worker.sources()) == 9)
        await all_read(ingest, settings)


async def test_dead_letters_are_listed_shown_and_replayed_each_once(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for(kafka_bootstrap)
    strict = with_flows(settings, tenants=("tenant-1",), tenant_from="header:x-tenant")
    topic = settings.flows[0].topic
    await ensure_topics(strict)
    named = {"headers": [("x-tenant", b"tenant-2"), ("note", None)], "key": b"k"}
    await push(
        strict,
        [
            (0, flow(1), {"headers": [("x-tenant", b"tenant-1")]}),
            (0, b"[" + flow(2) + b",{}," + flow(3) + b"]", named),
            (1, b"\x1b[31mnot json\xff", {}),
            (2, None, {"key": b"tombstone"}),
            (2, flow(4), {}),
        ],
    )
    await ingest_all(strict)

    listed = await drift(strict, tmp_path, "list", "--json")
    assert listed["by_reason"] == {"empty": 1, "malformed": 2, "tenant-not-allowed": 2, "unknown-tenant": 1}
    assert {one["source"]: (one["tenant"], one["replay"]) for one in listed["dead_letters"]} == {
        f"{topic}:0:1:0": ("tenant-2", "kept"),
        f"{topic}:0:1:1": ("tenant-2", "kept"),
        f"{topic}:0:1:2": ("tenant-2", "kept"),
        f"{topic}:1:0:{WHOLE}": (None, "kept"),
        f"{topic}:2:0:{WHOLE}": (None, "kept"),
        f"{topic}:2:1:0": (None, "kept"),
    }
    chosen = await drift(strict, tmp_path, "list", "--reason", "tenant-not-allowed", "--tenant", "tenant-2")
    assert chosen.splitlines()[-1] == "2 dead letters: tenant-not-allowed 2" and f"{topic}:0:1:2" in chosen
    assert (await drift(strict, tmp_path, "list", "--topic", "other")).strip() == "0 dead letters"
    latest = await drift(strict, tmp_path, "list", "--since", "1h", "--limit", "1")
    assert len(latest.splitlines()) == 3 and "the latest 1 are shown" in latest

    shown = await drift(strict, tmp_path, "show", f"{topic}:1:0:{WHOLE}")
    assert "1b 5b 33 31 6d" in shown and "\x1b" not in shown and "the whole message" in shown
    shown = await drift(strict, tmp_path, "show", f"{topic}:0:1:0")
    assert "header    note: null" in shown and "key       k" in shown and flow(2).decode() in shown
    described = await drift(strict, tmp_path, "show", f"{topic}:0:1:0", "--json")
    assert base64.b64decode(described["payload_base64"]) == flow(2) and described["is_record_alone"]
    with pytest.raises(ConfigurationError, match=f"holds no dead letter of {topic}:0:77:0"):
        await drift(strict, tmp_path, "show", f"{topic}:0:77:0")

    mended = with_flows(settings, tenants=("*",), tenant_from="header:x-tenant")
    would = await drift(mended, tmp_path, "replay", "--reason", "tenant-not-allowed", "--dry-run", "--json")
    assert would == {"found": 2, "would_replay": 2, "refused": []}
    with pytest.raises(ConfigurationError, match="--json asks nothing"):
        await drift(mended, tmp_path, "replay", "--json")
    for expected in (2, 2):  # by two people
        done = await drift(mended, tmp_path, "replay", "--reason", "tenant-not-allowed", "--yes", "--json")
        assert done == {"found": 2, "pushed": expected, "refused": []}
    await ingest_all(mended)
    done = await drift(mended, tmp_path, "replay", "--yes", "--json")
    assert done["pushed"] == 6
    one = await drift(mended, tmp_path, "replay", f"{topic}:2:1:0", f"{topic}:0:1:0", "--yes")
    assert one.startswith("2 dead letters of 2 pushed to ")
    await ingest_all(mended)
    _, counts = await fold(mended)
    assert (counts["on_time"] + counts["late"], counts["retaken"], counts["repeated"]) == (3, 2, 2 + 2 + 1)
    again = await drift(mended, tmp_path, "list", "--json")
    assert again["by_reason"] == listed["by_reason"], "what is still bad stands under the coordinate that it had"
    assert {one["source"]: one["times"] for one in again["dead_letters"]} == {
        f"{topic}:0:1:0": 1,
        f"{topic}:0:1:1": 2,
        f"{topic}:0:1:2": 1,
        f"{topic}:1:0:{WHOLE}": 2,
        f"{topic}:2:0:{WHOLE}": 2,
        f"{topic}:2:1:0": 3,
    }


async def test_what_was_cut_or_never_kept_is_read_anew_from_its_topic_or_refused_by_name(
    apache_kafka: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for(apache_kafka)
    topic = settings.flows[0].topic
    small = with_flows(settings, max_message_bytes=300_000)
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 3, 1, topic_configs={"max.message.bytes": str(2 << 20)})])
        await ensure_topics(small)
        large = b"[" + b",".join(flow(n, host="h" * 200) for n in range(1_500)) + b"]"
        year_3000 = flow(7, time_ms=8_000_000_000_000)
        await push(small, [(0, large, {}), (0, b"[" + flow(1) + b"," + year_3000 + b"]", {}), (1, large, {})])
        await ingest_all(small)
        producer = make_producer(settings.kafka)
        await producer.start()
        names = {role: settings.topics.name(role) for role in ("drift_events", "graph_windows", "dead_letter")}
        sink = KafkaGraphSink(
            AcknowledgedProducer(producer, Metrics()), lambda: None, **names, dead_letter_partitions=3
        )
        source = f"{topic}#1"
        # what the state machine says of the row in year 3000, and of one that its log has never had
        await sink.publish_dead([RowDeadLetter(source, 0, position_of(1, 1), Reason.FUTURE, "ahead")])
        await sink.publish_dead([RowDeadLetter(source, 0, position_of(99, 0), Reason.FUTURE, "ahead")])
        await sink.publish_dead([RowDeadLetter("gone#1", 0, position_of(0, 0), Reason.FUTURE, "ahead")])
        unstorable = encode_dead_letter(letter_of(topic="drift-events", reason=Reason.UNSTORABLE))
        await producer.send_and_wait(names["dead_letter"], unstorable.value, headers=unstorable.headers)
        await producer.stop()
        shown = await drift(small, tmp_path, "show", f"{topic}:0:0:{WHOLE}")
        assert f"{len(large)} bytes, of which the first 65536 were kept; SHA-256 " in shown
        assert "reads its source topic anew: of its" in shown
        # the log of partition 1 begins behind its dead letter: what retention does
        await push(small, [(1, flow(8), {})])
        await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=1)})
        done = await drift(settings, tmp_path, "replay", "--yes", "--json")
    finally:
        await admin.close()
    refused = {one["source"]: one["why"] for one in done["refused"]}
    assert (done["found"], done["pushed"], len(refused)) == (6, 2, 4)
    assert f"{topic}[1] begins at offset 1 by now: its retention has passed" in refused[f"{topic}:1:0:{WHOLE}"]
    assert f"{topic}[0] ends at offset 2" in refused[f"{topic}:0:99:0"]
    assert refused["gone:0:0:0"] == "topic 'gone' is no longer configured: add it to flows, then replay"
    assert "an event or window of ours" in refused["drift-events:0:7:0"]
    await ingest_all(settings)
    machines, counts = await fold(settings)
    assert counts["on_time"] + counts["late"] == 1_500 + 1 + 1, "of the array, and the good ones beside them"
    assert (counts["retaken"], counts["dead"], counts["dead_again"]) == (1_500, 1, 1)
    assert sum(len(machine.taken) for machine in machines) == 3 * 1_500, "every target knows of all"


async def test_a_worker_that_dies_over_a_replay_changes_nothing(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = settings_for(kafka_bootstrap)
    strict = with_flows(settings, tenants=("nobody",), flood_share=1.0)
    await ensure_topics(strict)
    await push(strict, [(number % 3, flow(number), {}) for number in range(300)])
    await ingest_all(strict)
    assert (await drift(settings, tmp_path, "replay", "--yes", "--json"))["pushed"] == 300
    async with ingesting_until_death(settings) as (ingest, metrics):
        await all_read(ingest, settings)
        assert total(metrics, "drift_ingest_flows_total") == 300
    await ingest_all(settings)
    assert (await drift(settings, tmp_path, "replay", "--yes", "--json"))["pushed"] == 300
    await ingest_all(settings)
    _, counts = await fold(settings)
    assert (counts["retaken"], counts["on_time"] + counts["late"], counts["repeated"]) == (300, 300, 600)


async def test_apache_kafka_takes_idempotent_producers_and_tansu_does_not(
    apache_kafka: str, tansu_bootstrap: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    path = tmp_path / "flows.jsonl"
    path.write_bytes(b"\n".join(flow(number) for number in range(50)))
    for bootstrap, expected in ((apache_kafka, True), (tansu_bootstrap, False)):
        settings = settings_for(bootstrap)
        await ensure_topics(settings)
        assert await supports_idempotence(settings.kafka) is expected
        assert await push_file(settings, path, "canonical", ReplayLane("replay:x"), clock=SystemClock()) == 50
        written = await read_all(settings, "replay")
        assert sum(map(len, written.values())) == 50 + 3


@pytest.mark.e2e
async def test_a_flood_on_every_partition_of_a_topic_delays_no_other_tenant(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], clickhouse: ClickHouse, unique_name: str
) -> None:
    lane = LaneSettings(
        name="default", window_ms=2_000, lateness_ms=500, idle_ms=500, detection={"learning_windows": 3}
    )
    good, noisy = (FlowTopic(topic=f"{unique_name}-{name}") for name in ("good", "noisy"))
    noisy = noisy.model_copy(update={"flood_min_records": 100, "flood_pause_ms": 45_000})
    settings = live_settings(settings_for, kafka_bootstrap, clickhouse, lane, flows=(good, noisy))
    partitions = range(settings.topics.partitions)
    async with following(settings) as topics:
        began_ms = now_ms()
        usual = [("web", "cart"), ("cart", "db")]
        past = [(0, as_line(began_ms - ago * 2_000, *edge)) for ago in range(20, 2, -1) for edge in usual]
        await send_all(settings, good.topic, past)
        async with running(settings) as worker:
            ingest = worker.worker.ingest
            assert ingest is not None
            await worker.until(lambda: len(topics.results.markers) >= 4, "the tenant has learned")
            await send_all(settings, noisy.topic, [(n, b"junk") for n in partitions for _ in range(200)])
            paused = {(noisy.topic, n) for n in partitions}
            await worker.until(lambda: ingest.worker.idle_reasons().keys() == paused, "all its partitions are paused")
            # more of the same, and good records behind it: nothing of it is lost, and nothing waits for it
            await send_all(settings, noisy.topic, [(n, b"more junk") for n in partitions for _ in range(200)])
            await send_all(settings, noisy.topic, [(n, as_line(now_ms(), "web", "late")) for n in partitions])
            sent_ms = now_ms()
            await send_all(settings, good.topic, [(1, as_line(sent_ms, "web", "db"))])

            def told() -> list[int]:
                """Return the start of the window in which the edge was seen: a later one, if the flow came late."""
                events = topics.results.events
                return [event.window_start_ms for event in events if (event.src, event.dst) == ("web", "db")]

            await worker.until(told, "the other topic's new edge is told")
            window_ms = told()[0]
            await worker.until(
                lambda: any(start == window_ms for _, _, _, start, _ in topics.results.markers), "its window closed"
            )
            assert ingest.worker.idle_reasons().keys() == paused, "and all that while the flooded ones were paused"
            in_all = len(partitions) * 400
            await worker.until(
                lambda: len(topics.results.dead) == in_all, "they are tried again, and paused again", RETRIED_S
            )
            counted = len(past) + 1 + len(partitions)
            await worker.until(
                lambda: (
                    worker.total("drift_rows_folded_total", outcome="on_time")
                    + worker.total("drift_rows_folded_total", outcome="late")
                    == counted
                ),
                "every good record counts",
                RETRIED_S,
            )
    said = Counter(reason for value in topics.results.chunks.values() for reason in decode_chunk(value).incomplete)
    assert said["paused"] > 0
