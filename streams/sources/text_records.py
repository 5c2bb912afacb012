"""Records that are lines of text: one a message or many, with their coordinates; and columns of text. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat
from operator import itemgetter
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.flow import UNKNOWN
from schemas.tenant_log import IntColumn
from streams.sources.envelopes import Envelope
from streams.sources.json_records import Reading
from streams.sources.orientation import Mask
from streams.sources.typed import Batch

UNSET = "-"
NO_NUMBER = -2
_TOO_LARGE = 1 << 62
_NAN = float("nan")
_BOM = b"\xef\xbb\xbf"
_JSON_STARTS = list(b"{[")
_UNTOLD = list(b"\xef \t\r\n")
"""First bytes behind which either kind may stand: a byte order mark, space."""
_NOT_TEXT = frozenset("{[\0\ufeff")
_UNUSUAL_STARTS = _NOT_TEXT | frozenset(" \t\r")


class NotOneLine(msgspec.DecodeError):
    """A message is not one line of text: several, or JSON, or nothing."""


def line_of(value: bytes) -> str:
    """Return a message of one line as text.

    Raises:
        NotOneLine: it is something else.
        UnicodeDecodeError: it is no UTF-8.
    """
    text = value.decode()
    if "\n" in text or text[:1] in _UNUSUAL_STARTS or text[-1:] <= " ":
        text = text.strip(" \r\n")
        if not text or text[0] in _NOT_TEXT or "\n" in text or text.isspace():
            raise NotOneLine("not a line of text" if text else "the message is empty")
    return text


LINES = Reading((line_of,))


class WrappedLine:
    """The decoder of lines that a log shipper wrapped."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    def __call__(self, value: bytes) -> str:
        """Return the line of one message; raises as decoders do."""
        text, _ = self._envelope.take_apart(value)
        if not text or "\n" in text:
            raise NotOneLine("not a line of text" if text else "the message is empty")
        return text

    def leading(self, values: Sequence[bytes], start: int) -> tuple[int, Iterator[str]]:
        """Return how many messages from ``start`` on can be decoded at once, and an iterator of their lines."""
        texts = [text.strip() for text in self._envelope.leading(islice(values, start, None))[0]]
        odd = (number for number, text in enumerate(texts) if not text or "\n" in text)
        found = next(odd, len(texts))
        return found, islice(texts, found)


def runs_by_kind(values: Sequence[bytes]) -> Iterator[tuple[bool, int, int]]:
    """Return stretches of messages of one kind, as (is JSON, first, behind the last)."""
    heads = np.frombuffer(bytes([value[0] if value else 0 for value in values]), dtype=np.uint8)
    is_json = np.isin(heads, _JSON_STARTS)
    for number in np.flatnonzero(np.isin(heads, _UNTOLD)).tolist():
        is_json[number] = values[number].removeprefix(_BOM).lstrip()[:1] in (b"{", b"[")
    borders = [0, *(np.flatnonzero(np.diff(is_json)) + 1).tolist(), len(values)]
    for start, stop in pairwise(borders):
        if stop > start:
            yield bool(is_json[start]), start, stop


