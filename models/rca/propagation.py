"""Move evidence over the call graph to where it comes from, without making any. Pure.

Evidence starts at the service it was measured at, or the callee of the edge, and takes two kinds of steps:

- *down*: the part of a service's own shift that its calls account for goes to their callees, since a caller is slow or
  fails because its callee does;
- *up*: where one caller sees all its callees shifted alike while their other callers see nothing, the common cause is
  that caller, so its callees hand the evidence back.

The walk is a personalised PageRank whose restarts are the evidence: every service has a twin that keeps what neither
step explains, so all that is kept adds up to all that was put in, and propagation redistributes the seed and cannot
outvote it. Source: Page et al. 1999, section 6 (personalisation). Tests compare it with networkx on graphs with twins.
"""

import numpy as np
from scipy.sparse import csr_array

from models.rca.evidence import Moves, Shift
from models.rca.robust import Floats, Mask, add_up, median_of_others, ratio
from models.rca.topology import Topology

DAMPING = 0.85
"""Largest share of its evidence a service gives away in one step; bounds walks around a cycle."""
EXCESS_POWER = 1 / 3
"""Power of a service's part in the harm that weighs its evidence: a thousandth of the harm still counts a tenth."""
MAX_STEPS = 200
TOLERANCE = 1e-9
UNSEEN_BY_OTHERS = 0.3
"""Agreement assumed where there is no other edge to ask: weaker than a witness, stronger than a denial."""
CLEAR_SHIFT = 0.5
"""Agreement of callers most of which see the callee shifted too, however little."""
LEAST_BLAME = 0.1
"""Keeps a share with the callee: its edge is the one that was seen to shift."""


def callee_blame(
    topology: Topology, delta: Floats, shifted: Mask, known: Mask, *, of_shifted_alone: bool = False
) -> Floats:
    """Return for each edge the share of its shift, 0..1, that is the callee's rather than the caller's, ``(E,)``.

    The other callers of the callee are asked, and the other callees of the caller: half of them or more agree as far as
    they show this edge's shift too, in the signal's own unit, since what slows a caller down adds about the same time
    to all it does. A slow callee may slow some operations more than others, so callers that see a clear shift of any
    size agree by ``CLEAR_SHIFT`` at least.

    Args:
        delta: how far each edge has shifted. shifted: edges with evidence. known: edges that were measured at all.
        of_shifted_alone: of all other edges 1 is returned, without looking at edges that have no say in theirs.
    """
    blame = np.ones(len(topology))
    if not (delta > 0).any():
        return blame
    has_say = known | shifted
    if of_shifted_alone:
        nodes = len(topology.services)
        at_src, at_dst = (np.bincount(ends[shifted], minlength=nodes) > 0 for ends in (topology.src, topology.dst))
        has_say &= at_src[topology.src] | at_dst[topology.dst]
    ask = np.flatnonzero(has_say)
    shift, is_shifted = delta[ask], shifted[ask]
    size = np.where(shift > 0, shift, 1.0)
    callers = np.clip(median_of_others(shift, topology.dst[ask]) / size, 0.0, 1.0)
    clearly = median_of_others(is_shifted.astype(np.float64), topology.dst[ask]) > 0
    callers = np.where(clearly, np.maximum(callers, CLEAR_SHIFT), callers)
    siblings = np.clip(median_of_others(shift, topology.src[ask]) / size, 0.0, 1.0)
    others = np.bincount(topology.src[ask], minlength=len(topology.services))[topology.src[ask]] - 1
    callee_side = np.where(np.isnan(callers), UNSEEN_BY_OTHERS, callers)
    # Nothing speaks against a caller with this callee alone; it comes into question where others speak for the callee.
    lone = np.where(np.isnan(callers), 0.0, UNSEEN_BY_OTHERS * (1 - callee_side))
    # One sibling may agree by chance, five hardly.
    caller_side = np.where(np.isnan(siblings), lone, np.nan_to_num(siblings) * others / (others + 1))
    of_callee = (callee_side + LEAST_BLAME) / (callee_side + LEAST_BLAME + caller_side)
    is_wanted = (shift > 0) & (is_shifted | (not of_shifted_alone))
    blame[ask] = np.where(is_wanted, of_callee, 1.0)
    return blame


def moves_of(
    topology: Topology,
    weight: Floats,
    blame: Floats,
    passed: Floats | None = None,
    received: Floats | None = None,
) -> Moves:
    """Return where the evidence of a signal goes in one step: down to callees and up to callers.

    Args:
        weight: the part each edge has in its callee's evidence, ``(E,)``. blame: the callee's share of it, ``(E,)``.
        passed: what each edge adds to its caller, ``(E,)``. received: how far each service's own answers have shifted,
            ``(N,)``, in the same unit; neither below zero. Without them nothing goes down.
    """
    nodes = len(topology.services)
    share, explained = np.zeros(len(topology)), np.zeros(nodes)
    if passed is not None and received is not None:
        handed = add_up(topology.src, passed, nodes)
        whole = np.maximum(received, handed)
        explained = ratio(handed, whole, 0.0)
        share = ratio(passed, whole[topology.src], 0.0)
    total = add_up(topology.dst, weight, nodes)
    part = ratio(weight, total[topology.dst], 0.0)
    # Only what the callee's own calls do not explain can be its caller's doing, and what goes up does not go down.
    up = part * (1 - blame) * (1 - explained[topology.dst])
    down = share * (1 - add_up(topology.dst, up, nodes))[topology.src]
    return Moves(
        np.concatenate([topology.dst, topology.src]),
        np.concatenate([topology.src, topology.dst]),
        np.concatenate([up, down]),
    )


def strength_of(shift: Shift) -> Floats:
    """Return how much each subject's score counts, ``(S,)``: a thousand spreads are not ten times a hundred."""
    return np.log1p(shift.score) * shift.certainty


def seed_of(shift: Shift, nodes: int, most_excess: float) -> Floats:
    """Return each service's evidence before propagation, ``(nodes,)``: its strongest score, times its part in the harm.

    Args:
        most_excess: excess of the service that has most of it, over all shifts of the same excess unit.
    """
    strongest = np.zeros(nodes)
    np.maximum.at(strongest, shift.dst, strength_of(shift))
    if most_excess <= 0:
        return strongest
    part: Floats = np.minimum(excess_of(shift, nodes) / most_excess, 1.0)
    return strongest * part**EXCESS_POWER


def excess_of(shift: Shift, nodes: int) -> Floats:
    """Return what each service has beyond its baseline, as far as that is certain, ``(nodes,)``."""
    return add_up(shift.dst, shift.excess * shift.certainty, nodes)


def redistribute(seed: Floats, moves: Moves) -> Floats:
    """Return what of ``seed`` ends at each service, ``(N,)``: not negative, and as much in all (to rounding)."""
    nodes = len(seed)
    step = csr_array((DAMPING * moves.share, (moves.target, moves.source)), shape=(nodes, nodes))
    kept_share = 1 - np.asarray(step.sum(axis=0)).ravel()
    kept, moving = np.zeros(nodes), seed.astype(np.float64)
    for _ in range(MAX_STEPS):
        kept += moving * kept_share
        moving = step @ moving
        if moving.sum() <= TOLERANCE * max(float(seed.sum()), TOLERANCE):
            break
    result: Floats = kept + moving
    return result
