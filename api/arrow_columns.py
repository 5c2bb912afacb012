"""Columns of Arrow tables as arrays, and names as numbers. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]


def integers(table: pa.Table, column: int) -> Ints:
    """Return a column of integers without nulls, ``(R,)`` int64."""
    return table.column(column).to_numpy().astype(np.int64, copy=False)  # type: ignore[no-any-return]


def numbered(table: pa.Table, *columns: int) -> tuple[list[str], list[Ints]]:
    """Return the names that occur in columns, sorted, and of each column the positions in them, ``(R,)`` each."""
    coded = [_coded(table.column(column)) for column in columns]
    names = sorted({name for own, _ in coded for name in own})
    place = {name: number for number, name in enumerate(names)}
    return names, [np.array([place[name] for name in own], dtype=np.int64)[codes] for own, codes in coded]


def _coded(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    whole: Any = column.combine_chunks().dictionary_encode()
    if isinstance(whole, pa.ChunkedArray):  # several chunks that do not fit into one
        whole = whole.unify_dictionaries().combine_chunks()
    names = [name if isinstance(name, str) else name.decode() for name in whole.dictionary.to_pylist()]
    return names, np.asarray(whole.indices).astype(np.int64)
