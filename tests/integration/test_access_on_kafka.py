"""Accounts in `drift-controls` and audit records in `drift-audit`, on a real broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from api.security.directory import Directory, Revocation
from api.security.principal import Role
from schemas.access_records import ACCOUNT, REVOCATION, RecordsUnavailable
from schemas.audit import AuditRecord, decode_audit
from schemas.settings import Settings
from streams.audit_log import KafkaAuditLog
from streams.control_log import KafkaControlLog
from streams.kafka_clients import make_consumer, make_producer
from streams.topics import ensure_topics
from tests.access import Doors

pytestmark = pytest.mark.kafka
TOKEN = "0123456789abcdef"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[tuple[KafkaControlLog, Directory]]:
    """An API process, as far as records go, that has read what was there."""
    log, directory = KafkaControlLog(settings), Directory()
    await log.start(directory.apply)
    try:
        async with asyncio.timeout(30):
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
