"""The API over a real ClickHouse (chdb where there is no server), through the ASGI interface."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import clickhouse_connect
import httpx
import pytest
from pydantic import SecretStr

from api.app import create_app
from api.clickhouse import ReaderPool, open_reader
from api.parameters import encode_cursor
from api.problems import Problem
from schemas.clickhouse_dsn import is_embedded
from schemas.drift import Activity, DriftKind, Severity
from schemas.settings import ApiSettings, ClickHouseSettings, LimitSettings, Settings
from tests.access import PASSWORD, Doors
from tests.builders_clickhouse import ClickHouse

LIMITS = LimitSettings(principal_per_minute=100_000, tenant_per_minute=100_000)
DOORS = Doors()
HEADERS = {tenant: DOORS.headers(tenant) for tenant in ("acme", "globex")}
for _tenant in HEADERS:
    DOORS.account(_tenant, f"{_tenant}-admin")
START_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z
WINDOW_MS = 60_000
CALM, SLOW = 12, 3

EDGES = {
    ("user", "frontend"): 60_000,
    ("frontend", "checkout"): 30_000,
    ("frontend", "cart"): 5_000,
    ("checkout", "cart"): 5_000,
    ("checkout", "payment"): 9_000,
}


def at(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def text(value: object) -> str:
    """Write a value as ClickHouse SQL."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if value is None:
        return "NULL"
    if isinstance(value, (list, tuple)):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening + ", ".join(text(one) for one in value) + closing
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def insert(store: ClickHouse, table: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    values = ", ".join(text(tuple(row[name] for name in names)) for row in rows)
    store.client.command(f"INSERT INTO {store.database}.{table} ({', '.join(names)}) VALUES {values}")


def window_row(tenant: str, index: int, lane: str = "default", **changes: Any) -> dict[str, Any]:
    start = START_MS + index * WINDOW_MS
    row = {
        "tenant": tenant,
        "lane": lane,
        "generation": 0,
        "window_start": at(start),
        "window_end": at(start + WINDOW_MS),
        "edges": len(EDGES),
        "incomplete": [],
        "is_learning": False,
        "overflow_calls": 0,
    }
    return row | changes


def edge_row(tenant: str, index: int, src: str, dst: str, latency_us: int, **changes: Any) -> dict[str, Any]:
    start = START_MS + index * WINDOW_MS
    row = {
        "tenant": tenant,
        "lane": "default",
        "generation": 0,
        "window_start": at(start),
        "window_end": at(start + WINDOW_MS),
        "src": src,
        "dst": dst,
        "port": 8080,
        "protocol": 6,
        "flows": 50,
        "calls": 50,
        "errors": 0,
        "error_flows": 50,
        "denied": None,
        "bytes_out": 5_000,
        "bytes_in": 50_000,
        "bytes_out_flows": 50,
        "latency_calls": 50,
        "latency_sum_us": 50 * latency_us,
        "p50_us": latency_us,
        "p95_us": 2 * latency_us,
        "p99_us": 3 * latency_us,
        "incomplete": [],
        "is_learning": False,
    }
    return row | changes


def event_row(tenant: str, number: int, **changes: Any) -> dict[str, Any]:
    start = START_MS + (CALM + number) * WINDOW_MS
    activity, severity = changes.pop("activity", Activity.CREATE), changes.pop("severity", Severity.MEDIUM)
    row = {
        "tenant": tenant,
        "finding_id": f"{tenant}-finding-{number}",
        "event_id": f"{tenant}-event-{number}-{int(activity)}",
        "fingerprint": f"{tenant}-print-{number}",
        "incident_id": f"{tenant}-incident",
        "lane": "default",
        "generation": 0,
        "kind": DriftKind.LATENCY_INCREASE.value,
        "activity": activity.name.lower(),
        "activity_id": int(activity),
        "episode": 0,
        "severity": severity.name.lower(),
        "severity_id": int(severity),
        "risk_score": 70,
        "confidence": 90,
        "is_alert": True,
        "is_early": False,
        "time": at(start + WINDOW_MS),
        "window_start": at(start),
        "window_end": at(start + WINDOW_MS),
        "first_seen": at(start),
        "src": "checkout",
        "dst": "payment",
        "port": 8080,
        "protocol": 6,
        "edges": [("checkout", "payment", 8080, 6)],
        "edges_total": 1,
        "evidence": [("latency_p95_us", 418_000.0, 18_000.0, "us", 44.4, 50, CALM, "robust_z")],
        "title": f"{tenant} latency",
        "message": f"{tenant}: calls from checkout to payment are slow",
        "checks": ["look at payment"],
        "close_reason": "",
        "seen_in": ["default", "vpc"],
        "verdict": ("alerted", 70, 300, 2, 20, 4, 41, -10, ""),
        "ocsf": "{}",
    }
    return row | changes


def audit_row(tenant: str, number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "tenant": tenant,
        "time": at(START_MS + number),
        "id": f"{number}",
        "actor": f"login:{tenant}-admin",
        "action": "session.login",
        "outcome": "done",
        "target": "",
        "detail": f"of {tenant}",
        "address": "192.0.2.1",
        "request_id": "r",
    }
    return row | changes


def fill(store: ClickHouse, tenant: str, slow: tuple[str, str] = ("checkout", "payment")) -> None:
    """Store 12 calm windows, 3 in which one edge is slow and its callers wait for it, and drift events."""
    above = {("checkout", "payment"): [("frontend", "checkout"), ("user", "frontend")], ("frontend", "cart"): []}
    edges = []
    for index in range(CALM + SLOW):
        for (src, dst), latency_us in EDGES.items():
            is_slow = index >= CALM and (src, dst) in [slow, *above[slow]]
            edges.append(edge_row(tenant, index, src, dst, latency_us + (200_000 if is_slow else index % 3 * 10)))
    insert(store, "edges_1m", edges)
    insert(store, "windows", [window_row(tenant, index) for index in range(CALM + SLOW)])
    names = sorted({name for edge in EDGES for name in edge})
    insert(
        store,
        "services",
        [
            {
                "tenant": tenant,
                "lane": "default",
                "generation": 0,
                "service": f"{tenant}/{name}",
                "is_external": False,
                "first_seen": at(START_MS),
                "last_seen": at(START_MS + WINDOW_MS),
            }
            for name in names
        ],
    )
    new_edge = {"kind": "new_edge", "src": "cart", "dst": f"{tenant}-db", "edges": [("cart", f"{tenant}-db", 5432, 6)]}
    insert(
        store,
        "drift_events",
        [
            event_row(tenant, 0, severity=Severity.HIGH),
            event_row(tenant, 0, activity=Activity.UPDATE, time=at(START_MS + (CALM + 2) * WINDOW_MS)),
            event_row(tenant, 0, activity=Activity.CLOSE, time=at(START_MS + (CALM + 9) * WINDOW_MS)),
            event_row(tenant, 1, severity=Severity.LOW, is_alert=False, **new_edge),
            event_row(tenant, 2, incident_id=f"{tenant}-other"),
        ],
    )


def settings_of(store: ClickHouse, timeout_s: int = 120) -> Settings:
    return Settings(clickhouse=store.settings, api=ApiSettings(query_timeout_s=timeout_s))


async def serve(settings: Settings, **arguments: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, Doors(ApiSettings(limits=LIMITS), DOORS.log).access, **arguments)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client


@pytest.fixture
async def client(clickhouse: ClickHouse) -> AsyncIterator[httpx.AsyncClient]:
    fill(clickhouse, "acme")
    fill(clickhouse, "globex", slow=("frontend", "cart"))
    async for one in serve(settings_of(clickhouse)):
        yield one


def check_problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:secureguard-drift:problem:{name}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body) <= {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    return body


async def get(client: httpx.AsyncClient, path: str, tenant: str = "acme", role: str = "", **parameters: Any) -> Any:
    headers = HEADERS[tenant]
    if role:
        body = {"tenant": tenant, "account": f"{tenant}-{role}", "password": PASSWORD}
        token = (await client.post("/v1/sessions", json=body)).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
    answer = await client.get(path, params=parameters, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(page: dict[str, Any]) -> list[str]:
    return [event["event_id"] for event in page["events"]]


async def test_drift_events_come_newest_first_with_all_fields(client: httpx.AsyncClient) -> None:
    page = await get(client, "/v1/drift-events")
    assert ids(page) == [
        "acme-event-0-3",
        "acme-event-2-1",
        "acme-event-0-2",
        "acme-event-1-1",
        "acme-event-0-1",
    ]
    assert page["next_cursor"] is None
    event = page["events"][-1]
    assert event["subject"] == "checkout -> payment:8080"
    assert event["time_ms"] == START_MS + (CALM + 1) * WINDOW_MS
    assert event["evidence"][0]["observed"] == 418_000.0
    assert event["technique"]["technique_id"] == "T1499"
    assert (event["activity"], event["severity"], event["kind"]) == ("create", "high", "latency_increase")
    assert event["seen_in"] == ["default", "vpc"]
    assert event["verdict"] == {
        "reason": "alerted",
        "effect": 70,
        "windows": 300,
        "windows_alike": 2,
        "budget": 20,
        "alerts": 4,
        "level": 41,
        "feedback": -10,
        "note": "",
    }


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"kind": "new_edge"}, ["1-1"]),
        ({"kind": ["new_edge", "latency_increase"], "activity": "create"}, ["2-1", "1-1", "0-1"]),
        ({"severity": "high"}, ["0-1"]),
        ({"severity": ["high", "low"]}, ["1-1", "0-1"]),
        ({"min_severity": "medium"}, ["0-3", "2-1", "0-2", "0-1"]),
        ({"activity": ["update", "close"]}, ["0-3", "0-2"]),
        ({"service": "acme-db"}, ["1-1"]),
        ({"incident": "acme-other"}, ["2-1"]),
        ({"is_alert": "false"}, ["1-1"]),
        ({"lane": "other"}, []),
        ({"text": "CART"}, ["1-1"]),
        ({"text": "checkout to PAYMENT"}, ["0-3", "2-1", "0-2", "1-1", "0-1"]),
        ({"text": "100 %"}, []),
        ({"since": "2026-01-31T12:14:00Z"}, ["0-3", "2-1", "0-2", "1-1"]),
        ({"since": str(START_MS + 15 * WINDOW_MS)}, ["0-3", "2-1"]),
        ({"since": "-1m", "until": "2026-01-31T14:20:00+02:00"}, ["2-1", "0-2", "1-1"]),
        ({"until": "-1m"}, ["0-1"]),
    ],
)
async def test_drift_events_are_filtered(
    client: httpx.AsyncClient, parameters: dict[str, Any], expected: list[str]
) -> None:
    page = await get(client, "/v1/drift-events", **parameters)
    assert ids(page) == [f"acme-event-{one}" for one in expected]


