"""Synthetic traces of a small shop whose fault is known: user > frontend > cart, ads, checkout > payment, mail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.rca_inputs import CallRecords

OWN_US = {"frontend": 20_000, "cart": 4_000, "ads": 6_000, "checkout": 15_000, "payment": 9_000, "mail": 3_000}
"""Microseconds each service is busy itself."""
CALLS = {"frontend": ("cart", "ads", "checkout"), "checkout": ("payment", "mail")}
NETWORK_US = 1_500
USER = "_user"
Row = tuple[int, str, str, str, int, int, str]
"""Start, caller, callee, operation, time of the callee, time the caller waited, trace."""


@dataclass(frozen=True)
class Fault:
    """What is wrong: microseconds added to services and edges, and what calls do instead of what they usually do."""

    busy_us: dict[str, int] = field(default_factory=dict)
    wait_us: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: Callable[[str, int], Sequence[str] | None] = lambda service, trace: None
    """Return what ``service`` calls in this trace, or None for the usual."""


def traces(rng: np.random.Generator, start_us: int, minutes: int, fault: Fault, a_minute: int = 60) -> list[Row]:
    """Return the calls of ``minutes`` minutes of traffic; times wander by a tenth."""
    rows: list[Row] = []
    for number in range(minutes * a_minute):
        begin = start_us + number * 60_000_000 // a_minute
        _call(rows, rng, begin, USER, "frontend", f"t{start_us}-{number}", number, fault)
    return rows


def _call(
    rows: list[Row],
    rng: np.random.Generator,
    begin: int,
    src: str,
    dst: str,
    trace: str,
    number: int,
    fault: Fault,
) -> int:
    """Add one call and those within it; return how long its caller waited."""
    own = int(OWN_US[dst] * rng.uniform(0.9, 1.1)) + fault.busy_us.get(dst, 0)
    place = len(rows)
    rows.append((begin, src, dst, "", 0, 0, trace))
    now = begin + own // 2
    instead = fault.calls(dst, number)
    for callee in CALLS.get(dst, ()) if instead is None else instead:
        now += _call(rows, rng, now, dst, callee, trace, number, fault)
    server = now - begin + own - own // 2
    network = 0 if src == USER else int(NETWORK_US * rng.uniform(0.9, 1.1)) + fault.wait_us.get((src, dst), 0)
    rows[place] = (begin, src, dst, f"{dst}/Serve", server, server + network, trace)
    return server + network


def records_of(rows: Sequence[Row]) -> CallRecords:
    """Return rows as columns."""
    services = sorted({name for row in rows for name in (row[1], row[2])})
    operations, names = sorted({row[3] for row in rows}), sorted({row[6] for row in rows})

    def codes(known: list[str], column: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        index = {name: i for i, name in enumerate(known)}
        return np.array([index[str(row[column])] for row in rows], dtype=np.int64)

    return CallRecords(
        services=services,
        operations=operations,
        start_us=np.array([row[0] for row in rows], dtype=np.int64),
        src=codes(services, 1),
        dst=codes(services, 2),
        operation=codes(operations, 3),
        trace=codes(names, 6),
        server_us=np.array([row[4] for row in rows], dtype=np.int64),
        client_us=np.array([row[5] for row in rows], dtype=np.int64),
    )
