"""Canonical flows as JSON: one object a message, an array of objects, or NDJSON. Pure."""

import typing
from collections.abc import Sequence

import msgspec

from schemas.flow import UNKNOWN, Flow
from streams.sources.format import MEASURES, Decoded, StructRows
from streams.sources.json_records import JsonRecords, Reading

ARROW_STREAM = b"\xff\xff\xff\xff"
ARROW_FILE = b"ARROW1"


def _record_type() -> type[msgspec.Struct]:
    """Return `Flow` with -1 for integers that are absent: columns then come out without a look at every value."""
    hints = typing.get_type_hints(Flow, include_extras=True)
    fields: list[typing.Any] = []
    for field in msgspec.structs.fields(Flow):
        unknown = field.name in MEASURES or field.name == "port"
        default = UNKNOWN if unknown and field.default is None else field.default
        fields.append((field.name, hints[field.name]) if field.required else (field.name, hints[field.name], default))
    return msgspec.defstruct("FlowRecord", fields, gc=False)


_Record = _record_type()
_one = msgspec.json.Decoder(_Record)
_many = msgspec.json.Decoder(list[_Record])  # type: ignore[valid-type]


def _foreign(value: bytes) -> str | None:
    if value.startswith(ARROW_FILE):
        return "an Arrow IPC file: send the stream format"
    if value.startswith(ARROW_STREAM):
        return "an Arrow IPC stream, and the topic's format is canonical-json"
    return None


_reading = Reading((_one.decode,), _many.decode, foreign=_foreign)


class JsonRows:
    """Collects the rows of consecutive JSON messages."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._records = JsonRecords(values, _reading)
        self.rejected = self._records.rejected

    def collect(self, start: int, *, arrow_follows: bool) -> int:
        """Decode from message ``start``; return where it stopped: the end, or an Arrow message if they are read."""
        return self._records.collect(start, ARROW_STREAM if arrow_follows else None)

    def rows(self, start: int, stop: int) -> list[StructRows]:
        """Return the rows of messages ``start`` to ``stop``, those collected, as at most one run."""
        if not self._records.records:
            return []
        message, index = self._records.coordinates(start, stop)
        return [StructRows(self._records.records, message, index, self._records.payload_of())]


class CanonicalJson:
    """``canonical-json``: JSON object, array of objects, or NDJSON."""

    name = "canonical-json"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        collector = JsonRows(values)
        stop = collector.collect(0, arrow_follows=False)
        return Decoded(list(collector.rows(0, stop)), collector.rejected)
