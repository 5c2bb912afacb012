"""The trained network in numpy: no torch where windows are scored. Pure.

GraphSAGE with the mean aggregator (Hamilton et al. 2017, algorithm 1), over callers and callees apart, with edge
features beside those of the neighbour (as E-GraphSAGE, Lo et al. 2022). Each edge is judged by a graph that does not
hold it: edges are dealt into ``FOLDS`` and each fold is judged by the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from models.gnn.features import EDGE_FEATURES, NODE_FEATURES, PAST_FEATURES, GraphSample
from models.graph.registry import SIGNALS

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Weights = Mapping[str, Singles]

HIDDEN = 32
LAYERS = 2
FOLDS = 4
LOG_VARIANCE_REACH = 4.0
"""A predicted log variance lies within this of 0."""
_TINY = np.float32(1e-6)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight; matrices are ``(in, out)``. The network has no others."""
    nodes, edges = len(NODE_FEATURES), len(EDGE_FEATURES)
    found: dict[str, tuple[int, ...]] = {
        "node_mean": (nodes,),
        "node_scale": (nodes,),
        "edge_mean": (edges,),
        "edge_scale": (edges,),
    }
    width = nodes
    for layer in range(LAYERS):
        found[f"self_{layer}"] = (width, HIDDEN)
        for side in ("callers", "callees"):
            found[f"{side}_{layer}"] = (width, HIDDEN)
            found[f"{side}_edge_{layer}"] = (edges, HIDDEN)
        found[f"bias_{layer}"] = (HIDDEN,)
        width = HIDDEN
    for head, beside, out in (("link", HIDDEN, 1), ("signals", PAST_FEATURES, 2 * len(SIGNALS))):
        found[f"{head}_src"], found[f"{head}_dst"] = (HIDDEN, HIDDEN), (HIDDEN, HIDDEN)
        found[f"{head}_beside"], found[f"{head}_bias"] = (beside, HIDDEN), (HIDDEN,)
        found[f"{head}_out"], found[f"{head}_out_bias"] = (HIDDEN, out), (out,)
    return found


def parameter_count() -> int:
    """Return how many numbers are trained; the features' means and scales are measured, not trained."""
    return sum(int(np.prod(shape)) for name, shape in shapes().items() if not name.startswith(("node_", "edge_")))


@dataclass(frozen=True, slots=True)
class Judged:
    """What the network says of a window's edges with calls.

    Shapes:
        logit: ``(E,)`` float32, log odds that the two ends talk, NaN where that was not asked. mean, log_variance:
        ``(E, len(SIGNALS))`` float32 of
        the deviation of each signal, in spreads.
    """

    logit: Singles
    mean: Singles
    log_variance: Singles


def fold_of(present: int) -> Ints:
    """Return the fold of each edge, ``(E,)``: dealt in the window's order, which is that of identity."""
    return np.arange(present, dtype=np.int64) % FOLDS


def judge(weights: Weights, sample: GraphSample, *, all_links: bool = False) -> Judged:
    """Judge every edge with calls by the graph without its fold; whether its ends talk is asked of new edges alone."""
    nodes = (sample.nodes - weights["node_mean"]) / weights["node_scale"]
    edges = (sample.edges - weights["edge_mean"]) / weights["edge_scale"]
    fold = np.full(len(sample.src), -1, dtype=np.int64)
    fold[: sample.present] = fold_of(sample.present)
    logit = np.full(sample.present, np.nan, dtype=np.float32)
    is_asked = sample.is_new | all_links
    sides = _sides(sample.src, sample.dst, len(nodes))
    told = np.zeros((sample.present, 2 * len(SIGNALS)), dtype=np.float32)
    for number in range(FOLDS):
        hidden = np.flatnonzero(fold == number)
        if not len(hidden):
            continue
        embedded = _embed(weights, nodes, edges, sides, fold != number)
        src, dst = sample.src[hidden], sample.dst[hidden]
        asked = is_asked[hidden]
        if asked.any():
            logit[hidden[asked]] = link_logits(weights, embedded, src[asked], dst[asked])
        told[hidden] = _head(weights, "signals", embedded, src, dst, edges[hidden, :PAST_FEATURES])
    reach = LOG_VARIANCE_REACH
    return Judged(logit, told[:, : len(SIGNALS)], np.clip(told[:, len(SIGNALS) :], -reach, reach))


