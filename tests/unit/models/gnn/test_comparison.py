"""Injected drifts change what they say and nothing else; figures are those of the ranking."""

import numpy as np
import pytest

from models.gnn.calibration import EdgeScores
from models.gnn.comparison import Ranked, compare_injected, mean_and_deviation
from models.gnn.features import GraphHistory
from models.gnn.fitting import calibration_of, samples_of
from models.gnn.inference import shapes
from models.gnn.injection import KINDS, NEW_EDGE, inject
from tests.gnn_windows import made_windows


@pytest.mark.parametrize("kind", KINDS)
def test_one_edge_alone_drifts(kind: str) -> None:
    window = made_windows(1)[0]
    before = window.signals.copy()
    found = inject(window, kind, frozenset(window.keys), np.random.default_rng(2))
    assert found is not None
    drifted, row = found
    assert np.array_equal(window.signals, before), "the window itself stays"
    if kind == NEW_EDGE:
        assert drifted.keys[row][:2] not in {key[:2] for key in window.keys}
        assert [key for place, key in enumerate(drifted.keys) if place != row] == window.keys
        assert drifted.keys == sorted(drifted.keys)
        return
    changed = np.flatnonzero((drifted.signals != window.signals).any(axis=1))
    assert changed.tolist() == [row]
    factor = {"x1.5": 1.5, "x2": 2.0, "x3": 3.0, "1/2": 0.5, "1/4": 0.25}[kind.split()[-1]]
    signal = 3 if kind.startswith("slow") else 0
    ratio = np.expm1(drifted.signals[row, signal]) / np.expm1(window.signals[row, signal])
    assert ratio == pytest.approx(factor, rel=0.02)


def test_the_comparison_is_seeded_and_leaves_the_history_alone() -> None:
    windows = made_windows(40)
    history = GraphHistory()
    samples = samples_of(windows[:30], history)
    generator = np.random.default_rng(1)
    weights = {name: np.abs(generator.normal(0, 0.1, shape)).astype(np.float32) for name, shape in shapes().items()}
    calibration = calibration_of(weights, samples)
    judged = [place % 2 == 0 for place in range(10)]
    runs = [compare_injected(weights, calibration, history, windows[30:], judged, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2] and history.windows == 30
    assert runs[0].keys() == set(KINDS)
    assert runs[0]["surge x3"]["statistical"]["roc_auc"] > runs[0]["surge x2"]["statistical"]["roc_auc"] > 0.5


def test_figures_are_of_all_edges_together() -> None:
    zeros = np.zeros(3)
    ranked = Ranked()
    ranked.add(EdgeScores(np.array([1.0, 2.0, 3.0]), zeros, zeros, zeros, zeros), np.array([False, False, True]))
    ranked.add(EdgeScores(np.array([0.0, 5.0, 1.0]), zeros, zeros, zeros, zeros), np.array([False, False, True]))
    figures = ranked.figures()
    assert figures["statistical"]["roc_auc"] == pytest.approx((3 + 1.5) / 8)
    assert figures["graph"]["roc_auc"] == 0.5


def test_gains_are_paired_by_run() -> None:
    gains = {"statistical": 0.0, "graph": 0.1, "combined": 0.2}
    runs = [
        {name: {"roc_auc": base + gain, "average_precision": 0.5} for name, gain in gains.items()}
        for base in (0.5, 0.7)
    ]
    found = mean_and_deviation(runs)
    assert found["graph"]["roc_auc"] == 0.7 and found["graph"]["roc_auc_sd"] == pytest.approx(0.1414)
    assert found["graph"]["roc_auc_gain"] == pytest.approx(0.1) and found["graph"]["roc_auc_gain_sd"] == 0
