"""Find and read the files of a data set; what is missing is named in one line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import ConfigurationError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files whose name matches ``pattern``, by name.

    Raises:
        ConfigurationError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder")
    files = sorted(folder.glob(pattern))
    if not files:
        raise ConfigurationError(f"{folder} has no file {pattern}")
    return files


def read_list(file: Path, keys: Sequence[str] = ()) -> list[Any]:
    """Read a JSON list; each element must hold ``keys``, given as dotted paths.

    Raises:
        ConfigurationError: it cannot be read, is no list, or a key is missing.
    """
    try:
        elements = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {file.name} as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(elements, list):
        raise ConfigurationError(f"{file.name} holds no list")
    for place, element in enumerate(elements):
        for key in keys:
            value = element
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                raise ConfigurationError(f"{file.name}: element {place + 1} has no {key}")
    return elements


def read_edges(file: Path) -> list[tuple[str, str]]:
    """Read a JSON list of ``[caller, callee]``.

    Raises:
        ConfigurationError: it is something else.
    """
    edges = read_list(file)
    if not all(
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(end, str) for end in edge) for edge in edges
    ):
        raise ConfigurationError(f"{file.name} must be a list of [caller, callee]")
    return [(edge[0], edge[1]) for edge in edges]


def read_table(file: Path, columns: Sequence[str]) -> "pa.Table":
    """Read ``columns`` of a parquet file.

    Raises:
        ConfigurationError: it cannot be read, or lacks one of them.
    """
    try:
        present = pq.read_schema(file).names
        missing = [name for name in columns if name not in present]
        if missing:
            raise ConfigurationError(f"{file.name} has no column {missing[0]}: needs {', '.join(columns)}")
        return pq.read_table(file, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"cannot read {file.name} as parquet: {str(error).splitlines()[0]}") from error


def names_of(*columns: "pa.ChunkedArray") -> tuple[list[str], list[Ints]]:
    """Return the names in all columns, sorted, and each column as positions in them."""
    names: list[str] = sorted({name for column in columns for name in pc.unique(column).to_pylist()})
    index = pa.array(names, pa.large_string())
    found = [pc.index_in(column.cast(pa.large_string()), index) for column in columns]
    return names, [np.asarray(one.to_numpy(), dtype=np.int64) for one in found]


def ints(column: "pa.ChunkedArray") -> Ints:
    """Return a column as int64."""
    return np.asarray(column.to_numpy(), dtype=np.int64)


def floats(column: "pa.ChunkedArray") -> Floats:
    """Return a column as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
