"""Accounts in `drift-controls` and audit records in `drift-audit`, on a real broker."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from api.security.directory import Directory, Revocation
from api.security.passwords import Passwords
from api.security.principal import Role
from deploy.cli import cli
from deploy.commands import accounts
from schemas.access_records import ACCOUNT, REVOCATION, RecordsUnavailable
from schemas.audit import AuditRecord, decode_audit
from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams import audit_log, control_log
from streams.audit_log import KafkaAuditLog
from streams.control_log import KafkaControlLog
from streams.kafka_clients import make_consumer, make_producer
from streams.topics import ensure_topics
from tests.access import Doors

pytestmark = pytest.mark.kafka
TOKEN = "0123456789abcdef"
DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no broker that is away: nothing is given up while a test can wait."""
    monkeypatch.setattr(control_log, "WRITE_TIMEOUT_S", DEADLINE_S)
    monkeypatch.setattr(control_log, "STOP_WITHIN_S", DEADLINE_S)
    monkeypatch.setattr(audit_log, "STOP_WITHIN_S", DEADLINE_S)
    monkeypatch.setattr(accounts, "_READ_WITHIN_S", DEADLINE_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[tuple[KafkaControlLog, Directory]]:
    """An API process, as far as records go, that has read what was there."""
    log, directory = KafkaControlLog(settings), Directory()
    await log.start(directory.apply)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await log.wait_caught_up()
        yield log, directory
    finally:
        await log.stop()


async def test_every_process_knows_what_one_has_written(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    doors = Doors()
    doors.account("acme", "ann", Role.ADMIN)
    ((*_, account),) = doors.log.records
    async with process(settings) as (first, mine), process(settings) as (_, others):
        await first.write("acme", ACCOUNT, "ann", account)
        assert ("acme", "ann") in mine.accounts  # at once
        await until(lambda: ("acme", "ann") in others.accounts)
        await first.write("acme", REVOCATION, TOKEN, msgspec.json.encode(Revocation(5)))
        await first.write("acme", ACCOUNT, "ann", None)
        assert not mine.accounts
        await until(lambda: not others.accounts)
    async with process(settings) as (_, later):
        assert (later.accounts, later.revoked) == ({}, {("acme", TOKEN): 5})


async def test_records_of_others_and_garbage_are_passed_over(
    kafka_bootstrap: str, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(kafka_bootstrap)
    await ensure_topics(settings)
    producer = make_producer(settings.kafka)
    await producer.start()
    topic = settings.topics.name("drift_controls")
    for key, value in (
        (b"acme:whitelist:1", b"{}"),
        (b"acme", b"x"),
        (b"acme:account:x", b"{"),
        (b"\xff:a:b", b""),
    ):
        await producer.send_and_wait(topic, value=value, key=key, partition=0)
    await producer.stop()
    async with process(settings) as (_, directory):
        assert (directory.accounts, directory.unreadable) == ({}, 1)


async def test_an_older_record_read_late_does_not_undo_an_own_write(settings_for: Callable[..., Settings]) -> None:
    log, seen = KafkaControlLog(settings_for("127.0.0.1:1")), []
    log._apply = lambda *record: seen.append(record[3])
    log._ahead[b"acme:account:ann"] = 7
    for offset, value in ((5, b"older"), (7, b"own"), (8, b"newer")):
        log._take_one(b"acme:account:ann", value, offset)
    assert seen == [b"newer"] and not log._ahead


async def test_without_kafka_nobody_is_let_in_and_nothing_is_written(settings_for: Callable[..., Settings]) -> None:
    log = KafkaControlLog(settings_for("127.0.0.1:1"))
    await log.start(Directory().apply)
    try:
        assert not log.is_caught_up
        with pytest.raises(RecordsUnavailable):
            await log.write("acme", ACCOUNT, "ann", b"{}")
    finally:
        await log.stop()


class Unstoppable:
    """A producer that waits for a broker that is away."""

    async def stop(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("module", [control_log, audit_log])
async def test_a_stop_does_not_wait_for_a_broker_that_is_away(
    settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    monkeypatch.setattr(module, "STOP_WITHIN_S", 0.01)
    logs: dict[Any, Any] = {control_log: KafkaControlLog, audit_log: KafkaAuditLog}
    log = logs[module](settings_for("127.0.0.1:1"))
    log._producer = Unstoppable()
    async with asyncio.timeout(DEADLINE_S):
        await log.stop()


def drift(config: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["--config", str(config), "accounts", *arguments])


async def test_the_operator_makes_the_first_account_of_a_tenant(
    kafka_bootstrap: str, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    settings, config = settings_for(kafka_bootstrap), tmp_path / "drift.yaml"
    topics = settings.topics.model_dump(mode="json")
    config.write_text(yaml.safe_dump({"kafka": {"bootstrap": kafka_bootstrap}, "topics": topics}))

    made = await asyncio.to_thread(drift, config, "add", "ann", "--tenant", "acme", "--role", "admin", "--json")
    assert made.exit_code == 0, made.output
    password = json.loads(made.stdout)["one_time_password"]
    async with process(settings) as (_, directory):
        account = directory.accounts["acme", "ann"]
        assert account.must_change and await Passwords().verify(account.password_hash, password)
        assert len(directory.accounts) == 1  # no first administrator of another tenant

    listed = await asyncio.to_thread(drift, config, "list", "--tenant", "acme")
    assert listed.stdout == "ann\tadmin\tone-time password\n"
    for arguments, said in (
        (("add", "ann", "--tenant", "acme"), "There is an account ann already"),
        (("add", "a b", "--tenant", "acme"), "a name has 1 to 64"),
        (("add", "ann", "--tenant", "a:b"), "without colons"),
        (("remove", "ann", "--tenant", "acme"), "another account administrator"),
        (("remove", "bob", "--tenant", "acme"), "does not exist"),
    ):
        refused = await asyncio.to_thread(drift, config, *arguments)
        assert isinstance(refused.exception, ConfigurationError) and said in str(refused.exception)
    await asyncio.to_thread(drift, config, "add", "bob", "--tenant", "acme", "--role", "admin")
    assert (await asyncio.to_thread(drift, config, "remove", "ann", "--tenant", "acme")).exit_code == 0
    listed = await asyncio.to_thread(drift, config, "list", "--tenant", "acme", "--json")
    assert [json.loads(line)["account"] for line in listed.stdout.splitlines()] == ["bob"]


async def test_audit_records_reach_their_topic(kafka_bootstrap: str, settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(kafka_bootstrap)
    await ensure_topics(settings)
    log = KafkaAuditLog(settings)
    await log.start()
    records = [AuditRecord(f"{number}", "acme", number, "login:ann", "session.login", "done") for number in range(3)]
    for record in records:
        log.take(record)
    await log.stop()
    topic = settings.topics.name("audit")
    assert log.ends == {(topic, 0): 3}
    consumer = make_consumer(settings.kafka, topic)
    await consumer.start()
    try:
        found = [decode_audit((await consumer.getone()).value) for _ in records]
    finally:
        await consumer.stop()
    assert found == records
