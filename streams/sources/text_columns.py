"""Columns of lines of text: cell by cell, or, where all lines of a batch are alike, from their bytes at once. Pure.

Both ways say the same of the same line: which is taken depends on a line's neighbours, what it becomes must not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.flow import UNKNOWN
from schemas.tenant_log import IntColumn
from streams.sources.coded import Coded, arrow_of, first_seen, names_of, values_of
from streams.sources.draft import Draft
from streams.sources.json_records import Reading
from streams.sources.text_records import LINES, NO_NUMBER, UNSET, Layout, Table, read_table, text_floats, text_integers
from streams.sources.typed import Batch, collect, no_host

_FEWEST_LINES = 16
"""From so many lines on, looking at all bytes at once is quicker than at each line."""
_MOST_BYTES = (1 << 31) - 1
_MOST_DIGITS = 18
_NEWLINE, _DASH, _ZERO = 10, 45, 48
_SPACES = b" \r\n"
_ODD_STARTS = np.zeros(256, dtype=np.bool_)
_ODD_STARTS[list(b"\0\t\r\n {[")] = True
"""First bytes of lines that may be something else: those are looked at one by one."""


class Columns(ABC):
    """Cells of lines by column; a column that a line does not have is ``None`` there.

    Attributes:
        size: how many lines.
    """

    size: int

    @abstractmethod
    def texts(self, *names: str) -> Sequence[str | None]:
        """Return the first of these columns that there is."""

    @abstractmethod
    def coded(self, *names: str) -> Coded:
        """Return the first of these columns that there is, as codes into its values, none of them -1."""

    @abstractmethod
    def take(self, rows: IntColumn) -> "Columns":
        """Return some of the lines, by number."""

    def integers(self, *names: str) -> IntColumn:
        """Return integers from 0 up; -1 where a text is ``-`` or absent, -2 for what is none."""
        return text_integers(self.texts(*names))

    def floats(self, *names: str) -> npt.NDArray[np.float64]:
        """Return numbers; NaN where a text is absent or no number."""
        return text_floats(self.texts(*names))

    def words(self, meanings: Mapping[Any, int], *names: str) -> IntColumn:
        """Return the meaning of each text; ``meanings`` must know them all, or have a ``__missing__``."""
        column = self.coded(*names)
        meaning = np.array([meanings[value] for value in column.values.tolist()], dtype=np.int64)
        return meaning[column.codes]

    def by_row(self, *names: str) -> Callable[[int], str | None]:
        """Return a column of few values as a function of the row, ``None`` where it says nothing.

        Each value is cut out of the text once, not once a row.
        """
        column = self.coded(*names)
        values = [None if value == UNSET else value for value in column.values.tolist()]
        codes = column.codes.tolist()
        return lambda row: values[codes[row]]


class Split(Columns):
    """Cells of lines that were split one by one."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.size = len(table.cells)

    def texts(self, *names: str) -> Sequence[str | None]:
        """Return a column; see `Columns`."""
        return self._table.column(*names)

    def coded(self, *names: str) -> Coded:
        """Return a column as codes; see `Columns`."""
        codes, values = first_seen(self.texts(*names), self.size)
        return Coded(codes, names_of(values))

    def take(self, rows: IntColumn) -> "Split":
        """Return some of the lines; see `Columns`."""
        return Split(self._table.take(rows))


