"""Kafka as people run it: TLS, mutual TLS, SCRAM, PLAIN, OAUTHBEARER, for every client of ours, on Apache Kafka."""

import asyncio
import base64
import json
import logging
import socketserver
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faust
import pytest
import yaml
from aiokafka.admin import NewTopic

from schemas.errors import ConfigurationError
from schemas.settings import KafkaSettings, load_settings
from streams import kafka_check
from streams.kafka_clients import check_connection, faust_broker, make_admin, make_consumer, make_producer
from streams.kafka_security import validate
from tests.brokers import PASSWORD, ROOT, USER
from tests.certificates import CLIENT_KEY_PASSWORD

pytestmark = pytest.mark.kafka
DEADLINE_S = 120
CLIENT_ID, CLIENT_SECRET = "drift & co", "s3cr:t/%"  # needs the form encoding of RFC 6749, section 2.3.1


@dataclass
class TokenIssuer:
    """A token endpoint that hands out unsecured JWS, which Kafka's built-in validator takes."""

    url: str = ""
    claims: dict[str, object] = field(default_factory=lambda: {"sub": "drift"})
    requests: list[dict[str, list[str]]] = field(default_factory=list)

    def answer(self, authorization: str, form: str) -> tuple[int, dict[str, object]]:
        self.requests.append(urllib.parse.parse_qs(form))
        name, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if (urllib.parse.unquote_plus(name), urllib.parse.unquote_plus(secret)) != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        claims = {"iat": time.time(), "exp": time.time() + 300} | self.claims
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({"alg": "none"}, claims)]
        return 200, {"access_token": ".".join(part.rstrip("=") for part in parts) + ".", "expires_in": 300}


@pytest.fixture
def issuer() -> Iterator[TokenIssuer]:
    made = TokenIssuer()

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, body = made.answer(self.headers["Authorization"], form)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}/token"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


@pytest.fixture
def ways(
    apache_kafka_listeners: dict[str, str], certificates: Path, issuer: TokenIssuer
) -> dict[str, dict[str, object]]:
    """Settings by the way of connecting, as docs/kafka-security.md shows them."""
    at, authority = apache_kafka_listeners, {"ssl_ca_file": certificates / "ca.pem"}
    client = {"ssl_cert_file": certificates / "client.pem"}
    login: dict[str, object] = {"sasl_username": USER, "sasl_password": PASSWORD}
    scram = {"bootstrap": at["SCRAM"], "security_protocol": "SASL_SSL", **authority, **login}
    mutual = {"bootstrap": at["MUTUAL"], "security_protocol": "SSL", **authority, **client}
    return {
        "plaintext": {"bootstrap": at["PLAINTEXT"]},
        "tls": {"bootstrap": at["TLS"], "security_protocol": "SSL", **authority},
        "mutual-tls": mutual | {"ssl_key_file": certificates / "client.key"},
        "mutual-tls-encrypted-key": mutual
        | {"ssl_key_file": certificates / "client-encrypted.key", "ssl_key_password": CLIENT_KEY_PASSWORD},
        "scram-sha-512": scram | {"sasl_mechanism": "SCRAM-SHA-512"},
        "scram-sha-256": scram | {"sasl_mechanism": "SCRAM-SHA-256"},
        "plain": scram | {"sasl_mechanism": "PLAIN"},
        "scram-without-tls": {
            "bootstrap": at["SCRAM_CLEAR"],
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-512",
            **login,
        },
        "oauthbearer": {
            "bootstrap": at["OAUTH"],
            "security_protocol": "SASL_SSL",
            **authority,
            "sasl_mechanism": "OAUTHBEARER",
            "oauth_token_url": issuer.url,
            "oauth_client_id": CLIENT_ID,
            "oauth_client_secret": CLIENT_SECRET,
            "oauth_scope": "kafka",
        },
    }


WAYS = [
    "plaintext",
    "tls",
    "mutual-tls",
    "mutual-tls-encrypted-key",
    "scram-sha-512",
    "scram-sha-256",
    "plain",
    "scram-without-tls",
    "oauthbearer",
]


@pytest.mark.parametrize("way", WAYS)
async def test_every_client_connects(
    way: str,
    ways: dict[str, dict[str, Any]],
    unique_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = KafkaSettings(**ways[way])
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="aiokafka")  # tests/conftest.py silences it

    await check_connection(settings)
    await _make_topic(settings, unique_name)
    await _produce(settings, unique_name, b"one")
    assert await _consume(settings, unique_name) == b"one"
    assert await _consume_by_faust(settings, unique_name) == b"one"

    for secret in (PASSWORD, CLIENT_SECRET, CLIENT_KEY_PASSWORD, "eyJhbGciOiJub25lIn0", "eyJhbGciOiAibm9uZSJ9"):
        assert secret not in caplog.text


