"""Spans of OTLP, whatever their encoding: which of their attributes are used, their ids, and what they stand for. Pure.

Attributes are known by their names of today, by those that instrumentations of before 2024 write, and by Envoy's.

Source: opentelemetry-proto trace.proto; OpenTelemetry semantic conventions (HTTP, RPC, database, messaging, network);
OpenTelemetry specification, trace/tracestate-handling.md and tracestate-probability-sampling.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from schemas.tenant_log import IntColumn
from streams.result import WHOLE_MESSAGE, Refusal, Rejected
from streams.sources.draft import shown
from streams.sources.orientation import Mask
from streams.sources.otlp_names import Owner

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
CALLERS = (CLIENT, PRODUCER)
MESSAGES = (PRODUCER, CONSUMER)
_KIND_NAMES = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")

PEER_SERVICE, PEER_NAMESPACE, ADDRESS, CLUSTER, SOCKET, URL, SYSTEM, SPACE, TEMPLATE, TRANSPORT = range(10)
TEMPORARY, PORT, HTTP, GRPC, BYTES_OUT, BYTES_IN = range(10, 16)
SLOTS = 16
"""Where what is used of a span's attributes stands in its row."""
TEXTS = frozenset(range(10))
"""Slots that hold text; the others hold numbers, which may be written as text."""

# ``peer.address``, ``upstream_cluster.name``, ``request_size`` and ``response_size`` are Envoy's, ``grpc.status_code``
# is .NET's.
_EITHER = {
    "network.peer.address": SOCKET,
    "net.sock.peer.addr": SOCKET,
    "net.peer.ip": SOCKET,
    "peer.address": SOCKET,
    "messaging.system": SYSTEM,
    "messaging.destination.name": SPACE,
    "messaging.destination": SPACE,
    "messaging.destination.template": TEMPLATE,
    "messaging.destination.temporary": TEMPORARY,
    "messaging.destination.anonymous": TEMPORARY,
    "messaging.temp_destination": TEMPORARY,
    "messaging.message.body.size": BYTES_OUT,
    "messaging.message_payload_size_bytes": BYTES_OUT,
    "server.port": PORT,
    "network.transport": TRANSPORT,
    "net.transport": TRANSPORT,
    "http.response.status_code": HTTP,
    "http.status_code": HTTP,
    "rpc.grpc.status_code": GRPC,
    "rpc.response.status_code": GRPC,
    "grpc.status_code": GRPC,
    "http.request.body.size": BYTES_OUT,
    "http.request_content_length": BYTES_OUT,
    "request_size": BYTES_OUT,
    "http.response.body.size": BYTES_IN,
    "http.response_content_length": BYTES_IN,
    "response_size": BYTES_IN,
}
_CALLER = {
    **_EITHER,
    "service.peer.name": PEER_SERVICE,
    "peer.service": PEER_SERVICE,
    "service.peer.namespace": PEER_NAMESPACE,
    "server.address": ADDRESS,
    "net.peer.name": ADDRESS,
    "net.peer.port": PORT,
    "upstream_cluster.name": CLUSTER,
    "url.full": URL,
    "http.url": URL,
    "http.host": URL,
    "db.system.name": SYSTEM,
    "db.system": SYSTEM,
    "db.namespace": SPACE,
    "db.name": SPACE,
}
_CALLEE = {**_EITHER, "client.address": ADDRESS, "http.client_ip": ADDRESS, "net.host.port": PORT}
"""On a callee's span ``net.peer.*`` is the caller's socket, not a server's."""

CALLS: dict[Any, tuple[int, dict[str, int]]] = {
    spelling: (kind, _CALLER if kind in CALLERS else _CALLEE)
    for kind in (SERVER, CLIENT, PRODUCER, CONSUMER)
    for spelling in (kind, str(kind), f"SPAN_KIND_{_KIND_NAMES[kind]}")
}
"""Of kinds of spans that are half a call, as they are written: the kind, and the slots of its attributes."""
OTHERS: dict[Any, str] = {
    spelling: _KIND_NAMES[kind].lower()
    for kind in (0, 1)
    for spelling in (kind, str(kind), f"SPAN_KIND_{_KIND_NAMES[kind]}")
}
"""Kinds of spans that are no call."""

