"""A closed window's edges against what they mean: exposed data stores, namespaces that newly meet, rules broken. Pure.

Judged when the window closes: what is known of other edges of the window, and whether a caller from outside was
answered, is settled then. Only what a new edge violates is told before (models/graph/early.py).
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.drift.declared import DATASTORE_PORTS, judge_declared, namespace_of
from models.drift.detection import Detection
from models.graph.border import Border
from models.graph.lane import IntColumn, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import INBOUND, port_key
from schemas.drift import DriftKind, EdgeRef
from schemas.graph import MEASURE_INDEX

Mask = npt.NDArray[np.bool_]
_TCP, _UNKNOWN = 6, -1


def judge_meaning(
    lane: LaneState,
    index: int,
    present: IntColumn,
    chosen: IntColumn,
    border: Border,
    learned: Mask,
    detections: dict[int, list[Detection]],
) -> None:
    """Report what a window's edges should not be; learning tenants only teach.

    Shapes:
        present: ``(P,)`` edge numbers, before they are known. chosen: ``(M, P)``. learned: ``(tenants,)``.
    """
    if lane.logic < PRODUCERS_OWN or not len(present):
        return
    edge = lane.registry.edge.array
    calls = chosen[MEASURE_INDEX["calls"]] + chosen[MEASURE_INDEX["late_calls"]]
    judged = learned[edge["tenant"][present]] & ~border.stray & (calls > 0)
    news = judged & ~edge["known"][present] & (edge["vouched"][present] == 0)
    _exposed(lane, index, present, calls, np.flatnonzero(news & border.inbound & ~border.unanswered), detections)
    _crossing(lane, index, present, calls, np.flatnonzero(news & ~border.inbound & ~border.outbound), detections)
    _violating(lane, index, present, calls, np.flatnonzero(judged), detections)


def _report(
    lane: LaneState,
    index: int,
    kind: DriftKind,
    subject: EdgeRef,
    numbers: list[int],
    calls: Mapping[str, int],
    detections: dict[int, list[Detection]],
) -> None:
    edge = lane.registry.edge.array
    tenant = int(edge["tenant"][numbers[0]])
    refs = [EdgeRef(*i[1:]) for i in (lane.registry.identities[number] for number in numbers) if i is not None]
    history = lane.tenant_state(tenant).closed_windows
    first_ms = index * lane.config.window_ms
    detections[tenant].append(judge_declared(kind, subject, refs, calls, first_ms, history))


def _exposed(
    lane: LaneState, index: int, present: IntColumn, calls: IntColumn, rows: IntColumn, out: dict[int, list[Detection]]
) -> None:
    """Report data stores that newly answer callers outside, each port of a service once."""
    edge, services = lane.registry.edge.array, lane.registry.services
    numbers = present[rows]
    is_store = np.isin(edge["port"][numbers], list(DATASTORE_PORTS)) & np.isin(
        edge["protocol"][numbers], [_TCP, _UNKNOWN]
    )
    rows, numbers = rows[is_store], numbers[is_store]
    keys = port_key(edge["dst"][numbers], INBOUND, edge["port"][numbers], edge["protocol"][numbers])
    groups: dict[int, list[int]] = defaultdict(list)
    for row, key in zip(rows.tolist(), keys.tolist(), strict=True):
        if key not in lane.registry.known_ports:
            groups[key].append(row)
    for members in groups.values():
        mine = present[members]
        port, protocol = int(edge["port"][mine[0]]), int(edge["protocol"][mine[0]])
        total, config = int(calls[members].sum()), lane.detection(lane.registry.tenants[int(edge["tenant"][mine[0]])])
        if config.exposed_min_calls and total >= config.exposed_min_calls:
            subject = EdgeRef("", services[int(edge["dst"][mine[0]])][1], port, protocol)
            _report(lane, index, DriftKind.EXPOSED_DATASTORE, subject, mine.tolist(), {"first-seen": total}, out)


def _crossing(
    lane: LaneState, index: int, present: IntColumn, calls: IntColumn, rows: IntColumn, out: dict[int, list[Detection]]
) -> None:
    """Report namespaces of which one calls the other for the first time; a new namespace is told by its services."""
    edge, services = lane.registry.edge.array, lane.registry.services
    groups: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for row in rows.tolist():
        number = int(present[row])
        tenant = int(edge["tenant"][number])
        src, dst = (namespace_of(services[int(edge[end][number])][1]) for end in ("src", "dst"))
        if src and dst and src != dst and lane.tenant_state(tenant).settling is None:
            groups[tenant, src, dst].append(row)
    if not groups:
        return
    known, inhabited = _known_namespaces(lane, {tenant for tenant, _, _ in groups})
    for (tenant, src, dst), members in sorted(groups.items()):
        total, config = int(calls[members].sum()), lane.detection(lane.registry.tenants[tenant])
        is_new = (tenant, src, dst) not in known and {(tenant, src), (tenant, dst)} <= inhabited
        if is_new and config.crossing_min_calls and total >= config.crossing_min_calls:
            subject = EdgeRef(f"{src}/*", f"{dst}/*")
            _report(
                lane, index, DriftKind.CROSS_NAMESPACE, subject, present[members].tolist(), {"first-seen": total}, out
            )


def _known_namespaces(lane: LaneState, tenants: set[int]) -> tuple[set[tuple[int, str, str]], set[tuple[int, str]]]:
    """Return which namespaces are known to call which, and which have known services, as ``(tenant, ...)``."""
    service, names = lane.registry.service.array, lane.registry.services
    known = np.flatnonzero(service["known"][: len(names)] & np.isin(service["tenant"][: len(names)], list(tenants)))
    spaces = {number: namespace_of(names[number][1]) for number in known.tolist()}
    pairs = {
        (names[src][0], spaces[src], spaces[dst])
        for src, dst in ((pair >> 32, pair & 0xFFFFFFFF) for pair in lane.registry.known_pairs)
        if src in spaces and dst in spaces
    }
    return pairs, {(names[number][0], space) for number, space in spaces.items()}


def _violating(
    lane: LaneState, index: int, present: IntColumn, calls: IntColumn, rows: IntColumn, out: dict[int, list[Detection]]
) -> None:
    """Report calls that a declared rule denies, each pair of services and rule once."""
    if not lane.policies_of:
        return
    edge, registry = lane.registry.edge.array, lane.registry
    groups: dict[tuple[int, str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, tenant in enumerate(registry.tenants):
        policies = lane.policies_of.get(tenant)
        if policies is None:
            continue
        for row in rows[edge["tenant"][present[rows]] == number].tolist():
            identity = registry.identities[int(present[row])]
            rule = None if identity is None else policies.violated_by(identity)
            if identity is not None and rule is not None:
                groups[number, identity[1], identity[2]][f"policy:{rule}"].append(row)
    for (owner, src, dst), members in sorted(groups.items()):
        counts = {rule: int(calls[of_rule].sum()) for rule, of_rule in members.items()}
        least = lane.detection(registry.tenants[owner]).policy_min_calls
        if least and sum(counts.values()) >= least:
            numbers = present[sorted(row for of_rule in members.values() for row in of_rule)].tolist()
            _report(lane, index, DriftKind.POLICY_VIOLATION, EdgeRef(src, dst), numbers, counts, out)
