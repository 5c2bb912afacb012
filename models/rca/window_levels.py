"""What a service graph did over a range of windows, and how far that is from an earlier range. Pure, vectorised.

Every level is a median over windows weighted by calls, every spread the weighted median deviation *between*
baseline windows: the spread within a window says how unlike single calls are, not how unlike two minutes are.
"""

from dataclasses import dataclass

import numpy as np

from models.rca.robust import MAD_TO_SIGMA, Floats, Ints, Mask, add_up, count, numbered, ratio, weighted_median
from models.rca.topology import Topology
from schemas.rca import ServiceWindowEdges


@dataclass(frozen=True, slots=True)
class Level:
    """Level of a signal per subject: weighted median, weighted spread, calls and windows it rests on, each ``(S,)``."""

    median: Floats
    spread: Floats
    sample: Ints
    windows: Ints

    @property
    def known(self) -> Mask:
        """Where there was anything to take the median of."""
        return self.windows > 0


@dataclass(frozen=True, slots=True)
class RangeLevels:
    """Signals of a range: robust levels per edge (``E``) and per service (``N``), and plain totals.

    ``served_us``: a service's latency as its callers see it. ``self_us``: that less the time of its own calls per call
    received (below zero where its calls run in parallel). Totals are summed over the range: of an edge its ``calls``,
    ``time_us`` and ``errors``, and ``caller_calls``, the calls its caller *received*, for an entry point those it made.
    """

    windows: int
    latency_us: Level
    error_ratio: Level
    denied_ratio: Level
    served_us: Level
    self_us: Level
    calls: Floats
    caller_calls: Floats
    time_us: Floats
    errors: Floats
    denied: Floats
    received_calls: Floats
    received_time_us: Floats


@dataclass(frozen=True, slots=True)
class _Cells:
    """Rows added up to one per edge and window. Means are NaN where unknown."""

    windows: int
    window: Ints
    edge: Ints
    calls: Floats
    denied: Floats
    error_calls: Floats
    errors: Floats
    latency_calls: Floats
    latency_sum_us: Floats
    p50_us: Floats


def _cells_of(edges: ServiceWindowEdges, edge: Ints, edge_count: int) -> _Cells:
    starts, window = np.unique(edges.window_start_ms, return_inverse=True)
    cells, cell = numbered(window * edge_count + edge, len(starts) * edge_count)

    def total(values: Ints, where: Mask) -> Floats:
        weights = np.where(where, values, 0).astype(np.float64)
        return add_up(cell, weights, len(cells))

    everywhere = np.ones(len(edges), dtype=np.bool_)
    knows_errors, knows_latency = edges.errors >= 0, edges.latency_calls > 0
    knows_p50 = knows_latency & (edges.p50_us >= 0)
    weight = edges.latency_calls
    return _Cells(
        windows=len(starts),
        window=cells // edge_count,
        edge=cells % edge_count,
        calls=total(edges.calls, everywhere),
        denied=total(edges.denied, edges.denied > 0),
        error_calls=total(edges.calls, knows_errors),
        errors=total(edges.errors, knows_errors),
        latency_calls=total(weight, knows_latency),
        latency_sum_us=total(edges.latency_sum_us, knows_latency),
        # Medians of several ports cannot be added: their mean, weighted by calls, stands in.
        p50_us=ratio(total(edges.p50_us * weight, knows_p50), total(weight, knows_p50)),
    )


def graph_of(*ranges: ServiceWindowEdges) -> tuple[Topology, list[Ints]]:
    """Return the union of the ranges' edges, and which edge each of their rows is of."""
    names = sorted({name for one in ranges for column in (one.src, one.dst) for name in column.present()})
    topology = Topology(names, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    nodes = max(len(names), 1)
    keys = [topology.places_of(one.src) * nodes + topology.places_of(one.dst) for one in ranges]
    pairs, edge = np.unique(np.concatenate(keys), return_inverse=True)
    ends = np.cumsum([len(key) for key in keys])[:-1]
    return Topology(names, pairs // nodes, pairs % nodes), np.split(edge.astype(np.int64), ends)


def levels_of(
    edges: ServiceWindowEdges, topology: Topology, edge: Ints | None = None, *, spread: bool = True
) -> RangeLevels:
    """Fold a range into levels and totals. ``topology`` must hold all its edges.

    Args:
        edge: which edge of the topology each row is of, ``(R,)``; looked up where not given.
        spread: without it spreads are left out (zero): those of the range under question are never looked at.
    """
    if edge is None:
        edge = topology.edge_numbers(topology.places_of(edges.src), topology.places_of(edges.dst))
    cells = _cells_of(edges, edge, max(len(topology), 1))
    edge_count, nodes = len(topology), len(topology.services)
    mean_us = ratio(cells.latency_sum_us, cells.latency_calls)
    time_us = np.nan_to_num(mean_us) * cells.calls
    received = cells.window * nodes + topology.dst[cells.edge]
    sent = cells.window * nodes + topology.src[cells.edge]
    grid = cells.windows * nodes
    in_calls, out_calls = add_up(received, cells.calls, grid), add_up(sent, cells.calls, grid)
    in_latency_calls = add_up(received, cells.latency_calls, grid)
    served = ratio(add_up(received, cells.latency_sum_us, grid), in_latency_calls)
    spent = np.nan_to_num(ratio(add_up(sent, time_us, grid), in_calls))
    node = np.tile(np.arange(nodes, dtype=np.int64), cells.windows)
    per_node_in, per_node_out = add_up(node, in_calls, nodes), add_up(node, out_calls, nodes)
    is_entry = np.bincount(topology.dst, minlength=nodes) == 0
    base_calls = np.where(is_entry, per_node_out, per_node_in)
    return RangeLevels(
        windows=cells.windows,
        latency_us=_level(
            np.where(np.isnan(cells.p50_us), mean_us, cells.p50_us), cells.latency_calls, cells.edge, edge_count, spread
        ),
        error_ratio=_level(ratio(cells.errors, cells.error_calls), cells.error_calls, cells.edge, edge_count, spread),
        denied_ratio=_level(ratio(cells.denied, cells.calls), cells.calls, cells.edge, edge_count, spread),
        served_us=_level(served, in_latency_calls, node, nodes, spread),
        self_us=_level(served - spent, in_latency_calls, node, nodes, spread),
        calls=add_up(cells.edge, cells.calls, edge_count),
        caller_calls=base_calls[topology.src],
        time_us=add_up(cells.edge, time_us, edge_count),
        errors=add_up(cells.edge, cells.errors, edge_count),
        denied=add_up(cells.edge, cells.denied, edge_count),
        received_calls=per_node_in,
        received_time_us=add_up(topology.dst, add_up(cells.edge, time_us, edge_count), nodes),
    )


def _level(values: Floats, weights: Floats, subject: Ints, subjects: int, spread: bool) -> Level:
    use = ~np.isnan(values) & (weights > 0)
    values, weights, subject = values[use], weights[use], subject[use]
    median = weighted_median(values, weights, subject, subjects)
    deviation = np.abs(values - median[subject]) if spread else values * 0
    return Level(
        median=median,
        spread=MAD_TO_SIGMA * weighted_median(deviation, weights, subject, subjects),
        sample=np.bincount(subject, weights=weights, minlength=subjects).astype(np.int64),
        windows=count(subject, subjects),
    )
