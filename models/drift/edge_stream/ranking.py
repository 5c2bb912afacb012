"""How well scores rank labelled records: ROC-AUC and average precision, ties counted fairly. Pure."""

import numpy as np
import numpy.typing as npt

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def win_shares(normal: FloatColumn, attack: FloatColumn) -> FloatColumn:
    """Return for each attack score the share of normal scores below it, ties counted half.

    Their mean is the ROC-AUC (Hanley & McNeil 1982, as the Mann-Whitney statistic).

    Shapes:
        normal: ``(N,)``, at least one. attack: ``(A,)``. returns: ``(A,)`` float64, 0 to 1.
    """
    ranked = np.sort(normal)
    below = np.searchsorted(ranked, attack, "left")
    upto = np.searchsorted(ranked, attack, "right")
    shares: FloatColumn = (below + upto) / (2.0 * len(ranked))
    return shares


def roc_auc(scores: FloatColumn, is_attack: Mask) -> float | None:
    """Return the chance that an attack outscores a normal record; ``None`` without both. Shapes: ``(N,)``."""
    if is_attack.all() or not is_attack.any():
        return None
    return float(win_shares(scores[~is_attack], scores[is_attack]).mean())


def average_precision(scores: FloatColumn, is_attack: Mask) -> float | None:
    """Return the precision averaged over recall, equal scores as one threshold; ``None`` without attacks.

    Shapes:
        scores: ``(N,)``. is_attack: ``(N,)`` bool.
    """
    if not is_attack.any():
        return None
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(is_attack[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = found[last_of_tie]
    precision = hits / (last_of_tie + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / hits[-1])


def roc_auc_by_class(scores: FloatColumn, class_of: IntColumn, normal: int, classes: int) -> dict[int, float]:
    """Return the ROC-AUC of each class of attack against all normal records, of the classes that occur.

    Shapes:
        scores, class_of: ``(N,)``, classes numbered below ``classes``; ``normal`` is the number of no attack.
    """
    is_normal = class_of == normal
    if is_normal.all() or not is_normal.any():
        return {}
    attacks = class_of[~is_normal]
    shares = win_shares(scores[is_normal], scores[~is_normal])
    count = np.bincount(attacks, minlength=classes)
    total = np.bincount(attacks, weights=shares, minlength=classes)
    return {number: float(total[number] / count[number]) for number in np.flatnonzero(count).tolist()}
