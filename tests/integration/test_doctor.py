"""`drift doctor` and `drift topics` on a real broker and a real ClickHouse, set up well and wrongly on purpose."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.client import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr

from deploy.cli import main
from deploy.commands.doctor import diagnose
from deploy.diagnosis import machine, offsets
from deploy.diagnosis.finding import Finding, Level
from schemas.settings import ClickHouseSettings, Settings
from schemas.topics import INTERNAL_AND_PUBLIC
from streams.kafka_clients import make_admin, make_consumer
from streams.topics import ensure_topics, topic_config
from tests.builders_clickhouse import ClickHouse
from tests.e2e.pipeline import running, send_all, until, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("clickhouse")]
MakeSettings = Callable[..., Settings]
EXPECTED_WARNINGS = {"replication is 1", "no HTTP endpoint", "the producers' timestamps", "no worker is a member"}
"""Of a test's settings and a broker of one node; nothing else may be wrong."""


@pytest.fixture
def settings(apache_kafka: str, settings_for: MakeSettings, clickhouse: ClickHouse) -> Settings:
    """State on Kafka, and the test's ClickHouse."""
    made = settings_for(apache_kafka, partitions=2, clickhouse=clickhouse.settings)
    # A stop checkpoints; the doctor calls a checkpoint late by this setting, and a slow machine is not to be late.
    changes = {"state_directory": None, "checkpoint_every_ms": 120_000, "lag_every_ms": 200}
    worker = made.worker.model_copy(update=changes)
    return made.model_copy(update={"worker": worker})


def flow(number: int) -> bytes:
    values = {"time_ms": time.time_ns() // 1_000_000, "tenant": f"t{number % 5}", "src": "a", "dst": f"b{number % 9}"}
    return json.dumps(values | {"port": 443}).encode()


async def after_some_work(settings: Settings) -> None:
    """Run a worker over 50 flows until all is applied and stored."""
    await ensure_topics(settings)
    await send_all(settings, settings.flows[0].topic, [(number % 2, flow(number)) for number in range(50)])
    async with running(settings) as worker:
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 50, "all flows are folded")


def problems(findings: list[Finding]) -> dict[str, str]:
    return {f.check: f"{f.text}: {f.advice}" for f in findings if f.level is Level.PROBLEM}


def of(findings: list[Finding], check: str) -> list[Finding]:
    found = [f for f in findings if f.check == check]
    assert found, f"nothing about {check!r} in {[f.line for f in findings]}"
    return found


async def test_a_good_setup_has_no_problem_and_every_check_speaks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a good setup, whatever this machine is: its disk has room, and waiting for it is no wrong clock.
    monkeypatch.setattr(machine, "_free_bytes", lambda _: machine.LOW_BYTES)
    monkeypatch.setattr(offsets, "CLOCK_WARNING_MS", offsets.CLOCK_PROBLEM_MS)
    await after_some_work(settings)

    findings = await diagnose(settings)

    assert problems(findings) == {}
    unexpected = [
        f.line for f in findings if f.level is Level.WARNING and not any(text in f.text for text in EXPECTED_WARNINGS)
    ]
    assert unexpected == []
    topics, group = settings.topics, settings.worker.group
    checks = [f"topic {topics.name('tenant_log')}", f"offsets {settings.flows[0].topic}", f"group {group}"]
    checks += [f"offsets {topics.name('tenant_log')}", f"state {topics.name('state')}", "brokers"]
    checks += ["clocks of workers and broker", "clock of ClickHouse", "ClickHouse version", "tables"]
    checks += ["ClickHouse settings", f"schema {settings.clickhouse.database}", "settings"]
    for check in checks:
        assert of(findings, check)
    assert of(findings, f"offsets {settings.flows[0].topic}")[0].text == "0 messages behind"
    edges = of(findings, f"state {topics.name('state')}")[0].text
    assert edges.startswith("2 partitions, 45 edges, ")


