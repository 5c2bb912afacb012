"""Dead letters as messages of their topic, there and back. Pure; the ingest agent sends them.

Beside the bytes a dead letter keeps what a replay needs: original key, headers and timestamp. All of it is bounded
(schemas/dead_letter.py), so that no record can make a dead letter that the broker refuses.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from schemas.dead_letter import (
    KEPT_PAYLOAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    DeadLetter,
    Reason,
)
from schemas.errors import WireFormatError
from streams.result import short

HEADER_REASON = "reason"
HEADER_DETAIL = "detail"
HEADER_SOURCE = "source"
HEADER_FORMAT = "format"
HEADER_BYTES = "length"
"""Full length of a payload that was cut."""
HEADER_SHA256 = "sha256"
HEADER_CONTENT = "content"
"""``record``: the value is one record of several in its message. Absent: the whole message, or of an older worker."""
HEADER_KEY = "key"
HEADER_TIMESTAMP = "timestamp"
HEADER_TIMESTAMP_TYPE = "timestamp-type"
HEADER_INCARNATION = "incarnation"
HEADER_LEFT_OUT = "headers-left-out"
ORIGINAL_PREFIX = "header:"
"""Each header of the original message comes under its name behind this."""
NULL_PREFIX = "null-header:"
"""The same for a header whose value is null, which not every client can write."""
_ALONE = b"record"
_HEADER_OVERHEAD_BYTES = 16
"""Counted for each original header, so that many empty ones are bounded too."""

Headers = list[tuple[str, bytes]]
OriginalHeaders = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class DeadLetterMessage:
    """One message of the dead-letter topic."""

    key: bytes
    value: bytes
    headers: Headers


def encode_dead_letter(letter: DeadLetter) -> DeadLetterMessage:
    """Return the message: the original bytes; of more than 256 KiB the first 64, with length and SHA-256 as headers."""
    headers: Headers = [
        (HEADER_REASON, letter.reason.value.encode()),
        (HEADER_DETAIL, short(letter.detail).encode(errors="replace")),
        (HEADER_SOURCE, letter.key.encode()),
        (HEADER_FORMAT, letter.format.encode()),
    ]
    value, length, digest = letter.payload, letter.length, letter.sha256
    if len(value) > MAX_PAYLOAD_BYTES:
        length, digest = len(value), hashlib.sha256(value).hexdigest()
        value = value[:KEPT_PAYLOAD_BYTES]
    if length:
        headers.append((HEADER_BYTES, str(length).encode()))
        headers.append((HEADER_SHA256, digest.encode()))
    if letter.is_alone:
        headers.append((HEADER_CONTENT, _ALONE))
    if letter.incarnation:
        headers.append((HEADER_INCARNATION, letter.incarnation.encode(errors="replace")))
    if letter.timestamp_ms >= 0:
        headers.append((HEADER_TIMESTAMP, str(letter.timestamp_ms).encode()))
        headers.append((HEADER_TIMESTAMP_TYPE, str(letter.timestamp_type).encode()))
    if letter.message_key is not None:
        headers.append((HEADER_KEY, letter.message_key[:MAX_KEY_BYTES]))
    kept, left_out = _bounded(letter.message_headers)
    headers += [
        (f"{ORIGINAL_PREFIX}{name}", data) if data is not None else (f"{NULL_PREFIX}{name}", b"") for name, data in kept
    ]
    left_out += letter.headers_left_out
    if left_out:
        headers.append((HEADER_LEFT_OUT, str(left_out).encode()))
    return DeadLetterMessage(letter.key.encode(), value, headers)


def _bounded(headers: OriginalHeaders) -> tuple[list[tuple[str, bytes | None]], int]:
    """Return the headers that fit, in order, and how many do not."""
    kept: list[tuple[str, bytes | None]] = []
    room = MAX_HEADER_BYTES
    left_out = 0
    for name, data in headers:
        size = len(name.encode(errors="replace")) + len(data or b"") + _HEADER_OVERHEAD_BYTES
        if size > room:
            left_out += 1
            continue
        room -= size
        kept.append((name, data))
    return kept, left_out


def decode_dead_letter(value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> DeadLetter:
    """Read a message of the dead-letter topic; the payload is what was kept of it.

    Raises:
        WireFormatError: the headers are not those of a dead letter.
    """
    found = {name: data or b"" for name, data in headers if not name.startswith((ORIGINAL_PREFIX, NULL_PREFIX))}

    def text(name: str) -> str:
        return found.get(name, b"").decode(errors="replace")

    try:
        topic, partition, offset, index = found[HEADER_SOURCE].decode().rsplit(":", 3)
        return DeadLetter(
            topic=topic,
            partition=int(partition),
            offset=int(offset),
            index=int(index),
            reason=Reason(text(HEADER_REASON)),
            detail=text(HEADER_DETAIL),
            payload=value or b"",
            format=text(HEADER_FORMAT),
            is_alone=found.get(HEADER_CONTENT) == _ALONE,
            length=int(text(HEADER_BYTES) or 0),
            sha256=text(HEADER_SHA256),
            message_key=found.get(HEADER_KEY),
            message_headers=tuple(_originals(headers)),
            headers_left_out=int(text(HEADER_LEFT_OUT) or 0),
            timestamp_ms=int(text(HEADER_TIMESTAMP) or -1),
            timestamp_type=int(text(HEADER_TIMESTAMP_TYPE) or 0),
            incarnation=text(HEADER_INCARNATION),
        )
    except (KeyError, ValueError) as error:
        raise WireFormatError(f"not a dead letter: {short(str(error))}") from error


def _originals(headers: OriginalHeaders) -> Iterator[tuple[str, bytes | None]]:
    for name, data in headers:
        if name.startswith(ORIGINAL_PREFIX):
            yield name.removeprefix(ORIGINAL_PREFIX), data
        elif name.startswith(NULL_PREFIX):
            yield name.removeprefix(NULL_PREFIX), None


# -- repetitions -------------------------------------------------------------------------------------------------------


def merge(earlier: DeadLetter, later: DeadLetter) -> DeadLetter:
    """Return what two repetitions of a dead letter say together: the later verdict, and the bytes where one has them.

    A row that the graph agent refused comes without its bytes, also where an earlier repetition has kept them.
    """
    if later.payload or later.message_headers or not earlier.payload:
        return later
    return msgspec.structs.replace(earlier, reason=later.reason, detail=later.detail)


# -- what a replay makes of them ---------------------------------------------------------------------------------------

_INSTEAD = {
    Reason.CORRUPT_BATCH: "the broker's batch is damaged: restore it on the broker, or send its records anew",
    Reason.UNSTORABLE: (
        "it is an event or window of ours that ClickHouse refused, no flow: mend the cause its detail names; "
        "to store it, have the sink read the topic again (move the group's offset of that partition)"
    ),
}
CONTROL_FORMAT = "control"
_SELF_CONTAINED = frozenset({"", "canonical", "canonical-json", "canonical-arrow", "otlp-traces"})
"""Formats of which a record alone reads the same. In others a line's meaning can hang on the message's first one."""


def unreplayable(letter: DeadLetter) -> str | None:
    """Say why this can never be replayed and what to do instead; ``None`` if it can."""
    instead = _INSTEAD.get(letter.reason)
    if instead is None and letter.format == CONTROL_FORMAT:
        return "it is a control: write it anew to the topic of the controls, its latest value holds"
    return instead


def needs_source(letter: DeadLetter) -> str | None:
    """Say why the record must be read anew from its source topic; ``None`` if the dead letter holds all of it."""
    if not letter.payload and letter.reason in {Reason.STATE_MACHINE, Reason.FUTURE}:
        return "the graph agent refused the row, its bytes are in the source topic"
    if letter.length > len(letter.payload):
        return f"of its {letter.length} bytes {len(letter.payload)} were kept"
    name = re.split("[?:]", letter.format, maxsplit=1)[0]
    if letter.is_alone and name not in _SELF_CONTAINED:
        return f"a record of format {name!r} is read with its message"
    if letter.headers_left_out:
        return f"{letter.headers_left_out} of its headers were too large to keep"
    return None
