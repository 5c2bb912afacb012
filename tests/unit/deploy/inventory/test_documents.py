"""Inventory files: what is read of them, and how a large one is cut into documents."""

import random
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from deploy.inventory.documents import check_name, documents_of, is_part_of, read_file, split
from models.graph.naming import Naming
from models.graph.rules import Rules, read_document
from schemas.documents import MAX_DOCUMENT_BYTES
from schemas.errors import ConfigurationError
from schemas.inventory import (
    MAX_PATTERNS,
    AddressRule,
    Inventory,
    LabelRule,
    NameRule,
    read_inventory,
)

YAML = """
# what our networks are
addresses:
  - {cidr: 10.1.2.0/24, name: shop/db}
  - {cidr: [52.216.0.0/15, 2600:1f00::/24], name: aws/s3}
  - {cidr: 10.128.0.0/14, collapse: 24}
  - cidr: 172.16.0.0/12
    name: partner
    inside: false
labels:
  - {namespace: shop, labels: {app: cart}, name: shop/cart}
names:
  - {match: "shop/job-*", name: shop/job}
"""
RULES = Inventory(
    (
        AddressRule("10.1.2.0/24", "shop/db"),
        AddressRule(("52.216.0.0/15", "2600:1f00::/24"), "aws/s3"),
        AddressRule("10.128.0.0/14", collapse=24),
        AddressRule("172.16.0.0/12", "partner", inside=False),
    ),
    (LabelRule({"app": "cart"}, "shop/cart", "shop"),),
    (NameRule("shop/job-*", "shop/job"),),
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    assert read_file(written(tmp_path, "a.yaml", YAML)) == RULES
    assert read_file(written(tmp_path, "a.json", msgspec.json.encode(RULES).decode())) == RULES
    assert read_file(written(tmp_path, "empty.yaml", "")) == Inventory()


def test_csv_is_enough_for_addresses(tmp_path: Path) -> None:
    text = "cidr,name,inside,collapse\n10.1.2.0/24,shop/db,,\n172.16.0.0/12, partner,false,\n10.128.0.0/14,,,24\n"
    assert read_file(written(tmp_path, "a.csv", text)) == Inventory(
        (
            AddressRule("10.1.2.0/24", "shop/db"),
            AddressRule("172.16.0.0/12", "partner", inside=False),
            AddressRule("10.128.0.0/14", collapse=24),
        )
    )
    assert read_file(written(tmp_path, "head.csv", "cidr,name\n")) == Inventory()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.yaml", "addresses: {", "flow node"),
        ("a.yaml", "adresses: []", "unknown field `adresses`"),
        ("a.yaml", "addresses: [{cidr: 10.0.0.1/8, name: corp}]", "10.0.0.1/8 has host bits set"),
        ("a.csv", "range,name\n10.0.0.0/8,corp\n", "the first line names the columns cidr, name"),
        ("a.csv", "cidr,name\n10.0.0.0/8,corp,too,many\n", "the first line names the columns"),
        ("a.csv", "cidr,name\n10.0.0.0/8,\n", "needs either a name or collapse"),
        ("a.csv", "cidr,name,collapse\n10.0.0.0/8,,many\n", "Expected `int"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as raised:
        read_file(written(tmp_path, name, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_file(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="no text"):
        read_file(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", ["", "a/2", "a b", "x" * 65, "a:b"])
def test_names_of_documents_are_plain(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no name of a document"):
        check_name(name)
    assert check_name("aws-2.x_y") == "aws-2.x_y"


def test_a_small_inventory_is_one_document() -> None:
    assert split(RULES) == [RULES]
    assert list(documents_of("main", RULES)) == ["main"]


def test_a_large_one_is_cut_the_most_exact_ranges_first_and_names_the_same() -> None:
    rng = random.Random(7)
    rules: dict[str, AddressRule] = {}
    for number in range(9_000):
        length = rng.randint(12, 32)
        cidr = f"{rng.randrange(1 << 32) >> (32 - length) << (32 - length):d}"
        text = f"{'.'.join(str(int(cidr) >> shift & 255) for shift in (24, 16, 8, 0))}/{length}"
        rules[text] = AddressRule(text, f"network-of-some-length/{number % 700}")
    whole = Inventory(addresses=tuple(rules.values()), names=tuple(NameRule(f"n{n}", "m") for n in range(1_500)))
    values = documents_of("big", whole)
    assert list(values) == ["big", *(f"big/{n}" for n in range(2, len(values) + 1))] and len(values) > 3
    assert all(is_part_of(name, "big") for name in values) and not is_part_of("bigger", "big")
    assert max(map(len, values.values())) <= MAX_DOCUMENT_BYTES
    parts = [read_inventory(value) for value in values.values()]
    assert max(len(part.names) for part in parts) <= MAX_PATTERNS
    lengths = [[int(text.split("/")[1]) for rule in part.addresses for text in rule.cidrs] for part in parts]
    ordered = [found for found in lengths if found]
    assert all(min(a) >= max(b) for a, b in pairwise(ordered))
    together = Naming(Rules({name: read_document(value) for name, value in values.items()}))
    assert len(together.rules.addresses) == len(rules) and len(together.rules.names) == 1_500
    for text, rule in rng.sample(sorted(rules.items()), 300):
        address = text.split("/")[0]
        name, found = together.explain(f"ip:{address}")
        assert found is not None
        assert name.removeprefix("ext:") == rules[str(found[0])].name  # type: ignore[index]
        assert rule.name is not None


def test_more_than_a_tenant_may_have_is_refused_before_anything_is_written() -> None:
    rules = tuple(AddressRule(f"2a{n >> 16:02x}:{n & 65535:x}::/48", f"{'n' * 200}/{n}") for n in range(64 * 1_200))
    with pytest.raises(ConfigurationError, match="documents; a tenant may have 64"):
        documents_of("big", Inventory(addresses=rules))
