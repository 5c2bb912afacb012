"""OTLP's JSON: documents of spans, read as types; a span that does not fit costs itself, not its document. Pure.

Ids are hex and 64-bit integers text or numbers; enums are numbers or names (opentelemetry-proto docs/specification.md,
"JSON Protobuf Encoding"). Unknown fields are ignored.
"""

from typing import Any

import msgspec

from streams.result import Refusal
from streams.sources.envelopes import Wrapped
from streams.sources.json_records import FAILURES, Reading, refusal_of, split_records
from streams.sources.otlp_names import RESOURCE_KEYS
from streams.sources.otlp_spans import MAX_RESOURCE_BYTES, Alone
from streams.sources.typed import lax

_SPANS = "resourceSpans"
_SIGNALS = {"resourceMetrics": "metrics", "resourceLogs": "logs", "resourceProfiles": "profiles"}


class Value(msgspec.Struct, gc=False):
    stringValue: str | None = None
    intValue: int | str | None = None
    doubleValue: float | str | None = None
    boolValue: bool | None = None


class Attribute(msgspec.Struct, gc=False):
    key: str = ""
    value: Value | None = None


class Status(msgspec.Struct, gc=False):
    code: int | str | None = None


class Link(msgspec.Struct, gc=False):
    traceId: str | None = None
    spanId: str | None = None


class JsonSpan(msgspec.Struct, gc=False):
    """What is used of a span."""

    kind: int | str | None = 0
    flags: int | None = None
    traceId: str | None = None
    spanId: str | None = None
    parentSpanId: str | None = None
    traceState: str | None = None
    startTimeUnixNano: int | str | None = None
    endTimeUnixNano: int | str | None = None
    attributes: list[Attribute] | None = None
    links: list[Link] | None = None
    status: Status | None = None


class BadSpan(msgspec.Struct, gc=False):
    """A span that does not fit its type, or whose resource does not."""

    refusal: Any


class ScopeSpans(msgspec.Struct, gc=False):
    spans: list[Any] | None = None


class _JsonScopeSpans(msgspec.Struct, gc=False):
    spans: list[JsonSpan] | None = None


class Resource(msgspec.Struct, gc=False):
    attributes: list[Attribute] | None = None


class ResourceSpans(msgspec.Struct, gc=False):
    resource: Resource | None = None
    scopeSpans: list[_JsonScopeSpans] | None = None


class Document(msgspec.Struct, gc=False):
    """A message: an ExportTraceServiceRequest, or a line of a file."""

    resourceSpans: list[ResourceSpans]


class _RawScopeSpans(msgspec.Struct, gc=False):
    spans: list[msgspec.Raw] | None = None


class _RawResourceSpans(msgspec.Struct, gc=False):
    resource: msgspec.Raw = msgspec.Raw(b"null")
    scopeSpans: list[_RawScopeSpans] | None = None


class _RawDocument(msgspec.Struct, gc=False):
    resourceSpans: list[_RawResourceSpans]


_document, _raw_document = lax(Document), lax(_RawDocument)
_resource, _span = lax(Resource | None), lax(JsonSpan)
_signal = lax(msgspec.defstruct("Signal", [(key, msgspec.Raw, msgspec.Raw()) for key in (_SPANS, *_SIGNALS)]))


def read_document(value: bytes) -> Document:
    """Read a document, span by span if it does not fit its type as a whole.

    Raises:
        msgspec.DecodeError: it is no JSON, or no document of spans.
    """
    try:
        document: Document = _document(value)
        return document
    except (msgspec.ValidationError, UnicodeDecodeError):  # text that is no UTF-8 costs its span, or its resource's
        raw: _RawDocument = _raw_document(value)
        return Document([_resource_spans(found) for found in raw.resourceSpans])


def _resource_spans(raw: _RawResourceSpans) -> ResourceSpans:
    refusal: Refusal | None = None
    resource: Resource | None = None
    try:
        resource = _resource(raw.resource)
    except FAILURES as error:
        refusal = Refusal(refusal_of(error).reason, f"of its resource: {refusal_of(error).detail}")
    scopes: list[Any] = [
        ScopeSpans([_read_span(span, refusal) for span in scope.spans or ()]) for scope in raw.scopeSpans or ()
    ]
    return ResourceSpans(resource, scopes)


def _read_span(raw: msgspec.Raw, refusal: Refusal | None) -> JsonSpan | BadSpan:
    if refusal is not None:
        return BadSpan(refusal)
    try:
        span: JsonSpan = _span(raw)
        return span
    except FAILURES as error:
        return BadSpan(refusal_of(error))


def _kind_of(piece: bytes) -> str | None:
    """Return which other signal of OTLP a record is."""
    try:
        found: Any = _signal(piece)
    except FAILURES:
        return None
    if bytes(getattr(found, _SPANS)):
        return None
    return next((kind for key, kind in _SIGNALS.items() if bytes(getattr(found, key))), None)


READING = Reading(
    (read_document, Wrapped(read_document, (_SPANS,))),
    msgspec.json.Decoder(list[Document], strict=False).decode,
    explain=_kind_of,
)


def used_texts(resource: Resource | None) -> dict[str, str]:
    """Return those attributes of a resource that are used."""
    attributes = resource.attributes if resource is not None else None
    return {
        attribute.key: attribute.value.stringValue
        for attribute in attributes or ()
        if attribute.key in RESOURCE_KEYS and attribute.value is not None and attribute.value.stringValue
    }


# -- one span alone ----------------------------------------------------------------------------------------------------


def spans_alone(value: bytes) -> Alone:
    """Return how many records a message holds, and how to have each alone."""
    try:
        pieces = split_records(value)
    except Refusal:
        return 1, lambda _: value
    records: list[tuple[bytes, bytes]] = []
    for piece in pieces:
        spans = _raw_spans(piece)
        if spans is not None:
            records.extend(spans)
        elif _kind_of(piece) is None:
            records.append((b"", piece))
    if len(records) <= 1:
        return 1, lambda _: value

    def alone(index: int) -> bytes:
        resource, record = records[index]
        return _ALONE % (resource, record) if resource else record

    return len(records), alone


_ALONE = b'{"resourceSpans":[{"resource":%s,"scopeSpans":[{"spans":[%s]}]}]}'


def _raw_spans(piece: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return resource and text of each span of a document, ``None`` where it is none."""
    for read in (_raw_document, Wrapped(_raw_document, (_SPANS,))):
        try:
            document: _RawDocument = read(piece)
        except FAILURES:
            continue
        spans: list[tuple[bytes, bytes]] = []
        for found in document.resourceSpans:
            resource = _kept(bytes(found.resource))
            spans.extend((resource, bytes(span)) for scope in found.scopeSpans or () for span in scope.spans or ())
        return spans
    return None


def _kept(resource: bytes) -> bytes:
    """Return what a dead letter keeps of a resource: a large one would be multiplied by its spans."""
    if len(resource) <= MAX_RESOURCE_BYTES:
        return resource
    try:
        used = used_texts(_resource(resource))
    except FAILURES:
        used = {}
    text = msgspec.json.encode({"attributes": [{"key": k, "value": {"stringValue": v}} for k, v in used.items()]})
    return text if len(text) <= MAX_RESOURCE_BYTES else b"null"
