"""A tenant's inventory, ready to be looked up: which rule names an address, a pod by its labels, a given name. Pure.

Of address rules the longest range wins; of label rules the one with most labels, then one that names a namespace; of
name rules one without ``*``, then the one that fixes most characters. If several documents have a rule for the same,
that of the one whose name comes first wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from models.graph.addresses import Address, RangeTable, is_mixed, is_outside, name_of_prefix
from models.graph.patterns import PatternTable, matches
from schemas.documents import MAX_DOCUMENTS
from schemas.ids import EXTERNAL_PREFIX, stable_hash
from schemas.inventory import (
    ANY,
    AddressRule,
    Inventory,
    LabelRule,
    Network,
    read_inventory,
    read_network,
)


@dataclass(frozen=True, slots=True)
class AddressTarget:
    """What a document says of a range; ``inside`` None: whatever the address's own range says."""

    document: str
    name: str | None
    collapse: int | None
    inside: bool | None

    def name_of(self, address: Address) -> str:
        """Return the name of an address in the range."""
        inside = not is_outside(address) if self.inside is None else self.inside
        if self.name is None:
            return name_of_prefix(address, self.collapse or 0, inside)
        return self.name if inside or self.name.startswith(EXTERNAL_PREFIX) else EXTERNAL_PREFIX + self.name

    def names_in(self, network: Network) -> tuple[str, ...]:
        """Return the names it can give in a range, unless it gives one to each range of some length."""
        if self.name is None:
            return ()
        name = self.name_of(network.network_address)
        if self.inside is not None or not is_mixed(network):
            return (name,)
        return (self.name, name if name != self.name else EXTERNAL_PREFIX + name)

    def says_the_same(self, other: "AddressTarget | None") -> bool:
        """Say whether addresses get the same names by both, whichever document they stand in."""
        return other is not None and (self.name, self.collapse, self.inside) == (
            other.name,
            other.collapse,
            other.inside,
        )


@dataclass(frozen=True, slots=True)
class LabelTarget:
    """A label rule of a document. ``labels``: keys and patterns of values, sorted."""

    document: str
    namespace: str | None
    labels: tuple[tuple[str, str], ...]
    name: str

    @property
    def subject(self) -> str:
        """Return what the rule is about."""
        return f"{self.namespace or ANY}/{','.join(f'{key}={value}' for key, value in self.labels)}"

    def fits(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Say whether a pod has the labels."""
        return self.namespace in (None, namespace) and all(
            key in labels and matches(pattern, labels[key]) for key, pattern in self.labels
        )


@dataclass(frozen=True, slots=True)
class NameTarget:
    """The name that a document gives instead of another."""

    document: str
    name: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document, read. ``digest`` stands for ``data``."""

    digest: str
    data: bytes
    inventory: Inventory
    ranges: tuple[tuple[Network, AddressRule], ...]


def read_document(data: bytes) -> Document:
    """Read a document.

    Raises:
        ValueError: see `schemas.inventory.read_inventory`.
    """
    inventory = read_inventory(data)
    ranges = tuple((read_network(text), rule) for rule in inventory.addresses for text in rule.cidrs)
    return Document(stable_hash("inventory", data.hex()), data, inventory, ranges)


class Rules:
    """All documents of one tenant. It does not change: another set of documents is another object.

    Attributes:
        documents: by name.
    """

    def __init__(self, documents: Mapping[str, Document] | None = None) -> None:
        self.documents = dict(sorted((documents or {}).items()))

    def with_document(self, name: str, document: Document | None) -> Self:
        """Return the rules once a document is set, or taken away; one too many changes nothing."""
        others = {other: kept for other, kept in self.documents.items() if other != name}
        if document is None:
            return type(self)(others)
        return type(self)({**others, name: document}) if len(others) < MAX_DOCUMENTS else self

    def is_same_as(self, other: Self) -> bool:
        """Say whether both hold the same documents."""
        return self.digests == other.digests

    @property
    def digests(self) -> dict[str, str]:
        """Return each document's digest."""
        return {name: document.digest for name, document in self.documents.items()}

    @cached_property
    def addresses(self) -> RangeTable[AddressTarget]:
        """Return the address rules in force."""
        ranges: dict[Network, AddressTarget] = {}
        for name, document in self.documents.items():
            targets: dict[int, AddressTarget] = {}  # a rule's ranges share one
            for network, rule in document.ranges:
                target = targets.get(id(rule))
                if target is None:
                    target = targets[id(rule)] = AddressTarget(name, rule.name, rule.collapse, rule.inside)
                ranges.setdefault(network, target)
        return RangeTable(ranges)

    @cached_property
    def names(self) -> PatternTable[NameTarget]:
        """Return the name rules in force."""
        patterns: dict[str, NameTarget] = {}
        for name, document in self.documents.items():
            for rule in document.inventory.names:
                patterns.setdefault(rule.match, NameTarget(name, rule.name))
        return PatternTable(patterns)

    @cached_property
    def labels(self) -> tuple[LabelTarget, ...]:
        """Return the label rules in force, those that win first."""
        targets = [
            _label_target(name, rule) for name, document in self.documents.items() for rule in document.inventory.labels
        ]
        first: dict[str, LabelTarget] = {}
        for target in targets:
            first.setdefault(target.subject, target)
        return tuple(sorted(first.values(), key=lambda t: (-len(t.labels), t.namespace is None, t.document, t.subject)))


def _label_target(document: str, rule: LabelRule) -> LabelTarget:
    return LabelTarget(document, rule.namespace, tuple(sorted(rule.labels.items())), rule.name)
