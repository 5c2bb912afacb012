"""Documents of an inventory: what is sound, what is refused and in which words."""

import msgspec
import pytest

from schemas.documents import MAX_DOCUMENT_BYTES
from schemas.inventory import (
    MAX_PATTERNS,
    AddressRule,
    Inventory,
    LabelRule,
    NameRule,
    encode_inventory,
    read_inventory,
)

GOOD = {
    "addresses": [
        {"cidr": "10.1.2.3", "name": "shop/db"},
        {"cidr": ["52.216.0.0/15", "2600:1f00::/24"], "name": "aws/s3"},
        {"cidr": "10.128.0.0/14", "collapse": 24},
        {"cidr": "172.16.0.0/12", "name": "partner", "inside": False},
    ],
    "labels": [{"namespace": "shop", "labels": {"app": "cart*"}, "name": "shop/cart"}],
    "names": [{"match": "shop/job-*", "name": "shop/job"}],
}


def test_a_document_is_read_and_written_back() -> None:
    inventory = read_inventory(msgspec.json.encode(GOOD))
    assert inventory == Inventory(
        (
            AddressRule("10.1.2.3", "shop/db"),
            AddressRule(("52.216.0.0/15", "2600:1f00::/24"), "aws/s3"),
            AddressRule("10.128.0.0/14", collapse=24),
            AddressRule("172.16.0.0/12", "partner", inside=False),
        ),
        (LabelRule({"app": "cart*"}, "shop/cart", "shop"),),
        (NameRule("shop/job-*", "shop/job"),),
    )
    assert msgspec.json.decode(encode_inventory(inventory)) == GOOD
    assert read_inventory(b"{}") == Inventory()


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"address": []}, "unknown field `address`"),
        ({"addresses": [{"name": "a"}]}, "missing required field `cidr`"),
        ({"addresses": [{"cidr": "10.0.0.0/8"}]}, "10.0.0.0/8 needs either a name or collapse"),
        ({"addresses": [{"cidr": "10.0.0.0/8", "name": "a", "collapse": 9}]}, "needs either a name or collapse"),
        ({"addresses": [{"cidr": "10.0.0.1/8", "name": "a"}]}, "10.0.0.1/8 has host bits set"),
        ({"addresses": [{"cidr": "ten/8", "name": "a"}]}, "'ten/8' does not appear to be an IPv4 or IPv6 network"),
        ({"addresses": [{"cidr": "10.0.0.0/16", "collapse": 8}]}, "cannot be cut into ranges of 8 bits"),
        ({"addresses": [{"cidr": "10.0.0.0/16", "collapse": 33}]}, "cannot be cut into ranges of 33 bits"),
        ({"addresses": [{"cidr": "10.0.0.0/16", "collapse": -1}]}, "Expected `int` >= 0"),
        ({"addresses": [{"cidr": "10.0.0.0/8", "name": "ext:a", "inside": True}]}, "outside by its name and inside"),
        ({"addresses": [{"cidr": "10.0.0.0/8", "name": ""}]}, "length >= 1"),
        ({"addresses": [{"cidr": "10.0.0.0/8", "name": "é" * 127}]}, "longer than 252 bytes"),
        ({"addresses": [{"cidr": "10.0.0.0/8", "name": "ip:10.0.0.1"}]}, "still to be named"),
        ({"addresses": [{"cidr": ["::/0", "0::/0"], "name": "a"}]}, "::/0 has two rules"),
        ({"addresses": [{"cidr": ["10.0.0.0/8", "::ffff:10.0.0.0/104"], "name": "a"}]}, "10.0.0.0/8 has two rules"),
        ({"labels": [{"labels": {}, "name": "a"}]}, "names no label"),
        ({"labels": [{"labels": {"a": "b"}, "name": "label:x/y"}]}, "still to be named"),
        ({"labels": [{"labels": {"a": "b"}, "name": "x"}, {"labels": {"a": "b"}, "name": "y"}]}, "two rules"),
        ({"names": [{"match": "a", "name": "b"}, {"match": "a", "name": "c"}]}, "a has two rules"),
        ({"names": [{"match": "ip:10.*", "name": "b"}]}, "matches nothing"),
        ({"names": [{"match": f"a{n}", "name": "b"} for n in range(MAX_PATTERNS + 1)]}, "more than 1000 rules"),
        ([], "Expected `object`"),
    ],
)
def test_what_makes_no_sense_is_refused(document: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_inventory(msgspec.json.encode(document))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 200_000, b" " * (MAX_DOCUMENT_BYTES + 1) + b"{}"])
def test_bytes_that_are_no_document_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="inventory document"):
        read_inventory(data)
