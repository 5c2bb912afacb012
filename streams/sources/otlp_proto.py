"""OTLP's protobuf: messages of spans, read by the classes of opentelemetry-proto (on protobuf's C runtime). Pure."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

from schemas.dead_letter import Reason
from streams.result import Refusal
from streams.sources.json_records import wire_prefix
from streams.sources.otlp_names import RESOURCE_KEYS, Owner
from streams.sources.otlp_spans import (
    CALLERS,
    CALLS,
    CONSUMER,
    MAX_RESOURCE_BYTES,
    NESTED,
    OTHERS,
    SLOTS,
    TEXTS,
    Alone,
    Collected,
    is_local_parent,
    unknown_kind,
)

_FIRST_FIELD = b"\n"
"""A message starts with its first ``resource_spans``: field 1, then a length."""
_AMBIGUOUS = b"{[ \t\r\n"
"""Lengths that are also what may follow a line feed in JSON."""
_TRACE_BYTES, _SPAN_BYTES = 16, 8


def is_proto(value: bytes) -> bool:
    """Say whether a message is protobuf rather than JSON."""
    if value[:1] != _FIRST_FIELD:
        return False
    return value[1:2] not in _AMBIGUOUS or value.lstrip()[:1] not in (b"{", b"[") or _is_read(value)


def _is_read(value: bytes) -> bool:
    try:
        TracesData.FromString(value)
    except DecodeError:
        return False
    return True


def read_message(value: bytes) -> TracesData | str:
    """Read a message; of one that holds another signal, return which.

    Raises:
        Refusal: it is neither.
    """
    if not value:
        raise Refusal(Reason.EMPTY, "the message is empty")
    try:
        request: TracesData = TracesData.FromString(value)
    except DecodeError as error:
        other = _other_signal(value)
        if other is not None:
            return other
        raise Refusal(Reason.MALFORMED, wire_prefix(value) or "not protobuf of OTLP's spans") from error
    if not _has_ids(request):
        return _other_signal(value) or request
    return request


def _has_ids(request: TracesData) -> bool:
    """Say whether the first span looks like one: other signals are messages of the same fields."""
    for found in request.resource_spans:
        for scope in found.scope_spans:
            for span in scope.spans:
                return len(span.trace_id) == _TRACE_BYTES and len(span.span_id) == _SPAN_BYTES
    return True


def _other_signal(value: bytes) -> str | None:
    """Return which other signal of OTLP a message holds: one in which all is as that signal has it."""
    try:
        metrics = [
            metric
            for found in MetricsData.FromString(value).resource_metrics
            for scope in found.scope_metrics
            for metric in scope.metrics
        ]
    except DecodeError:
        metrics = []
    if metrics and all(m.name and m.WhichOneof("data") and not len(UnknownFieldSet(m)) for m in metrics):
        return "metrics"
    try:
        logs = [
            record
            for found in LogsData.FromString(value).resource_logs
            for scope in found.scope_logs
            for record in scope.log_records
        ]
    except DecodeError:
        logs = []
    if logs and all(
        (log.time_unix_nano or log.observed_time_unix_nano) and not len(UnknownFieldSet(log)) for log in logs
    ):
        return "logs"
    return None


def collect(values: Sequence[bytes], start: int, stop: int, collected: Collected) -> None:
    """Read messages ``start`` to ``stop``; see `otlp_json.collect`."""
    for number in range(start, stop):
        value = values[number]
        try:
            request = read_message(value)
        except Refusal as refusal:
            collected.reject_message(number, refusal.reason, refusal.detail, value)
            continue
        if isinstance(request, str):
            collected.skipped[request] += 1
            continue
        count = sum(len(scope.spans) for found in request.resource_spans for scope in found.scope_spans)
        if collected.is_countable(number, count, value):
            _collect_message(request, number, collected)


def _collect_message(request: TracesData, message: int, collected: Collected) -> None:
    index = -1
    keep = collected.spans.append
    for found in request.resource_spans:
        owner: Owner | None = None
        for scope in found.scope_spans:
            for span in scope.spans:
                index += 1
                span_kind = int(span.kind)
                call = CALLS.get(span_kind)
                if call is None:
                    if span_kind in OTHERS:
                        collected.skipped[OTHERS[span_kind]] += 1
                    else:
                        collected.unfit.append((message, index, unknown_kind(span_kind)))
                    continue
                kind, slots = call
                context = _context(span, kind)
                if context is None:
                    collected.skipped[NESTED] += 1
                    continue
                if owner is None:
                    owner = collected.owner_of(_texts(found.resource.attributes))
                keep(
                    (
                        *(message, index, kind, span.trace_id, span.span_id, *context),
                        *(span.start_time_unix_nano, span.end_time_unix_nano, span.status.code, span.trace_state),
                        *(owner, _row(span.attributes, slots)),
                    )
                )


def _context(span: Any, kind: int) -> tuple[bytes, bytes] | None:
    """Return the ids of the caller's half, as `Spans` has them; ``None`` where that is of the same process."""
    if kind in CALLERS:
        return span.trace_id, span.span_id
    if kind == CONSUMER and len(span.links) == 1 and span.links[0].span_id:
        return span.links[0].trace_id, span.links[0].span_id
    if span.parent_span_id and is_local_parent(span.flags):
        return None
    return span.trace_id, span.parent_span_id


def _texts(attributes: Any) -> dict[str, str]:
    """Return those attributes of a resource that are used."""
    return {a.key: a.value.string_value for a in attributes if a.key in RESOURCE_KEYS and a.value.string_value}


def _row(attributes: Any, slots: dict[str, int]) -> list[Any]:
    row: list[Any] = [None] * SLOTS
    for attribute in attributes:
        slot = slots.get(attribute.key)
        if slot is not None:
            row[slot] = _text(attribute.value) if slot in TEXTS else _number(attribute.value)
    return row


def _text(value: Any) -> str | None:
    return value.string_value or None


def _number(value: Any) -> Any:
    number = value.int_value
    if number or value.HasField("int_value"):
        return number
    which = value.WhichOneof("value")
    return getattr(value, which) if which in ("string_value", "bool_value", "double_value") else None


def spans_alone(value: bytes) -> Alone:
    """Return how many records a message holds, and how to have each alone."""
    request = TracesData.FromString(value)
    spans = [
        (found.resource, span)
        for found in request.resource_spans
        for scope in found.scope_spans
        for span in scope.spans
    ]
    if len(spans) <= 1:
        return 1, lambda _: value

    def alone(index: int) -> bytes:
        resource, span = spans[index]
        found = ResourceSpans(resource=_kept(resource), scope_spans=[ScopeSpans(spans=[span])])
        return bytes(TracesData(resource_spans=[found]).SerializeToString())

    return len(spans), alone


def _kept(resource: Resource) -> Resource:
    """Return what a dead letter keeps of a resource: a large one would be multiplied by its spans."""
    if resource.ByteSize() <= MAX_RESOURCE_BYTES:
        return resource
    used = Resource(attributes=[a for a in resource.attributes if a.key in RESOURCE_KEYS])
    return used if used.ByteSize() <= MAX_RESOURCE_BYTES else Resource()
