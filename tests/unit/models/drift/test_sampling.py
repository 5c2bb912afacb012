"""Which sampling factor prevails, and when another does: by more than chance, whatever mix is usual."""

from itertools import pairwise

import numpy as np
import pytest

from models.drift.sampling import MAX_FACTOR, STEPS, resample, steps_of
from models.drift.telemetry_state import Sampling, Seen


def seen(**rows_by_factor: int) -> Seen:
    """``f50=3``: three rows whose measures were multiplied by 50."""
    found = Seen()
    for name, rows in rows_by_factor.items():
        factor = int(name[1:])
        found.add(int(steps_of(np.array([factor]))[0]), rows, rows * factor)
    return found


def after(*windows: Seen) -> list[float]:
    """The factor that prevails after each window."""
    usual: Sampling | None = None
    found = []
    for window in windows:
        usual = resample(usual, window)
        found.append(usual.factor)
    return found


def test_steps_tell_factors_apart_that_differ_by_half() -> None:
    factors = np.array([1, 2, 3, 4, 64, 100, MAX_FACTOR])
    assert steps_of(factors).tolist() == [0, 2, 3, 4, 12, 13, STEPS - 1]


LONG = [seen(f1=20)] * 40
"""Windows after which it is sure that all rows have one factor."""


def test_two_rows_are_enough_where_all_rows_had_one_factor_for_long_and_one_is_not() -> None:
    assert after(*LONG, seen(f50=2))[-2:] == [1, 50]
    assert after(*LONG, seen(f50=1), seen(f1=1))[-2:] == [1, 1]


def test_single_rows_add_up_over_windows() -> None:
    assert after(*LONG, seen(f50=1), seen(f50=1))[-2:] == [1, 50]


def test_a_few_rows_say_nothing_for_sure() -> None:
    assert after(seen(f1=2), seen(f50=2)) == [1, 1]


def test_a_rare_other_factor_changes_nothing() -> None:
    windows = [seen(f10=99, f1=1) if number % 3 else seen(f10=100) for number in range(30)]
    assert set(after(*windows)) == {10}


@pytest.mark.parametrize("rows", [2, 6, 20, 200])
def test_a_steady_mix_is_no_change_however_few_rows_there_are(rows: int) -> None:
    random = np.random.default_rng(rows)
    windows = []
    for _ in range(2_000):
        ones = int(random.binomial(rows, 0.5))
        windows.append(
            seen(f1=ones, f100=rows - ones) if 0 < ones < rows else seen(f1=rows) if ones else seen(f100=rows)
        )
    found = after(*windows)
    changes = sum(one != other for one, other in pairwise(found))
    assert changes <= 1, "of two thousand windows"


def test_the_factor_told_is_the_mean_of_the_rows_that_have_it() -> None:
    assert after(seen(f99=1, f101=1)) == [100]
    assert after(seen(f1=30), seen(f1=3, f64=27)) == [1, 64]


def test_half_the_rows_under_another_factor_is_no_change_yet() -> None:
    assert after(seen(f1=100), seen(f1=60, f50=40), seen(f50=100)) == [1, 1, 50]
