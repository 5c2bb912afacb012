"""Surprise is the share of normal edges that score higher, in decades, and goes on rising beyond them."""

import numpy as np
import pytest

from models.gnn.calibration import calibrate, scores_of, surprise
from models.gnn.features import GraphSample
from models.gnn.inference import Judged


def test_surprise_is_the_share_of_normal_scores_above() -> None:
    normal = np.random.default_rng(4).exponential(size=20_000)
    levels = calibrate(normal, normal, normal, np.zeros(20_000, dtype=np.bool_)).signals
    for share in (0.5, 0.1, 0.01, 0.001):
        score = np.quantile(normal, 1 - share)
        assert surprise(np.array([score]), levels)[0] == pytest.approx(-np.log10(share), abs=0.1)
    beyond = surprise(normal.max() * np.array([1.0, 1.5, 3.0]), levels)
    assert beyond[0] < beyond[1] < beyond[2]
    assert surprise(np.array([-1.0, 0.0]), levels).tolist() == [0.0, 0.0]


def test_equal_normal_scores_do_not_break_it() -> None:
    levels = calibrate(np.zeros(50), np.zeros(50), np.zeros(50), np.zeros(50, dtype=np.bool_)).signals
    assert np.isfinite(surprise(np.array([0.0, 1.0, 1e9]), levels)).all()


def test_a_new_edge_is_as_strange_as_new_edges_are_rare_and_more_between_unlikely_ends() -> None:
    generator = np.random.default_rng(5)
    is_new = np.arange(1_000) < 9
    link, signals, statistical = generator.exponential(size=(3, 1_000))
    calibration = calibrate(link, signals, statistical, is_new)
    rows = np.zeros((3, 5), dtype=np.float32)
    sample = GraphSample(
        0,
        np.zeros((2, 8), dtype=np.float32),
        np.zeros(3, dtype=np.int64),
        np.ones(3, dtype=np.int64),
        np.zeros((3, 10), dtype=np.float32),
        3,
        np.array([True, True, False]),
        np.array([[np.nan] * 5, [np.nan] * 5, [0, 0, 9, 0, 0]], dtype=np.float32),
    )
    scores = scores_of(calibration, sample, Judged(np.array([5.0, -9.0, 0.0], dtype=np.float32), rows, rows))
    rare = -np.log10(10 / 1_002)
    assert scores.statistical[:2] == pytest.approx(rare)
    assert scores.graph[0] == pytest.approx(rare, abs=0.01) and scores.graph[1] > rare + 1
    assert scores.statistical[2] > 2 and scores.signals[2] == 9
    assert np.array_equal(scores.combined, scores.statistical + scores.graph)
