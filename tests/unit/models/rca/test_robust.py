"""Quantiles per group are those of the rows written out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rca.robust import median_of_others, quantile, ratio

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 20)), max_size=30)


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.5, 0.9, 0.95]))
def test_quantile_is_the_least_value_that_covers_the_part(rows: list[tuple[int, int]], part: float) -> None:
    group = np.array([g for g, _ in rows], dtype=np.int64)
    values = np.array([v for _, v in rows], dtype=np.float64)
    found = quantile(values, group, 4, part)
    for g in range(4):
        own = sorted(v for i, v in rows if i == g)
        if own:
            assert found[g] == next(v for i, v in enumerate(own) if (i + 1) >= part * len(own) - 1e-9)
        else:
            assert np.isnan(found[g])


@settings(deadline=None)
@given(ROWS)
def test_median_of_others_leaves_the_row_itself_out(rows: list[tuple[int, int]]) -> None:
    group = np.array([g for g, _ in rows], dtype=np.int64)
    values = np.array([v for _, v in rows], dtype=np.float64)
    for place, found in enumerate(median_of_others(values, group)):
        others = sorted(v for i, (g, v) in enumerate(rows) if g == rows[place][0] and i != place)
        if others:
            assert found == others[(len(others) - 1) // 2]
        else:
            assert np.isnan(found)


def test_ratio_says_what_it_is_told_where_nothing_divides() -> None:
    assert ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0]), 7.0).tolist() == [0.5, 7.0]
