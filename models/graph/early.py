"""Early detections: what no record still to come can undo is told before its window closes. Pure, deterministic."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.declared import judge_declared
from models.graph.border import may_open
from models.graph.lane import IntColumn, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.output import Output
from models.graph.recurring import as_expected
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef
from schemas.flow import SIDE_SERVER

_BEYOND_ANY_BURST = 1 << 40


def raise_early(
    lane: LaneState,
    output: Output,
    numbers: IntColumn,
    new: list[int],
    codes: IntColumn,
    times: IntColumn,
    index: IntColumn,
    columns: dict[str, IntColumn],
    unsent: npt.NDArray[np.bool_] | None,
) -> None:
    """Raise what no record still to come can undo: unknown edges, bursts far beyond any limit still possible."""
    tenant_of = lane.registry.edge.array["tenant"]
    vouched = lane.registry.edge.array["vouched"]
    candidates = [number for number in new if not vouched[number] and lane.fires_early(int(tenant_of[number]))]
    at_edge = numbers[codes] if candidates else codes[:0]  # several codes can stand for one edge
    order = np.argsort(at_edge, kind="stable")
    starts = np.searchsorted(at_edge[order], candidates)
    ends = np.searchsorted(at_edge[order], candidates, side="right")
    for number, start, end in zip(candidates, starts.tolist(), ends.tolist(), strict=True):
        tenant = int(tenant_of[number])
        rows = order[start:end]
        rows = rows if unsent is None else rows[~unsent[rows]]
        if not len(rows):
            continue
        at = rows[np.argmin(times[rows])]
        if lane.logic < PRODUCERS_OWN or not _is_from_outside(lane, number):
            if lane.logic < PRODUCERS_OWN or not _may_be_habit(lane, number, int(index[at])):
                facts = lane.facts(number, int(columns["calls"][rows].sum()), int(times[at]))
                _raise_new(lane, output, tenant, facts, int(index[at]), int(times[at]))
            _early_fan_out(lane, output, tenant, number, int(index[at]), int(times[at]))
    if lane.policies_of and new:
        _early_violations(lane, output, numbers, new, codes, times, index, columns, unsent)
    denied = columns["denied"] > 0
    if denied.any():
        # Certain are refusals that the client reported on time: its report is the one chosen, whatever still comes.
        assert lane.closed_index is not None
        denied &= (columns["side"] != SIDE_SERVER) & (times >= lane.closed_index * lane.config.window_ms)
    if denied.any():
        _early_denied(lane, output, numbers, codes[denied], times[denied], index[denied], columns["denied"][denied])


def _raise_new(
    lane: LaneState, output: Output, tenant: int, facts: structural.EdgeFacts, index: int, time_ms: int
) -> None:
    scope = lane.scope(lane.registry.tenants[tenant])
    for detection in structural.judge_new([facts]):
        event = lane.tenants[tenant].book.raise_early(scope, index, detection, time_ms)
        if event is not None:
            output.events.append(event)


def _early_violations(
    lane: LaneState,
    output: Output,
    numbers: IntColumn,
    new: list[int],
    codes: IntColumn,
    times: IntColumn,
    index: IntColumn,
    columns: dict[str, IntColumn],
    unsent: npt.NDArray[np.bool_] | None,
) -> None:
    """Raise new edges that a declared rule denies: calls that the client reported on time count, whatever still comes.

    What a known edge violates waits for its window's close: to ask the rules of all edges of a record costs too much.
    """
    edge, registry = lane.registry.edge.array, lane.registry
    rules: dict[int, str] = {}
    for number in new:
        identity, tenant = registry.identities[number], int(edge["tenant"][number])
        policies = lane.policies_of.get(registry.tenants[tenant])
        if policies is None or identity is None or _is_from_outside(lane, number) or not lane.fires_early(tenant):
            continue
        rule = policies.violated_by(identity)
        if rule is not None:
            rules[number] = rule
    if not rules:
        return
    assert lane.closed_index is not None
    at_edge = numbers[codes]
    certain = (columns["side"] != SIDE_SERVER) & (times >= lane.closed_index * lane.config.window_ms)
    certain &= (columns["calls"] > 0) & np.isin(at_edge, list(rules))
    if unsent is not None:
        certain &= ~unsent
    for number, rule in rules.items():
        rows = np.flatnonzero(certain & (at_edge == number))
        if not len(rows):
            continue
        at = rows[np.argmin(times[rows])]
        calls = int(columns["calls"][rows[index[rows] == index[at]]].sum())
        name, state = registry.tenants[int(edge["tenant"][number])], lane.tenants[int(edge["tenant"][number])]
        least = lane.detection(name).policy_min_calls
        if not least or calls < least:
            continue
        identity = registry.identities[number]
        assert identity is not None
        subject, ref = EdgeRef(*identity[1:3]), EdgeRef(*identity[1:])
        time_ms, counts = int(times[at]), {f"policy:{rule}": calls}
        detection = judge_declared(DriftKind.POLICY_VIOLATION, subject, [ref], counts, time_ms, state.closed_windows)
        event = state.book.raise_early(lane.scope(name), int(index[at]), detection, time_ms)
        if event is not None:
            output.events.append(event)


def _is_from_outside(lane: LaneState, number: int) -> bool:
    """Say whether an edge's caller is outside: then it is news only if answered, which the closed window shows."""
    return bool(lane.registry.service.array["external"][lane.registry.edge.array["src"][number]])


