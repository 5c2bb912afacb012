"""Records that are lines of text: one a message or many, with their coordinates; and columns of text. Pure."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tenant_log import IntColumn
from streams.sources.coded import values_of
from streams.sources.draft import loose_integers
from streams.sources.json_records import Reading

UNSET = "-"
_JSON_STARTS = frozenset(b"{[")
_NOT_TEXT = frozenset("{[\0\ufeff")


class NotOneLine(msgspec.DecodeError):
    """A message is not one line of text: several, or JSON, or nothing."""


def line_of(value: bytes) -> str:
    """Return a message of one line as text.

    Raises:
        NotOneLine: it is something else.
        UnicodeDecodeError: it is no UTF-8.
    """
    text = value.decode().strip(" \r\n")
    if not text or text[0] in _NOT_TEXT or "\n" in text:
        raise NotOneLine("not a line of text" if text else "the message is empty")
    return text


LINES = Reading((line_of,))


def runs_by_kind(values: Sequence[bytes]) -> Iterator[tuple[bool, int, int]]:
    """Return stretches of messages of one kind, as (is JSON, first, behind the last)."""
    heads = np.frombuffer(bytes([value[0] if value else 0 for value in values]), dtype=np.uint8)
    is_json = np.isin(heads, list(_JSON_STARTS))
    borders = [0, *(np.flatnonzero(np.diff(is_json)) + 1).tolist(), len(values)]
    for start, stop in pairwise(borders):
        if stop > start:
            yield bool(is_json[start]), start, stop


def text_integers(texts: Sequence[str | None]) -> IntColumn:
    """Return integers from 0 up; -1 where a text is ``-`` or absent, -2 for what is none."""
    try:
        column = pa.array(texts, pa.string())
        numbers = pc.if_else(pc.equal(column, UNSET), pa.scalar(None, pa.string()), column).cast(pa.int64())
    except (pa.ArrowException, UnicodeEncodeError):
        return loose_integers(texts)
    found: IntColumn = values_of(pc.fill_null(numbers, -1))
    if pc.min(numbers).as_py() is not None and pc.min(numbers).as_py() < 0:
        return loose_integers(texts)
    return found


def text_floats(texts: Sequence[str | None]) -> npt.NDArray[np.float64]:
    """Return numbers; NaN where a text is absent or no number."""
    try:
        column = pa.array(texts, pa.string())
        numbers = pc.if_else(pc.equal(column, UNSET), pa.scalar(None, pa.string()), column).cast(pa.float64())
        found: npt.NDArray[np.float64] = values_of(pc.fill_null(numbers, float("nan")))
        return found
    except (pa.ArrowException, UnicodeEncodeError):
        return np.fromiter(map(_float_of, texts), dtype=np.float64, count=len(texts))


def _float_of(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
