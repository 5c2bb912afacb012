"""Edges of one closed window as the graph model reads them. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.baseline import signals_of
from schemas.errors import WireFormatError
from schemas.graph import MEASURE_INDEX, ClosedWindow, GraphChunk
from schemas.tenant_log import unpack_column

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
EdgeKey = tuple[str, str, int, int]
"""Caller, callee, port and protocol; -1 unknown."""


@dataclass(frozen=True, slots=True)
class WindowEdges:
    """Edges with traffic in one window of a tenant's lane.

    Shapes:
        keys: ``E`` edges. calls: ``(E,)`` int64. signals: ``(E, len(SIGNALS))`` float64 as ``signals_of`` gives them:
        ``log1p`` of calls, bytes, p50 and p95 in microseconds, and the error ratio; NaN unknown.
    """

    start_ms: int
    keys: list[EdgeKey]
    calls: Ints
    signals: Floats

    def __len__(self) -> int:
        return len(self.keys)


def window_of(
    start_ms: int,
    keys: list[EdgeKey],
    calls: Ints,
    volume_bytes: Ints,
    errors: Ints,
    p50_us: Ints,
    p95_us: Ints,
) -> WindowEdges:
    """Return a window of columns, ``(E,)`` each; -1 says unknown, of ``calls`` it never stands."""
    known_bytes = volume_bytes >= 0
    signals = signals_of(calls, np.maximum(volume_bytes, 0), known_bytes, errors, errors >= 0, p50_us, p95_us)
    return WindowEdges(start_ms, keys, calls, signals)


def edges_of(window: ClosedWindow) -> WindowEdges:
    """Return the edges of a closed window that had calls in it; late records alone are no traffic of this window."""
    table = window.edges

    def column(name: str) -> Ints:
        """Return a measure, or another column of the table."""
        found: Ints = table.measure(name) if name in MEASURE_INDEX else getattr(table, name)
        return found

    return _edges_with_calls(window.start_ms, table.src, table.dst, column)


def edges_of_chunks(start_ms: int, shards: Sequence[GraphChunk]) -> WindowEdges:
    """Return what ``edges_of`` returns of the window that was cut into these shards, in their order.

    Raises:
        WireFormatError: a shard is damaged.
    """
    for shard in shards:
        if not len(shard.src) == len(shard.dst) == shard.count:
            raise WireFormatError(f"the chunk says {shard.count} edges and names {len(shard.src)}")

    def column(name: str) -> Ints:
        """Return a column of the whole window; a measure that a shard lacks is 0."""
        parts = [
            unpack_column(shard.columns[name], shard.count)
            if name in shard.columns or name not in MEASURE_INDEX
            else np.zeros(shard.count, dtype=np.int64)
            for shard in shards
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    try:
        src, dst = ([name for shard in shards for name in getattr(shard, end)] for end in ("src", "dst"))
        return _edges_with_calls(start_ms, src, dst, column)
    except (KeyError, TypeError, ValueError) as error:
        raise WireFormatError(f"the chunk's columns cannot be read: {error}") from error


def _edges_with_calls(
    start_ms: int, src: Sequence[str], dst: Sequence[str], column: Callable[[str], Ints]
) -> WindowEdges:
    calls = column("calls")
    rows = np.flatnonzero(calls > 0)
    known_bytes = (column("bytes_out_flows") > 0) | (column("bytes_in_flows") > 0)
    volume = np.where(known_bytes, column("bytes_out") + column("bytes_in"), -1)
    errors = np.minimum(column("errors"), calls)  # a reply may tell of the same error again
    errors = np.where(column("error_flows") > 0, errors, -1)
    ports, protocols = column("port")[rows].tolist(), column("protocol")[rows].tolist()
    return window_of(
        start_ms,
        [(src[i], dst[i], a, b) for i, a, b in zip(rows.tolist(), ports, protocols, strict=True)],
        calls[rows],
        volume[rows],
        errors[rows],
        column("p50_us")[rows],
        column("p95_us")[rows],
    )
