"""Which rule names what, and that looking rules up says what trying all of them says."""

import ipaddress
import random
import re

import msgspec
import pytest

from models.graph.addresses import RangeTable, ranges_of_name
from models.graph.naming import Naming
from models.graph.patterns import PatternTable, exactness, matches
from models.graph.rules import Rules, read_document
from schemas.documents import MAX_DOCUMENTS
from schemas.inventory import ANY, Network


def rules_of(**documents: dict[str, object]) -> Rules:
    return Rules({name: read_document(msgspec.json.encode(document)) for name, document in documents.items()})


def addresses(*rules: dict[str, object]) -> dict[str, object]:
    return {"addresses": list(rules)}


NAMING = Naming(
    rules_of(
        main={
            "addresses": [
                {"cidr": "10.0.0.0/8", "name": "corp"},
                {"cidr": "10.1.0.0/16", "collapse": 24},
                {"cidr": "10.1.2.0/24", "name": "shop/cart"},
                {"cidr": "10.1.2.3", "name": "shop/db"},
                {"cidr": "64.225.56.201", "name": "sensor", "inside": True},
                {"cidr": "172.20.0.0/16", "name": "partner", "inside": False},
                {"cidr": "172.21.0.0/16", "collapse": 20, "inside": False},
                {"cidr": "52.216.0.0/15", "name": "aws/s3"},
                {"cidr": "52.218.0.0/15", "name": "ext:aws/s3"},
                {"cidr": ["fd00::/8", "2600:1f00::/24"], "name": "both"},
            ],
            "labels": [
                {"labels": {"tier": "*"}, "name": "any/tier"},
                {"labels": {"tier": "web*"}, "namespace": "shop", "name": "shop/web"},
                {"labels": {"tier": "web", "role": "edge"}, "name": "edge"},
            ],
            "names": [
                {"match": "prod/cart-*", "name": "prod/cart"},
                {"match": "prod/cart-x*", "name": "prod/cart-x"},
                {"match": "prod/cart-x1", "name": "exact"},
                {"match": "*.example.com", "name": "ext:example.com"},
            ],
        }
    )
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("ip:10.9.9.9", "corp"),
        ("ip:10.1.9.9", "net:10.1.9.0/24"),
        ("ip:10.1.2.9", "shop/cart"),
        ("ip:10.1.2.3", "shop/db"),
        ("ip:::ffff:10.1.2.3", "shop/db"),
        ("ip:64.225.56.201", "sensor"),
        ("ip:64.225.56.202", "ext:net/64.225.0.0/16"),
        ("ip:172.20.1.1", "ext:partner"),
        ("ip:172.21.17.1", "ext:net/172.21.16.0/20"),
        ("ip:52.217.1.1", "ext:aws/s3"),
        ("ip:52.219.1.1", "ext:aws/s3"),
        ("ip:fd00::1", "both"),
        ("ip:2600:1f00::1", "ext:both"),
        ("ip:192.168.0.1", "ip:192.168.0.1"),
        ("label:shop/tier=web", "shop/web"),
        ("label:shop/tier=webby", "shop/web"),
        ("label:shop/role=edge,tier=web", "edge"),
        ("label:blog/tier=web", "any/tier"),
        ("label:blog/team=a", "namespace:blog"),
        ("label:blog/app=front,team=a", "blog/front"),
        ("label:blog/app.kubernetes.io/name=front,app=other", "blog/front"),
        ("label:blog/app=front,io.cilium.k8s.policy.cluster=west", "west:blog/front"),
        ("label:blog/io.cilium.k8s.policy.cluster=west,team=a", "namespace:west:blog"),
        ("label:/team=a", "namespace:unknown"),
        ("label:/app=front", "front"),
        ("label:blog/", "namespace:blog"),
        ("label:blog", "label:blog"),
        ("prod/cart-a", "prod/cart"),
        ("prod/cart-x2", "prod/cart-x"),
        ("prod/cart-x1", "exact"),
        ("prod/cart", "prod/cart"),
        ("www.example.com", "ext:example.com"),
        ("", ""),
    ],
)
def test_names_by_rule(given: str, name: str) -> None:
    assert NAMING.name(given) == name
    assert NAMING.explain(given)[0] == name