def embed(weights: Weights, nodes: Singles, edges: Singles, src: Ints, dst: Ints, kept: Mask) -> Singles:
    """Return each node's embedding, ``(N, HIDDEN)`` of unit length or 0, over the edges that are kept."""
    return _embed(weights, nodes, edges, _sides(src, dst, len(nodes)), kept)


def _sides(src: Ints, dst: Ints, count: int) -> tuple["_Side", "_Side"]:
    return _Side.of(dst, src, count), _Side.of(src, dst, count)


def _embed(weights: Weights, nodes: Singles, edges: Singles, sides: tuple["_Side", "_Side"], kept: Mask) -> Singles:
    near = [side.kept(kept, edges, len(nodes)) for side in sides]
    state = nodes
    for layer in range(LAYERS):
        total = state @ weights[f"self_{layer}"] + weights[f"bias_{layer}"]
        for side, name in zip(near, ("callers", "callees"), strict=True):
            # The mean comes before the product: at first nodes have fewer features than hidden ones.
            total += side.mean_of(state) @ weights[f"{name}_{layer}"]
            total += side.edges @ weights[f"{name}_edge_{layer}"]
        np.maximum(total, 0, out=total)
        length = np.sqrt(np.square(total).sum(axis=1)).astype(np.float32)
        state = np.divide(total, np.maximum(length, _TINY)[:, None], dtype=np.float32)
    return state


def link_logits(weights: Weights, embedded: Singles, src: Ints, dst: Ints) -> Singles:
    """Return the log odds that ``src`` calls ``dst``, each ``(E,)``."""
    product = embedded[src] * embedded[dst]
    logits: Singles = _head(weights, "link", embedded, src, dst, product)[:, 0]
    return logits


def _head(weights: Weights, head: str, embedded: Singles, src: Ints, dst: Ints, beside: Singles) -> Singles:
    total: Singles = beside @ weights[f"{head}_beside"]
    # Once a node, not once an edge: there are fewer of them.
    total += (embedded @ weights[f"{head}_src"] + weights[f"{head}_bias"])[src]
    total += (embedded @ weights[f"{head}_dst"])[dst]
    out = np.maximum(total, 0) @ weights[f"{head}_out"] + weights[f"{head}_out_bias"]
    return out.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class _Side:
    """All edges sorted by one end: which they are, that end, and the other. Shapes: ``(E,)`` int64 each."""

    neighbour: Ints
    order: Ints
    at: Ints

    @classmethod
    def of(cls, at: Ints, neighbour: Ints, count: int) -> "_Side":
        """Sort edges by their end ``at``, of ``count`` nodes."""
        places = np.arange(len(at), dtype=np.int32)
        order = csr_matrix((places, (at, places)), shape=(count, len(at))).indices.astype(np.int64)
        return cls(neighbour[order], order, at[order])

    def kept(self, kept: Mask, edges: Singles, count: int) -> "_Neighbours":
        """Return the means over the edges that are kept."""
        rows = kept[self.order]
        order, degree = self.order[rows], np.bincount(self.at[rows], minlength=count)
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(degree)])
        ones = np.ones(len(order), dtype=np.float32)
        matrix = csr_matrix((ones, self.neighbour[rows], bounds), shape=(count, count))
        gather = csr_matrix((ones, order, bounds), shape=(count, len(edges)))
        share = (1.0 / np.maximum(degree, 1)).astype(np.float32)[:, None]
        return _Neighbours(matrix, share, gather @ edges * share)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Neighbours on one side: a sparse ``(N, N)`` matrix of edges, one over their number, and mean edge features."""

    matrix: Any
    share: Singles
    edges: Singles

    def mean_of(self, state: Singles) -> Singles:
        """Return the mean of the neighbours' rows, 0 where there are none."""
        mean: Singles = (self.matrix @ state) * self.share
        return mean
