"""Canonical flows as Arrow IPC streams: columns named as `Flow`'s fields, judged without a loop over rows. Pure."""

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.dead_letter import Reason
from schemas.flow import MAX_MEASURE, MAX_NAME_BYTES, PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from schemas.tenant_log import IntColumn
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short
from streams.sources.canonical_json import ARROW_STREAM
from streams.sources.coded import Coded, arrow_of, code_tenants, group_coded, names_of, values_of
from streams.sources.format import MEASURES, Decoded, Grouping, Reporters, Tenants
from streams.sources.json_records import wire_prefix

Mask = npt.NDArray[np.bool_]

MAX_DECLARED_BYTES = 256 * 1024 * 1024
"""Decompressed size one message may declare: a few bytes of a compressed body can promise gigabytes."""

_NAMES = ("src", "dst", "tenant", "host")
_WORDS = ("protocol", "reporter")
_REQUIRED = ("time_ms", "src", "dst")
_BOUNDS = {"time_ms": (0, 1 << 43), "port": (0, 65_535), "calls": (1, 1 << 32)}
_REPORTERS = {"client": SIDE_CLIENT, "server": SIDE_SERVER}
_COLUMNS = (*_NAMES, *_WORDS, "time_ms", "port", *MEASURES)


_NOBODY = names_of(())


def _table_field(buffer: Any, table: int, field: int) -> int:
    """Return where a flatbuffer table keeps ``field``, or 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if vtable < 0 or 4 + 2 * field >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", buffer, vtable + 4 + 2 * field)[0]
    return table + offset if offset else 0


def _indirect(buffer: Any, position: int) -> int:
    return position + int(struct.unpack_from("<I", buffer, position)[0])


def _declared(message: Any) -> tuple[int, int]:
    """Return ``(rows, decompressed bytes)`` that an IPC message declares in its header (Arrow's Message.fbs)."""
    meta, body = memoryview(message.metadata), memoryview(message.body or b"")
    root = _indirect(meta, 0)
    header = _table_field(meta, root, 2)
    if not header:
        return 0, 0
    batch = _indirect(meta, header)
    if message.type == "dictionary":
        batch = _indirect(meta, _table_field(meta, batch, 1))
    length_at, buffers_at = _table_field(meta, batch, 0), _table_field(meta, batch, 2)
    rows = struct.unpack_from("<q", meta, length_at)[0] if length_at else 0
    if not buffers_at or not _table_field(meta, batch, 3):  # not compressed: the body is what it is
        return rows, len(body)
    vector = _indirect(meta, buffers_at)
    total = 0
    for i in range(struct.unpack_from("<I", meta, vector)[0]):
        offset, length = struct.unpack_from("<qq", meta, vector + 4 + 16 * i)
        if length >= 8:
            total += max(0, struct.unpack_from("<q", body, offset)[0])
    return rows, total


def _check_declared(value: bytes) -> None:
    """Refuse a message before it is unpacked if it declares more than a coordinate or our memory can hold."""
    rows = size = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(value)):
        if message.type in ("record batch", "dictionary"):
            more_rows, more_bytes = _declared(message)
            size += more_bytes
            rows += more_rows if message.type == "record batch" else 0
            if rows < 0 or more_rows < 0 or size > MAX_DECLARED_BYTES:
                raise Refusal(Reason.OVERSIZED, f"the Arrow stream declares {size} bytes")
            if max(rows, more_rows) > MAX_RECORDS_PER_MESSAGE:
                raise Refusal(Reason.TOO_MANY_RECORDS, f"{max(rows, more_rows)} rows in one message")


def _check_type(field: Any) -> None:
    kind = field.type
    if pa.types.is_null(kind):
        return
    if field.name in _NAMES or field.name in _WORDS:
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        fits, expected = pa.types.is_string(inner) or pa.types.is_large_string(inner), "utf8"
    elif field.name == "time_ms":
        fits, expected = pa.types.is_integer(kind) or pa.types.is_timestamp(kind), "an integer or a timestamp"
    else:
        fits, expected = pa.types.is_integer(kind), "an integer"
    if not fits:
        raise Refusal(Reason.MALFORMED, f"column {field.name!r} has type {kind}, expected {expected}")


@functools.lru_cache(maxsize=64)  # a topic's messages mostly have one schema; hashing it is cheaper than looking at it
def _known_columns(schema: Any) -> list[str]:
    known = [name for name in schema.names if name in _COLUMNS]
    if len(set(known)) != len(known):
        raise Refusal(Reason.MALFORMED, "a column name occurs twice")
    missing = [name for name in _REQUIRED if name not in known]
    if missing:
        raise Refusal(Reason.MALFORMED, f"column {missing[0]!r} is missing")
    for name in known:
        _check_type(schema.field(name))
    return known


