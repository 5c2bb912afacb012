"""The public HTTP contract: what each answer holds. Times are Unix epoch UTC in milliseconds."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.explain.wording import number, quantity
from schemas.drift import TECHNIQUES, DriftEvent, Evidence

_EVENT_EXAMPLE: dict[str, Any] = {
    "event_id": "3f0d6c1b9a2e4d5f8c7b6a5948372615",
    "finding_id": "9b1c2d3e4f5061728394a5b6c7d8e9f0",
    "fingerprint": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "incident_id": "aa11bb22cc33dd44ee55ff6600778899",
    "lane": "default",
    "generation": 0,
    "kind": "latency_increase",
    "activity": "create",
    "episode": 0,
    "severity": "high",
    "severity_id": 4,
    "risk_score": 71,
    "confidence": 88,
    "is_alert": True,
    "is_early": False,
    "time_ms": 1769860860000,
    "window_start_ms": 1769860800000,
    "window_end_ms": 1769860860000,
    "first_seen_ms": 1769860800000,
    "subject": "checkout -> payment:50051",
    "src": "checkout",
    "dst": "payment",
    "port": 50051,
    "protocol": 6,
    "edges": [{"src": "checkout", "dst": "payment", "port": 50051, "protocol": 6}],
    "edges_total": 1,
    "evidence": [
        {
            "signal": "latency_p95_us",
            "observed": 584399.0,
            "expected": 6890.0,
            "unit": "us",
            "score": 414.83,
            "sample": 211,
            "history": 58,
            "detector": "robust_z",
        }
    ],
    "title": "Latency of checkout -> payment rose",
    "message": "Calls from checkout to payment took 584 ms (p95), usually 6.9 ms.",
    "checks": ["Look at the CPU of payment", "Look for a deploy of payment"],
    "technique": {"tactic_id": "TA0040", "tactic": "Impact", "technique_id": "T1499", "technique": "Endpoint DoS"},
    "close_reason": "",
    "seen_in": ["default"],
    "verdict": {
        "reason": "alerted",
        "effect": 75,
        "windows": 8412,
        "windows_alike": 1,
        "budget": 20,
        "alerts": 3,
        "level": 47,
        "feedback": 0,
        "note": "",
    },
}


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class EdgeRefOut(_Out):
    """An edge by name; port and protocol -1 if unknown."""

    src: str
    dst: str
    port: int
    protocol: int


class EvidenceOut(_Out):
    """One signal that was not as expected."""

    signal: str
    observed: float
    expected: float
    unit: str
    score: float
    sample: int = Field(description="Calls or windows the observation rests on.")
    history: int = Field(description="Windows the expectation rests on.")
    detector: str


class TechniqueOut(_Out):
    """A MITRE ATT&CK technique."""

    tactic_id: str
    tactic: str
    technique_id: str
    technique: str


class VerdictOut(_Out):
    """How a finding's risk came about, and why it is an alert or none."""

    reason: str = Field(
        description="alerted, low_risk, waits_for_window, below_level, paced, budget_used, too_old or whitelisted."
    )
    effect: int = Field(description="0..100: what the effect alone is rated.")
    windows: int = Field(description="Closed windows that the risk rests on.")
    windows_alike: int = Field(description="Those of them in which such a finding, or a stronger one, began.")
    budget: int = Field(description="Alerts a day and tenant; 0: no limit.")
    alerts: int = Field(description="Alerts of that day by then.")
    level: int = Field(description="Risk from which a finding of that day could be an alert.")
    feedback: int = Field(description="Points by which people's feedback moved the risk.")
    note: str = Field(description="Id of the whitelist entry that says that this is no alert.")


