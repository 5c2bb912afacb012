"""Topics on real brokers: what is made, what is refused, what a broker really does with a topic's settings."""

import asyncio
import time
from collections.abc import Callable

import pytest

from schemas.errors import ConfigurationError
from schemas.settings import FlowTopic, KafkaSettings, Settings, TopicSettings
from schemas.topics import FOLLOWS_TENANTS, INTERNAL_AND_PUBLIC
from streams.kafka_clients import make_admin, make_consumer, make_producer
from streams.topics import ensure_topics, partition_counts, planned_topics, timestamp_type

pytestmark = pytest.mark.kafka
MakeSettings = Callable[..., Settings]


@pytest.fixture(params=["apache_kafka", "tansu_bootstrap"])
def bootstrap(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(request.param)
    return address


async def test_topics_are_made_once_with_their_partitions(bootstrap: str, settings_for: MakeSettings) -> None:
    settings = settings_for(bootstrap, partitions=5)

    made = await ensure_topics(settings)

    expected = dict.fromkeys((settings.topics.name(topic.role) for topic in INTERNAL_AND_PUBLIC), 5)
    expected[settings.topics.name("dead_letter")] = 3
    expected[settings.topics.name("audit")] = 1
    expected[settings.flows[0].topic] = 5
    assert made == expected
    assert await ensure_topics(settings) == made


async def test_workers_that_start_together_agree(bootstrap: str, settings_for: MakeSettings) -> None:
    settings = settings_for(bootstrap)

    first, *others = await asyncio.gather(*(ensure_topics(settings) for _ in range(4)))

    assert all(other == first for other in others)


async def test_another_partition_count_is_refused_for_ours_and_accepted_for_sources(
    bootstrap: str, settings_for: MakeSettings
) -> None:
    settings = settings_for(bootstrap, partitions=4)
    await ensure_topics(settings)
    changed = settings.topics.model_copy(update={"partitions": 6})

    with pytest.raises(ConfigurationError, match=r"has 4 partitions, the settings ask for 6: .*fixed for ever"):
        await ensure_topics(settings.model_copy(update={"topics": changed}))

    renamed = changed.model_copy(update={"names": {role: f"{name}-v2" for role, name in changed.names.items()}})
    made = await ensure_topics(settings.model_copy(update={"topics": renamed}))
    assert made[settings.flows[0].topic] == 4
    assert made[renamed.name("tenant_log")] == 6


async def test_counting_makes_no_topic(bootstrap: str, unique_name: str) -> None:
    admin = make_admin(KafkaSettings(bootstrap=bootstrap))
    await admin.start()
    try:
        assert await partition_counts(admin, [unique_name]) == {}
        assert unique_name not in await admin.list_topics()
    finally:
        await admin.close()


async def test_the_log_is_stamped_by_the_broker(apache_kafka: str, settings_for: MakeSettings) -> None:
    settings = settings_for(apache_kafka)
    await ensure_topics(settings)
    tenant_log, flows = settings.topics.name("tenant_log"), settings.flows[0].topic
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        assert await timestamp_type(admin, tenant_log) == "LogAppendTime"
        assert await timestamp_type(admin, flows) == "CreateTime"
    finally:
        await admin.close()
    # Not longer ago: retention goes by this time, and could take the record away before it is read.
    hour_ago_ms = time.time_ns() // 1_000_000 - 3_600_000
    assert await _stamp(settings, tenant_log, hour_ago_ms) > hour_ago_ms + 1_800_000
    assert await _stamp(settings, flows, hour_ago_ms) == hour_ago_ms


async def test_records_of_the_declared_size_pass(bootstrap: str, settings_for: MakeSettings) -> None:
    settings = settings_for(bootstrap)
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"compression": "none"})})
    await ensure_topics(settings)
    producer = make_producer(settings.kafka)
    await producer.start()
    try:
        for role in ("tenant_log", "graph_windows", "state"):
            await producer.send_and_wait(settings.topics.name(role), bytes(1_900_000), key=b"k")
    finally:
        await producer.stop()


async def test_what_the_broker_refuses_is_said_in_one_line(apache_kafka: str, settings_for: MakeSettings) -> None:
    settings = settings_for(apache_kafka)
    topics = settings.topics.model_copy(update={"replication": 3})

    with pytest.raises(
        ConfigurationError, match=r"refuses to make topic .*InvalidReplicationFactor.*change topics"
    ) as caught:
        await ensure_topics(settings.model_copy(update={"topics": topics}))

    assert "\n" not in str(caught.value)


def test_every_declared_topic_is_planned_once() -> None:
    replay = FlowTopic(topic="flows-replay")
    planned = {topic.name: topic for topic in planned_topics(Settings(flows=(FlowTopic(), replay)))}

    assert {topic.default_name for topic in INTERNAL_AND_PUBLIC} | {"flows"} == set(planned)
    assert {planned[topic.default_name].partitions for topic in FOLLOWS_TENANTS} == {12}
    assert planned["flows-dead-letter"].partitions == 3
    assert planned["flows-replay"].is_fixed and not planned["flows"].is_fixed
    assert planned["flows"].config == {"max.message.bytes": str(8 * 1024 * 1024)}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(topics=TopicSettings(names={"state": "x", "replay": "x"})), "two roles have the name 'x'"),
        (Settings(flows=(FlowTopic(topic="tenant-log"),)), "cannot be a source of flows"),
    ],
)
def test_names_that_would_feed_us_our_own_records_are_refused(settings: Settings, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        planned_topics(settings)


async def _stamp(settings: Settings, topic: str, timestamp_ms: int) -> int:
    """Return the timestamp a record has when it comes back."""
    producer = make_producer(settings.kafka)
    consumer = make_consumer(settings.kafka, topic)
    await producer.start()
    await consumer.start()
    try:
        await producer.send_and_wait(topic, b"x", timestamp_ms=timestamp_ms)
        record = await asyncio.wait_for(consumer.getone(), 120)
        return int(record.timestamp)
    finally:
        await consumer.stop()
        await producer.stop()
