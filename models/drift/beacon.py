"""Beacons: contact between inside and outside as regular as a clock's, the mark of software that calls home. Pure.

Intervals between windows with contact are compared with those of contact by chance: a memoryless caller's have the
variance ``m (m - 1)`` (geometric, mean ``m`` windows), a clock's only that of cutting time into windows: ``f (1 - f)``
with ``f`` the fraction of ``m``, and 1/6 at least. The dispersion is where between they lie: 0 a clock, 1 chance.
Contact in nearly every window leaves no intervals to compare; there the calls of a window are, whose variance by chance
is their mean (Poisson). Cox & Lewis, The Statistical Analysis of Series of Events (1966), chapter 6.

RITA (github.com/activecm/rita, analysis/beacons.go) scores a day of single connections at once: skew and median
absolute deviation of intervals and of sizes, hours with contact, a flat histogram. Here such marks are kept window by
window: dispersion of the intervals, a vote on the size, a least duration (RITA's ``duration_min_hours_seen``: 6). As
there, a destination that many share counts for less; unlike there, contact that begins outside is looked at too.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.detection import Detection, confidence_of, rounded
from schemas.drift import DriftKind, EdgeRef, Evidence
from schemas.flow import PROTOCOL_NUMBERS

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]

DETECTOR = "beacon"
DISPERSION, INTERVAL, SIZE_OUT, SIZE_IN = "interval_dispersion", "contact_interval", "usual_bytes_out", "usual_bytes_in"
_SPARSE_FROM = 1.5
"""Mean interval in windows from which intervals are compared; below, the calls of a window are."""
_CUT = 1 / 6
"""Variance that cutting into windows adds to intervals of any length: of the difference of two fractions cut off."""
SAME_SIZE = 0.8
"""Share of windows that surely have the same size a call from which size counts as constant."""
SHARED_BY = 3
"""Services of the estate in touch with the same peer outside from which it looks like a common supplier."""
_TIMED_PORTS = {(53, PROTOCOL_NUMBERS["udp"]), (123, PROTOCOL_NUMBERS["udp"]), (53, PROTOCOL_NUMBERS["tcp"])}
"""DNS and NTP: clients ask on a timer by design (RFC 5905 polls at powers of two; DNS follows times to live)."""
_RISK_OUTBOUND, _RISK_INBOUND, _RISK_SAME_SIZE, _LESS_SHARED, _LESS_TIMED = 55, 40, 10, 15, 30


def dispersion(
    gaps: IntColumn, windows: IntColumn, squares: IntColumn, calls: IntColumn, call_squares: IntColumn
) -> FloatColumn:
    """Return how irregular contact is: 0 a clock, 1 chance, more for bunches; rounded to 6 digits. NaN without a gap.

    Shapes:
        all ``(N,)``: gaps: intervals summed up. windows, squares: their sum and that of their squares, in windows.
        calls, call_squares: the same of the calls of a window, over those windows.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = windows / gaps
        sparse = _excess(squares / gaps - mean**2, mean, mean * (mean - 1))
        rate = calls / windows
        dense = _excess(call_squares / windows - rate**2, rate, rate)
        result = np.round(np.where(mean >= _SPARSE_FROM, sparse, dense), 6)
    return result.astype(np.float64)


def _excess(variance: FloatColumn, mean: FloatColumn, by_chance: FloatColumn) -> FloatColumn:
    fraction = mean - np.floor(mean)
    by_clock = np.maximum(fraction * (1 - fraction), _CUT)
    excess: FloatColumn = np.maximum(variance - by_clock, 0.0) / (by_chance - by_clock)
    return excess


def interval_ms(gaps: int, windows: int, calls: int, window_ms: int) -> int:
    """Return the mean interval: between windows with contact, or, where nearly all have some, between calls."""
    return windows * window_ms // (gaps if windows >= _SPARSE_FROM * gaps else max(calls, 1))


@dataclass(frozen=True, slots=True)
class Run:
    """Regular contact of one edge so far.

    Attributes:
        interval_ms: mean interval. contacts: intervals summed up. windows: since the first contact.
        same_size: at least this share of contacts had one size (0..1). bytes_out, bytes_in: that size, a call.
        peers_sharing: services of the estate in touch with the same peer outside.
    """

    ref: EdgeRef
    is_inbound: bool
    dispersion: float
    interval_ms: int
    contacts: int
    windows: int
    same_size: float
    bytes_out: int
    bytes_in: int
    peers_sharing: int
    first_ms: int


def judge_beacon(run: Run) -> Detection:
    """State that an edge beacons; the caller has compared with the thresholds."""
    evidence = [
        _evidence(run, DISPERSION, rounded(run.dispersion), 1.0, "ratio", run.contacts),
        _evidence(run, INTERVAL, float(run.interval_ms * 1_000), float(run.interval_ms * 1_000), "us", run.contacts),
    ]
    has_size = run.same_size >= SAME_SIZE and run.bytes_out >= 0 and run.bytes_in >= 0
    if has_size:
        alike = math.floor(run.same_size * run.contacts)
        for signal, size in ((SIZE_OUT, run.bytes_out), (SIZE_IN, run.bytes_in)):
            evidence.append(_evidence(run, signal, float(size), float(size), "bytes", alike))
    risk = _RISK_INBOUND if run.is_inbound else _RISK_OUTBOUND
    risk += _RISK_SAME_SIZE if has_size else 0
    risk -= _LESS_SHARED if run.peers_sharing >= SHARED_BY else 0
    risk -= _LESS_TIMED if (run.ref.port, run.ref.protocol) in _TIMED_PORTS else 0
    return Detection(
        kind=DriftKind.BEACONING,
        src=run.ref.src,
        dst=run.ref.dst,
        port=run.ref.port,
        protocol=run.ref.protocol,
        edges=(run.ref,),
        edges_total=1,
        evidence=tuple(evidence),
        risk=max(risk, 0),
        confidence=confidence_of(run.contacts),
        first_seen_ms=run.first_ms,
    )


def interval_ms_of(evidence: tuple[Evidence, ...]) -> int:
    """Return the mean interval between contacts that a beacon's evidence states, 0 if it states none."""
    return next((int(item.observed) // 1_000 for item in evidence if item.signal == INTERVAL), 0)


def _evidence(run: Run, signal: str, observed: float, expected: float, unit: str, sample: int) -> Evidence:
    return Evidence(signal, observed, expected, unit, 0.0, sample, run.windows, DETECTOR)
