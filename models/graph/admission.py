"""Bounded cardinality: which new edges of a tenant get a number, which are summed in ``overflow``. Pure.

Known edges always stay. Beyond the cap the new edges with the least keyed hash are kept: which ones does not depend on
the order of arrival within a window.
"""

import heapq
from dataclasses import dataclass, field

from models.graph.registry import Registry
from models.graph.window import WindowTable
from schemas.ids import stable_hash64
from schemas.tenant_log import EdgeIdentity

_OVERFLOW = -2
"""Protocol number that no record can have: marks a tenant's overflow edge."""


def overflow_identity(tenant: str) -> EdgeIdentity:
    """Return the identity of the row that sums what is beyond a tenant's cap."""
    return (tenant, "", "", -1, _OVERFLOW)


def is_overflow(identity: EdgeIdentity) -> bool:
    """Say whether this is a tenant's overflow row."""
    return identity[4] == _OVERFLOW


@dataclass(slots=True)
class TenantEdges:
    """How many edges of a tenant have a number, and the candidates that could lose theirs.

    Attributes:
        quarantine: numbers pushed out, each with the last window that was open then: histograms still hold them.
    """

    count: int = 0
    overflow: int | None = None
    candidates: list[tuple[int, int, EdgeIdentity]] | None = None  # max-heap on the hash, built when the cap is reached
    quarantine: list[tuple[int, int]] = field(default_factory=list)


def admit(
    registry: Registry,
    tenant: TenantEdges,
    identity: EdgeIdentity,
    cap: int,
    windows: dict[int, WindowTable],
) -> tuple[int, bool]:
    """Return ``(edge number, is_new)`` for an identity without a number; the overflow's number if there is no room."""
    if tenant.count < cap:
        tenant.count += 1
        number = registry.add_edge(identity)
        if tenant.candidates is not None:
            heapq.heappush(tenant.candidates, (-_rank(identity), number, identity))
        return number, True
    if tenant.overflow is None:
        tenant.overflow = registry.add_edge(overflow_identity(identity[0]))
    if tenant.candidates is None:
        tenant.candidates = _candidates(registry, identity[0])
    rank = _rank(identity)
    while tenant.candidates and registry.identities[tenant.candidates[0][1]] != tenant.candidates[0][2]:
        heapq.heappop(tenant.candidates)  # its edge is gone
    if not tenant.candidates or rank >= -tenant.candidates[0][0]:
        return tenant.overflow, False
    _, evicted, _ = heapq.heappop(tenant.candidates)
    for window in windows.values():
        window.move(evicted, tenant.overflow, registry.edge.capacity)
    registry.forget(evicted)
    tenant.quarantine.append((evicted, max(windows, default=0)))
    number = registry.add_edge(identity)
    heapq.heappush(tenant.candidates, (-rank, number, identity))
    return number, True


def _rank(identity: EdgeIdentity) -> int:
    return stable_hash64("admit", *identity)


def _candidates(registry: Registry, tenant: str) -> list[tuple[int, int, EdgeIdentity]]:
    known = registry.edge.array["known"]
    heap = [
        (-_rank(identity), number, identity)
        for number, identity in enumerate(registry.identities)
        if identity is not None and identity[0] == tenant and not known[number] and not is_overflow(identity)
    ]
    heapq.heapify(heap)
    return heap
