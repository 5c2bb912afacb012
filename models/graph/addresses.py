"""Addresses and their ranges: which are of the internet, what they are called, the longest range around one. Pure.

Inside and outside follow the table `_INSIDE_V4`, not `ipaddress.is_private`: what that calls private has changed
between releases of Python, and the same log must give the same names. Addresses for documentation (RFC 5737, RFC 3849)
count as outside: where they turn up, they stand for the internet.
"""

import ipaddress
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from schemas.ids import ADDRESS_PREFIX, EXTERNAL_PREFIX, NETWORK_PREFIX
from schemas.inventory import Network

MULTICAST = NETWORK_PREFIX + "multicast"
BROADCAST = NETWORK_PREFIX + "broadcast"
OUTSIDE_NETWORK = EXTERNAL_PREFIX + "net/"

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
_INSIDE_V4_STARTS = [int(network.network_address) for network in _INSIDE_V4]
_INSIDE_V4_ENDS = [int(network.broadcast_address) for network in _INSIDE_V4]
_MULTICAST_V4 = ipaddress.IPv4Network("224.0.0.0/4")
_BROADCAST_V4 = ipaddress.IPv4Address("255.255.255.255")
_OUTSIDE_V6 = ipaddress.IPv6Network("2000::/3")  # all that is routed on the internet (RFC 4291 2.4)
_MULTICAST_V6 = ipaddress.IPv6Network("ff00::/8")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_BITS: dict[int, int] = {4: 32, 6: 128}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Value = TypeVar("Value")


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
    value = int(address)
    at = bisect_right(_INSIDE_V4_STARTS, value) - 1
    return (at < 0 or value > _INSIDE_V4_ENDS[at]) and address not in _MULTICAST_V4


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
    return name_of_prefix(address, prefix_v4 if address.version == 4 else prefix_v6, inside=False)


def name_of_prefix(address: Address, length: int, inside: bool) -> str:
    """Return the one name of all addresses that share the first bits of this one."""
    length = min(length, _BITS[address.version])
    bits = _BITS[address.version] - length
    first = type(address)(int(address) >> bits << bits)
    return f"{NETWORK_PREFIX if inside else OUTSIDE_NETWORK}{first}/{length}"


def is_mixed(network: Network) -> bool:
    """Say whether some addresses of a range are of the internet, and others are not."""
    if isinstance(network, ipaddress.IPv6Network):
        return network != _OUTSIDE_V6 and network.supernet_of(_OUTSIDE_V6)
    return any(network != inside and network.supernet_of(inside) for inside in (*_INSIDE_V4, _MULTICAST_V4))


def ranges_of_name(name: str) -> tuple[Network, ...]:
    """Return the ranges that a name of ours stands for: of a host, or of a prefix; none if it is no such name.

    >>> ranges_of_name("ext:net/93.184.0.0/16"), ranges_of_name("ip:10.1.2.3"), ranges_of_name("shop/cart")
    ((IPv4Network('93.184.0.0/16'),), (IPv4Network('10.1.2.3/32'),), ())
    """
    if name == MULTICAST:
        return (_MULTICAST_V4, _MULTICAST_V6)
    if name == BROADCAST:
        return (ipaddress.IPv4Network(_BROADCAST_V4),)
    for prefix in (OUTSIDE_NETWORK, NETWORK_PREFIX, ADDRESS_PREFIX):
        if name.startswith(prefix):
            try:
                return (ipaddress.ip_network(name[len(prefix) :]),)
            except ValueError:
                return ()
    return ()


class RangeTable(Generic[Value]):
    """Values by address range; the longest range around an address, or around another range, is found.

    Args:
        ranges: each range's value. The table does not change.
    """

    def __init__(self, ranges: Mapping[Network, Value]) -> None:
        self._ranges = ranges
        by_length: dict[tuple[int, int], dict[int, Network]] = {}
        for network in ranges:
            bits = network.max_prefixlen - network.prefixlen
            by_length.setdefault((network.version, network.prefixlen), {})[int(network.network_address) >> bits] = (
                network
            )
        # Longest first: (bits of the prefix, bits behind it, ranges by prefix).
        self._lengths = {
            version: [
                (length, _BITS[version] - length, by_length[version, length])
                for length in range(_BITS[version], -1, -1)
                if (version, length) in by_length
            ]
            for version in _BITS
        }
        self._starts: dict[int, list[int]] | None = None

    def __len__(self) -> int:
        return len(self._ranges)

    def get(self, network: Network) -> Value | None:
        """Return the value of exactly this range."""
        return self._ranges.get(network)

    def items(self) -> Iterator[tuple[Network, Value]]:
        """Return all ranges with their values."""
        return iter(self._ranges.items())

    def around(self, network: Network) -> tuple[Network, Value] | None:
        """Return the longest range that holds all of a range, with its value."""
        return self._around(network.version, int(network.network_address), network.prefixlen)

    def around_address(self, address: Address) -> tuple[Network, Value] | None:
        """Return the longest range that holds an address, with its value."""
        return self._around(address.version, int(address), _BITS[address.version])

    def _around(self, version: int, first: int, most: int) -> tuple[Network, Value] | None:
        for length, bits, ranges in self._lengths[version]:
            if length <= most:
                found = ranges.get(first >> bits)
                if found is not None:
                    return found, self._ranges[found]
        return None

    def has_inside(self, network: Network) -> bool:
        """Say whether a range lies within this one and is shorter than it."""
        if self._starts is None:
            self._starts = {version: [] for version in _BITS}
            for other in self._ranges:
                # Behind the start of a range come those within it: sorted so, neighbours tell.
                self._starts[other.version].append(int(other.network_address) << 8 | other.prefixlen)
            for starts in self._starts.values():
                starts.sort()
        starts = self._starts[network.version]
        first = int(network.network_address)
        at = bisect_left(starts, first << 8 | (network.prefixlen + 1))
        # Ranges that start where this one does and are no longer than it come before; the next starts within it or not.
        return at < len(starts) and starts[at] >> 8 < first + network.num_addresses
