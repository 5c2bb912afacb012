"""Records that log shippers wrap: ``{"message": "..."}`` (Filebeat, Vector, Firehose) or ``{"log": "..."}``. Pure."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streams.sources.json_records import Read

_NOTHING = msgspec.Raw()


def envelope_reader(
    required: Sequence[str], extra: Sequence[tuple[str, Any, Any]] = ()
) -> Callable[[bytes], tuple[str, Any]]:
    """Return a function that takes a shipper's record apart, into the text it wraps and the record's struct.

    It raises `msgspec.DecodeError` for what is no JSON, wraps no text, or has all the ``required`` keys of a record
    that is not wrapped: no record can be read in two ways, whatever its neighbours are.

    Args:
        extra: fields of the struct besides, as `msgspec.defstruct` takes them.
    """
    keys = [(f"key_{number}", msgspec.Raw, _NOTHING) for number in range(len(required))]
    wrapped = [("message", str | None, None), ("log", str | None, None)]
    envelope = msgspec.defstruct(
        "Envelope",
        [*wrapped, *keys, *extra],
        gc=False,
        rename={name: key for (name, _, _), key in zip(keys, required, strict=True)},
    )
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(envelope, strict=False).decode
    names = [name for name, _, _ in keys]

    def read(value: bytes) -> tuple[str, Any]:
        found = decode(value)
        text = found.message if found.message is not None else found.log
        if text is None:
            raise msgspec.ValidationError("no message in the record")
        if names and all(bytes(getattr(found, name)) for name in names):
            raise msgspec.ValidationError("a record that is not wrapped")
        return text.strip(), found

    return read


def in_envelope(read: Read, required: Sequence[str]) -> Read:
    """Return the decoder of records that a log shipper wrapped as text; ``required`` are keys of those not wrapped."""
    take_apart = envelope_reader(required)

    def unwrap(value: bytes) -> Any:
        return read(take_apart(value)[0].encode())

    return unwrap
