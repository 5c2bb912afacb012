"""Instants and intervals of producers to Unix epoch milliseconds. Pure."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.tenant_log import IntColumn
from streams.sources.coded import values_of

BAD_TIME = -1
"""In a column of times: not an instant, or out of bounds."""

MAX_TIME_MS = 1 << 43
_TIMESTAMP = pa.timestamp("ns", tz="UTC")
_ISO = re.compile(  # all that Arrow takes, and more: what becomes of a text must not depend on its neighbours
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,12}))?)?)?(Z|z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)


def milliseconds(values: Sequence[Any], per_second: int) -> IntColumn:
    """Return numbers of a unit (``per_second`` of them a second; ints or floats) in ms, ``BAD_TIME`` for ``None``."""
    try:
        numbers = np.fromiter(values, dtype=np.float64, count=len(values))
    except TypeError:
        numbers = np.fromiter((np.nan if v is None else v for v in values), dtype=np.float64, count=len(values))
    with np.errstate(over="ignore"):
        return rounded_ms(numbers * (1_000 / per_second))


def rounded_ms(time_ms: npt.NDArray[np.float64]) -> IntColumn:
    """Return floats as whole ms, cut off like a clock's; ``BAD_TIME`` for what is out of bounds or not a number."""
    with np.errstate(invalid="ignore"):
        # Epoch seconds as a double are exact to a quarter of a microsecond: the sum keeps .999999 from losing one ms.
        whole = np.floor(time_ms + 1e-3)
        good = (whole >= 0) & (whole <= MAX_TIME_MS)
    return np.where(good, whole, BAD_TIME).astype(np.int64)


def iso_ms(texts: Sequence[str | None]) -> IntColumn:
    """Return ISO 8601 or RFC 3339 instants in ms, UTC where they name no zone; ``BAD_TIME`` for what is none."""
    try:
        parsed = pa.array(texts, pa.string()).cast(_TIMESTAMP)
        if not parsed.null_count:
            whole: IntColumn = values_of(parsed.cast(pa.int64())) // 1_000_000
            return np.where((whole >= 0) & (whole <= MAX_TIME_MS), whole, BAD_TIME)
    except (pa.ArrowException, UnicodeEncodeError):
        pass  # one of them is written in another way: look at each
    return np.fromiter(map(_one_iso_ms, texts), dtype=np.int64, count=len(texts))


def _one_iso_ms(text: str | None) -> int:
    match = _ISO.fullmatch(text) if text else None
    if match is None:
        return BAD_TIME
    *fields, fraction, zone = match.groups()
    try:
        instant = datetime(*(int(field or 0) for field in fields), tzinfo=_zone(zone))  # type: ignore[arg-type, misc]
        time_ms = int(instant.timestamp()) * 1_000 + int(((fraction or "") + "000")[:3])
    except (ValueError, OverflowError):
        return BAD_TIME
    return time_ms if 0 <= time_ms <= MAX_TIME_MS else BAD_TIME


def _zone(text: str | None) -> timezone:
    if not text or text in "Zz":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[3:].lstrip(":") or 0)
    return timezone(timedelta(minutes=-minutes if text.startswith("-") else minutes))


def mixed_ms(values: Sequence[Any], per_second: int) -> IntColumn:
    """Return instants that are numbers of a unit, such numbers as text, or ISO 8601, in ms."""
    if not values:
        return np.empty(0, dtype=np.int64)
    try:
        return milliseconds(values, per_second)  # numbers, or text of nothing but numbers
    except (ValueError, TypeError, OverflowError):
        pass
    if all(isinstance(value, str) for value in values):
        texts = iso_ms(values)
        if texts.min() != BAD_TIME:
            return texts
    return np.fromiter((_one_mixed_ms(v, per_second) for v in values), dtype=np.int64, count=len(values))


def _one_mixed_ms(value: Any, per_second: int) -> int:
    if isinstance(value, str):
        found = _one_iso_ms(value)
        if found != BAD_TIME:
            return found
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return BAD_TIME
    return int(rounded_ms(np.array([number * (1_000 / per_second)]))[0])