async def test_pages_hold_every_event_once_whatever_their_size(client: httpx.AsyncClient) -> None:
    whole = ids(await get(client, "/v1/drift-events", since="-1d"))
    for limit in (1, 2, 3, 5):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await get(
                client, "/v1/drift-events", since="-1d", limit=limit, **({"cursor": cursor} if cursor else {})
            )
            assert len(page["events"]) <= limit
            seen += ids(page)
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == whole


async def test_cursor_of_other_filters_or_of_nobody_is_refused(client: httpx.AsyncClient) -> None:
    cursor = (await get(client, "/v1/drift-events", limit=1))["next_cursor"]
    for parameters in ({"cursor": cursor, "kind": "new_edge"}, {"cursor": "abc"}, {"cursor": "é"}, {"cursor": "W10"}):
        answer = await client.get("/v1/drift-events", params=parameters, headers=HEADERS["acme"])
        check_problem(answer, 422, "invalid-parameter")


async def test_repeated_rows_are_shown_once(client: httpx.AsyncClient, clickhouse: ClickHouse) -> None:
    before = await get(client, "/v1/drift-events")
    insert(clickhouse, "drift_events", [event_row("acme", 2, incident_id="acme-other", checks=["look at payment"])])
    assert await get(client, "/v1/drift-events") == before


