"""Edges and services of one lane in one partition: names to dense numbers, and what is remembered of each. Pure.

All tenants of the partition share the numbering, so that a batch of rows is folded at once whoever owns them.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from models.drift.persistence import PERSISTENCE_COLUMNS
from models.drift.slowness import SLOW_COLUMNS
from models.graph.unsettled import Unsettled
from schemas.ids import is_external
from schemas.tenant_log import EdgeIdentity, EncodedEdges, encode_edge

SIGNALS = ("calls", "bytes", "errors", "p50", "p95")
CALLS, BYTES, ERRORS, P50, P95 = range(5)
NEVER = -1
VOUCHED_EDGE, VOUCHED_PAIR = 1, 2
"""Bits of an edge's ``vouched``: another lane had this very edge, or one of the same two services."""
UNSEEN_MS = 1 << 62
PAGE_ROWS = 2_048
"""Rows of a page: what a checkpoint writes when one of them has changed. Well under 512 KiB."""

RUN_COLUMNS: dict[str, tuple[type, int, int]] = {
    # Contact across the estate's border, counted while it goes on (models/graph/beacons.py):
    "run_from": (np.int64, NEVER, 0),  # index of the window with the first contact of the run
    "run_gaps": (np.int16, 0, 0),  # how many intervals between windows with contact are summed up below
    "run_windows": (np.int32, 0, 0),  # sum of the intervals
    "run_squares": (np.int64, 0, 0),  # sum of their squares
    "run_calls": (np.int32, 0, 0),  # sum of the calls of a window
    "run_call_squares": (np.int64, 0, 0),  # sum of their squares
    "size_out": (np.int32, -1, 0),  # bytes a call that most windows agree on, -1 unknown
    "size_in": (np.int32, -1, 0),
    "size_votes": (np.int16, 0, 0),  # windows that agree less those that do not
    "beaconing": (np.bool_, 0, 0),  # was reported
}
HABIT_COLUMNS: dict[str, tuple[type, int, int]] = {
    # Habits with the outside, by direction (models/graph/border.py); the first window with news brings them to 0:
    "in_news": (np.int32, -1, 0),  # windows with a new caller from outside, halved each day
    "in_port_news": (np.int32, -1, 0),  # ... that was answered on a port new to the outside
    "out_news": (np.int32, -1, 0),
    "out_port_news": (np.int32, -1, 0),
    "news_day": (np.int32, -1, 0),  # when they were halved
    "in_peers_max": (np.int32, 0, 0),  # most callers from outside in a window
    "in_calls_max": (np.int64, 0, 0),
    "in_bytes_max": (np.int64, 0, 0),  # largest volume of one edge in a window
    "out_calls_max": (np.int64, 0, 0),
    "out_bytes_max": (np.int64, 0, 0),
}
EDGE_COLUMNS: dict[str, tuple[type, int, int]] = {
    # name: (type, fill, width)
    "tenant": (np.int32, 0, 0),
    "src": (np.int32, 0, 0),
    "dst": (np.int32, 0, 0),
    "port": (np.int64, 0, 0),
    "protocol": (np.int64, 0, 0),
    "known": (np.bool_, 0, 0),
    "first_seen_ms": (np.int64, UNSEEN_MS, 0),
    "last_index": (np.int64, NEVER, 0),  # index of the last window with traffic
    "gap_max": (np.int32, 1, 0),  # largest number of windows from one with traffic to the next
    "windows_seen": (np.int32, 0, 0),
    "dropped": (np.bool_, 0, 0),  # its sudden silence was reported
    "gone": (np.bool_, 0, 0),  # its removal was reported, in this lane or another
    "vouched": (np.uint8, 0, 0),  # what other lanes had when this one saw it first (models/graph/corroboration.py)
    "seen_elsewhere": (np.int64, NEVER, 0),  # index up to which another lane's sight of it kept its removal back
    "scale": (np.float64, 1, 0),  # calls that each one seen stood for, in the last window with calls
    "hearsay": (np.bool_, 0, 0),  # told of by halves of calls alone that do not know the client
    "history": (np.int32, 0, len(SIGNALS)),
    "mean": (np.float64, 0, len(SIGNALS)),
    "spread": (np.float64, 0, len(SIGNALS)),
    "expected_back": (np.int64, NEVER, 0),  # index until which its silence is one that it ended before
    # Against slow drift (models/drift/trend.py):
    "trend_mean": (np.float32, 0, len(SIGNALS)),
    "trend_spread": (np.float32, 0, len(SIGNALS)),
    "trend_excess": (np.float32, 0, len(SIGNALS)),
    **SLOW_COLUMNS,
    **PERSISTENCE_COLUMNS,
    **RUN_COLUMNS,
}
SERVICE_COLUMNS: dict[str, tuple[type, int, int]] = {
    "tenant": (np.int32, 0, 0),
    "known": (np.bool_, 0, 0),
    "external": (np.bool_, 0, 0),
    "fan_out_max": (np.int32, 0, 0),
    "denied_max": (np.int64, 0, 0),
    "vouched": (np.bool_, 0, 0),  # another lane had it when this one saw it first
    "given": (np.bool_, True, 0),  # records say this name themselves; else only our naming brings it about
    **HABIT_COLUMNS,
}
TREND_COLUMNS = ("trend_mean", "trend_spread", "trend_excess")
COLUMNS_SINCE_4 = frozenset(
    {
        "hearsay",
        "scale",
        "vouched",
        "seen_elsewhere",
        "given",
        "expected_back",
        *SLOW_COLUMNS,
        *PERSISTENCE_COLUMNS,
        *TREND_COLUMNS,
        *RUN_COLUMNS,
        *HABIT_COLUMNS,
    }
)
"""Columns of edges and services that states before version 4 do not hold (models/graph/snapshot.py)."""

