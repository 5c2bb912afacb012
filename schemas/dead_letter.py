"""Why a record can become a dead letter, and what is kept of it."""

from enum import StrEnum

import msgspec

MAX_PAYLOAD_BYTES = 256 * 1024
KEPT_PAYLOAD_BYTES = 64 * 1024


class Reason(StrEnum):
    """Closed set: metric label, header of the dead letter and test value."""

    MALFORMED = "malformed"  # not JSON / Arrow, wrong types, missing fields
    INVALID_VALUE = "invalid-value"  # decodes, but a value is out of its bounds
    OVERSIZED = "oversized"  # message larger than the topic's limit
    TOO_MANY_RECORDS = "too-many-records"  # more records in one message than a coordinate can tell apart
    EMPTY = "empty"  # a message without any record
    FUTURE = "future"  # more than a day ahead of the log's clock
    UNKNOWN_TENANT = "unknown-tenant"  # no tenant where the topic's configuration says it should be
    TENANT_NOT_ALLOWED = "tenant-not-allowed"  # the topic may not carry this tenant
    LANE_UNDECLARED = "lane-undeclared"  # a replayed record without a readable lane header
    CORRUPT_BATCH = "corrupt-batch"  # the broker's record batch cannot be read (checksum, codec)
    STATE_MACHINE = "state-machine"  # the graph agent could not fold the row
    UNSTORABLE = "unstorable"  # ClickHouse cannot take the event or window


class DeadLetter(msgspec.Struct, frozen=True):
    """One record that could not be used. Key on the topic: ``topic:partition:offset:index``."""

    topic: str
    partition: int
    offset: int
    index: int
    reason: Reason
    detail: str
    payload: bytes
    format: str = ""

    @property
    def key(self) -> str:
        """Return the source coordinate, the same for every repetition of this dead letter."""
        return f"{self.topic}:{self.partition}:{self.offset}:{self.index}"
