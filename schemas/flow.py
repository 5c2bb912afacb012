"""The canonical flow record: what every producer's format is turned into, and an input format itself.

JSON: one object a Kafka message, an array of objects, or NDJSON. Arrow: an IPC stream whose columns have these names.
A field that a source cannot fill is absent (``None``), never zero: unknown is not "none".
"""

from typing import Annotated, Literal

import msgspec

MAX_NAME_BYTES = 256
MAX_MEASURE = 1 << 42
"""Largest believable measure of one record (4 TiB, 50 days in microseconds): more is a decoding mistake."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Measure = Annotated[int, msgspec.Meta(ge=0, le=MAX_MEASURE)]
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=1 << 43)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]

PROTOCOL_NUMBERS: dict[str, int] = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
"""IANA protocol numbers of the names a record may use."""
PROTOCOL_NAMES: dict[int, str] = {number: name for name, number in PROTOCOL_NUMBERS.items()}
UNKNOWN = -1
"""Stands for "the source cannot say" in integer columns."""


class Flow(msgspec.Struct, gc=False):
    """One observed call or connection, or several alike, from a client to a server service.

    Attributes:
        time_ms: event time, Unix epoch UTC in ms: when the call or connection started (or its report interval did).
        src: client service, ``namespace/workload`` or another stable name; ``ext:...`` lies outside the estate.
        dst: server service, named alike.
        port: server port.
        protocol: transport protocol by name.
        calls: how many calls or connections this record stands for.
        errors: how many of them failed (5xx, reset, gRPC status, ...).
        denied: how many of them were refused by policy.
        bytes_out: payload bytes client to server. ``bytes_in``: server to client. Packets alike.
        latency_us: time from request to answer of one call, microseconds (a mean if ``calls`` > 1).
        reporter: who saw it; a flow reported by both ends is counted once, from the client's report.
        tenant: owner, where the topic's configuration takes it from this field.
        host: the node or agent that reported; tells clocks apart.
    """

    time_ms: TimeMs
    src: Name
    dst: Name
    port: Port | None = None
    protocol: Literal["tcp", "udp", "icmp", "icmp6", "sctp"] | None = None
    calls: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)] = 1
    errors: Measure | None = None
    denied: Measure | None = None
    bytes_out: Measure | None = None
    bytes_in: Measure | None = None
    packets_out: Measure | None = None
    packets_in: Measure | None = None
    latency_us: Measure | None = None
    reporter: Literal["client", "server"] | None = None
    tenant: Name | None = None
    host: Name | None = None


SIDE_CLIENT, SIDE_SERVER = 0, 1
"""Reporting sides. An unknown reporter counts as the client's."""
