"""Structural kinds: who newly talks to whom, who stopped, who fans out, who is refused. Pure.

``EdgeFacts`` is all a rule may look at. Rules for what is new read only what never goes back to unknown, so that an
early detection cannot be undone by records still to come (see docs/adr/0006-early-and-final.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from models.drift.detection import MAX_EDGES_LISTED, Detection, confidence_of, rounded
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef, Evidence
from schemas.ids import is_external


@dataclass(frozen=True, slots=True)
class EdgeFacts:
    """One unknown edge in one window, and what is known around it.

    Attributes:
        calls: calls so far in the window, late ones included; 0 where only rows came whose call another record counts.
        first_ms: least event time of its records.
        history: closed windows of the tenant: how long "never seen" is.
    """

    ref: EdgeRef
    src_known: bool
    dst_known: bool
    pair_known: bool
    calls: int
    first_ms: int
    history: int


def _presence(signal: str, observed: int, history: int, detector: str) -> Evidence:
    return Evidence(
        signal=signal,
        observed=float(observed),
        expected=0.0,
        unit="calls",
        score=0.0,
        sample=observed,
        history=history,
        detector=detector,
    )


def subjects_of(facts: EdgeFacts) -> list[tuple[DriftKind, str, str, int, int]]:
    """Name what an unknown edge is news of: ``(kind, src, dst, port, protocol)`` of the subjects."""
    ref = facts.ref
    if is_external(ref.dst):
        if facts.pair_known:
            return [(DriftKind.NEW_PORT, ref.src, ref.dst, ref.port, ref.protocol)]
        subjects = [(DriftKind.NEW_EXTERNAL_EGRESS, ref.src, ref.dst, -1, -1)]
        if not facts.src_known and not is_external(ref.src):
            subjects.append((DriftKind.NEW_SERVICE, ref.src, "", -1, -1))
        return subjects
    new = [
        name
        for name, known in ((ref.src, facts.src_known), (ref.dst, facts.dst_known))
        if not known and not is_external(name)
    ]
    if new:
        return [(DriftKind.NEW_SERVICE, name, "", -1, -1) for name in sorted(set(new))]
    if facts.pair_known:
        return [(DriftKind.NEW_PORT, ref.src, ref.dst, ref.port, ref.protocol)]
    return [(DriftKind.NEW_EDGE, ref.src, ref.dst, -1, -1)]


_RISK = {
    DriftKind.NEW_SERVICE: 35,
    DriftKind.NEW_EDGE: 45,
    DriftKind.NEW_PORT: 40,
    DriftKind.NEW_EXTERNAL_EGRESS: 60,
}
_SIGNAL = {
    DriftKind.NEW_SERVICE: "service_presence",
    DriftKind.NEW_EDGE: "edge_presence",
    DriftKind.NEW_PORT: "port_presence",
    DriftKind.NEW_EXTERNAL_EGRESS: "egress_presence",
}


def judge_new(edges: Iterable[EdgeFacts]) -> list[Detection]:
    """Return one detection per new service, edge, port or egress; a new service lists its edges."""
    groups: dict[tuple[DriftKind, str, str, int, int], list[EdgeFacts]] = {}
    for facts in edges:
        for subject in subjects_of(facts):
            groups.setdefault(subject, []).append(facts)
    detections = []
    for (kind, src, dst, port, protocol), members in groups.items():
        refs = sorted(member.ref for member in members)
        # A reply whose call nobody counted proves one all the same.
        calls = max(1, sum(member.calls for member in members))
        history = max(member.history for member in members)
        detections.append(
            Detection(
                kind=kind,
                src=src,
                dst=dst,
                port=port,
                protocol=protocol,
                edges=tuple(refs[:MAX_EDGES_LISTED]),
                edges_total=len(refs),
                evidence=(_presence(_SIGNAL[kind], calls, history, "first-seen"),),
                risk=_RISK[kind],
                confidence=confidence_of(history),
                first_seen_ms=min(member.first_ms for member in members),
            )
        )
    return detections


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One source in one window: distinct peers, or denied calls, against the largest usual number."""

    src: str
    observed: int
    usual_max: int
    edges: tuple[EdgeRef, ...]
    edges_total: int
    first_ms: int
    history: int


def fan_out_limit(config: DetectionConfig, usual_max: int) -> float:
    """Distinct peers in a window from which a source's fan-out is a burst."""
    return max(float(config.fan_out_min), config.fan_out_ratio * usual_max)


def denied_limit(config: DetectionConfig, usual_max: int) -> float:
    """Denied calls in a window from which a source's refusals are a burst."""
    return max(float(config.denied_min), config.denied_ratio * usual_max)


def judge_source(kind: DriftKind, facts: SourceFacts) -> Detection:
    """State a burst of one source; the caller has compared with the limit."""
    fan_out = kind is DriftKind.FAN_OUT_BURST
    evidence = Evidence(
        signal="fan_out" if fan_out else "denied_per_window",
        observed=float(facts.observed),
        expected=float(facts.usual_max),
        unit="peers" if fan_out else "calls",
        score=rounded(facts.observed / max(facts.usual_max, 1)),
        sample=facts.observed,
        history=facts.history,
        detector="burst",
    )
    return Detection(
        kind=kind,
        src=facts.src,
        dst="",
        port=-1,
        protocol=-1,
        edges=facts.edges[:MAX_EDGES_LISTED],
        edges_total=facts.edges_total,
        evidence=(evidence,),
        risk=70 if fan_out else 55,
        confidence=confidence_of(facts.history),
        first_seen_ms=facts.first_ms,
    )


def judge_silent(
    kind: DriftKind,
    ref: EdgeRef,
    silent_windows: int,
    usual_gap: int,
    expected_calls: float,
    history: int,
    first_ms: int,
) -> Detection:
    """State that an edge fell silent: ``RATE_DROP`` at its first silent window, ``REMOVED_EDGE`` after its deadline."""
    removed = kind is DriftKind.REMOVED_EDGE
    evidence = [
        Evidence(
            signal="calls_per_window",
            observed=0.0,
            expected=rounded(expected_calls),
            unit="calls",
            score=0.0,
            sample=0,
            history=history,
            detector="silence",
        )
    ]
    if removed:
        evidence.insert(
            0,
            Evidence(
                signal="silent_windows",
                observed=float(silent_windows),
                expected=float(usual_gap),
                unit="windows",
                score=rounded(silent_windows / max(usual_gap, 1)),
                sample=silent_windows,
                history=history,
                detector="silence",
            ),
        )
    return Detection(
        kind=kind,
        src=ref.src,
        dst=ref.dst,
        port=ref.port,
        protocol=ref.protocol,
        edges=(ref,),
        edges_total=1,
        evidence=tuple(evidence),
        risk=50 if removed else 60,
        confidence=confidence_of(history),
        first_seen_ms=first_ms,
    )
