"""Dead letters that are replayed: rows and dead letters go by the coordinate they had in their own topic. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

import msgspec
import numpy as np

from schemas.dead_letter import DeadLetter, Reason
from schemas.ids import MAX_RECORDS_PER_MESSAGE, position_of, split_position
from schemas.tenant_log import ORIGIN, IntColumn
from schemas.topics import HEADER_ORIGIN
from streams.ingest.chunk import MessageChunk, SourceChunk
from streams.ingest.columns import Table, positions_of, rows_of
from streams.result import WHOLE_MESSAGE, Refusal, Rejected, short

MAX_INDEXES = 1_000
"""Records of one message that one header can name."""

_Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_RECORDS_PER_MESSAGE)]
_Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 43)]


class OriginHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ``drift-origin`` header of records of the replay topic, as JSON: where the record comes from.

    Attributes:
        indexes: of the records in their message; none: all of them.
        alone: the value is the one record of ``indexes``; otherwise it is the whole message.
        timestamp_ms, timestamp_type: of the original message; -1 is unknown.
    """

    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=249)]
    partition: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    offset: _Offset
    indexes: Annotated[tuple[_Index, ...], msgspec.Meta(max_length=MAX_INDEXES)] = ()
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
        origin = _decoder.decode(data or b"")
        if origin.alone and len(origin.indexes) != 1:
            raise Refusal(Reason.LANE_UNDECLARED, "the drift-origin header does not name the one record that it is")
        return origin
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.LANE_UNDECLARED, short(f"the drift-origin header cannot be read: {error}")) from error


def origin_of(letter: DeadLetter, incarnation: str) -> OriginHeader:
    """Return the header under which a dead letter's own payload is replayed.

    Args:
        incarnation: where the dead letter names none: then it is of a worker that did not say either whether the
            payload is one record alone; it was, wherever the coordinate names a record.
    """
    is_record = letter.index != WHOLE_MESSAGE
    return OriginHeader(
        topic=letter.topic,
        partition=letter.partition,
        offset=letter.offset,
        indexes=(letter.index,) if is_record else (),
        incarnation=letter.incarnation or incarnation,
        alone=is_record and (letter.is_alone or not letter.incarnation),
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


def take_wanted(
    table: Table, offsets: IntColumn, origins: Sequence[OriginHeader], others_in: Callable[[int], int]
) -> Table:
    """Return the rows that were dead letters, with their ``origin``, and what is wrong with those that still are.

    Args:
        table: what the messages decode to, other records of theirs included.
        offsets: of the messages in the replay topic.
        others_in: how many records of a message, by its number, are sound and no flows.

    Returns:
        A table without clocks: replayed rows say nothing about how far a source is. ``rejected`` has the indexes that
        the dead letters had. ``skipped`` is empty: such records were counted where they became dead letters.
    """
    rejected = _still_bad(table.rejected, origins)
    at, index = split_positions(table.columns["position"])
    message = np.searchsorted(offsets, at)
    counts = np.bincount(message, minlength=len(origins))
    is_bad = np.zeros(len(origins), dtype=bool)
    is_bad[[bad.message for bad in table.rejected]] = True
    whole = np.array([not origin.indexes for origin in origins], dtype=bool)
    alone = np.array([origin.alone for origin in origins], dtype=bool)
    only = np.array([origin.indexes[0] if origin.alone else 0 for origin in origins], dtype=np.int64)
    index = np.where(alone[message], only[message], index)
    pairs = positions_of(message, index)
    wanted = _pairs([(number, at) for number, origin in enumerate(origins) for at in origin.indexes])
    is_single = (counts == 1) & ~is_bad
    kept = np.where(alone[message], is_single[message], whole[message] | np.isin(pairs, wanted))
    settled = np.concatenate([pairs[kept], _pairs([(bad.message, bad.index) for bad in rejected])])
    unsettled = [split_position(pair) for pair in np.setdiff1d(wanted, settled).tolist()]
    by_message = Counter(number for number, _ in unsettled) if table.skipped else Counter()
    # Read by other rules than before, what was a dead letter may turn out to be no flow record at all: it is settled.
    no_flows = {number for number, missing in by_message.items() if missing <= others_in(number)}
    for number, missing in unsettled:
        if number not in no_flows:
            rejected.append(_missing(number, missing, int(counts[number]), origins[number].alone))
    rows = np.flatnonzero(kept)
    taken = rows_of(table, rows)
    base = np.array([origin.offset for origin in origins], dtype=np.int64)
    taken.columns[ORIGIN] = positions_of(base[message[rows]], index[rows])
    return replace(taken, rejected=sorted(rejected, key=lambda bad: (bad.message, bad.index)))


def _pairs(pairs: Sequence[tuple[int, int]]) -> IntColumn:
    """Pack (message, index) like coordinates."""
    return np.array([position_of(*pair) for pair in pairs], dtype=np.int64)


def split_positions(positions: IntColumn) -> tuple[IntColumn, IntColumn]:
    """Return offsets and indexes of packed positions, by column."""
    offsets, indexes = split_position(positions)  # type: ignore[arg-type]
    return offsets, indexes  # type: ignore[return-value]


def _still_bad(rejected: Sequence[Rejected], origins: Sequence[OriginHeader]) -> list[Rejected]:
    """Return what is wrong with the records that were wanted, each once, by the index that was wanted."""
    found: dict[tuple[int, int], Rejected] = {}
    for bad in rejected:
        wanted = origins[bad.message].indexes
        indexes: Sequence[int] = [bad.index] if not wanted or bad.index in wanted else []
        if origins[bad.message].alone or (wanted and bad.index == WHOLE_MESSAGE):
            indexes = wanted
        for index in indexes:
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
