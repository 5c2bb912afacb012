"""Our topics on the broker: made if missing, refused if they have another partition count. Does I/O: admin requests."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from schemas.topics import DRIFT_CONTROLS, FOLLOWS_TENANTS, INTERNAL_AND_PUBLIC, REPLAY, TopicDeclaration
from streams.kafka_clients import check_connection, make_admin

DEADLINE_S = 30.0
DEAD_LETTER_PARTITIONS = 3
"""Dead letters are few and have no order to keep: more partitions than this only cost."""
POLL_S = 0.1
_UNKNOWN_TOPIC, _LEADER_NOT_AVAILABLE = 3, 5


@dataclass(frozen=True, slots=True)
class PlannedTopic:
    """A topic as it has to be.

    Attributes:
        is_fixed: it is ours, and its partition count may never change.
    """

    name: str
    partitions: int
    config: dict[str, str]
    is_fixed: bool


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as it is.

    Attributes:
        replicas: the least of any partition. leaderless: partitions that cannot be read or written now.
        config: as the broker has it, defaults included.
    """

    partitions: int
    replicas: int
    leaderless: tuple[int, ...]
    config: dict[str, str]

    @property
    def timestamp_type(self) -> str:
        """Who sets a record's timestamp, as configured."""
        return self.config.get("message.timestamp.type", "CreateTime")


def planned_topics(settings: Settings) -> list[PlannedTopic]:
    """Return our topics and the source topics, each once. Pure.

    Raises:
        ConfigurationError: two of our topics share a name, or a source has the name of one of ours.
    """
    planned: dict[str, PlannedTopic] = {}
    for declaration in INTERNAL_AND_PUBLIC:
        name = settings.topics.name(declaration.role)
        if name in planned:
            raise ConfigurationError(f"topics.names: two roles have the name {name!r}; give each its own")
        planned[name] = PlannedTopic(name, _partitions(declaration, settings), dict(declaration.config), is_fixed=True)
    for flow in settings.flows:
        if flow.topic in planned and flow.topic != settings.topics.name(REPLAY.role):
            raise ConfigurationError(
                f"flows: {flow.topic!r} is a topic that we write to; it cannot be a source of flows"
            )
        config = {"max.message.bytes": str(flow.max_message_bytes)}
        planned.setdefault(flow.topic, PlannedTopic(flow.topic, settings.topics.partitions, config, is_fixed=False))
    return list(planned.values())


async def ensure_topics(settings: Settings) -> dict[str, int]:
    """Make the topics that are missing and wait until all have leaders; returns partition counts by name.

    Topics that exist keep their configuration. Several workers may call it at the same time.

    Raises:
        ConfigurationError: the broker cannot be reached, one of our topics has another partition count, or the broker
            refuses to make a topic.
    """
    await check_connection(settings.kafka)
    planned = planned_topics(settings)
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        counts = await partition_counts(admin, [topic.name for topic in planned])
        _refuse_changed(planned, counts)
        missing = [topic for topic in planned if topic.name not in counts]
        if missing:
            await _create(admin, missing, settings.topics.replication)
            counts = await _wait_for(admin, planned)
            _refuse_changed(planned, counts)  # another worker, with other settings, may have been first
        return counts
    except KafkaError as error:
        raise ConfigurationError(
            f"topics cannot be made: {type(error).__name__}: try again, or make them yourself"
        ) from error
    finally:
        await admin.close()


