"""Say evidence in sentences whose numbers are those of the evidence itself. Pure."""

from models.rca.evidence import NO_CALLER, Shift
from models.rca.topology import Topology
from schemas.drift import DriftEvent
from schemas.rca import CauseEvidence

EVENT_SPREADS = 10.0
"""What a drift event of risk 100 and confidence 100 weighs, in spreads of the baseline."""
_US_PER_MS = 1000.0
_SENTENCES = {
    "latency": "Calls from {src} to {dst} take {observed:g} {unit} against {expected:g} {unit} before",
    "own_latency": "{dst} takes {observed:g} {unit} to answer against {expected:g} {unit} before",
    "error_ratio": "Of the calls from {src} to {dst} a share of {observed:g} fails against {expected:g} before",
    "own_error_ratio": "Of the requests to {dst} a share of {observed:g} fails against {expected:g} before",
    "denied_ratio": "Of the calls from {src} to {dst} a share of {observed:g} is denied against {expected:g} before",
    "missing_calls": "{src} called {dst} {observed:g} times where its own traffic makes {expected:g} likely",
    "own_self_time_us": (
        "{dst} spends {observed:g} {unit} of a call itself, its own calls not counted, against {expected:g} {unit}"
        " before"
    ),
    "own_self_time": (
        "Of the calls to {dst} a share of {observed:g} keeps it busy itself, its own calls not counted, for longer than"
        " nine in ten did before, against {expected:g}"
    ),
    "network_ratio": (
        "Of the calls from {src} to {dst} a share of {observed:g} waits longer between the two than nine in ten did"
        " before, against {expected:g}"
    ),
    "network": "Calls from {src} to {dst} wait {observed:g} {unit} between the two against {expected:g} {unit} before",
    "own_call_mix": "Of the calls to {dst} for {what} a share of {observed:g} {does}, against {expected:g} before",
    "own_cpu": "{dst} uses {observed:g} of processor time against {expected:g} before, in the unit of its metric",
    "own_memory": "{dst} uses {observed:g} of memory against {expected:g} before, in the unit of its metric",
}


def _short(value: float) -> float:
    """Round to 6 significant digits."""
    return float(f"{value:.6g}")


def evidence_of(shift: Shift, topology: Topology, subject: int, suspect: int | None = None) -> CauseEvidence:
    """Describe one subject of a shift. ``suspect``: it is held against this service, and the sentence says why."""
    is_own = shift.src[subject] == NO_CALLER
    src = "" if is_own else topology.services[shift.src[subject]]
    dst = topology.services[shift.dst[subject]]
    divisor = _US_PER_MS if shift.unit == "us" else 1.0
    unit = "ms" if shift.unit == "us" else shift.unit
    observed, expected = (
        _short(float(shift.observed[subject]) / divisor),
        _short(float(shift.expected[subject]) / divisor),
    )
    score = round(float(shift.score[subject]), 2)
    template = _SENTENCES[_key(shift, is_own=bool(is_own))]
    what, does = shift.remarks.get(subject, ("", ""))
    sentence = template.format(src=src, dst=dst, observed=observed, expected=expected, unit=unit, what=what, does=does)
    sentence += f" ({score:g} times the usual spread)."
    if suspect is not None and suspect == shift.src[subject]:
        sentence += f" {src} comes into question: its other calls or the other callers of {dst} point to it."
    elif suspect is not None:
        sentence += f" {topology.services[suspect]} comes into question: what it answers may be why."
    return CauseEvidence(
        signal=shift.signal,
        src=src,
        dst=dst,
        observed=observed,
        expected=expected,
        unit=unit,
        score=score,
        sample=int(shift.sample[subject]),
        history=int(shift.history[subject]),
        sentence=sentence,
    )


def _key(shift: Shift, *, is_own: bool) -> str:
    if shift.signal == "self_time":
        return "own_self_time_us" if shift.unit == "us" else "own_self_time"
    if shift.signal == "network":
        return "network_ratio" if shift.unit == "ratio" else "network"
    return f"own_{shift.signal}" if is_own else shift.signal


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
