"""Export, summary, timeline, statistics and the explanation of drift events, over a real ClickHouse."""

import csv
import io
import json
from datetime import UTC, datetime

import httpx
import pytest

from api import event_export
from tests.builders_clickhouse import ClickHouse
from tests.integration.test_api import (
    CALM,
    HEADERS,
    SLOW,
    START_MS,
    WINDOW_MS,
    check_problem,
    event_row,
    get,
    ids,
    insert,
    window_row,
)
from tests.integration.test_api import client as client

HOUR_MS = 3_600_000


async def export(client: httpx.AsyncClient, **parameters: str) -> httpx.Response:
    answer = await client.get("/v1/drift-events/export", params=parameters, headers=HEADERS["acme"])
    assert answer.status_code == 200, answer.text
    return answer


async def test_an_export_holds_what_the_list_holds(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_export, "PAGE", 2)
    listed = (await get(client, "/v1/drift-events"))["events"]
    lines = await export(client, format="jsonl")
    assert [json.loads(line) for line in lines.text.splitlines()] == listed
    assert lines.headers["x-total-count"] == "5"
    assert lines.headers["content-type"] == "application/x-ndjson"
    table = await export(client)
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [row["event_id"] for row in rows] == [event["event_id"] for event in listed]
    assert rows[-1]["time"] == "2026-01-31T12:13:00.000Z" and rows[-1]["technique"] == "T1499"
    assert table.headers["content-disposition"] == 'attachment; filename="drift-events.csv"'


async def test_an_export_is_filtered_and_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_export, "PAGE", 2)
    cut = await export(client, format="jsonl", limit="3")
    assert [json.loads(line)["event_id"] for line in cut.text.splitlines()] == ids(
        await get(client, "/v1/drift-events", limit=3)
    )
    assert cut.headers["x-total-count"] == "5"
    none = await export(client, kind="rate_drop")
    assert none.text.splitlines() == [event_export.csv_header().strip()]
    answer = await client.get("/v1/drift-events/export", params={"limit": "100001"}, headers=HEADERS["acme"])
    check_problem(answer, 422, "invalid-parameter")


async def test_a_name_never_becomes_a_formula(client: httpx.AsyncClient, clickhouse: ClickHouse) -> None:
    hostile = '=HYPERLINK("http://evil.example","x")'
    insert(clickhouse, "drift_events", [event_row("acme", 5, src=hostile, title="a,\nb", port=-1)])
    table = await export(client, service=hostile)
    (row,) = csv.DictReader(io.StringIO(table.text, newline=""))
    assert (row["src"], row["title"], row["port"]) == ("'" + hostile, "a,\nb", "-1")


async def test_a_summary_counts_what_the_list_holds(client: httpx.AsyncClient) -> None:
    summary = await get(client, "/v1/drift-events/summary")
    assert (summary["events"], summary["findings"], summary["incidents"], summary["alerts"]) == (5, 3, 2, 4)
    assert summary["by_kind"] == {"latency_increase": 4, "new_edge": 1}
    assert summary["by_severity"] == {"informational": 0, "low": 1, "medium": 3, "high": 1, "critical": 0}
    assert summary["by_activity"] == {"create": 3, "update": 1, "close": 1}
    assert summary["first_ms"] == START_MS + (CALM + 1) * WINDOW_MS
    nothing = await get(client, "/v1/drift-events/summary", kind="rate_drop")
    assert (nothing["events"], nothing["first_ms"], nothing["by_kind"]) == (0, None, {})


