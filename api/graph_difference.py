"""What two runs of windows of one lane have unlike: edges added, gone, changed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.graph_repository import EdgePair, EdgeTotals

LEAST_CALLS = 10
"""Of fewer calls a window a rate or a mean says little: such an edge is added or gone, never changed."""
LEAST_ERROR_SHIFT = 0.05
"""An error ratio that moves by less is no change."""


@dataclass(frozen=True, slots=True)
class Levels:
    """An edge over a run of windows; ``None`` is unknown."""

    windows: int
    calls_per_window: float
    error_ratio: float | None
    denied: int | None
    bytes_per_call: float | None
    latency_mean_us: float | None


@dataclass(frozen=True, slots=True)
class ChangedEdge:
    """An edge that is in both runs, and what of it is unlike."""

    pair: EdgePair
    before: Levels
    after: Levels
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Edges by name."""

    added: list[EdgePair]
    gone: list[EdgePair]
    changed: list[ChangedEdge]
    unchanged: int


def levels_of(totals: EdgeTotals, windows: int) -> Levels:
    """Return an edge's levels; ``windows``: how many the run has."""
    ratio = None if totals.errors is None or not totals.calls else min(totals.errors / totals.calls, 1.0)
    is_timed = totals.latency_sum_us is not None and totals.latency_calls > 0
    return Levels(
        windows=totals.windows,
        calls_per_window=totals.calls / windows,
        error_ratio=ratio,
        denied=totals.denied,
        bytes_per_call=None if totals.bytes is None or not totals.calls else totals.bytes / totals.calls,
        latency_mean_us=(totals.latency_sum_us or 0) / totals.latency_calls if is_timed else None,
    )


def difference_of(edges: Sequence[EdgePair], windows_before: int, windows_after: int, factor: float) -> Difference:
    """Sort edges by what became of them.

    Args:
        windows_before, windows_after: how many windows the two runs have, 1 or more.
        factor: calls, bytes a call and mean latency are changed where they are so many times more, or less.
    """
    found = Difference([], [], [], 0)
    unchanged = 0
    for edge in edges:
        if not edge.before.windows:
            found.added.append(edge)
        elif not edge.after.windows:
            found.gone.append(edge)
        else:
            before, after = levels_of(edge.before, windows_before), levels_of(edge.after, windows_after)
            if changes := _changes(before, after, factor):
                found.changed.append(ChangedEdge(edge, before, after, changes))
            else:
                unchanged += 1
    return Difference(found.added, found.gone, found.changed, unchanged)


def _changes(before: Levels, after: Levels, factor: float) -> tuple[str, ...]:
    names = []
    if max(before.calls_per_window, after.calls_per_window) < LEAST_CALLS:
        return ()
    if _is_apart(before.calls_per_window, after.calls_per_window, factor):
        names.append("calls")
    if (
        before.error_ratio is not None
        and after.error_ratio is not None
        and abs(after.error_ratio - before.error_ratio) >= LEAST_ERROR_SHIFT
    ):
        names.append("error_ratio")
    if not before.denied and after.denied:
        names.append("denied")
    if _is_apart(before.bytes_per_call, after.bytes_per_call, factor):
        names.append("bytes_per_call")
    if _is_apart(before.latency_mean_us, after.latency_mean_us, factor):
        names.append("latency")
    return tuple(names)


def _is_apart(before: float | None, after: float | None, factor: float) -> bool:
    if before is None or after is None or before == after:
        return False
    least, most = sorted((before, after))
    return most >= factor * least
