"""Messages of a chunk to columns of rows: decoding, tenants and time are judged here. Pure.

Every record becomes a row or a dead letter, or is counted as no flow record; nothing is dropped.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.flow import MAX_MEASURE
from schemas.ids import MAX_RECORDS_PER_MESSAGE, position_of
from schemas.tenant_log import EdgeIdentity, IntColumn, SourceLoss
from schemas.topics import DAY_MS
from streams.ingest.chunk import LOG_APPEND_TIME, SourceChunk
from streams.ingest.tenant import UNKNOWN_TENANT, TenantRouter, TenantRule
from streams.result import WHOLE_MESSAGE, Rejected, short
from streams.sources.format import FlowRows, LossSignal, SourceFormat, Tenants
from streams.sources.identity import bounded

CLOCK_HOSTS = 3
EVERYONE = -1
"""Target of a loss whose tenant nobody says: records of such a topic name theirs, and the one that tells does not."""
HOST = "host"
_LATEST_ROWS = 64
"""Rows looked at first for the furthest clocks; all others only if fewer than three hosts are among them."""

Clocks = tuple[tuple[str, int], ...]
_INDEX_BITS = MAX_RECORDS_PER_MESSAGE.bit_length()


@dataclass(frozen=True, slots=True)
class ReadRules:
    """How messages of a topic, or of a replay, are read.

    Attributes:
        may_be_future: leave rows a day and more ahead of the broker's clock to the state machine: they are read anew,
            and their time may have come.
    """

    format: SourceFormat
    tenant: TenantRule
    router: TenantRouter
    max_message_bytes: int
    skew_ms: int
    may_be_future: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a chunk in coordinate order.

    Attributes:
        edge: index into ``edges`` of each row, ``(n,)``.
        target: partition of `tenant-log` of each edge, ``(len(edges),)``.
        columns: ``position``, ``side``, ``skewed`` and the measures known, ``(n,)`` each; ``host`` indexes ``hosts``.
        clocks: largest event times of the three hosts that are furthest, furthest first.
        rejected: what became dead letters; ``message`` counts from the chunk's first.
        skipped: records that are sound and no flows, by kind.
        hosts: who reported rows, where any row says so.
        losses: what the source says it lost, by target, ``EVERYONE`` for all of them; in coordinate order.
    """

    edge: IntColumn
    edges: list[EdgeIdentity]
    target: IntColumn
    columns: dict[str, IntColumn]
    clocks: Clocks
    rejected: list[Rejected]
    skipped: Counter[str] = field(default_factory=Counter)
    hosts: list[str] = field(default_factory=list)
    losses: list[tuple[int, SourceLoss]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.edge)


_NO_ROWS = np.empty(0, dtype=np.int64)


def read_chunk(chunk: SourceChunk, rules: ReadRules) -> Table:
    """Decode and judge all messages of a chunk."""
    kept, rejected = _readable(chunk.values, rules.max_message_bytes)
    values: Any = chunk.values if kept is None else [chunk.values[number] for number in kept]
    decoded = rules.format.decode(values)
    if kept is None:
        rejected.extend(decoded.rejected)
    else:
        numbers = np.array(kept, dtype=np.int64)
        for run in decoded.runs:
            run.message = numbers[run.message]
        rejected.extend(replace(bad, message=kept[bad.message]) for bad in decoded.rejected)
    tenants = rules.tenant.tenants(chunk)
    append_times = np.array(chunk.timestamps, dtype=np.int64) if chunk.timestamp_type == LOG_APPEND_TIME else None
    parts = [_judge(run, chunk.offsets, tenants, append_times, rules, rejected) for run in decoded.runs]
    rejected.sort(key=lambda bad: (bad.message, bad.index))
    table = concatenate(parts, rejected, decoded.skipped)
    if decoded.signals:
        signals = decoded.signals
        if kept is not None:
            signals = [replace(signal, message=kept[signal.message]) for signal in signals]
        table = replace(table, losses=_losses(signals, chunk, tenants, rules))
    return table


def _readable(values: Sequence[bytes | None], limit: int) -> tuple[list[int] | None, list[Rejected]]:
    """Return which messages can be decoded at all (``None``: every one of them) and what is wrong with the others."""
    try:
        if not values or max(map(len, values)) <= limit:  # type: ignore[arg-type]
            return None, []
    except TypeError:  # a tombstone
        pass
    kept: list[int] = []
    rejected: list[Rejected] = []
    for number, value in enumerate(values):
        if value is None:
            rejected.append(Rejected(number, WHOLE_MESSAGE, Reason.EMPTY, "the message has no value", b""))
        elif len(value) > limit:
            detail = f"{len(value)} bytes; the topic's limit is {limit} (max_message_bytes)"
            rejected.append(Rejected(number, WHOLE_MESSAGE, Reason.OVERSIZED, detail, value))
        else:
            kept.append(number)
    return kept, rejected


