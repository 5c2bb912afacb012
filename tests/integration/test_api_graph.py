"""Services and edges over time, differences, blast radius and prediction, over a real ClickHouse."""

from typing import Any

import httpx

from api.routers import predictions
from tests.builders_clickhouse import ClickHouse
from tests.integration.test_api import (
    CALM,
    HEADERS,
    SLOW,
    START_MS,
    WINDOW_MS,
    check_problem,
    edge_row,
    event_row,
    get,
    insert,
    window_row,
)
from tests.integration.test_api import client as client
from tests.integration.test_api import two_lanes as two_lanes

END_MS = START_MS + (CALM + SLOW) * WINDOW_MS


async def refused(client: httpx.AsyncClient, path: str, status: int, name: str, **parameters: Any) -> None:
    check_problem(await client.get(path, params=parameters, headers=HEADERS["acme"]), status, name)


async def test_a_service_has_its_peers_its_series_and_its_events(two_lanes: httpx.AsyncClient) -> None:
    found = await get(two_lanes, "/v1/services/detail", service="payment", bucket="1m")
    assert [edge["src"] for edge in found["callers"]] == ["checkout"]
    assert [edge["dst"] for edge in found["callees"]] == ["bank"]
    # vpc counted 70 + 20 calls a window, default 50: its series is shown, and what it does not know is null.
    assert found["series_lane"] == "vpc"
    assert [point["start_ms"] for point in found["series"]] == list(range(START_MS, END_MS, WINDOW_MS))
    assert {(point["calls_in"], point["calls_out"], point["errors_in"]) for point in found["series"]} == {
        (70, 20, None)
    }
    mine = await get(two_lanes, "/v1/services/detail", service="payment", lane="default", bucket="1m")
    means = [point["latency_mean_us"] for point in mine["series"]]
    assert min(means[CALM:]) > 200_000 > max(means[:CALM])
    assert {point["callees"] for point in mine["series"]} == {0}
    assert {event["dst"] for event in mine["drift_events"]} == {"payment"}
    await refused(two_lanes, "/v1/services/detail", 404, "not-found", service="nobody")
    await refused(two_lanes, "/v1/services/detail", 422, "invalid-parameter")


async def test_a_service_that_was_silent_in_the_range_is_known(client: httpx.AsyncClient) -> None:
    found = await get(client, "/v1/services/detail", service="acme/cart")
    assert (found["callers"], found["series_lane"], found["series"]) == ([], "", [])
    assert found["seen"][0]["first_seen_ms"] == START_MS


