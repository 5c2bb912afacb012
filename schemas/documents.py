"""Documents that a tenant's controls carry, a record each: what all kinds of them have in common. Pure."""

from typing import TypeVar

import msgspec

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_DOCUMENTS = 64
"""Of one tenant and kind; the state machine passes over what would be one more."""

T = TypeVar("T")


def read_document(data: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Read the form of a document; what its type cannot say is for the caller to check.

    Raises:
        ValueError: it is too large, or not JSON of its form; the text says which and why.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{what} document of {len(data)} bytes; the limit is {MAX_DOCUMENT_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no {what.split()[-1]} document: {error}") from error