NESTED = "nested"
"""Kind under which a SERVER or CONSUMER span is counted whose caller is of its own process: no call comes in there."""
_SAYS_WHETHER_REMOTE, _IS_REMOTE = 0x100, 0x200


def is_local_parent(flags: int) -> bool:
    """Say whether a span's flags say that its parent is of its own process (trace.proto, SpanFlags)."""
    return flags & (_SAYS_WHETHER_REMOTE | _IS_REMOTE) == _SAYS_WHETHER_REMOTE


def unknown_kind(kind: object) -> Refusal:
    """Return the verdict on a span of no known kind."""
    return Refusal(Reason.INVALID_VALUE, f"no such kind of span: {shown(kind)}")


Alone = tuple[int, Callable[[int], bytes]]
"""How many records a message holds, and a function from a record's number to a message that holds it alone: a span with
its resource. A document that cannot be read counts as one."""
MAX_RESOURCE_BYTES = 4_096
"""Of a larger resource, the dead letter of a span keeps what is used."""

Id = str | bytes | None
"""An id as a message has it: hex digits in JSON, bytes in protobuf."""


class Spans(NamedTuple):
    """Columns of spans that are half a call.

    Attributes:
        message, record: their coordinates.
        trace, span: their ids.
        context_trace, context_span: ids of the caller's half: its own, its parent's, or those of the message it read.
        start, end: ns since the epoch, numbers or their texts.
        attributes: a row each, by slot, ``None`` where there is none.
    """

    message: tuple[int, ...]
    record: tuple[int, ...]
    kind: tuple[int, ...]
    trace: tuple[Id, ...]
    span: tuple[Id, ...]
    context_trace: tuple[Id, ...]
    context_span: tuple[Id, ...]
    start: tuple[Any, ...]
    end: tuple[Any, ...]
    status: tuple[Any, ...]
    trace_state: tuple[str | None, ...]
    owner: tuple[Owner, ...]
    attributes: tuple[list[Any], ...]


