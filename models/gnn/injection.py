"""Seeded drifts in windows of real traffic, to measure by: what changed is known, the rest is as it was. Pure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.gnn.windows import EdgeKey, WindowEdges
from models.graph.registry import CALLS, P50, P95

LEAST_CALLS = 5
"""An edge with fewer calls in the window is not changed: nobody could tell."""


def _scaled(signals: tuple[int, ...], factor: float) -> Callable[[WindowEdges, int], WindowEdges]:
    def apply(window: WindowEdges, row: int) -> WindowEdges:
        values, calls = window.signals.copy(), window.calls.copy()
        for signal in signals:
            values[row, signal] = np.log1p(np.round(np.expm1(values[row, signal]) * factor))
        if CALLS in signals:
            calls[row] = max(1, round(calls[row] * factor))
            values[row, CALLS] = np.log1p(calls[row])
        return replace(window, signals=values, calls=calls)

    return apply


CHANGES: dict[str, Callable[[WindowEdges, int], WindowEdges]] = {
    "slow-down x1.5": _scaled((P50, P95), 1.5),
    "slow-down x2": _scaled((P50, P95), 2.0),
    "surge x2": _scaled((CALLS,), 2.0),
    "surge x3": _scaled((CALLS,), 3.0),
    "drop to 1/2": _scaled((CALLS,), 0.5),
    "drop to 1/4": _scaled((CALLS,), 0.25),
}
NEW_EDGE = "new edge"
KINDS = (*CHANGES, NEW_EDGE)


def inject(
    window: WindowEdges, kind: str, known: frozenset[EdgeKey], generator: np.random.Generator
) -> tuple[WindowEdges, int] | None:
    """Return the window with one drift, and which edge it is of; ``None`` where there is no place for it.

    A new edge joins two services that have no edge in ``known`` nor in the window, with the signals of another edge.
    """
    rows = np.flatnonzero(window.calls >= LEAST_CALLS)
    if not len(rows):
        return None
    row = int(generator.choice(rows))
    if kind != NEW_EDGE:
        return CHANGES[kind](window, row), row
    pairs = {key[:2] for key in known} | {key[:2] for key in window.keys}
    services = sorted({name for pair in pairs for name in pair})
    free = [(a, b) for a in services for b in services if a != b and (a, b) not in pairs]
    if not free:
        return None
    src, dst = free[int(generator.integers(len(free)))]
    _, _, port, protocol = window.keys[row]
    # A window's edges stand in the order of identity, a new one too: its place tells nothing.
    place = int(np.searchsorted(np.array([f"{k[0]}\0{k[1]}" for k in window.keys]), f"{src}\0{dst}"))
    return (
        replace(
            window,
            keys=[*window.keys[:place], (src, dst, port, protocol), *window.keys[place:]],
            calls=np.insert(window.calls, place, window.calls[row]),
            signals=np.insert(window.signals, place, window.signals[row], axis=0),
        ),
        place,
    )
