"""Columns of records on their way to rows: what is wrong with which, and what is left. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.dead_letter import Reason
from schemas.flow import MAX_MEASURE, PROTOCOL_NUMBERS, SIDE_CLIENT, UNKNOWN
from schemas.tenant_log import IntColumn
from streams.result import Rejected, short
from streams.sources.coded import CodedRows, Names
from streams.sources.format import MARKS, MAX_PAIR
from streams.sources.identity import UNNAMED, bounded
from streams.sources.orientation import Mask
from streams.sources.times import BAD_TIME

_SHOWN_CHARACTERS = 60
_MOST = 1 << 62

Detail = str | Callable[[int], str]


def integers(values: Sequence[Any]) -> IntColumn:
    """Return a column of bounded integers, -1 for ``None``."""
    try:
        return np.fromiter(values, dtype=np.int64, count=len(values))
    except TypeError:
        return np.fromiter((UNKNOWN if v is None else v for v in values), dtype=np.int64, count=len(values))


def loose_integers(values: Sequence[Any]) -> IntColumn:
    """Return integers that may be text, or ``-``; -1 for what is absent, -2 for what is no integer from 0 up."""
    try:
        found = np.fromiter(values, dtype=np.int64, count=len(values))
    except (TypeError, ValueError, OverflowError):
        most_are = (v if v.__class__ is int and 0 <= v < _MOST else _one_loose(v) for v in values)
        return np.fromiter(most_are, dtype=np.int64, count=len(values))
    return np.where((found < 0) | (found >= _MOST), -2, found)


def _one_loose(value: Any) -> int:
    if value is None or value == "-" or value == "":
        return UNKNOWN
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return -2
    return number if 0 <= number < _MOST else -2


def scaled(values: IntColumn, sampling: IntColumn) -> IntColumn:
    """Scale up what was sampled; what is unknown stays so, what would not fit comes out above every bound."""
    limit = (1 << 62) // sampling
    return np.where(values < 0, values, np.minimum(values, limit) * sampling)


def coded_words(meanings: dict[Any, int], values: Sequence[Any]) -> IntColumn:
    """Return the meaning of each word; ``meanings`` must know them all, or have a ``__missing__``."""
    return np.fromiter(map(meanings.__getitem__, values), dtype=np.int64, count=len(values))


class Words(dict[Any, int]):
    """Meanings of words of a small set; all others mean ``other``, and the first of them are remembered."""

    _REMEMBERED = 1_000

    def __init__(self, meanings: dict[Any, int], other: int = UNKNOWN) -> None:
        super().__init__(meanings)
        self._other = other

    def __missing__(self, word: Any) -> int:
        if len(self) < self._REMEMBERED:
            self[word] = self._other
        return self._other


class Protocols(Words):
    """IANA protocol numbers of names in any case, or of numbers as text; -1 for all others."""

    def __init__(self) -> None:
        super().__init__({**PROTOCOL_NUMBERS, "icmpv6": 58, "ipv6-icmp": 58, "icmpv4": 1, "gre": 47, "igmp": 2})

    def __missing__(self, word: Any) -> int:
        found = UNKNOWN
        if isinstance(word, str) and len(word) <= 16:
            lower = word.lower()
            found = self.get(lower, UNKNOWN)
            if found == UNKNOWN and lower.isascii() and lower.isdigit() and int(lower) <= 255:
                found = int(lower)
            if len(self) < self._REMEMBERED:
                self[word] = found
        return found


def shown(value: object) -> str:
    """Return a value as a dead letter's detail shows it: short, and never a whole record."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


