"""Dead letters as messages of their topic, there and back. Pure; the ingest agent sends them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.dead_letter import KEPT_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, DeadLetter, Reason
from schemas.errors import WireFormatError
from streams.result import short

HEADER_REASON = "reason"
HEADER_DETAIL = "detail"
HEADER_SOURCE = "source"
HEADER_FORMAT = "format"
HEADER_BYTES = "length"
"""Full length of a payload that was cut."""
HEADER_SHA256 = "sha256"

Headers = list[tuple[str, bytes]]


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
    value = letter.payload
    if len(value) > MAX_PAYLOAD_BYTES:
        headers.append((HEADER_BYTES, str(len(value)).encode()))
        headers.append((HEADER_SHA256, hashlib.sha256(value).hexdigest().encode()))
        value = value[:KEPT_PAYLOAD_BYTES]
    return DeadLetterMessage(letter.key.encode(), value, headers)


def decode_dead_letter(value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> DeadLetter:
    """Read a message of the dead-letter topic; the payload is what was kept of it.

    Raises:
        WireFormatError: the headers are not those of a dead letter.
    """
    found = {name: (data or b"").decode(errors="replace") for name, data in headers}
    try:
        topic, partition, offset, index = found[HEADER_SOURCE].rsplit(":", 3)
        return DeadLetter(
            topic=topic,
            partition=int(partition),
            offset=int(offset),
            index=int(index),
            reason=Reason(found[HEADER_REASON]),
            detail=found.get(HEADER_DETAIL, ""),
            payload=value or b"",
            format=found.get(HEADER_FORMAT, ""),
        )
    except (KeyError, ValueError) as error:
        raise WireFormatError(f"not a dead letter: {short(str(error))}") from error
