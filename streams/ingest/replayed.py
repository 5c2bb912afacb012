"""Dead letters that are replayed: rows and dead letters go by the coordinate they had in their own topic. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import numpy as np

from schemas.dead_letter import DeadLetter, Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE, split_position
from schemas.tenant_log import ORIGIN, IntColumn
from schemas.topics import HEADER_ORIGIN
from streams.ingest.chunk import MessageChunk, SourceChunk
from streams.ingest.columns import Table, positions_of, rows_of
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short

_Index = Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORDS_PER_MESSAGE)]
_Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 43)]


class OriginHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ``drift-origin`` header of records of the replay topic, as JSON: where the record comes from.

    Attributes:
        index: of the record in its message, or ``WHOLE_MESSAGE``: all its records.
        alone: the value is that one record; otherwise it is the whole message.
        timestamp_ms, timestamp_type: of the original message; -1 is unknown.
    """

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=249)]
    partition: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    offset: _Offset
    index: _Index = WHOLE_MESSAGE
    incarnation: Annotated[str, msgspec.Meta(max_length=256)]
    alone: bool = False
    timestamp_ms: int = -1
    timestamp_type: int = 0


_decoder = msgspec.json.Decoder(OriginHeader)


def encode_origin(origin: OriginHeader) -> bytes:
    """Return the header's value."""
    return msgspec.json.encode(origin)


def read_origin(data: bytes | None) -> OriginHeader:
    """Read a ``drift-origin`` header.

    Raises:
        Refusal: it cannot be read.
    """
    try:
        return _decoder.decode(data or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.LANE_UNDECLARED, short(f"the drift-origin header cannot be read: {error}")) from error


def origin_of(letter: DeadLetter, incarnation: str) -> OriginHeader:
    """Return the header under which a dead letter's own payload is replayed. ``incarnation``: where it names none."""
    return OriginHeader(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        index=letter.index,
        incarnation=letter.incarnation or incarnation,
        alone=letter.is_alone,
        timestamp_ms=letter.timestamp_ms,
        timestamp_type=letter.timestamp_type,
    )


def as_it_was(piece: SourceChunk, origins: Sequence[OriginHeader]) -> MessageChunk:
    """Return the messages with the times they had; all are of one timestamp type. Offsets stay those of the replay."""
    return MessageChunk(
        piece.topic,
        piece.partition,
        piece.first_offset,
        piece.next_offset,
        piece.offsets,
        piece.values,
        piece.keys,
        piece.headers,
        [origin.timestamp_ms for origin in origins],
        origins[0].timestamp_type if origins else 0,
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is wanted of each message. ``index``, ``alone``, ``offset``: ``(messages,)``."""

    index: IntColumn
    alone: IntColumn
    offset: IntColumn

    def is_whole(self, message: int) -> bool:
        return bool(self.index[message] == WHOLE_MESSAGE)


def take_wanted(table: Table, offsets: IntColumn, origins: Sequence[OriginHeader]) -> Table:
    """Return the rows that were dead letters, with their ``origin``, and what is wrong with those that still are.

    Args:
        table: what the messages decode to, other records of theirs included.
        offsets: of the messages in the replay topic.

    Returns:
        A table without clocks: replayed rows say nothing about how far a source is. ``rejected`` has the indexes that
        the dead letters had.
    """
    wanted = _Wanted(
        np.array([origin.index for origin in origins], dtype=np.int64),
        np.array([origin.alone for origin in origins], dtype=np.int64),
        np.array([origin.offset for origin in origins], dtype=np.int64),
    )
    rejected = _still_bad(table.rejected, wanted)
    at, index = split_positions(table.columns["position"])
    message = np.searchsorted(offsets, at)
    counts = np.bincount(message, minlength=len(origins))
    bad = np.zeros(len(origins), dtype=bool)
    bad[[one.message for one in rejected]] = True
    target = wanted.index[message]
    whole = target == WHOLE_MESSAGE
    is_single = (counts[message] == 1) & ~bad[message]
    kept = whole | np.where(wanted.alone[message] > 0, is_single, index == target)
    found = np.zeros(len(origins), dtype=bool)
    found[message[kept]] = True
    for number in np.flatnonzero(~found & ~bad & (wanted.index != WHOLE_MESSAGE)).tolist():
        rejected.append(_missing(number, int(wanted.index[number]), int(counts[number]), bool(wanted.alone[number])))
    rows = np.flatnonzero(kept)
    taken = rows_of(table, rows)
    taken.columns[ORIGIN] = positions_of(wanted.offset[message[rows]], np.where(whole, index, target)[rows])
    return replace(taken, rejected=sorted(rejected, key=lambda one: (one.message, one.index)))


def split_positions(positions: IntColumn) -> tuple[IntColumn, IntColumn]:
    """Return offsets and indexes of packed positions, by column."""
    offsets, indexes = split_position(positions)  # type: ignore[arg-type]
    return offsets, indexes  # type: ignore[return-value]


def _still_bad(rejected: Sequence[Rejected], wanted: _Wanted) -> list[Rejected]:
    """Return what is wrong with wanted records, once each, by the index that was wanted."""
    found: dict[tuple[int, int], Rejected] = {}
    for bad in rejected:
        index = bad.index
        if not wanted.is_whole(bad.message):
            wanted_index = int(wanted.index[bad.message])
            if not wanted.alone[bad.message] and index not in (WHOLE_MESSAGE, wanted_index):
                continue
            index = wanted_index
        found.setdefault((bad.message, index), replace(bad, index=index))
    return list(found.values())


def _missing(message: int, index: int, count: int, alone: bool) -> Rejected:
    detail = f"one record was expected, the value holds {count}" if alone else f"the message holds no record {index}"
    return Rejected(message, index, Reason.MALFORMED, detail, b"")


def dead_letters(
    piece: SourceChunk, rejected: Sequence[Rejected], origins: Sequence[OriginHeader], format_name: str
) -> list[DeadLetter]:
    """Return dead letters under the coordinates that they had."""
    letters = []
    for bad in rejected:
        origin, value = origins[bad.message], piece.values[bad.message] or b""
        payload = bad.payload or value
        letters.append(
            DeadLetter(
                origin.topic,
                origin.partition,
                origin.offset,
                bad.index,
                bad.reason,
                bad.detail,
                payload,
                format_name,
                is_alone=origin.alone or payload != value,
                message_key=piece.keys[bad.message],
                message_headers=tuple(
                    (name, data) for name, data in piece.headers[bad.message] if name != HEADER_ORIGIN
                ),
                timestamp_ms=origin.timestamp_ms,
                timestamp_type=origin.timestamp_type,
                incarnation=origin.incarnation,
            )
        )
    return letters