def _read_table(value: bytes) -> Any:
    """Return the columns we know of one message, checked down to offsets and UTF-8."""
    try:
        _check_declared(value)
        with pa.ipc.open_stream(pa.py_buffer(value)) as reader:
            known = _known_columns(reader.schema)
            table = reader.read_all().select(sorted(known))
        table.validate(full=True)  # a lying offset would make later code read foreign memory
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise Refusal(Reason.MALFORMED, short(f"Arrow IPC stream cannot be read: {error}")) from error
    if table.num_rows == 0:
        raise Refusal(Reason.EMPTY, "the Arrow stream holds no row")
    return table.replace_schema_metadata(None)


class ArrowRows:
    """Rows of consecutive Arrow messages whose columns have the same types."""

    def __init__(self, tables: list[Any], messages: list[int]) -> None:
        table = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
        self._table = table.combine_chunks()
        counts = [t.num_rows for t in tables]
        self.message: IntColumn = np.repeat(np.array(messages, dtype=np.int64), counts)
        self.index: IntColumn = np.concatenate([np.arange(c, dtype=np.int64) for c in counts])
        self._row: IntColumn = np.arange(len(self.message), dtype=np.int64)  # row in the table
        self._reasons: list[tuple[Mask, Reason, str]] = []
        self._coded = {name: self._names(name) for name in ("src", "dst", "tenant")}
        self._host = self._column("host")
        if self._host is not None:
            self._check_hosts(self._host)
        self._words = {
            "protocol": self._word("protocol", PROTOCOL_NUMBERS, UNKNOWN),
            "side": self._word("reporter", _REPORTERS, SIDE_CLIENT),
        }
        numbers = {name: self._integers(name) for name in ("time_ms", "port", *MEASURES)}
        self._port = numbers.pop("port")
        self.columns: dict[str, IntColumn] = {
            name: values for name, values in numbers.items() if name == "time_ms" or values.max() != UNKNOWN
        }
        self.columns["side"] = self._words.pop("side")
        self.rejected = self._reject()

    def _column(self, name: str) -> Any:
        if name not in self._table.column_names:
            return None
        column = self._table.column(name)
        return None if pa.types.is_null(column.type) else column.combine_chunks()

    def _size(self) -> int:
        return len(self._row)

    def _names(self, name: str) -> Coded:
        column = self._column(name)
        if column is None:
            if name in _REQUIRED:
                self._reasons.append((np.ones(self._size(), dtype=bool), Reason.MALFORMED, f"{name} is null"))
            return Coded(np.full(self._size(), -1, dtype=np.int64), _NOBODY)
        coded, lengths = self._encode(column)
        if len(lengths) and (lengths.min() < 1 or lengths.max() > MAX_NAME_BYTES):
            bad = np.append((lengths < 1) | (lengths > MAX_NAME_BYTES), False)
            self._reasons.append(
                (bad[coded.codes], Reason.INVALID_VALUE, f"{name} must have 1 to {MAX_NAME_BYTES} characters")
            )
        if name in _REQUIRED and column.null_count:
            self._reasons.append((coded.codes < 0, Reason.MALFORMED, f"{name} is null"))
        return coded

    def _check_hosts(self, column: Any) -> None:
        """Judge hosts without coding them: those of rows that are rejected are never asked for."""
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        lengths = pc.utf8_length(column)
        shortest, longest = pc.min_max(lengths).values()
        if shortest.as_py() == 0 or (longest.as_py() or 0) > MAX_NAME_BYTES:
            found = values_of(pc.fill_null(lengths, 1))
            bad = (found < 1) | (found > MAX_NAME_BYTES)
            self._reasons.append((bad, Reason.INVALID_VALUE, f"host must have 1 to {MAX_NAME_BYTES} characters"))

    @staticmethod
    def _encode(column: Any) -> tuple[Coded, IntColumn]:
        """Return the column's codes, and the length of each value in characters."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)  # a producer's dictionary may hold a value twice, or null
        encoded = pc.dictionary_encode(column)
        indices = encoded.indices
        if indices.null_count:
            indices = pc.fill_null(indices, -1)
        values = encoded.dictionary
        names = names_of(values.to_pylist())
        coded = Coded(values_of(indices).astype(np.int64), names)
        return coded, values_of(pc.utf8_length(values)).astype(np.int64)

    def _word(self, name: str, meanings: dict[str, int], absent: int) -> IntColumn:
        column = self._column(name)
        if column is None:
            return np.full(self._size(), absent, dtype=np.int64)
        coded, _ = self._encode(column)
        meaning = np.array([meanings.get(value, -2) for value in coded.values] + [absent], dtype=np.int64)
        numbers = meaning[coded.codes]
        if (meaning == -2).any():
            self._reasons.append((numbers == -2, Reason.INVALID_VALUE, f"{name} must be one of {', '.join(meanings)}"))
        return numbers

    def _integers(self, name: str) -> IntColumn:
        absent = 1 if name == "calls" else UNKNOWN
        column = self._column(name)
        if column is None:
            if name in _REQUIRED:
                self._reasons.append((np.ones(self._size(), dtype=bool), Reason.MALFORMED, f"{name} is null"))
            return np.full(self._size(), absent, dtype=np.int64)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms"), safe=False)
        nulls = values_of(column.is_null().cast(pa.uint8())).astype(bool) if column.null_count else None
        if nulls is not None:
            column = pc.fill_null(column, pa.scalar(0, column.type))
        # uint64 beyond int64 wraps to a negative number: out of bounds, as it should be
        values: IntColumn = values_of(column.cast(pa.int64(), safe=False))
        low, high = _BOUNDS.get(name, (0, MAX_MEASURE))
        if nulls is not None:
            values = np.where(nulls, absent, values)
            if name in _REQUIRED:
                self._reasons.append((nulls, Reason.MALFORMED, f"{name} is null"))
        if values.min() < low or values.max() > high:
            bad = (values < low) | (values > high)
            if nulls is not None:
                bad &= ~nulls
            if bad.any():
                self._reasons.append((bad, Reason.INVALID_VALUE, f"{name} must be between {low} and {high}"))
        return values

    def _reject(self) -> list[Rejected]:
        """Take the bad rows out and return them, each with the first reason found."""
        if not self._reasons:
            return []
        bad = np.zeros(self._size(), dtype=bool)
        found: dict[int, tuple[Reason, str]] = {}
        for mask, reason, detail in self._reasons:
            found.update((row, (reason, detail)) for row in np.flatnonzero(mask & ~bad).tolist())
            bad |= mask
        rejected = [
            Rejected(int(self.message[row]), int(self.index[row]), reason, detail, self.payload(row))
            for row, (reason, detail) in sorted(found.items())
        ]
        good = ~bad
        self.message, self.index, self._row = self.message[good], self.index[good], self._row[good]
        self._port = self._port[good]
        self.columns = {name: values[good] for name, values in self.columns.items()}
        self._words = {name: values[good] for name, values in self._words.items()}
        self._coded = {name: Coded(coded.codes[good], coded.values) for name, coded in self._coded.items()}
        return rejected

    def group(self, tenants: Tenants, targets: Mapping[str | None, int]) -> Grouping:
        """Find the edges of the rows; see `FlowRows`."""
        tenant = self._coded["tenant"] if tenants is None else code_tenants(tenants, self.message)
        return group_coded(tenant, self._coded["src"], self._coded["dst"], self._port, self._words["protocol"], targets)

    def hosts(self, rows: Sequence[int]) -> list[str]:
        """Return the reporting hosts; see `FlowRows`."""
        src = self._coded["src"]
        wanted = np.array(rows, dtype=np.int64)
        names: list[str] = src.values[src.codes[wanted]].tolist()
        if self._host is None:
            return names
        hosts = self._host.take(arrow_of(self._row[wanted])).to_pylist()
        return [host or name for host, name in zip(hosts, names, strict=True)]

    def reporters(self) -> Reporters | None:
        """Return the hosts of all rows; see `FlowRows`."""
        if self._host is None or self._host.null_count == len(self._host):
            return None
        coded, _ = self._encode(self._host)
        codes = coded.codes if len(self._row) == len(coded.codes) else coded.codes[self._row]
        return codes, coded.values.tolist()

    def payload(self, row: int) -> bytes:
        """Return one row as JSON: what can be read again as a canonical flow, nulls left out."""
        some = self._table.slice(int(self._row[row]), 1)
        at = some.schema.get_field_index("time_ms")
        if at >= 0 and pa.types.is_timestamp(some.schema.field(at).type):
            times = some.column(at).cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
            some = some.set_column(at, "time_ms", times)
        record = some.to_pylist()[0]
        known = {name: value for name, value in record.items() if value is not None}
        return msgspec.json.encode(known)


def decode_messages(messages: Sequence[tuple[int, bytes]]) -> Decoded:
    """Decode numbered Arrow messages; runs are as long as the column types stay the same."""
    decoded = Decoded([], [])
    tables: list[Any] = []
    numbers: list[int] = []

    def flush() -> None:
        if tables:
            rows = ArrowRows(list(tables), list(numbers))
            decoded.rejected.extend(rows.rejected)
            if len(rows.message):
                decoded.runs.append(rows)
            tables.clear()
            numbers.clear()

    for number, value in messages:
        try:
            table = _read_table(value)
        except Refusal as refusal:
            decoded.rejected.append(Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value))
            continue
        if tables and not tables[-1].schema.equals(table.schema):
            flush()
        tables.append(table)
        numbers.append(number)
    flush()
    return decoded


class CanonicalArrow:
    """``canonical-arrow``: one Arrow IPC stream a message."""

    name = "canonical-arrow"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        good = [(number, value) for number, value in enumerate(values) if value.startswith(ARROW_STREAM)]
        decoded = decode_messages(good)
        for number, value in enumerate(values):
            if not value.startswith(ARROW_STREAM):
                reason = Reason.MALFORMED if value else Reason.EMPTY
                detail = (
                    wire_prefix(value) or "not an Arrow IPC stream, and the topic's format is canonical-arrow"
                    if value
                    else "the message is empty"
                )
                decoded.rejected.append(Rejected(number, WHOLE_MESSAGE, reason, detail, value))
        return decoded
