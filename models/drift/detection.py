"""What a detector returns: one thing that is not as expected in one window. Values; findings.py gives it a life."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from schemas.drift import TELEMETRY_KINDS, DriftKind, EdgeRef, Evidence, Severity

MAX_EDGES_LISTED = 50


@dataclass(frozen=True, slots=True)
class Detection:
    """One detection.

    Attributes:
        src, dst, port, protocol: the subject. A service alone stands in ``src`` with an empty ``dst``.
        edges: edges concerned, sorted, at most ``MAX_EDGES_LISTED`` of ``edges_total``.
        risk: 0..100. confidence: 0..100. first_seen_ms: event time of the first record of it.
    """

    kind: DriftKind
    src: str
    dst: str
    port: int
    protocol: int
    edges: tuple[EdgeRef, ...]
    edges_total: int
    evidence: tuple[Evidence, ...]
    risk: int
    confidence: int
    first_seen_ms: int

    @property
    def sort_key(self) -> tuple[str, str, str, int, int]:
        """Order that depends on content alone."""
        return (self.kind, self.src, self.dst, self.port, self.protocol)

    def rename(self, names: Mapping[str, str]) -> "Detection":
        """Return the same of services that have other names now; one about a source of flows names no service."""
        if self.kind in TELEMETRY_KINDS:
            return self
        edges = (EdgeRef(names.get(e.src, e.src), names.get(e.dst, e.dst), e.port, e.protocol) for e in self.edges)
        return replace(
            self, src=names.get(self.src, self.src), dst=names.get(self.dst, self.dst), edges=tuple(sorted(set(edges)))
        )


def rounded(value: float) -> float:
    """Keep 6 significant digits: equal inputs give equal bytes whatever the order of float operations."""
    return float(f"{value:.6g}")


def severity_of(risk: int) -> Severity:
    """Map a risk score to a severity; the steps are those of OCSF's ``risk_level``."""
    if risk >= 85:
        return Severity.CRITICAL
    if risk >= 60:
        return Severity.HIGH
    if risk >= 40:
        return Severity.MEDIUM
    return Severity.LOW if risk >= 20 else Severity.INFORMATIONAL


def confidence_of(history: int) -> int:
    """Confidence grows with the windows an expectation rests on, from 40 to 95."""
    return min(95, 40 + 2 * history)


def corroborated(confidence: int) -> int:
    """Confidence in something new that a second lane has seen as well: a source of its own rarely errs alike."""
    return min(99, confidence + 4)