@pytest.mark.parametrize("way", ["plaintext", "tls", "mutual-tls-encrypted-key", "scram-sha-512", "oauthbearer"])
def test_the_documentation_shows_what_is_tested(
    way: str, ways: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "kafka-security.md").read_text(encoding="utf-8")
    section = page.split(f"(`{way}`)")[1].split("## ")[0]
    file = tmp_path / "drift.yaml"
    example = section.split("```yaml\n")[1].split("```")[0]
    file.write_text(example, encoding="utf-8")
    by_file = load_settings(file).kafka
    for line in section.split("```sh\n")[1].split("```")[0].splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    by_environment = load_settings().kafka

    assert by_file == by_environment
    validate(by_file)
    assert set(yaml.safe_load(example)["kafka"]) == set(ways[way])
    for name in ("security_protocol", "sasl_mechanism"):
        assert getattr(by_file, name) == ways[way].get(name, getattr(KafkaSettings(), name))


async def test_one_token_serves_many_connections(
    ways: dict[str, dict[str, Any]], issuer: TokenIssuer, unique_name: str
) -> None:
    settings = KafkaSettings(**ways["oauthbearer"])
    producer = make_producer(settings)
    await _make_topic(settings, unique_name)
    asked = len(issuer.requests)
    await producer.start()  # one connection to bootstrap, another to the broker
    try:
        await producer.send_and_wait(unique_name, b"one")
    finally:
        await producer.stop()

    assert len(issuer.requests) == asked + 1
    assert issuer.requests[-1] == {"grant_type": ["client_credentials"], "scope": ["kafka"]}


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_is_written_and_read(codec: str, apache_kafka: str, unique_name: str) -> None:
    settings = KafkaSettings.model_validate({"bootstrap": apache_kafka, "compression": codec})
    value = b"the same again, " * 1_000
    await _make_topic(settings, unique_name)
    await _produce(settings, unique_name, value)

    assert await _consume(settings, unique_name) == value
    assert await _consume_by_faust(settings, unique_name) == value


@dataclass(frozen=True)
class Wrong:
    """Settings with one mistake, and what the operator reads."""

    way: str
    changes: Callable[[dict[str, str], Path], dict[str, object]]
    complaint: str


