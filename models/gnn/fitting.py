"""Which windows teach, which later ones stop the training and say what is normal. Pure, without torch."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.drift.baseline import WARM_UP
from models.gnn.calibration import Calibration, calibrate, link_surprise, signal_surprise
from models.gnn.features import GraphHistory, GraphSample
from models.gnn.inference import Weights, judge
from models.gnn.windows import WindowEdges

MAX_WINDOWS = 4_096
MAX_EDGES = 4_000_000
"""Bounds of what is held for training, the latest windows; a window's edges take about 100 bytes each."""
VALIDATION_SHARE = 0.25
LEAST_WINDOWS = 20
"""Windows with traffic, after the first few, below which nothing is trained."""


@dataclass(frozen=True, slots=True)
class Split:
    """Windows in order of time: those that teach, and the later ones that do not."""

    training: list[GraphSample]
    validation: list[GraphSample]


def samples_of(windows: Iterable[WindowEdges], history: GraphHistory) -> list[GraphSample]:
    """Return the graphs of the latest windows, within the bounds; all windows are learned from.

    The first few are left out: nothing is usual yet.
    """
    kept: deque[GraphSample] = deque()
    edges = 0
    for window in windows:
        sample = history.take(window)
        if history.windows <= WARM_UP or not sample.present:
            continue
        kept.append(sample)
        edges += len(sample.src)
        while len(kept) > MAX_WINDOWS or (edges > MAX_EDGES and len(kept) > 1):
            edges -= len(kept.popleft().src)
    return list(kept)


def split_in_time(samples: Sequence[GraphSample]) -> Split:
    """Part windows in order of time.

    Raises:
        ValueError: there are too few.
    """
    if len(samples) < LEAST_WINDOWS:
        raise ValueError(f"{len(samples)} windows with traffic after the first {WARM_UP}, of {LEAST_WINDOWS} needed")
    first = len(samples) - max(1, int(len(samples) * VALIDATION_SHARE))
    return Split(list(samples[:first]), list(samples[first:]))


def calibration_of(weights: Weights, samples: Sequence[GraphSample]) -> Calibration:
    """Return what scores are normal, told by windows that did not teach; attacks in them count as normal."""
    judged = [judge(weights, sample, all_links=True) for sample in samples]
    return calibrate(
        np.concatenate([link_surprise(one) for one in judged]),
        np.concatenate([signal_surprise(one, sample) for one, sample in zip(judged, samples, strict=True)]),
        np.concatenate([sample.statistical for sample in samples]),
        np.concatenate([sample.is_new for sample in samples]),
    )
