"""Records of JSON messages: one object a message, an array of objects, or NDJSON, with their coordinates. Pure.

Messages are decoded one by one and never joined into one text: a hostile message could then swallow its neighbours.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from schemas.tenant_log import IntColumn
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_BOUNDS = (
    "Expected `int` <=",
    "Expected `int` >=",
    "Expected `float` <=",
    "Expected `float` >=",
    "Expected `str` of length",
    "Invalid enum value",
    "Number out of range",
)

_pieces = msgspec.json.Decoder(list[msgspec.Raw])
_any_value = msgspec.json.Decoder(msgspec.Raw)

FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that decoding can raise on whatever bytes."""

Read = Callable[[Any], Any]
"""Decodes bytes; decoders of msgspec take text, too."""


class NotAFlow(msgspec.DecodeError):
    """Raised while a record is read: it is sound, and no flow.

    Attributes:
        kind: what it is, from a small set of the format's.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def refusal_of(error: Exception) -> Refusal:
    """Return the verdict on a record that failed to decode."""
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
        except FAILURES as error:
            raise refusal_of(error) from error
        if not pieces:
            raise Refusal(Reason.EMPTY, "the array is empty")
        return pieces
    if b"\n" not in text:
        return [text]
    try:
        _any_value.decode(text)  # one object over several lines
        return [text]
    except FAILURES:
        return [line for line in map(bytes.strip, text.split(b"\n")) if line]


class Explained(msgspec.ValidationError):
    """Raised while a record is read: it is refused for a reason that says more than any decoder's."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How records of a format are decoded.

    Attributes:
        spellings: decoders of one record, the usual one first; what one refuses is tried with the next. Each returns
            a record or raises one of ``FAILURES``.
        array: decodes an array of records in the usual spelling, or ``None``.
        explain: asked why a record is refused by all: returns the kind of what is no flow, or ``None``.
        foreign: names what a message is that is no JSON of this format, or ``None``.
        split: returns the text of each record of a message, as coordinates count them; raises `Refusal`.
    """

    spellings: tuple[Read, ...]
    array: Callable[[bytes], list[Any]] | None = None
    explain: Callable[[bytes], str | None] = lambda _piece: None
    foreign: Callable[[bytes], str | None] = lambda _value: None
    split: Callable[[bytes], list[bytes]] = split_records


class JsonRecords:
    """Collects the records of consecutive JSON messages.

    Attributes:
        records: what could be decoded, in order.
        rejected: what could not.
        skipped: coordinates and kinds of records that are no flows.
    """

    def __init__(self, values: Sequence[bytes], reading: Reading) -> None:
        self.records: list[Any] = []
        self.rejected: list[Rejected] = []
        self.skipped: list[str] = []
        self._values = values
        self._reading = reading
        self._usual = reading.spellings[0]
        self._spans: list[tuple[int, int, Sequence[int]]] = []  # (message, row it starts at, indexes of its records)

    def collect(self, start: int, stops_at: bytes | None = None) -> int:
        """Decode from message ``start``; return where it stopped: the end, or a message that starts with ``stops_at``.

        ``stops_at`` must be no JSON: only messages that fail to decode are compared with it.
        """
        records, values = self.records, self._values
        usual = self._usual
        message = start
        stop, decoding = self._decoding(start)
        while True:
            row = len(records)
            try:
                # list.extend keeps what it took before an error, and the map goes on behind the message that failed.
                records.extend(decoding)
                message += len(records) - row
                if message == len(values):
                    return message
                if message == stop:
                    stop, decoding = self._decoding(message)
            except FAILURES as error:
                message += len(records) - row
                value = values[message]
                if stops_at is not None and value.startswith(stops_at):
                    return message
                self._read_irregular(message, value, error)
                message += 1
                if self._usual is not usual:  # the topic's spelling is another one: others will follow
                    usual = self._usual
                    stop, decoding = self._decoding(message)

    def _decoding(self, start: int) -> tuple[int, Iterator[Any]]:
        """Return an iterator that decodes messages from ``start`` on in the usual spelling, and where it stops."""
        usual, values = self._usual, self._values
        leading = getattr(usual, "leading", None)
        if leading is not None:  # a spelling with a quicker way for many
            count, decoding = leading(values, start)
            if count:
                return start + count, decoding
            return start + 1, map(usual, values[start : start + 1])
        return len(values), map(usual, values[start:] if start else values)

    def _read_irregular(self, message: int, value: bytes, error: Exception) -> None:
        row = len(self.records)
        if isinstance(error, NotAFlow):
            self.skipped.append(error.kind)
            self._spans.append((message, row, ()))
            return
        indexes: Sequence[int]
        whole = self._read_whole(value)
        if whole is not None and len(whole) <= MAX_RECORDS_PER_MESSAGE:
            indexes = range(len(whole))
            self.records.extend(whole)
        else:
            indexes = self._read_pieces(message, value)
        self._spans.append((message, row, indexes))

    def _read_whole(self, value: bytes) -> list[Any] | None:
        """Decode a message at once, the usual case; ``None`` where records must be looked at one by one."""
        text = value.removeprefix(_BOM).strip(_SPACE)
        array = self._reading.array
        try:
            if text.startswith(b"["):
                return (array(text) or None) if array is not None else None
            record = self._reading.spellings[0](text)
            self._usual = self._reading.spellings[0]
            return [record]
        except FAILURES:
            return None

    def _read_one(self, piece: bytes) -> Any:
        """Decode a record in whichever spelling it has; that one becomes the usual.

        Raises:
            NotAFlow: it is something else.
        """
        failure: Exception | None = None
        for spelling in self._reading.spellings:
            try:
                record = spelling(piece)
            except NotAFlow:
                raise
            except FAILURES as error:
                if failure is None or isinstance(error, Explained):
                    failure = error
                continue
            self._usual = spelling
            return record
        assert failure is not None
        kind = self._reading.explain(piece)
        if kind is not None:
            raise NotAFlow(kind) from failure
        raise failure

    def _read_pieces(self, message: int, value: bytes) -> list[int]:
        try:
            pieces = self._pieces_of(value)
        except Refusal as refusal:
            self.rejected.append(Rejected(message, WHOLE_MESSAGE, refusal.reason, refusal.detail, value))
            return []
        good: list[int] = []
        bad: list[Rejected] = []
        skipped = 0
        for index, piece in enumerate(pieces):
            try:
                self.records.append(self._read_one(piece))
                good.append(index)
            except NotAFlow as other:
                self.skipped.append(other.kind)
                skipped += 1
            except FAILURES as error:
                verdict = refusal_of(error)
                bad.append(Rejected(message, index, verdict.reason, verdict.detail, piece))
        is_one = len(pieces) == 1 or not (good or skipped or value.lstrip(_SPACE).startswith(b"["))
        if is_one:
            bad = [Rejected(message, WHOLE_MESSAGE, b.reason, b.detail, value) for b in bad[:1]]
        self.rejected.extend(bad)
        return good

    def _pieces_of(self, value: bytes) -> list[bytes]:
        named = wire_prefix(value) or self._reading.foreign(value)
        if named is not None:
            raise Refusal(Reason.MALFORMED, named)
        pieces = self._reading.split(value)
        if len(pieces) > MAX_RECORDS_PER_MESSAGE:
            raise Refusal(Reason.TOO_MANY_RECORDS, f"{len(pieces)} records in one message")
        return pieces

    def coordinates(self, start: int, stop: int) -> tuple[IntColumn, IntColumn]:
        """Return message and index of each record collected from messages ``start`` to ``stop``."""
        if not self._spans:
            return np.arange(start, stop, dtype=np.int64), np.zeros(stop - start, dtype=np.int64)
        counts = np.ones(stop - start, dtype=np.int64)
        for message, _, indexes in self._spans:
            counts[message - start] = len(indexes)
        message_of_row = np.repeat(np.arange(start, stop, dtype=np.int64), counts)
        index = np.zeros(len(message_of_row), dtype=np.int64)
        for _, row, indexes in self._spans:
            index[row : row + len(indexes)] = indexes
        return message_of_row, index

    def payload_of(self) -> Callable[[int, int], bytes]:
        """Return a function from (message, index) to the bytes of that record."""
        values, split = self._values, self._reading.split
        single = not self._spans

        @functools.lru_cache(maxsize=1)  # many records of one message in a row: split it once
        def pieces(message: int) -> list[bytes]:
            return split(values[message])

        def payload(message: int, record: int) -> bytes:
            if single:
                return values[message]
            try:
                found = pieces(message)
            except Refusal:  # a record was read all the same: it is the whole message
                return values[message]
            return found[record] if len(found) > 1 else values[message]

        return payload
