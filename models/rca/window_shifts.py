"""Evidence of stored windows: edges that are not as in the baseline, and what they add to their caller. Pure.

Windows hold whole tenants: scores below the threshold are dropped, or the noise of ten thousand edges would add up.
"""

from dataclasses import dataclass

import numpy as np

from models.rca.evidence import (
    MIN_RELATIVE_SPREAD,
    MIN_SAMPLE_CALLS,
    MIN_SPREAD_RATIO,
    MIN_SPREAD_US,
    Z_THRESHOLD,
    Shift,
)
from models.rca.propagation import callee_blame, moves_of
from models.rca.robust import Floats, Ints, Mask, add_up, ratio
from models.rca.topology import Topology
from models.rca.window_levels import Level, RangeLevels

MISSING_BELOW = 0.5
"""Calls are missing when under half of those that the caller's own traffic lets one expect arrive."""
MISSING_SPREAD = 0.1
"""How far the number of calls per call received wanders by itself, as a share of it."""


def find_shifts(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> tuple[Shift, ...]:
    """Return the shifts of all signals of edges, in a fixed order."""
    return (
        _latency(current, baseline, topology),
        _ratio_shift("error_ratio", current, baseline, topology),
        _ratio_shift("denied_ratio", current, baseline, topology),
        _missing_calls(current, baseline, topology),
    )


def self_time_shift(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
    """Return services that call others and take longer themselves. To be cited alone: the latency of edges holds it."""
    score, delta, _ = _robust_z(current.self_us, baseline.self_us, MIN_SPREAD_US, baseline.served_us.median)
    calls_others = np.bincount(topology.src, minlength=len(topology.services)) > 0
    return Shift.of_services(
        "self_time",
        "us",
        "us",
        score=np.where(calls_others, score, 0.0),
        excess=delta * current.received_calls,
        observed=np.nan_to_num(current.self_us.median),
        expected=np.nan_to_num(baseline.self_us.median),
        sample=current.self_us.sample,
        history=baseline.self_us.windows,
    )


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


@dataclass(frozen=True, slots=True)
class _Change:
    """How a signal of edges differs between the ranges.

    Shapes: ``(E,)``, ``received`` ``(N,)``. ``delta`` is in the signal's unit, 0 where it is not ``known``. ``passed``
    is what the edge adds to one call its caller receives, ``received`` how much a service's own answer has shifted, in
    one unit: their quotient is the part that comes from further down.
    """

    score: Floats
    delta: Floats
    known: Mask
    excess: Floats
    observed: Floats
    expected: Floats
    sample: Ints
    history: Ints
    passed: Floats
    received: Floats

    def as_shift(self, signal: str, unit: str, excess_unit: str, topology: Topology) -> Shift:
        blame = callee_blame(topology, self.delta, self.score > 0, self.known, of_shifted_alone=True)
        # What is held against the caller more than against the callee must not go down again.
        downward = np.maximum(self.passed, 0.0) * np.maximum(2 * blame - 1, 0.0)
        passed = np.where(self.score > 0, downward, 0.0)
        return Shift(
            signal=signal,
            unit=unit,
            excess_unit=excess_unit,
            src=topology.src,
            dst=topology.dst,
            score=self.score,
            excess=np.maximum(self.excess, 0.0),
            observed=self.observed,
            expected=self.expected,
            sample=self.sample,
            history=self.history,
            blame=blame,
            moves=moves_of(topology, np.log1p(self.score), blame, passed, np.maximum(self.received, 0.0)),
        )


def _per_call(total: Floats, calls: Floats) -> Floats:
    return ratio(total, calls, 0.0)


def _latency(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
    score, delta, known = _robust_z(current.latency_us, baseline.latency_us, MIN_SPREAD_US)
    return _Change(
        score=score,
        delta=delta,
        known=known,
        excess=delta * current.calls,
        observed=np.nan_to_num(current.latency_us.median),
        expected=np.nan_to_num(baseline.latency_us.median),
        sample=current.latency_us.sample,
        history=baseline.latency_us.windows,
        passed=_per_call(current.time_us, current.caller_calls) - _per_call(baseline.time_us, baseline.caller_calls),
        received=_per_call(current.received_time_us, current.received_calls)
        - _per_call(baseline.received_time_us, baseline.received_calls),
    ).as_shift("latency", "us", "us", topology)


def _ratio_shift(signal: str, current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
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
    return _Change(
        score=np.where(score >= Z_THRESHOLD, score, 0.0),
        delta=delta,
        known=known,
        excess=delta * current.calls,
        observed=np.nan_to_num(now.median),
        expected=np.nan_to_num(before.median),
        sample=now.sample,
        history=before.windows,
        passed=_per_call(now_count, current.caller_calls) - _per_call(before_count, baseline.caller_calls),
        received=_per_call(add_up(topology.dst, now_count, nodes), current.received_calls)
        - _per_call(add_up(topology.dst, before_count, nodes), baseline.received_calls),
    ).as_shift(signal, "ratio", "calls", topology)


def _missing_calls(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
    """Calls an edge lacks, given what its caller itself receives: less traffic from further up is no evidence."""
    expected = _per_call(baseline.calls, baseline.caller_calls) * current.caller_calls
    lacking = np.maximum(expected - current.calls, 0.0)
    score = lacking / np.sqrt(np.maximum(expected, 1.0) + (MISSING_SPREAD * expected) ** 2)
    known = (expected >= MIN_SAMPLE_CALLS) & (baseline.calls >= MIN_SAMPLE_CALLS)
    missing = known & (current.calls < MISSING_BELOW * expected) & (score >= Z_THRESHOLD)
    return _Change(
        score=np.where(missing, score, 0.0),
        delta=np.where(known, _per_call(lacking, expected), 0.0),
        known=known,
        excess=lacking,
        observed=current.calls,
        expected=expected,
        sample=current.calls.astype(np.int64),
        history=baseline.denied_ratio.windows,
        passed=np.zeros(len(expected)),
        received=np.zeros(len(topology.services)),
    ).as_shift("missing_calls", "calls", "calls", topology)
