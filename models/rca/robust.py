"""Medians, quantiles and sums per group. Pure, vectorised."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MAD_TO_SIGMA = 1.4826
"""Spread of a normal distribution over its median absolute deviation."""

_DENSE = 4
"""Up to so many places a row, giving each possible key or group its own places is cheaper than sorting all rows."""


def add_up(group: Ints, values: Floats, groups: int) -> Floats:
    """Return the sum of ``values`` per group, ``(groups,)``."""
    summed: Floats = np.bincount(group, weights=values, minlength=groups).astype(np.float64)
    return summed


def count(group: Ints, groups: int) -> Ints:
    """Return the number of rows per group, ``(groups,)``."""
    return np.bincount(group, minlength=groups).astype(np.int64)


def numbered(keys: Ints, below: int) -> tuple[Ints, Ints]:
    """Return the keys that occur, ascending, and which of them each row has, ``(R,)``; as ``np.unique`` does.

    Args:
        below: all keys are at least 0 and less than this.
    """
    if below > _DENSE * len(keys):
        occurring, number = np.unique(keys, return_inverse=True)
        return occurring, number.astype(np.int64, copy=False)
    occurs = np.zeros(below, dtype=np.bool_)
    occurs[keys] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[keys]


def ratio(above: Floats, below: Floats, otherwise: float = np.nan) -> Floats:
    """Divide; ``otherwise`` where there is nothing to divide by."""
    quotient: Floats = np.divide(above, below, out=np.full(len(above), otherwise), where=below > 0)
    return quotient


def in_order(values: Floats, group: Ints, groups: int) -> Ints:
    """Return the rows by group and value, ``(R,)``, as ``np.lexsort((values, group))`` does. No value is NaN."""
    rows, size = np.argsort(group, kind="stable"), np.bincount(group, minlength=groups)
    most = int(size.max(initial=0))
    if groups * most > _DENSE * len(rows):
        return np.lexsort((values, group))
    # Many groups of some windows each: a line a group, and each line sorted by itself.
    start = np.cumsum(size) - size
    of = group[rows]
    grid = np.full((groups, most), np.inf)
    grid[of, np.arange(len(rows)) - start[of]] = values[rows]
    place = start[:, None] + np.argsort(grid, axis=1, kind="stable")
    ordered: Ints = rows[place[np.arange(most) < size[:, None]]]
    return ordered


def weighted_quantile(values: Floats, weights: Floats, group: Ints, groups: int, part: float = 0.5) -> Floats:
    """Return, per group, the least value at or below which ``part`` of the group's weight lies; NaN for empty groups.

    Shapes: values, weights, group: ``(R,)``; returns ``(groups,)``.
    """
    result = np.full(groups, np.nan)
    if len(values) == 0:
        return result
    if values.min() == values.max():  # no errors, no denials: nothing to sort
        result[group] = values[0]
        return result
    if len(values) <= groups and np.bincount(group).max() == 1:  # a range of one window: nothing to choose from
        result[group] = values
        return result
    order = in_order(values, group, groups)
    values, weights, group = values[order], weights[order], group[order]
    running = np.cumsum(weights)
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    ends = np.r_[first[1:], len(group)] - 1
    before = np.r_[0.0, running[ends[:-1]]]
    wanted = before + (running[ends] - before) * part
    # Rounding of long sums must not push the answer into the next group.
    at = np.minimum(np.searchsorted(running, wanted, side="left"), ends)
    result[group[first]] = values[np.maximum(at, first)]
    return result


def weighted_median(values: Floats, weights: Floats, group: Ints, groups: int) -> Floats:
    """Return, per group, the least value at or below which half of the group's weight lies; NaN for empty groups."""
    return weighted_quantile(values, weights, group, groups)


def quantile(values: Floats, group: Ints, groups: int, part: float = 0.5) -> Floats:
    """Return, per group, the least value at or below which ``part`` of the group's rows lie; NaN for empty groups."""
    return weighted_quantile(values, np.ones(len(values)), group, groups, part)


def median_of_others(values: Floats, group: Ints) -> Floats:
    """Return for each row the (lower) median of the other rows of its group; NaN where there are none, ``(R,)``."""
    result = np.full(len(values), np.nan)
    if len(values) == 0:
        return result
    order = in_order(values, group, int(group.max()) + 1)
    of = group[order]
    first = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
    size = np.diff(np.r_[first, len(of)])
    start, members = np.repeat(first, size), np.repeat(size, size)
    middle = start + np.maximum(members - 2, 0) // 2
    position = np.arange(len(of))
    middle = np.where(middle >= position, np.minimum(middle + 1, start + members - 1), middle)
    result[order] = np.where(members > 1, values[order][middle], np.nan)
    return result
