"""Settings become arguments of clients; what does not fit together is refused before anything connects."""

import asyncio
import io
import json
import logging
import ssl
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from time import monotonic
from typing import Any, cast

import faust
import pytest
from aiokafka.errors import AuthenticationFailedError, KafkaConnectionError
from aiokafka.protocol.admin import SaslAuthenticateRequest_v0
from faust.auth import OAuthCredentials
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth, server_list
from yarl import URL

from schemas.errors import ConfigurationError
from schemas.settings import KafkaSettings
from streams.kafka_check import _reach_advertised
from streams.kafka_clients import (
    client_arguments,
    faust_broker,
    make_consumer,
    make_producer,
    pace_metadata_updates,
)
from streams.kafka_security import validate
from streams.kafka_tokens import ClientCredentialsTokens
from tests.certificates import write_certificates

SECRET = "s3cret-value"
SCRAM: dict[str, Any] = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "u",
    "sasl_password": SECRET,
}
OAUTH: dict[str, Any] = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_url": "https://issuer.example/token",
    "oauth_client_id": "id",
    "oauth_client_secret": SECRET,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    write_certificates(directory)
    return directory


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bootstrap": "broker"}, "kafka.bootstrap has 'broker': write host:port"),
        ({"bootstrap": ""}, "kafka.bootstrap has ''"),
        ({"bootstrap": "a:9092,"}, "kafka.bootstrap has ''"),
        ({"bootstrap": "a:0"}, "kafka.bootstrap has 'a:0'"),
        ({"bootstrap": "kafka://a:9092"}, "kafka.bootstrap has"),
        ({"security_protocol": "SASL_SSL"}, "set kafka.sasl_mechanism"),
        ({"sasl_mechanism": "PLAIN"}, "PLAINTEXT does not log in: use SASL_SSL"),
        ({"security_protocol": "SSL", "sasl_mechanism": "PLAIN"}, "SSL does not log in: use SASL_SSL"),
        (SCRAM | {"sasl_username": None}, "kafka.sasl_username is missing"),
        (SCRAM | {"sasl_username": ""}, "kafka.sasl_username is missing"),
        (SCRAM | {"sasl_password": None}, "kafka.sasl_password is missing"),
        (OAUTH | {"oauth_token_url": None}, "kafka.oauth_token_url is missing"),
        (OAUTH | {"oauth_client_id": None}, "kafka.oauth_client_id is missing"),
        (OAUTH | {"oauth_client_secret": None}, "kafka.oauth_client_secret is missing"),
        (OAUTH | {"oauth_client_secret": ""}, "kafka.oauth_client_secret is missing"),
        (OAUTH | {"oauth_token_url": "file:///etc/passwd"}, "must be an https:// address"),
        (OAUTH | {"oauth_token_url": f"https://id:{SECRET}@issuer"}, "must not hold a password"),
        ({"security_protocol": "SSL", "ssl_key_file": "k"}, "without kafka.ssl_cert_file"),
        ({"ssl_ca_file": "ca"}, "kafka.ssl_ca_file is set, but kafka.security_protocol PLAINTEXT does not encrypt"),
        (SCRAM | {"ssl_cert_file": "c"}, "kafka.ssl_cert_file is set, but .* does not encrypt"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        client_arguments(KafkaSettings(**changes))
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bootstrap", ["127.0.0.1:9092", "a:1,b:2, c:3", "[::1]:9092", "kafka.ns.svc.cluster.local:9092"]
)
def test_addresses_as_people_write_them_are_accepted(bootstrap: str) -> None:
    validate(KafkaSettings(bootstrap=bootstrap))


def test_faust_and_aiokafka_are_given_the_same(files: Path) -> None:
    tls = {"security_protocol": "SSL", "ssl_ca_file": files / "ca.pem", "bootstrap": "a:1,[::1]:2"}
    for changes in ({"bootstrap": "a:1,[::1]:2"}, tls, SCRAM, tls | SCRAM | {"security_protocol": "SASL_SSL"}, OAUTH):
        settings = KafkaSettings(**changes)
        ours, app = client_arguments(settings), faust_broker(settings)
        fausts = dict(credentials_to_aiokafka_auth(app.get("broker_credentials")))

        assert server_list([URL(url) for url in app["broker"]], 9092) == settings.bootstrap.split(",")
        for name in ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password"):
            assert fausts.get(name) == ours.get(name)
        assert (fausts.get("ssl_context") is None) == (ours.get("ssl_context") is None)
        faust.App("x", **app)


def test_oauth_tokens_reach_faust() -> None:
    credentials = faust_broker(KafkaSettings(**OAUTH))["broker_credentials"]
    assert isinstance(credentials, OAuthCredentials)
    assert isinstance(credentials.oauth_cb, ClientCredentialsTokens)


