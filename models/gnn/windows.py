"""Edges of one closed window as the graph model reads them. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.baseline import signals_of
from schemas.graph import ClosedWindow

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
    rows = np.flatnonzero(table.measure("calls") > 0)
    known_bytes = (table.measure("bytes_out_flows") > 0) | (table.measure("bytes_in_flows") > 0)
    volume = np.where(known_bytes, table.measure("bytes_out") + table.measure("bytes_in"), -1)
    errors = np.minimum(table.measure("errors"), table.measure("calls"))  # a reply may tell of the same error again
    errors = np.where(table.measure("error_flows") > 0, errors, -1)
    places = rows.tolist()
    return window_of(
        window.start_ms,
        [(table.src[i], table.dst[i], int(table.port[i]), int(table.protocol[i])) for i in places],
        table.measure("calls")[rows],
        volume[rows],
        errors[rows],
        table.p50_us[rows],
        table.p95_us[rows],
    )
