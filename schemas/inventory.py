"""A tenant's inventory: rules by which its endpoints are named. Types, and what makes a document sound. Pure.

An inventory is a set of documents. Each is one record of `drift-controls`, key ``tenant:inventory:NAME``, its value the
JSON of an `Inventory`; an empty value takes the document away. docs/inventory.md says which rule wins.
"""

import ipaddress
from collections.abc import Iterator
from typing import Annotated

import msgspec

from schemas.documents import read_document
from schemas.flow import MAX_NAME_BYTES
from schemas.ids import ADDRESS_PREFIX, EXTERNAL_PREFIX, LABEL_PREFIX

INVENTORY = "inventory"
"""Kind of control that carries a document."""
MAX_PATTERNS = 1_000
"""Rules in one document that are no address ranges: those are looked up, these are tried."""

ANY = "*"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_RULE_NAME_BYTES = MAX_NAME_BYTES - len(EXTERNAL_PREFIX)
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]


class AddressRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Names the addresses in some ranges.

    Attributes:
        cidr: one range or several, ``10.0.0.0/8`` or a bare address.
        name: of all of them.
        collapse: instead of a name, the bits to keep: each range of that length becomes ``net:RANGE``.
        inside: whether they belong to the tenant's estate; absent, private ranges do and public ones do not.
    """

    cidr: str | tuple[str, ...]
    name: _Text | None = None
    collapse: Annotated[int, msgspec.Meta(ge=0, le=128)] | None = None
    inside: bool | None = None

    @property
    def cidrs(self) -> tuple[str, ...]:
        """Return the ranges, one or several."""
        return (self.cidr,) if isinstance(self.cidr, str) else self.cidr


class LabelRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Names the pods that have these labels, of which values may hold ``*``; of one namespace, or of all."""

    labels: dict[_Text, str]
    name: _Text
    namespace: _Text | None = None


class NameRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Gives another name to endpoints that records name so; ``*`` in ``match`` stands for any text."""

    match: _Text
    name: _Text


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One document."""

    addresses: tuple[AddressRule, ...] = ()
    labels: tuple[LabelRule, ...] = ()
    names: tuple[NameRule, ...] = ()


_decoder = msgspec.json.Decoder(Inventory)


def read_network(text: str) -> Network:
    """Return the range that a rule names; IPv4 written as IPv6 (``::ffff:10.0.0.0/104``) is IPv4.

    Raises:
        ValueError: it is none, or has bits set beyond its length.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def read_inventory(data: bytes) -> Inventory:
    """Read a document and check all of it.

    Raises:
        ValueError: it is too large, not JSON of its form, or a rule makes no sense; the text says which and why.
    """
    inventory = read_document(data, _decoder, "an inventory")
    check_inventory(inventory)
    return inventory


def encode_inventory(inventory: Inventory) -> bytes:
    """Return the value of a control."""
    return msgspec.json.encode(inventory)


def check_inventory(inventory: Inventory) -> None:
    """Check what the types cannot say.

    Raises:
        ValueError: a rule makes no sense; the text says which and why.
    """
    if len(inventory.labels) + len(inventory.names) > MAX_PATTERNS:
        raise ValueError(f"more than {MAX_PATTERNS} rules by label and name in one document")
    for what, subjects in (
        ("addresses", (str(network) for rule in inventory.addresses for network in _networks(rule))),
        ("labels", map(_label_subject, inventory.labels)),
        ("names", map(_name_subject, inventory.names)),
    ):
        seen: set[str] = set()
        for subject in subjects:
            if subject in seen:
                raise ValueError(f"{what}: {subject} has two rules in one document")
            seen.add(subject)
    for rule in inventory.addresses:
        if rule.name is not None:
            _check_name(rule.name)
    for name in (*(rule.name for rule in inventory.labels), *(rule.name for rule in inventory.names)):
        _check_name(name)


def _networks(rule: AddressRule) -> Iterator[Network]:
    if (rule.name is None) == (rule.collapse is None):
        raise ValueError(f"addresses: {_short(rule)} needs either a name or collapse")
    if rule.inside and rule.name is not None and rule.name.startswith(EXTERNAL_PREFIX):
        raise ValueError(f"addresses: {rule.name!r} lies outside by its name and inside by its rule")
    for text in rule.cidrs:
        try:
            network = read_network(text)
        except ValueError as error:
            raise ValueError(f"addresses: {error}") from error
        if rule.collapse is not None and not network.prefixlen <= rule.collapse <= network.max_prefixlen:
            raise ValueError(f"addresses: {text} cannot be cut into ranges of {rule.collapse} bits")
        yield network


def _short(rule: AddressRule) -> str:
    return (rule.cidrs or ("a rule without ranges",))[0]


def _label_subject(rule: LabelRule) -> str:
    if not rule.labels:
        raise ValueError(f"labels: the rule for {rule.name!r} names no label")
    labels = ",".join(f"{key}={value}" for key, value in sorted(rule.labels.items()))
    return f"{rule.namespace or ANY}/{labels}"


def _name_subject(rule: NameRule) -> str:
    if rule.match.startswith((ADDRESS_PREFIX, LABEL_PREFIX)):
        raise ValueError(f"names: {rule.match!r} matches nothing: what begins so is named by `addresses` and `labels`")
    return rule.match


def _check_name(name: str) -> None:
    if len(name.encode(errors="replace")) > _MAX_RULE_NAME_BYTES:
        raise ValueError(f"the name {name[:40]!r}... is longer than {_MAX_RULE_NAME_BYTES} bytes")
    if name.startswith((ADDRESS_PREFIX, LABEL_PREFIX)):
        raise ValueError(f"{name!r} is no name to give: what begins so is still to be named")
