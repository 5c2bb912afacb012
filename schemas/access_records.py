"""Records of who may use the API: accounts, keys, revocations. Kinds of `drift-controls` that never leave that topic.

They hold hashes of passwords and keys, so ingest forwards none of them into `tenant-log`, and no log or dead letter
shows one. Every API process reads the topic from its start and follows it.
"""

from collections.abc import Callable
from typing import Protocol

from schemas.errors import DriftError

ACCOUNT, API_KEY, REVOCATION = "account", "api-key", "revocation"
ACCESS_KINDS = frozenset({ACCOUNT, API_KEY, REVOCATION})

Apply = Callable[[str, str, str, bytes | None], None]
"""Takes in one record: tenant, kind, id, value; no value removes."""


class RecordsUnavailable(DriftError):
    """A record could not be written, or not all have been read yet: Kafka (or the disk) does not answer now."""


class ControlLog(Protocol):
    """Where the records are kept. Any number of processes read and write it."""

    async def start(self, apply: Apply) -> None:
        """Begin to read from the start and to follow; returns at once, also while the log is away."""
        ...

    @property
    def is_caught_up(self) -> bool:
        """Whether all that was there at the start has been applied."""
        ...

    async def wait_caught_up(self) -> None:
        """Wait for `is_caught_up`."""
        ...

    async def write(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        """Write a record; once this returns it is kept, and applied here.

        Raises:
            RecordsUnavailable: it may or may not have been written.
        """
        ...

    async def stop(self) -> None:
        """Stop following."""
        ...


def record_key(tenant: str, kind: str, record_id: str) -> bytes:
    """Return the key of a record.

    Raises:
        ValueError: the tenant's name has a colon, and the record would be another's.
    """
    if not tenant or ":" in tenant:
        raise ValueError("a tenant with accounts has a name without colons")
    return f"{tenant}:{kind}:{record_id}".encode()


def is_access_record(key: bytes | None) -> bool:
    """Say whether the key of a control is one of ours, whole or not."""
    parts = (key or b"").split(b":", 2)
    return len(parts) > 1 and parts[1] in _KINDS_AS_BYTES


_KINDS_AS_BYTES = frozenset(kind.encode() for kind in ACCESS_KINDS)