@dataclass(slots=True)
class Collected:
    """What messages hold.

    Attributes:
        owner_of: whose spans a resource's are, by those of its attributes that are used.
        spans: those that are half a call, as rows of `Spans`.
        unfit: (message, index, verdict) of spans that cannot be read.
        rejected: other records, and whole messages.
        skipped: spans that are no call, and other signals of OTLP, by kind.
    """

    owner_of: Callable[[Mapping[str, str]], Owner]
    spans: list[tuple[Any, ...]] = field(default_factory=list)
    unfit: list[tuple[int, int, Refusal]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def columns(self) -> Spans:
        """Return the spans, at least one, as columns."""
        columns: Any = zip(*self.spans, strict=True)
        return Spans(*columns)

    def reject_message(self, message: int, reason: Reason, detail: str, value: bytes) -> None:
        """Reject a whole message."""
        self.rejected.append(Rejected(message, WHOLE_MESSAGE, reason, detail, value))

    def is_countable(self, message: int, spans: int, value: bytes) -> bool:
        """Reject a message without spans, or with more than coordinates can tell apart."""
        if not spans:
            self.reject_message(message, Reason.EMPTY, "the message holds no spans", value)
        elif spans > MAX_RECORDS_PER_MESSAGE:
            self.reject_message(message, Reason.TOO_MANY_RECORDS, f"{spans} spans in one message", value)
        else:
            return True
        return False


# -- ids ---------------------------------------------------------------------------------------------------------------

Words = npt.NDArray[np.uint64]
_HEX = re.compile(r"[0-9a-fA-F]+")
_GOLDEN, _MIX_1, _MIX_2 = (
    np.uint64(constant) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def words_of(ids: Sequence[Id], size: int) -> tuple[Words, Mask]:
    """Return ids of ``size`` bytes as words ``(n, size / 8)``, all zero where there is none, and which are no ids."""
    nothing: Any = "0" * (2 * size) if isinstance(next(filter(None, ids), b""), str) else bytes(size)
    filled: Any = [value or nothing for value in ids]
    good = np.zeros(len(ids), dtype=np.bool_)
    try:
        if set(map(len, filled)) == {len(nothing)}:
            data = bytes.fromhex("".join(filled)) if isinstance(nothing, str) else b"".join(filled)
            if len(data) == size * len(ids):  # fromhex passes over spaces
                return _words(data, size), good
    except (TypeError, ValueError):
        pass  # a bad one, or messages of both encodings: look at each
    each = [_one_id(value, size) for value in ids]
    bad = np.fromiter((value is None for value in each), dtype=np.bool_, count=len(each))
    return _words(b"".join(value or bytes(size) for value in each), size), bad


def _one_id(value: Id, size: int) -> bytes | None:
    if not value:
        return bytes(size)
    if isinstance(value, bytes):
        return value if len(value) == size else None
    return bytes.fromhex(value) if len(value) == 2 * size and _HEX.fullmatch(value) else None


def _words(data: bytes, size: int) -> Words:
    return np.frombuffer(data, dtype=">u8").astype(np.uint64).reshape(-1, size // 8)


def is_set(words: Words) -> Mask:
    """Say which ids ``(n, k)`` are not all zero: those are none."""
    found: Mask = np.bitwise_or.reduce(words, axis=1) != 0
    return found


def _mixed(words: Words) -> Words:
    """Return words with every bit depending on all others (splitmix64's finaliser; S. Vigna, 2015)."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def pair_keys(trace: Words, span: Words) -> IntColumn:
    """Return the key ``(n,)`` of 63 bits that both halves of a call have: of its trace and the caller's span.

    The same in every process and version: it travels in `tenant-log`.
    """
    high, low = trace[:, 0], trace[:, 1]
    key = _mixed(_mixed(_mixed(high + _GOLDEN) ^ low) ^ span[:, 0]) >> np.uint64(1)
    return key.astype(np.int64)


# -- sampling ----------------------------------------------------------------------------------------------------------

MAX_SAMPLING = 1 << 20
_OT = re.compile(r"(?:^|,)[ \t]*ot=([^,]*)")
_MAX_ADJUSTED = 1 << 56
_ZERO_P = 63
_STATES = 10_000
_TOO_MANY = -2


def adjusted_count(trace_state: str) -> float:
    """Return how many spans one stands for, by the sampling threshold ``th`` (or the older ``p``) of its tracestate.

    >>> adjusted_count("ot=th:c"), adjusted_count("vendor=1,ot=p:3;r:5"), adjusted_count("ot=rv:9b8233f7e3a151")
    (4.0, 8.0, 1.0)
    """
    match = _OT.search(trace_state)
    if match is None:
        return 1.0
    for key in ("th", "p"):
        for part in match[1].strip().split(";"):
            name, _, value = part.partition(":")
            if name == key == "th" and len(value) <= 14 and _HEX.fullmatch(value):
                return _MAX_ADJUSTED / (_MAX_ADJUSTED - int(value.ljust(14, "0"), 16))
            if name == key == "p" and value.isascii() and value.isdigit() and len(value) <= 2 and int(value) < _ZERO_P:
                return float(1 << int(value))
    return 1.0


def sampling_of(trace_states: Sequence[str | None], trace: Words) -> IntColumn:
    """Return how many spans each stands for, 1 where it does not say; -2 beyond ``MAX_SAMPLING``.

    Of 1.33 a third of the traces, told by their ids, stand for 2 and the others for 1: sums come out right.
    """
    known: dict[str | None, float] = {None: 1.0, "": 1.0}
    count = np.ones(len(trace_states), dtype=np.float64)
    for row, state in enumerate(trace_states):
        if state:
            if state not in known and len(known) < _STATES:
                known[state] = adjusted_count(state)
            count[row] = known[state] if state in known else adjusted_count(state)
    share = _mixed(trace[:, 0] ^ _mixed(trace[:, 1])) >> np.uint64(11)
    whole = np.floor(count + share.astype(np.float64) / (1 << 53))
    return np.where(count > MAX_SAMPLING, _TOO_MANY, whole).astype(np.int64)
