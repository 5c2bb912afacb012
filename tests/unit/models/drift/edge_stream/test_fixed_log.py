"""Fixed-point logarithms against the mathematics library."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.drift.edge_stream.fixed_log import ONE, fixed_log


def test_small_numbers_are_exact_to_the_fixed_point() -> None:
    values = np.arange(1, 8192, dtype=np.int64)
    logs = fixed_log(values) / ONE
    np.testing.assert_allclose(logs, np.log(values), atol=13 / ONE)
    assert logs[0] == 0.0


@given(st.integers(1, 2**53))
def test_large_numbers_are_within_the_width_of_a_table_cell(value: int) -> None:
    log = int(fixed_log(np.array([value], dtype=np.int64))[0]) / ONE
    assert -2.5e-4 - 50 / ONE <= log - math.log(value) <= 50 / ONE


@given(st.lists(st.integers(1, 2**53), min_size=2, max_size=50))
def test_order_is_kept(values: list[int]) -> None:
    logs = fixed_log(np.array(sorted(values), dtype=np.int64))
    assert (np.diff(logs) >= 0).all()