class DriftEventOut(_Out):
    """Create, Update or Close of one finding."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EVENT_EXAMPLE]})

    event_id: str = Field(description="The same after every replay; drop repeats by it.")
    finding_id: str
    fingerprint: str
    incident_id: str = Field(description="Findings of one cause share it; provisional while is_early.")
    lane: str
    generation: int
    kind: str
    activity: str = Field(description="create, update or close.")
    episode: int
    severity: str
    severity_id: int
    risk_score: int
    confidence: int
    is_alert: bool
    is_early: bool
    time_ms: int
    window_start_ms: int
    window_end_ms: int
    first_seen_ms: int
    subject: str
    src: str
    dst: str
    port: int
    protocol: int
    edges: list[EdgeRefOut]
    edges_total: int
    evidence: list[EvidenceOut]
    title: str
    message: str
    checks: list[str]
    technique: TechniqueOut
    close_reason: str
    seen_in: list[str] = Field(
        description="Live lanes that had seen the subject by then, `lane` among them; empty: not compared."
    )
    verdict: VerdictOut | None = Field(description="Absent of events of older versions.")


def event_out(event: DriftEvent) -> DriftEventOut:
    """Return the public form of an event."""
    fields: dict[str, Any] = {name: getattr(event, name) for name in DriftEventOut.model_fields if hasattr(event, name)}
    fields["kind"] = event.kind.value
    fields["activity"] = event.activity.name.lower()
    fields["severity"], fields["severity_id"] = event.severity.name.lower(), int(event.severity)
    fields["technique"] = TechniqueOut.model_validate(TECHNIQUES[event.kind])
    fields["edges"] = [EdgeRefOut.model_validate(edge) for edge in event.edges]
    fields["verdict"] = None if event.verdict is None else VerdictOut.model_validate(event.verdict)
    fields["evidence"] = [EvidenceOut.model_validate(one) for one in event.evidence]
    return DriftEventOut(**fields)


class HistoryEntry(BaseModel):
    """One event in the life of a finding."""

    event_id: str
    activity: str
    time_ms: int
    severity: str
    risk_score: int
    is_early: bool
    message: str
    close_reason: str


class Explanation(BaseModel):
    """Why the event was raised, for people."""

    what: str
    why: list[str] = Field(description="A sentence a signal that was not as expected.")
    checks: list[str] = Field(description="What to look at next.")
    technique: TechniqueOut


class EdgeScoreOut(_Out):
    """What the graph model says of an edge in the event's window: -log10 of the share of normal edges as strange."""

    src: str
    dst: str
    port: int
    protocol: int
    is_new: bool = Field(description="The model remembers no calls of it before the window.")
    statistical: float = Field(description="By the edge's own past.")
    graph: float = Field(description="By what the rest of the window's graph leaves unexplained.")
    combined: float = Field(description="The two added up.")
    model: str = Field(description="Version of the model.")


class DriftEventDetail(DriftEventOut):
    """A drift event with its explanation and the history of its finding."""

    explanation: Explanation
    graph_scores: list[EdgeScoreOut] = Field(
        description="The event's edges, strangest first; empty where no graph model scored the window."
    )
    history: list[HistoryEntry] = Field(description="Events of the finding, Create first, this one among them.")


def event_detail(event: DriftEvent, history: Sequence[DriftEvent], scores: Sequence[object] = ()) -> DriftEventDetail:
    """Return an event with its explanation, its finding's events and what the graph model says of its edges."""
    shown = event_out(event)
    explanation = Explanation(
        what=event.message, why=[_why(one) for one in event.evidence], checks=shown.checks, technique=shown.technique
    )
    entries = [
        HistoryEntry(
            event_id=one.event_id,
            activity=one.activity.name.lower(),
            time_ms=one.time_ms,
            severity=one.severity.name.lower(),
            risk_score=one.risk_score,
            is_early=one.is_early,
            message=one.message,
            close_reason=one.close_reason,
        )
        for one in history
    ]
    found = [EdgeScoreOut.model_validate(one) for one in scores]
    return DriftEventDetail(**shown.model_dump(), explanation=explanation, graph_scores=found, history=entries)


def _why(one: Evidence) -> str:
    seen, usual = quantity(one.observed, one.unit), quantity(one.expected, one.unit)
    strength = f", a score of {number(one.score)}" if one.score else ""
    basis = f"from {number(one.sample)} against {number(one.history)} windows before" if one.history else ""
    return f"{one.signal} is {seen}, expected {usual}{strength}{f' ({basis})' if basis else ''}."


class EventPage(BaseModel):
    """Drift events, newest first."""

    since_ms: int
    until_ms: int
    events: list[DriftEventOut]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last one.")


class FindingOut(BaseModel):
    """A finding and its events from Create to Close."""

    finding_id: str
    status: str = Field(description="open or closed.")
    kind: str
    subject: str
    severity: str = Field(description="Of the last event.")
    events: list[DriftEventOut]
    is_truncated: bool


class WindowOut(_Out):
    """A closed window of a lane."""

    lane: str
    generation: int
    start_ms: int
    end_ms: int
    edges: int
    incomplete: list[str] = Field(description="Why it may lack records; empty if whole.")
    is_learning: bool
    overflow_calls: int = Field(description="Calls of edges beyond the cardinality bound, summed.")


class WindowPage(BaseModel):
    """Closed windows, newest first."""

    windows: list[WindowOut]
    next_cursor: str | None


class NodeOut(BaseModel):
    """A service in a window's graph; the sums are over the edges shown."""

    service: str
    is_external: bool
    calls_in: int
    calls_out: int
    errors_in: int | None = Field(description="null: nobody reported errors.")


