"""Addresses that no rule names: hosts of a LAN keep theirs, those of the internet share one name a prefix."""

import doctest
import ipaddress

import msgspec
import pytest

import models.graph.addresses
import models.graph.patterns
from models.graph.addresses import BROADCAST, MULTICAST
from models.graph.naming import Naming
from schemas.drift import DriftKind
from schemas.ids import is_external
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import WINDOW_MS, Feed, created, judge, total, usual


def test_examples() -> None:
    for module in (models.graph.addresses, models.graph.patterns):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ip:10.1.2.3", "ip:10.1.2.3"),
        ("ip:172.31.255.255", "ip:172.31.255.255"),
        ("ip:192.168.1.1", "ip:192.168.1.1"),
        ("ip:100.64.0.1", "ip:100.64.0.1"),
        ("ip:169.254.169.254", "ip:169.254.169.254"),
        ("ip:127.0.0.1", "ip:127.0.0.1"),
        ("ip:0.0.0.0", "ip:0.0.0.0"),
        ("ip:240.0.0.1", "ip:240.0.0.1"),
        ("ip:fd00::1", "ip:fd00::1"),
        ("ip:fe80::1", "ip:fe80::1"),
        ("ip:::1", "ip:::1"),
        ("ip:::", "ip:::"),
        ("ip:FD00:0::1", "ip:fd00::1"),
        ("ip:::ffff:10.0.0.1", "ip:10.0.0.1"),
        ("ip:64:ff9b::a00:1", "ip:10.0.0.1"),
        ("ip:172.32.0.1", "ext:net/172.32.0.0/16"),
        ("ip:100.128.0.1", "ext:net/100.128.0.0/16"),
        ("ip:203.0.113.9", "ext:net/203.0.0.0/16"),
        ("ip:8.8.8.8", "ext:net/8.8.0.0/16"),
        ("ip:::ffff:8.8.8.8", "ext:net/8.8.0.0/16"),
        ("ip:64:ff9b::808:808", "ext:net/8.8.0.0/16"),
        ("ip:2a00:1450:4001:80b::200e", "ext:net/2a00:1450::/32"),
        ("ip:224.0.0.251", MULTICAST),
        ("ip:ff02::2", MULTICAST),
        ("ip:255.255.255.255", BROADCAST),
        ("ip:", "ip:"),
        ("ip:10.0.0.300", "ip:10.0.0.300"),
        ("prod/cart", "prod/cart"),
        ("ext:unknown", "ext:unknown"),
        ("8.8.8.8", "8.8.8.8"),
    ],
)
def test_names_by_range(given: str, name: str) -> None:
    naming = Naming()
    assert naming.name(given) == name
    assert naming.name(given) == name, "and so the second time"
    assert naming.name(name) == name, "a name is its own name"


def test_prefixes_are_a_setting() -> None:
    naming = Naming(prefix_v4=8, prefix_v6=48)
    assert naming.name("ip:8.8.8.8") == "ext:net/8.0.0.0/8"
    assert naming.name("ip:2a00:1450:4001:80b::200e") == "ext:net/2a00:1450:4001::/48"
    assert Naming(prefix_v4=1000, prefix_v6=1000).name("ip:8.8.8.8") == "ext:net/8.8.8.8/32"


def test_names_are_forgotten_rather_than_kept_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.graph.naming._REMEMBERED", 3)
    naming = Naming()
    for last in range(10):
        assert naming.name(f"ip:8.8.{last}.8") == "ext:net/8.8.0.0/16"
    assert len(naming._named) <= 3


def test_addresses_of_the_internet_are_few_nodes_and_every_call_counts() -> None:
    flows = [make_flow(number * 10, dst=f"ip:93.184.{number % 7}.{number % 250}", port=443) for number in range(900)]
    flows += [make_flow(number * 10 + 1, dst=f"ip:10.0.0.{number % 3}", port=443) for number in range(90)]
    output = judge(flows)
    edges = {edge for window in output.windows for edge in zip(window.edges.src, window.edges.dst, strict=True)}
    assert edges == {("shop/web", name) for name in ("ext:net/93.184.0.0/16", *(f"ip:10.0.0.{n}" for n in range(3)))}
    assert total(output.windows, "calls") == len(flows)


def test_another_address_of_a_known_prefix_is_no_news_and_one_of_another_prefix_is() -> None:
    flows = usual(range(8), dst="ip:93.184.216.34", port=443)
    flows += [make_flow(6 * WINDOW_MS, dst="ip:93.184.9.9", port=443)]
    assert created(judge(flows)) == []
    flows += [make_flow(6 * WINDOW_MS + 1, dst="ip:9.9.9.9", port=443)]
    assert created(judge(flows)) == [(DriftKind.NEW_EXTERNAL_EGRESS, "shop/web", "ext:net/9.9.0.0/16", 6)]


def test_an_early_finding_counts_all_addresses_of_its_prefix_however_they_are_cut_into_records() -> None:
    known = usual(range(5))
    new = [make_flow(5 * WINDOW_MS + 100 - n, dst=f"ip:9.9.9.{n}", port=443, calls=2) for n in range(10)]
    feed = Feed()
    feed.send(known)
    feed.send([make_flow(5 * WINDOW_MS + 6_000)])  # closes what was learned
    (event,) = (event for event in feed.send(new).events if event.is_early)
    assert (event.kind, event.dst, is_external(event.dst)) == (
        DriftKind.NEW_EXTERNAL_EGRESS,
        "ext:net/9.9.0.0/16",
        True,
    )
    assert (event.evidence[0].observed, event.first_seen_ms) == (20.0, new[-1].time_ms)


def test_before_version_3_an_address_is_a_name_like_any_other() -> None:
    feed = Feed()
    feed.logic = 2
    feed.send(usual(range(2), dst="ip:93.184.216.34"))
    feed.end()
    assert {name for window in feed.output.windows for name in window.edges.dst} == {"ip:93.184.216.34"}


def test_from_the_record_on_that_brings_version_3_addresses_are_named_by_their_prefix_and_that_is_no_news() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.logic = 2
    feed.send(usual(range(6), dst="ip:93.184.216.34"))
    feed.logic = 3
    for step in range(1, 8):
        feed.append(
            msgspec.structs.replace(feed.log[-1], rows=None, as_of_ms=feed.log[-1].as_of_ms + 10_000, progress=())
        )
        assert feed.machine.logic.in_force == (3 if step > 6 else 2)
    feed.send(usual(range(6, 30), dst="ip:93.184.216.34"))
    feed.end()
    names = [set(window.edges.dst) for window in feed.output.windows]
    assert names == [{"ip:93.184.216.34"}] * 5 + [{"ext:net/93.184.0.0/16"}] * 25
    assert feed.output.events == []


def test_the_quick_way_to_tell_inside_from_outside_says_what_the_table_says() -> None:
    from models.graph.addresses import _INSIDE_V4, _MULTICAST_V4, is_outside  # the table is nobody else's business

    edges = [address for network in (*_INSIDE_V4, _MULTICAST_V4) for address in (network[0], network[-1])]
    values = {int(address) + step for address in edges for step in (-1, 0, 1)}
    for value in sorted(values - {-1, 1 << 32}):
        address = ipaddress.IPv4Address(value)
        inside = address in _MULTICAST_V4 or any(address in network for network in _INSIDE_V4)
        assert is_outside(address) is not inside
