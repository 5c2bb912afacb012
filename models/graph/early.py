"""Early detections: what no record still to come can undo is told before its window closes. Pure, deterministic."""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class FoldedRows:
    """Rows of one record, just folded, and its edges that may be news.

    Shapes:
        numbers: edge in the registry by code. codes, times, index (of the window), each of ``columns``: ``(R,)``.
        unsent: rows that tell of no packet of the caller's, ``(R,)``; ``None``: there are none.

    Attributes:
        new: edges that these rows are the first to tell of.
    """

    numbers: IntColumn
    new: list[int]
    codes: IntColumn
    times: IntColumn
    index: IntColumn
    columns: dict[str, IntColumn]
    unsent: npt.NDArray[np.bool_] | None

    def certain(self, since_ms: int) -> npt.NDArray[np.bool_]:
        """Return which rows the client reported on time: its report is the one chosen, whatever still comes."""
        told: npt.NDArray[np.bool_] = (self.columns["side"] != SIDE_SERVER) & (self.times >= since_ms)
        return told


def raise_early(lane: LaneState, output: Output, rows: FoldedRows) -> None:
    """Raise what no record still to come can undo: unknown edges, bursts far beyond any limit still possible."""
    _early_edges(lane, output, rows)
    if lane.policies_of and rows.new:
        _early_violations(lane, output, rows)
    denied = rows.columns["denied"] > 0
    if denied.any():
        denied &= rows.certain(_open_since_ms(lane))
    if denied.any():
        _early_denied(lane, output, rows, denied)


def _open_since_ms(lane: LaneState) -> int:
    assert lane.closed_index is not None
    return lane.closed_index * lane.config.window_ms


def _early_edges(lane: LaneState, output: Output, rows: FoldedRows) -> None:
    tenant_of = lane.registry.edge.array["tenant"]
    vouched = lane.registry.edge.array["vouched"]
    candidates = [number for number in rows.new if not vouched[number] and lane.fires_early(int(tenant_of[number]))]
    if not candidates:
        return
    at_edge = rows.numbers[rows.codes]  # several codes can stand for one edge
    order = np.argsort(at_edge, kind="stable")
    starts = np.searchsorted(at_edge[order], candidates)
    ends = np.searchsorted(at_edge[order], candidates, side="right")
    for number, start, end in zip(candidates, starts.tolist(), ends.tolist(), strict=True):
        own = order[start:end]
        own = own if rows.unsent is None else own[~rows.unsent[own]]
        if not len(own):
            continue
        tenant, at = int(tenant_of[number]), own[np.argmin(rows.times[own])]
        index, time_ms = int(rows.index[at]), int(rows.times[at])
        if lane.logic < PRODUCERS_OWN or not _is_from_outside(lane, number):
            if lane.logic < PRODUCERS_OWN or not _may_be_habit(lane, number, index):
                facts = lane.facts(number, int(rows.columns["calls"][own].sum()), time_ms)
                _raise_new(lane, output, tenant, facts, index, time_ms)
            _early_fan_out(lane, output, tenant, number, index, time_ms)


def _raise_new(
    lane: LaneState, output: Output, tenant: int, facts: structural.EdgeFacts, index: int, time_ms: int
) -> None:
    scope = lane.scope(lane.registry.tenants[tenant])
    for detection in structural.judge_new([facts]):
        event = lane.tenants[tenant].book.raise_early(scope, index, detection, time_ms)
        if event is not None:
            output.events.append(event)


def _early_violations(lane: LaneState, output: Output, rows: FoldedRows) -> None:
    """Raise new edges that a declared rule denies: calls that the client reported on time count, whatever still comes.

    What a known edge violates waits for its window's close: to ask the rules of all edges of a record costs too much.
    """
    rules = _violated_rules(lane, rows.new)
    if not rules:
        return
    at_edge = rows.numbers[rows.codes]
    certain = rows.certain(_open_since_ms(lane)) & (rows.columns["calls"] > 0) & np.isin(at_edge, list(rules))
    if rows.unsent is not None:
        certain &= ~rows.unsent
    for number, rule in rules.items():
        own = np.flatnonzero(certain & (at_edge == number))
        if not len(own):
            continue
        at = own[np.argmin(rows.times[own])]
        calls = int(rows.columns["calls"][own[rows.index[own] == rows.index[at]]].sum())
        _raise_violation(lane, output, number, rule, calls, int(rows.index[at]), int(rows.times[at]))


def _violated_rules(lane: LaneState, numbers: list[int]) -> dict[int, str]:
    """Return by edge the rule that denies it, where violations of its tenant may be told early."""
    registry, tenant_of = lane.registry, lane.registry.edge.array["tenant"]
    rules: dict[int, str] = {}
    for number in numbers:
        identity, tenant = registry.identities[number], int(tenant_of[number])
        policies = lane.policies_of.get(registry.tenants[tenant])
        if policies is None or identity is None or _is_from_outside(lane, number) or not lane.fires_early(tenant):
            continue
        rule = policies.violated_by(identity)
        if rule is not None:
            rules[number] = rule
    return rules


def _raise_violation(
    lane: LaneState, output: Output, number: int, rule: str, calls: int, index: int, time_ms: int
) -> None:
    tenant = int(lane.registry.edge.array["tenant"][number])
    name, state = lane.registry.tenants[tenant], lane.tenants[tenant]
    least = lane.detection(name).policy_min_calls
    if not least or calls < least:
        return
    identity = lane.registry.identities[number]
    assert identity is not None
    subject, ref, counts = EdgeRef(*identity[1:3]), EdgeRef(*identity[1:]), {f"policy:{rule}": calls}
    detection = judge_declared(DriftKind.POLICY_VIOLATION, subject, [ref], counts, time_ms, state.closed_windows)
    event = state.book.raise_early(lane.scope(name), index, detection, time_ms)
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


def _early_denied(lane: LaneState, output: Output, rows: FoldedRows, use: npt.NDArray[np.bool_]) -> None:
    edge, service = lane.registry.edge.array, lane.registry.service.array
    sums: dict[tuple[int, int], tuple[int, int]] = {}
    if lane.logic >= PRODUCERS_OWN:
        use = use & ~service["external"][edge["src"][rows.numbers[rows.codes]]].astype(bool)
    times, index, denied = rows.times[use], rows.index[use], rows.columns["denied"][use]
    sources = edge["src"][rows.numbers[rows.codes[use]]].tolist()
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
