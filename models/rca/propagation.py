"""Move evidence over the call graph to where it comes from, without making any. Pure.

Evidence starts at the callee of each shifted edge and takes two kinds of steps:

- *down*: the part of a service's own shift that its calls account for goes to their callees, since a caller is slow or
  fails because its callee does;
- *up*: where one caller sees all its callees shifted alike while their other callers see nothing, the common cause is
  that caller, so its callees hand the evidence back.

The walk is a personalised PageRank whose damping differs from service to service: a service keeps what neither step
explains. All that is kept adds up to all that was put in, so propagation redistributes the seed and cannot outvote it.
Source: Page et al. 1999, section 6 (personalisation); the absorbing form follows from per-node damping.
"""

import numpy as np

from models.rca.baseline import Floats, Ints, Topology, add_up
from models.rca.shifts import EdgeShift

DAMPING = 0.85
"""Largest share of its evidence a service gives away in one step; bounds walks around a cycle."""
MAX_STEPS = 200
TOLERANCE = 1e-9
UNSEEN_BY_OTHERS = 0.3
"""Agreement assumed where there is no other edge to ask: weaker than a witness, stronger than a denial."""
CLEAR_SHIFT = 0.5
"""Agreement of a caller that sees the callee shifted too, however little."""
LEAST_BLAME = 0.1
"""Keeps a share with the callee: its edge is the one that was seen to shift."""


def callee_blame(shift: EdgeShift, topology: Topology) -> Floats:
    """Return for each edge the share of its shift, 0..1, that is the callee's rather than the caller's, ``(E,)``.

    Agreement of another edge is how much of this edge's shift it shows too, in the signal's own unit: what slows a
    caller down adds about the same time to all it does. A slow callee may slow some operations more than others, so
    another caller that sees a clear shift of any size agrees by ``CLEAR_SHIFT`` at least.
    """
    blame = np.ones(len(topology))
    outgoing, incoming = _edges_by(topology.src), _edges_by(topology.dst)
    for e in np.flatnonzero(shift.score > 0):
        callers = _agreement(shift, incoming[int(topology.dst[e])], int(e), CLEAR_SHIFT)
        siblings = _agreement(shift, outgoing[int(topology.src[e])], int(e))
        callee_side = float(np.median(callers)) if len(callers) else UNSEEN_BY_OTHERS
        if len(siblings):
            # One sibling may agree by chance, five hardly.
            caller_side = float(np.median(siblings)) * len(siblings) / (len(siblings) + 1)
        else:
            # Nothing speaks against the caller; it comes into question where others speak for the callee.
            caller_side = UNSEEN_BY_OTHERS * (1 - callee_side) if len(callers) else 0.0
        blame[e] = (callee_side + LEAST_BLAME) / (callee_side + LEAST_BLAME + caller_side)
    return blame


def _edges_by(end: Ints) -> dict[int, Ints]:
    order = np.argsort(end, kind="stable")
    names, first = np.unique(end[order], return_index=True)
    parts = np.split(order, first[1:]) if len(first) else []
    return {int(name): part for name, part in zip(names, parts, strict=True)}


def _agreement(shift: EdgeShift, edges: Ints, edge: int, clear: float = 0.0) -> Floats:
    others = edges[(edges != edge) & shift.known[edges]]
    agreement: Floats = np.clip(shift.delta[others] / shift.delta[edge], 0.0, 1.0)
    agreement = np.maximum(agreement, np.where(shift.score[others] > 0, clear, 0.0))
    return agreement


def seed_of(shift: EdgeShift, topology: Topology) -> Floats:
    """Return each service's evidence before propagation, ``(N,)``: the strongest shift among the edges to it.

    Scores enter as logarithms: a thousand spreads are not ten times the reason that a hundred are.
    """
    seed = np.zeros(len(topology.services))
    np.maximum.at(seed, topology.dst, np.log1p(shift.score))
    return seed


def redistribute(seed: Floats, shift: EdgeShift, topology: Topology) -> tuple[Floats, Floats]:
    """Return what of ``seed`` ends at each service, ``(N,)``, and the callee's blame per edge, ``(E,)``.

    The result is not negative and sums to ``seed.sum()`` (to rounding).
    """
    nodes = len(topology.services)
    src, dst = topology.src, topology.dst
    blame = callee_blame(shift, topology)
    shifted = shift.score > 0
    # What is held against the caller more than against the callee must not go down again.
    passed = np.where(shifted, shift.passed * np.maximum(2 * blame - 1, 0.0), 0.0)
    sum_passed = add_up(src, passed, nodes)
    whole = np.maximum(shift.received, sum_passed)
    explained = np.divide(sum_passed, whole, out=np.zeros(nodes), where=whole > 0)
    weight = np.log1p(shift.score)
    sum_weight = add_up(dst, weight, nodes)
    of_callee = np.divide(weight, sum_weight[dst], out=np.zeros(len(dst)), where=sum_weight[dst] > 0)
    # Only what the callee's own calls do not explain can be its caller's doing.
    up = of_callee * (1 - blame) * (1 - explained[dst])
    staying = 1 - add_up(dst, up, nodes)
    share = np.divide(passed, whole[src], out=np.zeros(len(src)), where=whole[src] > 0)
    down = share * staying[src]
    kept_share = 1 - DAMPING * (add_up(dst, up, nodes) + add_up(src, down, nodes))
    kept, moving = np.zeros(nodes), seed.astype(np.float64)
    for _ in range(MAX_STEPS):
        kept += moving * kept_share
        moving = DAMPING * (add_up(dst, moving[src] * down, nodes) + add_up(src, moving[dst] * up, nodes))
        if moving.sum() <= TOLERANCE * max(float(seed.sum()), TOLERANCE):
            break
    return kept + moving, blame
