"""Whose flow it is, whether the topic may carry that tenant, and which partition of `tenant-log` is theirs. Pure."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from schemas.errors import ConfigurationError
from schemas.flow import MAX_NAME_BYTES
from schemas.ids import partition_of
from streams.ingest.chunk import SourceChunk
from streams.sources.format import Tenants

UNKNOWN_TENANT, NOT_ALLOWED = -1, -2
"""Verdicts in place of a target partition."""

_REMEMBERED = 100_000
"""Tenants kept in memory; a producer that invents names only makes us look them up again."""


class TenantRouter(dict[str | None, int]):
    """Target partition by tenant, or a verdict below zero. Looks like a dictionary, fills itself."""

    def __init__(self, allowed: Sequence[str], partitions: int) -> None:
        super().__init__()
        self._exact = frozenset(name for name in allowed if not set(name) & set("*?["))
        self._patterns = tuple(name for name in allowed if name not in self._exact)
        self._partitions = partitions

    def __missing__(self, tenant: str | None) -> int:
        if len(self) >= _REMEMBERED:
            self.clear()
        verdict = self._judge(tenant)
        self[tenant] = verdict
        return verdict

    def _judge(self, tenant: str | None) -> int:
        if not tenant:
            return UNKNOWN_TENANT
        if tenant in self._exact or any(fnmatchcase(tenant, pattern) for pattern in self._patterns):
            return partition_of(tenant, self._partitions)
        return NOT_ALLOWED


class TenantRule:
    """Where a topic's configuration says that the tenant stands: `FlowTopic.tenant_from`.

    Raises:
        ConfigurationError: the expression is none, or has no group, or does not match the topic's name.
    """

    def __init__(self, rule: str, topic: str) -> None:
        self.rule = rule
        self._kind, _, self._argument = rule.partition(":")
        self._fixed: str | None = None
        if self._kind == "fixed":
            self._fixed = self._argument
        elif self._kind == "topic":
            self._fixed = _from_topic(self._argument, topic)
        self._names: dict[bytes | None, str | None] = {None: None}

    def tenants(self, chunk: SourceChunk) -> Tenants:
        """Return the tenant of all messages, of each message, or ``None``: the records name it."""
        if self._fixed is not None:
            return self._fixed
        if self._kind == "key":
            return [self._name(key) for key in chunk.keys]
        if self._kind == "header":
            wanted = self._argument
            return [
                self._name(next((value for name, value in headers if name == wanted), None))
                for headers in chunk.headers
            ]
        return None

    def _name(self, data: bytes | None) -> str | None:
        try:
            return self._names[data]
        except KeyError:
            if len(self._names) >= _REMEMBERED:
                self._names = {None: None}
            name = self._names[data] = _read_name(data)
            return name


def _read_name(data: bytes | None) -> str | None:
    try:
        name = (data or b"").decode()
    except UnicodeDecodeError:
        return None
    return name if 1 <= len(name) <= MAX_NAME_BYTES else None


def _from_topic(expression: str, topic: str) -> str:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigurationError(
            f"tenant_from of topic {topic!r}: {expression!r} is no regular expression: {error}"
        ) from error
    if pattern.groups < 1:
        raise ConfigurationError(f"tenant_from of topic {topic!r}: {expression!r} needs a group around the tenant")
    match = pattern.search(topic)
    if match is None or not match.group(1):
        raise ConfigurationError(f"tenant_from of topic {topic!r}: {expression!r} finds no tenant in the topic's name")
    return match.group(1)
