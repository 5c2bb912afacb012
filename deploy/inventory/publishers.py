"""Address tables that clouds and registries publish, as inventories: their addresses become services or networks. Pure.

Names are bounded: a service of a cloud, not one of its hosts; regions only if asked for. Where a publisher lists a
range under several of its services, the narrowest one wins. Source of the formats:

- aws: https://docs.aws.amazon.com/vpc/latest/userguide/aws-ip-syntax.html (``AMAZON`` holds all other services)
- gcp: https://www.gstatic.com/ipranges/cloud.json and goog.json, described at
  https://support.google.com/a/answer/10026322
- azure: "Azure IP Ranges and Service Tags", described at
  https://learn.microsoft.com/azure/virtual-network/service-tags-overview (``AzureCloud`` holds all other tags)
- ip2asn: https://iptoasn.com (range_start, range_end, AS_number, country_code, AS_description; AS 0 is not routed)
"""

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from models.graph.patterns import matches
from schemas.inventory import AddressRule, Inventory, Network, read_network

_MAX_DESCRIPTION = 40
_NOT_ROUTED = "0"
_GLOBAL = "global"


class _AwsPrefix(msgspec.Struct):
    service: str
    region: str = ""
    ip_prefix: str = ""
    ipv6_prefix: str = ""


class _Aws(msgspec.Struct):
    prefixes: list[_AwsPrefix]
    ipv6_prefixes: list[_AwsPrefix] = []


class _GooglePrefix(msgspec.Struct):
    ipv4_prefix: str = msgspec.field(default="", name="ipv4Prefix")
    ipv6_prefix: str = msgspec.field(default="", name="ipv6Prefix")
    service: str = ""
    scope: str = ""


class _Google(msgspec.Struct):
    prefixes: list[_GooglePrefix]


class _AzureProperties(msgspec.Struct):
    prefixes: list[str] = msgspec.field(name="addressPrefixes")
    region: str = ""


class _AzureTag(msgspec.Struct):
    name: str
    properties: _AzureProperties


class _Azure(msgspec.Struct):
    values: list[_AzureTag]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _aws(data: bytes, with_regions: bool) -> dict[Network, str]:
    table = msgspec.json.decode(data, type=_Aws)
    entries = [
        (prefix.ip_prefix or prefix.ipv6_prefix, _slug(prefix.service), _slug(prefix.region))
        for prefix in (*table.prefixes, *table.ipv6_prefixes)
    ]
    return _narrowest("aws", entries, {"amazon": 2, "ec2": 1}, with_regions)


def _gcp(data: bytes, with_regions: bool) -> dict[Network, str]:
    table = msgspec.json.decode(data, type=_Google)
    named = {}
    for prefix in table.prefixes:
        name = "gcp/cloud" if prefix.service else "google"
        region = _slug(prefix.scope) if with_regions else ""
        named[read_network(prefix.ipv4_prefix or prefix.ipv6_prefix)] = _with_region(name, region)
    return named


def _azure(data: bytes, with_regions: bool) -> dict[Network, str]:
    table = msgspec.json.decode(data, type=_Azure)
    entries = [
        (prefix, _slug(tag.name.partition(".")[0]), _slug(tag.properties.region))
        for tag in table.values
        for prefix in tag.properties.prefixes
    ]
    return _narrowest("azure", entries, {"azurecloud": 1}, with_regions)


def _narrowest(
    cloud: str, entries: Iterable[tuple[str, str, str]], widest: Mapping[str, int], with_regions: bool
) -> dict[Network, str]:
    """Return each range's name: of the service with fewest ranges that lists it, of ``widest`` only if no other does.

    Args:
        entries: range, service, region.
        widest: services that hold others' ranges too, by how much they do.
    """
    listed = list(entries)
    sizes: dict[str, int] = defaultdict(int)
    for _, service, _ in listed:
        sizes[service] += 1
    best: dict[Network, tuple[tuple[int, int, str], str]] = {}
    for text, service, region in listed:
        network = read_network(text)
        rank = (widest.get(service, 0), sizes[service], service)
        earlier = best.get(network)
        # One service may list a range for a region and for all of them: the region says more.
        if earlier is None or (rank, not region) < (earlier[0], not earlier[1]):
            best[network] = rank, region
    return {
        network: _with_region(f"{cloud}/{rank[2]}", region if with_regions else "")
        for network, (rank, region) in best.items()
    }


def _with_region(name: str, region: str) -> str:
    return f"{name}.{region}" if region and region != _GLOBAL else name


def _ip2asn(data: bytes, with_regions: bool) -> dict[Network, str]:
    ranges: dict[str, list[Network]] = defaultdict(list)
    for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
        cells = line.split("\t")
        if len(cells) < 5:
            raise ValueError(f"line {number} has {len(cells)} columns instead of 5: is it ip2asn-combined.tsv?")
        first, last, system, _, description = cells[:5]
        if system != _NOT_ROUTED:
            name = f"as/{int(system)}-{_slug(description)[:_MAX_DESCRIPTION].strip('-')}".rstrip("-")
            ranges[name] += _networks_between(first, last)
    return {
        network: name
        for name, networks in ranges.items()
        for version in (4, 6)
        for network in ipaddress.collapse_addresses([n for n in networks if n.version == version])  # type: ignore[type-var]
    }


def _networks_between(first: str, last: str) -> list[Network]:
    start, end = ipaddress.ip_address(first), ipaddress.ip_address(last)
    return list(ipaddress.summarize_address_range(start, end))


PUBLISHERS: Mapping[str, Callable[[bytes, bool], dict[Network, str]]] = {
    "aws": _aws,
    "gcp": _gcp,
    "azure": _azure,
    "ip2asn": _ip2asn,
}
"""How each publisher's file is read: its bytes, and whether regions are wanted, to names by range."""


def read_table(publisher: str, data: bytes, with_regions: bool = False, only: Iterable[str] = ()) -> Inventory:
    """Return a publisher's table as an inventory, one rule a name.

    Args:
        only: patterns with ``*`` of names that are wanted; none is all.

    Raises:
        ValueError: the file is not of the publisher's format.
    """
    wanted = tuple(only)
    try:
        named = PUBLISHERS[publisher](data, with_regions)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no file of {publisher}: {error}") from error
    by_name: dict[str, list[Network]] = defaultdict(list)
    for network, name in named.items():
        if not wanted or any(matches(pattern, name) for pattern in wanted):
            by_name[name].append(network)
    rules = (
        AddressRule(tuple(map(str, sorted(by_name[name], key=ipaddress.get_mixed_type_key))), name)
        for name in sorted(by_name)
    )
    return Inventory(addresses=tuple(rules))
