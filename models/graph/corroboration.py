"""Lanes of one tenant side by side: what another live lane has is no news here, what it still sees is not gone. Pure.

All lanes of a tenant are in one partition of the log, so "another lane has it" means: in the log, up to here. What is
found out of a new edge is fixed when the edge gets its number; the early judgement and the close then say the same.
Beyond a tenant's cardinality cap, where an edge may lose its number and get it again, it is found out anew each time.

Lanes that are not live (replays) neither vouch nor are vouched for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from models.drift.detection import Detection
from models.drift.structural import EdgeFacts
from models.graph.lane import LAPSE_MS, LIVE, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import NEVER, VOUCHED_EDGE, VOUCHED_PAIR, port_key
from models.graph.sight import has_pair, has_service
from schemas.tenant_log import EdgeIdentity

BEHIND_MS = 3_600_000
"""A lane that is further behind does not say that an edge is still there."""


def beside(lanes: Mapping[str, LaneState], lane: LaneState) -> tuple[LaneState, ...]:
    """Return the other live lanes, by name; none to a lane that is not live or judged by an older logic."""
    if len(lanes) < 2 or lane.logic < PRODUCERS_OWN or lane.config.mode != LIVE:
        return ()
    return tuple(lanes[name] for name in sorted(lanes) if lanes[name] is not lane and lanes[name].config.mode == LIVE)


def note(lane: LaneState, number: int) -> None:
    """Fix what other lanes have of an edge that has just got its number: the edge, its pair, its services.

    Not of an edge from outside, which may be a scan's: of those only what is known counts, when windows close.
    """
    registry = lane.registry
    if not lane.beside or registry.service.array["external"][registry.edge.array["src"][number]]:
        return
    identity = registry.identities[number]
    assert identity is not None
    tenant, src_name, dst_name, _, _ = identity
    others = [(other.registry, of_tenant) for other, of_tenant in _vouching(lane, tenant)]
    edge, service, unsettled = registry.edge.array, registry.service.array, registry.unsettled
    src, dst = int(edge["src"][number]), int(edge["dst"][number])
    for place, name in ((src, src_name), (dst, dst_name)):
        if not service["known"][place] and unsettled.services[place] == 1:
            service["vouched"][place] = any(has_service(other, of_tenant, name) for other, of_tenant in others)
            registry.touch(np.array([number]))
    vouched = VOUCHED_EDGE if any(other.has_edge(identity) for other, _ in others) else 0
    pair = src << 32 | dst
    if pair not in registry.known_pairs:
        is_first = unsettled.pairs[pair] == 1
        if is_first and any(has_pair(other, of_tenant, src_name, dst_name) for other, of_tenant in others):
            unsettled.vouched.add(pair)
        vouched |= VOUCHED_PAIR if pair in unsettled.vouched else 0
    edge["vouched"][number] = vouched


def news_from_outside(lane: LaneState, tenant: str, facts: EdgeFacts) -> EdgeFacts | None:
    """Return what to judge of an unknown edge from outside by what other lanes know now; ``None``: it is no news.

    The lane whose window closes first tells such an edge, for only then it is certain that it is no scan. The service
    that is called is another lane's news if that one saw it first by a call from inside, and may have told it early.
    """
    ref = facts.ref
    identity = (tenant, ref.src, ref.dst, ref.port, ref.protocol)
    dst_known = facts.dst_known
    service = lane.registry.service_number[lane.registry.tenant_number[tenant], ref.dst]
    is_ours = service in lane.registry.unsettled.services  # else facts say that it is vouched for
    for other, of_tenant in _vouching(lane, tenant):
        registry = other.registry
        number = registry.edge_number.get(identity)
        if number is not None and registry.edge.array["known"][number]:
            return None
        ends = (registry.service_number.get((of_tenant, name)) for name in (ref.src, ref.dst))
        src, dst = ends
        if src is not None and dst is not None and src << 32 | dst in registry.known_pairs and not facts.pair_known:
            return None
        if dst is not None:
            is_theirs = dst in registry.unsettled.services and not is_ours
            dst_known = dst_known or is_theirs or bool(registry.service.array["known"][dst])
    return replace(facts, dst_known=dst_known)


def is_port_known_elsewhere(lane: LaneState, service: int, direction: int, port: int, protocol: int) -> bool:
    """Say whether another lane knows a port across the border of a service (a number here)."""
    tenant, name = lane.registry.services[service]
    for other, of_tenant in _vouching(lane, lane.registry.tenants[tenant]):
        number = other.registry.service_number.get((of_tenant, name))
        if number is not None:
            key = port_key(np.array([number]), direction, np.array([port]), np.array([protocol]))
            if int(key[0]) in other.registry.known_ports:
                return True
    return False


def _vouching(lane: LaneState, tenant: str) -> Iterator[tuple[LaneState, int]]:
    """Yield other lanes whose knowledge of a tenant counts, with the tenant's number there."""
    for other in lane.beside:
        number = other.registry.tenant_number.get(tenant)
        state = None if number is None else other.tenants.get(number)
        if number is None or state is None or (state.is_newcomer and not other.has_learned(number)):
            continue
        if not other.is_behind(lane.closed_ms, LAPSE_MS):
            yield other, number


