"""Blast radius: breadth-first over callers, with an impact that decays by share of traffic. Pure, vectorised.

A caller depends on a callee as much as its requests lead to calls of it: ``calls to the callee / requests received``,
at most 1. What is predicted of a caller is one minus the chance that a request of it meets no degraded callee, were
they independent: ``1 - prod(1 - dependence * DECAY * impact of the callee)``. A service's distance is that of the
shortest chain of calls; services at the same distance do not add to each other's impact.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from schemas.ids import is_external
from schemas.impact import BlastRadiusReport, CallGraph, Degradation, ImpactedService

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DECAY = 0.9
"""Share of a callee's impact that reaches a request that calls it: retries, caches and fallbacks soften each hop."""
LEAST_IMPACT = 0.001
"""A service of which fewer than one request in a thousand is at risk is not walked on from, and not told."""
MAX_HOPS = 16


def blast_radius(
    graph: CallGraph, origin: Sequence[str], observed: Mapping[str, Degradation] | None = None
) -> BlastRadiusReport:
    """Return who depends on a service, or on an edge, and how much.

    Args:
        graph: calls over a range in which all was as usual.
        origin: ``(service,)``, or ``(caller, callee)`` for an edge.
        observed: what was seen to degrade, by service.

    Raises:
        KeyError: the graph does not hold the origin.
    """
    seen = observed or {}
    number = {service: i for i, service in enumerate(graph.services)}
    start = [number[service] for service in origin]
    requests = _requests(graph)
    dependence = np.minimum(1.0, graph.calls / np.maximum(requests[graph.src], 1))
    walk = _Walk(graph, dependence)
    if len(start) == 1:
        walk.begin(start[0])
    else:
        walk.begin_edge(start[0], start[1])
    is_cut = walk.go_on()
    external = np.array([is_external(service) for service in graph.services], dtype=bool)
    called_inside = np.zeros(len(graph.services), dtype=bool)
    called_inside[graph.dst[~external[graph.src]]] = True
    order = sorted(walk.reached(), key=lambda n: (-walk.impact[n], graph.services[n]))
    impacted = tuple(
        _service(graph.services, walk, n, int(requests[n]), not called_inside[n] and not external[n], seen)
        for n in order
    )
    explained = {graph.services[n] for n in order} | set(origin)
    others = sorted((s for name, s in seen.items() if name not in explained), key=lambda s: (-s.score, s.service))
    notes = [f"Callers more than {MAX_HOPS} calls away were not followed."] if is_cut else []
    return BlastRadiusReport(
        origin=tuple(origin),
        impacted=impacted,
        entry_points=tuple(one.service for one in impacted if one.is_entry_point),
        unexplained=tuple(others),
        notes=tuple(notes),
    )


class _Walk:
    """Impact found so far.

    Shapes: impact, hops, via: ``(N,)``; hops is -1 where the walk has not come, via the callee most impact came from.
    """

    def __init__(self, graph: CallGraph, dependence: Floats) -> None:
        self._graph, self._dependence = graph, dependence
        size = len(graph.services)
        self.impact = np.zeros(size)
        self.hops = np.full(size, -1, dtype=np.int64)
        self.via = np.full(size, -1, dtype=np.int64)
        self._origin: set[int] = set()
        self._frontier: Ints = np.empty(0, dtype=np.int64)

    def begin(self, service: int) -> None:
        """Start at a service that fails every request."""
        self._origin = {service}
        self.impact[service], self.hops[service] = 1.0, 0
        self._frontier = np.array([service])

    def begin_edge(self, caller: int, callee: int) -> None:
        """Start at an edge: its caller is hit as far as it depends on the callee, other callers of that are not."""
        rows = np.flatnonzero((self._graph.src == caller) & (self._graph.dst == callee))
        if not len(rows):
            raise KeyError((self._graph.services[caller], self._graph.services[callee]))
        self._origin = {callee}
        self.hops[callee] = 0
        self.impact[caller], self.hops[caller] = self._dependence[rows].max() * DECAY, 1
        self.via[caller] = callee
        self._frontier = np.array([caller])

    def go_on(self) -> bool:
        """Walk until nothing more is reached; return whether the bound on hops ended it."""
        src, dst = self._graph.src, self._graph.dst
        hop = int(self.hops[self._frontier].max())
        while len(self._frontier):
            if hop >= MAX_HOPS:
                return True
            hop += 1
            on_frontier = np.zeros(len(self.impact), dtype=bool)
            on_frontier[self._frontier] = self.impact[self._frontier] >= LEAST_IMPACT
            rows = np.flatnonzero(on_frontier[dst] & (self.hops[src] < 0))
            part = self._dependence[rows] * DECAY * self.impact[dst[rows]]
            spared = np.zeros(len(self.impact))
            np.add.at(spared, src[rows], np.log1p(-part))  # part <= DECAY < 1
            callers = np.unique(src[rows])
            self.impact[callers] = -np.expm1(spared[callers])
            self.hops[callers] = hop
            order = np.lexsort((dst[rows], -part))[::-1]  # the last assignment wins: the largest part, then the name
            self.via[src[rows[order]]] = dst[rows[order]]
            self._frontier = callers
        return False

    def reached(self) -> list[int]:
        """Return the services with an impact worth telling, the origin left out."""
        found = np.flatnonzero((self.hops > 0) & (self.impact >= LEAST_IMPACT)).tolist()
        return [number for number in found if number not in self._origin]

    def path(self, service: int) -> list[int]:
        """Return the services from this one to the origin."""
        found = [service]
        while self.via[found[-1]] >= 0:
            found.append(int(self.via[found[-1]]))
        return found


def _requests(graph: CallGraph) -> Ints:
    """Return how many calls each service received, or made where nobody calls it, ``(N,)``."""
    received = np.zeros(len(graph.services), dtype=np.int64)
    made = np.zeros(len(graph.services), dtype=np.int64)
    np.add.at(received, graph.dst, graph.calls)
    np.add.at(made, graph.src, graph.calls)
    return np.where(received > 0, received, made)


def _service(
    names: list[str], walk: _Walk, number: int, requests: int, is_entry_point: bool, seen: Mapping[str, Degradation]
) -> ImpactedService:
    impact = float(f"{walk.impact[number]:.6g}")
    found = seen.get(names[number])
    return ImpactedService(
        service=names[number],
        impact=impact,
        hops=int(walk.hops[number]),
        requests=requests,
        requests_at_risk=round(impact * requests),
        path=tuple(names[n] for n in walk.path(number)),
        is_entry_point=is_entry_point,
        status="at_risk" if found is None else "hurt",
        observed="" if found is None else found.sentence,
    )
