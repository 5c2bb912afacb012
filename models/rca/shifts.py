"""Evidence: which edges are not as in the baseline, by how much, and what they add to their caller. Pure."""

from dataclasses import dataclass

import numpy as np

from models.rca.baseline import Floats, Ints, Level, Mask, RangeLevels, Topology, add_up

Z_THRESHOLD = 3.0
"""Spreads from the baseline from which a shift counts as evidence; below is the noise of ordinary windows."""
MIN_SAMPLE_CALLS = 3
"""Calls an edge needs in each range before its ratios and latencies say anything."""
MIN_RELATIVE_SPREAD = 0.05
"""Least believable spread between windows as a share of the level: a few calm baseline windows are no proof of calm."""
MIN_SPREAD_US = 200.0
MIN_SPREAD_RATIO = 0.01
MISSING_BELOW = 0.5
"""Calls are missing when under half of those that the caller's own traffic lets one expect arrive."""
MISSING_SPREAD = 0.1
"""How far the number of calls per call received wanders by itself, as a share of it."""


@dataclass(frozen=True, slots=True)
class EdgeShift:
    """One signal of all edges against the baseline.

    Shapes:
        score, delta, observed, expected, passed: ``(E,)`` float64. sample, history: ``(E,)`` int64.
        known: ``(E,)`` bool. received: ``(N,)`` float64.

    ``score`` is 0 where there is no evidence. ``delta`` is the shift in the signal's unit, 0 where unknown.
    ``passed`` is what the edge adds to one call its caller receives, ``received`` how much a service's own answer
    has shifted, both in one unit and never below zero: their quotient is the part that comes from further down.
    """

    signal: str
    unit: str
    score: Floats
    delta: Floats
    observed: Floats
    expected: Floats
    sample: Ints
    history: Ints
    known: Mask
    passed: Floats
    received: Floats


def find_shifts(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> tuple[EdgeShift, ...]:
    """Return the shifts of all signals, in a fixed order."""
    return (
        _latency(current, baseline),
        _ratio_shift("error_ratio", current, baseline, topology),
        _ratio_shift("denied_ratio", current, baseline, topology),
        _missing_calls(current, baseline),
    )


def self_time_score(current: RangeLevels, baseline: RangeLevels) -> Floats:
    """Return the robust z-score of each service's self time, ``(N,)``; 0 where unknown or below the threshold."""
    score, _, _ = _robust_z(current.self_us, baseline.self_us, MIN_SPREAD_US, baseline.served_us.median)
    return score


def _robust_z(
    current: Level, baseline: Level, least: float, scale: Floats | None = None
) -> tuple[Floats, Floats, Mask]:
    enough = (current.sample >= MIN_SAMPLE_CALLS) & (baseline.sample >= MIN_SAMPLE_CALLS)
    known = current.known & baseline.known & enough
    delta = np.where(known, np.nan_to_num(current.median) - np.nan_to_num(baseline.median), 0.0)
    level = np.abs(np.nan_to_num(baseline.median if scale is None else scale))
    spread = np.maximum(np.maximum(np.nan_to_num(baseline.spread), MIN_RELATIVE_SPREAD * level), least)
    score = delta / spread
    return np.where(score >= Z_THRESHOLD, score, 0.0), delta, known


def _per_call(total: Floats, calls: Floats) -> Floats:
    quotient: Floats = np.divide(total, calls, out=np.zeros(len(total)), where=calls > 0)
    return quotient


def _latency(current: RangeLevels, baseline: RangeLevels) -> EdgeShift:
    score, delta, known = _robust_z(current.latency_us, baseline.latency_us, MIN_SPREAD_US)
    passed = _per_call(current.time_us, current.caller_calls) - _per_call(baseline.time_us, baseline.caller_calls)
    received = _per_call(current.received_time_us, current.received_calls) - _per_call(
        baseline.received_time_us, baseline.received_calls
    )
    return EdgeShift(
        signal="latency",
        unit="us",
        score=score,
        delta=delta,
        observed=np.nan_to_num(current.latency_us.median),
        expected=np.nan_to_num(baseline.latency_us.median),
        sample=current.latency_us.sample,
        history=baseline.latency_us.windows,
        known=known,
        passed=np.maximum(passed, 0.0),
        received=np.maximum(received, 0.0),
    )


def _ratio_shift(signal: str, current: RangeLevels, baseline: RangeLevels, topology: Topology) -> EdgeShift:
    now: Level = getattr(current, signal)
    before: Level = getattr(baseline, signal)
    counted = "errors" if signal == "error_ratio" else "denied"
    now_count: Floats = getattr(current, counted)
    before_count: Floats = getattr(baseline, counted)
    # Sampling alone moves a ratio by its binomial error; a few calls must not look like a shift.
    chance = np.clip(np.nan_to_num(before.median), 0.02, 0.98)
    binomial = np.sqrt(chance * (1 - chance) / np.maximum(now.sample, 1))
    score, delta, known = _robust_z(now, before, MIN_SPREAD_RATIO)
    spread = np.divide(delta, score, out=np.full(len(score), MIN_SPREAD_RATIO), where=score > 0)
    score = np.divide(delta, np.maximum(spread, binomial), out=np.zeros(len(score)), where=score > 0)
    nodes = len(topology.services)
    passed = _per_call(now_count, current.caller_calls) - _per_call(before_count, baseline.caller_calls)
    received = _per_call(add_up(topology.dst, now_count, nodes), current.received_calls) - _per_call(
        add_up(topology.dst, before_count, nodes), baseline.received_calls
    )
    return EdgeShift(
        signal=signal,
        unit="ratio",
        score=np.where(score >= Z_THRESHOLD, score, 0.0),
        delta=delta,
        observed=np.nan_to_num(now.median),
        expected=np.nan_to_num(before.median),
        sample=now.sample,
        history=before.windows,
        known=known,
        passed=np.maximum(passed, 0.0),
        received=np.maximum(received, 0.0),
    )


def _missing_calls(current: RangeLevels, baseline: RangeLevels) -> EdgeShift:
    """Calls an edge lacks, given what its caller itself receives: less traffic from further up is no evidence."""
    expected = _per_call(baseline.calls, baseline.caller_calls) * current.caller_calls
    lacking = np.maximum(expected - current.calls, 0.0)
    score = lacking / np.sqrt(np.maximum(expected, 1.0) + (MISSING_SPREAD * expected) ** 2)
    known = (expected >= MIN_SAMPLE_CALLS) & (baseline.calls >= MIN_SAMPLE_CALLS)
    missing = known & (current.calls < MISSING_BELOW * expected) & (score >= Z_THRESHOLD)
    return EdgeShift(
        signal="missing_calls",
        unit="calls",
        score=np.where(missing, score, 0.0),
        delta=np.where(known, _per_call(lacking, expected), 0.0),
        observed=current.calls,
        expected=expected,
        sample=current.calls.astype(np.int64),
        history=baseline.denied_ratio.windows,
        known=known,
        passed=np.zeros(len(expected)),
        received=np.zeros(len(current.received_calls)),
    )
