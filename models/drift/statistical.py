"""Statistical kinds: one edge, one signal, against its own baseline. Pure, vectorised over a window's edges.

A detection needs three things at once: a robust z-score, a minimum effect, and a minimum sample (calls and history).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift import trend
from models.drift.detection import Detection, confidence_of, rounded
from models.drift.persistence import DIRECTIONS, FEWER, SLOW, level_of
from models.drift.slowness import SLOW_CALLS, Slowness
from models.drift.trend import MIN_BYTES
from models.graph.registry import BYTES, CALLS, ERRORS, P50, P95
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef, Evidence
from schemas.tenant_log import EdgeIdentity

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

P95_CALLS = 100
"""Calls of which five are beyond the p95; of fewer it is little else than the slowest one."""
SAMPLED = "sampled"
"""Signal of the evidence that says that the others are estimates."""
SAMPLED_CONFIDENCE = 0.75
"""What is left of the confidence in numbers that were estimated from a sample."""
_UNITS = {CALLS: "calls", BYTES: "bytes", ERRORS: "ratio", P50: "us", P95: "us"}
_NAMES = {
    CALLS: "calls_per_window",
    BYTES: "bytes_per_window",
    ERRORS: "error_ratio",
    P50: "latency_p50_us",
    P95: "latency_p95_us",
}
_SIGNAL_OF = {name: signal for signal, name in _NAMES.items()}
ROBUST_Z = "robust-z"


@dataclass(frozen=True, slots=True)
class EdgeSignals:
    """Edges of one window with their signals and baselines before this window.

    Shapes:
        values, mean, spread, scores: ``(E, len(SIGNALS))`` float64, log1p units but for the error ratio.
        history: alike, int32. calls, latency_calls: ``(E,)`` int64, those that were seen, not what they were multiplied
        to. scale: ``(E,)`` float64, calls that each one seen stands for. sampled: ``(E,)`` int64, records of a sample;
        0 where everything was seen. sampling: ``(E,)`` int64, one in how many such a sample has. trend, creeping:
        alike, the long means and which signals moved away from them slowly; None: not looked at. news: ``(E,
        DIRECTIONS)``, which departures are rare for their edge, or last; None: all that reach the threshold.
    """

    values: FloatColumn
    mean: FloatColumn
    spread: FloatColumn
    scores: FloatColumn
    history: npt.NDArray[np.int32]
    calls: IntColumn
    latency_calls: IntColumn
    scale: FloatColumn
    sampled: IntColumn
    sampling: IntColumn
    trend: FloatColumn | None = None
    creeping: Mask | None = None
    news: Mask | None = None

    def take(self, rows: IntColumn) -> "EdgeSignals":
        """Return some of the edges."""
        return EdgeSignals(
            self.values[rows],
            self.mean[rows],
            self.spread[rows],
            self.scores[rows],
            self.history[rows],
            self.calls[rows],
            self.latency_calls[rows],
            self.scale[rows],
            self.sampled[rows],
            self.sampling[rows],
            None if self.trend is None else self.trend[rows],
            None if self.creeping is None else self.creeping[rows],
            None if self.news is None else self.news[rows],
        )


def _effects(signals: EdgeSignals, signal: int) -> tuple[FloatColumn, FloatColumn]:
    if signal == ERRORS:
        return signals.values[:, signal], np.clip(signals.mean[:, signal], 0.0, 1.0)
    return np.expm1(signals.values[:, signal]), np.expm1(signals.mean[:, signal])


def _worth(config: DetectionConfig, signals: EdgeSignals) -> tuple[Mask, Mask]:
    """Return where a departure would be worth an event, and where a window says whether there is one.

    Shapes:
        ``(E, SLOW)`` each: signals upwards, then calls downwards.
    """
    ripe = signals.history >= config.min_history
    enough = signals.calls >= config.min_calls
    timed = signals.latency_calls >= config.min_calls
    calls, usual_calls = _effects(signals, CALLS)
    volume, usual_volume = _effects(signals, BYTES)
    errors, usual_errors = _effects(signals, ERRORS)
    counted = (signals.sampled == 0) | (signals.sampled >= config.min_calls)
    busy = usual_calls >= config.min_calls * signals.scale
    worth, judged = np.zeros((len(calls), SLOW), dtype=bool), np.zeros((len(calls), SLOW), dtype=bool)
    with np.errstate(invalid="ignore"):
        worth[:, CALLS] = enough & (calls >= config.min_effect_ratio * usual_calls)
        judged[:, CALLS] = True
        worth[:, BYTES] = (volume >= MIN_BYTES) & (volume >= config.min_effect_ratio * usual_volume)
        judged[:, BYTES] = counted
        worth[:, ERRORS] = errors - usual_errors >= config.min_error_shift
        judged[:, ERRORS] = enough
        for signal in (P50, P95):
            latency, usual = _effects(signals, signal)
            worth[:, signal] = (latency >= config.min_effect_ratio * usual) & (
                latency - usual >= config.min_latency_shift_us
            )
            judged[:, signal] = timed
        worth[:, FEWER] = calls * config.min_effect_ratio <= usual_calls
        judged[:, FEWER] = busy
    known = ~np.isnan(signals.values) & ripe
    judged &= np.column_stack([known, known[:, CALLS]])
    return worth & judged, judged


def levels_of(config: DetectionConfig, signals: EdgeSignals, slowness: Slowness) -> tuple[IntColumn, Mask]:
    """Return how far edges depart in each direction (models/drift/persistence.py), and where a window says so.

    Shapes:
        ``(E, DIRECTIONS)`` each.
    """
    scores = np.column_stack([signals.scores, -signals.scores[:, CALLS]])
    worth, judged = (np.zeros((len(scores), DIRECTIONS), dtype=bool) for _ in range(2))
    worth[:, :SLOW], judged[:, :SLOW] = _worth(config, signals)
    judged[:, P95] &= signals.latency_calls >= P95_CALLS
    worth[:, SLOW], judged[:, SLOW] = slowness.gain > 0, slowness.judged
    level = np.zeros(worth.shape, dtype=np.int64)
    level[:, :SLOW] = level_of(np.where(worth[:, :SLOW], scores, 0.0), config.z_threshold)
    level[:, SLOW] = level_of(np.where(worth[:, SLOW], slowness.doubt, 0.0), config.slow_call_doubt)
    return level, judged


def _masks(config: DetectionConfig, signals: EdgeSignals, may_drop: bool) -> dict[tuple[DriftKind, int], Mask]:
    worth, _ = _worth(config, signals)
    with np.errstate(invalid="ignore"):
        far = np.column_stack([signals.scores, -signals.scores[:, CALLS]]) >= config.z_threshold
    told = worth & (far if signals.news is None else signals.news[:, :SLOW])
    kinds = {(kind, signal): told[:, signal] for signal, kind in trend.KINDS.items()}
    return kinds | ({(DriftKind.RATE_DROP, CALLS): told[:, FEWER]} if may_drop else {})


def _creeps(config: DetectionConfig, signals: EdgeSignals) -> dict[tuple[DriftKind, int], Mask]:
    if signals.trend is None or signals.creeping is None:
        return {}
    return trend.creeps(
        config, signals.values, signals.trend, signals.creeping, signals.calls, signals.latency_calls, signals.sampled
    )


def drops(config: DetectionConfig, signals: EdgeSignals) -> Mask:
    """Say which edges carry far fewer calls than usual. Shape ``(E,)``."""
    calls, usual_calls = _effects(signals, CALLS)
    with np.errstate(invalid="ignore"):
        mask: Mask = (
            (signals.history[:, CALLS] >= config.min_history)
            & (signals.scores[:, CALLS] <= -config.z_threshold)
            & (usual_calls >= config.min_calls * signals.scale)
            & (calls * config.min_effect_ratio <= usual_calls)
        )
    return mask


def evidence_of(signals: EdgeSignals, row: int, signal: int, is_creep: bool = False) -> Evidence:
    """State one signal of one edge: observed, expected, score, sample, history.

    Args:
        is_creep: against its long mean, not its baseline.
    """
    # One row alone: whole columns a detection would make a window with many detections quadratic.
    usual = signals.trend if is_creep and signals.trend is not None else signals.mean
    observed, expected = float(signals.values[row, signal]), float(usual[row, signal])
    if signal == ERRORS:
        expected = min(max(expected, 0.0), 1.0)
    else:
        observed, expected = math.expm1(observed), math.expm1(expected)
    sample = signals.latency_calls[row] if signal in (P50, P95) else signals.calls[row]
    return Evidence(
        signal=_NAMES[signal],
        observed=rounded(observed),
        expected=rounded(expected),
        unit=_UNITS[signal],
        score=0.0 if is_creep else round(float(signals.scores[row, signal]), 2),
        sample=int(sample),
        history=int(signals.history[row, signal]),
        detector=trend.DETECTOR if is_creep else ROBUST_Z,
    )


def signals_departing(detection: Detection) -> list[int]:
    """Return the signals by whose own baseline a detection speaks."""
    return [_SIGNAL_OF[item.signal] for item in detection.evidence if item.detector == ROBUST_Z]


def directions_of(detection: Detection) -> list[int]:
    """Return the directions (models/drift/persistence.py) in which an edge departs, by a detection of it."""
    if detection.kind is DriftKind.RATE_DROP:
        return [FEWER]
    slow = [SLOW] if any(item.signal == SLOW_CALLS for item in detection.evidence) else []
    return signals_departing(detection) + slow


def sample_of(signals: EdgeSignals, row: int) -> Evidence:
    """State that the numbers of an edge are estimates: from how many records, which are one in how many."""
    return Evidence(
        signal=SAMPLED,
        observed=float(signals.sampling[row]),
        expected=1.0,
        unit="",
        score=0.0,
        sample=int(signals.sampled[row]),
        history=0,
        detector="sampling",
    )


def risk_of(kind: DriftKind, evidence: Evidence) -> int:
    """Rate a statistical detection: doublings of the effect, or tenths of the error ratio, on a base per kind."""
    base = {DriftKind.ERROR_INCREASE: 40, DriftKind.LATENCY_INCREASE: 35, DriftKind.RATE_DROP: 40}.get(kind, 25)
    if evidence.unit == "ratio":
        effect = (evidence.observed - evidence.expected) * 50
    else:
        low, high = sorted((max(evidence.observed, 1.0), max(evidence.expected, 1.0)))
        effect = 10 * float(np.log2(high / low))
    weight = min(1.0, 0.6 + evidence.sample / 250)
    return int(min(95, base + round(effect * weight, 6)))


def judge(
    config: DetectionConfig,
    signals: EdgeSignals,
    eligible: Mask,
    identity: Callable[[int], EdgeIdentity],
    window_start_ms: int,
    may_drop: bool,
    slow: Mapping[int, Evidence] | None = None,
) -> list[tuple[int, Detection]]:
    """Return ``(row, detection)`` for every edge and kind that is not as expected.

    Shapes:
        eligible: ``(E,)`` bool, edges of tenants that have learned. identity: row to edge identity.
        slow: evidence of edges whose calls have become slow, by row; it stands for p95 where calls are
            few. ``None``: nobody has looked.
    """
    found: dict[tuple[int, DriftKind], list[Evidence]] = {}
    for row in slow or ():
        if eligible[row] and slow is not None:
            found[row, DriftKind.LATENCY_INCREASE] = [slow[row], evidence_of(signals, row, P95)]
    for is_creep, masks in ((False, _masks(config, signals, may_drop)), (True, _creeps(config, signals))):
        for (kind, signal), mask in masks.items():
            if signal == P95 and slow is not None and not is_creep:
                mask = mask & (signals.latency_calls >= P95_CALLS)
            for row in np.flatnonzero(mask & eligible).tolist():
                found.setdefault((row, kind), []).append(evidence_of(signals, row, signal, is_creep))
    detections = []
    for (row, kind), items in found.items():
        evidence = tuple(items)
        confidence = confidence_of(min(item.history for item in evidence))
        risk = max(risk_of(kind, item) for item in evidence)
        if signals.sampled[row]:
            confidence = int(confidence * SAMPLED_CONFIDENCE)
            evidence = (*evidence, sample_of(signals, row))
        _, src, dst, port, protocol = identity(row)
        detection = Detection(
            kind=kind,
            src=src,
            dst=dst,
            port=port,
            protocol=protocol,
            edges=(EdgeRef(src, dst, port, protocol),),
            edges_total=1,
            evidence=evidence,
            risk=risk,
            confidence=confidence,
            first_seen_ms=window_start_ms,
        )
        detections.append((row, detection))
    return detections
