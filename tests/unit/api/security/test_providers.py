"""Keys of identity providers come from the configured address alone, seldom, and their tokens through HTTP."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from api.app import create_app
from api.security import providers
from api.security.access import Access
from api.security.tokens import ACCESS
from schemas.errors import ConfigurationError
from schemas.settings import ApiSettings, AuthSettings, ProviderSettings, Settings
from tests.access import NOW_MS, Doors

NOW_S = NOW_MS // 1_000
ISSUER = "https://idp.example"
KEY, OTHER = (rsa.generate_private_key(65_537, 2_048) for _ in range(2))


class Idp:
    """A provider's JWKS endpoint on loopback.

    Attributes:
        keys: public keys by id. asked: requests so far. fails: it answers 500.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"k1": KEY.public_key()}
        self.asked, self.fails = 0, False
        idp = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                idp.asked += 1
                self.send_response(500 if idp.fails else 200)
                self.end_headers()
                found = [json.loads(RSAAlgorithm.to_jwk(key)) | {"kid": kid} for kid, key in idp.keys.items()]
                self.wfile.write(json.dumps({"keys": found}).encode())

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a busy machine all the time it needs: what is to be over, a test says itself."""
    for name in ("FETCH_TIMEOUT_S", "AWAY_S", "COOL_DOWN_S"):
        monkeypatch.setattr(providers, name, 600)


@pytest.fixture
def idp() -> Iterator[Idp]:
    idp = Idp()
    yield idp
    idp.close()


def settings_of(idp: Idp, **changes: Any) -> Settings:
    values = {"issuer": ISSUER, "audience": "drift", "jwks_url": idp.url, "tenants": ("acme",)} | changes
    return Settings(api=ApiSettings(auth=AuthSettings(providers=(ProviderSettings(**values),))))


async def serve(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Access]]:
    doors = Doors(settings.api)
    app = create_app(settings, doors.access)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client, doors.access


def token(key: Any = KEY, kid: str = "k1", alg: str = "RS256", header: Any = None, **changes: Any) -> dict[str, str]:
    claims = {
        "iss": ISSUER,
        "aud": "drift",
        "sub": "u-7",
        "iat": NOW_S,
        "exp": NOW_S + 60,
        "jti": "j",
        "tenant": "acme",
        "roles": ["viewer"],
    }
    text = jwt.encode(claims | changes, key, alg, headers={"typ": ACCESS, "kid": kid} | (header or {}))
    return {"Authorization": f"Bearer {text}"}


async def test_a_providers_token_is_taken_and_its_keys_are_asked_for_once(idp: Idp) -> None:
    async for client, _ in serve(settings_of(idp)):
        for _ in range(3):
            answer = await client.get("/v1/me", headers=token())
            assert answer.json() | {"expires_s": 0} == {
                "tenant": "acme",
                "subject": "u-7",
                "role": "viewer",
                "credential": "provider",
                "expires_s": 0,
                "must_change_password": False,
            }
        assert idp.asked == 1
        assert (await client.delete("/v1/sessions", headers=token())).status_code == 204
        assert (await client.get("/v1/me", headers=token())).status_code == 401
        assert (await client.get("/v1/me", headers=token(jti="another"))).status_code == 200


async def test_what_a_provider_may_not_say_is_refused(idp: Idp) -> None:
    async for client, _ in serve(settings_of(idp)):
        for sent in (
            token(OTHER),
            token(tenant="globex"),
            token(aud="another"),
            token(iss="https://evil.example"),
            token(roles=["root"]),
            token(exp=NOW_S - 60),
            token(header={"typ": "JWT"}),
            token(alg="RS512"),
            token(OTHER, kid="k2", header={"jku": idp.url, "jwk": json.loads(RSAAlgorithm.to_jwk(OTHER.public_key()))}),
        ):
            assert (await client.get("/v1/me", headers=sent)).status_code == 401


async def test_made_up_key_ids_do_not_make_us_ask_again_and_again(idp: Idp) -> None:
    async for client, _ in serve(settings_of(idp)):
        assert (await client.get("/v1/me", headers=token())).status_code == 200
        answers = [client.get("/v1/me", headers=token(OTHER, kid=f"../{number}")) for number in range(8)]
        assert {one.status_code for one in await asyncio.gather(*answers)} == {401}
        assert idp.asked == 1  # within the cool-down after the first fetch
        assert (await client.get("/v1/me", headers=token())).status_code == 200


async def test_a_new_key_is_found_after_the_cool_down(idp: Idp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "COOL_DOWN_S", 0)
    async for client, _ in serve(settings_of(idp)):
        assert (await client.get("/v1/me", headers=token())).status_code == 200
        idp.keys = {"k2": OTHER.public_key()}
        assert (await client.get("/v1/me", headers=token(OTHER, kid="k2"))).status_code == 200
        assert idp.asked == 2


async def test_a_provider_that_is_away_is_said_and_own_credentials_go_on(idp: Idp) -> None:
    idp.fails = True
    settings = settings_of(idp)
    doors = Doors(settings.api)
    headers = doors.headers("acme")
    app = create_app(settings, doors.access)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        for _ in range(3):
            answer = await client.get("/v1/me", headers=token())
            assert answer.status_code == 503 and answer.json()["type"].endswith(":identity-provider-unavailable")
            assert "127.0.0.1" not in answer.json()["detail"]
        assert idp.asked == 1  # not once a request
        assert (await client.get("/v1/me", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"jwks_url": "http://idp.example/jwks"},
        {"jwks_url": "file:///etc/passwd"},
        {"jwks_url": "http://127.0.0.1.evil.example/"},
        {"tenants": ()},
    ],
)
def test_settings_that_are_not_safe_are_refused(idp: Idp, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings_of(idp, **changes)


def test_shared_secrets_and_double_issuers_are_refused(idp: Idp) -> None:
    with pytest.raises(ConfigurationError, match="HS256"):
        Doors(settings_of(idp, algorithms=("HS256",)).api)
    one = settings_of(idp).api.auth.providers[0]
    with pytest.raises(ConfigurationError, match="twice"):
        Doors(ApiSettings(auth=AuthSettings(providers=(one, one))))