async def test_a_running_worker_is_a_member(settings: Settings) -> None:
    await ensure_topics(settings)
    told: list[list[Finding]] = []

    async def is_member() -> bool:
        told.append(await diagnose(settings, quick=True, with_clickhouse=False))
        return of(told[-1], f"group {settings.worker.group}")[0].text == "1 members, Stable"

    async with running(settings):
        await until(is_member, "it is told as a member")
    assert not any(f.check.startswith("state") for f in told[-1])


async def test_records_deleted_unread_are_told_before_a_start_finds_them(settings: Settings) -> None:
    await after_some_work(settings)
    topic = settings.flows[0].topic
    await send_all(settings, topic, [(0, flow(number)) for number in range(30)])
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=45)})
    finally:
        await admin.close()

    findings = await diagnose(settings, quick=True, with_clickhouse=False)

    [told] = problems(findings).values()
    assert told.startswith("20 records from offset 25 on were deleted unread: `drift worker --accept-loss`")


async def test_topics_changed_on_the_broker_are_told(settings: Settings) -> None:
    await ensure_topics(settings)
    log, state = settings.topics.name("tenant_log"), settings.topics.name("state")
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        for name, changes in ((log, {"retention.ms": "60000"}), (state, {"cleanup.policy": "delete"})):
            changes["max.message.bytes"] = "2097152"  # what is not named goes back to the broker's default
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, changes)])

        async def is_changed() -> bool:
            mine, logs = await topic_config(admin, state), await topic_config(admin, log)
            return mine["cleanup.policy"] == "delete" and logs["retention.ms"] == "60000"

        await until(is_changed, "the broker has the new configuration")
    finally:
        await admin.close()

    found = problems(await diagnose(settings, quick=True, with_clickhouse=False))

    assert found.keys() == {f"topic {log}", f"topic {state}"}
    assert "raise retention.ms" in found[f"topic {log}"] and "set cleanup.policy=compact" in found[f"topic {state}"]


async def test_missing_topics_are_told_and_not_made(settings: Settings) -> None:
    found = problems(await diagnose(settings, with_clickhouse=False))
    names = [settings.topics.name(role) for role in ("tenant_log", "state", "drift_events")]
    assert {f"topic {name}" for name in names} <= found.keys()
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        assert not set(names) & set(await admin.list_topics())
    finally:
        await admin.close()


async def test_a_log_that_was_made_anew_does_not_fit_the_saved_state(settings: Settings) -> None:
    await after_some_work(settings)
    log = settings.topics.name("tenant_log")
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        # What was applied: the worker may have stated something just before it stopped.
        applied = await applied_offsets(settings, log)
        assert all(applied.values())
        await admin.delete_records({tp: RecordsToDelete(before_offset=offset) for tp, offset in applied.items()})
        moved = settings.topics.model_copy(update={"names": {**settings.topics.names, "tenant_log": f"{log}-new"}})
    finally:
        await admin.close()
    assert problems(await diagnose(settings, with_clickhouse=False)) == {}, "all was applied before it was deleted"

    renamed = settings.model_copy(update={"topics": moved})
    await ensure_topics(renamed)
    told = problems(await diagnose(renamed, with_clickhouse=False))

    assert len(told) == 2 and all("created anew: change topics.incarnation" in text for text in told.values())


async def applied_offsets(settings: Settings, topic: str) -> dict[TopicPartition, int]:
    """Return the offset behind the last record that the group's checkpoints cover, by partition."""
    consumer = make_consumer(settings.kafka, group_id=settings.worker.group)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(2)]
        return {partition: await consumer.committed(partition) or 0 for partition in partitions}
    finally:
        await consumer.stop()


