"""Fetched bytes of one partition to columns, without a Python object per record of our own. Pure.

The same meaning as aiokafka's ``PartitionRecords``, which yields a ``ConsumerRecord`` per message: control batches
and aborted transactions are left out, offsets below the position too, and the position passes compacted batches. What
differs: a batch that cannot be read is reported and passed over instead of raising for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from numpy.typing import NDArray

from streams.batching.chunk import CorruptBatch, Headers

RAW_LIMIT_BYTES = 64 * 1024
RECORD_OVERHEAD_BYTES = 150
"""A row beside its payload, by sys.getsizeof: bytes object 33, list of headers 56, timestamp 32, four pointers 32."""

_FRAME_HEAD_BYTES = 12  # base offset int64, length int32: the same in every format
_MAGIC_AT = 16
_LAST_DELTA_AT = 23
_COUNT_AT = 57
_V2_HEAD_BYTES = 61
_LEGACY_HEAD_BYTES = 26

_value, _key, _headers = attrgetter("value"), attrgetter("key"), attrgetter("headers")
_timestamp, _offset = attrgetter("timestamp"), attrgetter("offset")


@dataclass(slots=True)
class Columns:
    """Rows taken from a fetch; see :class:`streams.batching.chunk.Chunk`."""

    first_offset: int
    next_offset: int
    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    timestamp_type: int = 0
    size_bytes: int = 0
    corrupt: CorruptBatch | None = None
    offset_parts: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of each row."""
        return np.concatenate(self.offset_parts) if self.offset_parts else np.empty(0, dtype=np.int64)


