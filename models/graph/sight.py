"""What a lane has seen so far, closed window or not: services, pairs of services, edges. Pure."""

from models.drift.detection import Detection
from models.graph.registry import UNSEEN_MS, Registry
from schemas.drift import DriftKind

_OF_A_PAIR = frozenset({DriftKind.NEW_EDGE, DriftKind.NEW_EXTERNAL_EGRESS})
UNKNOWN_MS = -1


def has_service(registry: Registry, tenant: int, name: str) -> bool:
    """Say whether a lane has seen a service of a tenant (its number there)."""
    number = registry.service_number.get((tenant, name))
    return number is not None and (
        bool(registry.service.array["known"][number]) or number in registry.unsettled.services
    )


def has_pair(registry: Registry, tenant: int, src: str, dst: str) -> bool:
    """Say whether a lane has seen an edge of any port between two services."""
    ends = registry.service_number.get((tenant, src)), registry.service_number.get((tenant, dst))
    if ends[0] is None or ends[1] is None:
        return False
    pair = ends[0] << 32 | ends[1]
    return pair in registry.known_pairs or pair in registry.unsettled.pairs


def first_sight_ms(registry: Registry, tenant: str, detection: Detection) -> int | None:
    """Return the event time of a lane's first record of what a detection is about; ``None`` if it has not seen it.

    ``UNKNOWN_MS`` where there is no such time: of a service alone, of a pair that was seen on other ports than those
    listed, of an edge from outside whose window is open.
    """
    number = registry.tenant_number.get(tenant)
    if number is None:
        return None
    if not detection.dst:
        return UNKNOWN_MS if has_service(registry, number, detection.src) else None
    edges = [(tenant, detection.src, detection.dst, detection.port, detection.protocol)]
    is_of_a_pair = detection.kind in _OF_A_PAIR
    if is_of_a_pair:
        edges = [(tenant, ref.src, ref.dst, ref.port, ref.protocol) for ref in detection.edges]
    numbers = [registry.edge_number[identity] for identity in edges if registry.has_edge(identity)]
    if not numbers:
        is_seen = is_of_a_pair and has_pair(registry, number, detection.src, detection.dst)
        return UNKNOWN_MS if is_seen else None
    columns = registry.edge.array
    # A scan's edge is forgotten when its window closes and may come again: its time is none to rely on.
    dated = [n for n in numbers if columns["known"][n] or not registry.service.array["external"][columns["src"][n]]]
    first_ms = min((int(columns["first_seen_ms"][n]) for n in dated), default=UNSEEN_MS)
    return first_ms if first_ms < UNSEEN_MS else UNKNOWN_MS
