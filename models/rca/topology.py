"""The call graph that evidence is about, as columns; hops and shortest ways over it. Pure.

Graphs of a hundred thousand edges are walked by scipy straight from the columns, which is the faster way for small
graphs too; tests compare it with networkx.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, dijkstra

from models.rca.robust import Floats, Ints, Mask
from schemas.rca import NameColumn

_NOT_REACHED = -9999
"""What scipy's breadth-first search gives as predecessor of a node it did not reach."""


class _Places(dict[str, int]):
    """Positions by name. Lookups of many names stay in C, also where some are missing."""

    def __missing__(self, name: str) -> int:
        return -1


@dataclass(frozen=True, slots=True)
class Topology:
    """Services and call edges, each pair once, sorted by name.

    Shapes: ``src``, ``dst``: ``(E,)`` int64, positions in ``services`` (``N`` names).
    """

    services: list[str]
    src: Ints
    dst: Ints

    @classmethod
    def of(cls, callers: Sequence[str], callees: Sequence[str], services: Iterable[str] = ()) -> "Topology":
        """Return the graph of callers and the callees beside them, pairs of which may repeat, and of other services."""
        graph = cls(sorted({*callers, *callees, *services}), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        nodes = max(len(graph.services), 1)
        pairs = np.unique(graph.places(callers) * nodes + graph.places(callees))
        return cls(graph.services, pairs // nodes, pairs % nodes)

    def __len__(self) -> int:
        return len(self.src)

    def edge_numbers(self, src: Ints, dst: Ints) -> Ints:
        """Return which edge each pair of positions is. All pairs must be edges of this graph."""
        nodes = max(len(self.services), 1)
        return np.searchsorted(self.src * nodes + self.dst, src * nodes + dst).astype(np.int64)

    def places(self, services: Sequence[str]) -> Ints:
        """Return where ``services`` stand in this graph, -1 for those it does not hold."""
        index = _Places(zip(self.services, range(len(self.services)), strict=True))
        return np.fromiter(map(index.__getitem__, services), dtype=np.int64, count=len(services))

    def places_of(self, column: NameColumn) -> Ints:
        """Return where each row's service stands in this graph, -1 where it does not hold it, ``(R,)``."""
        return self.places(column.names)[column.at] if len(column) else np.empty(0, dtype=np.int64)


def _matrix(src: Ints, dst: Ints, nodes: int) -> "csr_array":
    return csr_array((np.ones(len(src)), (src, dst)), shape=(nodes, nodes))


def hops_from(start: Ints, src: Ints, dst: Ints, nodes: int, *, directed: bool) -> Floats:
    """Return the least number of edges from any of ``start``, infinite where there is no way, ``(nodes,)``."""
    if not len(start):
        return np.full(nodes, np.inf)
    hops: Floats = dijkstra(
        _matrix(src, dst, nodes), directed=directed, indices=start, unweighted=True, min_only=True
    ).astype(np.float64)
    return hops


def shortest_way(start: int, end: int, src: Ints, dst: Ints, nodes: int, use: Mask | None = None) -> list[int]:
    """Return the nodes of a shortest way along edges, both ends included; empty where there is none.

    ``use``: edges that may be walked, ``(E,)``.
    """
    if use is not None:
        src, dst = src[use], dst[use]
    _, before = breadth_first_order(_matrix(src, dst, nodes), start, directed=True, return_predecessors=True)
    if end != start and before[end] == _NOT_REACHED:
        return []
    way = [end]
    while way[-1] != start:
        way.append(int(before[way[-1]]))
    return way[::-1]
