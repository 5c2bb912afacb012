"""OTLP's JSON messages: their spans, numbered through each message, those that are half a call taken. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streams.result import WHOLE_MESSAGE, Rejected
from streams.sources.json_records import JsonRecords
from streams.sources.otlp_documents import READING, Attribute, BadSpan, Document, JsonSpan, Value, used_texts
from streams.sources.otlp_names import Owner
from streams.sources.otlp_spans import (
    CALLERS,
    CALLS,
    CONSUMER,
    NESTED,
    OTHERS,
    SLOTS,
    TEXTS,
    Collected,
    is_local_parent,
    unknown_kind,
)


def collect(values: Sequence[bytes], start: int, stop: int, collected: Collected) -> None:
    """Read messages ``start`` to ``stop``: spans that are half a call are kept, the others counted or rejected.

    Records are numbered through a message, whichever of its documents they are in; a document that cannot be read
    counts as one.
    """
    found = JsonRecords(values[start:stop], READING)
    found.collect(0)
    collected.skipped.update(found.skipped)
    message, piece = found.coordinates(0, stop - start)
    numbers: list[int] = (message + start).tolist()
    counts = [_span_count(document) for document in found.records]
    in_pieces = [bad for bad in found.rejected if bad.index != WHOLE_MESSAGE]
    collected.rejected.extend(
        replace(bad, message=bad.message + start) for bad in found.rejected if bad.index == WHOLE_MESSAGE
    )
    firsts: Sequence[int] = [0] * len(numbers)
    totals: Mapping[int, int] = dict(zip(numbers, counts, strict=True))
    if in_pieces or len(totals) < len(numbers):
        firsts, totals = _numbered(numbers, piece.tolist(), counts, in_pieces, start, collected)
    countable = {number: collected.is_countable(number, total, values[number]) for number, total in totals.items()}
    for document, number, first in zip(found.records, numbers, firsts, strict=True):
        if countable[number]:
            _collect_document(document, number, first, collected)


def _numbered(
    numbers: Sequence[int],
    pieces: Sequence[int],
    counts: Sequence[int],
    in_pieces: Sequence[Rejected],
    start: int,
    collected: Collected,
) -> tuple[list[int], dict[int, int]]:
    """Return the number of the first span of each document, and how many records each message holds."""
    firsts = [0] * len(numbers)
    totals: dict[int, int] = {}
    read = ((number, piece, row) for row, (number, piece) in enumerate(zip(numbers, pieces, strict=True)))
    broken = ((bad.message + start, bad.index, -1 - which) for which, bad in enumerate(in_pieces))
    for number, _, row in sorted((*read, *broken)):
        first = totals.get(number, 0)
        if row >= 0:
            firsts[row] = first
            totals[number] = first + counts[row]
        else:
            collected.rejected.append(replace(in_pieces[-1 - row], message=number, index=first))
            totals[number] = first + 1
    return firsts, totals


def _span_count(document: Document) -> int:
    return sum(len(scope.spans) for found in document.resourceSpans for scope in found.scopeSpans or () if scope.spans)


def _collect_document(document: Document, message: int, first_index: int, collected: Collected) -> None:
    index = first_index - 1
    keep = collected.spans.append
    for found in document.resourceSpans:
        owner: Owner | None = None
        for scope in found.scopeSpans or ():
            for span in scope.spans or ():
                index += 1
                call = CALLS.get(span.kind) if type(span) is JsonSpan else None
                if call is None:
                    _pass_over(span, message, index, collected)
                    continue
                kind, slots = call
                context = _context(span, kind)
                if context is None:
                    collected.skipped[NESTED] += 1
                    continue
                if owner is None:
                    owner = collected.owner_of(used_texts(found.resource))
                keep(
                    (
                        *(message, index, kind, span.traceId, span.spanId, *context),
                        *(span.startTimeUnixNano, span.endTimeUnixNano),
                        *(span.status.code if span.status is not None else None, span.traceState),
                        *(owner, _row(span.attributes, slots)),
                    )
                )


def _pass_over(span: JsonSpan | BadSpan, message: int, index: int, collected: Collected) -> None:
    """Count a span that is no call, or reject it."""
    if isinstance(span, BadSpan):
        collected.unfit.append((message, index, span.refusal))
    elif span.kind is None or span.kind in OTHERS:
        collected.skipped[OTHERS[span.kind or 0]] += 1
    else:
        collected.unfit.append((message, index, unknown_kind(span.kind)))


def _context(span: JsonSpan, kind: int) -> tuple[str | None, str | None] | None:
    """Return the ids of the caller's half, as `Spans` has them; ``None`` where that is of the same process."""
    if kind in CALLERS:
        return span.traceId, span.spanId
    if kind == CONSUMER and span.links and len(span.links) == 1 and span.links[0].spanId:
        return span.links[0].traceId, span.links[0].spanId
    if span.flags and span.parentSpanId and is_local_parent(span.flags):
        return None
    return span.traceId, span.parentSpanId


def _row(attributes: list[Attribute] | None, slots: dict[str, int]) -> list[Any]:
    row: list[Any] = [None] * SLOTS
    for attribute in attributes or ():
        slot = slots.get(attribute.key)
        if slot is not None and attribute.value is not None:
            row[slot] = _value(attribute.value, slot)
    return row


def _value(value: Value, slot: int) -> Any:
    if slot in TEXTS:
        return value.stringValue
    for found in (value.intValue, value.stringValue, value.boolValue, value.doubleValue):
        if found is not None:
            return found
    return None
