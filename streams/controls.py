"""What stands in the topic of controls, for the commands that write there. Does I/O: reads and writes Kafka."""

from collections.abc import Mapping

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.kafka_clients import make_producer
from streams.result import short
from streams.topic_reading import consuming, read_to_end, topic_counts


async def read_controls(settings: Settings, tenant: str, kind: str) -> dict[str, bytes]:
    """Return the latest values of a tenant's controls of one kind, by id; removed ones are left out.

    Raises:
        ConfigurationError: the topic does not exist or cannot be read.
    """
    topic = settings.topics.name("drift_controls")
    count = (await topic_counts(settings, [topic])).get(topic)
    if count is None:
        raise ConfigurationError(f"topic {topic} does not exist: a worker makes it, or `drift topics`")
    prefix = _key(tenant, kind, "")
    # Of one key all records are in one partition, in order; a producer that puts them elsewhere is not ours.
    latest: dict[str, bytes] = {}
    async with consuming(settings, "controls") as consumer:
        async for record in read_to_end(consumer, [TopicPartition(topic, number) for number in range(count)], None):
            if record.key is not None and record.key.startswith(prefix):
                latest[record.key[len(prefix) :].decode(errors="replace")] = record.value or b""
    return {name: latest[name] for name in sorted(latest) if latest[name]}


async def write_controls(settings: Settings, tenant: str, kind: str, values: Mapping[str, bytes]) -> None:
    """Write a tenant's controls of one kind by id, in order, each once the one before is written; empty ones remove.

    Raises:
        ConfigurationError: the broker does not take one.
    """
    topic = settings.topics.name("drift_controls")
    producer = make_producer(settings.kafka)
    try:
        await producer.start()
        for name, value in values.items():
            await producer.send_and_wait(topic, value or None, key=_key(tenant, kind, name))
    except KafkaError as error:
        raise ConfigurationError(f"{topic} does not take it: {type(error).__name__}: {short(str(error))}") from error
    finally:
        await producer.stop()


def _key(tenant: str, kind: str, name: str) -> bytes:
    return f"{tenant}:{kind}:{name}".encode()