class FetchedRecords:
    """The part of one fetch response, for one partition, that has not been taken yet.

    Args:
        raw: record batches as the broker sent them; the last one may be cut short.
        position: offset that was asked for.
        log_end: end of the log as the response states it.
        aborted: (producer id, first offset) of aborted transactions; empty unless read committed.
        read_committed: leave out aborted transactions.
        check_crcs: verify each batch's checksum.
    """

    __slots__ = (
        "_aborted",
        "_aborting",
        "_at",
        "_check_crcs",
        "_log_end",
        "_raw",
        "_read_committed",
        "exhausted",
        "position",
    )

    def __init__(
        self,
        raw: bytes,
        *,
        position: int,
        log_end: int,
        aborted: Iterable[tuple[int, int]] = (),
        read_committed: bool = False,
        check_crcs: bool = True,
    ) -> None:
        self._raw = raw
        self._at = 0
        self._log_end = log_end
        self._aborted = sorted(aborted, key=lambda entry: entry[1])
        self._aborting: set[int] = set()
        self._read_committed = read_committed
        self._check_crcs = check_crcs
        self.position = position
        self.exhausted = False

    def take(self, limit_bytes: int) -> Columns:
        """Return the next rows, or one corrupt batch. Rows: whole batches of one timestamp type until ``limit_bytes``.

        Nothing is lost between calls: ``first_offset`` is the last call's ``next_offset``. Without rows and without a
        corrupt batch, ``next_offset`` tells how far there was nothing to read.
        """
        columns = Columns(self.position, self.position)
        while columns.size_bytes < limit_bytes and not self.exhausted:
            size = self._frame_size()
            if size is None:
                self._end_of_frames(columns)
                break
            base_offset, magic = self._int64(self._at), self._raw[self._at + _MAGIC_AT]
            try:
                records, after, timestamp_type = self._open(size, base_offset, magic)
            except MemoryError:
                raise
            except Exception as error:  # codecs raise whatever they like; the batch is what is wrong
                if columns.next_offset > columns.first_offset:
                    break  # rows first: the batch comes alone with the next call
                self._report(columns, size, base_offset, magic, error)
                self._at += size
                break
            if records:
                if columns.values and timestamp_type != columns.timestamp_type:
                    break
                columns.timestamp_type = timestamp_type
                after = max(after, self._append(columns, records))
            self._at += size
            self.position = columns.next_offset = max(self.position, after)
        if self._at >= len(self._raw):
            self.exhausted = True
        return columns

    def _frame_size(self) -> int | None:
        """Length of the batch at hand; ``None`` where there is no whole one."""
        left = len(self._raw) - self._at
        if left < _FRAME_HEAD_BYTES + 5:
            return None
        size = _FRAME_HEAD_BYTES + int.from_bytes(self._raw[self._at + 8 : self._at + 12], "big", signed=True)
        magic = self._raw[self._at + _MAGIC_AT]
        smallest = _V2_HEAD_BYTES if magic == 2 else _LEGACY_HEAD_BYTES
        return size if smallest <= size <= left else None

    def _end_of_frames(self, columns: Columns) -> None:
        """Stop: a batch cut short ends a response. At its head it must be damaged, for brokers send the first whole."""
        self.exhausted = True
        if self._at == 0:
            size = len(self._raw)
            detail = f"no readable record batch in {size} bytes at offset {self.position}: its length is damaged"
            self._pass_over(columns, self.position, self.position + 1, detail, size, RAW_LIMIT_BYTES)

    def _open(self, size: int, base_offset: int, magic: int) -> tuple[list[object], int, int]:
        """Return records at or above the position, offset after the batch, timestamp type; raise on a damaged batch."""
        frame = self._raw[self._at : self._at + size]
        if magic > 2:
            raise CorruptRecordException(f"unknown record format {magic}")
        batch = DefaultRecordBatch(frame) if magic == 2 else LegacyRecordBatch(frame, magic)
        if self._check_crcs and not batch.validate_crc():
            raise CorruptRecordException("checksum does not match")
        if self._is_left_out(batch, base_offset):
            return [], batch.next_offset, 0
        records: list[object] = list(batch)
        if records and _offset(records[0]) < self.position:
            records = [record for record in records if _offset(record) >= self.position]
        timestamp_type: int = (records[0].timestamp_type or 0) if records else 0  # type: ignore[attr-defined]
        return records, batch.next_offset, timestamp_type

    def _is_left_out(self, batch: "DefaultRecordBatch | LegacyRecordBatch", base_offset: int) -> bool:
        """Whether the batch is a transaction marker or part of an aborted transaction (KIP-98, as in aiokafka)."""
        if self._read_committed and batch.producer_id is not None:
            while self._aborted and self._aborted[0][1] <= base_offset:
                self._aborting.add(self._aborted.pop(0)[0])
            if batch.is_control_batch and ControlRecord.parse(next(iter(batch)).key) == ABORT_MARKER:
                self._aborting.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborting:
                return True
        return bool(batch.is_control_batch)

    def _append(self, columns: Columns, records: list[object]) -> int:
        """Add the rows; return the offset after them. `map` over C attributes keeps it free of bytecode per record."""
        first, last, rows = _offset(records[0]), _offset(records[-1]), len(records)
        if last - first == rows - 1:
            columns.offset_parts.append(np.arange(first, last + 1, dtype=np.int64))
        else:
            columns.offset_parts.append(np.fromiter(map(_offset, records), dtype=np.int64, count=rows))
        values: list[bytes | None] = list(map(_value, records))
        keys: list[bytes | None] = list(map(_key, records))
        columns.values += values
        columns.keys += keys
        columns.headers += map(_headers, records)
        timestamps = list(map(_timestamp, records))
        columns.timestamps += timestamps if timestamps[0] is not None else [-1] * rows
        columns.size_bytes += (
            rows * RECORD_OVERHEAD_BYTES + sum(map(len, filter(None, values))) + sum(map(len, filter(None, keys)))
        )
        return int(last) + 1

    def _report(self, columns: Columns, size: int, base_offset: int, magic: int, error: Exception) -> None:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        first, after = max(self.position, base_offset), self._end_of_damaged(size, base_offset, magic)
        keep_bytes = RAW_LIMIT_BYTES
        if after is None:
            after = first + 1
            if first > base_offset:  # most likely reported before, for an earlier offset of the same batch
                detail, keep_bytes = f"{detail} (batch of offset {base_offset})", 0
        self._pass_over(columns, first, after, detail, size, keep_bytes)

    def _pass_over(self, columns: Columns, first: int, after: int, detail: str, size: int, keep_bytes: int) -> None:
        raw = bytes(self._raw[self._at : self._at + min(size, keep_bytes)])
        columns.corrupt = CorruptBatch(first, after - 1, detail, raw, size)
        columns.size_bytes = len(raw)
        columns.next_offset = self.position = after

    def _end_of_damaged(self, size: int, base_offset: int, magic: int) -> int | None:
        """Offset after a damaged batch, ``None`` if nothing tells it.

        Offset and length of a batch lie outside its checksum, its record count within. So the next batch's base
        offset is the best witness, then the batch's own count if it is plausible. Without either, one offset is
        passed over at a time: the broker sends the same batch again until the position is behind it, and nothing good
        is skipped.
        """
        following = self._at + size
        if len(self._raw) > following + _MAGIC_AT and self._raw[following + _MAGIC_AT] == 2:
            next_base = self._int64(following)
            if max(self.position, base_offset) < next_base <= self._log_end:
                return next_base
        if magic == 2:
            at = self._at
            last_delta = int.from_bytes(self._raw[at + _LAST_DELTA_AT : at + _LAST_DELTA_AT + 4], "big", signed=True)
            count = int.from_bytes(self._raw[at + _COUNT_AT : at + _COUNT_AT + 4], "big", signed=True)
            if 0 <= count <= last_delta + 1 and self.position < base_offset + last_delta + 1 <= self._log_end:
                return base_offset + last_delta + 1
        return None

    def _int64(self, at: int) -> int:
        return int.from_bytes(self._raw[at : at + 8], "big", signed=True)