class _Slices(Sequence[str]):
    """Pieces of a text that are cut when they are asked for."""

    def __init__(self, data: bytes, starts: IntColumn, ends: IntColumn) -> None:
        self._data = data
        self._starts, self._ends = starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return _Slices(self._data, self._starts[row], self._ends[row])
        return self._data[self._starts[row] : self._ends[row]].decode("ascii")

    def __iter__(self) -> Iterator[str]:
        text = self._data.decode("ascii")
        return (text[a:b] for a, b in zip(self._starts.tolist(), self._ends.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Lines of equal width, each cell with the separator behind it.

    Attributes:
        data: all of it, ASCII. buffer: the same as an array.
        cells: Arrow binary array of all cells, separators included, in order.
        fields: names of columns.
    """

    data: bytes
    buffer: npt.NDArray[np.uint8]
    cells: Any
    fields: tuple[str, ...]


class Scanned(Columns):
    """Cells of lines that are all of one width."""

    def __init__(self, found: _Bytes, starts: IntColumn, ends: IntColumn, rows: IntColumn) -> None:
        self._found = found
        self._starts, self._ends = starts, ends  # (lines, columns)
        self._rows = rows
        self.size = len(rows)

    def _where(self, names: Sequence[str]) -> int | None:
        fields = self._found.fields
        return next((fields.index(name) for name in names if name in fields), None)

    def texts(self, *names: str) -> Sequence[str | None]:
        """Return a column; see `Columns`."""
        where = self._where(names)
        if where is None:
            return [None] * self.size
        return _Slices(self._found.data, self._starts[:, where], self._ends[:, where])

    def coded(self, *names: str) -> Coded:
        """Return a column as codes; see `Columns`."""
        where = self._where(names)
        if where is None:
            return Coded(np.zeros(self.size, dtype=np.int64), names_of([None]))
        # A width of the lines may exceed that of the fields: what scripts add stands behind them.
        cells = self._found.cells.take(arrow_of(self._rows * self._starts.shape[1] + where))
        encoded = pc.dictionary_encode(cells)
        values = [cell[:-1].decode("ascii") for cell in encoded.dictionary.to_pylist()]
        return Coded(values_of(encoded.indices).astype(np.int64), names_of(values))

    def take(self, rows: IntColumn) -> "Scanned":
        """Return some of the lines; see `Columns`."""
        return Scanned(self._found, self._starts[rows], self._ends[rows], self._rows[rows])

    def integers(self, *names: str) -> IntColumn:
        """Return integers; see `Columns`."""
        where = self._where(names)
        if where is None:
            return np.full(self.size, UNKNOWN, dtype=np.int64)
        starts, lengths = self._starts[:, where], (self._ends - self._starts)[:, where]
        most = int(lengths.max()) if self.size else 0
        if most > _MOST_DIGITS:
            return text_integers(self.texts(*names))
        buffer = self._found.buffer
        values = np.zeros(self.size, dtype=np.int64)
        are_digits = np.ones(self.size, dtype=np.bool_)
        for place in range(most):
            inside = lengths > place
            digit = buffer[np.where(inside, starts + place, starts)].astype(np.int64) - _ZERO
            are_digits &= ~inside | ((digit >= 0) & (digit <= 9))
            values = np.where(inside, values * 10 + digit, values)
        is_unset = (lengths == 1) & (buffer[starts] == _DASH)
        return np.where(is_unset, UNKNOWN, np.where(are_digits, values, NO_NUMBER))


def lines_of(values: Sequence[bytes], reading: Reading, layout: Layout) -> tuple[Batch, Columns | None]:
    """Return the lines of messages as columns, ``None`` where there is none; what is no line is rejected or counted."""
    if reading is LINES:
        found = scan(values, layout)
        if found is not None:
            return _one_a_message(values, values), found
    batch = collect(values, reading)
    return batch, _columns_of(batch, layout)


def split_lines(values: Sequence[bytes], lines: Sequence[str], layout: Layout) -> tuple[Batch, Columns | None]:
    """Return lines as `lines_of` does, each found in the message of the same number."""
    batch = _one_a_message(values, lines)
    return batch, _columns_of(batch, layout)


def _one_a_message(values: Sequence[bytes], records: Sequence[Any]) -> Batch:
    size = len(values)
    message, index = np.arange(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    return Batch(list(records), Draft(message, index, lambda number, _: values[number], no_host))


def _columns_of(batch: Batch, layout: Layout) -> Columns | None:
    if not batch.records:
        return None
    found = scan([line.encode() for line in batch.records], layout) if len(batch.records) >= _FEWEST_LINES else None
    if found is not None:
        return found
    table = read_table(batch, layout)
    return Split(table) if table.cells else None


def scan(lines: Sequence[bytes], layout: Layout) -> Scanned | None:
    """Return the columns of lines, one a message, if all are records of one width and plain ASCII; else ``None``."""
    if len(lines) < _FEWEST_LINES:
        return None
    if lines[0][-1:] <= b" ":
        lines = [line.strip(_SPACES) for line in lines]
    data = b"\n".join([*lines, b""])
    if len(data) > _MOST_BYTES or not data.isascii():
        return None
    buffer = np.frombuffer(data, dtype=np.uint8)
    is_newline = buffer == _NEWLINE
    borders = np.flatnonzero(is_newline | (buffer == ord(layout.separator)))
    width = len(borders) // len(lines)
    fields = layout.fields(width)
    if fields is None or len(borders) != width * len(lines) or np.count_nonzero(is_newline) != len(lines):
        return None
    ends = borders.reshape(len(lines), width)
    starts = np.concatenate([[0], borders[:-1] + 1]).reshape(ends.shape)
    if not is_newline[ends[:, -1]].all() or (starts == ends).any():
        return None
    heads = buffer[starts[:, 0]]
    last = buffer[ends[:, -1] - 1]
    if _ODD_STARTS[heads].any() or (last <= ord(" ")).any():
        return None
    offsets = np.concatenate([[0], borders + 1]).astype(np.int32)
    cells = pa.Array.from_buffers(pa.binary(), len(borders), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    found = Scanned(_Bytes(data, buffer, cells, fields), starts, ends, np.arange(len(lines), dtype=np.int64))
    if layout.note_heads[heads].any() and layout.may_have_notes(found.coded(fields[0]).values.tolist()):
        return None
    return found
