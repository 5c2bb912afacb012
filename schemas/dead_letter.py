"""Why a record can become a dead letter, and what is kept of it."""

from enum import StrEnum

import msgspec

MAX_PAYLOAD_BYTES = 256 * 1024
KEPT_PAYLOAD_BYTES = 64 * 1024
MAX_KEY_BYTES = 4 * 1024
"""Of a longer key the beginning is kept. No tenant is that long, so a rule on the key comes to the same."""
MAX_HEADER_BYTES = 16 * 1024
"""Of the original headers, names and values together; those that would go beyond are left out, and counted."""


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
    """One record that could not be used. Key on the topic: ``topic:partition:offset:index``.

    Attributes:
        payload: the bytes of the record, or of its message; of more than 256 KiB the first 64. Empty where the graph
            agent refused a row: its bytes are in the source topic.
        is_alone: the payload is one record of several in its message, without the others.
        length, sha256: of the whole payload, where it was cut; 0 and empty otherwise.
        message_key, message_headers: of the original message.
        headers_left_out: how many of its headers were too large to keep.
        timestamp_ms, timestamp_type: of the original message; -1 is unknown. Type 1 is the broker's clock.
        incarnation: of the source topics when it was read; empty is unknown.
    """

    topic: str
    partition: int
    offset: int
    index: int
    reason: Reason
    detail: str
    payload: bytes
    format: str = ""
    is_alone: bool = False
    length: int = 0
    sha256: str = ""
    message_key: bytes | None = None
    message_headers: tuple[tuple[str, bytes | None], ...] = ()
    headers_left_out: int = 0
    timestamp_ms: int = -1
    timestamp_type: int = 0
    incarnation: str = ""

    @property
    def key(self) -> str:
        """Return the source coordinate, the same for every repetition of this dead letter."""
        return f"{self.topic}:{self.partition}:{self.offset}:{self.index}"