def is_still_seen(lane: LaneState, identity: EdgeIdentity, index: int) -> bool:
    """Say whether another lane shows an edge that ``lane`` has missed for so long that it would be called removed.

    It does if the edge has rows in a window that is open there, or if by that lane's own windows, which may be behind,
    it is silent no longer than it usually is.
    """
    now_ms = (index + 1) * lane.config.window_ms
    return any(_shows(other, identity) for other in lane.beside if not other.is_behind(now_ms, BEHIND_MS))


def _shows(other: LaneState, identity: EdgeIdentity) -> bool:
    number = other.registry.edge_number.get(identity)
    if number is None:
        return False
    if any(window.has_rows_of(number) for window in other.windows.values()):
        return True
    edge, closed_to = other.registry.edge.array, other.closed_index
    last = int(edge["last_index"][number])
    return closed_to is not None and last != NEVER and closed_to - 1 - last <= int(edge["gap_max"][number])


def tell_removed(lane: LaneState, identity: EdgeIdentity) -> None:
    """Note in the other lanes that an edge's removal is told: one lane does so."""
    for other in lane.beside:
        number = other.registry.edge_number.get(identity)
        if number is not None and other.registry.edge.array["known"][number]:
            other.registry.edge.array["gone"][number] = True
            other.registry.touch(np.array([number]))


def is_back_elsewhere(lane: LaneState, tenant: str, detection: Detection) -> bool:
    """Say whether another lane has seen a removed edge since that was told, and after its silence began."""
    identity = (tenant, detection.src, detection.dst, detection.port, detection.protocol)
    for other in lane.beside:
        number = other.registry.edge_number.get(identity)
        if number is None:
            continue
        edge = other.registry.edge.array
        seen_to_ms = (int(edge["last_index"][number]) + 1) * other.config.window_ms
        if edge["known"][number] and not edge["gone"][number] and seen_to_ms > detection.first_seen_ms:
            return True
    return False


def peers_elsewhere(lane: LaneState, src: int, start_ms: int) -> set[str]:
    """Return the services that another lane knew ``src`` (a number here) to call before ``start_ms``, by event time."""
    tenant, name = lane.registry.services[src]
    found: set[str] = set()
    for other, of_tenant in _vouching(lane, lane.registry.tenants[tenant]):
        registry = other.registry
        number = registry.service_number.get((of_tenant, name))
        if number is None:
            continue
        edge, size = registry.edge.array, len(registry)
        before = (edge["src"][:size] == number) & edge["known"][:size] & (edge["first_seen_ms"][:size] < start_ms)
        found.update(registry.services[dst][1] for dst in np.unique(edge["dst"][:size][before]).tolist())
    return found
