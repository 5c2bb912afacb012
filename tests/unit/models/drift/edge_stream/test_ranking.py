"""ROC-AUC and average precision against hand-computed values and against counting all pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.drift.edge_stream.ranking import average_precision, roc_auc, roc_auc_by_class

LABELLED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60)


def _columns(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(score) for score, _ in rows]), np.array([label for _, label in rows])


def test_known_example() -> None:
    # The example of scikit-learn's documentation: roc_auc_score 0.75, average_precision_score 0.8333.
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert roc_auc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)


def test_equal_scores_are_one_threshold() -> None:
    scores, labels = np.ones(4), np.array([True, False, False, False])
    assert roc_auc(scores, labels) == 0.5
    assert average_precision(scores, labels) == 0.25


def test_one_class_alone_has_no_auc() -> None:
    assert roc_auc(np.arange(3.0), np.zeros(3, dtype=np.bool_)) is None
    assert roc_auc(np.arange(3.0), np.ones(3, dtype=np.bool_)) is None
    assert average_precision(np.arange(3.0), np.zeros(3, dtype=np.bool_)) is None
    assert roc_auc_by_class(np.arange(3.0), np.zeros(3, dtype=np.int64), 0, 2) == {}


@given(LABELLED)
def test_auc_counts_the_pairs_won(rows: list[tuple[int, bool]]) -> None:
    scores, labels = _columns(rows)
    if labels.all() or not labels.any():
        return
    pairs = [(a > n) + 0.5 * (a == n) for a in scores[labels] for n in scores[~labels]]
    assert roc_auc(scores, labels) == pytest.approx(float(np.mean(pairs)))


@given(LABELLED)
def test_average_precision_sums_over_thresholds(rows: list[tuple[int, bool]]) -> None:
    scores, labels = _columns(rows)
    if not labels.any():
        return
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = labels[chosen].sum() / labels.sum()
        total += (recall - recall_before) * labels[chosen].mean()
        recall_before = recall
    assert average_precision(scores, labels) == pytest.approx(total)


def test_each_class_is_compared_with_the_normal_records_alone() -> None:
    scores = np.array([0.0, 1.0, 2.0, 3.0, 0.5])
    by_class = roc_auc_by_class(scores, np.array([0, 0, 1, 1, 2]), 0, 4)
    assert by_class == {1: 1.0, 2: 0.5}