async def test_newer_generation_of_a_lane_replaces_the_older(client: httpx.AsyncClient, clickhouse: ClickHouse) -> None:
    insert(clickhouse, "drift_events", [event_row("acme", 7, generation=1)])
    insert(clickhouse, "windows", [window_row("acme", 1, generation=1)])
    assert ids(await get(client, "/v1/drift-events")) == ["acme-event-7-1"]
    windows = (await get(client, "/v1/windows"))["windows"]
    assert [(one["generation"], one["start_ms"]) for one in windows] == [(1, START_MS + WINDOW_MS)]


async def test_event_and_finding_are_found_by_id(client: httpx.AsyncClient) -> None:
    event = await get(client, "/v1/drift-events/acme-event-0-2")
    assert event["activity"] == "update"
    finding = await get(client, "/v1/findings/acme-finding-0")
    assert [one["activity"] for one in finding["events"]] == ["create", "update", "close"]
    assert finding["status"] == "closed"
    assert (await get(client, "/v1/findings/acme-finding-1"))["status"] == "open"


async def test_graph_of_the_newest_window_and_of_a_time(client: httpx.AsyncClient) -> None:
    graph = await get(client, "/v1/graph")
    assert graph["window"]["start_ms"] == START_MS + (CALM + SLOW - 1) * WINDOW_MS
    assert len(graph["edges"]) == len(EDGES)
    assert [node["service"] for node in graph["nodes"]] == ["cart", "checkout", "frontend", "payment", "user"]
    cart = graph["nodes"][0]
    assert (cart["calls_in"], cart["calls_out"], cart["errors_in"]) == (100, 0, 0)
    payment = next(edge for edge in graph["edges"] if edge["dst"] == "payment")
    assert payment["latency_mean_us"] == 209_000.0
    assert payment["denied"] is None
    assert payment["error_ratio"] == 0.0
    early = await get(client, "/v1/graph", at="2026-01-31T12:01:30Z", limit=2)
    assert early["window"]["start_ms"] == START_MS + WINDOW_MS
    assert early["is_truncated"]
    answer = await client.get("/v1/graph", params={"at": "2020-01-01T00:00:00Z"}, headers=HEADERS["acme"])
    check_problem(answer, 404, "no-windows")


