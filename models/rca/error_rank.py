"""ErrorRank: ranked root causes of a range of the service graph against its baseline. Pure and deterministic.

Evidence (shifts.py, drift events) is put on services, moved over the call graph to where it comes from
(propagation.py) and ranked; ties go by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from models.rca.baseline import Floats, RangeLevels, Topology, levels_of
from models.rca.propagation import redistribute, seed_of
from models.rca.shifts import EdgeShift, find_shifts, self_time_score
from models.rca.wording import edge_evidence, event_evidence, self_time_evidence
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.rca import CauseEvidence, RcaReport, RootCause, ServiceWindowEdges

MAX_EVIDENCE = 6
LEAST_SCORE = 0.01
"""Services with less of the evidence than this are not named."""
FEW_WINDOWS = 5
STRENGTH_HALF = 6.0
"""Spreads at which evidence is half as strong as it can be, for the confidence."""
HISTORY_HALF = 3.0
UNRELATED_DECAY = 0.5
"""Weight lost per hop by services that the symptom does not depend on but is connected to."""

_ON_CALLER = frozenset(
    {
        DriftKind.NEW_EDGE,
        DriftKind.NEW_PORT,
        DriftKind.NEW_EXTERNAL_EGRESS,
        DriftKind.FAN_OUT_BURST,
        DriftKind.DENIED_BURST,
        DriftKind.RATE_SURGE,
        DriftKind.BYTES_SURGE,
    }
)
_MEASURED_BY = {
    DriftKind.LATENCY_INCREASE: "latency",
    DriftKind.ERROR_INCREASE: "error_ratio",
    DriftKind.REMOVED_EDGE: "missing_calls",
    DriftKind.RATE_DROP: "missing_calls",
}


@dataclass(frozen=True, slots=True)
class _Findings:
    """Everything that was found out before ranking."""

    topology: Topology
    shifts: tuple[EdgeShift, ...]
    blame: tuple[Floats, ...]
    seed: Floats
    kept: Floats
    self_score: Floats
    event_evidence: dict[str, list[CauseEvidence]]
    current: RangeLevels
    baseline: RangeLevels


def rank_causes(
    current: ServiceWindowEdges,
    baseline: ServiceWindowEdges,
    events: Sequence[DriftEvent] = (),
    limit: int = 5,
    symptom: DriftEvent | None = None,
) -> RcaReport:
    """Return at most ``limit`` root causes of what is out of the ordinary in ``current``, most likely first.

    Args:
        baseline: the same lane over an earlier range; edges it does not hold give no evidence of their own.
        events: drift events of the current range; Close events are ignored, of a finding the last one speaks.
        symptom: ranks for this event: evidence counts less the further it is from what the symptom depends on.

    Raises:
        ValueError: ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError("limit must be at least 1")
    topology = Topology.of(current, baseline)
    now, before = levels_of(current, topology), levels_of(baseline, topology)
    notes = _notes(current, now, before)
    if not len(current):
        return RcaReport((), len(topology.services), len(topology), now.windows, before.windows, notes)
    shifts = find_shifts(now, before, topology)
    relevance = _relevance(topology, symptom)
    kept, seed, blame = np.zeros(len(relevance)), np.zeros(len(relevance)), []
    for shift in shifts:
        put_in = seed_of(shift, topology) * relevance
        stays, of_callee = redistribute(put_in, shift, topology)
        seed, kept = seed + put_in, kept + stays
        blame.append(of_callee)
    from_events, by_service = _event_seed(events, topology, shifts)
    findings = _Findings(
        topology=topology,
        shifts=shifts,
        blame=tuple(blame),
        seed=seed + from_events * relevance,
        kept=kept + from_events * relevance,
        self_score=self_time_score(now, before),
        event_evidence=by_service,
        current=now,
        baseline=before,
    )
    causes = _ranked(findings, limit, symptom)
    return RcaReport(causes, len(topology.services), len(topology), now.windows, before.windows, notes)


def _notes(current: ServiceWindowEdges, now: RangeLevels, before: RangeLevels) -> tuple[str, ...]:
    notes = []
    if not len(current):
        notes.append("The range holds no edges.")
    if before.windows < FEW_WINDOWS:
        notes.append(f"The baseline holds {before.windows} windows: what is usual is hardly known.")
    if len(current) and not now.latency_us.known.any():
        notes.append("No latency is known in the range: slowness cannot be seen.")
    if len(current) and not now.error_ratio.known.any():
        notes.append("No errors are reported in the range: failures cannot be seen.")
    return tuple(notes)


def _relevance(topology: Topology, symptom: DriftEvent | None) -> Floats:
    """Return 1 for services the symptom depends on, less for those merely connected, 0 for all others, ``(N,)``."""
    named = [name for name in (symptom.src, symptom.dst) if name in topology.services] if symptom else []
    if not named:
        return np.ones(len(topology.services))
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_edges_from(zip(topology.src.tolist(), topology.dst.tolist(), strict=True))
    start = {topology.services.index(name) for name in named}
    below = start.union(*(nx.descendants(graph, node) for node in start))
    weights = np.zeros(len(topology.services))
    for node, hops in nx.multi_source_dijkstra_path_length(graph.to_undirected(), below).items():
        weights[node] = UNRELATED_DECAY**hops
    return weights


