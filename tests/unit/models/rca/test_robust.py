"""Quantiles per group are those of the rows written out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rca.robust import in_order, median_of_others, numbered, quantile, ratio

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


@settings(deadline=None)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=20), st.sampled_from([20, 1_000]))
def test_numbered_is_unique_with_its_inverse_however_many_keys_there_may_be(keys: list[int], below: int) -> None:
    occurring, number = numbered(np.array(keys, dtype=np.int64), below)
    assert occurring.tolist() == sorted(set(keys))
    assert occurring[number].tolist() == keys


@settings(deadline=None)
@given(ROWS, st.sampled_from([4, 1_000]))
def test_rows_are_in_the_order_of_group_and_value_ties_as_they_came(rows: list[tuple[int, int]], groups: int) -> None:
    group = np.array([g for g, _ in rows], dtype=np.int64)
    values = np.array([np.inf if v == 20 else v for _, v in rows], dtype=np.float64)
    assert in_order(values, group, groups).tolist() == np.lexsort((values, group)).tolist()
