"""Evidence of metrics: latency and failures of services, their processor and memory, the network of edges. Pure.

A level is held against the baseline's median, in the swing from there to its 90th percentile: metrics are skewed, and
what happens every tenth sample is no evidence. Latencies and failures are of services with all they call, so
their excess (time lost, requests failed) is passed down the call graph to callees that account for it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from models.rca.evidence import (
    MIN_RELATIVE_SPREAD,
    MIN_SPREAD_US,
    NO_CALLER,
    PRIOR_WINDOWS,
    USUAL_UP_TO,
    Z_THRESHOLD,
    Moves,
    Shift,
    certainty_of,
)
from models.rca.propagation import callee_blame, moves_of
from models.rca.robust import Floats, Ints, Mask, add_up, count, quantile, ratio
from models.rca.topology import Topology
from schemas.rca_inputs import Metric, MetricSamples

SWING_TO_SIGMA = 1.2816
"""Spreads of a normal distribution from its median to its 90th percentile."""
RESOURCES = (Metric.CPU, Metric.MEMORY)


@dataclass(frozen=True, slots=True)
class _Levels:
    """Levels of one metric per subject, each ``(S,)``. ``requests``: in the range, 1 a sample where unknown."""

    now: Floats
    usual: Floats
    swing: Floats
    requests: Floats
    sample: Ints
    history: Ints

    @property
    def known(self) -> Mask:
        return (self.sample > 0) & (self.history > 0)


def metric_shifts(
    samples: MetricSamples, now: Mask, before: Mask, topology: Topology, leave_out: Collection[Metric] = ()
) -> tuple[Shift, ...]:
    """Return the shifts of all metrics that have samples in both ranges. ``topology`` must hold all services.

    Args:
        now, before: ``(R,)`` masks. leave_out: metrics that something better speaks for.
    """
    metrics = list(Metric)
    places = topology.places(samples.services)
    subject = places[samples.dst]
    of_edge = samples.src != NO_CALLER
    requests = _requests(samples)
    shifts = []
    for number, metric in enumerate(metrics):
        if metric is Metric.REQUESTS or metric in leave_out:
            continue
        use = (samples.metric == number) & ~np.isnan(samples.value) & (of_edge == (metric is Metric.NETWORK))
        if not (use & now).any() or not (use & before).any():
            continue
        weight = np.ones(int(use.sum())) if metric in RESOURCES else requests[use]
        if metric is Metric.NETWORK:
            edges = topology.edge_numbers(places[samples.src[use]], subject[use])
            levels = _levels(samples.value[use], weight, edges, len(topology), now[use], before[use])
            shifts.append(_network(levels, topology))
            continue
        levels = _levels(samples.value[use], weight, subject[use], len(topology.services), now[use], before[use])
        if metric in RESOURCES:
            shifts.append(_resource(metric, levels))
        elif metric is Metric.LATENCY:
            shifts.append(_latency(levels, topology))
        else:
            shifts.append(_failures(levels, topology))
    return tuple(shifts)


def _requests(samples: MetricSamples) -> Floats:
    """Return how many requests each sample stands for: those its service answered at that time, 1 where unknown."""
    wanted = samples.metric == list(Metric).index(Metric.REQUESTS)
    span = int(samples.at_ms.max(initial=0)) + 1
    key = samples.dst * span + samples.at_ms
    order = np.flatnonzero(wanted & ~np.isnan(samples.value))
    if not len(order):
        return np.ones(len(samples))
    order = order[np.argsort(key[order], kind="stable")]
    at = np.minimum(np.searchsorted(key[order], key), len(order) - 1)
    return np.where(key[order][at] == key, samples.value[order][at], 1.0)


def _levels(value: Floats, weight: Floats, subject: Ints, subjects: int, now: Mask, before: Mask) -> _Levels:
    requests = add_up(subject[now], weight[now], subjects)
    level = ratio(add_up(subject[now], value[now] * weight[now], subjects), requests, 0.0)
    usual = quantile(value[before], subject[before], subjects)
    swing = (quantile(value[before], subject[before], subjects, USUAL_UP_TO) - usual) / SWING_TO_SIGMA
    return _Levels(
        now=level,
        usual=np.nan_to_num(usual),
        swing=np.nan_to_num(swing),
        requests=requests,
        sample=np.where(requests > 0, count(subject[now], subjects), 0),
        history=count(subject[before], subjects),
    )


def _score(levels: _Levels, least: float) -> Floats:
    """Return spreads from the baseline. ``least``: the least believable swing."""
    relative = ratio(levels.swing, levels.usual, np.nan)
    enough = ~np.isnan(relative) & (levels.history >= PRIOR_WINDOWS)
    typical = float(np.median(relative[enough])) if enough.any() else MIN_RELATIVE_SPREAD
    mixed = (levels.swing**2 * levels.history + PRIOR_WINDOWS * (typical * levels.usual) ** 2) / (
        levels.history + PRIOR_WINDOWS
    )
    swing = np.sqrt(mixed + (MIN_RELATIVE_SPREAD * levels.usual) ** 2 + least**2)
    z = np.where(levels.known, ratio(levels.now - levels.usual, swing, 0.0), 0.0)
    return np.maximum(z, 0.0)


def _own(
    signal: str, unit: str, excess_unit: str, levels: _Levels, score: Floats, excess: Floats, moves: Moves
) -> Shift:
    return Shift.of_services(
        signal,
        unit,
        excess_unit,
        score=score,
        excess=np.where(levels.known, excess, 0.0),
        observed=levels.now,
        expected=levels.usual,
        sample=levels.sample,
        history=levels.history,
        moves=moves,
    )


def _resource(metric: Metric, levels: _Levels) -> Shift:
    # An idle service that wakes is no news: the least swing is a share of what the typical service uses.
    in_use = levels.usual[levels.history > 0]
    score = _score(levels, MIN_RELATIVE_SPREAD * float(np.median(in_use)))
    return _own(metric.value, metric.value, metric.value, levels, score, levels.now - levels.usual, Moves.none())


def _down(excess: Floats, score: Floats, topology: Topology) -> Moves:
    """Return the moves of what services lose with all they call.

    No metric says how much of a callee's excess one caller saw: as much as the caller has itself, at most, and as far
    as it is certain.
    """
    lost = np.maximum(excess, 0.0)
    passed = np.minimum(lost[topology.src], lost[topology.dst]) * certainty_of(score)[topology.dst]
    edges = len(topology)
    return moves_of(topology, np.zeros(edges), np.ones(edges), passed, lost)


def _latency(levels: _Levels, topology: Topology) -> Shift:
    score = _score(levels, MIN_SPREAD_US)
    excess = (levels.now - levels.usual) * levels.requests
    return _own("latency", "us", "us", levels, score, excess, _down(excess, score, topology))


def _failures(levels: _Levels, topology: Topology) -> Shift:
    requests = np.maximum(levels.requests, 1.0)
    by_chance = levels.usual * (1 - levels.usual) / requests
    spread = np.sqrt(by_chance + 1 / requests**2 + levels.swing**2)  # one failure more or less is no evidence
    z = np.where(levels.known, (levels.now - levels.usual) / spread, 0.0)
    score = np.maximum(z, 0.0)
    excess = (levels.now - levels.usual) * levels.requests
    return _own("error_ratio", "ratio", "calls", levels, score, excess, _down(excess, score, topology))


def _network(levels: _Levels, topology: Topology) -> Shift:
    score = _score(levels, MIN_SPREAD_US)
    rise = np.where(levels.known, levels.now - levels.usual, 0.0)
    excess = np.maximum(rise * levels.requests, 0.0)
    blame = callee_blame(topology, rise, score >= Z_THRESHOLD, levels.known)
    return Shift(
        signal="network",
        unit="us",
        excess_unit="us",
        src=topology.src,
        dst=topology.dst,
        score=score,
        excess=excess,
        observed=levels.now,
        expected=levels.usual,
        sample=levels.sample,
        history=levels.history,
        blame=blame,
        moves=moves_of(topology, excess * certainty_of(score), blame),
    )
