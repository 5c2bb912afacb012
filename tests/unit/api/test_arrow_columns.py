"""Names of Arrow columns as numbers, whatever the table's chunks and types."""

import numpy as np
import pyarrow as pa
import pytest

from api.arrow_columns import integers, numbered


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
def test_names_are_numbered_over_chunks_and_columns(kind: pa.DataType) -> None:
    parts = [(["b", "a", "b"], ["c", "ä", "a"]), (["a", "d"], ["b", "b"]), ([], [])]
    batches = [
        pa.table({"x": pa.array(range(len(one)), pa.uint32()), "src": pa.array(one), "dst": pa.array(other)})
        for one, other in ((pa.array(left, kind), pa.array(right, kind)) for left, right in parts)
    ]
    table = pa.concat_tables(batches)
    names, (src, dst) = numbered(table, 1, 2)
    assert names == ["a", "b", "c", "d", "ä"]
    assert [names[number] for number in src] == ["b", "a", "b", "a", "d"]
    assert [names[number] for number in dst] == ["c", "ä", "a", "b", "b"]
    assert integers(table, 0).dtype == np.int64 and integers(table, 0).tolist() == [0, 1, 2, 0, 1]


def test_an_empty_table_has_no_names() -> None:
    table = pa.table({"src": pa.array([], pa.string()), "dst": pa.array([], pa.string())})
    names, (src, dst) = numbered(table, 0, 1)
    assert names == [] and len(src) == len(dst) == 0
