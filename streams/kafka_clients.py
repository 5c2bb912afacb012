"""Every Kafka client of ours, made from one set of settings: aiokafka's and Faust's. Makes clients; starts none."""

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from faust.auth import OAuthCredentials

from schemas.settings import KafkaSettings
from streams.kafka_check import check_connection as check_connection
from streams.kafka_security import client_arguments as client_arguments
from streams.kafka_security import uses_sasl

MAX_REQUEST_BYTES = 2 * 1024 * 1024
MAX_BATCH_BYTES = 256 * 1024
LINGER_MS = 5
FAUST_REQUEST_TIMEOUT_S = 90.0
METADATA_AT_LEAST_S = 0.1


def faust_broker(settings: KafkaSettings, scheme: str = "kafka") -> dict[str, Any]:
    """Return the settings of a `faust.App` that say where the brokers are and how to log in.

    Args:
        scheme: name of the Faust transport.

    Raises:
        ConfigurationError: the settings do not fit together, or a certificate cannot be read.
    """
    arguments = client_arguments(settings)
    context = arguments.get("ssl_context")
    hosts = [part.strip() for part in settings.bootstrap.split(",") if part.strip()]
    session_s = settings.session_timeout_ms / 1000
    app: dict[str, Any] = {
        "broker": [f"{scheme}://{host}" for host in hosts],
        "broker_client_id": settings.client_id,
        "broker_session_timeout": session_s,
        # The others notice by their heartbeat that somebody joined or is gone.
        "broker_heartbeat_interval": min(3.0, session_s / 6),
        "broker_rebalance_timeout": settings.rebalance_timeout_ms / 1000,
        "broker_request_timeout": max(FAUST_REQUEST_TIMEOUT_S, session_s + 10),  # Faust wants it above the session's
        "producer_compression_type": compression(settings),
    }
    if settings.sasl_mechanism == "OAUTHBEARER":
        app["broker_credentials"] = OAuthCredentials(
            oauth_cb=arguments["sasl_oauth_token_provider"], ssl_context=context
        )
    elif uses_sasl(settings):
        app["broker_credentials"] = faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            ssl_context=context,
            mechanism=settings.sasl_mechanism,
        )
    elif context is not None:
        app["broker_credentials"] = faust.SSLCredentials(context)
    return app


def compression(settings: KafkaSettings) -> str | None:
    """Return the codec as aiokafka and Faust name it; ``None`` is none."""
    return None if settings.compression == "none" else settings.compression


def make_producer(settings: KafkaSettings, **changes: Any) -> AIOKafkaProducer:
    """Return a producer, not yet started, whose acknowledgement means written by all replicas in sync.

    It is not idempotent: repeats are harmless by design, and Tansu refuses aiokafka's InitProducerId. ``changes`` win.
    Call it in the event loop that will use it.

    Raises:
        ConfigurationError: see `client_arguments`.
    """
    arguments = client_arguments(settings) | {
        "acks": "all",
        "compression_type": compression(settings),
        "linger_ms": LINGER_MS,
        "max_batch_size": MAX_BATCH_BYTES,
        "max_request_size": MAX_REQUEST_BYTES,
    }
    producer = AIOKafkaProducer(**(arguments | changes))
    pace_metadata_updates(producer.client)
    return producer


def pace_metadata_updates(client: Any, at_least_s: float = METADATA_AT_LEAST_S) -> None:
    """Have an aiokafka client ask for metadata anew at most once in ``at_least_s``; the first time at once.

    Its fetcher and sender ask as soon as the last answer is there, for as long as a partition has no leader: a thousand
    times a second, with two lines in the log each, until the broker is back.
    """
    force = client.force_metadata_update
    pending: asyncio.Future[Any] | None = None
    last_s = -at_least_s

    async def update() -> Any:
        nonlocal last_s
        await asyncio.sleep(max(0.0, last_s + at_least_s - monotonic()))
        last_s = monotonic()
        return await force()

    def paced() -> Awaitable[Any]:
        nonlocal pending
        if pending is None or pending.done():
            pending = asyncio.ensure_future(update())
        return asyncio.shield(pending)

    client.force_metadata_update = paced


def make_consumer(
    settings: KafkaSettings, *topics: str, group_id: str | None = None, **changes: Any
) -> AIOKafkaConsumer:
    """Return a consumer, not yet started, that begins at the log's start and commits nothing by itself.

    Call it in the event loop that will use it. ``changes`` win.

    Raises:
        ConfigurationError: see `client_arguments`.
    """
    arguments = client_arguments(settings) | {
        "group_id": group_id,
        "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
        "session_timeout_ms": settings.session_timeout_ms,
        "rebalance_timeout_ms": settings.rebalance_timeout_ms,
    }
    return AIOKafkaConsumer(*topics, **(arguments | changes))


def make_admin(settings: KafkaSettings, **changes: Any) -> AIOKafkaAdminClient:
    """Return an admin client, not yet started.

    Raises:
        ConfigurationError: see `client_arguments`.
    """
    return AIOKafkaAdminClient(**(client_arguments(settings) | changes))
