"""Attacks through HTTP, and that no route of the API is open by mistake."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.dependencies.models import Dependant
from starlette.types import Message

from api import middleware
from api.app import create_app
from api.dependencies import Needs, viewer
from api.repository import Repository
from api.security.principal import Role
from api.security.tokens import ACCESS, AUDIENCE, ISSUER
from schemas.settings import ApiSettings, LimitSettings, Settings
from tests.access import NOW_MS, SIGNING_KEY, Doors
from tests.unit.api.test_app import FakeReader

NOW_S = NOW_MS // 1_000
OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("POST", "/v1/sessions"),
    ("POST", "/v1/sessions/refresh"),
}
GENEROUS = LimitSettings(logins_per_minute=10_000, principal_per_minute=10_000, tenant_per_minute=10_000)
SETTINGS = Settings(api=ApiSettings(limits=GENEROUS))


@pytest.fixture
def doors() -> Doors:
    doors = Doors(SETTINGS.api)
    doors.account("acme", "ann", Role.ADMIN)
    return doors


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


async def serve(doors: Doors, settings: Settings, reader: FakeReader) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, doors.access)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        app.state.repository = Repository(reader, "drift")
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


@pytest.fixture
async def client(doors: Doors, reader: FakeReader) -> AsyncIterator[httpx.AsyncClient]:
    async for one in serve(doors, SETTINGS, reader):
        yield one


# -- every route ---------------------------------------------------------------------------------------------------


def walk(routes: Any) -> Iterator[Any]:
    """Yield every route, however deep; FastAPI keeps included routers as nodes of a tree, or flat."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from walk(route.effective_candidates())
        elif hasattr(route, "dependant"):
            yield route if route.dependant is not None else route.starlette_route  # a WebSocket's
        else:
            assert getattr(route, "path", "") == "/openapi.json", f"{route!r} cannot demand a credential"


def routes(doors: Doors) -> list[Any]:
    return list(walk(create_app(SETTINGS, doors.access).routes))


def methods_of(route: Any) -> list[str]:
    return sorted(getattr(route, "methods", None) or {"WEBSOCKET"})


def calls(dependant: Dependant) -> Iterator[Any]:
    for below in dependant.dependencies:
        yield below.call
        yield from calls(below)


def is_guarded(route: Any) -> bool:
    return any(isinstance(call, Needs) for call in calls(route.dependant))


def test_every_route_demands_a_credential_but_the_named_few(doors: Doors) -> None:
    open_routes = {(method, r.path) for r in routes(doors) if not is_guarded(r) for method in methods_of(r)}
    assert open_routes == OPEN
    assert len(routes(doors)) > 15


def test_a_route_that_forgot_its_guard_would_be_found(doors: Doors) -> None:
    app = create_app(SETTINGS, doors.access)
    app.add_api_route("/v1/forgotten", lambda: None)
    (forgotten,) = [r for r in walk(app.routes) if r.path == "/v1/forgotten"]
    assert not is_guarded(forgotten)
    app.mount("/static", create_app(SETTINGS, doors.access))
    with pytest.raises(AssertionError, match="cannot demand"):
        list(walk(app.routes))


async def test_every_guarded_route_answers_401_without_and_403_below_its_role(
    client: httpx.AsyncClient, doors: Doors, reader: FakeReader
) -> None:
    key = doors.headers("acme", Role.VIEWER)
    for route in routes(doors):
        for method in methods_of(route):
            if (method, route.path) in OPEN or method == "WEBSOCKET":
                continue  # tests/integration/test_live.py knocks at the socket
            path = route.path.format(event_id="x", finding_id="x", account="x", key_id="x")
            answer = await client.request(method, path, json={})
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            needs = max(call.role for call in calls(route.dependant) if isinstance(call, Needs))
            if needs > Role.VIEWER:
                body = {"account": "x", "name": "x"}.items()
                sent = dict(item for item in body if method == "POST" and path in ("/v1/accounts", "/v1/api-keys"))
                sent.pop("account" if path == "/v1/api-keys" else "name", None)
                answer = await client.request(method, path, json=sent, headers=key)
                assert answer.status_code == 403, (method, path, answer.text)
    assert reader.asked == []