async def test_a_state_that_cannot_be_read_is_told(settings: Settings, tmp_path: Path) -> None:
    await ensure_topics(settings)
    folder = tmp_path / "state"
    (folder / "partition-1").mkdir(parents=True)
    (folder / "partition-1" / "manifest@7").write_text('{"v": 99}')
    worker = settings.worker.model_copy(update={"state_directory": folder})

    found = problems(await diagnose(settings.model_copy(update={"worker": worker}), with_clickhouse=False))

    assert found.keys() == {f"state {folder}[1]"}
    assert "version 99" in found[f"state {folder}[1]"]


async def test_brokers_that_are_not_there_are_told_once(settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"})
    findings = await diagnose(settings.model_copy(update={"kafka": kafka}), with_clickhouse=False)
    assert problems(findings).keys() == {"brokers"}
    assert "no Kafka at 127.0.0.1:1" in problems(findings)["brokers"]


async def test_a_clickhouse_without_our_tables_is_told(settings: Settings, empty_clickhouse: ClickHouse) -> None:
    wrong = settings.clickhouse.model_copy(update={"database": f"{empty_clickhouse.database}_other"})
    found = problems(await diagnose(settings.model_copy(update={"clickhouse": wrong}), quick=True))
    [told] = [text for check, text in found.items() if check.startswith("schema")]
    assert "0001_tables.sql" in told and "run `drift migrate`" in told


async def test_a_table_that_forgets_inserts_is_told(settings: Settings, clickhouse: ClickHouse) -> None:
    clickhouse.client.command(
        f"ALTER TABLE {clickhouse.database}.drift_events MODIFY SETTING non_replicated_deduplication_window = 0"
    )
    findings = await diagnose(settings, quick=True)
    [told] = of(findings, "table drift_events")
    assert told.level is Level.WARNING and "stored twice" in told.text


async def test_a_clickhouse_that_is_away_is_told(settings: Settings) -> None:
    away = ClickHouseSettings(dsn=SecretStr("http://drift:secret-word@127.0.0.1:1"))
    findings = await diagnose(settings.model_copy(update={"clickhouse": away}), quick=True)
    told = problems(findings)["ClickHouse"]
    assert "127.0.0.1:1" in told and "secret-word" not in told


def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path, *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["drift", "--config", str(config), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().out


def test_the_commands_say_and_return_what_they_found(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(settings, tmp_path / "config.yaml")

    def drift(*arguments: str) -> tuple[int, Any]:
        code, out = run_cli(capsys, monkeypatch, config, *arguments)
        return code, json.loads(out) if "--json" in arguments else out

    every = len(INTERNAL_AND_PUBLIC) + len(settings.flows)
    code, out = drift("topics", "--check")
    assert code == 1 and out.count("does not exist: `drift topics` creates it") == every == 9
    code, out = drift("topics")
    assert code == 0
    assert f"{settings.topics.name('tenant_log')}  2 partitions, delete, kept 3 d, LogAppendTime" in out
    assert f"{settings.topics.name('state')}  2 partitions, compact, CreateTime" in out
    assert drift("topics", "--check")[0] == 0
    code, values = drift("topics", "--json")
    listed = {topic["name"]: topic for topic in values["topics"]}
    log = listed[settings.topics.name("tenant_log")]
    assert (code, len(listed), log["partitions"], log["retention.ms"]) == (0, every, 2, "259200000")
    code, values = drift("doctor", "--quick", "--no-clickhouse", "--json")
    assert (code, values["problems"]) == (0, 0)
    assert {finding["level"] for finding in values["findings"]} == {"ok", "warning"}
    code, out = drift("doctor", "--no-clickhouse")
    assert code == 0 and out.splitlines()[-1].startswith("0 problems, ")
    values_of = settings.kafka.model_copy(update={"bootstrap": "127.0.0.1:1"})
    write_config(settings.model_copy(update={"kafka": values_of}), config)
    code, out = drift("doctor", "--quick", "--no-clickhouse")
    assert code == 1 and "problem brokers: no Kafka at 127.0.0.1:1" in out
