"""From scores to ranked causes: which are named, with what confidence, on what evidence, by which path. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from models.rca.evidence import NO_CALLER, Shift
from models.rca.robust import Floats, Ints
from models.rca.topology import Topology, shortest_way
from models.rca.wording import evidence_of
from schemas.rca import CauseEvidence, RootCause

MAX_EVIDENCE = 6
LEAST_SCORE = 0.01
"""Services with less of the evidence than this are not named."""
STRENGTH_HALF = 6.0
"""Spreads at which evidence is half as strong as it can be, for the confidence."""
HISTORY_HALF = 3.0


def causes_of(
    topology: Topology,
    shifts: Sequence[Shift],
    seed: Floats,
    kept: Floats,
    cited: Mapping[str, Sequence[CauseEvidence]],
    *,
    windows: int,
    noticed_by: Sequence[str] = (),
    limit: int,
) -> tuple[RootCause, ...]:
    """Return at most ``limit`` causes, most likely first.

    Args:
        seed, kept: evidence of each service before and after propagation, ``(N,)``.
        cited: evidence that is not a shift (drift events), by service. windows: the baseline's.
        noticed_by: services that show the symptom; paths end there.
    """
    total = float(kept.sum())
    if total <= 0:
        return ()
    services = topology.services
    # Rounded before they are compared, so that the last bits of a sum never decide a rank.
    scores = np.round(kept / total, 6)
    order = sorted(np.flatnonzero(scores >= LEAST_SCORE / 2).tolist(), key=lambda i: (-scores[i], services[i]))
    ways = _Ways(topology, shifts, noticed_by)
    causes: list[RootCause] = []
    for node in order:
        if len(causes) == limit or scores[node] < LEAST_SCORE:
            break
        evidence = _evidence_for(node, topology, shifts, cited)
        if not evidence:
            continue
        rival = max((float(scores[other]) for other in order[:2] if other != node), default=0.0)
        strength = evidence[0].score / (evidence[0].score + STRENGTH_HALF)
        history = windows / (windows + HISTORY_HALF)
        causes.append(
            RootCause(
                rank=len(causes) + 1,
                service=services[node],
                score=float(scores[node]),
                seed_score=round(float(seed[node]) / total, 6),
                confidence=round(float(strength * history * scores[node] / (scores[node] + rival)), 3),
                path=ways.from_cause(node),
                evidence=evidence[:MAX_EVIDENCE],
            )
        )
    return tuple(causes)


def _evidence_for(
    node: int, topology: Topology, shifts: Sequence[Shift], cited: Mapping[str, Sequence[CauseEvidence]]
) -> tuple[CauseEvidence, ...]:
    """Collect what speaks for a service: its own shifts, edges to it, edges from it that are its own doing, events."""
    found = list(cited.get(topology.services[node], ()))
    weaker: list[CauseEvidence] = []
    for shift in shifts:
        has_evidence = shift.is_evidence
        found += [evidence_of(shift, topology, int(s)) for s in np.flatnonzero(has_evidence & (shift.dst == node))]
        for s in np.flatnonzero(has_evidence & (shift.src == node) & (shift.blame < 1)):
            target = found if shift.blame[s] < 0.5 else weaker
            target.append(evidence_of(shift, topology, int(s), suspect=node))
        if shift.handed_on:
            origins = shift.moves.source[(shift.moves.target == node) & (shift.moves.share > 0)]
            for s in np.flatnonzero(has_evidence & np.isin(shift.dst, origins)):
                found.append(evidence_of(shift, topology, int(s), suspect=node))
    return tuple(sorted(found or weaker, key=lambda one: (-one.score, one.signal, one.src, one.dst, one.event_id)))


class _Ways:
    """Paths from causes to the symptom: over edges that show a shift where there are any."""

    def __init__(self, topology: Topology, shifts: Iterable[Shift], noticed_by: Sequence[str]) -> None:
        self._topology = topology
        self._strongest = _strongest_of_edges(topology, shifts)
        targets = topology.places(list(noticed_by))
        self._targets: Ints = targets[targets >= 0]

    def from_cause(self, cause: int) -> tuple[str, ...]:
        """Return the services from the cause up to the symptom.

        With a symptom: the shortest way to the caller that notices it, over shifted edges if there is one. Without:
        up along the most shifted edge each time, as far as it goes.
        """
        topology, names = self._topology, self._topology.services
        if not len(self._targets):
            return tuple(names[i] for i in self._upwards(cause))
        for target in self._targets.tolist():
            for use in (self._strongest > 0, None):
                way = shortest_way(target, cause, topology.src, topology.dst, len(names), use)
                if way:
                    return tuple(names[i] for i in reversed(way))
        return (names[cause],)

    def _upwards(self, cause: int) -> list[int]:
        path, at = [cause], cause
        while True:
            callers = [
                (-round(float(self._strongest[e]), 6), self._topology.services[self._topology.src[e]], e)
                for e in np.flatnonzero((self._topology.dst == at) & (self._strongest > 0)).tolist()
                if self._topology.src[e] not in path
            ]
            if not callers:
                return path
            at = int(self._topology.src[min(callers)[2]])
            path.append(at)


def _strongest_of_edges(topology: Topology, shifts: Iterable[Shift]) -> Floats:
    """Return how strongly each edge has shifted, ``(E,)``; where services were measured, the weaker of its two ends."""
    strongest = np.zeros(len(topology))
    own = np.zeros(len(topology.services))
    for shift in shifts:
        if len(shift.src) == len(topology) and (shift.src != NO_CALLER).all():
            strongest = np.maximum(strongest, np.where(shift.is_evidence, shift.score, 0.0))
        else:
            own = np.maximum(own, np.where(shift.is_evidence, shift.score, 0.0))
    return np.maximum(strongest, np.minimum(own[topology.src], own[topology.dst]))
