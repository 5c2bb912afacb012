"""Columns on their way to rows: which marks are kept, and what is out of bounds."""

import numpy as np

from schemas.flow import MAX_MEASURE
from streams.sources.coded import names_of
from streams.sources.draft import Draft
from streams.sources.format import MAX_PAIR


def draft(size: int) -> Draft:
    rows = np.arange(size, dtype=np.int64)
    return Draft(rows, np.zeros(size, dtype=np.int64), lambda message, _: b"%d" % message, lambda _: None)


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def finish(on: Draft, **columns: np.ndarray) -> dict[str, np.ndarray]:
    size = len(on.message)
    zeros = np.zeros(size, dtype=np.int64)
    rows = on.finish(
        time_ms=zeros, ends=(zeros, zeros + 1, names_of(["a", "b"])), port=zeros, protocol=zeros, columns=columns
    )
    assert rows is not None
    return rows.columns


def test_a_pair_may_be_any_key_of_63_bits() -> None:
    pair = column(0, MAX_PAIR, -1, 1 << 62)
    on = draft(4)
    assert finish(on, pair=pair)["pair"].tolist() == pair.tolist() and on.rejected == []


def test_a_mark_that_says_nothing_is_left_out() -> None:
    plain = finish(draft(2), pair=column(-1, -1), sampling=column(1, 1), continued=column(0, 0))
    assert set(plain) == {"time_ms", "calls", "side"}


def test_a_measure_beyond_its_bound_is_rejected() -> None:
    on = draft(3)
    assert finish(on, bytes_out=column(1, MAX_MEASURE + 1, MAX_MEASURE))["bytes_out"].tolist() == [1, MAX_MEASURE]
    assert [bad.message for bad in on.rejected] == [1]
