"""Builds drift events for the tests of what a SIEM gets, explained as the pipeline explains them."""

from typing import Any

from models.explain.sentences import describe
from schemas.drift import (
    Activity,
    DriftEvent,
    DriftKind,
    EdgeRef,
    Evidence,
    Severity,
    event_id_of,
    finding_id_of,
    fingerprint_of,
)

WINDOW_MS = 60_000
START_MS = 1_763_849_940_000


def make_event(
    kind: DriftKind = DriftKind.LATENCY_INCREASE, activity: Activity = Activity.CREATE, **changes: Any
) -> DriftEvent:
    """Return a complete event of a kind; ``changes`` replace fields."""
    alone = kind in (DriftKind.NEW_SERVICE, DriftKind.FAN_OUT_BURST, DriftKind.DENIED_BURST)
    src = "payments/checkout"
    dst = "ext:203.0.113.7" if kind is DriftKind.NEW_EXTERNAL_EGRESS else "" if alone else "payments/cart"
    edges = (EdgeRef(src, dst or "payments/cart", 443, 6),)
    evidence = (Evidence("latency_p95_us", 258_217.0, 8_123.45, "us", 45.21, 118, 24, "robust-z"),)
    close_reason = "recovered" if activity is Activity.CLOSE else ""
    explanation = describe(
        kind=kind,
        src=src,
        dst=dst,
        port=-1,
        protocol=-1,
        evidence=evidence,
        edges=edges,
        edges_total=1,
        activity=activity,
        close_reason=close_reason,
        window_ms=WINDOW_MS,
    )
    fingerprint = fingerprint_of("acme", "default", kind, src, dst, -1, -1)
    finding_id = finding_id_of(fingerprint, 0, 0)
    values: dict[str, Any] = {
        "event_id": event_id_of(finding_id, activity, START_MS),
        "finding_id": finding_id,
        "fingerprint": fingerprint,
        "incident_id": "inc-1",
        "tenant": "acme",
        "lane": "default",
        "generation": 0,
        "kind": kind,
        "activity": activity,
        "episode": 0,
        "severity": Severity.HIGH,
        "risk_score": 71,
        "confidence": 88,
        "is_alert": activity is not Activity.CLOSE,
        "is_early": False,
        "time_ms": START_MS + WINDOW_MS,
        "window_start_ms": START_MS,
        "window_end_ms": START_MS + WINDOW_MS,
        "first_seen_ms": START_MS + 1_234,
        "src": src,
        "dst": dst,
        "port": -1,
        "protocol": -1,
        "edges": edges,
        "edges_total": 1,
        "evidence": evidence,
        "title": explanation.title,
        "message": explanation.message,
        "checks": explanation.checks,
        "close_reason": close_reason,
    }
    return DriftEvent(**{**values, **changes})
