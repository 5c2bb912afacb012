"""Renaming is not drift: what a change of a tenant's names does to what a lane knows."""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest

from models.graph.merging import EDGE_BEGUN_ANEW, EDGE_KEPT, EDGE_MERGE, EDGE_RELEARNED, SERVICE_KEPT, SERVICE_MERGE
from models.graph.registry import EDGE_COLUMNS, SERVICE_COLUMNS
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftKind
from schemas.errors import CheckpointError
from schemas.flow import Flow
from schemas.graph import ClosedWindow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import WINDOW_MS, Feed, created, in_window, story, total, usual

DETECTION = DetectionConfig(learning_windows=3, min_history=4, removed_after_silences=3, removed_min_windows=3)


def feed_of(**changes: Any) -> Feed:
    return Feed(make_lane(lateness_ms=0, detection=msgspec.structs.replace(DETECTION, **changes)))


def send(feed: Feed, flows: Iterable[Flow]) -> None:
    """Send flows in order of event time, a window a record."""
    by_window: dict[int, list[Flow]] = {}
    for flow in flows:
        by_window.setdefault(flow.time_ms // WINDOW_MS, []).append(flow)
    for index in sorted(by_window):
        feed.send(sorted(by_window[index], key=lambda flow: flow.time_ms))


def addresses(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"addresses": list(rules)}


def rule(cidr: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"cidr": cidr, **({} if name is None else {"name": name}), **more}


def pairs(window: ClosedWindow) -> set[tuple[str, str]]:
    return set(zip(window.edges.src, window.edges.dst, strict=True))


def columns_of(feed: Feed, src: str, dst: str, port: int = 8080) -> dict[str, Any]:
    registry = feed.machine.lanes["test"].registry
    number = registry.edge_number["acme", src, dst, port, 6]
    return {name: registry.edge.array[name][number].tolist() for name in EDGE_COLUMNS}


def test_what_is_merged_is_said_of_every_column() -> None:
    """A column that nobody thought of would be lost where edges or services become one."""
    assert {*EDGE_MERGE, *EDGE_RELEARNED, *EDGE_BEGUN_ANEW, *EDGE_KEPT} == EDGE_COLUMNS.keys()
    assert {*SERVICE_MERGE, *SERVICE_KEPT} == SERVICE_COLUMNS.keys()


def test_a_known_host_gets_its_name_in_place_with_all_that_is_known_of_it() -> None:
    feed = feed_of()
    send(feed, usual(range(6), dst="ip:10.0.0.5"))
    before = columns_of(feed, "shop/web", "ip:10.0.0.5")
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    after = columns_of(feed, "shop/web", "shop/db")
    assert after == {**before, "dst": after["dst"]}
    send(feed, usual(range(6, 12), dst="ip:10.0.0.5"))
    send(feed, usual([12], dst="ip:10.0.0.5", latency_us=90_000))
    feed.end()
    assert [pairs(window) for window in feed.output.windows] == [
        *[{("shop/web", "ip:10.0.0.5")}] * 5,
        *[{("shop/web", "shop/db")}] * 8,  # the window that was open when the name came is closed under it
    ]
    assert total(feed.output.windows, "calls") == 13 * 12
    # The baseline went on: the first unusual window is told.
    assert created(feed.output) == [(DriftKind.LATENCY_INCREASE, "shop/web", "shop/db", 12)]


def test_hosts_that_become_one_service_are_no_news_and_lose_nothing() -> None:
    feed = feed_of()
    hosts = [f"ip:10.0.0.{number}" for number in range(20)]
    for index in range(12):
        if index == 6:
            feed.inventory(addresses(rule("10.0.0.0/24", "shop/db")))
        half = index * WINDOW_MS + WINDOW_MS // 2
        for place, host in enumerate(hosts):
            feed.send([make_flow(half + place, dst=host, latency_us=1_000 * place, bytes_out=7, denied=1)])
            feed.send([make_flow(half + place, src=host, dst="shop/disk", reporter="server", latency_us=1_000 * place)])
    feed.end()
    assert feed.output.events == []
    assert total(feed.output.windows, "calls") == 12 * 40
    assert total(feed.output.windows, "bytes_out") == 12 * 20 * 7
    assert [len(pairs(window)) for window in feed.output.windows] == [40] * 5 + [2] * 7
    torn = feed.output.windows[5]  # half of it came before the change
    (row,) = np.flatnonzero(np.array(torn.edges.dst) == "shop/db").tolist()
    assert torn.edges.measure("calls")[row] == 20
    inside = torn.edges.histogram_edge == row
    assert torn.edges.histogram_count[inside].sum() == 20 and len(set(torn.edges.histogram_bucket[inside].tolist())) > 9
    state = feed.machine.lanes["test"].tenants[0]
    assert state.edges.count == 2 and state.settling is None


def test_a_rule_that_cuts_through_a_prefix_is_no_news_and_what_is_new_still_is() -> None:
    feed = feed_of()

    def traffic(indexes: Iterable[int]) -> list[Flow]:
        flows = []
        for last in (1, 200):
            flows += usual(indexes, dst=f"ip:52.216.{last}.7", port=443)
        return flows + usual(indexes, src="shop/pay")

    send(feed, traffic(range(8)))
    feed.inventory(addresses(rule("52.216.0.0/17", "aws/s3")))
    send(feed, traffic(range(8, 10)))
    send(feed, in_window(10, src="shop/pay", dst="ip:52.216.1.7", port=443))  # pay never called this prefix
    send(feed, in_window(10, dst="ip:52.216.1.7", port=22))  # web did, on another port
    send(feed, traffic(range(10, 20)))
    feed.end()
    assert sorted(created(feed.output)) == [
        (DriftKind.NEW_EXTERNAL_EGRESS, "shop/pay", "ext:aws/s3", 10),
        (DriftKind.NEW_PORT, "shop/web", "ext:aws/s3", 10),
    ]
    assert ("shop/web", "ext:net/52.216.0.0/16") in pairs(feed.output.windows[-1])


def test_a_node_whose_addresses_all_got_other_names_is_not_missed() -> None:
    feed = feed_of()
    flows = [flow for last in (1, 200) for flow in usual(range(30), dst=f"ip:52.216.{last}.7", port=443)]
    send(feed, [flow for flow in flows if flow.time_ms < 8 * WINDOW_MS])
    feed.inventory(addresses(rule("52.216.0.0/17", "aws/s3"), rule("52.216.128.0/17", "aws/ec2")))
    send(feed, [flow for flow in flows if flow.time_ms >= 8 * WINDOW_MS])
    feed.end()
    assert feed.output.events == []
    assert pairs(feed.output.windows[-1]) == {("shop/web", "ext:aws/s3"), ("shop/web", "ext:aws/ec2")}


def test_taking_a_rule_away_is_no_news_either() -> None:
    feed = feed_of(fan_out_min=3)
    feed.inventory(addresses(rule("10.0.0.0/8", "corp")))
    hosts = [f"ip:10.0.0.{number}" for number in range(9)]
    flows = [flow for host in hosts for flow in usual(range(30), dst=host)] + [
        flow for host in hosts for flow in usual(range(30), src=host, dst="shop/disk")
    ]
    send(feed, [flow for flow in flows if flow.time_ms < 12 * WINDOW_MS])
    assert pairs(feed.output.windows[-1]) == {("shop/web", "corp"), ("corp", "shop/disk")}
    feed.inventory(None)
    send(feed, [flow for flow in flows if flow.time_ms >= 12 * WINDOW_MS])
    feed.end()
    assert feed.output.events == []
    assert len(pairs(feed.output.windows[-1])) == 18


def test_a_rule_that_gives_another_name_renames_the_service_in_place() -> None:
    feed = feed_of()
    feed.inventory(addresses(rule("10.0.0.0/8", "corp"), rule("10.1.0.0/16", "db")))
    send(feed, usual(range(8), dst="ip:10.0.0.1") + usual(range(8), dst="ip:10.1.0.1"))
    before = columns_of(feed, "shop/web", "corp")
    feed.inventory(addresses(rule("10.0.0.0/8", "acme/corp"), rule("10.1.0.0/16", "db")))
    after = columns_of(feed, "shop/web", "acme/corp")
    assert after == {**before, "dst": after["dst"]} and after["windows_seen"] > 0
    send(feed, usual(range(8, 30), dst="ip:10.0.0.1") + usual(range(8, 30), dst="ip:10.1.0.1"))
    feed.end()
    assert feed.output.events == []


def test_a_name_that_records_give_too_is_not_taken_from_them() -> None:
    feed = feed_of()
    feed.inventory(addresses(rule("10.0.0.1", "shop/db")))
    flows = usual(range(20), dst="ip:10.0.0.1") + usual(range(20), src="shop/pay", dst="shop/db")
    send(feed, [flow for flow in flows if flow.time_ms < 8 * WINDOW_MS])
    feed.inventory(addresses(rule("10.0.0.1", "shop/database")))
    send(feed, [flow for flow in flows if flow.time_ms >= 8 * WINDOW_MS])
    feed.end()
    assert feed.output.events == []
    assert pairs(feed.output.windows[-1]) == {("shop/web", "shop/database"), ("shop/pay", "shop/db")}


def test_names_can_be_swapped() -> None:
    feed = feed_of()
    feed.inventory({"names": [{"match": "a", "name": "left"}, {"match": "b", "name": "right"}]})
    flows = usual(range(20), dst="a", latency_us=1_000) + usual(range(20), dst="b", latency_us=50_000)
    send(feed, [flow for flow in flows if flow.time_ms < 8 * WINDOW_MS])
    left, right = columns_of(feed, "shop/web", "left"), columns_of(feed, "shop/web", "right")
    feed.inventory({"names": [{"match": "a", "name": "right"}, {"match": "b", "name": "left"}]})
    now_left, now_right = columns_of(feed, "shop/web", "left"), columns_of(feed, "shop/web", "right")
    assert (now_left["mean"], now_right["mean"]) == (right["mean"], left["mean"])
    send(feed, [flow for flow in flows if flow.time_ms >= 8 * WINDOW_MS])
    feed.end()
    assert feed.output.events == []


def test_pods_that_a_name_rule_folds_into_their_job_are_no_news_and_the_next_pods_neither() -> None:
    feed = feed_of()
    feed.inventory({"labels": [{"labels": {"tier": "web"}, "name": "shop/front"}]}, name="labels")
    for index in range(20):
        if index == 8:
            feed.inventory({"names": [{"match": "shop/report-*", "name": "shop/report"}]})
        send(feed, usual([index]) + usual([index], src=f"shop/report-{index}") + usual([index], src="label:x/tier=web"))
    feed.end()
    assert sorted(created(feed.output)) == [
        (DriftKind.NEW_SERVICE, f"shop/report-{index}", "", index) for index in range(3, 8)
    ]
    assert pairs(feed.output.windows[-1]) == {(f"shop/{name}", "shop/cart") for name in ("web", "report", "front")}


@pytest.mark.parametrize("length", [8, 20, 24])
def test_another_length_of_prefixes_is_no_news(length: int) -> None:
    feed = feed_of()
    flows = [flow for n in range(5) for flow in usual(range(30), dst=f"ip:52.216.{n * 16}.7", port=443)]
    flows += usual(range(30), dst="ip:52.1.2.3", port=443)
    send(feed, [flow for flow in flows if flow.time_ms < 8 * WINDOW_MS])
    feed.control(msgspec.json.encode({"outside_prefix_v4": length}))
    send(feed, [flow for flow in flows if flow.time_ms >= 8 * WINDOW_MS])
    feed.end()
    assert feed.output.events == []
    assert len(pairs(feed.output.windows[-1])) == {8: 1, 20: 6, 24: 6}[length]


def test_an_open_finding_goes_on_under_the_identity_it_was_published_with() -> None:
    feed = feed_of(close_after_windows=3)
    send(feed, usual(range(8), dst="ip:10.0.0.5") + usual([8], dst="ip:10.0.0.5", latency_us=90_000))
    send(feed, usual(range(9, 10), dst="ip:10.0.0.5"))
    (opened,) = feed.output.events
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    send(feed, usual(range(10, 20), dst="ip:10.0.0.5"))
    send(feed, usual([20], dst="ip:10.0.0.5", latency_us=90_000) + usual([21], dst="ip:10.0.0.5"))
    feed.end()
    first, closed, second = feed.output.events[:3]
    assert (first, closed.finding_id, closed.fingerprint) == (opened, opened.finding_id, opened.fingerprint)
    assert (closed.activity, closed.dst, closed.close_reason) == (Activity.CLOSE, "shop/db", "recovered")
    assert (second.activity, second.dst) == (Activity.CREATE, "shop/db") and second.fingerprint != opened.fingerprint


def test_an_edge_that_was_removed_returns_under_its_new_name() -> None:
    feed = feed_of()
    send(feed, usual(range(20)) + usual(range(8), dst="ip:10.0.0.5"))
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    send(feed, usual(range(20, 25)) + usual(range(22, 25), dst="ip:10.0.0.5"))
    feed.end()
    assert story(feed.output.events, DriftKind.REMOVED_EDGE) == [
        (DriftKind.REMOVED_EDGE, "create", 10, ""),
        (DriftKind.REMOVED_EDGE, "close", 22, "returned"),
    ]
    assert not [event for event in feed.output.events if event.kind is DriftKind.NEW_SERVICE]


def test_two_findings_that_become_one_are_one() -> None:
    feed = feed_of()
    hosts = ("ip:10.0.0.5", "ip:10.0.0.6")
    send(feed, [f for host in hosts for f in usual(range(8), dst=host) + usual([8], dst=host, latency_us=90_000)])
    send(feed, [f for host in hosts for f in usual([9], dst=host)])
    first, second = sorted((e for e in feed.output.events), key=lambda event: event.fingerprint)
    (closed,) = feed.inventory(addresses(rule("10.0.0.0/24", "shop/db"))).events
    assert (closed.finding_id, closed.close_reason, closed.dst) == (second.finding_id, "renamed", "shop/db")
    send(feed, [f for host in hosts for f in usual(range(10, 30), dst=host)])
    feed.end()
    assert [event.finding_id for event in feed.output.events if event.activity is Activity.CLOSE] == [
        second.finding_id,
        first.finding_id,
    ]
    assert len({event.event_id for event in feed.output.events}) == len(feed.output.events)


def test_a_name_that_comes_to_stand_for_another_service_has_findings_of_its_own() -> None:
    feed = feed_of(close_after_windows=30)
    feed.inventory({"names": [{"match": "a", "name": "db"}]})
    send(feed, usual(range(8), dst="a") + usual([8], dst="a", latency_us=90_000) + usual([9], dst="a"))
    feed.inventory({"names": [{"match": "a", "name": "old-db"}]})
    send(feed, usual(range(10, 20), dst="db") + usual(range(10, 20), dst="a"))
    send(feed, usual([20], dst="db", latency_us=90_000) + usual([21], dst="db"))
    feed.end()
    found = [e for e in feed.output.events if e.kind is DriftKind.LATENCY_INCREASE and e.activity is Activity.CREATE]
    assert [(event.dst, event.episode) for event in found] == [("db", 0), ("db", 1)]
    assert found[0].finding_id != found[1].finding_id and found[0].fingerprint == found[1].fingerprint


def test_renaming_leaves_the_sum_beyond_the_cap_alone_and_frees_room() -> None:
    feed = feed_of(max_edges_per_tenant=10)
    hosts = [f"ip:10.0.0.{number}" for number in range(25)]
    send(feed, [flow for host in hosts for flow in usual([0, 1], dst=host)])
    feed.inventory(addresses(rule("10.0.0.0/24", "shop/db")))
    send(feed, [flow for host in hosts for flow in usual([1, 2], dst=host)])
    send(feed, [flow for number in range(9) for flow in usual([2, 3], dst=f"shop/{number}")])
    feed.end()
    assert total(feed.output.windows, "calls") == 25 * 4 * 12 + 9 * 2 * 12
    assert feed.machine.lanes["test"].tenants[0].edges.count == 10
    assert len(pairs(feed.output.windows[-1])) == 9, "the tenth is what all those hosts have become"


def test_bytes_that_are_no_document_change_nothing() -> None:
    feed = feed_of()
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    for value in (b"{", b"\xff", b"[]", b'{"addresses":[{"cidr":"x","name":"y"}]}', b"[" * 100_000):
        feed.control(value, kind="inventory", name="main")
    send(feed, usual([0], dst="ip:10.0.0.5"))
    feed.end()
    assert pairs(feed.output.windows[0]) == {("shop/web", "shop/db")}


def test_an_inventory_is_its_tenants_alone_and_holds_in_all_lanes_later_ones_too() -> None:
    feed = feed_of()
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")), tenant="acme")
    flows = in_window(0, dst="ip:10.0.0.5") + in_window(0, dst="ip:10.0.0.5", tenant="globex")
    feed.send(flows)
    feed.end()
    feed.lane = make_lane(name="other", generation=1, members=feed.lane.members)
    feed.next_offset[0] += 1  # behind the end of the input
    feed.send(flows)
    feed.end()
    for windows in (feed.output.windows[:2], feed.output.windows[2:]):
        assert [(w.tenant, pairs(w)) for w in sorted(windows, key=lambda w: w.tenant)] == [
            ("acme", {("shop/web", "shop/db")}),
            ("globex", {("shop/web", "ip:10.0.0.5")}),
        ]


def test_before_version_3_inventories_do_nothing_and_are_not_kept() -> None:
    feed = feed_of()
    feed.logic = 2
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    feed.control(b'{"outside_prefix_v4": 8, "min_calls": 3}')
    send(feed, usual([0], dst="ip:10.0.0.5"))
    feed.end()
    assert pairs(feed.output.windows[0]) == {("shop/web", "ip:10.0.0.5")}
    assert not feed.machine.inventories and feed.machine.settings == {"acme": {"min_calls": 3}}


def test_documents_are_stored_once_and_restored() -> None:
    feed = feed_of()
    feed.inventory(addresses(rule("10.0.0.5", "shop/db")))
    feed.inventory(addresses(rule("10.0.0.6", "shop/db")), name="second")
    send(feed, usual(range(3), dst="ip:10.0.0.5"))
    feed.inventory(addresses(rule("10.0.0.7", "shop/db")), name="second")
    chunks = {name: chunk for name, chunk in take(feed.machine, everything=True) if chunk is not None}
    documents = [name for name in chunks if name.startswith("/inventory/")]
    assert len(documents) == 3, "two in force, and one that was before"
    machine = restore(chunks)
    assert machine.inventories["acme"].is_same_as(feed.machine.inventories["acme"])
    assert dict(take(machine, everything=True)) == chunks


def test_a_change_of_many_long_names_is_stored_in_small_chunks() -> None:
    feed = feed_of(max_edges_per_tenant=20_000)
    long = "x" * 230
    flows = [make_flow(n % WINDOW_MS, src=f"{long}/{n}", dst=f"shop/{n % 3}") for n in range(5_000)]
    feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    feed.inventory({"names": [{"match": f"{long}/*1", "name": "y" * 250}, {"match": f"{long}/*2", "name": "z"}]})
    feed.send([make_flow(WINDOW_MS + n, src=f"{long}/{n}2", dst=f"shop/{n}") for n in range(3_000)])
    chunks = {name: chunk for name, chunk in take(feed.machine, everything=True) if chunk is not None}
    settling = feed.machine.lanes["test"].tenants[0].settling
    assert settling is not None and len(settling.renamed) == 1_000 and len(settling.former) > 2_000
    found = {name.split("/")[3] for name in chunks if "/settling/" in name}
    assert found == {"renamed", "services", "former"}
    assert max(len(chunk) for name, chunk in chunks.items() if "/settling/" in name) <= 512 * 1024
    assert dict(take(restore(chunks), everything=True)) == chunks
    damaged = {name: chunk for name, chunk in chunks.items() if not name.endswith("/former/1")}
    with pytest.raises(CheckpointError, match="lacks chunk"):
        restore(damaged)