class Note(NamedTuple):
    """What a line that is no record says of those that follow it in the same message.

    Attributes:
        fields: their columns; ``None``: as before.
        kind: what they are, if not flows; empty: flows; ``None``: as before.
    """

    fields: tuple[str, ...] | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How lines are columns.

    Attributes:
        separator: between the cells of a line.
        fields: columns of a line by how many cells it has, for lines without a header; ``None`` if that fits none.
        may_have_notes: says of the first cells of lines whether any of the lines may be no record; quick, may err so.
        note_heads: whether a line that is no record may start with a byte, ``(256,)``.
        note: reads a line that is no record; ``None`` for a record.
        expected: what ``fields`` takes, in words.
    """

    separator: str
    fields: Callable[[int], tuple[str, ...] | None]
    may_have_notes: Callable[[Sequence[str]], bool]
    note_heads: Mask
    note: Callable[[list[str]], Note | None]
    expected: str


class Table:
    """Cells of text, whose columns may change from line to line."""

    def __init__(self) -> None:
        self.cells: list[list[str]] = []
        self.shapes: list[tuple[tuple[str, ...], int]] = []  # (columns, number of the first row without them)

    def add(self, cells: list[str], fields: tuple[str, ...]) -> None:
        """Add a line."""
        self.cells.append(cells)
        if self.shapes and self.shapes[-1][0] is fields:
            self.shapes[-1] = fields, len(self.cells)
        else:
            self.shapes.append((fields, len(self.cells)))

    def column(self, *names: str) -> list[str | None]:
        """Return the first of these columns that there is; ``None`` where there is none."""
        found: list[str | None] = []
        at = 0
        for fields, until in self.shapes:
            where = next((fields.index(name) for name in names if name in fields), None)
            rows = self.cells if len(self.shapes) == 1 else self.cells[at:until]
            found.extend(repeat(None, until - at) if where is None else map(itemgetter(where), rows))
            at = until
        return found

    def take(self, rows: IntColumn) -> "Table":
        """Return some of the lines, by number."""
        left = Table()
        borders = [0, *(until for _, until in self.shapes)]
        shapes = zip(self.shapes, borders, strict=False)
        fields = list(chain.from_iterable(repeat(fields, until - at) for (fields, until), at in shapes))
        for row in rows.tolist():
            left.add(self.cells[row], fields[row])
        return left


def heads(starts: Iterable[str]) -> Mask:
    """Return which bytes texts start with, ``(256,)``."""
    mask = np.zeros(256, dtype=np.bool_)
    mask[[ord(text[0]) for text in starts]] = True
    return mask


HEADER = "header"
"""Kind of lines that name columns or say something about the log, in `Decoded.skipped`."""


def read_table(batch: Batch, layout: Layout) -> Table:
    """Split the lines of a batch; lines that are no records are counted, those with too many cells or few rejected."""
    table = Table()
    cells = [line.split(layout.separator) for line in batch.records]
    width = len(cells[0])
    usual = layout.fields(width)
    has_notes = layout.may_have_notes([line[0] for line in cells])
    if usual is not None and not has_notes and set(map(len, cells)) == {width}:
        table.cells, table.shapes = cells, [(usual, len(cells))]
        return table
    kept = np.zeros(len(cells), dtype=bool)
    wrong = np.zeros(len(cells), dtype=bool)
    wanted: dict[int, str] = {}
    fields: tuple[str, ...] | None = None
    kind: str | None = None
    of_message = UNKNOWN
    for row, message in enumerate(batch.draft.message.tolist()):
        if message != of_message:  # a header speaks for its own message alone
            fields, kind, of_message = None, None, message
        line = cells[row]
        note = layout.note(line) if has_notes else None
        if note is not None:
            fields, kind = note.fields or fields, kind if note.kind is None else note.kind
            batch.skipped[HEADER] += 1
            continue
        if kind:
            batch.skipped[kind] += 1
            continue
        shape = layout.fields(len(line)) if fields is None else fields if len(fields) == len(line) else None
        if shape is None:
            wrong[row], wanted[row] = True, layout.expected if fields is None else str(len(fields))
            continue
        kept[row] = True
        table.add(line, shape)
    batch.draft.reject(wrong, Reason.MALFORMED, lambda row: f"{len(cells[row])} fields, and {wanted[row]} are expected")
    batch.keep(kept)
    return table


def text_integers(texts: Sequence[str | None]) -> IntColumn:
    """Return integers from 0 up; -1 where a text is ``-`` or absent, -2 for what is none."""
    if texts and texts[0] is None and texts.count(None) == len(texts):
        return np.full(len(texts), UNKNOWN, dtype=np.int64)
    try:
        joined = "".join(texts)  # type: ignore[arg-type]
        unset = texts.count(UNSET)
        # Looking at all digits at once is several times cheaper than at those of each cell.
        if joined.count(UNSET) == unset and joined.isascii() and joined.replace(UNSET, "0").isdigit():
            numbers: Iterable[int] = (
                (UNKNOWN if text == UNSET else int(text) for text in texts) if unset else map(int, texts)  # type: ignore[arg-type]
            )
            found = np.fromiter(numbers, dtype=np.int64, count=len(texts))
            return np.where(found >= _TOO_LARGE, NO_NUMBER, found)
    except (TypeError, ValueError, OverflowError):
        pass  # one of them is absent, empty or too large: look at each
    return np.fromiter(map(_integer_of, texts), dtype=np.int64, count=len(texts))


def _integer_of(text: str | None) -> int:
    if text is None or text == UNSET:
        return UNKNOWN
    if not (text.isascii() and text.isdigit() and len(text) < 100):
        return NO_NUMBER
    number = int(text)
    return number if number < _TOO_LARGE else NO_NUMBER


def text_floats(texts: Sequence[str | None]) -> npt.NDArray[np.float64]:
    """Return numbers; NaN where a text is absent or no number."""
    try:
        numbers = (_NAN if text == UNSET else float(text) for text in texts)  # type: ignore[arg-type]
        return np.fromiter(numbers, dtype=np.float64, count=len(texts))
    except (TypeError, ValueError):
        return np.fromiter(map(_float_of, texts), dtype=np.float64, count=len(texts))


def _float_of(text: str | None) -> float:
    try:
        return float(text) if text is not None and text != UNSET else _NAN
    except ValueError:
        return _NAN
