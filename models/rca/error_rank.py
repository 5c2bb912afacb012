"""ErrorRank: ranked root causes of a range of the service graph against its baseline. Pure and deterministic.

Evidence (window_shifts.py, call_shifts.py, call_mix.py, metric_shifts.py, drift events) is put on services, weighed by
how sure it is and how much harm it is, moved over the call graph to where it comes from (propagation.py) and ranked;
ties go by name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.rca.causes import causes_of
from models.rca.evidence import Shift
from models.rca.propagation import excess_of, redistribute, seed_of
from models.rca.robust import Floats
from models.rca.topology import Topology, hops_from
from models.rca.window_levels import RangeLevels, graph_of, levels_of
from models.rca.window_shifts import find_shifts, self_time_shift
from models.rca.wording import event_evidence
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.rca import CauseEvidence, RcaReport, ServiceWindowEdges

FEW_WINDOWS = 5
UNRELATED_DECAY = 0.5
"""Weight lost per hop by services that the symptom does not depend on but is connected to."""
OTHER_HARM = 0.5
"""Weight of evidence of another kind of harm than the symptom's: of slowness where requests fail, and so on."""

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


_HARM = {"latency": "us", "error_ratio": "calls", "missing_calls": "calls"}


@dataclass(frozen=True, slots=True)
class Symptom:
    """What was noticed, where causes are asked for it.

    Attributes:
        services: who shows it. harm: excess unit of shifts of its kind, ``us`` or ``calls``; empty for any.
    """

    services: tuple[str, ...] = ()
    harm: str = ""

    @classmethod
    def of(cls, event: DriftEvent | None) -> "Symptom":
        """Return what a drift event says was noticed."""
        if event is None:
            return cls()
        return cls((event.src, event.dst), _HARM.get(_MEASURED_BY.get(event.kind, ""), ""))


@dataclass(frozen=True, slots=True)
class Scores:
    """Evidence per service, each ``(N,)``: where it was found (``seed``), and where it comes from (``kept``)."""

    seed: Floats
    kept: Floats


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
    topology, (edge_now, edge_before) = graph_of(current, baseline)
    now, before = levels_of(current, topology, edge_now, spread=False), levels_of(baseline, topology, edge_before)
    notes = _notes(current, now, before)
    if not len(current):
        return RcaReport((), len(topology.services), len(topology), now.windows, before.windows, notes)
    shifts = find_shifts(now, before, topology)
    noticed = Symptom.of(symptom)
    from_events, cited = _event_seed(events, topology, shifts)
    scores = score_services(topology, shifts, noticed, from_events)
    causes = causes_of(
        topology,
        (*shifts, self_time_shift(now, before, topology)),
        scores.seed,
        scores.kept,
        cited,
        windows=before.windows,
        noticed_by=noticed.services,
        limit=limit,
    )
    return RcaReport(causes, len(topology.services), len(topology), now.windows, before.windows, notes)


def score_services(
    topology: Topology, shifts: Sequence[Shift], symptom: Symptom | None = None, also: Floats | None = None
) -> Scores:
    """Return the evidence of each service before and after propagation.

    Args:
        symptom: evidence counts less the further it is from what its services depend on, and if its harm is another.
        also: evidence that is the service's own and stays there, ``(N,)``.
    """
    nodes = len(topology.services)
    symptom = symptom or Symptom()
    relevance = relevance_to(topology, symptom.services)
    most: dict[str, float] = {}
    for shift in shifts:
        highest = float((excess_of(shift, nodes) * relevance).max(initial=0.0))
        most[shift.excess_unit] = max(most.get(shift.excess_unit, 0.0), highest)
    seed = np.zeros(nodes) if also is None else also * relevance
    kept = seed.copy()
    for shift in shifts:
        if not shift.score.any():
            continue
        alike = 1.0 if symptom.harm in ("", shift.excess_unit) else OTHER_HARM
        put_in = seed_of(shift, nodes, most[shift.excess_unit]) * relevance * alike
        seed, kept = seed + put_in, kept + redistribute(put_in, shift.moves)
    return Scores(seed, kept)


def relevance_to(topology: Topology, noticed_by: Iterable[str]) -> Floats:
    """Return 1 for services the symptom depends on, less for those merely connected, 0 for all others, ``(N,)``."""
    start = topology.places(list(noticed_by))
    start = np.unique(start[start >= 0])
    nodes = len(topology.services)
    if not len(start):
        return np.ones(nodes)
    below = np.flatnonzero(np.isfinite(hops_from(start, topology.src, topology.dst, nodes, directed=True)))
    hops = hops_from(below, topology.src, topology.dst, nodes, directed=False)
    return np.where(np.isfinite(hops), UNRELATED_DECAY ** np.nan_to_num(hops, posinf=0.0), 0.0)


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


def _event_seed(
    events: Sequence[DriftEvent], topology: Topology, shifts: Sequence[Shift]
) -> tuple[Floats, dict[str, list[CauseEvidence]]]:
    """Put drift events on services. What the edges themselves already show is cited, not counted twice."""
    seed = np.zeros(len(topology.services))
    index = {name: i for i, name in enumerate(topology.services)}
    edges = zip(topology.src.tolist(), topology.dst.tolist(), strict=True)
    position = {(topology.services[a], topology.services[b]): e for e, (a, b) in enumerate(edges)} if events else {}
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
        if shift is None or edge is None or not shift.is_evidence[edge]:
            seed[index[service]] += np.log1p(evidence.score)
    return seed, cited