@pytest.fixture
async def two_lanes(clickhouse: ClickHouse) -> AsyncIterator[httpx.AsyncClient]:
    """Lane ``vpc`` saw some of the same edges and one of its own, without latency; a replay saw the same, too."""
    fill(clickhouse, "acme")
    insert(
        clickhouse,
        "edges_1m",
        [
            edge_row(
                "acme",
                index,
                src,
                dst,
                0,
                lane=lane,
                calls=calls,
                errors=None,
                error_flows=0,
                latency_calls=0,
                latency_sum_us=None,
                p50_us=None,
                p95_us=None,
                p99_us=None,
            )
            for index in range(CALM + SLOW)
            for lane in ("vpc", "replay:old")
            for src, dst, calls in (("checkout", "payment", 70), ("payment", "bank", 20))
        ],
    )
    for lane in ("vpc", "replay:old"):
        insert(clickhouse, "windows", [window_row("acme", index, lane) for index in range(CALM + SLOW)])
    async for one in serve(settings_of(clickhouse)):
        yield one


async def test_an_edge_of_two_lanes_is_one_edge_with_the_numbers_of_each(two_lanes: httpx.AsyncClient) -> None:
    page = await get(two_lanes, "/v1/edges", service="payment")
    assert [(edge["src"], edge["dst"], edge["port"], edge["protocol"]) for edge in page["edges"]] == [
        ("checkout", "payment", 8080, 6),
        ("payment", "bank", 8080, 6),
    ]
    shared, own = page["edges"]
    assert [lane["lane"] for lane in shared["lanes"]] == ["default", "vpc"]
    assert [lane["calls"] for lane in shared["lanes"]] == [50 * 15, 70 * 15]
    assert [lane["errors"] for lane in shared["lanes"]] == [0, None]
    assert [lane["error_ratio"] for lane in shared["lanes"]] == [0.0, None]
    assert shared["lanes"][0]["latency_mean_us"] > 9_000 and shared["lanes"][1]["latency_mean_us"] is None
    assert (shared["first_seen_ms"], shared["last_seen_ms"]) == (START_MS, START_MS + (CALM + SLOW) * WINDOW_MS)
    assert [lane["lane"] for lane in own["lanes"]] == ["vpc"]


