"""Rows to records of `tenant-log`: one chain of coordinates per target, cut at coordinates. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.graph.logic import LOGIC_VERSION
from schemas.ids import NO_POSITION, end_position
from schemas.tenant_log import (
    ACTIVE,
    ENDED,
    MAX_RECORD_BYTES,
    ORIGIN,
    EdgeIdentity,
    IntColumn,
    LaneConfig,
    LogRecord,
    PackedColumn,
    Positions,
    Progress,
    Rows,
    SourceLoss,
    encode_record,
    pack_column,
    pack_positions,
)
from schemas.topics import DAY_MS
from streams.ingest.columns import EVERYONE, HOST, Clocks, Table, compact, rows_of

REPLAYED_ROWS = 10_000
"""Replayed dead letters in one record: each target hears of all that go elsewhere, at most 80 KB of them."""


def position_before(offset: int) -> int:
    """Return the position of everything below ``offset``: the first ``after`` of an owner that starts there."""
    return end_position(offset - 1) if offset > 0 else NO_POSITION


@dataclass(frozen=True, slots=True)
class Origin:
    """Who writes records, and of which source partition."""

    source: str
    partition: int
    worker: str
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring messages that speak for one lane (``None``: for coordinates alone).

    Attributes:
        upto: position that the segment reaches.
        dead: sorted positions of its dead letters.
        ended: it holds the end-of-input record of its lane.
        append_time: times were bounded by the broker's clock.
        replayed: source partition that the rows' ``origin`` positions belong to, where they are replayed dead letters.
    """

    lane: LaneConfig | None
    table: Table
    upto: int
    dead: IntColumn
    ended: bool = False
    append_time: bool = False
    replayed: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of one target, and what its records say beside them.

    Attributes:
        host: code of each row's reporter among ``hosts``; ``None`` where no row has one.
        losses: what the source says it lost of the target's tenants, in coordinate order.
    """

    segment: Segment
    origin: Origin
    columns: dict[str, IntColumn]
    constants: dict[str, PackedColumn]
    edge: IntColumn
    edges: list[EdgeIdentity]
    elsewhere: Positions | None
    host: IntColumn | None = None
    hosts: Sequence[str] = ()
    losses: Sequence[SourceLoss] = ()


def encode_segment(
    segment: Segment, origin: Origin, after: int, targets: int, max_bytes: int = MAX_RECORD_BYTES
) -> list[list[bytes]]:
    """Return each target's encoded records: together they cover ``(after, segment.upto]``, the same for every target.

    A record is larger than ``max_bytes`` only if what has a single coordinate is.
    """
    table = segment.table
    none = table.edge[:0]
    empty = _Batch(segment, origin, {"position": none}, {}, none, [], _elsewhere(segment, origin, None))
    records = [_cut(empty, 0, 0, after, segment.upto, max_bytes)] * targets
    if table.losses and segment.lane is not None:
        for target in range(targets):
            if losses := _losses(segment, target):
                records[target] = _cut(replace(empty, losses=losses), 0, 0, after, segment.upto, max_bytes)
    if not len(table):
        return records
    constants, varying = _split_constants(table.columns)
    # An edge has one target, so edges and rows are put in the order of their targets once, and each target is a slice.
    edge_order = np.argsort(table.target, kind="stable")
    edge_bounds = np.searchsorted(table.target[edge_order], np.arange(targets + 1))
    rank = np.empty(len(edge_order), dtype=np.int64)
    rank[edge_order] = np.arange(len(edge_order)) - edge_bounds[table.target[edge_order]]
    row_target = table.target[table.edge].astype(np.uint16)  # numpy sorts 16 bits by radix
    row_order = np.argsort(row_target, kind="stable")
    row_bounds = np.searchsorted(row_target[row_order], np.arange(targets + 1))
    edge = rank[table.edge][row_order]
    columns = {name: column[row_order] for name, column in varying.items()}
    host = table.columns[HOST][row_order] if HOST in table.columns else None
    names = list(map(table.edges.__getitem__, edge_order.tolist()))
    for target in range(targets):
        start, stop = int(row_bounds[target]), int(row_bounds[target + 1])
        if start == stop:
            continue
        batch = _Batch(
            segment,
            origin,
            {name: column[start:stop] for name, column in columns.items()},
            constants,
            edge[start:stop],
            names[int(edge_bounds[target]) : int(edge_bounds[target + 1])],
            _elsewhere(segment, origin, target),
            None if host is None else host[start:stop],
            table.hosts,
            _losses(segment, target),
        )
        records[target] = _cut(batch, 0, stop - start, after, segment.upto, max_bytes)
    return records


def _losses(segment: Segment, target: int) -> list[SourceLoss]:
    """Return the losses that one target has to hear of."""
    if segment.lane is None:
        return []
    return [loss for whose, loss in segment.table.losses if whose in (target, EVERYONE)]


def _split_constants(columns: dict[str, IntColumn]) -> tuple[dict[str, PackedColumn], dict[str, IntColumn]]:
    """Part columns that say the same for all rows, packed once, from the others; ``position`` always varies.

    Codes of hosts are in neither: they are numbered anew in each record.
    """
    constants: dict[str, PackedColumn] = {}
    varying: dict[str, IntColumn] = {"position": columns["position"]}
    for name, column in columns.items():
        if name not in ("position", HOST):
            if column[0] == column[-1] and column.min() == column.max():
                constants[name] = pack_column(column[:1])
            else:
                varying[name] = column
    return constants, varying


def _cut(batch: _Batch, start: int, stop: int, after: int, upto: int, max_bytes: int) -> list[bytes]:
    """Encode rows ``start`` to ``stop`` and what else lies in ``(after, upto]``, in two halves if it is too much."""
    losses = tuple(loss for loss in batch.losses if after < loss.position <= upto)
    rows = _rows(batch, start, stop) if stop > start else None
    record = _encode(batch, after, upto, rows, losses)
    if len(record) <= max_bytes:
        return [record]
    of_rows = batch.columns["position"][start:stop]
    positions = np.union1d(of_rows, [loss.position for loss in losses]) if losses else of_rows
    if len(positions) < 2:
        return [record]
    position = int(positions[len(positions) // 2 - 1])
    middle = start + int(np.searchsorted(of_rows, position, side="right"))
    return [
        *_cut(batch, start, middle, after, position, max_bytes),
        *_cut(batch, middle, stop, position, upto, max_bytes),
    ]


def _rows(batch: _Batch, start: int, stop: int) -> Rows:
    whole = start == 0 and stop == len(batch.edge)
    edge, edges = batch.edge[start:stop], batch.edges
    if not whole:
        edge, edges, _ = compact(edge, edges)
    columns = dict(batch.constants)
    for name, column in batch.columns.items():
        columns[name] = pack_column(column[start:stop])
    columns["edge"] = pack_column(edge)
    hosts: tuple[str, ...] = ()
    if batch.host is not None:
        host, hosts = _hosts(batch.host[start:stop], batch.hosts)
        if hosts:
            columns[HOST] = pack_column(host)
    return Rows(count=stop - start, edges=edges, columns=columns, hosts=hosts)


def _hosts(codes: IntColumn, hosts: Sequence[str]) -> tuple[IntColumn, tuple[str, ...]]:
    """Return the codes of a record's rows and the hosts they stand for, without those that no row has."""
    used = np.flatnonzero(np.bincount(codes + 1, minlength=len(hosts) + 1)[1:])
    rank = np.full(len(hosts) + 1, -1, dtype=np.int64)
    rank[used] = np.arange(len(used))
    return rank[codes], tuple(hosts[code] for code in used.tolist())