WRONG = {
    "TLS asked of a plain listener": Wrong(
        "tls", lambda at, _: {"bootstrap": at["PLAINTEXT"]}, "does not speak TLS: set kafka.security_protocol"
    ),
    "plain asked of a TLS listener": Wrong(
        "plaintext", lambda at, _: {"bootstrap": at["TLS"]}, "speaks TLS: set kafka.security_protocol to SSL"
    ),
    "plain asked of a TLS listener with log-in": Wrong(
        "scram-without-tls", lambda at, _: {"bootstrap": at["SCRAM"]}, "speaks TLS: set kafka.security_protocol"
    ),
    "another authority": Wrong(
        "tls", lambda _, files: {"ssl_ca_file": files / "stranger-ca.pem"}, "is not accepted .*set kafka.ssl_ca_file"
    ),
    "no authority": Wrong("tls", lambda *_: {"ssl_ca_file": None}, "is not accepted .*set kafka.ssl_ca_file"),
    "authority's file missing": Wrong(
        "tls", lambda _, files: {"ssl_ca_file": files / "nowhere.pem"}, "kafka.ssl_ca_file .* cannot be read: No such"
    ),
    "authority's file is no certificate": Wrong(
        "tls", lambda _, files: {"ssl_ca_file": files / "client.key"}, "kafka.ssl_ca_file .*: not a PEM certificate"
    ),
    "another name": Wrong(
        "tls",
        lambda at, _: {"bootstrap": at["TLS"].replace("127.0.0.1", "127.0.0.2")},
        "no Kafka at 127.0.0.2|is not accepted .*connect by a name that is in it",
    ),
    "no client certificate": Wrong(
        "tls", lambda at, _: {"bootstrap": at["MUTUAL"]}, "asks for a client certificate: set kafka.ssl_cert_file"
    ),
    "client certificate of a stranger": Wrong(
        "mutual-tls",
        lambda _, files: {"ssl_cert_file": files / "stranger.pem", "ssl_key_file": files / "stranger.key"},
        "does not accept kafka.ssl_cert_file",
    ),
    "key of another certificate": Wrong(
        "mutual-tls",
        lambda _, files: {"ssl_key_file": files / "stranger.key"},
        "kafka.ssl_key_file does not belong to kafka.ssl_cert_file",
    ),
    "key without its password": Wrong(
        "mutual-tls-encrypted-key", lambda *_: {"ssl_key_password": None}, "needs kafka.ssl_key_password"
    ),
    "wrong password": Wrong(
        "scram-sha-512", lambda *_: {"sasl_password": "wrong"}, "refuses user 'drift-user': check kafka.sasl_username"
    ),
    "wrong PLAIN password": Wrong("plain", lambda *_: {"sasl_password": "wrong"}, "refuses user 'drift-user'"),
    "unknown user": Wrong("scram-sha-512", lambda *_: {"sasl_username": "nobody"}, "refuses user 'nobody'"),
    "mechanism that the broker lacks": Wrong(
        "scram-sha-512", lambda at, _: {"bootstrap": at["OAUTH"]}, "does not offer SCRAM-SHA-512: set kafka.sasl_mech"
    ),
    "log-in where there is none": Wrong(
        "scram-sha-512", lambda at, _: {"bootstrap": at["TLS"]}, "has no log-in: set kafka.security_protocol to SSL"
    ),
    "no log-in over TLS": Wrong(
        "tls", lambda at, _: {"bootstrap": at["SCRAM"]}, r"may want a log-in \(kafka.security_protocol SASL_SSL\)"
    ),
    "no log-in": Wrong(
        "plaintext",
        lambda at, _: {"bootstrap": at["SCRAM_CLEAR"]},
        r"may want a log-in \(kafka.security_protocol SASL_PLAINTEXT\)",
    ),
    "wrong client secret": Wrong(
        "oauthbearer",
        lambda *_: {"oauth_client_secret": "wrong"},
        r"refuses the client: HTTP 401 \(invalid_client\): check kafka.oauth_client_id",
    ),
    "issuer away": Wrong(
        "oauthbearer",
        lambda *_: {"oauth_token_url": "http://127.0.0.1:9/token"},
        "oauth_token_url http://127.0.0.1:9/token cannot be reached",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
async def test_a_mistake_is_named_in_one_line(
    mistake: str,
    ways: dict[str, dict[str, Any]],
    apache_kafka_listeners: dict[str, str],
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_check, "PROBE_S", DEADLINE_S)
    wrong = WRONG[mistake]
    settings = KafkaSettings(**(ways[wrong.way] | wrong.changes(apache_kafka_listeners, certificates)))

    with pytest.raises(ConfigurationError, match=wrong.complaint) as caught:
        await check_connection(settings, timeout_s=DEADLINE_S)

    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value) and CLIENT_SECRET not in str(caught.value)


async def test_a_token_the_broker_refuses_is_named(ways: dict[str, dict[str, Any]], issuer: TokenIssuer) -> None:
    issuer.claims = {"exp": time.time() - 3_600, "sub": "drift"}

    with pytest.raises(ConfigurationError, match=r"refuses the token: check kafka\.oauth_client_id and oauth_scope"):
        await check_connection(KafkaSettings(**ways["oauthbearer"]), timeout_s=DEADLINE_S)


async def test_one_server_that_answers_is_enough(ways: dict[str, dict[str, Any]]) -> None:
    settings = KafkaSettings(bootstrap=f"127.0.0.1:9,{ways['plaintext']['bootstrap']}")
    await check_connection(settings, timeout_s=DEADLINE_S)


async def test_nobody_there_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"no Kafka at 127\.0\.0\.1:9 \(.*refused.*\): start it, or set kafka"):
        await check_connection(KafkaSettings(bootstrap="127.0.0.1:9"), timeout_s=DEADLINE_S)


async def test_a_name_nobody_knows_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"no Kafka at broker\.invalid:9092"):
        await check_connection(KafkaSettings(bootstrap="broker.invalid:9092"), timeout_s=DEADLINE_S)


async def test_a_server_that_is_silent_is_said() -> None:
    with (
        socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent,  # listens, never reads
        pytest.raises(ConfigurationError, match="no answer within 1 s"),
    ):
        await check_connection(KafkaSettings(bootstrap=f"127.0.0.1:{silent.server_address[1]}"), timeout_s=1)


async def _make_topic(settings: KafkaSettings, name: str) -> None:
    admin = make_admin(settings)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()


async def _produce(settings: KafkaSettings, topic: str, value: bytes) -> None:
    producer = make_producer(settings)
    await producer.start()
    try:
        await asyncio.wait_for(producer.send_and_wait(topic, value), DEADLINE_S)
    finally:
        await producer.stop()


async def _consume(settings: KafkaSettings, topic: str) -> bytes:
    consumer = make_consumer(settings, topic, group_id=f"{topic}-group")
    await consumer.start()
    try:
        record = await asyncio.wait_for(consumer.getone(), DEADLINE_S)
        return bytes(record.value)
    finally:
        await consumer.stop()


async def _consume_by_faust(settings: KafkaSettings, topic: str) -> bytes:
    """Start a whole Faust app and return the first record its agent gets."""
    app = faust.App(
        f"{topic}-faust",
        **faust_broker(settings),
        store="memory://",
        web_enabled=False,
        datadir=tempfile.gettempdir(),
        topic_disable_leader=True,
        topic_allow_declare=False,
    )
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @app.agent(app.topic(topic, value_serializer="raw"))
    async def take(stream: Any) -> None:
        async for value in stream:
            if not got.done():
                got.set_result(value)

    app.finalize()
    await app.start()
    try:
        return await asyncio.wait_for(got, DEADLINE_S)
    finally:
        await app.stop()
