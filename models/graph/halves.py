"""Halves of calls that are held until their other half comes, and the rows that come of them. Pure.

A client's half says who called, a server's who answered: together they are two reports of one edge, each with its own
measures, in the client's window. Which halves meet is decided in models/graph/pairing.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from models.graph.output import ALONE, CROWDED_OUT, PAIRED, REPEATED
from models.graph.pairing import WAITS, Calls, Met, handles_of
from schemas.flow import SIDE_SERVER, UNKNOWN
from schemas.tenant_log import (
    PAIR,
    SAMPLING,
    EdgeIdentity,
    EncodedEdges,
    IntColumn,
    decode_edge,
    encode_edge,
    encoded_edges,
)

Mask = npt.NDArray[np.bool_]

INDEX, LATE, EDGE, PEER = "index", "late", "edge", "peer"
"""Columns beside those of rows: window; whether it had closed; raw edge; of a client's half that was joined, the raw
edge of the server's, -1 of halves that wait."""
_MEASURES = ("errors", "denied", "bytes_out", "bytes_in", "packets_out", "packets_in", "latency_us")
ROW_COLUMNS = ("time_ms", INDEX, LATE, "side", "skewed", "calls", *_MEASURES, SAMPLING)
"""Columns that come out, beside the edge."""
HELD_COLUMNS = (PAIR, EDGE, PEER, *ROW_COLUMNS)
_AT = {name: number for number, name in enumerate(HELD_COLUMNS)}
_BARE = {**dict.fromkeys(_MEASURES, UNKNOWN), "calls": 0, SAMPLING: 1}
_MIN_GARBAGE = 4_096
_REMEMBERED = 100_000
"""Edges of pairs whose bytes are kept; more distinct ones only make us put them together again."""
_SERVER_BITS = 32


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows to be folded now, as if ingest had sent them so.

    Attributes:
        edges: identities in the order in which rows brought them.
        columns: ``edge``, an index into ``edges``, and ``ROW_COLUMNS``, ``(n,)`` each.
        is_alone: rows that are a half without the other one, ``(n,)``.
        began_alone: edges that such a row brought first, ``(len(edges),)``.
        counts: halves by outcome.
    """

    edges: EncodedEdges
    columns: dict[str, IntColumn]
    is_alone: Mask
    began_alone: Mask
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.is_alone)


class Halves:
    """Halves of one lane that are held: those that wait, and clients' that were joined, until their window closes.

    They lie in one table in the order of the log. A handle is the number of a row among all that ever came.
    """

    def __init__(self) -> None:
        self._edges: list[EdgeIdentity] = []
        self._owner: list[int] = []  # of each edge, a number of the tenant
        self._tenants: dict[str, int] = {}
        self._code: dict[bytes, int] = {}  # of a raw edge, as records hold it
        self._named: dict[int, bytes] = {}  # the edge that two raw ones make
        self._calls: dict[str, Calls] = {}
        self._table: IntColumn = np.empty((len(HELD_COLUMNS), 0), dtype=np.int64)
        self._handle: IntColumn = np.empty(0, dtype=np.int64)
        self._is_held: Mask = np.empty(0, dtype=bool)
        self._size = 0
        self._next = 0

    def __len__(self) -> int:
        """Return how many halves wait."""
        return int(np.count_nonzero(self._table[_AT[PEER], self._held()] == UNKNOWN)) if self._size else 0

    @property
    def is_empty(self) -> bool:
        """Say whether no half is held."""
        return not self._is_held[: self._size].any()

    def _held(self) -> IntColumn:
        return np.flatnonzero(self._is_held[: self._size])

    def join(
        self,
        columns: dict[str, IntColumn],
        edges: Sequence[EdgeIdentity],
        codes: IntColumn,
        limit_of: Callable[[str], int],
    ) -> Joined:
        """Take the rows of a record; return those to be folded now: rows without a pair, pairs, what cannot wait.

        Args:
            columns: ``pair``, ``edge`` (an index into ``edges``) and ``ROW_COLUMNS``, ``(n,)`` each.
            codes: what ``codes_of`` says of the edges.
            limit_of: most halves held, by tenant.
        """
        start, self._next = self._next, self._next + len(columns[PAIR])
        rows = np.flatnonzero(columns[PAIR] >= 0)
        self._append(columns, codes, rows, start)
        met = Met()
        servers, late = columns["side"][rows] == SIDE_SERVER, columns[LATE][rows] > 0
        for tenant, mine in self._by_tenant(self._table[_AT[EDGE], self._size - len(rows) : self._size]):
            of = rows[mine]
            halves = zip(
                *((start + of).tolist(), columns[PAIR][of].tolist(), servers[mine].tolist(), late[mine].tolist()),
                strict=True,
            )
            self._calls.setdefault(tenant, Calls()).meet(halves, limit_of(tenant), met)
        joined = self._settle(met, columns, edges, start)
        self._compact()
        return joined

    def release(self, before: int | None = None) -> Joined:
        """Return the halves that wait in windows below an index, ``None`` is all, and forget those joined there.

        Several halves of one side that wait for the same call leave together.
        """
        held = self._held()
        due = held if before is None else held[self._table[_AT[INDEX], held] < before]
        met = Met()
        for tenant, mine in self._by_tenant(self._table[_AT[EDGE], due]):
            part = self._table[:, due[mine]]
            self._calls[tenant].let_go(part[_AT[PAIR]].tolist(), (part[_AT["side"]] == SIDE_SERVER).tolist(), met)
        met.alone_at = met.alone
        joined = self._settle(met, {}, (), self._next)
        self._compact()
        return joined

    def _append(self, columns: dict[str, IntColumn], codes: IntColumn, rows: IntColumn, start: int) -> None:
        size = self._size + len(rows)
        self._reserve(size)
        at = slice(self._size, size)
        self._table[_AT[EDGE], at] = codes[columns[EDGE][rows]]
        self._table[_AT[PEER], at] = UNKNOWN
        part = slice(None) if len(rows) == len(columns[PAIR]) else rows  # nearly always all of them are halves
        for name in (PAIR, *ROW_COLUMNS):
            self._table[_AT[name], at] = columns[name][part]
        self._handle[at] = start + rows
        self._is_held[at] = True
        self._size = size

    def codes_of(self, edges: Sequence[EdgeIdentity], local: IntColumn) -> IntColumn:
        """Return what edges are here, by their place in a record; of those that no row of ``local`` has, nothing."""
        used = np.flatnonzero(np.bincount(local, minlength=len(edges)))
        code = np.zeros(len(edges), dtype=np.int64)
        code[used] = [self._intern(encoded) for encoded in encoded_edges(edges, used.tolist())]
        return code

    def tenants_of(self, codes: IntColumn, local: IntColumn, number_of: Callable[[str], int]) -> IntColumn:
        """Return the tenant's number of each row, ``(n,)``, by its edge's place in the record."""
        owner = np.array(self._owner, dtype=np.int64)[codes]
        number = np.zeros(len(self._tenants), dtype=np.int64)
        names = list(self._tenants)
        for place in dict.fromkeys(owner[np.flatnonzero(np.bincount(local))].tolist()):  # as the record names them
            number[place] = number_of(names[place])
        return number[owner[local]]

    def _reserve(self, size: int) -> None:
        if size <= len(self._handle):
            return
        old = self._table, self._handle, self._is_held
        self._table = np.empty((len(HELD_COLUMNS), 2 * size), dtype=np.int64)
        self._handle, self._is_held = np.empty(2 * size, dtype=np.int64), np.empty(2 * size, dtype=bool)
        self._move_in(*old, slice(0, self._size))

    def _move_in(self, table: IntColumn, handle: IntColumn, is_held: Mask, rows: IntColumn | slice) -> None:
        """Let the table begin with some rows of another one, or of itself."""
        part = handle[rows]
        self._size = len(part)
        self._handle[: self._size] = part
        self._is_held[: self._size] = is_held[rows]
        for column in range(len(HELD_COLUMNS)):
            self._table[column, : self._size] = table[column, rows]

    def _intern(self, encoded: bytes) -> int:
        code = self._code.setdefault(encoded, len(self._edges))
        if code == len(self._edges):
            edge = decode_edge(encoded)
            self._edges.append(edge)
            self._owner.append(self._tenants.setdefault(edge[0], len(self._tenants)))
        return code

    def _by_tenant(self, codes: IntColumn) -> list[tuple[str, IntColumn | slice]]:
        """Return which of these halves, by raw edge, are whose."""
        owner = np.array(self._owner, dtype=np.int64)[codes]
        numbers, tenants = np.flatnonzero(np.bincount(owner)).tolist(), list(self._tenants)
        if len(numbers) == 1:
            return [(tenants[numbers[0]], slice(None))]
        return [(tenants[number], np.flatnonzero(owner == number)) for number in numbers]

    def _positions(self, handles: list[int]) -> IntColumn:
        return np.searchsorted(self._handle[: self._size], np.array(handles, dtype=np.int64))

    def _settle(self, met: Met, columns: dict[str, IntColumn], edges: Sequence[EdgeIdentity], start: int) -> Joined:
        """Carry out what was decided and put together the rows that it lets go, after those that have no pair."""
        table, of = self._table, self._positions
        client, server = of(met.pair_client), of(met.pair_server)
        more_client, more_server = of(met.more_client), of(met.more_server)
        repeat_of, repeat = of(met.repeated_of), of(met.repeated)
        repeat_at = np.array(met.repeated_at, dtype=np.int64)
        alone = of(met.alone)
        self._strip(repeat, repeat_of)
        edge, peer = table[_AT[EDGE]], table[_AT[PEER]]
        peer[client] = edge[server]
        told = np.flatnonzero(repeat_at != WAITS)
        repeat_of, repeat, repeat_at = repeat_of[told], repeat[told], repeat_at[told]

        row = np.concatenate([client, server, more_server, repeat, alone])
        caller = np.concatenate([client, client, more_client, repeat_of, alone])
        to = np.concatenate([edge[server], edge[server], edge[more_server], peer[repeat_of], np.full_like(alone, -1)])
        handle = self._handle
        paired_at = np.maximum(handle[client], handle[server])
        more_at = np.maximum(handle[more_client], handle[more_server])
        at = np.concatenate([paired_at, paired_at, more_at, repeat_at, np.array(met.alone_at, dtype=np.int64)])
        order = np.argsort(at, kind="stable")
        row, caller, to, at = row[order], caller[order], to[order], at[order]
        rows = dict(zip(ROW_COLUMNS, table[_AT[ROW_COLUMNS[0]] :, row], strict=True))
        takes = table[_AT[LATE], caller] == 0  # else each lies where its own time is
        for name in ("time_ms", INDEX, LATE):
            rows[name] = np.where(takes, table[_AT[name], caller], rows[name])
        joined = self._name(edge[caller], to, at, rows, columns, edges, start)

        late = client[table[_AT[LATE], client] > 0]
        self._is_held[np.concatenate([server, more_server, repeat, alone, late, of(met.forgotten)])] = False
        paired = 2 * len(client) + len(more_client)
        counts = {PAIRED: paired, REPEATED: len(repeat), ALONE: len(alone), CROWDED_OUT: met.crowded_out}
        joined.counts.update(counts)
        return joined

    def _strip(self, repeat: IntColumn, first: IntColumn) -> None:
        """Leave of repeats that they came, where and when the first one of each lies."""
        for name, value in _BARE.items():
            self._table[_AT[name], repeat] = value
        for name in ("time_ms", INDEX, LATE):
            self._table[_AT[name], repeat] = self._table[_AT[name], first]

    def _name(
        self,
        caller: IntColumn,
        to: IntColumn,
        at: IntColumn,
        rows: dict[str, IntColumn],
        columns: dict[str, IntColumn],
        edges: Sequence[EdgeIdentity],
        start: int,
    ) -> Joined:
        """Give halves (raw edges of client and server, -1 if alone) and the other rows one list of edges."""
        is_alone: Mask = to < 0
        kind, first, of_half = np.unique(caller << _SERVER_BITS | (to + 1), return_index=True, return_inverse=True)
        found = [self._edge_of(number) for number in kind.tolist()]
        brought = list(zip(at[first].tolist(), first.tolist(), count(), found, is_alone[first].tolist(), strict=False))
        plain = np.flatnonzero(columns[PAIR] < 0) if columns else at[:0]
        local = columns[EDGE][plain] if columns else plain
        used, first, of_plain = np.unique(local, return_index=True, return_inverse=True)
        found = encoded_edges(edges, used.tolist())
        came = (start + plain[first]).tolist()
        brought += zip(came, repeat(-1), count(len(kind)), found, repeat(False), strict=False)
        names: dict[bytes, int] = {}
        began_alone: list[bool] = []
        code = np.empty(len(brought), dtype=np.int64)
        for _, _, number, edge, alone in sorted(brought, key=itemgetter(0, 1)):
            code[number] = names.setdefault(edge, len(names))
            if len(began_alone) < len(names):
                began_alone.append(alone)
        rows[EDGE] = code[of_half]
        if len(plain):
            others = {**{name: columns[name][plain] for name in ROW_COLUMNS}, EDGE: code[len(kind) + of_plain]}
            rows = {name: np.concatenate([others[name], column]) for name, column in rows.items()}
            is_alone = np.concatenate([np.zeros(len(plain), dtype=bool), is_alone])
        return Joined(EncodedEdges(list(names)), rows, is_alone, np.array(began_alone, dtype=bool), {})

    def _edge_of(self, kind: int) -> bytes:
        """Return the edge of a client's and a server's raw edge, or of one alone."""
        edge = self._named.get(kind)
        if edge is None:
            if len(self._named) >= _REMEMBERED:
                self._named.clear()
            caller, to = divmod(kind, 1 << _SERVER_BITS)
            client = self._edges[caller]
            if to:
                server = self._edges[to - 1]
                port, protocol = (a if a != UNKNOWN else b for a, b in zip(client[3:], server[3:], strict=True))
                client = (client[0], client[1], server[2], port, protocol)
            edge = self._named[kind] = encode_edge(client)
        return edge

    def _compact(self) -> None:
        """Take out what is no longer held once it is more than what is."""
        held = self._held()
        if self._size <= 2 * len(held) + _MIN_GARBAGE:
            return
        self._move_in(self._table, self._handle, self._is_held, held)
        codes = self._table[[_AT[EDGE], _AT[PEER]], : self._size]
        used = np.unique(codes[codes >= 0])
        if len(self._edges) > 2 * len(used) + _MIN_GARBAGE:
            names = [encode_edge(self._edges[code]) for code in used.tolist()]
            self._edges, self._owner, self._code, self._named = [], [], {}, {}
            for edge in names:
                self._intern(edge)
            fresh = np.where(codes >= 0, np.searchsorted(used, codes), UNKNOWN)
            self._table[[_AT[EDGE], _AT[PEER]], : self._size] = fresh

    def pages(self, max_bytes: int) -> list[tuple[list[EdgeIdentity], dict[str, IntColumn]]]:
        """Return what is held, in the order of the log, in parts of at most about ``max_bytes``: edges, columns."""
        held = self._held()
        table = self._table[:, held]
        size = np.array([sum(len(name.encode()) for name in edge[:3]) for edge in self._edges] or [0], dtype=np.int64)
        edge, peer = table[_AT[EDGE]], table[_AT[PEER]]
        part = np.cumsum(8 * len(HELD_COLUMNS) + size[edge] + np.where(peer < 0, 0, size[peer])) // max_bytes
        found = []
        for number in np.unique(part).tolist():
            columns = dict(zip(HELD_COLUMNS, table[:, part == number], strict=True))
            codes = np.stack([columns[EDGE], columns[PEER]], axis=1).ravel()
            used = np.array(list(dict.fromkeys(codes[codes >= 0].tolist())), dtype=np.int64)
            local = np.full(len(self._edges) + 1, UNKNOWN, dtype=np.int64)
            local[used] = np.arange(len(used))
            columns[EDGE], columns[PEER] = local[columns[EDGE]], local[columns[PEER]]  # the last one stands for none
            found.append(([self._edges[code] for code in used.tolist()], columns))
        return found

    def put_back(self, edges: Sequence[EdgeIdentity], columns: dict[str, IntColumn]) -> None:
        """Add what ``pages`` returned, part after part."""
        rows = np.arange(len(columns[PAIR]))
        start, self._next = self._next, self._next + len(rows)
        code = np.array([self._intern(encode_edge(edge)) for edge in edges], dtype=np.int64)
        self._append(columns, code, rows, start)
        joined = columns[PEER] >= 0
        self._table[_AT[PEER], self._size - len(rows) : self._size][joined] = code[columns[PEER][joined]]
        servers = (columns["side"] == SIDE_SERVER).tolist()
        halves = zip(columns[PAIR].tolist(), columns[EDGE].tolist(), servers, joined.tolist(), strict=True)
        for handle, (key, edge, is_server, is_joined) in enumerate(halves, start):
            calls = self._calls.setdefault(edges[edge][0], Calls())
            calls.held += 1
            side = calls.servers if is_server else calls.clients
            if is_joined:
                side[key] = ~handle
            elif key in side:
                side[key] = [*handles_of(side[key]), handle]
            else:
                side[key] = handle
