"""Latency histograms against numpy's quantiles."""

import numpy as np
import pytest

from models.graph.histogram import BUCKETS, SparseCounts, bucket_bounds, bucket_of, quantiles

RELATIVE_ERROR = 1 / 16
"""Half a bucket: eight buckets an octave, and a quantile is placed inside its bucket."""


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 20_000])
def test_quantiles_are_those_of_numpy_within_an_eighth(spread: float, count: int) -> None:
    rng = np.random.default_rng(count)
    values = np.exp(rng.normal(9.0, spread, count)).astype(np.int64)
    buckets, counts = np.unique(bucket_of(values), return_counts=True)
    qs = (0.5, 0.95, 0.99)
    found = quantiles(np.zeros(len(buckets), dtype=np.int64), buckets, counts.astype(np.int64), 1, qs)
    for q, column in zip(qs, found, strict=True):
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert abs(int(column[0]) - exact) <= 2 * RELATIVE_ERROR * exact + 1


def test_a_smooth_distribution_is_met_within_six_per_cent() -> None:
    values = np.random.default_rng(1).integers(1_000, 100_000, 200_000)
    buckets, counts = np.unique(bucket_of(values), return_counts=True)
    (column,) = quantiles(np.zeros(len(buckets), dtype=np.int64), buckets, counts.astype(np.int64), 1, (0.95,))
    assert abs(int(column[0]) - np.quantile(values, 0.95)) <= RELATIVE_ERROR * np.quantile(values, 0.95)


def test_every_value_lies_in_its_bucket_and_buckets_do_not_overlap() -> None:
    values = np.concatenate([np.arange(5_000), 1 << np.arange(43), (1 << np.arange(1, 43)) - 1])
    buckets = bucket_of(values)
    lower, width = bucket_bounds(buckets)
    assert ((lower <= values) & (values < lower + width)).all()
    assert buckets.max() < BUCKETS
    every = np.arange(300)
    lower, width = bucket_bounds(every)
    assert (lower[:-1] + width[:-1] == lower[1:]).all()


def test_a_group_without_counts_has_no_quantile() -> None:
    groups, buckets, counts = np.array([1, 3]), np.array([4, 5]), np.array([2, 1])
    (column,) = quantiles(groups, buckets, counts, 5, (0.5,))
    assert column.tolist() == [-1, 4, -1, 5, -1]


def test_counts_of_billions_of_calls_do_not_wrap() -> None:
    bucket = bucket_of(np.array([1 << 42]))
    (column,) = quantiles(np.zeros(1, dtype=np.int64), bucket, np.array([1 << 45]), 1, (0.99,))
    assert (1 << 42) <= int(column[0]) < (1 << 42) * 1.125


def test_counts_do_not_depend_on_the_order_they_were_added_in() -> None:
    rng = np.random.default_rng(3)
    keys, weights = rng.integers(0, 500, 300_000), rng.integers(1, 9, 300_000)
    one, many = SparseCounts(), SparseCounts()
    one.add(keys, weights)
    order = rng.permutation(len(keys))
    for part in np.array_split(order, 7):
        many.add(keys[part], weights[part])
    for mine, other in zip(one.items(), many.items(), strict=True):
        assert mine.tolist() == other.tolist()
    assert one.items()[1].tolist() == np.bincount(keys, weights=weights).astype(int).tolist()
