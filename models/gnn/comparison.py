"""The graph model beside the statistical score, on the same edges of the same windows. Pure, without torch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream.ranking import average_precision, roc_auc
from models.gnn.calibration import Calibration, EdgeScores, scores_of
from models.gnn.features import GraphHistory
from models.gnn.inference import Weights, judge
from models.gnn.injection import KINDS, inject
from models.gnn.windows import WindowEdges

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Figures = dict[str, float]
"""ROC-AUC and average precision of one score; over runs also their deviations and gains."""
SCORES = ("statistical", "graph", "combined")


@dataclass(slots=True)
class Ranked:
    """Scores of edges of which some are known to have drifted."""

    scores: list[EdgeScores] = field(default_factory=list)
    is_drift: list[Mask] = field(default_factory=list)

    def add(self, scores: EdgeScores, is_drift: Mask) -> None:
        """Add a window's edges, ``(E,)`` each."""
        self.scores.append(scores)
        self.is_drift.append(is_drift)

    def figures(self) -> dict[str, Figures]:
        """Return ROC-AUC and average precision of each score; empty without edges of both sorts."""
        truth = np.concatenate(self.is_drift) if self.is_drift else np.zeros(0, dtype=np.bool_)
        found: dict[str, Figures] = {}
        for name in SCORES:
            values: Floats = np.concatenate([getattr(one, name) for one in self.scores] or [np.zeros(0)])
            area, precision = (
                (None, None) if not len(truth) else (roc_auc(values, truth), average_precision(values, truth))
            )
            if area is not None and precision is not None:
                found[name] = {"roc_auc": area, "average_precision": precision}
        return found


def compare_injected(
    weights: Weights,
    calibration: Calibration,
    history: GraphHistory,
    windows: Sequence[WindowEdges],
    is_judged: Sequence[bool],
    seed: int,
    repeats: int = 4,
) -> dict[str, dict[str, Figures]]:
    """Return figures by kind of drift: each window is judged ``repeats`` times with one drift of each kind,
    then learned as it was.

    ``history`` has seen what came before and is not changed; ``is_judged``: windows that may be judged.
    """
    generator = np.random.default_rng(seed)
    history = copy.deepcopy(history)
    ranked = {kind: Ranked() for kind in KINDS}
    for window, judged in zip(windows, is_judged, strict=True):
        for kind in KINDS * repeats if judged else ():
            drifted = inject(window, kind, history.edges, generator)
            if drifted is None:
                continue
            sample = history.look(drifted[0])
            is_drift = np.zeros(sample.present, dtype=np.bool_)
            is_drift[drifted[1]] = True
            ranked[kind].add(scores_of(calibration, sample, judge(weights, sample)), is_drift)
        history.take(window)
    return {kind: one.figures() for kind, one in ranked.items()}


def mean_and_deviation(runs: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    """Return mean and sample standard deviation over runs of each figure and of its gain over the statistical score."""
    found: dict[str, Figures] = {}
    for name in SCORES:
        for figure in ("roc_auc", "average_precision"):
            values = np.array([run[name][figure] for run in runs])
            gains = values - np.array([run["statistical"][figure] for run in runs])
            row = found.setdefault(name, {})
            row[figure], row[f"{figure}_sd"] = _mean_sd(values)
            row[f"{figure}_gain"], row[f"{figure}_gain_sd"] = _mean_sd(gains)
    return found


def _mean_sd(values: Floats) -> tuple[float, float]:
    return round(float(values.mean()), 4), round(float(values.std(ddof=1)) if len(values) > 1 else 0.0, 4)
