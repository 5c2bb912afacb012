"""The application without a store: problems, headers, parameters. A fake reader stands in for ClickHouse."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import jsonschema
import pyarrow as pa
import pytest
from pydantic import SecretStr

from api.app import create_app
from api.clickhouse import ReaderPool
from api.problems import Problem
from api.repository import Repository
from schemas.errors import ConfigurationError
from schemas.settings import ApiSettings, ClickHouseSettings, Settings
from tests.access import Doors

SETTINGS = Settings(clickhouse=ClickHouseSettings(dsn=SecretStr("chdb:///nowhere")), api=ApiSettings(query_timeout_s=1))
PATHS = (
    "/v1/drift-events",
    "/v1/drift-events/x",
    "/v1/drift-events/export",
    "/v1/drift-events/summary",
    "/v1/drift-events/timeline",
    "/v1/statistics",
    "/v1/services/detail?service=x",
    "/v1/edges/detail?src=x&dst=y",
    "/v1/blast-radius?service=x&since=0&until=60000",
    "/v1/findings/x",
    "/v1/graph",
    "/v1/edges",
    "/v1/windows",
    "/v1/services",
)

FILES = {
    "/v1/drift-events/export": ["text/csv", "application/x-ndjson"],
    "/v1/live/events": ["text/event-stream"],
}
"""Paths whose answers are no JSON documents, and what they are."""


class FakeResult:
    """An answer without rows."""

    result_rows: tuple[tuple[Any, ...], ...] = ()
    result_columns: tuple[tuple[Any, ...], ...] = ()


class FakeReader:
    """Answers nothing, remembers what it was asked, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> FakeResult:
        self.asked.append((sql, dict(parameters)))
        if self.error:
            raise self.error
        return FakeResult()

    async def table(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        await self.query(sql, parameters)
        names = pa.array([], pa.string())
        return pa.table({"src": names, "dst": names, "most": pa.array([], pa.int64())})


async def clients(reader: FakeReader, settings: Settings = SETTINGS) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application that knows a key of the tenant acme, which the client sends."""
    doors = Doors(settings.api)
    headers = doors.headers("acme")
    app = create_app(settings, doors.access)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        app.state.repository = Repository(reader, "drift")
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=headers) as client:
            yield client


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture
async def client(reader: FakeReader) -> AsyncIterator[httpx.AsyncClient]:
    async for one in clients(reader):
        yield one


def check_problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:secureguard-drift:problem:{name}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["instance"] == answer.request.url.path
    return body


async def test_the_tenant_is_the_credentials_and_cannot_be_named(client: httpx.AsyncClient, reader: FakeReader) -> None:
    check_problem(await client.get("/v1/services", params={"tenant": "globex"}), 422, "invalid-parameter")
    assert reader.asked == []
    assert (await client.get("/v1/services", headers={"X-Tenant": "globex"})).status_code == 200
    assert {parameters["tenant"] for _, parameters in reader.asked} == {"acme"}


@pytest.mark.parametrize(
    ("path", "parameters", "named"),
    [
        ("/v1/drift-events", {"sevrity": "high"}, "sevrity"),
        ("/v1/drift-events", {"severity": "hihg"}, "severity"),
        ("/v1/drift-events", {"min_severity": "7"}, "min_severity"),
        ("/v1/drift-events", {"activity": "open"}, "activity"),
        ("/v1/drift-events", {"kind": "nope"}, "kind"),
        ("/v1/drift-events", {"is_alert": "perhaps"}, "is_alert"),
        ("/v1/drift-events", {"limit": "501"}, "limit"),
        ("/v1/drift-events", {"limit": "0"}, "limit"),
        ("/v1/drift-events", {"since": "yesterday"}, "since"),
        ("/v1/drift-events", {"since": "2026-01-31T12:00:00"}, "since"),
        ("/v1/drift-events", {"since": "1769860800"}, "since"),
        ("/v1/drift-events", {"since": "20260131"}, "since"),
        ("/v1/drift-events", {"until": "9999999999999999"}, "until"),
        ("/v1/drift-events", {"until": "1900-01-01T00:00:00Z"}, "until"),
        ("/v1/drift-events", {"service": ["a", "b"]}, "service"),
        ("/v1/drift-events", {"cursor": "W10"}, "cursor"),
        ("/v1/drift-events", {"cursor": "[" * 2000}, "cursor"),
        ("/v1/drift-events/x", {"lane": "x"}, "lane"),
        ("/v1/graph", {"limit": "20001"}, "limit"),
        ("/v1/windows", {"at": "-1h"}, "at"),
        ("/v1/services", {"kind": "new_edge"}, "kind"),
        ("/v1/root-cause", {"since": "-1h", "baseline": "5"}, "baseline"),
        ("/v1/root-cause", {}, "since"),
        ("/v1/root-cause", {"event_id": "x", "lane": "default"}, "event_id"),
    ],
)
async def test_unknown_and_unusable_parameters_are_refused_by_name(
    client: httpx.AsyncClient, reader: FakeReader, path: str, parameters: dict[str, Any], named: str
) -> None:
    answer = await client.get(path, params=parameters)
    body = check_problem(answer, 422, "invalid-parameter")
    assert named in {error["name"] for error in body["errors"]}
    assert "pydantic" not in answer.text
    assert reader.asked == []


async def test_every_query_is_bound_to_the_tenant_first(client: httpx.AsyncClient, reader: FakeReader) -> None:
    for path in PATHS:
        await client.get(path)
    await client.get("/v1/root-cause", params={"since": "-1h"})
    assert len(reader.asked) >= len(PATHS)
    for sql, parameters in reader.asked:
        assert parameters["tenant"] == "acme"
        where = [part.split() for part in sql.split("WHERE")[1:]]
        assert where
        assert all(part[:3] == ["tenant", "=", "{tenant:String}"] for part in where), sql


async def test_other_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/nope"), 404, "not-found")
    check_problem(await client.get("/docs"), 404, "not-found")
    check_problem(await client.get("/v1/drift-events/"), 404, "not-found")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await client.request(method, "/v1/drift-events")
        check_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "GET"


async def test_unforeseen_error_is_a_problem_that_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async for client in clients(FakeReader(RuntimeError("secret of /etc/drift"))):
        answer = await client.get("/v1/services", headers={"X-Request-Id": "abc-1"})
        check_problem(answer, 500, "internal")
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] == "abc-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "abc-1" in caplog.text


async def test_problems_of_the_store_pass_through() -> None:
    problem = Problem(504, "query-timeout", "The query took too long", "too long")
    async for client in clients(FakeReader(problem)):
        check_problem(await client.get("/v1/graph"), 504, "query-timeout")
        check_problem(await client.get("/readyz"), 503, "store-unavailable")
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_headers_are_on_every_answer_and_request_ids_are_plain(client: httpx.AsyncClient) -> None:
    kept = {"/v1/services": "private, no-cache"}
    for path in ("/healthz", "/nope", "/openapi.json", "/v1/services", "/v1/me", "/v1/services?limit=x"):
        answer = await client.get(path, headers={"X-Request-Id": "bad id\twith <tags>"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == kept.get(path, "no-store")
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert len(answer.headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1", True),
        ("localhost:8080", True),
        ("[::1]:8080", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:8080", False),
        ("", False),
        ("0.0.0.0", False),
    ],
)
async def test_only_loopback_names_are_served(client: httpx.AsyncClient, host: str, is_allowed: bool) -> None:
    answer = await client.get("/healthz", headers={"Host": host})
    if is_allowed:
        assert answer.status_code == 200
    else:
        check_problem(answer, 421, "host-not-allowed")


async def test_openapi_documents_errors_as_problems_and_has_examples(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for operation in item.values():
            responses = operation["responses"]
            for status, response in responses.items():
                kinds = FILES.get(path, ["application/json"]) if status < "300" else ["application/problem+json"]
                assert list(response.get("content", kinds)) == kinds, (path, status)
            if path.startswith("/v1"):
                assert {"401", "403", "422", "429", "500", "503", "504"} <= set(responses)
                assert operation["description"]
    assert document["components"]["schemas"]["DriftEventOut"]["examples"]
    assert document["components"]["schemas"]["RootCauseReport"]["examples"]
    assert "HTTPValidationError" not in str(document["paths"])


async def test_every_answer_has_an_example_that_its_schema_allows(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    shown = 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json")
                if content is not None:
                    schema = content["schema"] | {"components": document["components"]}
                    jsonschema.Draft202012Validator(schema).validate(content["example"])
                    assert content["example"] != {}, (path, method, status)
                    shown += 1
    assert shown > 20


async def test_an_answer_that_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/v1/services")
    etag = first.headers["etag"]
    assert "Authorization" in first.headers["vary"]
    for given in (etag, f'"x", W/{etag}', "*"):
        again = await client.get("/v1/services", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["x-request-id"] and "content-type" not in again.headers
    other = await client.get("/v1/services", headers={"If-None-Match": '"x"'})
    assert (other.status_code, other.json()) == (200, first.json())


async def test_what_nobody_may_keep_has_no_etag_and_a_tag_opens_no_door(client: httpx.AsyncClient) -> None:
    for path in ("/v1/me", "/healthz", "/openapi.json"):
        answer = await client.get(path, headers={"If-None-Match": "*"})
        assert answer.status_code == 200 and "etag" not in answer.headers
    answer = await client.get("/v1/services", headers={"If-None-Match": "*", "X-API-Key": "wrong"})
    check_problem(answer, 401, "unauthenticated")
    answer = await client.get("/v1/findings/x", headers={"If-None-Match": "*"})
    check_problem(answer, 404, "not-found")


class FakeClient:
    """A client whose queries wait until they are let go."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.running = 0
        self.is_closed = False

    def query(self, sql: str, parameters: dict[str, Any]) -> FakeResult:
        assert self.running == 0, "one query at a time"
        self.running += 1
        self.asked.set()
        self.go.wait(60)
        self.running -= 1
        return FakeResult()

    def close(self) -> None:
        self.is_closed = True


async def test_busy_pool_is_503_and_a_dropped_request_gives_its_client_back() -> None:
    only = FakeClient()
    made: list[FakeClient] = []

    def factory() -> Any:
        made.append(only)
        return only

    pool = ReaderPool(factory, timeout_s=1, size=1)
    first = asyncio.create_task(pool.query("SELECT 1", {}))
    await asyncio.to_thread(only.asked.wait, 60)
    with pytest.raises(Problem) as raised:
        await pool.query("SELECT 2", {})
    assert (raised.value.status, raised.value.name) == (503, "store-unavailable")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    pool._timeout_s = 60  # on a busy machine the client may be back later than in a second
    third = asyncio.create_task(pool.query("SELECT 3", {}))
    only.go.set()
    assert await third is not None
    await pool.close()
    assert made == [only]
    assert only.is_closed


async def test_store_that_comes_up_later_is_used_without_a_restart() -> None:
    state = {"is_up": False}

    def factory() -> Any:
        if not state["is_up"]:
            raise ConfigurationError("ClickHouse at http://10.0.0.1:8123 cannot be reached")
        client = FakeClient()
        client.go.set()
        return client

    pool = ReaderPool(factory, timeout_s=1, size=1)
    with pytest.raises(Problem) as raised:
        await pool.query("SELECT 1", {})
    assert raised.value.status == 503
    assert "10.0.0.1" not in raised.value.detail
    state["is_up"] = True
    await pool.query("SELECT 1", {})
    await pool.close()


def test_bad_dsn_is_refused_when_the_application_is_built() -> None:
    bad = Settings(clickhouse=ClickHouseSettings(dsn=SecretStr("postgres://x")))
    with pytest.raises(ConfigurationError):
        create_app(bad, Doors().access)
