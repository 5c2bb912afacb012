"""Evidence of stored windows: edges that are not as in the baseline, and what they add to their caller. Pure."""

import numpy as np

from models.rca.evidence import (
    MIN_RELATIVE_SPREAD,
    MIN_SAMPLE_CALLS,
    MIN_SPREAD_RATIO,
    MIN_SPREAD_US,
    NO_CALLER,
    Z_THRESHOLD,
    Moves,
    Shift,
)
from models.rca.propagation import callee_blame, moves_of
from models.rca.robust import Floats, Mask, add_up, ratio
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
    nodes = len(topology.services)
    calls_others = np.bincount(topology.src, minlength=nodes) > 0
    return Shift(
        signal="self_time",
        unit="us",
        excess_unit="us",
        src=np.full(nodes, NO_CALLER, dtype=np.int64),
        dst=np.arange(nodes, dtype=np.int64),
        score=np.where(calls_others, score, 0.0),
        excess=np.maximum(delta, 0.0) * current.received_calls,
        observed=np.nan_to_num(current.self_us.median),
        expected=np.nan_to_num(baseline.self_us.median),
        sample=current.self_us.sample,
        history=baseline.self_us.windows,
        blame=np.ones(nodes),
        moves=Moves.none(),
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


def _edge_shift(
    signal: str,
    units: tuple[str, str],
    topology: Topology,
    evidence: tuple[Floats, Floats, Mask, Floats],
    levels: tuple[Floats, Floats],
    counts: tuple[Floats, Floats],
    flow: tuple[Floats, Floats],
) -> Shift:
    """Put a shift of edges together. ``evidence``: score, delta, known, excess; ``flow``: passed and received."""
    score, delta, known, excess = evidence
    blame = callee_blame(topology, delta, score > 0, known)
    # What is held against the caller more than against the callee must not go down again.
    passed = np.where(score > 0, np.maximum(flow[0], 0.0) * np.maximum(2 * blame - 1, 0.0), 0.0)
    return Shift(
        signal=signal,
        unit=units[0],
        excess_unit=units[1],
        src=topology.src,
        dst=topology.dst,
        score=score,
        excess=np.maximum(excess, 0.0),
        observed=levels[0],
        expected=levels[1],
        sample=counts[0].astype(np.int64),
        history=counts[1].astype(np.int64),
        blame=blame,
        moves=moves_of(topology, np.log1p(score), blame, passed, np.maximum(flow[1], 0.0)),
    )


def _per_call(total: Floats, calls: Floats) -> Floats:
    return ratio(total, calls, 0.0)


def _latency(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
    score, delta, known = _robust_z(current.latency_us, baseline.latency_us, MIN_SPREAD_US)
    passed = _per_call(current.time_us, current.caller_calls) - _per_call(baseline.time_us, baseline.caller_calls)
    received = _per_call(current.received_time_us, current.received_calls) - _per_call(
        baseline.received_time_us, baseline.received_calls
    )
    now, before = current.latency_us, baseline.latency_us
    return _edge_shift(
        "latency",
        ("us", "us"),
        topology,
        (score, delta, known, delta * current.calls),
        (np.nan_to_num(now.median), np.nan_to_num(before.median)),
        (now.sample.astype(np.float64), before.windows.astype(np.float64)),
        (passed, received),
    )


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
    passed = _per_call(now_count, current.caller_calls) - _per_call(before_count, baseline.caller_calls)
    received = _per_call(add_up(topology.dst, now_count, nodes), current.received_calls) - _per_call(
        add_up(topology.dst, before_count, nodes), baseline.received_calls
    )
    return _edge_shift(
        signal,
        ("ratio", "calls"),
        topology,
        (np.where(score >= Z_THRESHOLD, score, 0.0), delta, known, delta * current.calls),
        (np.nan_to_num(now.median), np.nan_to_num(before.median)),
        (now.sample.astype(np.float64), before.windows.astype(np.float64)),
        (passed, received),
    )


def _missing_calls(current: RangeLevels, baseline: RangeLevels, topology: Topology) -> Shift:
    """Calls an edge lacks, given what its caller itself receives: less traffic from further up is no evidence."""
    expected = _per_call(baseline.calls, baseline.caller_calls) * current.caller_calls
    lacking = np.maximum(expected - current.calls, 0.0)
    score = lacking / np.sqrt(np.maximum(expected, 1.0) + (MISSING_SPREAD * expected) ** 2)
    known = (expected >= MIN_SAMPLE_CALLS) & (baseline.calls >= MIN_SAMPLE_CALLS)
    missing = known & (current.calls < MISSING_BELOW * expected) & (score >= Z_THRESHOLD)
    nothing = np.zeros(len(expected))
    return _edge_shift(
        "missing_calls",
        ("calls", "calls"),
        topology,
        (np.where(missing, score, 0.0), np.where(known, _per_call(lacking, expected), 0.0), known, lacking),
        (current.calls, expected),
        (current.calls, baseline.denied_ratio.windows.astype(np.float64)),
        (nothing, np.zeros(len(topology.services))),
    )
