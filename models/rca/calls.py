"""Single calls made ready for comparison: which was made within which, and how long each side was busy. Pure."""

from dataclasses import dataclass

import numpy as np

from models.rca.robust import Floats, Ints, add_up
from schemas.rca_inputs import CallRecords

CALL_WINDOW_US = 30_000_000
"""Length of the windows between which calls are compared."""


@dataclass(frozen=True, slots=True)
class CallTable:
    """Calls of traces, prepared once; ranges of them are compared by masks.

    Shapes: all ``(R,)``.
        src, dst: positions in ``services``. operation: numbers (dst, operation), named in ``operations``.
        edge_operation: numbers (src, dst, operation). window: which window the call began in.
        self_us: time in the callee less the time it waited for its own calls; below zero where those ran in parallel.
        network_us: what the caller waited beyond the callee's own time: network, queues, its own slowness.
        pattern: what the call called in turn, in ``patterns``: services in order, repeats in a row counted once.
    """

    services: list[str]
    operations: list[str]
    patterns: list[tuple[int, ...]]
    start_us: Ints
    src: Ints
    dst: Ints
    operation: Ints
    edge_operation: Ints
    window: Ints
    self_us: Floats
    network_us: Floats
    pattern: Ints

    @classmethod
    def of(cls, records: CallRecords, parent: Ints | None = None) -> "CallTable":
        """Take apart who took how long. ``parent``: as ``parents_of`` returns it, where it is known already."""
        parent = parents_of(records) if parent is None else parent
        inner = np.flatnonzero(parent >= 0)
        waited = add_up(parent[inner], records.client_us[inner].astype(np.float64), len(records))
        pattern, patterns = _patterns(records, parent)
        own, operation = np.unique(
            records.dst * max(len(records.operations), 1) + records.operation, return_inverse=True
        )
        pair = records.src * max(len(own), 1) + operation
        return cls(
            services=records.services,
            operations=[records.operations[one] for one in (own % max(len(records.operations), 1)).tolist()],
            patterns=patterns,
            start_us=records.start_us,
            src=records.src,
            dst=records.dst,
            operation=operation.astype(np.int64),
            edge_operation=np.unique(pair, return_inverse=True)[1].astype(np.int64),
            window=records.start_us // CALL_WINDOW_US,
            self_us=records.server_us - waited,
            network_us=(records.client_us - records.server_us).astype(np.float64),
            pattern=pattern,
        )


def parents_of(records: CallRecords) -> Ints:
    """Return for each call the call it was made within, -1 where none is known, ``(R,)``.

    That is the shortest call of the same trace that its caller was serving at the time; clocks of hosts may differ, so
    the middle of the inner call decides, and where its caller served one call alone, that is the one.
    """
    parent = np.full(len(records), -1, dtype=np.int64)
    end_us = records.start_us + records.server_us
    order = np.lexsort((records.start_us, records.trace))
    bounds = np.flatnonzero(np.diff(records.trace[order])) + 1
    for rows in np.split(order, bounds):
        if len(rows) < 2:
            continue
        serving: dict[int, list[int]] = {}
        for row in rows.tolist():
            serving.setdefault(int(records.dst[row]), []).append(row)
        for row in rows.tolist():
            open_calls = [one for one in serving.get(int(records.src[row]), ()) if one != row]
            if len(open_calls) == 1:
                parent[row] = open_calls[0]
            elif open_calls:
                middle = (int(records.start_us[row]) + int(end_us[row])) // 2
                around = [one for one in open_calls if records.start_us[one] <= middle <= end_us[one]]
                parent[row] = min(around, key=lambda one: (int(records.server_us[one]), one), default=-1)
    return parent


def _patterns(records: CallRecords, parent: Ints) -> tuple[Ints, list[tuple[int, ...]]]:
    called: dict[int, list[int]] = {}
    for row in np.lexsort((records.start_us, parent)).tolist():
        if parent[row] >= 0:
            inside = called.setdefault(int(parent[row]), [])
            if not inside or inside[-1] != records.dst[row]:
                inside.append(int(records.dst[row]))
    numbers: dict[tuple[int, ...], int] = {(): 0}
    pattern = np.zeros(len(records), dtype=np.int64)
    for row, inside in called.items():
        pattern[row] = numbers.setdefault(tuple(inside), len(numbers))
    return pattern, list(numbers)