def _judge(
    rows: FlowRows,
    offsets: IntColumn,
    tenants: Tenants,
    append_times: IntColumn | None,
    rules: ReadRules,
    rejected: list[Rejected],
) -> Table:
    """Find each row's target and time; rows that have none are rejected."""
    grouping = rows.group(tenants, rules.router)
    edge, edges, target = grouping.edge, grouping.edges, grouping.target
    columns = dict(rows.columns)
    hosts: list[str] = []
    if (reporters := rows.reporters()) is not None:
        columns[HOST], hosts = reporters
    columns["position"] = positions_of(offsets[rows.message], rows.index)
    columns["skewed"] = np.zeros(len(edge), dtype=np.int64)
    good: npt.NDArray[np.bool_] | None = None
    if len(target) and target.min() < 0:
        verdicts = target[edge]
        good = verdicts >= 0
        for row in np.flatnonzero(~good).tolist():
            rejected.append(_without_tenant(rows, row, edges[edge[row]], rules, int(verdicts[row])))
    if append_times is not None:
        future = _bound_times(columns, append_times[rows.message], rules.skew_ms)
        if future is not None and not rules.may_be_future:
            for row in np.flatnonzero(future if good is None else future & good).tolist():
                detail = f"time_ms {int(columns['time_ms'][row])} is more than a day ahead of the broker's clock"
                rejected.append(_reject(rows, row, Reason.FUTURE, detail))
            good = ~future if good is None else good & ~future
    if good is not None:
        kept = np.flatnonzero(good)
        columns = {name: column[kept] for name, column in columns.items()}
        edge, edges, used = compact(edge[kept], edges)
        target = target[used]
        clocks = furthest_clocks(columns["time_ms"], lambda numbers: rows.hosts(kept[list(numbers)].tolist()))
    else:
        clocks = furthest_clocks(columns["time_ms"], rows.hosts)
    return Table(edge, edges, target, columns, clocks, [], hosts=hosts)


def _losses(
    signals: Sequence[LossSignal], chunk: SourceChunk, tenants: Tenants, rules: ReadRules
) -> list[tuple[int, SourceLoss]]:
    """Return losses by target. A tenant that the topic may not carry is told of none."""
    found = []
    for signal in signals:
        tenant = tenants if tenants is None or isinstance(tenants, str) else tenants[signal.message]
        target = EVERYONE if tenants is None else rules.router[tenant]
        if target < EVERYONE or (target == EVERYONE and tenants is not None):
            continue
        time_ms = signal.time_ms
        if chunk.timestamp_type == LOG_APPEND_TIME and time_ms > chunk.timestamps[signal.message] + rules.skew_ms:
            time_ms = chunk.timestamps[signal.message]
        position = position_of(int(chunk.offsets[signal.message]), signal.index)
        host = bounded(signal.host or "")
        count = min(signal.count, MAX_MEASURE)
        found.append((target, SourceLoss(position, tenant or "", signal.kind, host, count, time_ms)))
    found.sort(key=lambda entry: entry[1].position)
    return found


def _bound_times(columns: dict[str, IntColumn], append_times: IntColumn, skew_ms: int) -> npt.NDArray[np.bool_] | None:
    """Fold rows ahead of the broker's clock there; return the mask of those beyond a day, or ``None`` for none."""
    time_ms = columns["time_ms"]
    ahead = time_ms - append_times
    if ahead.max(initial=0) <= skew_ms:
        return None
    future = ahead > DAY_MS
    skewed = (ahead > skew_ms) & ~future
    columns["time_ms"] = np.where(skewed, append_times, time_ms)
    columns["skewed"] = skewed.astype(np.int64)
    return future if future.any() else None


def _reject(rows: FlowRows, row: int, reason: Reason, detail: str) -> Rejected:
    return Rejected(int(rows.message[row]), int(rows.index[row]), reason, short(detail), rows.payload(row))


def _without_tenant(rows: FlowRows, row: int, edge: EdgeIdentity, rules: ReadRules, verdict: int) -> Rejected:
    if verdict == UNKNOWN_TENANT:
        return _reject(rows, row, Reason.UNKNOWN_TENANT, f"no tenant found (tenant_from: {rules.tenant.rule})")
    return _reject(rows, row, Reason.TENANT_NOT_ALLOWED, f"the topic may not carry tenant {edge[0]!r}")


