"""Canonical flows as JSON: one object a message, an array of objects, or NDJSON. Pure.

Messages are decoded one by one and never joined into one text: a hostile message could then swallow its neighbours.
"""

import functools
import typing
from collections.abc import Sequence

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.flow import UNKNOWN, Flow
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short
from streams.sources.format import MEASURES, Decoded, StructRows

ARROW_STREAM = b"\xff\xff\xff\xff"
ARROW_FILE = b"ARROW1"
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_BOUNDS = (
    "Expected `int` <=",
    "Expected `int` >=",
    "Expected `str` of length",
    "Invalid enum value",
    "Number out of range",
)


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
_pieces = msgspec.json.Decoder(list[msgspec.Raw])
_any_value = msgspec.json.Decoder(msgspec.Raw)

_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, RecursionError):
        return Refusal(Reason.MALFORMED, "JSON is nested too deeply")
    text = str(error)
    is_bound = isinstance(error, msgspec.ValidationError) and text.startswith(_BOUNDS)
    return Refusal(Reason.INVALID_VALUE if is_bound else Reason.MALFORMED, short(text))


def wire_prefix(value: bytes) -> str | None:
    """Name the framing of a message that starts with a zero byte, or return ``None``."""
    if value[:1] != b"\0":
        return None
    if len(value) >= 5:
        schema = int.from_bytes(value[1:5], "big")
        return (
            f"starts with the Confluent wire prefix (schema id {schema}): "
            "configure the producer to write without schema registry framing"
        )
    return "starts with a zero byte"


def split_records(value: bytes) -> list[bytes]:
    """Return the text of each record of a message, as coordinates count them.

    Raises:
        Refusal: the message is empty, or an array that is no JSON.
    """
    text = value.removeprefix(_BOM).strip(_SPACE)
    if not text:
        raise Refusal(Reason.EMPTY, "the message is empty")
    if text.startswith(b"["):
        try:
            pieces = [bytes(piece) for piece in _pieces.decode(text)]
        except _FAILURES as error:
            raise _refusal(error) from error
        if not pieces:
            raise Refusal(Reason.EMPTY, "the array is empty")
        return pieces
    if b"\n" not in text:
        return [text]
    try:
        _any_value.decode(text)  # one object over several lines
        return [text]
    except _FAILURES:
        return [line for line in map(bytes.strip, text.split(b"\n")) if line]


def _read_whole(value: bytes) -> list[msgspec.Struct] | None:
    """Decode an array at once, the usual case; ``None`` where records must be looked at one by one."""
    text = value.removeprefix(_BOM).strip(_SPACE)
    try:
        if text.startswith(b"["):
            return _many.decode(text) or None
        return [_one.decode(text)]
    except _FAILURES:
        return None


class JsonRows:
    """Collects the rows of consecutive JSON messages."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._values = values
        self._flows: list[msgspec.Struct] = []
        self._spans: list[tuple[int, int, Sequence[int]]] = []  # (message, row it starts at, indexes of its records)
        self.rejected: list[Rejected] = []

    def collect(self, start: int, *, arrow_follows: bool) -> int:
        """Decode from message ``start``; return where it stopped: the end, or an Arrow message if they are read."""
        flows, values = self._flows, self._values
        decoding = map(_one.decode, values[start:] if start else values)
        message = start
        while True:
            row = len(flows)
            try:
                # list.extend keeps what it took before an error, and the map goes on behind the message that failed.
                flows.extend(decoding)
                message += len(flows) - row
                return message
            except _FAILURES:
                message += len(flows) - row
                if arrow_follows and values[message].startswith(ARROW_STREAM):
                    return message
                self._read_irregular(message, values[message])
                message += 1

    def _read_irregular(self, message: int, value: bytes) -> None:
        row = len(self._flows)
        whole = _read_whole(value)
        indexes: Sequence[int]
        if whole is not None and len(whole) <= MAX_RECORDS_PER_MESSAGE:
            indexes = range(len(whole))
            self._flows.extend(whole)
        else:
            indexes = self._read_pieces(message, value)
        self._spans.append((message, row, indexes))

    def _read_pieces(self, message: int, value: bytes) -> list[int]:
        try:
            pieces = self._pieces_of(value)
        except Refusal as refusal:
            self.rejected.append(Rejected(message, WHOLE_MESSAGE, refusal.reason, refusal.detail, value))
            return []
        good: list[int] = []
        bad: list[Rejected] = []
        for index, piece in enumerate(pieces):
            try:
                self._flows.append(_one.decode(piece))
                good.append(index)
            except _FAILURES as error:
                verdict = _refusal(error)
                bad.append(Rejected(message, index, verdict.reason, verdict.detail, piece))
        if len(pieces) == 1 or (not good and not value.lstrip(_SPACE).startswith(b"[")):
            bad = [Rejected(message, WHOLE_MESSAGE, b.reason, b.detail, value) for b in bad[:1]]
        self.rejected.extend(bad)
        return good

    @staticmethod
    def _pieces_of(value: bytes) -> list[bytes]:
        framing = wire_prefix(value)
        if framing is not None:
            raise Refusal(Reason.MALFORMED, framing)
        if value.startswith((ARROW_STREAM, ARROW_FILE)):
            raise Refusal(
                Reason.MALFORMED,
                "an Arrow IPC file: send the stream format"
                if value.startswith(ARROW_FILE)
                else "an Arrow IPC stream, and the topic's format is canonical-json",
            )
        pieces = split_records(value)
        if len(pieces) > MAX_RECORDS_PER_MESSAGE:
            raise Refusal(Reason.TOO_MANY_RECORDS, f"{len(pieces)} records in one message")
        return pieces

    def rows(self, start: int, stop: int) -> list[StructRows]:
        """Return the rows of messages ``start`` to ``stop``, those collected, as at most one run."""
        if not self._flows:
            return []
        counts = np.ones(stop - start, dtype=np.int64)
        for message, _, indexes in self._spans:
            counts[message - start] = len(indexes)
        message_of_row = np.repeat(np.arange(start, stop, dtype=np.int64), counts)
        index = np.zeros(len(message_of_row), dtype=np.int64)
        for _, row, indexes in self._spans:
            index[row : row + len(indexes)] = indexes
        values = self._values
        single = not self._spans

        @functools.lru_cache(maxsize=1)  # many records of one message in a row: split it once
        def pieces(message: int) -> list[bytes]:
            return split_records(values[message])

        def payload(message: int, record: int) -> bytes:
            return values[message] if single or len(pieces(message)) == 1 else pieces(message)[record]

        return [StructRows(self._flows, message_of_row, index, payload)]


class CanonicalJson:
    """``canonical-json``: JSON object, array of objects, or NDJSON."""

    name = "canonical-json"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        collector = JsonRows(values)
        stop = collector.collect(0, arrow_follows=False)
        return Decoded(list(collector.rows(0, stop)), collector.rejected)