async def test_a_timeline_has_every_event_in_its_bucket(client: httpx.AsyncClient) -> None:
    since, until = START_MS, START_MS + 30 * WINDOW_MS
    timeline = await get(client, "/v1/drift-events/timeline", since=str(since), until=str(until), bucket="5m")
    assert timeline["bucket_ms"] == 300_000
    counts = [bucket["events"] for bucket in timeline["buckets"]]
    assert counts == [0, 0, 3, 1, 1, 0]  # at 12:13 12:14 12:14 12:15 12:21
    assert [bucket["start_ms"] for bucket in timeline["buckets"]] == list(range(since, until, 300_000))
    assert timeline["buckets"][2]["by_severity"] == {"high": 1, "low": 1, "medium": 1}
    day = await get(client, "/v1/drift-events/timeline")
    assert sum(bucket["events"] for bucket in day["buckets"]) == 5
    assert len(day["buckets"]) <= 201
    for parameters in ({"bucket": "3m"}, {"bucket": "10s", "since": "0"}, {"since": "-1m", "until": "-2m"}):
        answer = await client.get("/v1/drift-events/timeline", params=parameters, headers=HEADERS["acme"])
        check_problem(answer, 422, "invalid-parameter")


async def test_statistics_say_what_is_stored_and_what_is_open(
    client: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    insert(clickhouse, "windows", [window_row("acme", 3, "vpc", incomplete=["late"], edges=9)])
    numbers = await get(client, "/v1/statistics")
    assert (numbers["services"], numbers["external_services"], numbers["edges"]) == (5, 0, 5)
    assert numbers["open"] == {"findings": 2, "incidents": 2, "alerts": 1, "worst_severity": "medium"}
    assert numbers["drift_events"]["events"] == 5
    assert [(lane["lane"], lane["windows"], lane["incomplete_windows"]) for lane in numbers["lanes"]] == [
        ("default", CALM + SLOW, 0),
        ("vpc", 1, 1),
    ]
    one = await get(client, "/v1/statistics", lane="vpc")
    assert (one["services"], one["open"]["findings"], [lane["lane"] for lane in one["lanes"]]) == (0, 0, ["vpc"])
    early = await get(client, "/v1/statistics", since=str(START_MS - HOUR_MS), until=str(START_MS))
    assert (early["services"], early["edges"], early["lanes"]) == (0, 0, [])


async def test_an_event_is_explained_and_has_its_findings_history(client: httpx.AsyncClient) -> None:
    event = await get(client, "/v1/drift-events/acme-event-0-2")
    assert event["explanation"]["what"] == event["message"]
    assert event["explanation"]["why"] == [
        "latency_p95_us is 418 ms, expected 18 ms, a score of 44.4 (from 50 against 12 windows before)."
    ]
    assert event["explanation"]["checks"] == ["look at payment"]
    assert [(one["activity"], one["event_id"]) for one in event["history"]] == [
        ("create", "acme-event-0-1"),
        ("update", "acme-event-0-2"),
        ("close", "acme-event-0-3"),
    ]


async def test_an_event_shows_the_graph_scores_of_its_edges_in_its_window(
    client: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    assert (await get(client, "/v1/drift-events/acme-event-0-1"))["graph_scores"] == []

    def score(tenant: str, start_ms: int, **changes: object) -> dict[str, object]:
        start = datetime.fromtimestamp(start_ms / 1000, UTC)
        row = {"tenant": tenant, "lane": "default", "generation": 0, "window_start": start, "src": "checkout"}
        row |= {"dst": "payment", "port": 8080, "protocol": 6, "is_new": False, "statistical": 1.25, "graph": 2.5}
        return row | {"combined": 3.75, "model": "0123456789ab"} | changes

    start_ms = START_MS + CALM * WINDOW_MS
    others = [
        score("acme", start_ms - WINDOW_MS),
        score("acme", start_ms, port=9),
        score("acme", start_ms, lane="vpc"),
        score("acme", start_ms, generation=1),
        score("acme", start_ms, src="payment", dst="checkout"),
        score("globex", start_ms, combined=9.0),
    ]
    insert(clickhouse, "edge_scores", others)
    assert (await get(client, "/v1/drift-events/acme-event-0-1"))["graph_scores"] == []
    insert(clickhouse, "edge_scores", [score("acme", start_ms)])
    assert (await get(client, "/v1/drift-events/acme-event-0-1"))["graph_scores"] == [
        {"src": "checkout", "dst": "payment", "port": 8080, "protocol": 6, "is_new": False}
        | {"statistical": 1.25, "graph": 2.5, "combined": 3.75, "model": "0123456789ab"}
    ]
