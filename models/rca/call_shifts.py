"""Evidence of single calls: services that are slow themselves, and edges that make their caller wait. Pure.

A call is slow when it takes longer than nine in ten calls of its operation did before. The share of slow calls is
compared, not a mean: it cannot be moved by one call that hangs, needs few calls, and its chance variation is known.
"""

from dataclasses import dataclass

import numpy as np

from models.rca.calls import CallTable
from models.rca.evidence import (
    MIN_RELATIVE_SPREAD,
    MIN_SAMPLE_CALLS,
    MIN_SPREAD_US,
    PRIOR_WINDOWS,
    TYPICAL_WANDERING,
    USUAL_UP_TO,
    Z_THRESHOLD,
    Shift,
    certainty_of,
)
from models.rca.propagation import callee_blame, moves_of
from models.rca.robust import Floats, Ints, Mask, add_up, count, quantile, ratio
from models.rca.topology import Topology


@dataclass(frozen=True, slots=True)
class SlowCalls:
    """Share of slow calls per subject, now and before, each ``(S,)``.

    ``z``: how far the share has risen, in its spread. ``excess_us``: time lost beyond the baseline's slow calls.
    """

    z: Floats
    excess_us: Floats
    now: Floats
    before: Floats
    sample: Ints
    windows: Ints


def slow_calls(
    took_us: Floats, operation: Ints, subject: Ints, subjects: int, window: Ints, now: Mask, before: Mask
) -> SlowCalls:
    """Compare two ranges of calls.

    Shapes: took_us, operation, subject, window: ``(R,)``; ``subject`` below ``subjects``, ``operation`` decides what
    is usual. now, before: ``(R,)`` masks.
    """
    operations = int(operation.max(initial=-1)) + 1
    usual, of = took_us[before], operation[before]
    median = quantile(usual, of, operations)
    limit = np.maximum(
        quantile(usual, of, operations, USUAL_UP_TO), median + MIN_RELATIVE_SPREAD * np.abs(median) + MIN_SPREAD_US
    )
    limit[count(of, operations) < MIN_SAMPLE_CALLS] = np.nan
    beyond_us = np.maximum(took_us - limit[operation], 0.0)  # NaN where the operation is new
    is_known = ~np.isnan(beyond_us)
    now, before = now & is_known, before & is_known
    is_slow = (beyond_us > 0).astype(np.float64)
    sample, history = count(subject[now], subjects), count(subject[before], subjects)
    slow_now, slow_before = (
        add_up(subject[now], is_slow[now], subjects),
        add_up(subject[before], is_slow[before], subjects),
    )
    share = ratio(slow_now, sample.astype(np.float64), 0.0)
    # A few calls that were all quick do not show that none is ever slow.
    usual_share = (slow_before + PRIOR_WINDOWS * (1 - USUAL_UP_TO)) / (history + PRIOR_WINDOWS)
    by_chance = usual_share * (1 - usual_share)
    between, windows = _between_windows(is_slow[before], subject[before], window[before], usual_share, subjects)
    spread = np.sqrt(by_chance * (1 / np.maximum(sample, 1) + 1 / np.maximum(history, 1)) + between)
    known = (sample > 0) & (history > 0)
    lost = add_up(subject[now], beyond_us[now], subjects)
    usual_lost = ratio(add_up(subject[before], beyond_us[before], subjects), history.astype(np.float64), 0.0)
    return SlowCalls(
        z=np.where(known, (share - usual_share) / spread, 0.0),
        excess_us=np.where(known, np.maximum(lost - usual_lost * sample, 0.0), 0.0),
        now=share,
        before=ratio(slow_before, history.astype(np.float64), 0.0),
        sample=sample,
        windows=windows,
    )


def _between_windows(
    is_slow: Floats, subject: Ints, window: Ints, usual_share: Floats, subjects: int
) -> tuple[Floats, Ints]:
    """Return by how much the share wanders from window to window beyond chance, as a variance, and the windows."""
    names, number = np.unique(window, return_inverse=True)
    cell = subject * max(len(names), 1) + number
    shape = (subjects, max(len(names), 1))
    calls = count(cell, shape[0] * shape[1]).reshape(shape)
    slow = add_up(cell, is_slow, shape[0] * shape[1]).reshape(shape)
    use = calls >= MIN_SAMPLE_CALLS
    off = (slow / np.maximum(calls, 1) - usual_share[:, None]) ** 2
    chance = (usual_share * (1 - usual_share))[:, None] / np.maximum(calls, 1)
    windows = use.sum(axis=1).astype(np.int64)
    variance = np.maximum(ratio(np.where(use, off - chance, 0.0).sum(axis=1), windows.astype(np.float64), 0.0), 0.0)
    enough = windows >= MIN_SAMPLE_CALLS
    typical = float(np.median(variance[enough])) if enough.any() else TYPICAL_WANDERING**2
    return (variance * windows + PRIOR_WINDOWS * typical) / (windows + PRIOR_WINDOWS), windows


def time_shifts(calls: CallTable, now: Mask, before: Mask, topology: Topology) -> tuple[Shift, Shift]:
    """Return the shifts of services' self time and of the time edges add to it. ``topology`` must hold all calls."""
    places = topology.places(calls.services)
    nodes = len(topology.services)
    own = slow_calls(calls.self_us, calls.operation, places[calls.dst], nodes, calls.window, now, before)
    self_time = Shift.of_services(
        "self_time",
        "ratio",
        "us",
        score=own.z,
        excess=own.excess_us,
        observed=own.now,
        expected=own.before,
        sample=own.sample,
        history=own.windows,
    )
    edge_of = topology.edge_numbers(places[calls.src], places[calls.dst])
    edges = len(topology)
    waits = slow_calls(calls.network_us, calls.edge_operation, edge_of, edges, calls.window, now, before)
    score = np.maximum(waits.z, 0.0)
    delta = _typical_rise(calls, edge_of, edges, now, before)
    blame = callee_blame(topology, delta, score >= Z_THRESHOLD, waits.sample > 0)
    network = Shift(
        signal="network",
        unit="ratio",
        excess_unit="us",
        src=topology.src,
        dst=topology.dst,
        score=score,
        excess=waits.excess_us,
        observed=waits.now,
        expected=waits.before,
        sample=waits.sample,
        history=waits.windows,
        blame=blame,
        moves=moves_of(topology, waits.excess_us * certainty_of(score), blame),
    )
    return self_time, network


def _typical_rise(calls: CallTable, edge_of: Ints, edges: int, now: Mask, before: Mask) -> Floats:
    """Return by how much an edge's calls typically wait longer than the same operations did before, us, ``(E,)``."""
    operations = int(calls.edge_operation.max(initial=-1)) + 1
    usual = quantile(calls.network_us[before], calls.edge_operation[before], operations)
    rise = calls.network_us[now] - usual[calls.edge_operation[now]]
    known = ~np.isnan(rise)
    return np.nan_to_num(quantile(rise[known], edge_of[now][known], edges))
