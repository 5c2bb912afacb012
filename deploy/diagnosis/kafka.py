"""Asks Kafka what `drift doctor` judges. Does I/O, and writes nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)

from deploy.diagnosis.finding import Finding, ok, problem
from deploy.diagnosis.offsets import LogRange, Where, judge_clock, judge_group, judge_sources, judge_state
from deploy.diagnosis.state import Stored, judge_saved, read_saved
from deploy.diagnosis.topics import judge_topics
from schemas.errors import ConfigurationError, WireFormatError
from schemas.settings import Settings
from schemas.tenant_log import decode_record
from streams.kafka_clients import check_connection, make_admin, make_consumer
from streams.topics import TopicFacts, planned_topics, topic_facts

T = TypeVar("T")
READ_S = 10.0
_NOT_NOW = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
BROKER_STAMPED = 1


async def diagnose_kafka(settings: Settings, now_ms: int, quick: bool) -> list[Finding]:
    """Return findings about brokers, topics, offsets, the group, the saved state and clocks.

    Args:
        quick: the saved state is not read.
    """
    try:
        planned = planned_topics(settings)
        await check_connection(settings.kafka)
    except ConfigurationError as error:
        return [problem("brokers", str(error), "then run `drift doctor` again")]
    findings = [ok("brokers", f"{settings.kafka.bootstrap} lets us in")]
    admin, consumer = make_admin(settings.kafka), make_consumer(settings.kafka)
    await admin.start()
    await consumer.start()
    try:
        found = await topic_facts(admin, [topic.name for topic in planned])
        findings += judge_topics(settings, planned, found)
        findings += await _group(admin, settings)
        findings += await _offsets(admin, consumer, settings, found, now_ms, quick)
    except KafkaError as error:
        findings.append(
            problem("brokers", f"stopped answering ({type(error).__name__})", "check their health and ACLs")
        )
    except ConfigurationError as error:
        findings.append(problem("topics", str(error), "then run `drift doctor` again"))
    finally:
        await consumer.stop()
        await admin.close()
    return findings


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the answer is "not now": a new cluster makes its topic of offsets when first asked for one.

    Raises:
        KafkaError: it has not answered in time, or refuses.
    """
    ends_s = asyncio.get_running_loop().time() + READ_S
    while True:
        try:
            return await ask()
        except _NOT_NOW:
            if asyncio.get_running_loop().time() > ends_s:
                raise
        await asyncio.sleep(0.2)


async def _group(admin: AIOKafkaAdminClient, settings: Settings) -> list[Finding]:
    name = settings.worker.group

    async def described() -> tuple[str, int]:
        [response] = await admin.describe_consumer_groups([name])
        [group] = response.to_object()["groups"]
        if group["error_code"]:
            raise for_code(group["error_code"])(name)
        return str(group["state"]), len(group["members"])

    try:
        return [judge_group(name, *await _patiently(described))]
    except GroupAuthorizationFailedError:
        return [problem(f"group {name}", "may not be described", "grant DESCRIBE on the group")]


async def _offsets(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    settings: Settings,
    found: dict[str, TopicFacts],
    now_ms: int,
    quick: bool,
) -> list[Finding]:
    sources = {flow.topic: str(flow.start) for flow in settings.flows if flow.topic in found}
    log, state = settings.topics.name("tenant_log"), settings.topics.name("state")
    logs = await _ranges(consumer, [(name, n) for name in (*sources, log) if name in found for n in _all(found, name)])
    committed = await _committed(admin, settings.worker.group, [where for where in logs if where[0] != log])
    findings = judge_sources(sources, logs, committed, settings.worker.accept_loss)
    if log not in found:
        return findings
    if not quick and (settings.worker.state_directory is not None or state in found):
        saved = await read_saved(settings, found[log].partitions, partial(make_consumer, settings.kafka))
        findings += judge_saved(saved, settings, now_ms)
        if not any(isinstance(one, str) for one in saved.values()):
            current = {
                number: one.offset + 1
                for number, one in saved.items()
                if isinstance(one, Stored) and one.incarnation == settings.topics.incarnation
            }
            findings += judge_state(log, logs, current)
    clock = judge_clock("clocks of workers and broker", await _clock_differences(consumer, log, logs))
    return findings if clock is None else [*findings, clock]


def _all(found: dict[str, TopicFacts], topic: str) -> range:
    return range(found[topic].partitions)


async def _ranges(consumer: AIOKafkaConsumer, wanted: Iterable[Where]) -> dict[Where, LogRange]:
    tps = [TopicPartition(*where) for where in wanted]
    first, end = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    return {(tp.topic, tp.partition): LogRange(first[tp], end[tp]) for tp in tps}


async def _committed(admin: AIOKafkaAdminClient, group: str, wanted: Iterable[Where]) -> dict[Where, int | None]:
    tps = [TopicPartition(*where) for where in wanted]
    if not tps:
        return {}
    found = await _patiently(lambda: admin.list_consumer_group_offsets(group, partitions=tps))
    return {(tp.topic, tp.partition): at.offset if at.offset >= 0 else None for tp, at in found.items()}


async def _clock_differences(consumer: AIOKafkaConsumer, log: str, logs: dict[Where, LogRange]) -> list[int]:
    """Compare when workers say they wrote the last record of each partition with the broker's stamp on it.

    Kafka has no request for its time; records that the broker stamps say it. Each difference holds the time of one
    request as well, so the least of them is nearest to the truth.
    """
    last = {TopicPartition(*where): at.end - 1 for where, at in logs.items() if where[0] == log and at.end > at.first}
    differences: list[int] = []
    if not last:
        return differences
    consumer.assign(list(last))
    for tp, offset in last.items():
        consumer.seek(tp, offset)
    try:
        async with asyncio.timeout(READ_S):
            while last:
                for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                    last.pop(tp, None)
                    differences += [
                        record.timestamp - decode_record(record.value).as_of_ms
                        for record in records
                        if record.timestamp_type == BROKER_STAMPED and record.value is not None
                    ]
    except (TimeoutError, WireFormatError):
        pass  # a clock that cannot be told is no finding
    return differences