async def test_openapi_says_how_to_prove_who_one_is(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer" and schemes["apiKey"]["name"] == "X-API-Key"
    for path, item in document["paths"].items():
        for method, operation in item.items():
            is_open = (method.upper(), path) in OPEN
            assert ("security" in operation) is not is_open, (method, path)


# -- tokens --------------------------------------------------------------------------------------------------------


def claims(**changes: Any) -> dict[str, Any]:
    base = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "iat": NOW_S,
        "exp": NOW_S + 60,
        "jti": "x1",
        "tenant": "acme",
        "role": "admin",
        "family": "f",
        "stamp": "",
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def signed(key: Any = SIGNING_KEY, alg: str = "ES256", header: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, alg, headers={"typ": ACCESS} | (header or {}))


def part(value: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def by_hand(alg: str, mac: bytes = b"") -> str:
    body = part({"alg": alg, "typ": ACCESS}) + b"." + part(claims())
    signature = hmac.new(mac, body, hashlib.sha256).digest() if mac else b""
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def public_pem() -> bytes:
    return SIGNING_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


RSA_KEY = rsa.generate_private_key(65_537, 2_048)

FORGED = {
    "no signature": by_hand("none"),
    "no signature, spelt otherwise": by_hand("nOnE"),
    "public key as secret": by_hand("HS256", public_pem()),
    "public DER as secret": by_hand(
        "HS256", SIGNING_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "empty secret": by_hand("HS256", b"\0"),
    "another key": signed(ec.generate_private_key(ec.SECP256R1())),
    "another algorithm": signed(RSA_KEY, "RS256"),
    "own key in the header": signed(
        ec.generate_private_key(ec.SECP256R1()), header={"jku": "http://127.0.0.1:1/", "kid": "../../dev/null"}
    ),
    "expired": signed(exp=NOW_S - 60, iat=NOW_S - 120),
    "not yet": signed(nbf=NOW_S + 600),
    "no expiry": signed(exp=...),
    "wrong audience": signed(aud="another-api"),
    "no audience": signed(aud=...),
    "wrong issuer": signed(iss="https://evil.example"),
    "refresh token": signed(header={"typ": "rt+jwt"}),
    "id token": signed(header={"typ": "JWT"}),
    "foreign tenant": signed(tenant="globex"),
    "no tenant": signed(tenant=...),
    "tenant with a colon": signed(tenant="acme:account"),
    "no role": signed(role=...),
    "made-up role": signed(role="root"),
    "unknown account": signed(sub="mallory"),
    "old stamp": signed(stamp="0"),
    "nothing": "",
    "garbage": "a.b.c",
    "huge": "x" * 12_000,
    "unknown key": "sgd_0123456789abcdef_" + "A" * 43,
    "path in a key": "sgd_../../etc/passwd_" + "A" * 43,
    "header injection": "x\ty",
}


async def test_the_token_that_the_forged_ones_vary_is_taken(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/me", headers={"Authorization": f"Bearer {signed()}"})
    assert answer.status_code == 200 and answer.json()["role"] == "admin"


@pytest.mark.parametrize("name", list(FORGED))
async def test_a_forged_credential_is_refused_without_a_word_why(
    client: httpx.AsyncClient, reader: FakeReader, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="api")
    answer = await client.get("/v1/services", headers={"Authorization": f"Bearer {FORGED[name]}"})
    assert answer.status_code == 401 and reader.asked == []
    assert answer.json()["detail"].startswith("Send `Authorization")
    assert not FORGED[name] or FORGED[name][-30:] not in answer.text + caplog.text


async def test_a_token_never_gives_more_than_the_account_has(client: httpx.AsyncClient, doors: Doors) -> None:
    doors.account("acme", "vic", Role.VIEWER)
    headers = {"Authorization": f"Bearer {signed(sub='vic', role='admin')}"}
    assert (await client.get("/v1/me", headers=headers)).json()["role"] == "viewer"
    assert (await client.get("/v1/accounts", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Basic YW5uOng=")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        [("X-API-Key", "")],
        [("Cookie", "access_token=x")],
        [("X-Tenant", "acme")],
        [("X-Forwarded-User", "ann")],
    ],
)
async def test_other_ways_to_say_who_one_is_are_none(client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> None:
    assert (await client.get("/v1/services", headers=headers)).status_code == 401


async def test_two_credentials_are_none(client: httpx.AsyncClient, doors: Doors) -> None:
    key = doors.key("acme")
    assert (await client.get("/v1/me", headers={"X-API-Key": key})).status_code == 200
    twice = [("X-API-Key", key), ("X-API-Key", key)]
    assert (await client.get("/v1/me", headers=twice)).status_code == 401
    assert (await client.get("/v1/me", params={"access_token": key})).status_code == 401


# -- what is sent --------------------------------------------------------------------------------------------------

HOSTILE = (
    "' OR 1=1 --",
    "'; DROP TABLE drift.services; --",
    "\\' OR tenant = 'globex",
    "{tenant:String}",
    "%27%20OR%201%3D1",
    "$1",
    "${database}",
    "a\x00b",
    "a\r\nX-Injected: 1",
    "日本\u202e",
    "../../../etc/passwd",
)


async def test_no_parameter_reaches_the_text_of_a_query(
    client: httpx.AsyncClient, doors: Doors, reader: FakeReader
) -> None:
    """Each text parameter of each GET path: refused, or bound as the data that it is."""
    admin = {"Authorization": f"Bearer {signed()}"}
    tried = 0
    for route in routes(doors):
        if "GET" not in methods_of(route) or not route.path.startswith("/v1"):
            continue
        names = {f.alias for d in [route.dependant, *flat(route.dependant)] for f in d.query_params}
        base = {"since": "-1h"} if route.path == "/v1/root-cause" else {}
        for hostile in HOSTILE:
            for name in names:
                before = len(reader.asked)
                path = route.path.format(event_id="x", finding_id="x")
                answer = await client.get(path, params=base | {name: hostile}, headers=admin)
                expected = (422, 503) if path == "/v1/live/events" else (200, 404, 422)  # no topic is read here
                assert answer.status_code in expected, (path, name, hostile, answer.text)
                assert "x-injected" not in answer.headers
                for sql, parameters in reader.asked[before:]:
                    assert (hostile not in sql or hostile == "{tenant:String}") and parameters["tenant"] == "acme"
                tried += 1
    assert tried > 200


def flat(dependant: Dependant) -> Iterator[Dependant]:
    for below in dependant.dependencies:
        yield below
        yield from flat(below)


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_ids_in_paths_are_data(client: httpx.AsyncClient, doors: Doors, reader: FakeReader, hostile: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in hostile.encode())
    admin = {"Authorization": f"Bearer {signed()}"}
    for method, path in (
        ("GET", "/v1/drift-events/"),
        ("GET", "/v1/findings/"),
        ("DELETE", "/v1/accounts/"),
        ("DELETE", "/v1/api-keys/"),
    ):
        answer = await client.request(method, path + quoted, headers=admin)
        assert answer.status_code in (404, 405), (path, answer.text)
        assert "x-injected" not in answer.headers
        json.loads(answer.text)
    for sql, parameters in reader.asked:
        assert (hostile not in sql or hostile == "{tenant:String}") and parameters["tenant"] == "acme"


async def test_names_of_accounts_are_plain(client: httpx.AsyncClient, doors: Doors) -> None:
    admin = {"Authorization": f"Bearer {signed()}"}
    for name in (*HOSTILE, "a:b", "-a", "", "a" * 65, "a b", "ä", "ann\n"):
        answer = await client.post("/v1/accounts", json={"account": name}, headers=admin)
        assert answer.status_code == 422, name
    assert [record[2] for record in doors.log.records if record[0] == "acme"] == ["ann"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 5_000,
        b'{"tenant":"acme","account":"ann","password":["x"]}',
        b'{"tenant":"acme","account":"ann","password":"x","is_admin":true}',
        b'{"tenant":{"$ne":""},"account":"ann","password":"x"}',
        b"\xff\xfe",
    ],
)
async def test_bodies_that_are_no_login_are_refused_and_not_sent_back(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.headers["content-type"] == "application/problem+json"
    assert 'is_admin":true' not in answer.text and "input" not in answer.json()


async def test_a_request_id_cannot_write_headers_or_log_lines(client: httpx.AsyncClient) -> None:
    for given in ("x" * 65, "a b", "a;b", "<script>"):
        answer = await client.get("/healthz", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] != given


# -- size and time -------------------------------------------------------------------------------------------------


async def asgi(settings: Settings, doors: Doors, messages: Sequence[Any], headers: list[tuple[bytes, bytes]]) -> Any:
    """Send what no client library would; after the messages the client says nothing more."""
    app = create_app(settings, doors.access)
    waiting, sent = iter(messages), []

    async def receive() -> Message:
        for message in waiting:
            return dict(message)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/sessions",
        "raw_path": b"/v1/sessions",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), *headers],
        "client": ("192.0.2.1", 1),
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "root_path": "",
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


async def test_large_bodies_are_refused_announced_or_not(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 0.01)
    endless = [{"type": "http.request", "body": b"x" * 10_000, "more_body": True} for _ in range(100)]
    announced = await asgi(SETTINGS, doors, [], [(b"content-length", b"70000")])
    chunked = await asgi(SETTINGS, doors, endless, [(b"transfer-encoding", b"chunked")])
    lied = await asgi(SETTINGS, doors, endless, [(b"content-length", b"10")])
    assert [status for status, _ in (announced, chunked, lied)] == [413, 413, 413]
    assert announced[1][b"content-type"] == b"application/problem+json"


async def test_who_waits_to_be_told_to_send_is_told_no_and_nothing_more_is_read(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "_discard", None)  # whoever calls it fails
    headers = [(b"content-length", b"70000"), (b"expect", b"100-continue")]
    assert (await asgi(SETTINGS, doors, [], headers))[0] == 413


async def test_a_sender_that_does_not_end_is_left(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LINGER_S", 3_600.0)
    limits = GENEROUS.model_copy(update={"body_timeout_s": 0.01})
    refused = Settings(api=ApiSettings(limits=limits))
    assert (await asgi(refused, doors, [], [(b"content-length", b"70000")]))[0] == 413


async def test_a_body_that_does_not_come_is_given_up(doors: Doors) -> None:
    limits = GENEROUS.model_copy(update={"body_timeout_s": 0.01})
    first = [{"type": "http.request", "body": b"{", "more_body": True}]
    status, headers = await asgi(Settings(api=ApiSettings(limits=limits)), doors, first, [(b"content-length", b"100")])
    assert status == 408 and headers[b"connection"] == b"close"


class StuckReader(FakeReader):
    """Never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()

    async def query(self, sql: str, parameters: Any) -> Any:
        self.is_asked.set()
        await asyncio.Event().wait()


async def test_what_takes_too_long_is_given_up(doors: Doors) -> None:
    limits = GENEROUS.model_copy(update={"request_timeout_s": 0.05})
    async for client in serve(doors, Settings(api=ApiSettings(limits=limits)), StuckReader()):
        answer = await client.get("/v1/services", headers=doors.headers("acme"))
        assert answer.status_code == 504
        assert answer.json()["type"].endswith(":request-timeout")


async def test_one_tenant_cannot_take_all_places(doors: Doors) -> None:
    limits = GENEROUS.model_copy(update={"concurrent_per_tenant": 1})
    settings, reader = Settings(api=ApiSettings(limits=limits)), StuckReader()
    doors = Doors(settings.api)
    async for client in serve(doors, settings, reader):
        headers = doors.headers("acme")
        first = asyncio.create_task(client.get("/v1/services", headers=headers))
        await reader.is_asked.wait()
        answer = await client.get("/v1/me", headers=headers)
        assert answer.status_code == 429 and answer.headers["retry-after"]
        assert (await client.get("/v1/me", headers=doors.headers("globex"))).status_code == 200
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await client.get("/v1/me", headers=headers)).status_code == 200


async def statuses(client: httpx.AsyncClient, headers: dict[str, str], count: int) -> list[int]:
    return [(await client.get("/v1/me", headers=headers)).status_code for _ in range(count)]


async def test_requests_are_limited_by_principal_and_by_tenant() -> None:
    limits = LimitSettings(principal_per_minute=3, tenant_per_minute=5, logins_per_minute=4)
    settings = Settings(api=ApiSettings(limits=limits))
    doors = Doors(settings.api)
    async for client in serve(doors, settings, FakeReader()):
        assert await statuses(client, doors.headers("acme"), 4) == [200, 200, 200, 429]
        assert await statuses(client, doors.headers("acme"), 3) == [200, 200, 429]
        assert await statuses(client, doors.headers("globex"), 1) == [200]
        wrong = {"X-API-Key": "sgd_0123456789abcdef_" + "A" * 43}
        assert await statuses(client, wrong, 5) == [401, 401, 401, 401, 429]
        body = {"tenant": "acme", "account": "ann", "password": "x"}
        answer = await client.post("/v1/sessions", json=body)
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["content-type"] == "application/problem+json"


# -- hosts, pages, TLS ---------------------------------------------------------------------------------------------


async def test_the_configured_names_are_served_too(doors: Doors, reader: FakeReader) -> None:
    settings = Settings(api=ApiSettings(host="10.0.0.5", allowed_hosts=("drift.example",), is_behind_tls=True))
    async for client in serve(doors, settings, reader):
        for host, status in (
            ("10.0.0.5:8080", 200),
            ("Drift.Example", 200),
            ("evil.example", 421),
            ("drift.example.", 421),
        ):
            answer = await client.get("/healthz", headers={"Host": host})
            assert answer.status_code == status, host
            assert answer.headers["strict-transport-security"].startswith("max-age=")
        twice = [("Host", "drift.example"), ("Host", "evil.example")]
        assert (await client.get("/healthz", headers=twice)).status_code == 421


async def test_only_named_pages_may_call(doors: Doors, reader: FakeReader) -> None:
    settings = Settings(api=ApiSettings(cors_origins=("https://soc.example",)))
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    async for client in serve(doors, settings, reader):
        answer = await client.options("/v1/services", headers={"Origin": "https://soc.example"} | asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://soc.example"
        assert "access-control-allow-credentials" not in answer.headers
        for origin in ("https://evil.example", "https://soc.example.evil.example", "null"):
            answer = await client.options("/v1/services", headers={"Origin": origin} | asked)
            assert "access-control-allow-origin" not in answer.headers
            answer = await client.get("/healthz", headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "https://*.example", "https://a.example/x", "a.example", ""])
def test_origins_are_named_one_by_one(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        ApiSettings(cors_origins=(origin,))


def test_viewer_is_the_role_of_reads(doors: Doors) -> None:
    for route in routes(doors):
        if route.path.startswith(("/v1/drift", "/v1/find", "/v1/graph", "/v1/win", "/v1/serv", "/v1/root")):
            assert viewer in list(calls(route.dependant))