_DENSE_SPAN = 1 << 16
_OTHER_SPELLINGS = 200_000
"""Ways of writing an edge, other than by its names, that are remembered; beyond it they are looked up anew."""
INBOUND, OUTBOUND = 0, 1
"""Who calls across the estate's border: somebody outside, or a service of the estate."""


def distinct(values: npt.NDArray[np.int64]) -> list[int]:
    """Return the distinct values of a column that is not empty, ascending; close neighbours are the quick case."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [low]
    if high - low < _DENSE_SPAN:
        found: list[int] = (np.flatnonzero(np.bincount(values - low)) + low).tolist()
        return found
    return sorted(np.unique(values).tolist())


def pair_of(src: npt.NDArray[Any], dst: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Pack numbers of services, or ranks, into one integer that sorts by ``src``, then ``dst``."""
    packed: npt.NDArray[np.int64] = src.astype(np.int64) << 32 | dst
    return packed


def port_key(
    service: npt.NDArray[Any], direction: int, port: npt.NDArray[Any], protocol: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """Pack a service's number, a direction across the border, port and protocol into one integer.

    Shapes:
        service, port (-1..65,535), protocol (-2..255), returned: ``(N,)``.
    """
    where = service.astype(np.int64) << 1 | direction
    key: npt.NDArray[np.int64] = (where << 17 | (port.astype(np.int64) + 1)) << 9 | (protocol + 2)
    return key


class Columns:
    """Arrays of one length that grow together, doubling."""

    def __init__(self, spec: dict[str, tuple[type, int, int]]) -> None:
        self._spec = spec
        self.capacity = 0
        self.array: dict[str, Any] = {}
        self.reserve(64)

    def reserve(self, size: int) -> None:
        """Make room for ``size`` rows."""
        if size <= self.capacity:
            return
        capacity = max(size, 2 * self.capacity)
        for name, (dtype, fill, width) in self._spec.items():
            shape = (capacity, width) if width else (capacity,)
            grown: npt.NDArray[Any] = np.full(shape, fill, dtype=dtype)
            if self.capacity:
                grown[: self.capacity] = self.array[name]
            self.array[name] = grown
        self.capacity = capacity

    def clear(self, row: int) -> None:
        """Reset a row to its fill values."""
        for name, (_, fill, _width) in self._spec.items():
            self.array[name][row] = fill


class Registry:
    """Numbers for tenants, services and edges, and the memory of each edge and service."""

    def __init__(self) -> None:
        self.tenants: list[str] = []
        self.tenant_number: dict[str, int] = {}
        self.services: list[tuple[int, str]] = []
        self.service_number: dict[tuple[int, str], int] = {}
        self.service = Columns(SERVICE_COLUMNS)
        self.identities: list[EdgeIdentity | None] = []
        self.edge_number: dict[EdgeIdentity, int] = {}
        self.edge = Columns(EDGE_COLUMNS)
        self.known_pairs: set[int] = set()  # as pair_of packs them
        self.unsettled = Unsettled()
        self.known_ports: set[int] = set()  # ports used across the border by known edges, as port_key packs them
        self._number_of_encoded: dict[bytes, int] = {}  # what edge_number says, by the bytes edges came in
        self._other_spellings: dict[int, list[bytes]] = {}  # ... of an edge whose record does not name it as we do
        self._other_spellings_count = 0
        self.free: list[int] = []
        self.edge_pages: set[int] = set()  # pages changed since the last checkpoint
        self.service_pages: set[int] = set()
        self._service_rank = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.identities)

    def tenant(self, name: str) -> int:
        """Return the tenant's number, a new one if need be."""
        number = self.tenant_number.get(name)
        if number is None:
            number = self.tenant_number[name] = len(self.tenants)
            self.tenants.append(name)
        return number

    def service_named(self, tenant: int, name: str) -> int:
        """Return a service's number, a new one if need be."""
        number = self.service_number.get((tenant, name))
        if number is None:
            number = len(self.services)
            service = (tenant, name)
            self.service_number[service] = number
            self.services.append(service)
            self.service.reserve(number + 1)
            self.service.array["tenant"][number] = tenant
            self.service.array["external"][number] = is_external(name)
            self.service.array["given"][number] = False
            self.service_pages.add(number // PAGE_ROWS)
        return number

    def numbers_of(
        self,
        edges: Sequence[EdgeIdentity],
        named: Callable[[EdgeIdentity], EdgeIdentity],
        used: npt.NDArray[np.int64] | None = None,
    ) -> tuple[npt.NDArray[np.int64], dict[int, tuple[EdgeIdentity, EdgeIdentity]]]:
        """Return the edges' numbers, ``(len(edges),)``, -1 for those that have none; and what had to be looked up.

        Edges that were looked up before are found by their bytes: they are neither decoded nor named again. The others
        are returned by their index: as they came, and as ``named`` names them.

        Args:
            used: indexes that matter; others may come out as -1. ``None``: all.
        """
        encoded = list(map(bytes, edges.encoded)) if isinstance(edges, EncodedEdges) else None
        if encoded is None:
            found = np.full(len(edges), -1, dtype=np.int64)
        else:
            known = map(self._number_of_encoded.get, encoded, repeat(-1))
            found = np.fromiter(known, dtype=np.int64, count=len(encoded))
        missing = np.flatnonzero(found < 0)
        if used is not None and len(missing):
            missing = missing[np.isin(missing, used)]
        looked_up: dict[int, tuple[EdgeIdentity, EdgeIdentity]] = {}
        for code in missing.tolist():
            given = edges[code]
            edge = named(given)
            looked_up[code] = given, edge
            number = self.edge_number.get(edge)
            if number is not None:
                found[code] = number
                if encoded is not None:
                    self._remember(encoded[code], edge, number)
        return found, looked_up

    def _remember(self, encoded: bytes, edge: EdgeIdentity, number: int) -> None:
        """Keep an edge's number by the bytes it came in, so that forgetting the edge finds them."""
        if encoded != encode_edge(edge):
            if self._other_spellings_count >= _OTHER_SPELLINGS:
                self.forget_spellings()
            self._other_spellings.setdefault(number, []).append(encoded)
            self._other_spellings_count += 1
        self._number_of_encoded[encoded] = number

    def forget_spellings(self) -> None:
        """Look every edge up anew from now on: names may mean something else."""
        self._number_of_encoded.clear()
        self._other_spellings.clear()
        self._other_spellings_count = 0

    def add_edge(self, identity: EdgeIdentity) -> int:
        """Give a new edge a number; it is unknown until its window closes."""
        tenant = self.tenant(identity[0])
        src, dst = self.service_named(tenant, identity[1]), self.service_named(tenant, identity[2])
        # Edges share the strings of their services: a third of the memory, and fewer cache misses at every lookup.
        identity = (self.tenants[tenant], self.services[src][1], self.services[dst][1], identity[3], identity[4])
        if self.free:
            number = self.free.pop()
            self.edge.clear(number)
            self.identities[number] = identity
        else:
            number = len(self.identities)
            self.identities.append(identity)
            self.edge.reserve(number + 1)
        self.edge_number[identity] = number
        self.edge_pages.add(number // PAGE_ROWS)
        columns = self.edge.array
        columns["tenant"][number], columns["src"][number], columns["dst"][number] = tenant, src, dst
        columns["port"][number], columns["protocol"][number] = identity[3], identity[4]
        self._unsettle(number)
        return number

    def note_given(self, number: int, given: EdgeIdentity) -> None:
        """Note which ends of an edge a record calls as we do."""
        identity, edge = self.identities[number], self.edge.array
        if identity is not None:
            for end, place in (("src", 1), ("dst", 2)):
                service = int(edge[end][number])
                if given[place] == identity[place] and not self.service.array["given"][service]:
                    self.service.array["given"][service] = True
                    self.service_pages.add(service // PAGE_ROWS)

    def take_names_as_given(self) -> None:
        """Hold all names for what records say: so it was as long as nothing was named by rules."""
        self.service.array["given"][:] = True

    def has_edge(self, identity: EdgeIdentity) -> bool:
        """Say whether an edge is there, known or not, and more than hearsay."""
        number = self.edge_number.get(identity)
        return number is not None and not self.edge.array["hearsay"][number]

    def doubt(self, number: int) -> None:
        """Take a new edge for hearsay: it stays unknown, and shows nobody that its services are there."""
        self.edge.array["hearsay"][number] = True
        self._settle(number)

    def confirm(self, number: int) -> None:
        """Take an edge for more than hearsay: it is a new one from here on."""
        self.edge.array["hearsay"][number] = False
        self._unsettle(number)
        self.edge_pages.add(number // PAGE_ROWS)

    def _unsettle(self, number: int) -> None:
        src, dst = int(self.edge.array["src"][number]), int(self.edge.array["dst"][number])
        if not self.service.array["external"][src]:
            self.unsettled.add(src, dst)

    def _settle(self, number: int) -> None:
        src, dst = int(self.edge.array["src"][number]), int(self.edge.array["dst"][number])
        if not self.service.array["external"][src]:
            self.unsettled.take(src, dst)

    def name_edges(self, named: list[bool]) -> None:
        """Set identities and their numbers from the columns, after a restore; ``named`` is false where no edge is."""
        columns = (
            self.edge.array[name][: len(named)].tolist() for name in ("tenant", "src", "dst", "port", "protocol")
        )
        tenants, names = self.tenants, [name for _, name in self.services]
        self.identities = [
            (tenants[tenant], names[src], names[dst], port, protocol) if has_edge else None
            for has_edge, tenant, src, dst, port, protocol in zip(named, *columns, strict=True)
        ]
        self.edge_number = {identity: n for n, identity in enumerate(self.identities) if identity is not None}
        self.find_unsettled()

    def find_unsettled(self) -> None:
        """Set ``unsettled`` by the edges that are not known: after a restore, or once some were moved."""
        array, size = self.edge.array, len(self)
        named = np.fromiter((identity is not None for identity in self.identities), dtype=bool, count=size)
        from_outside = self.service.array["external"][array["src"][:size]]
        unknown = np.flatnonzero(named & ~array["known"][:size] & ~array["hearsay"][:size] & ~from_outside)
        is_vouched = (array["vouched"][unknown] & VOUCHED_PAIR) > 0
        ends = (array["src"][unknown].tolist(), array["dst"][unknown].tolist())
        self.unsettled = Unsettled.of(zip(*ends, is_vouched.tolist(), strict=True))

    def forget(self, number: int) -> None:
        """Take an edge's name away; its number may be used again once ``release`` is called."""
        identity = self.identities[number]
        if identity is not None:
            del self.edge_number[identity]
            self.identities[number] = None
            self._number_of_encoded.pop(encode_edge(identity), None)
            for encoded in (spellings := self._other_spellings.pop(number, [])):
                del self._number_of_encoded[encoded]
            self._other_spellings_count -= len(spellings)
            columns = self.edge.array
            if not columns["known"][number] and not columns["hearsay"][number]:
                self._settle(number)
            columns["known"][number] = columns["hearsay"][number] = False
            self.edge_pages.add(number // PAGE_ROWS)

    def find_known_pairs(self) -> None:
        """Set ``known_pairs`` and ``known_ports`` by the known edges: after a restore, or once some were forgotten."""
        columns = self.edge.array
        known = np.flatnonzero(columns["known"][: len(self)])
        self.known_pairs = set(pair_of(columns["src"][known], columns["dst"][known]).tolist())
        self.known_ports = set(self._border_ports(known))

    def _border_ports(self, numbers: npt.NDArray[np.int64]) -> list[int]:
        columns, external = self.edge.array, self.service.array["external"]
        keys: list[int] = []
        for direction, inside, outside in ((INBOUND, "dst", "src"), (OUTBOUND, "src", "dst")):
            some = numbers[external[columns[outside][numbers]].astype(bool)]
            service, port, protocol = (columns[name][some] for name in (inside, "port", "protocol"))
            keys += port_key(service, direction, port, protocol).tolist()
        return keys

    def release(self, numbers: Iterable[int]) -> None:
        """Let the numbers of forgotten edges be used again."""
        self.free.extend(numbers)

    def identity_order(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the order that sorts edges by identity, ``(N,)``; much faster than sorting tuples of names."""
        if len(self._service_rank) != len(self.services):
            tenants, services = self.tenants, self.services
            ranked = sorted(range(len(services)), key=lambda n: (tenants[services[n][0]], services[n][1]))
            self._service_rank = np.empty(len(ranked), dtype=np.int64)
            self._service_rank[ranked] = np.arange(len(ranked))
        rank, edge = self._service_rank, self.edge.array
        pair = pair_of(rank[edge["src"][numbers]], rank[edge["dst"][numbers]])
        order: npt.NDArray[np.int64] = np.lexsort((edge["protocol"][numbers], edge["port"][numbers], pair))
        return order

    def touch(self, numbers: npt.NDArray[np.int64]) -> None:
        """Note that the memory of edges, and of the services they start at, has changed."""
        if len(numbers):
            self.edge_pages.update(distinct(numbers // PAGE_ROWS))
            self.service_pages.update(distinct(self.edge.array["src"][numbers] // PAGE_ROWS))
            self.service_pages.update(distinct(self.edge.array["dst"][numbers] // PAGE_ROWS))

    def learn(self, numbers: npt.NDArray[np.int64]) -> None:
        """Edges of a closed window become known, with their services and pairs."""
        columns = self.edge.array
        new = numbers[~columns["known"][numbers].astype(bool)]
        columns["known"][new] = True
        unsettled = new[~columns["hearsay"][new] & ~self.service.array["external"][columns["src"][new]]]
        columns["hearsay"][new] = False
        for src, dst in zip(columns["src"][unsettled].tolist(), columns["dst"][unsettled].tolist(), strict=True):
            self.unsettled.take(src, dst)
        self.known_pairs.update(pair_of(columns["src"][new], columns["dst"][new]).tolist())
        self.known_ports.update(self._border_ports(new))
        self.service.array["known"][columns["src"][new]] = True
        self.service.array["known"][columns["dst"][new]] = True