def test_tls_verifies_the_broker_and_its_name(files: Path) -> None:
    context = client_arguments(KafkaSettings(security_protocol="SSL", ssl_ca_file=files / "ca.pem"))["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1  # the system's authorities are not asked when one is named


async def test_clients_have_our_defaults_and_take_changes() -> None:
    producer = make_producer(KafkaSettings(compression="zstd"), linger_ms=50)
    consumer = make_consumer(KafkaSettings(), "flows", group_id="g", fetch_max_wait_ms=100)
    try:
        assert producer._sender._acks == -1
        assert producer._compression_type == "zstd"
        assert producer._txn_manager is None  # not idempotent
        assert consumer._enable_auto_commit is False
        assert consumer._auto_offset_reset == "earliest"
    finally:
        await producer.stop()
        await consumer.stop()


def test_log_in_requests_are_kept_out_of_debug_logs(caplog: pytest.LogCaptureFixture) -> None:
    client_arguments(KafkaSettings(**SCRAM))
    connection = logging.getLogger("aiokafka.conn")
    caplog.set_level(logging.DEBUG, connection.name)
    request = SaslAuthenticateRequest_v0(f"\0u\0{SECRET}".encode())
    assert SECRET in str(request)  # what aiokafka would write

    connection.debug("Request to %s:%d %d: %s", "a", 1, 2, request)
    connection.debug("Request to %s:%d %d: %s", "a", 1, 2, "another")

    assert SECRET not in caplog.text
    assert "another" in caplog.text


def test_secrets_do_not_show_in_settings() -> None:
    assert SECRET not in repr(KafkaSettings(**SCRAM)) + repr(KafkaSettings(**OAUTH))


async def test_an_advertised_address_out_of_reach_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match=r"a:1 answers, but advertises 127\.0\.0\.1:9, .*advertised\.listeners"
    ):
        await _reach_advertised([("127.0.0.1", 9)], "a", 1)


class FakeIssuer:
    """Stands in for the HTTP opener: answers in turn, an error by raising it."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked = 0

    def open(self, request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert request.get_header("Authorization", "").startswith("Basic ")
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer if isinstance(answer, bytes) else json.dumps(answer).encode())


def _tokens(issuer: FakeIssuer, now_s: list[float]) -> ClientCredentialsTokens:
    tokens = ClientCredentialsTokens(KafkaSettings(**OAUTH), monotonic=lambda: now_s[0])
    tokens._opener = cast(Any, issuer)
    return tokens


async def test_a_token_is_kept_until_a_fifth_of_its_life_is_left() -> None:
    issuer, now_s = FakeIssuer(*({"access_token": f"t{i}", "expires_in": 100} for i in range(3))), [0.0]
    tokens = _tokens(issuer, now_s)

    assert await asyncio.gather(*(tokens.token() for _ in range(5))) == ["t0"] * 5
    now_s[0] = 79.0
    assert await tokens.token() == "t0"
    now_s[0] = 80.0
    assert await tokens.token() == "t1"
    assert issuer.asked == 2


async def test_a_failure_is_not_kept() -> None:
    issuer = FakeIssuer(urllib.error.URLError("connection refused"), {"access_token": "t", "expires_in": 60})
    tokens = _tokens(issuer, [0.0])

    with pytest.raises(KafkaConnectionError, match="cannot be reached: connection refused"):
        await tokens.token()
    assert await tokens.token() == "t"


def _refusal(status: int, body: object) -> urllib.error.HTTPError:
    content = io.BytesIO(json.dumps(body).encode())
    return urllib.error.HTTPError("https://issuer.example/token", status, "no", Message(), content)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            _refusal(401, {"error": "invalid_client", "error_description": SECRET}),
            AuthenticationFailedError,
            "invalid_cl",
        ),
        (_refusal(400, {"error": f"<{SECRET}>"}), AuthenticationFailedError, "HTTP 400"),
        (_refusal(302, {}), AuthenticationFailedError, "HTTP 302"),
        (_refusal(503, [SECRET]), KafkaConnectionError, "HTTP 503"),
        (_refusal(429, {}), KafkaConnectionError, "HTTP 429"),
        (TimeoutError("timed out"), KafkaConnectionError, "cannot be reached"),
        (b"<html>", AuthenticationFailedError, "without an access_token"),
        ([], AuthenticationFailedError, "without an access_token"),
        ({"token": SECRET}, AuthenticationFailedError, "without an access_token"),
        ({"access_token": "a\x01auth=Bearer b"}, AuthenticationFailedError, "no bearer token"),
        ({"access_token": 7}, AuthenticationFailedError, "no bearer token"),
        ({"access_token": "t", "expires_in": "soon"}, AuthenticationFailedError, "without an access_token"),
    ],
)
async def test_what_an_issuer_does_wrong_is_named(answer: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        await _tokens(FakeIssuer(answer), [0.0]).token()
    assert SECRET not in str(caught.value)


async def test_the_secret_follows_no_redirect() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"
    async with server:
        with pytest.raises(AuthenticationFailedError, match="HTTP 302"):
            await ClientCredentialsTokens(KafkaSettings(**OAUTH | {"oauth_token_url": url})).token()
    assert len(seen) == 1


async def test_metadata_is_asked_for_at_once_and_then_at_a_pace() -> None:
    asked: list[float] = []

    class Client:
        def force_metadata_update(self) -> Any:
            asked.append(monotonic())
            answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            answered.set_result(True)
            return answered

    client = Client()
    pace_metadata_updates(client, at_least_s=0.05)
    began = monotonic()
    first, same = client.force_metadata_update(), client.force_metadata_update()
    assert await first and await same
    assert len(asked) == 1
    for _ in range(4):
        assert await client.force_metadata_update()
    assert len(asked) == 5
    assert asked[-1] - began >= 4 * 0.05
