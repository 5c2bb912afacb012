"""What an endpoint is called: names that a record leaves open are resolved to stable, bounded ones. Pure.

| a record says | its node is |
|---|---|
| ``ip:ADDR`` that is private, loopback, link-local, shared (CGNAT) or reserved | ``ip:ADDR``: a host of a LAN |
| ``ip:ADDR`` that is multicast, or the broadcast address | ``net:multicast``, ``net:broadcast`` |
| ``ip:ADDR`` of the internet | ``ext:net/PREFIX``: a /16 (IPv4) or /32 (IPv6), one node for all addresses in it |
| anything else | what it says |

IPv4 that stands in an IPv6 address (mapped, RFC 4291 2.5.5.2; NAT64, RFC 6052) is that IPv4 address.

Inside and outside follow the table `_INSIDE_V4`, not `ipaddress.is_private`: what that calls private has changed
between releases of Python, and the same log must give the same names. Addresses for documentation (RFC 5737, RFC 3849)
count as outside: where they turn up, they stand for the internet.
"""

import ipaddress

from schemas.ids import EXTERNAL_PREFIX
from schemas.tenant_log import EdgeIdentity

ADDRESS_PREFIX = "ip:"
NETWORK_PREFIX = "net:"
MULTICAST = NETWORK_PREFIX + "multicast"
BROADCAST = NETWORK_PREFIX + "broadcast"
OUTSIDE_NETWORK = EXTERNAL_PREFIX + "net/"

OUTSIDE_PREFIX_V4 = 16
"""At most 65,536 names, well below the bound on a tenant's edges, and yet neighbours that have nothing to do with each
other mostly stay apart. On a day and a half of an internet-facing Zeek sensor (70,440 connections) 11,623 addresses
become 1,896 nodes; /20 gives 2,828, /24 gives 3,938, and /8 gives 197, the largest of which mixes 3,267 hosts."""
OUTSIDE_PREFIX_V6 = 32
"""What registries give a provider at least (RIPE-738 5.1): shorter would mix providers, longer would tell a provider's
customers apart, of which there is no bound."""

_REMEMBERED = 200_000
"""Addresses whose names are kept; more distinct ones only make us name them again."""

_INSIDE_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network (RFC 791): a host that has no address yet
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # shared: carriers' NAT, pods of some clouds (RFC 6598)
        "127.0.0.0/8",  # loopback (RFC 1122)
        "169.254.0.0/16",  # link-local (RFC 3927), metadata services of clouds
        "172.16.0.0/12",  # private (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.168.0.0/16",  # private (RFC 1918)
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "240.0.0.0/4",  # reserved (RFC 1112), used within some clouds
    )
)
_MULTICAST_V4 = ipaddress.IPv4Network("224.0.0.0/4")
_BROADCAST_V4 = ipaddress.IPv4Address("255.255.255.255")
_OUTSIDE_V6 = ipaddress.IPv6Network("2000::/3")  # all that is routed on the internet (RFC 4291 2.4)
_MULTICAST_V6 = ipaddress.IPv6Network("ff00::/8")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_address(text: str) -> Address | None:
    """Return an address, IPv4 out of IPv6's mapping and translation; ``None`` for what is none.

    >>> read_address("::ffff:10.0.0.1"), read_address("64:ff9b::808:808"), read_address("fe80::1%eth0")
    (IPv4Address('10.0.0.1'), IPv4Address('8.8.8.8'), IPv6Address('fe80::1'))
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_outside(address: Address) -> bool:
    """Say whether an address is one of the internet, by its range alone."""
    if isinstance(address, ipaddress.IPv6Address):
        return address in _OUTSIDE_V6
    return address not in _MULTICAST_V4 and not any(address in network for network in _INSIDE_V4)


def name_by_range(address: Address, prefix_v4: int, prefix_v6: int) -> str:
    """Return the name of an address that no rule names.

    >>> name_by_range(read_address("93.184.216.34"), 16, 32), name_by_range(read_address("10.1.2.3"), 16, 32)
    ('ext:net/93.184.0.0/16', 'ip:10.1.2.3')
    """
    if address == _BROADCAST_V4:
        return BROADCAST
    if address in (_MULTICAST_V4 if isinstance(address, ipaddress.IPv4Address) else _MULTICAST_V6):
        return MULTICAST
    if not is_outside(address):
        return f"{ADDRESS_PREFIX}{address}"
    length = prefix_v4 if isinstance(address, ipaddress.IPv4Address) else prefix_v6
    return f"{OUTSIDE_NETWORK}{ipaddress.ip_network((address, length), strict=False)}"


class Naming:
    """Names of one tenant's endpoints. Remembers what it named; equal ones name alike.

    Args:
        prefix_v4, prefix_v6: bits of an address of the internet that its name keeps.
    """

    def __init__(self, prefix_v4: int = OUTSIDE_PREFIX_V4, prefix_v6: int = OUTSIDE_PREFIX_V6) -> None:
        self._prefix_v4 = min(prefix_v4, 32)
        self._prefix_v6 = min(prefix_v6, 128)
        self._named: dict[str, str] = {}

    def name(self, given: str) -> str:
        """Return what the endpoint is called that a record names so."""
        if not given.startswith(ADDRESS_PREFIX):
            return given
        name = self._named.get(given)
        if name is None:
            if len(self._named) >= _REMEMBERED:
                self._named.clear()
            name = self._named[given] = self._resolve(given)
        return name

    def _resolve(self, given: str) -> str:
        address = read_address(given[len(ADDRESS_PREFIX) :])
        return given if address is None else name_by_range(address, self._prefix_v4, self._prefix_v6)

    def edge(self, given: EdgeIdentity) -> EdgeIdentity:
        """Return the edge that a record's edge counts to."""
        tenant, src, dst, port, protocol = given
        return (tenant, self.name(src), self.name(dst), port, protocol)
