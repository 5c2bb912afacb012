"""Identifiers, coordinates and the hashes behind them. Pure."""

import hashlib
from typing import NewType

TenantId = NewType("TenantId", str)
ServiceId = NewType("ServiceId", str)

EXTERNAL_PREFIX = "ext:"
REPLAY_PREFIX = "replay:"
"""Lanes of this prefix are a replay's own; a replayed record may name a declared lane instead."""
"""A service whose name starts so lies outside the tenant's own estate (internet, SaaS, cloud API)."""
NETWORK_PREFIX = "net:"
"""A service whose name starts so is all hosts of a part of the estate's network."""
ADDRESS_PREFIX = "ip:"
"""An endpoint that a record names by its address alone; the state machine finds its name (models/graph/naming.py)."""
LABEL_PREFIX = "label:"
"""An endpoint that a record names by its labels alone, ``label:NAMESPACE/k=v,...``."""

_INDEX_BITS = 20
MAX_RECORDS_PER_MESSAGE = (1 << _INDEX_BITS) - 1
"""Records one Kafka message can hold; the last index is kept for "the whole message"."""

NO_POSITION = -1
"""Before the first record of a partition."""


def is_external(service: str) -> bool:
    """Say whether ``service`` lies outside the tenant's own estate."""
    return service.startswith(EXTERNAL_PREFIX)


def position_of(offset: int, index: int) -> int:
    """Pack a coordinate (Kafka offset, index of the record in its message) into one ordered integer."""
    return (offset << _INDEX_BITS) | index


def end_position(offset: int) -> int:
    """Position that stands for everything up to and including the message at ``offset``."""
    return (offset << _INDEX_BITS) | MAX_RECORDS_PER_MESSAGE


def split_position(position: int) -> tuple[int, int]:
    """Return ``(offset, index)`` of a packed coordinate."""
    return position >> _INDEX_BITS, position & MAX_RECORDS_PER_MESSAGE


def stable_hash(*parts: str | int) -> str:
    """Return 32 hex digits that depend on ``parts`` alone (BLAKE2b, length-prefixed parts)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return digest.hexdigest()


def stable_hash64(*parts: str | int) -> int:
    """Return a 63-bit non-negative hash of ``parts``, the same on every machine."""
    return int(stable_hash(*parts)[:16], 16) >> 1


def partition_of(tenant: str, partitions: int) -> int:
    """Partition of ``tenant-log``, ``graph-windows`` and ``drift-events`` that carries ``tenant``."""
    return stable_hash64("tenant", tenant) % partitions
