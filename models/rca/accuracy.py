"""How well rankings hit known root causes: AC@k and Avg@5, as the field reports them. Pure.

Source: Wang et al. 2018 (CloudRanger), for AC@k and Avg@k.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from models.rca.robust import Floats, Mask


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of cases whose cause is among the first 1, 3, 5; ``avg5`` is the mean over the first 1 to 5."""

    ac1: float
    ac3: float
    ac5: float
    avg5: float
    cases: int


def rank_of(scores: Floats, cause: int, candidates: Mask) -> float:
    """Return the place of ``cause``, from 1; each service tied with it counts half a place.

    A service without any evidence (score 0) was not found: its place is infinite.
    """
    if not candidates[cause] or scores[cause] <= 0:
        return inf
    others = scores[candidates]
    ahead, alike = int((others > scores[cause]).sum()), int((others == scores[cause]).sum())
    return ahead + (alike + 1) / 2


def accuracy_of(ranks: Sequence[float]) -> Accuracy:
    """Sum ranks up. Without cases all shares are 0."""

    def share(first: int) -> float:
        return sum(rank <= first for rank in ranks) / len(ranks) if ranks else 0.0

    return Accuracy(share(1), share(3), share(5), sum(share(first) for first in range(1, 6)) / 5, len(ranks))