async def test_an_edge_has_its_lanes_its_series_and_its_events(
    two_lanes: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    insert(clickhouse, "windows", [window_row("acme", CALM + SLOW), window_row("acme", CALM + SLOW, "vpc")])
    found = await get(two_lanes, "/v1/edges/detail", src="checkout", dst="payment", lane="default", bucket="1m")
    assert [lane["calls"] for lane in found["lanes"]] == [50 * 15]
    calls = [point["calls"] for point in found["series"]]
    assert calls == [50] * 15 + [0], "a closed window that does not show the edge has no calls"
    assert (found["series"][CALM]["p95_us"], found["series"][-1]["p95_us"]) == (2 * 209_000, None)
    assert {event["kind"] for event in found["drift_events"]} == {"latency_increase"}
    both = await get(two_lanes, "/v1/edges/detail", src="checkout", dst="payment")
    assert ([lane["lane"] for lane in both["lanes"]], both["series_lane"]) == (["default", "vpc"], "vpc")
    other = await get(two_lanes, "/v1/edges/detail", src="frontend", dst="cart", port=8080, protocol=6)
    assert other["drift_events"] == []
    for wrong in ({"port": 1}, {"protocol": 17}, {"since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z"}):
        await refused(two_lanes, "/v1/edges/detail", 404, "not-found", src="frontend", dst="cart", **wrong)


async def test_a_difference_names_what_was_added_gone_and_changed(
    client: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    last = CALM + SLOW
    insert(clickhouse, "windows", [window_row("acme", last, incomplete=["late"])])
    rows = [
        edge_row("acme", last, "user", "frontend", 60_000, calls=200, flows=200),
        edge_row("acme", last, "frontend", "checkout", 30_000, errors=5),
        edge_row("acme", last, "checkout", "payment", 9_000),
        edge_row("acme", last, "frontend", "cart", 5_000),
        edge_row("acme", last, "cart", "db", 1_000),
    ]
    insert(clickhouse, "edges_1m", rows)
    at = str(START_MS + WINDOW_MS)
    found = await get(client, "/v1/graph/difference", before=at)
    told = {(edge["src"], edge["dst"]): edge["changes"] for edge in found["edges"]}
    assert told == {
        ("cart", "db"): ["added"],
        ("checkout", "cart"): ["gone"],
        ("user", "frontend"): ["calls", "bytes_per_call"],
        ("frontend", "checkout"): ["error_ratio"],
    }
    assert (found["added_total"], found["gone_total"], found["changed_total"], found["unchanged_total"]) == (1, 1, 2, 2)
    user = next(edge for edge in found["edges"] if edge["src"] == "user")
    assert (user["before"]["calls_per_window"], user["after"]["calls_per_window"]) == (50, 200)
    assert found["notes"] == ["Some windows are incomplete: an edge may only look gone, or added."]
    loose = await get(client, "/v1/graph/difference", before=at, factor=5)
    assert ("user", "frontend") not in {(edge["src"], edge["dst"]) for edge in loose["edges"]}
    cut = await get(client, "/v1/graph/difference", before=at, limit=1)
    assert (len(cut["edges"]), cut["is_truncated"]) == (1, True)


async def test_a_difference_of_runs_of_windows(client: httpx.AsyncClient) -> None:
    calm = await get(client, "/v1/graph/difference", before=str(START_MS + 5 * WINDOW_MS), after="-4m", windows=5)
    assert (calm["changed_total"], calm["unchanged_total"]) == (0, 5)
    assert (calm["before"]["windows"], calm["after"]["windows"]) == (5, 5)
    slow = await get(client, "/v1/graph/difference", before="-5m", windows=SLOW)
    changed = {edge["dst"]: edge["changes"] for edge in slow["edges"]}
    assert changed == {name: ["latency"] for name in ("payment", "checkout", "frontend")}
    overlapping = await get(client, "/v1/graph/difference", before="-2m", after="-1m", windows=10)
    assert overlapping["before"]["end_ms"] <= overlapping["after"]["start_ms"]
    await refused(client, "/v1/graph/difference", 404, "no-windows", before="2020-01-01T00:00:00Z")
    await refused(client, "/v1/graph/difference", 422, "invalid-parameter", before="-1m", after="-5m")
    await refused(client, "/v1/graph/difference", 422, "invalid-parameter", before="-5m", after="-5m")
    await refused(client, "/v1/graph/difference", 422, "invalid-parameter", before="-5m", factor="nan")


async def test_the_blast_radius_names_who_is_hurt_and_who_is_at_risk(client: httpx.AsyncClient) -> None:
    since = str(START_MS + CALM * WINDOW_MS)
    found = await get(client, "/v1/blast-radius", service="payment", since=since)
    told = {one["service"]: (one["hops"], one["status"], one["path"]) for one in found["impacted"]}
    assert told["checkout"] == (1, "at_risk", ["checkout", "payment"])
    assert told["user"][0] == 3 and found["entry_points"] == ["user"]
    impacts = [one["impact"] for one in found["impacted"]]
    assert impacts == sorted(impacts, reverse=True) and 0 < impacts[-1] < impacts[0] <= 0.9
    assert (found["baseline_since_ms"], found["baseline_until_ms"]) == (START_MS, int(since))
    edge = await get(client, "/v1/blast-radius", src="checkout", dst="payment", since=since)
    assert [one["service"] for one in edge["impacted"]] == [one["service"] for one in found["impacted"]]
    leaf = await get(client, "/v1/blast-radius", service="user", since=since)
    assert leaf["impacted"] == []
    assert [one["service"] for one in leaf["unexplained"]] == ["payment"]
    of_event = await get(client, "/v1/blast-radius", event_id="acme-event-0-1")
    assert of_event["origin"] == ["checkout", "payment"]


async def test_the_blast_radius_of_a_replays_event_is_that_of_its_calls(
    client: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    lane = "replay:old"
    insert(clickhouse, "windows", [window_row("globex", index, lane) for index in range(4)])
    rows = [edge_row("globex", index, "a", "b", 5, lane=lane) for index in range(4)]
    insert(clickhouse, "edges_1m", rows)
    insert(clickhouse, "drift_events", [event_row("globex", 40 - CALM, lane=lane, src="a", dst="b")])
    found = await get(client, "/v1/blast-radius", tenant="globex", event_id=f"globex-event-{40 - CALM}-1")
    assert [one["service"] for one in found["impacted"]] == ["a"]


async def test_the_blast_radius_of_nothing_is_refused(client: httpx.AsyncClient) -> None:
    path = "/v1/blast-radius"
    await refused(client, path, 404, "not-found", service="nobody")
    await refused(client, path, 404, "not-found", src="user", dst="payment")
    await refused(client, path, 404, "not-found", event_id="nope")
    await refused(client, path, 422, "invalid-parameter")
    await refused(client, path, 422, "invalid-parameter", src="user")
    await refused(client, path, 422, "invalid-parameter", service="cart", event_id="acme-event-0-1")
    await refused(client, path, 422, "invalid-parameter", service="cart", since="-1m", until="-2m")
    early = await get(client, path, service="payment", since=str(START_MS))
    assert early["notes"] == ["Nothing is stored from before the range: its own calls are taken."]


MANIFEST = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


async def predict(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/predictions", json=body, headers=HEADERS["acme"])


async def test_a_change_is_compared_with_the_learned_graph(client: httpx.AsyncClient) -> None:
    edges = [
        {"src": "checkout", "dst": "payment", "port": 8080, "protocol": 6},
        {"src": "frontend", "dst": "db", "port": 5432},
    ]
    rules = [{"name": "no store", "src": "front*", "dst": "db"}]
    answer = await predict(client, edges=edges, rules=rules)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [(one["effect"], one["dst"]) for one in found["changes"]] == [("violates", "db"), ("adds", "db")]
    assert found["changes"][1]["location"] == {"file": "edges", "line": 2}
    assert (found["baseline_edges"], found["risk"] >= 80) == (5, True)
    nothing = (await predict(client, edges=edges[:1])).json()
    assert (nothing["risk"], nothing["changes"]) == (0, [])
    policies = await predict(client, manifests=[{"name": "policy.yaml", "text": MANIFEST}])
    assert policies.status_code == 200 and "Policies that are in the cluster" in str(policies.json()["notes"])


async def test_a_prediction_reads_text_alone(client: httpx.AsyncClient, clickhouse: ClickHouse) -> None:
    for text in ("/etc/passwd", "!!python/object/apply:os.system [id]", "{a: &x [1], b: *x}", "a: [", "[" * 30_000):
        answer = await predict(client, manifests=[{"name": "../../etc/passwd", "text": text}])
        assert answer.status_code in (200, 422), text[:40]
        assert "root:" not in answer.text and answer.text.count("passwd") <= 3
    for body in (
        {},
        {"manifests": [{"name": "a"}]},
        {"files": ["/etc/passwd"]},
        {"edges": [{"src": "a", "dst": "b"}], "days": 0},
    ):
        check_problem(await predict(client, **body), 422, "invalid-parameter")
    check_problem(await predict(client, manifests=[{"name": "a", "text": "x" * 300_000}]), 413, "body-too-large")
    big = await predict(client, manifests=[{"name": "a", "text": "# " + "x" * 200_000}])
    assert big.status_code == 200
    insert(clickhouse, "windows", [window_row("acme", 0, "empty")])
    empty = (await predict(client, lane="empty", edges=[{"src": "a", "dst": "b"}])).json()
    assert empty["baseline_edges"] == 0 and "The baseline holds no edge" in empty["notes"][0]
    check_problem(await predict(client, lane="nobody", edges=[{"src": "a", "dst": "b"}]), 404, "no-windows")


async def test_a_prediction_is_bounded(client: httpx.AsyncClient, monkeypatch: Any) -> None:
    monkeypatch.setattr(predictions, "MAX_BASELINE_EDGES", 2)
    found = (await predict(client, edges=[{"src": "a", "dst": "b"}])).json()
    assert found["baseline_edges"] == 2 and "Only the 2 learned edges" in found["notes"][0]
    monkeypatch.setattr(predictions, "MAX_JUDGEMENTS", 1)
    check_problem(await predict(client, manifests=[{"name": "p", "text": MANIFEST}]), 422, "invalid-parameter")


async def test_what_is_kept_is_told_again_and_worked_out_anew_when_something_is_new(
    client: httpx.AsyncClient, clickhouse: ClickHouse
) -> None:
    """Causes with another event, call graphs with another closed window; of the other tenant nothing changes."""
    causes: dict[str, Any] = {"since": str(START_MS + CALM * WINDOW_MS), "lane": "default"}
    radius: dict[str, Any] = {"since": str(START_MS + CALM * WINDOW_MS), "service": "payment"}
    asked = [("/v1/root-cause", causes), ("/v1/blast-radius", radius)]
    before = {
        (path, tenant): await get(client, path, tenant, **given)
        for path, given in asked
        for tenant in ("acme", "globex")
    }
    again = {
        (path, tenant): await get(client, path, tenant, **given)
        for path, given in asked
        for tenant in ("acme", "globex")
    }
    assert again == before and before["/v1/root-cause", "acme"] != before["/v1/root-cause", "globex"]

    insert(clickhouse, "drift_events", [event_row("acme", 1, finding_id="acme-late", event_id="acme-late")])
    insert(clickhouse, "edges_1m", [edge_row("acme", -1, "batch", "payment", 9_000)])
    insert(clickhouse, "windows", [window_row("acme", -1)])
    ranked = await get(client, "/v1/root-cause", **causes)
    assert ranked["drift_events"] == before["/v1/root-cause", "acme"]["drift_events"] + 1
    assert ranked["baseline_since_ms"] == START_MS - WINDOW_MS
    found = await get(client, "/v1/blast-radius", **radius)
    assert "batch" in {one["service"] for one in found["impacted"]}
    for path, given in asked:
        assert await get(client, path, "globex", **given) == before[path, "globex"]


async def test_a_range_between_windows_of_several_lanes_is_read_as_one_of_a_lane(two_lanes: httpx.AsyncClient) -> None:
    """One query has range and baseline where it can; else there are three, to the same end."""
    since = str(START_MS + CALM * WINDOW_MS)
    alone = await get(two_lanes, "/v1/root-cause", since=since, lane="default")
    both = await get(two_lanes, "/v1/root-cause", since=since)
    spans = ("since_ms", "until_ms", "baseline_since_ms", "baseline_until_ms", "current_windows", "baseline_windows")
    assert [alone[name] for name in spans] == [both[name] for name in spans]
    assert alone["baseline_windows"] == CALM and alone["current_windows"] == SLOW
