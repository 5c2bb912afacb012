"""AC@k, Avg@5 and ties."""

import math

import numpy as np
import pytest

from models.rca.accuracy import accuracy_of, rank_of

ALL = np.ones(5, dtype=np.bool_)


@pytest.mark.parametrize(
    ("scores", "rank"),
    [
        ([5.0, 1.0, 2.0, 0.0, 0.0], 1.0),
        ([1.0, 5.0, 2.0, 0.0, 0.0], 3.0),
        ([5.0, 5.0, 2.0, 0.0, 0.0], 1.5),
        ([5.0, 5.0, 5.0, 0.0, 9.0], 3.0),
        ([0.0, 5.0, 2.0, 0.0, 0.0], math.inf),
    ],
)
def test_each_tie_counts_half_a_place(scores: list[float], rank: float) -> None:
    assert rank_of(np.array(scores), 0, ALL) == rank


def test_what_is_no_candidate_neither_ranks_nor_counts() -> None:
    users_first = np.array([1.0, 9.0, 0.5, 0.0, 0.0])
    services = np.array([True, False, True, True, True])
    assert rank_of(users_first, 0, services) == 1
    assert rank_of(users_first, 1, services) == math.inf


def test_shares_of_cases() -> None:
    found = accuracy_of([1.0, 1.5, 3.0, math.inf])
    assert (found.ac1, found.ac3, found.ac5, found.cases) == (0.25, 0.75, 0.75, 4)
    assert found.avg5 == pytest.approx((0.25 + 0.5 + 0.75 * 3) / 5)
    assert accuracy_of([]).ac1 == 0