@dataclass(slots=True)
class Draft:
    """Rows that may still be rejected.

    Attributes:
        message, index: coordinate of each record.
        payload: bytes of the record at a coordinate.
        host: reporting host of a record, by its number here.
        rejected: records rejected so far.
    """

    message: IntColumn
    index: IntColumn
    payload: Callable[[int, int], bytes]
    host: Callable[[int], str | None]
    rejected: list[Rejected] = field(default_factory=list)
    _bad: Mask | None = None

    def reject(self, mask: Mask, reason: Reason, detail: Detail) -> None:
        """Reject the records of a mask ``(n,)`` that are not rejected yet."""
        if not mask.any():
            return
        if self._bad is not None:
            mask = mask & ~self._bad
        for row in np.flatnonzero(mask).tolist():
            text = detail if isinstance(detail, str) else detail(row)
            message, index = int(self.message[row]), int(self.index[row])
            self.rejected.append(Rejected(message, index, reason, short(text), self.payload(message, index)))
        self._bad = mask if self._bad is None else self._bad | mask

    def take(self, rows: IntColumn) -> None:
        """Go on with some of the records, by number; verdicts on the others stand."""
        self.message, self.index = self.message[rows], self.index[rows]
        self._bad = None if self._bad is None else self._bad[rows]

    def finish(
        self,
        *,
        time_ms: IntColumn,
        ends: tuple[IntColumn, IntColumn, Names],
        port: IntColumn,
        protocol: IntColumn,
        columns: dict[str, IntColumn],
        time_shown: Sequence[object] = (),
    ) -> CodedRows | None:
        """Return the rows that are left.

        Args:
            time_ms: event time, ``BAD_TIME`` where it could not be read.
            ends: codes of clients, codes of servers, names; ``UNNAMED`` where nothing usable names an endpoint.
            columns: ``side``, measures and marks; -1 unknown, below that no number.
            time_shown: the times as the records have them.
        """
        self.reject(
            time_ms == BAD_TIME,
            Reason.INVALID_VALUE,
            (lambda row: f"no event time: {shown(time_shown[row])}") if len(time_shown) else "no event time",
        )
        src, dst, names = ends
        nameless = np.flatnonzero(names == UNNAMED)
        if len(nameless):
            self.reject(src == nameless[0], Reason.INVALID_VALUE, "nothing names the client: no address, no workload")
            self.reject(dst == nameless[0], Reason.INVALID_VALUE, "nothing names the server: no address, no workload")
        kept: dict[str, IntColumn] = {"time_ms": time_ms}
        for name, values in columns.items():
            low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
            limit = _LARGEST.get(name, MAX_MEASURE)
            if low < UNKNOWN or high > limit:
                self.reject(
                    (values < UNKNOWN) | (values > limit),
                    Reason.INVALID_VALUE,
                    f"{name} must be between 0 and {limit}",
                )
            if high > UNKNOWN and (name not in MARKS or (low, high) != _PLAIN.get(name)):
                kept[name] = values
        kept.setdefault("calls", np.ones(len(time_ms), dtype=np.int64))
        kept.setdefault("side", np.full(len(time_ms), SIDE_CLIENT, dtype=np.int64))
        return self._rows(kept, ends, port, protocol)

    def _rows(
        self, columns: dict[str, IntColumn], ends: tuple[IntColumn, IntColumn, Names], port: IntColumn, wire: IntColumn
    ) -> CodedRows | None:
        message, index, payload, host = self.message, self.index, self.payload, self.host
        src, dst, names = ends
        if self._bad is None:
            record = np.arange(len(message), dtype=np.int64)
        else:
            record = np.flatnonzero(~self._bad)
            message, index = message[record], index[record]
            columns = {name: values[record] for name, values in columns.items()}
            src, dst, port, wire = src[record], dst[record], port[record], wire[record]
        if not len(record):
            return None
        decoded_as = message  # ``message`` of the rows may be renumbered by whoever left messages out before decoding

        bounded_hosts = _BoundedNames()

        def hosts_of(rows: IntColumn) -> list[str | None]:
            return list(map(bounded_hosts.__getitem__, map(host, record[rows].tolist())))

        def payload_of(row: int) -> bytes:
            return payload(int(decoded_as[row]), int(index[row]))

        return CodedRows(message, index, columns, (src, dst, names), (port, wire), hosts_of, payload_of)


class _BoundedNames(dict[str | None, str | None]):
    """Names by what records call them: bounded, and ``None`` for nothing."""

    def __missing__(self, name: str | None) -> str | None:
        found = self[name] = bounded(name) if name else None
        return found


_PLAIN = {"sampling": (1, 1), "continued": (0, 0)}
"""Least and largest value of a mark that says nothing."""
_LARGEST = {"pair": MAX_PAIR}