async def test_edges_are_filtered_by_lane_and_range_and_replays_are_asked_for(two_lanes: httpx.AsyncClient) -> None:
    for lane, expected in (("default", 5), ("vpc", 2), ("replay:old", 2), ("nobody", 0)):
        page = await get(two_lanes, "/v1/edges", lane=lane)
        assert len(page["edges"]) == expected
        assert {one["lane"] for edge in page["edges"] for one in edge["lanes"]} <= {lane}
    page = await get(two_lanes, "/v1/edges", since="-2m")
    assert {one["windows"] for edge in page["edges"] for one in edge["lanes"]} == {2}
    assert await get(two_lanes, "/v1/edges", tenant="globex") | {"since_ms": 0, "until_ms": 0} == {
        "since_ms": 0,
        "until_ms": 0,
        "edges": [],
        "next_cursor": None,
    }


async def test_edges_come_in_pages_that_hold_each_once(two_lanes: httpx.AsyncClient) -> None:
    whole = (await get(two_lanes, "/v1/edges"))["edges"]
    assert len(whole) == 6
    found, cursor = [], None
    while True:
        page = await get(two_lanes, "/v1/edges", limit=2, **({"cursor": cursor} if cursor else {}))
        found += page["edges"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == whole
    forged = encode_cursor(
        {"lane": None, "service": None, "since": None, "until": None}, [0, 1 << 43, "", "", 1 << 43, 1 << 43]
    )
    assert len((await get(two_lanes, "/v1/edges", cursor=forged))["edges"]) == 6


async def test_the_graph_says_which_lanes_saw_an_edge_and_counts_its_own_alone(two_lanes: httpx.AsyncClient) -> None:
    graph = await get(two_lanes, "/v1/graph", lane="default")
    lanes = {(edge["src"], edge["dst"]): edge["lanes"] for edge in graph["edges"]}
    assert lanes["checkout", "payment"] == ["default", "vpc"]
    assert lanes["user", "frontend"] == ["default"]
    assert {edge["calls"] for edge in graph["edges"]} == {50}
    graph = await get(two_lanes, "/v1/graph", lane="replay:old")
    assert {tuple(edge["lanes"]) for edge in graph["edges"]} == {("replay:old",)}


async def test_root_causes_are_found_over_all_lanes_and_nothing_counts_twice(two_lanes: httpx.AsyncClient) -> None:
    since, until = START_MS + CALM * WINDOW_MS, START_MS + (CALM + SLOW) * WINDOW_MS
    alone = await get(two_lanes, "/v1/root-cause", since=str(since), until=str(until), lane="default")
    both = await get(two_lanes, "/v1/root-cause", since=str(since), until=str(until))
    assert (alone["lanes"], both["lanes"]) == (["default"], ["default", "vpc"])
    assert (alone["edges"], both["edges"]) == (5, 6)
    ranked = [[(cause["service"], cause["score"]) for cause in answer["causes"]] for answer in (alone, both)]
    assert ranked[0] == ranked[1] and ranked[0][0][0] == "payment"
    of_event = await get(two_lanes, "/v1/root-cause", event_id="acme-event-0-1")
    assert (of_event["lane"], of_event["lanes"]) == ("default", ["default", "vpc"])


async def test_a_lane_that_has_not_closed_the_range_yet_is_left_out(
    two_lanes: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    """Its missing windows would look like missing calls."""
    insert(clickhouse, "windows", [window_row("acme", index, "slow") for index in range(CALM)])
    calm = [edge_row("acme", index, "cart", "db", 9_000, lane="slow") for index in range(CALM)]
    insert(clickhouse, "edges_1m", calm)
    since, until = START_MS + CALM * WINDOW_MS, START_MS + (CALM + SLOW) * WINDOW_MS
    answer = await get(two_lanes, "/v1/root-cause", since=str(since), until=str(until))
    assert answer["lanes"] == ["default", "vpc"]
    assert "Lane slow is left out: it has not closed all windows of the range yet." in answer["notes"]
    assert all("db" not in cause["service"] for cause in answer["causes"])


async def test_windows_and_services_are_paged(client: httpx.AsyncClient) -> None:
    first = await get(client, "/v1/windows", limit=10)
    second = await get(client, "/v1/windows", limit=10, cursor=first["next_cursor"])
    starts = [one["start_ms"] for one in first["windows"] + second["windows"]]
    assert starts == [START_MS + index * WINDOW_MS for index in reversed(range(CALM + SLOW))]
    assert second["next_cursor"] is None
    assert len((await get(client, "/v1/windows", since="-3m", until="-1m"))["windows"]) == 2
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = await get(client, "/v1/services", limit=2, **({"cursor": cursor} if cursor else {}))
        names += [one["service"] for one in page["services"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == [f"acme/{name}" for name in ("cart", "checkout", "frontend", "payment", "user")]


async def test_root_cause_of_a_range_is_the_slow_leaf(client: httpx.AsyncClient) -> None:
    report = await get(client, "/v1/root-cause", since="-3m")
    assert report["causes"][0]["service"] == "payment"
    assert report["causes"][0]["path"] == ["payment", "checkout", "frontend", "user"]
    assert (report["current_windows"], report["baseline_windows"]) == (SLOW, CALM)
    assert report["since_ms"] == START_MS + CALM * WINDOW_MS == report["baseline_until_ms"]
    assert report["causes"][0]["evidence"][0]["sentence"].startswith(
        "Calls from checkout to payment take 209 ms against"
    )
    calm = await get(
        client, "/v1/root-cause", since=str(START_MS + 8 * WINDOW_MS), until=str(START_MS + CALM * WINDOW_MS)
    )
    assert calm["causes"] == []


async def test_root_cause_of_an_event_ends_its_path_at_the_symptom(client: httpx.AsyncClient) -> None:
    report = await get(client, "/v1/root-cause", event_id="acme-event-2-1", limit=1)
    assert report["causes"][0]["service"] == "payment"
    assert report["causes"][0]["path"] == ["payment", "checkout"]
    assert "acme-event-2-1" in {one["event_id"] for one in report["causes"][0]["evidence"]}
    for parameters, status, name in (
        ({"event_id": "nope"}, 404, "not-found"),
        ({}, 422, "invalid-parameter"),
        ({"event_id": "acme-event-2-1", "since": "-1h"}, 422, "invalid-parameter"),
        ({"since": "-1m", "until": "-2m"}, 422, "invalid-parameter"),
        ({"since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z"}, 404, "no-windows"),
    ):
        check_problem(await client.get("/v1/root-cause", params=parameters, headers=HEADERS["acme"]), status, name)


TENANT_PATHS: dict[str, list[dict[str, str]]] = {
    "/v1/drift-events": [{}, {"service": "globex-db"}, {"incident": "globex-incident"}, {"since": "-1h"}],
    "/v1/drift-events/export": [{"format": "jsonl"}, {"format": "csv", "service": "globex-db"}],
    "/v1/drift-events/summary": [{}, {"incident": "globex-incident"}],
    "/v1/drift-events/timeline": [{}, {"bucket": "1h", "service": "globex-db"}],
    "/v1/statistics": [{}, {"since": "-1h"}],
    "/v1/drift-events/{event_id}": [{}],
    "/v1/findings/{finding_id}": [{}],
    "/v1/graph": [{}, {"at": str(START_MS)}],
    "/v1/edges": [{}, {"service": "globex-db"}, {"lane": "default", "limit": "2"}],
    "/v1/windows": [{}],
    "/v1/services": [{}],
    "/v1/services/detail": [{"service": "acme/cart"}, {"service": "globex/cart"}, {"service": "checkout"}],
    "/v1/edges/detail": [{"src": "checkout", "dst": "payment"}, {"src": "checkout", "dst": "payment", "port": "8080"}],
    "/v1/graph/difference": [{"before": "-10m"}, {"before": "-10m", "windows": "3"}],
    "/v1/blast-radius": [{"service": "payment"}, {"event_id": "globex-event-2-1"}, {"event_id": "acme-event-2-1"}],
    "/v1/me": [{}],
    "/v1/accounts": [{}],
    "/v1/api-keys": [{}],
    "/v1/audit-log": [{}, {"actor": "login:globex-admin"}, {"since": "-1d"}],
    "/v1/root-cause": [{"since": "-3m"}, {"event_id": "globex-event-2-1"}, {"event_id": "acme-event-2-1"}],
}


async def answers_of_acme(client: httpx.AsyncClient) -> list[tuple[str, int, dict[str, Any]]]:
    """Ask every path as an administrator of acme, also for ids of globex."""
    body = {"tenant": "acme", "account": "acme-admin", "password": PASSWORD}
    token = (await client.post("/v1/sessions", json=body)).json()["access_token"]
    found = []
    for path, variants in TENANT_PATHS.items():
        for owner in ("acme", "globex"):
            full = path.format(event_id=f"{owner}-event-0-1", finding_id=f"{owner}-finding-0")
            for parameters in variants:
                answer = await client.get(full, params=parameters, headers={"Authorization": f"Bearer {token}"})
                if path == "/v1/drift-events/export":
                    shown = {"text": answer.text, "total": answer.headers["x-total-count"]}
                else:
                    shown = {key: value for key, value in answer.json().items() if key != "request_id"}
                found.append((full, answer.status_code, shown))
    return found


async def test_no_answer_of_one_tenant_depends_on_another(clickhouse: ClickHouse) -> None:
    """Every GET path answers a tenant alike, whether another tenant's data is in the same tables or not."""
    fill(clickhouse, "acme")
    async for client in serve(settings_of(clickhouse)):
        insert(clickhouse, "audit_log", [audit_row("acme", 1)])
        paths = {path for path, item in (await client.get("/openapi.json")).json()["paths"].items() if "get" in item}
        elsewhere = {"/healthz", "/readyz", "/v1/live/events"}  # the last one: test_live.py
        assert paths - elsewhere == set(TENANT_PATHS), "a new path belongs into TENANT_PATHS"

        alone = await answers_of_acme(client)
        assert {status for _, status, _ in alone} == {200, 404}
        fill(clickhouse, "globex", slow=("frontend", "cart"))
        # Later and of a higher generation: whatever reads "the newest" of all tenants would now read globex'.
        insert(clickhouse, "windows", [window_row("globex", 50, generation=9)])
        insert(clickhouse, "drift_events", [event_row("globex", 50, generation=9)])
        insert(clickhouse, "audit_log", [audit_row("globex", number) for number in range(3)])
        assert (await get(client, "/v1/api-keys", tenant="globex", role="admin"))["keys"]
        together = await answers_of_acme(client)
        assert together == alone
        assert "globex" not in json.dumps([body for path, _, body in together if "globex" not in path])
        mine = await get(client, "/v1/drift-events", tenant="globex")
        assert ids(mine) == ["globex-event-50-1"]


async def test_the_audit_log_is_read_in_pages_and_filtered(client: httpx.AsyncClient, clickhouse: ClickHouse) -> None:
    refused = {"outcome": "refused", "detail": "wrong password"}
    rows = [audit_row("acme", number, **(refused if number == 3 else {})) for number in range(5)]
    insert(clickhouse, "audit_log", rows)
    insert(clickhouse, "audit_log", rows[:2])  # the same records come again
    page = await get(client, "/v1/audit-log", role="admin", limit=3)
    rest = await get(client, "/v1/audit-log", role="admin", limit=3, cursor=page["next_cursor"])
    assert [one["id"] for one in page["records"] + rest["records"]] == ["4", "3", "2", "1", "0"]
    assert rest["next_cursor"] is None
    found = await get(client, "/v1/audit-log", role="admin", outcome="refused", action="session.login")
    assert [(one["id"], one["detail"], one["time_ms"]) for one in found["records"]] == [
        ("3", "wrong password", START_MS + 3)
    ]
    since = await get(client, "/v1/audit-log", role="admin", since=str(START_MS + 3))
    assert [one["id"] for one in since["records"]] == ["4", "3"]


HOSTILE = ("' OR 1=1 --", "acme' OR tenant = 'globex", "\\", "%", "acme\\' --", "{db}", "日本", "a\u200bb")


async def test_hostile_names_see_nothing(client: httpx.AsyncClient) -> None:
    for name in HOSTILE:
        for parameters in ({"service": name}, {"lane": name}, {"incident": name}):
            answer = await client.get("/v1/drift-events", params=parameters, headers=HEADERS["acme"])
            assert answer.status_code == 200
            assert answer.json()["events"] == []


async def test_ready_only_once_migrated(clickhouse: ClickHouse, client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    clickhouse.client.command(
        f"ALTER TABLE {clickhouse.database}.schema_migrations DELETE WHERE version = 2 SETTINGS mutations_sync = 1"
    )
    body = check_problem(await client.get("/readyz"), 503, "store-unavailable")
    assert "drift migrate" in body["detail"]


async def test_database_without_tables_is_unavailable_not_an_error(empty_clickhouse: ClickHouse) -> None:
    async for client in serve(settings_of(empty_clickhouse)):
        for path in ("/readyz", "/v1/services"):
            answer = await client.get(path, headers=HEADERS["acme"])
            check_problem(answer, 503, "store-unavailable")
            assert answer.headers["retry-after"] == "5"


async def test_unreachable_clickhouse_is_503_without_a_word_about_where(clickhouse: ClickHouse) -> None:
    secret = "hunter2"
    away = ClickHouseSettings(dsn=SecretStr(f"http://reader:{secret}@127.0.0.1:1/drift"))
    async for client in serve(Settings(clickhouse=away, api=ApiSettings(query_timeout_s=2))):
        assert (await client.get("/healthz")).status_code == 200
        for path in ("/readyz", "/v1/services"):
            answer = await client.get(path, headers=HEADERS["acme"])
            check_problem(answer, 503, "store-unavailable")
            assert not re.search(rf"{secret}|127\.0\.0\.1|reader|Traceback", answer.text)


async def test_slow_query_is_504(clickhouse: ClickHouse) -> None:
    limit_s = 5  # the first query would take minutes, the others take milliseconds: a busy machine changes neither
    pool = ReaderPool(partial(open_reader, settings_of(clickhouse, timeout_s=limit_s)), timeout_s=limit_s)
    try:
        with pytest.raises(Problem) as raised:
            await pool.query("SELECT count() FROM numbers(100000000000) WHERE NOT ignore(sipHash64(number))", {})
        assert (raised.value.status, raised.value.name) == (504, "query-timeout")
        with pytest.raises(Problem) as raised:
            await pool.query("SELECT number FROM numbers(1000001)", {})
        assert raised.value.name == "result-too-large"
        result = await pool.query("SELECT 1", {})
        assert list(result.result_rows[0]) == [1]
    finally:
        await pool.close()


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO {database:Identifier}.services (tenant) VALUES ('x')",
        "DROP TABLE {database:Identifier}.services",
        "ALTER TABLE {database:Identifier}.services DELETE WHERE 1",
        "SELECT * FROM file('/etc/hostname', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SET readonly = 0",
    ],
)
def test_reader_can_only_read(clickhouse: ClickHouse, sql: str) -> None:
    if ("file(" in sql or "url(" in sql) and not is_embedded(clickhouse.settings):
        pytest.skip("on a server it is the grants of the API's user that close file() and url()")
    reader = open_reader(settings_of(clickhouse))
    try:
        with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match=r"READONLY|ACCESS_DENIED"):
            reader.command(sql, parameters={"database": clickhouse.database})
    finally:
        reader.close()
