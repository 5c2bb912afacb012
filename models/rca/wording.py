"""Say evidence in sentences whose numbers are those of the evidence itself. Pure."""

from models.rca.baseline import Level, Topology
from models.rca.shifts import EdgeShift
from schemas.drift import DriftEvent
from schemas.rca import CauseEvidence

EVENT_SPREADS = 10.0
"""What a drift event of risk 100 and confidence 100 weighs, in spreads of the baseline."""
_US_PER_MS = 1000.0


def _short(value: float) -> float:
    """Round to 6 significant digits."""
    return float(f"{value:.6g}")


def edge_evidence(shift: EdgeShift, topology: Topology, edge: int, *, by_caller: bool) -> CauseEvidence:
    """Describe one shifted edge. ``by_caller``: it is held against the caller, and the sentence says why."""
    src, dst = topology.services[topology.src[edge]], topology.services[topology.dst[edge]]
    divisor = _US_PER_MS if shift.unit == "us" else 1.0
    observed = _short(float(shift.observed[edge]) / divisor)
    expected = _short(float(shift.expected[edge]) / divisor)
    score = round(float(shift.score[edge]), 2)
    if shift.signal == "latency":
        sentence = f"Calls from {src} to {dst} take {observed:g} ms against {expected:g} ms before"
    elif shift.signal == "error_ratio":
        sentence = f"Of the calls from {src} to {dst} a share of {observed:g} fails against {expected:g} before"
    elif shift.signal == "denied_ratio":
        sentence = f"Of the calls from {src} to {dst} a share of {observed:g} is denied against {expected:g} before"
    else:
        sentence = f"{src} called {dst} {observed:g} times where its own traffic makes {expected:g} likely"
    sentence += f" ({score:g} times the usual spread)."
    if by_caller:
        sentence += f" {src} comes into question: its other calls or the other callers of {dst} point to it."
    return CauseEvidence(
        signal=shift.signal,
        src=src,
        dst=dst,
        observed=observed,
        expected=expected,
        unit="ms" if shift.unit == "us" else shift.unit,
        score=score,
        sample=int(shift.sample[edge]),
        history=int(shift.history[edge]),
        sentence=sentence,
    )


def self_time_evidence(service: str, score: float, now: Level, before: Level, node: int) -> CauseEvidence:
    """Describe a service that takes longer itself, its own calls not counted."""
    observed = _short(float(now.median[node]) / _US_PER_MS)
    expected = _short(float(before.median[node]) / _US_PER_MS)
    spreads = round(float(score), 2)
    return CauseEvidence(
        signal="self_time",
        src="",
        dst=service,
        observed=observed,
        expected=expected,
        unit="ms",
        score=spreads,
        sample=int(now.sample[node]),
        history=int(before.windows[node]),
        sentence=(
            f"{service} spends {observed:g} ms of a call itself, its own calls not counted, against {expected:g} ms"
            f" before ({spreads:g} times the usual spread)."
        ),
    )


def event_evidence(event: DriftEvent) -> CauseEvidence:
    """Cite a drift event; its strongest evidence gives the numbers."""
    strongest = max(event.evidence, key=lambda one: (one.score, one.signal), default=None)
    weight = round(EVENT_SPREADS * event.risk_score / 100 * event.confidence / 100, 2)
    return CauseEvidence(
        signal="drift_event",
        src=event.src,
        dst=event.dst,
        observed=strongest.observed if strongest else 0.0,
        expected=strongest.expected if strongest else 0.0,
        unit=strongest.unit if strongest else "",
        score=weight,
        sample=strongest.sample if strongest else 0,
        history=strongest.history if strongest else 0,
        sentence=event.message or event.title,
        event_id=event.event_id,
    )
