"""What an endpoint is called: names that a record leaves open are resolved to stable, bounded ones. Pure.

The first line that fits decides; what a rule gives is not named again:

| a record says | its node is |
|---|---|
| ``ip:ADDR`` in a range of an address rule of the tenant's inventory | what the rule says |
| ``ip:ADDR`` that is private, loopback, link-local, shared (CGNAT) or reserved | ``ip:ADDR``: a host of a LAN |
| ``ip:ADDR`` that is multicast, or the broadcast address | ``net:multicast``, ``net:broadcast`` |
| ``ip:ADDR`` of the internet | ``ext:net/PREFIX``: a /16 (IPv4) or /32 (IPv6), one node for all addresses in it |
| ``label:NAMESPACE/...`` that a label rule fits | what the rule says |
| ``label:NAMESPACE/...`` with one of the `_NAME_LABELS` | ``NAMESPACE/VALUE``, as the workload would be named |
| any other ``label:NAMESPACE/...`` | ``namespace:NAMESPACE``: one node for all its pods |
| any other name that a name rule matches | what the rule says |
| anything else | what it says |

IPv4 that stands in an IPv6 address (mapped, RFC 4291 2.5.5.2; NAT64, RFC 6052) is that IPv4 address.
"""

from typing import Self

from models.graph.addresses import name_by_range, read_address
from models.graph.rules import AddressTarget, LabelTarget, NameTarget, Rules
from schemas.detection import DetectionConfig
from schemas.ids import ADDRESS_PREFIX, LABEL_PREFIX
from schemas.inventory import Network
from schemas.tenant_log import EdgeIdentity

NAMESPACE_PREFIX = "namespace:"

_DEFAULTS = DetectionConfig()
_NAME_LABELS = ("app.kubernetes.io/name", "k8s-app", "app")
_CLUSTER_LABEL = "io.cilium.k8s.policy.cluster"
_OPEN_PREFIXES = (ADDRESS_PREFIX, LABEL_PREFIX)
_REMEMBERED = 20_000
"""Endpoints of a tenant whose names are kept; more distinct ones only make us name them again."""

Rule = tuple[Network, AddressTarget] | tuple[str, NameTarget] | LabelTarget


class Naming:
    """Names of one tenant's endpoints. Remembers what it named; it does not change otherwise.

    Args:
        prefix_v4, prefix_v6: bits of an address of the internet that its name keeps.
        as_given: everything is called as records say: so it was before there were rules.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        prefix_v4: int = _DEFAULTS.outside_prefix_v4,
        prefix_v6: int = _DEFAULTS.outside_prefix_v6,
        as_given: bool = False,
    ) -> None:
        self.rules = rules or Rules()
        self.prefix_v4 = prefix_v4
        self.prefix_v6 = prefix_v6
        self.as_given = as_given
        self._named: dict[str, str] = {}

    def is_same_as(self, other: Self) -> bool:
        """Say whether both give every endpoint the same name, and by the same rules."""
        return (self.prefix_v4, self.prefix_v6, self.as_given) == (
            other.prefix_v4,
            other.prefix_v6,
            other.as_given,
        ) and self.rules.is_same_as(other.rules)

    def name(self, given: str) -> str:
        """Return what the endpoint is called that a record names so."""
        if self.as_given or not (given.startswith(_OPEN_PREFIXES) or len(self.rules.names)):
            return given
        name = self._named.get(given)
        if name is None:
            if len(self._named) >= _REMEMBERED:
                self._named.clear()
            name = self._named[given] = self.explain(given)[0]
        return name

    def edge(self, given: EdgeIdentity) -> EdgeIdentity:
        """Return the edge that a record's edge counts to."""
        tenant, src, dst, port, protocol = given
        return (tenant, self.name(src), self.name(dst), port, protocol)

    def explain(self, given: str) -> tuple[str, Rule | None]:
        """Return what an endpoint is called, and the rule of the inventory that says so, if it is one."""
        if self.as_given or not given:
            return given, None
        if given.startswith(ADDRESS_PREFIX):
            return self._of_address(given)
        if given.startswith(LABEL_PREFIX):
            return self._of_labels(given)
        found = self.rules.names.find(given)
        return (given, None) if found is None else (found[1].name, found)

    def _of_address(self, given: str) -> tuple[str, Rule | None]:
        address = read_address(given[len(ADDRESS_PREFIX) :])
        if address is None:
            return given, None
        found = self.rules.addresses.around_address(address)
        if found is not None:
            return found[1].name_of(address), found
        return name_by_range(address, self.prefix_v4, self.prefix_v6), None

    def _of_labels(self, given: str) -> tuple[str, Rule | None]:
        namespace, slash, text = given[len(LABEL_PREFIX) :].partition("/")
        if not slash:
            return given, None
        labels = {key: value for key, _, value in (label.partition("=") for label in text.split(","))}
        for rule in self.rules.labels:
            if rule.fits(namespace, labels):
                return rule.name, rule
        cluster = f"{labels[_CLUSTER_LABEL]}:" if labels.get(_CLUSTER_LABEL) else ""
        for key in _NAME_LABELS:
            if labels.get(key):
                return f"{cluster}{namespace}/{labels[key]}" if namespace else f"{cluster}{labels[key]}", None
        return f"{NAMESPACE_PREFIX}{cluster}{namespace or 'unknown'}", None


LITERAL = Naming(as_given=True)
"""Names as records say them."""
