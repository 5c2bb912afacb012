"""Addresses of other services in what a workload is told: environment, arguments, configuration. Pure.

A reference is a URL, ``host:port``, or a DNS name of a Kubernetes Service. A bare word is one only if a Service of that
name is known: ``LOG_LEVEL=debug`` names nobody.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,15})://(?:[^\s/@:\"']*(?::[^\s/@\"']*)?@)?(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+)(?::(\d{1,5}))?"
)
_HOST_PORT = re.compile(r"(?<![\w./:@-])([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):(\d{1,5})(?![\w.])")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_SERVICE_DNS = re.compile(r"(?<![\w.-])([a-z0-9-]+)\.([a-z0-9-]+)\.svc(?:\.[a-z0-9.-]+)?(?![\w-])")

PORT_OF_SCHEME = {
    "http": 80,
    "ws": 80,
    "https": 443,
    "wss": 443,
    "redis": 6379,
    "rediss": 6379,
    "postgres": 5432,
    "postgresql": 5432,
    "mysql": 3306,
    "mongodb": 27017,
    "amqp": 5672,
    "amqps": 5671,
    "nats": 4222,
    "grpc": -1,
    "tcp": -1,
    "kafka": 9092,
    "memcached": 11211,
    "jdbc": -1,
    "ldap": 389,
    "ldaps": 636,
    "clickhouse": 9000,
}
"""Ports that IANA, or the tool's own documentation, give a scheme; -1 where it has none."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A host and port, -1 where none is named, as a text says them."""

    host: str
    port: int


def references_in(text: str, is_service: Callable[[str], bool]) -> Iterator[Reference]:
    """Yield what ``text`` refers to, each once, in order.

    Args:
        is_service: says whether a bare host is the name of a known Service.
    """
    seen: set[Reference] = set()
    for reference in _all_in(text, is_service):
        if reference not in seen:
            seen.add(reference)
            yield reference


def _all_in(text: str, is_service: Callable[[str], bool]) -> Iterator[Reference]:
    rest = text
    for match in _URL.finditer(text):
        scheme, host, port = match.groups()
        if scheme in PORT_OF_SCHEME:
            yield Reference(host.strip("[]").lower(), int(port) if port else PORT_OF_SCHEME[scheme])
        rest = rest.replace(match[0], " ", 1)
    for match in _HOST_PORT.finditer(rest):
        host, port = match[1].lower(), int(match[2])
        if 0 < port <= 65_535 and (is_service(host) or "." in host or not host.isdigit()) and not _is_time(host):
            yield Reference(host, port)
            rest = rest.replace(match[0], " ", 1)
    for match in _SERVICE_DNS.finditer(rest):
        yield Reference(match[0].lower(), -1)
        rest = rest.replace(match[0], " ", 1)
    word = rest.strip()
    if _HOST.fullmatch(word) and is_service(word.lower()):
        yield Reference(word.lower(), -1)


def _is_time(host: str) -> bool:
    """Say whether what stands before a colon is a number: ``12:30`` is a time, not a host."""
    return host.isdigit()
