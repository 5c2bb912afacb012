"""Columns of names, and tables of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.rca import NameColumn, ServiceWindowEdges

NAMES = st.lists(st.sampled_from(["cart", "web", "db", ""]), max_size=8)


@given(NAMES, NAMES)
def test_a_column_gives_back_its_rows_joined_and_taken(above: list[str], below: list[str]) -> None:
    joined = NameColumn.joined([NameColumn.of(above), NameColumn.of(()), NameColumn.of(below)])
    rows = [*above, *below]
    assert (list(joined), len(joined)) == (rows, len(rows))
    assert len(set(joined.names)) == len(joined.names)
    assert sorted(joined.take(np.arange(len(above))).present()) == sorted(set(above))
    backwards = np.arange(len(rows), dtype=np.int64)[::-1]
    assert list(joined.take(backwards)) == rows[::-1]


def table(rows: list[tuple[str, str, int]]) -> ServiceWindowEdges:
    numbers = np.array([row[2] for row in rows], dtype=np.int64)
    columns = {name: numbers for name in ServiceWindowEdges.__slots__ if name not in ("src", "dst")}
    src, dst = NameColumn.of(row[0] for row in rows), NameColumn.of(row[1] for row in rows)
    return ServiceWindowEdges(src=src, dst=dst, **columns)


def test_rows_stay_together() -> None:
    parts = [table([("a", "b", 1), ("b", "c", 2)]), ServiceWindowEdges.empty(), table([("c", "a", 3)])]
    whole = ServiceWindowEdges.joined(parts)
    assert list(zip(whole.src, whole.dst, whole.calls.tolist(), strict=True)) == [
        ("a", "b", 1),
        ("b", "c", 2),
        ("c", "a", 3),
    ]
    odd = whole.where(whole.bytes % 2 == 1)
    assert list(zip(odd.src, odd.dst, odd.p95_us.tolist(), strict=True)) == [("a", "b", 1), ("c", "a", 3)]