def _elsewhere(segment: Segment, origin: Origin, target: int | None) -> Positions | None:
    """Return the origins of rows that go to other targets than this one, less those that none will take yet."""
    if segment.replayed is None:
        return None
    table = segment.table
    if not len(table):
        return pack_positions(table.edge)
    others = table.columns["time_ms"] <= origin.as_of_ms + DAY_MS  # the state machine's rule for FUTURE
    if target is not None:
        others &= table.target[table.edge] != target
    return pack_positions(np.unique(table.columns[ORIGIN][others]))


def _encode(batch: _Batch, after: int, upto: int, rows: Rows | None, losses: tuple[SourceLoss, ...]) -> bytes:
    segment, origin = batch.segment, batch.origin
    is_last = upto == segment.upto
    # Clocks cover the whole segment, so only the record that ends it may state them: rows still to come would be late.
    clocks: Clocks = segment.table.clocks if is_last else ()
    first, behind = np.searchsorted(segment.dead, (after, upto), side="right") if len(segment.dead) else (0, 0)
    progress = Progress(
        source=origin.source,
        partition=origin.partition,
        after=after,
        upto=upto,
        clocks=clocks,
        state=ENDED if segment.ended and is_last else ACTIVE,
        dead=int(behind - first),
        skipped=segment.table.skipped.total() if is_last else 0,
    )
    return encode_record(
        LogRecord(
            worker=origin.worker,
            as_of_ms=origin.as_of_ms,
            progress=(progress,),
            lane=segment.lane,
            rows=rows,
            append_time=segment.append_time,
            origin=segment.replayed,
            elsewhere=batch.elsewhere if is_last else None,  # it covers the whole segment likewise
            logic=LOGIC_VERSION,
            losses=losses,
        )
    )


def encode_segments(
    segments: Sequence[Segment], origin: Origin, after: int, targets: int, max_bytes: int = MAX_RECORD_BYTES
) -> list[list[bytes]]:
    """Return each target's records of all segments in order; the segments follow each other from ``after`` on."""
    records: list[list[bytes]] = [[] for _ in range(targets)]
    for part in (part for segment in segments for part in _parts(segment)):
        for mine, more in zip(records, encode_segment(part, origin, after, targets, max_bytes), strict=True):
            mine.extend(more)
        after = part.upto
    return records


def _parts(segment: Segment) -> Iterator[Segment]:
    """Cut replayed rows into parts small enough to be named to every target."""
    size = len(segment.table)
    if segment.replayed is None or size <= REPLAYED_ROWS:
        yield segment
        return
    for start in range(0, size, REPLAYED_ROWS):
        stop = min(start + REPLAYED_ROWS, size)
        part = rows_of(segment.table, np.arange(start, stop))
        upto = segment.upto if stop == size else int(part.columns["position"][-1])
        yield replace(segment, table=part, upto=upto)