def compact(edge: IntColumn, edges: list[EdgeIdentity]) -> tuple[IntColumn, list[EdgeIdentity], IntColumn]:
    """Return edge codes and identities of some rows, without identities that no row has, in order of first appearance.

    The third value is the old code of each identity.
    """
    first = np.full(len(edges), len(edge), dtype=np.int64)
    first[edge[::-1]] = np.arange(len(edge) - 1, -1, -1)  # the last assignment wins: the first row
    used = np.argsort(first, kind="stable")[: int((first < len(edge)).sum())]
    rank = np.empty(len(edges), dtype=np.int64)
    rank[used] = np.arange(len(used))
    return rank[edge], [edges[i] for i in used.tolist()], used


def rows_of(table: Table, rows: IntColumn) -> Table:
    """Return some rows of a table, in order, as one without clocks."""
    edge, edges, used = compact(table.edge[rows], table.edges)
    columns = {name: column[rows] for name, column in table.columns.items()}
    return Table(edge, edges, table.target[used], columns, (), [], hosts=table.hosts)


def furthest_clocks(time_ms: IntColumn, hosts: Callable[[Sequence[int]], list[str]]) -> Clocks:
    """Return the largest event time of each of the three hosts that are furthest, furthest first."""
    size = len(time_ms)
    if size == 0:
        return ()
    if size > _LATEST_ROWS:
        clocks = _clocks_of(np.argpartition(time_ms, size - _LATEST_ROWS)[size - _LATEST_ROWS :], time_ms, hosts)
        if len(clocks) == CLOCK_HOSTS:
            return clocks
    return _clocks_of(np.arange(size), time_ms, hosts)


def _clocks_of(rows: IntColumn, time_ms: IntColumn, hosts: Callable[[Sequence[int]], list[str]]) -> Clocks:
    rising = rows[np.argsort(time_ms[rows], kind="stable")]
    latest = dict(zip(hosts(rising.tolist()), time_ms[rising].tolist(), strict=True))
    ranked = sorted(latest.items(), key=lambda clock: (-clock[1], clock[0]))
    return tuple(ranked[:CLOCK_HOSTS])


def no_rows(rejected: list[Rejected], skipped: Counter[str] | None = None) -> Table:
    """Return a table without rows."""
    columns = {"position": _NO_ROWS, "time_ms": _NO_ROWS}
    return Table(_NO_ROWS, [], _NO_ROWS, columns, (), rejected, Counter() if skipped is None else skipped)


def concatenate(parts: list[Table], rejected: list[Rejected], skipped: Counter[str]) -> Table:
    """Return tables that follow each other as one, with what is rejected and skipped of all."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return no_rows(rejected, skipped)
    if len(parts) == 1:
        return replace(parts[0], rejected=rejected, skipped=skipped)
    codes: dict[EdgeIdentity, int] = {}
    targets: list[int] = []
    edge_parts: list[IntColumn] = []
    for part in parts:
        renumber = np.fromiter(
            (codes.setdefault(identity, len(codes)) for identity in part.edges), np.int64, len(part.edges)
        )
        targets.extend(part.target[np.flatnonzero(renumber >= len(targets))].tolist())
        edge_parts.append(renumber[part.edge])
    names = sorted({name for part in parts for name in part.columns})
    columns = {
        name: np.concatenate([part.columns.get(name, np.full(len(part), -1, dtype=np.int64)) for part in parts])
        for name in names
    }
    hosts: dict[str, int] = {}
    if HOST in columns:
        columns[HOST] = np.concatenate([_hosts_among(hosts, part) for part in parts])
    latest: dict[str, int] = {}
    for part in parts:
        for host, time_ms in part.clocks:
            latest[host] = max(latest.get(host, time_ms), time_ms)
    clocks = tuple(sorted(latest.items(), key=lambda clock: (-clock[1], clock[0]))[:CLOCK_HOSTS])
    edge, target = np.concatenate(edge_parts), np.array(targets, dtype=np.int64)
    return Table(edge, list(codes), target, columns, clocks, rejected, skipped, list(hosts))


def _hosts_among(hosts: dict[str, int], part: Table) -> IntColumn:
    """Return a part's codes of hosts as codes among those of all parts; those that are new get one."""
    if HOST not in part.columns:
        return np.full(len(part), -1, dtype=np.int64)
    renumber = np.array([*(hosts.setdefault(name, len(hosts)) for name in part.hosts), -1], dtype=np.int64)
    found: IntColumn = renumber[part.columns[HOST]]
    return found


def positions_of(offsets: IntColumn, indexes: IntColumn) -> IntColumn:
    """Pack coordinates as `schemas.ids.position_of` does, by column."""
    packed: IntColumn = (offsets << _INDEX_BITS) | indexes
    return packed
