"""Records that log shippers wrap: ``{"message": "..."}`` (Filebeat, Vector, Firehose) or ``{"log": "..."}``. Pure."""

import msgspec


class _Envelope(msgspec.Struct, gc=False):
    message: str | None = None
    log: str | None = None


_envelope = msgspec.json.Decoder(_Envelope).decode


def text_in_envelope(value: bytes) -> str:
    """Return the text of a shipper's record.

    Raises:
        msgspec.DecodeError: it is no JSON, or wraps no text.
    """
    envelope = _envelope(value)
    text = envelope.message if envelope.message is not None else envelope.log
    if text is None:
        raise msgspec.ValidationError("no message in the record")
    return text.strip()
