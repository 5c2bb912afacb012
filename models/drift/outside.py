"""What a service does at the estate's border when meeting strangers there is its habit. Pure.

A public web server, a mail relay, a crawler: one more address they have never met says nothing (an *unbounded* service,
here: open to the outside, inbound and outbound apart). What is unusual for them says much, and is rare whatever comes,
because what was told moves what is usual up to the limit it broke: a port that was never served to, or called in, the
outside; far more callers, calls or bytes than ever in a window.
"""

import math
from dataclasses import dataclass

from models.drift.detection import MAX_EDGES_LISTED, Detection, confidence_of, rounded
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef, Evidence

LEAST_CALLS = 100
"""Fewer calls in a window from or to the whole outside are no surge."""
LEAST_BYTES = 1 << 20
"""A volume of less than 1 MiB in a window is not worth telling of a service that meets strangers all day."""
CALLERS, CALLS, VOLUME = "outside_callers", "outside_calls_per_window", "outside_bytes_per_window"
_UNITS = {CALLERS: "peers", CALLS: "calls", VOLUME: "bytes"}
_RISK_EXPOSED, _RISK_PORT_CALLED, _RISK_SURGE, _RISK_VOLUME, _MOST_RISK = 60, 50, 40, 50, 85


def callers_limit(config: DetectionConfig, usual_max: int) -> float:
    """Distinct outside callers of a service in a window from which they are a surge."""
    return max(float(config.fan_out_min), config.outside_surge_ratio * usual_max)


def calls_limit(config: DetectionConfig, usual_max: int) -> float:
    """Calls of a service from, or to, the outside in a window from which they are a surge."""
    return max(float(LEAST_CALLS), config.outside_surge_ratio * usual_max)


def volume_limit(config: DetectionConfig, usual_max: int) -> float:
    """Bytes of one outside edge of a service in a window from which they are a surge."""
    return max(float(LEAST_BYTES), config.outside_surge_ratio * usual_max)


@dataclass(frozen=True, slots=True)
class Surge:
    """A measure at or above its limit.

    Attributes:
        signal: ``CALLERS``, ``CALLS`` or ``VOLUME``. usual_max: most in a window so far.
    """

    signal: str
    observed: int
    usual_max: int
    limit: float

    @property
    def doublings(self) -> float:
        """Return how far beyond the limit it is."""
        return math.log2(self.observed / self.limit)


def judge_port(
    service: str,
    is_inbound: bool,
    port: int,
    protocol: int,
    calls: int,
    edges: list[EdgeRef],
    first_ms: int,
    history: int,
) -> Detection:
    """State that a service was answered for, or called, a port across the border that it never was before."""
    evidence = Evidence(
        signal="exposed_port" if is_inbound else "outside_port",
        observed=float(calls),
        expected=0.0,
        unit="calls",
        score=0.0,
        sample=calls,
        history=history,
        detector="first-seen",
    )
    return Detection(
        kind=DriftKind.NEW_PORT,
        src="" if is_inbound else service,
        dst=service if is_inbound else "",
        port=port,
        protocol=protocol,
        edges=tuple(edges[:MAX_EDGES_LISTED]),
        edges_total=len(edges),
        evidence=(evidence,),
        risk=_RISK_EXPOSED if is_inbound else _RISK_PORT_CALLED,
        confidence=confidence_of(history),
        first_seen_ms=first_ms,
    )


def judge_surge(
    service: str,
    is_inbound: bool,
    surges: tuple[Surge, ...],
    edges: list[EdgeRef],
    edges_total: int,
    first_ms: int,
    history: int,
) -> Detection:
    """State that a service's traffic with the whole outside is far more than ever."""
    worst = max(surge.doublings for surge in surges)
    return Detection(
        kind=DriftKind.RATE_SURGE,
        src="" if is_inbound else service,
        dst=service if is_inbound else "",
        port=-1,
        protocol=-1,
        edges=tuple(edges),
        edges_total=edges_total,
        evidence=tuple(_evidence(surge, surge.observed, history) for surge in surges),
        risk=_risk(_RISK_SURGE, worst),
        confidence=confidence_of(history),
        first_seen_ms=first_ms,
    )


def judge_volume(edge: EdgeRef, surge: Surge, calls: int, first_ms: int, history: int) -> Detection:
    """State that one peer outside exchanged far more bytes with a service than any did in a window before."""
    return Detection(
        kind=DriftKind.BYTES_SURGE,
        src=edge.src,
        dst=edge.dst,
        port=edge.port,
        protocol=edge.protocol,
        edges=(edge,),
        edges_total=1,
        evidence=(_evidence(surge, calls, history),),
        risk=_risk(_RISK_VOLUME, surge.doublings),
        confidence=confidence_of(history),
        first_seen_ms=first_ms,
    )


def _evidence(surge: Surge, sample: int, history: int) -> Evidence:
    return Evidence(
        signal=surge.signal,
        observed=float(surge.observed),
        expected=float(surge.usual_max),
        unit=_UNITS[surge.signal],
        score=rounded(surge.observed / max(surge.usual_max, 1)),
        sample=sample,
        history=history,
        detector="burst",
    )


def _risk(base: int, doublings: float) -> int:
    return int(min(_MOST_RISK, base + round(10 * doublings, 6)))