async def partition_counts(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    """Return how many partitions each of the topics has; topics that do not exist are left out, and are not made.

    Raises:
        ConfigurationError: we may not see one of them.
        KafkaError: the broker does not answer, or cannot say now.
    """
    return {name: len(partitions) for name, partitions in (await _describe(admin, names)).items()}


async def topic_facts(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, TopicFacts]:
    """Return how topics are; those that do not exist are left out, and are not made.

    Raises:
        ConfigurationError: we may not see one of them.
        KafkaError: the broker does not answer, or cannot say now.
    """
    found = {}
    for name, partitions in (await _describe(admin, names)).items():
        leaderless = tuple(sorted(part["partition"] for part in partitions if part["leader"] < 0))
        replicas = min((len(part["replicas"]) for part in partitions), default=0)
        found[name] = TopicFacts(len(partitions), replicas, leaderless, await topic_config(admin, name))
    return found


async def timestamp_type(admin: AIOKafkaAdminClient, topic: str) -> str:
    """Return ``LogAppendTime`` or ``CreateTime``: who sets a record's timestamp, as the topic is configured.

    Tansu keeps the setting without obeying it: there, only a record's own ``timestamp_type`` tells.

    Raises:
        KafkaError: the topic does not exist or may not be described.
    """
    return (await topic_config(admin, topic)).get("message.timestamp.type", "CreateTime")


async def topic_config(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """Return a topic's configuration as the broker has it, defaults included; what has no value is left out.

    Raises:
        KafkaError: the topic does not exist or may not be described.
    """
    # the whole configuration: Tansu closes the connection on a request for one key
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    found: dict[str, str] = {}
    for response in responses:
        for code, message, _, _, entries in response.resources:
            if code:
                raise for_code(code)(message)
            found.update((str(entry[0]), str(entry[1])) for entry in entries if entry[1])
    return found


def _partitions(declaration: TopicDeclaration, settings: Settings) -> int:
    if declaration in (*FOLLOWS_TENANTS, REPLAY, DRIFT_CONTROLS):
        return settings.topics.partitions
    return declaration.partitions or min(DEAD_LETTER_PARTITIONS, settings.topics.partitions)


def _refuse_changed(planned: Sequence[PlannedTopic], counts: dict[str, int]) -> None:
    for topic in planned:
        count = counts.get(topic.name, topic.partitions)
        if topic.is_fixed and count != topic.partitions:
            raise ConfigurationError(
                f"topic {topic.name} has {count} partitions, the settings ask for {topic.partitions}: "
                "set topics.partitions back, or give our topics new names (topics.names); the count is fixed for ever"
            )


async def _describe(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, list[Any]]:
    """Return the partitions of the topics that exist.

    Asked below the public API, because the admin client's own request lets a broker make the topics that are missing.
    """
    request = MetadataRequest(sorted(set(names)), allow_auto_topic_creation=False)
    response = (await admin._send_request(request)).to_object()
    found = {}
    for topic in response["topics"]:
        code = topic["error_code"]
        if code == _UNKNOWN_TOPIC:
            continue
        if code and code != _LEADER_NOT_AVAILABLE:
            error = for_code(code)
            raise ConfigurationError(
                f"topic {topic['topic']} cannot be described ({error.__name__}): check its name and the broker's ACLs"
            )
        found[topic["topic"]] = topic["partitions"]
    return found


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[PlannedTopic], replication: int) -> None:
    new = [NewTopic(topic.name, topic.partitions, replication, topic_configs=topic.config) for topic in topics]
    response = await admin.create_topics(new, timeout_ms=int(DEADLINE_S * 1000))
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            said = next((f": {text}" for text in message if text), "")
            raise ConfigurationError(
                f"the broker refuses to make topic {name} ({error.__name__}{said}): change topics.* or make it yourself"
            )


async def _wait_for(admin: AIOKafkaAdminClient, planned: Sequence[PlannedTopic]) -> dict[str, int]:
    """Poll until each topic is there and all its partitions have a leader."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = await _describe(admin, [topic.name for topic in planned])
                leaders = [partition["leader"] for partitions in found.values() for partition in partitions]
                if len(found) == len(planned) and min(leaders) >= 0:
                    return {name: len(partitions) for name, partitions in found.items()}
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise ConfigurationError(
            f"new topics have no leaders after {DEADLINE_S:g} s: check the brokers' health"
        ) from None