def test_of_two_documents_with_a_rule_for_the_same_the_one_named_first_wins() -> None:
    first, second = addresses({"cidr": "10.0.0.0/8", "name": "one"}), addresses({"cidr": "10.0.0.0/8", "name": "two"})
    assert Naming(rules_of(a=first, b=second)).name("ip:10.0.0.1") == "one"
    assert Naming(rules_of(b=first, a=second)).name("ip:10.0.0.1") == "two"


def test_documents_are_set_and_taken_away_and_not_without_bound() -> None:
    document = read_document(msgspec.json.encode(addresses({"cidr": "10.0.0.0/8", "name": "one"})))
    rules = Rules()
    for number in range(MAX_DOCUMENTS + 1):
        rules = rules.with_document(f"d{number}", document)
    assert len(rules.documents) == MAX_DOCUMENTS
    other = read_document(b"{}")
    assert rules.with_document("d0", other).documents["d0"] is other, "one that is there can change"
    assert len(rules.with_document("d0", None).documents) == MAX_DOCUMENTS - 1
    assert rules.with_document("absent", None).is_same_as(rules)


def naive_around(ranges: dict[Network, int], wanted: Network) -> tuple[Network, int] | None:
    around = [n for n in ranges if n.version == wanted.version and wanted.subnet_of(n)]  # type: ignore[arg-type]
    best = max(around, key=lambda n: n.prefixlen, default=None)
    return None if best is None else (best, ranges[best])


def random_range(rng: random.Random) -> Network:
    if rng.random() < 0.5:
        return ipaddress.ip_network((rng.choice([0x0A000000, 0x0A010203, 0x08080808]), rng.randint(0, 32)), False)
    return ipaddress.ip_network((rng.choice([0x2A00 << 112, 0x2A00 << 112 | 7]), rng.randint(0, 128)), False)


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_range_around_and_the_ranges_within_are_those_that_trying_all_finds(seed: int) -> None:
    rng = random.Random(seed)
    ranges = {random_range(rng): number for number in range(rng.randint(0, 40))}
    table = RangeTable(ranges)
    for _ in range(60):
        wanted = random_range(rng)
        assert table.around(wanted) == naive_around(ranges, wanted)
        alone = ipaddress.ip_network(wanted.network_address)
        assert table.around_address(wanted.network_address) == naive_around(ranges, alone)
        within = [n for n in ranges if n.version == wanted.version and n != wanted and n.subnet_of(wanted)]  # type: ignore[arg-type]
        assert table.has_inside(wanted) is bool(within)
        assert table.get(wanted) == ranges.get(wanted)


@pytest.mark.parametrize("seed", range(30))
def test_patterns_match_as_regular_expressions_do_and_the_most_exact_wins(seed: int) -> None:
    rng = random.Random(seed)

    def text(letters: str, most: int) -> str:
        return "".join(rng.choice(letters) for _ in range(rng.randint(0, most)))

    patterns = {text("ab*", 6): number for number in range(12)}
    table = PatternTable(patterns)
    for _ in range(100):
        wanted = text("ab", 8)
        fitting = []
        for pattern in patterns:
            expression = ".*".join(re.escape(part) for part in pattern.split(ANY))
            assert matches(pattern, wanted) is (re.fullmatch(expression, wanted) is not None), (pattern, wanted)
            if matches(pattern, wanted):
                fitting.append(pattern)
        best = min(fitting, key=lambda p: (ANY in p, -exactness(p), p), default=None)
        assert table.find(wanted) == (None if best is None else (best, patterns[best]))


def test_no_pattern_makes_matching_slow() -> None:
    assert not matches("*a" * 120 + "b", "a" * 250)


def test_names_of_ranges_are_read_back() -> None:
    for given in ("ip:10.0.0.1", "ip:8.8.8.8", "ip:2a00::1", "ip:224.0.0.1", "ip:ff02::1", "ip:255.255.255.255"):
        address = ipaddress.ip_address(given[3:])
        assert any(address in network for network in ranges_of_name(Naming().name(given)))
    assert ranges_of_name("net:corp") == ranges_of_name("shop/cart") == ()