def _may_be_habit(lane: LaneState, number: int, index: int) -> bool:
    """Say whether calling strangers outside may be the caller's habit once all windows up to this one have closed."""
    assert lane.closed_index is not None
    edge, external = lane.registry.edge.array, lane.registry.service.array["external"]
    return bool(external[edge["dst"][number]]) and may_open(lane, int(edge["src"][number]), index - lane.closed_index)


def _early_fan_out(lane: LaneState, output: Output, tenant: int, number: int, index: int, time_ms: int) -> None:
    edge, service = lane.registry.edge.array, lane.registry.service.array
    src = int(edge["src"][number])
    if not service["known"][src]:
        return
    peers = lane.window(index).new_peers.setdefault(src, set())
    peers.add(int(edge["dst"][number]))
    config = lane.detection(lane.registry.tenants[tenant])
    usual = int(service["fan_out_max"][src])
    if len(peers) < _certain_limit(lane, index, structural.fan_out_limit, config, usual):
        return
    names = lane.registry.services
    refs = tuple(sorted(EdgeRef(names[src][1], names[peer][1]) for peer in peers))
    facts = structural.SourceFacts(
        names[src][1], len(peers), usual, refs, len(refs), time_ms, lane.tenants[tenant].closed_windows
    )
    _raise_burst(lane, output, tenant, DriftKind.FAN_OUT_BURST, facts, index, time_ms)


def _certain_limit(
    lane: LaneState, index: int, limit: Callable[[DetectionConfig, int], float], config: DetectionConfig, usual: int
) -> float:
    """Return the limit that a burst of window ``index`` has to reach whatever is still to come.

    Earlier windows that have not closed, rows or not, may raise the usual maximum: one step each, up to the limit.
    """
    assert lane.closed_index is not None
    worst = usual
    for _ in range(index - lane.closed_index):
        worst = int(limit(config, worst))
        if worst > _BEYOND_ANY_BURST:
            break
    return limit(config, worst)


def _early_denied(
    lane: LaneState,
    output: Output,
    numbers: IntColumn,
    codes: IntColumn,
    times: IntColumn,
    index: IntColumn,
    denied: IntColumn,
) -> None:
    edge, service = lane.registry.edge.array, lane.registry.service.array
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    if lane.logic >= PRODUCERS_OWN:
        ours = ~service["external"][edge["src"][numbers[codes]]].astype(bool)
        codes, times, index, denied = codes[ours], times[ours], index[ours], denied[ours]
    sources = edge["src"][numbers[codes]].tolist()
    for src, at, count, time_ms in zip(sources, index.tolist(), denied.tolist(), times.tolist(), strict=True):
        before, first_ms = sums.get((src, at), (0, time_ms))
        sums[src, at] = before + count, min(first_ms, time_ms)
    for (src, at), (count, time_ms) in sums.items():
        tenant = int(service["tenant"][src])
        if not service["known"][src] or not lane.fires_early(tenant):
            continue
        window = lane.window(at)
        total = window.denied_by_source[src] = window.denied_by_source.get(src, 0) + count
        config = lane.detection(lane.registry.tenants[tenant])
        usual = int(service["denied_max"][src])
        if total < _certain_limit(lane, at, structural.denied_limit, config, usual):
            continue
        name = lane.registry.services[src][1]
        facts = structural.SourceFacts(name, total, usual, (), 0, time_ms, lane.tenants[tenant].closed_windows)
        _raise_burst(lane, output, tenant, DriftKind.DENIED_BURST, facts, at, time_ms)


def _raise_burst(
    lane: LaneState,
    output: Output,
    tenant: int,
    kind: DriftKind,
    facts: structural.SourceFacts,
    index: int,
    time_ms: int,
) -> None:
    scope = lane.scope(lane.registry.tenants[tenant])
    detection = as_expected(lane, tenant, index, structural.judge_source(kind, facts))
    event = lane.tenants[tenant].book.raise_early(scope, index, detection, time_ms)
    if event is not None:
        output.events.append(event)
