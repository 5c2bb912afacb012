"""Whether brokers take idempotent producers: with one, a repeated request writes no record twice. Does I/O."""

from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.transaction import InitProducerIdRequest

from schemas.settings import KafkaSettings
from streams.kafka_clients import make_admin

_TIMEOUT_MS = 60_000


async def supports_idempotence(settings: KafkaSettings) -> bool:
    """Ask for a producer id once. Apache Kafka gives one; Tansu refuses aiokafka's request, and ACLs may."""
    admin = make_admin(settings)
    await admin.start()
    try:
        response = await admin._send_request(InitProducerIdRequest(None, _TIMEOUT_MS))
        return for_code(response.error_code) is NoError
    except KafkaError:
        return False  # the request is not known, or the connection was closed on it
    finally:
        await admin.close()
