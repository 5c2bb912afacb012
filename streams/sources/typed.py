"""The mould for producers' formats: messages of typed records in, columns normalised at once, rows out. Pure.

A format says how a record is decoded (`Reading`, over msgspec types that hold only what is used) and turns columns of
records into rows (`TypedFormat.rows`). Everything else is here: coordinates, arrays and NDJSON, what is no flow.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from schemas.tenant_log import IntColumn
from streams.sources.coded import CodedRows
from streams.sources.draft import Detail, Draft
from streams.sources.format import Decoded, LossSignal
from streams.sources.json_records import JsonRecords, Read, Reading
from streams.sources.orientation import Mask

_OTHER_WAY = {
    "bytes_out": "bytes_in",
    "bytes_in": "bytes_out",
    "packets_out": "packets_in",
    "packets_in": "packets_out",
}


def lax(record: Any) -> Read:
    """Return the decoder of a record that takes numbers as text, and whole floats as integers."""
    return msgspec.json.Decoder(record, strict=False).decode


def columns_of(records: Sequence[Any], record: type[msgspec.Struct]) -> dict[str, tuple[Any, ...]]:
    """Return the fields of structs as columns."""
    # One C call a row and one transposition are cheaper than an attribute access for every value.
    names = record.__struct_fields__
    if not records:
        return dict.fromkeys(names, ())
    return dict(zip(names, zip(*map(msgspec.structs.astuple, records), strict=True), strict=True))


def mask_of(flags: Any, size: int) -> Mask:
    """Return booleans as a mask ``(size,)``."""
    return np.fromiter(flags, dtype=np.bool_, count=size)


def directed(measures: Mapping[str, IntColumn], swapped: Mask) -> dict[str, IntColumn]:
    """Return measures of source and destination as those of client and server, by direction."""
    if not swapped.any():
        return dict(measures)
    return {name: np.where(swapped, measures[_OTHER_WAY[name]], values) for name, values in measures.items()}


@dataclass(slots=True)
class Batch:
    """Records of consecutive messages: some become rows, some are counted, some rejected.

    Attributes:
        draft: coordinates of ``records``, and what is rejected.
        skipped, signals: as in `Decoded`.
    """

    records: list[Any]
    draft: Draft
    skipped: Counter[str] = field(default_factory=Counter)
    signals: list[LossSignal] = field(default_factory=list)

    def keep(self, mask: Mask) -> None:
        """Go on with the records of a mask ``(n,)``; the others must have been counted or rejected."""
        kept = np.flatnonzero(mask)
        self.records = [self.records[row] for row in kept.tolist()]
        self.draft.take(kept)

    def reject(self, mask: Mask, reason: Reason, detail: Detail) -> None:
        """Reject the records of a mask ``(n,)`` and go on without them."""
        if mask.any():
            self.draft.reject(mask, reason, detail)
            self.keep(~mask)

    def skip(self, kinds: Sequence[str | None], name_of: Callable[[str], str] = str) -> None:
        """Count records that are no flows, and go on without them.

        Args:
            kinds: what each is, ``None`` for a flow.
            name_of: turns a kind into one of a small set.
        """
        others = {kind for kind in set(kinds) if kind is not None}
        if others:
            self.skipped.update(name_of(kind) for kind in kinds if kind is not None)
            self.keep(mask_of((kind is None for kind in kinds), len(kinds)))


def collect(values: Sequence[bytes], reading: Reading) -> Batch:
    """Decode messages."""
    found = JsonRecords(values, reading)
    found.collect(0)
    message, index = found.coordinates(0, len(values))
    draft = Draft(message, index, found.payload_of(), no_host, found.rejected)
    return Batch(found.records, draft, Counter(found.skipped))


def no_host(_row: int) -> str | None:
    """Return the reporting host of records that name none."""
    return None


def add_run(decoded: Decoded, batch: Batch, rows: CodedRows | None, start: int) -> None:
    """Add what became of messages to a verdict in which the first of them has number ``start``."""
    decoded.skipped.update(batch.skipped)
    if rows is not None:
        rows.message = rows.message + start
        decoded.runs.append(rows)
    if not start:
        decoded.rejected.extend(batch.draft.rejected)
        decoded.signals.extend(batch.signals)
    else:
        decoded.rejected.extend(replace(bad, message=bad.message + start) for bad in batch.draft.rejected)
        decoded.signals.extend(replace(signal, message=signal.message + start) for signal in batch.signals)


class TypedFormat(ABC):
    """A producer's format whose records are JSON."""

    name: str
    reading: Reading

    @abstractmethod
    def rows(self, batch: Batch) -> CodedRows | None:
        """Turn records, at least one, into rows; ``None`` where none is left."""

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        decoded = Decoded([], [])
        batch = collect(values, self.reading)
        add_run(decoded, batch, self.rows(batch) if batch.records else None, 0)
        return decoded


def choice(name: str, arguments: Mapping[str, str], key: str, among: Sequence[str]) -> str:
    """Return an argument of a format that must be one of a few; the first is what holds without it.

    Raises:
        ConfigurationError: it is another.
    """
    value = arguments.get(key, among[0])
    if value not in among:
        raise ConfigurationError(f"format {name}: {key} must be {' or '.join(among)}, not {value!r}")
    return value