class GraphEdgeOut(_Out):
    """An edge in a window. null, and -1 of port and protocol, mean unknown, never none."""

    src: str
    dst: str
    port: int
    protocol: int
    calls: int
    errors: int | None
    error_ratio: float | None
    denied: int | None
    bytes_out: int | None
    bytes_in: int | None
    latency_calls: int = Field(description="Calls whose latency is known.")
    latency_mean_us: float | None
    p50_us: int | None
    p95_us: int | None
    p99_us: int | None
    lanes: list[str] = Field(
        description="Live lanes that saw the edge in windows which overlap this one, its own among them. The numbers "
        "are those of the window's lane alone: `/v1/edges` has what each lane counted."
    )


class GraphOut(BaseModel):
    """The service graph of one closed window."""

    window: WindowOut
    nodes: list[NodeOut]
    edges: list[GraphEdgeOut] = Field(description="Most calls first.")
    is_truncated: bool = Field(description="There are more edges than `limit`.")


class EdgeInLaneOut(_Out):
    """What one lane counted of an edge. null is unknown. Numbers of two lanes are of the same calls: never add them."""

    lane: str
    first_seen_ms: int = Field(description="Start of the first window of the range that shows it.")
    last_seen_ms: int = Field(description="End of the last one.")
    windows: int
    calls: int
    errors: int | None
    error_ratio: float | None
    denied: int | None
    bytes_out: int | None
    bytes_in: int | None
    latency_calls: int = Field(description="Calls whose latency is known.")
    latency_mean_us: float | None


class TenantEdgeOut(_Out):
    """An edge of the tenant, whichever lanes see it; port and protocol -1 mean unknown."""

    src: str
    dst: str
    port: int
    protocol: int
    first_seen_ms: int
    last_seen_ms: int
    lanes: list[EdgeInLaneOut] = Field(description="By name of the lane.")


class TenantEdgePage(BaseModel):
    """Edges by source, destination, protocol and port."""

    since_ms: int
    until_ms: int
    edges: list[TenantEdgeOut]
    next_cursor: str | None


class ServiceOut(_Out):
    """A service that was seen."""

    service: str
    lane: str
    is_external: bool
    first_seen_ms: int
    last_seen_ms: int


class ServicePage(BaseModel):
    """Services by name."""

    services: list[ServiceOut]
    next_cursor: str | None


class CauseEvidenceOut(_Out):
    """What speaks for a service being the cause."""

    signal: str
    src: str
    dst: str
    observed: float
    expected: float
    unit: str
    score: float = Field(description="Spreads of the baseline; of a drift event its weight alike.")
    sample: int
    history: int
    sentence: str
    event_id: str


class RootCauseOut(_Out):
    """A service that may be the cause."""

    rank: int
    service: str
    score: float = Field(description="Share of all evidence that ends here, 0..1.")
    seed_score: float = Field(description="Share before it was propagated over the call graph.")
    confidence: float = Field(description="0..1, a heuristic, not a probability.")
    path: list[str] = Field(description="From the cause to the symptom, each called by the next.")
    evidence: list[CauseEvidenceOut]


class RootCauseReport(BaseModel):
    """Ranked root causes of a range, against the windows before it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "lane": "default",
                    "lanes": ["default"],
                    "generation": 0,
                    "since_ms": 1769860800000,
                    "until_ms": 1769860980000,
                    "baseline_since_ms": 1769857200000,
                    "baseline_until_ms": 1769860800000,
                    "current_windows": 3,
                    "baseline_windows": 60,
                    "services": 12,
                    "edges": 14,
                    "drift_events": 4,
                    "causes": [
                        {
                            "rank": 1,
                            "service": "payment",
                            "score": 0.962904,
                            "seed_score": 0.611342,
                            "confidence": 0.9,
                            "path": ["payment", "checkout", "frontend"],
                            "evidence": [
                                {
                                    "signal": "latency",
                                    "src": "checkout",
                                    "dst": "payment",
                                    "observed": 584.399,
                                    "expected": 6.89,
                                    "unit": "ms",
                                    "score": 414.83,
                                    "sample": 211,
                                    "history": 60,
                                    "sentence": "Calls from checkout to payment take 584.399 ms against 6.89 ms before"
                                    " (414.83 times the usual spread).",
                                    "event_id": "",
                                }
                            ],
                        }
                    ],
                    "notes": [],
                }
            ]
        }
    )

    lane: str = Field(description="Its windows say what the range is.")
    lanes: list[str] = Field(description="Lanes the edges are read from, each pair of services from one of them.")
    generation: int
    since_ms: int
    until_ms: int
    baseline_since_ms: int
    baseline_until_ms: int
    current_windows: int
    baseline_windows: int
    services: int
    edges: int
    drift_events: int
    causes: list[RootCauseOut] = Field(description="Empty: nothing was out of the ordinary.")
    notes: list[str] = Field(description="What limits the answer.")


class Health(BaseModel):
    """The process answers."""

    status: str = Field(examples=["ok"])