def _event_seed(
    events: Sequence[DriftEvent], topology: Topology, shifts: tuple[EdgeShift, ...]
) -> tuple[Floats, dict[str, list[CauseEvidence]]]:
    """Put drift events on services. What the edges themselves already show is cited, not counted twice."""
    seed = np.zeros(len(topology.services))
    index = {name: i for i, name in enumerate(topology.services)}
    edges = zip(topology.src.tolist(), topology.dst.tolist(), strict=True)
    position = {(topology.services[a], topology.services[b]): e for e, (a, b) in enumerate(edges)}
    by_signal = {shift.signal: shift for shift in shifts}
    cited: dict[str, list[CauseEvidence]] = {}
    last: dict[str, DriftEvent] = {}
    for event in sorted(events, key=lambda one: (one.window_start_ms, int(one.activity), one.event_id)):
        last[event.finding_id] = event
    for _, event in sorted(last.items()):
        service = (event.src or event.dst) if event.kind in _ON_CALLER else (event.dst or event.src)
        if event.activity is Activity.CLOSE or service not in index:
            continue
        evidence = event_evidence(event)
        cited.setdefault(service, []).append(evidence)
        shift = by_signal.get(_MEASURED_BY.get(event.kind, ""))
        edge = position.get((event.src, event.dst))
        if shift is None or edge is None or shift.score[edge] == 0:
            seed[index[service]] += np.log1p(evidence.score)
    return seed, cited


def _ranked(findings: _Findings, limit: int, symptom: DriftEvent | None) -> tuple[RootCause, ...]:
    total = float(findings.kept.sum())
    if total <= 0:
        return ()
    services = findings.topology.services
    # Rounded before they are compared, so that the last bits of a sum never decide a rank.
    scores = [round(float(value) / total, 6) for value in findings.kept]
    order = sorted(range(len(services)), key=lambda i: (-scores[i], services[i]))
    shifted = _shifted_graph(findings)
    causes: list[RootCause] = []
    for node in order:
        if len(causes) == limit or scores[node] < LEAST_SCORE:
            break
        evidence = _evidence_for(node, findings)
        if not evidence:
            continue
        rival = max((scores[other] for other in order[:2] if other != node), default=0.0)
        strength = evidence[0].score / (evidence[0].score + STRENGTH_HALF)
        history = findings.baseline.windows / (findings.baseline.windows + HISTORY_HALF)
        causes.append(
            RootCause(
                rank=len(causes) + 1,
                service=services[node],
                score=scores[node],
                seed_score=round(float(findings.seed[node]) / total, 6),
                confidence=round(strength * history * scores[node] / (scores[node] + rival), 3),
                path=_path(node, findings.topology, shifted, symptom),
                evidence=evidence[:MAX_EVIDENCE],
            )
        )
    return tuple(causes)


def _evidence_for(node: int, findings: _Findings) -> tuple[CauseEvidence, ...]:
    """Collect what speaks for a service: shifted edges to it, edges from it that are its own doing, events."""
    topology = findings.topology
    found = list(findings.event_evidence.get(topology.services[node], ()))
    weaker: list[CauseEvidence] = []
    for shift, blame in zip(findings.shifts, findings.blame, strict=True):
        for e in np.flatnonzero((shift.score > 0) & (topology.dst == node)):
            found.append(edge_evidence(shift, topology, int(e), by_caller=False))
        for e in np.flatnonzero((shift.score > 0) & (topology.src == node) & (blame < 1)):
            target = found if blame[e] < 0.5 else weaker
            target.append(edge_evidence(shift, topology, int(e), by_caller=True))
    if findings.self_score[node] > 0 and (topology.src == node).any():
        level = findings.current.self_us
        found.append(
            self_time_evidence(
                topology.services[node], findings.self_score[node], level, findings.baseline.self_us, node
            )
        )
    return tuple(sorted(found or weaker, key=lambda one: (-one.score, one.signal, one.src, one.dst, one.event_id)))


def _shifted_graph(findings: _Findings) -> "nx.DiGraph[int]":
    """Build the graph of shifted edges, caller to callee, with their strongest score."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    strongest = np.max([shift.score for shift in findings.shifts], axis=0)
    for e in np.flatnonzero(strongest > 0):
        graph.add_edge(
            int(findings.topology.src[e]), int(findings.topology.dst[e]), score=round(float(strongest[e]), 6)
        )
    return graph


def _path(cause: int, topology: Topology, shifted: "nx.DiGraph[int]", symptom: DriftEvent | None) -> tuple[str, ...]:
    """Return the services from the cause up to the symptom.

    With a symptom: the shortest way to the caller that notices it, over shifted edges if there is one. Without:
    up along the most shifted edge each time, as far as it goes.
    """
    names = topology.services
    wanted = [name for name in (symptom.src, symptom.dst) if name in names] if symptom else []
    if wanted:
        whole: nx.DiGraph[int] = nx.DiGraph()
        whole.add_edges_from(zip(topology.src.tolist(), topology.dst.tolist(), strict=True))
        for name in wanted:
            target = names.index(name)
            for graph in (shifted, whole):
                if graph.has_node(target) and graph.has_node(cause) and nx.has_path(graph, target, cause):
                    return tuple(names[i] for i in reversed(nx.shortest_path(graph, target, cause)))
        return (names[cause],)
    path, at = [cause], cause
    while shifted.has_node(at):
        callers = [(-shifted.edges[a, at]["score"], names[a], a) for a in shifted.predecessors(at) if a not in path]
        if not callers:
            break
        at = min(callers)[2]
        path.append(at)
    return tuple(names[i] for i in path)
