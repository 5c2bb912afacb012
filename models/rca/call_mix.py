"""Evidence of what calls call in turn: an operation that breaks off, or takes another way, hides a failure. Pure.

For each operation the patterns of its child calls are counted. Where one becomes more frequent than its wandering from
window to window explains, the service has changed what it does. The callee after which it now breaks off, and the first
it no longer calls, come into question too: an answer that makes their caller give up looks just so.
"""

from dataclasses import dataclass

import numpy as np

from models.rca.calls import CallTable
from models.rca.evidence import (
    MIN_SAMPLE_CALLS,
    MIN_SPREAD_RATIO,
    PRIOR_WINDOWS,
    TYPICAL_WANDERING,
    Moves,
    Shift,
)
from models.rca.robust import Floats, Ints, Mask
from models.rca.topology import Topology

HANDED_ON = 0.4
"""Share of the evidence that goes to the callees which come into question."""
PRIOR_CALLS = 3.0
"""Usual calls that those of the range are mixed with: two of three calls are no new habit yet."""


@dataclass(frozen=True, slots=True)
class ChangedMix:
    """The pattern of an operation that has become more frequent. ``broke_off``, ``left_out``: services, -1 for none."""

    operation: int
    z: float
    now: float
    before: float
    calls: int
    windows: int
    pattern: tuple[int, ...]
    broke_off: int
    left_out: int


def mix_shift(calls: CallTable, now: Mask, before: Mask, topology: Topology) -> Shift:
    """Return the shift of what services' operations call. ``topology`` must hold all services."""
    places = topology.places(calls.services)
    nodes = len(topology.services)
    found: dict[int, ChangedMix] = {}
    for rows_now, rows_before in _operations(calls, now, before):
        mix = _changed(calls, rows_now, rows_before)
        service = int(places[calls.dst[rows_now[0]]])
        if mix is not None and (service not in found or mix.z > found[service].z):
            found[service] = mix
    values = np.zeros((4, nodes))
    counts = np.zeros((2, nodes), dtype=np.int64)
    remarks, source, target, share = {}, [], [], []
    for service, mix in found.items():
        values[:, service] = mix.z, (mix.now - mix.before) * mix.calls, mix.now, mix.before
        counts[:, service] = mix.calls, mix.windows
        suspects = sorted({int(places[one]) for one in (mix.broke_off, mix.left_out) if one >= 0} - {service})
        remarks[service] = _remark(calls, mix)
        source += [service] * len(suspects)
        target += suspects
        share += [HANDED_ON / len(suspects)] * len(suspects)
    return Shift.of_services(
        "call_mix",
        "ratio",
        "calls",
        score=values[0],
        excess=values[1],
        observed=values[2],
        expected=values[3],
        sample=counts[0],
        history=counts[1],
        moves=Moves(np.array(source, dtype=np.int64), np.array(target, dtype=np.int64), np.array(share)),
        remarks=remarks,
        handed_on=True,
    )


def _operations(calls: CallTable, now: Mask, before: Mask) -> list[tuple[Ints, Ints]]:
    """Return rows now and before of each operation with enough of both."""

    def by_operation(use: Mask) -> dict[int, Ints]:
        rows = np.flatnonzero(use)
        rows = rows[np.argsort(calls.operation[rows], kind="stable")]
        parts = np.split(rows, np.flatnonzero(np.diff(calls.operation[rows])) + 1)
        return {int(calls.operation[part[0]]): part for part in parts if len(part)}

    of_now, of_before = by_operation(now), by_operation(before)
    return [
        (rows, of_before[operation])
        for operation, rows in of_now.items()
        if len(rows) >= MIN_SAMPLE_CALLS and len(of_before.get(operation, ())) >= MIN_SAMPLE_CALLS
    ]


def _changed(calls: CallTable, now: Ints, before: Ints) -> ChangedMix | None:
    """Return the pattern that has gained most for its wandering, if any has gained at all."""
    seen, pattern = np.unique(np.r_[calls.pattern[now], calls.pattern[before]], return_inverse=True)
    if len(seen) < 2:
        return None
    count_now = np.bincount(pattern[: len(now)], minlength=len(seen))
    count_before = np.bincount(pattern[len(now) :], minlength=len(seen))
    usual: Floats = np.asarray((count_before + 0.5) / (len(before) + 0.5 * len(seen)), dtype=np.float64)
    share_now = (count_now + PRIOR_CALLS * usual) / (len(now) + PRIOR_CALLS)
    between, windows = _wandering(pattern[len(now) :], calls.window[before], usual, len(seen))
    by_chance = usual * (1 - usual) * (1 / len(now) + 1 / len(before))
    z = (share_now - usual) / np.sqrt(by_chance + between)
    most = int(np.argmax(z))
    if share_now[most] - usual[most] < MIN_SPREAD_RATIO:
        return None
    patterns = [calls.patterns[number] for number in seen.tolist()]
    return ChangedMix(
        operation=int(calls.operation[now[0]]),
        z=float(z[most]),
        now=float(count_now[most] / len(now)),
        before=float(count_before[most] / len(before)),
        calls=len(now),
        windows=windows,
        pattern=patterns[most],
        broke_off=patterns[most][-1] if patterns[most] else -1,
        left_out=_first_left_out(patterns, count_now, count_before, patterns[most]),
    )


def _wandering(pattern: Ints, window: Ints, usual: Floats, patterns: int) -> tuple[Floats, int]:
    """Return how far each pattern's share wanders between windows beyond chance, as a variance, and the windows."""
    names, number = np.unique(window, return_inverse=True)
    table = np.zeros((len(names), patterns))
    np.add.at(table, (number, pattern), 1)
    calls = table.sum(axis=1, keepdims=True)
    use = calls[:, 0] >= MIN_SAMPLE_CALLS
    off = (table / calls - usual) ** 2 - usual * (1 - usual) / calls
    windows = int(use.sum())
    total = np.maximum(off[use].sum(axis=0), 0.0)
    return (total + PRIOR_WINDOWS * TYPICAL_WANDERING**2) / (windows + PRIOR_WINDOWS), windows


def _first_left_out(
    patterns: list[tuple[int, ...]], count_now: Ints, count_before: Ints, gained: tuple[int, ...]
) -> int:
    """Return the service that was called earliest among those the gained pattern lacks and calls now lack."""
    share_now, share_before = count_now / count_now.sum(), count_before / count_before.sum()
    lost: dict[int, float] = {}
    often: dict[int, float] = {}
    place: dict[int, float] = {}
    for pattern, now, before in zip(patterns, share_now.tolist(), share_before.tolist(), strict=True):
        for position, service in enumerate(dict.fromkeys(pattern)):
            lost[service] = lost.get(service, 0.0) + before - now
            often[service] = often.get(service, 0.0) + before
            place[service] = place.get(service, 0.0) + before * position
    left_out = [service for service, share in lost.items() if share > MIN_SPREAD_RATIO and service not in gained]
    return min(left_out, key=lambda service: (place[service] / often[service], service), default=-1)


def _remark(calls: CallTable, mix: ChangedMix) -> tuple[str, str]:
    if not mix.pattern:
        text = "calls nothing in turn"
    elif mix.left_out >= 0:
        text = f"ends after {calls.services[mix.broke_off]}"
    else:
        text = f"goes on to {', '.join(calls.services[one] for one in mix.pattern)}"
    without = "" if mix.left_out < 0 else f", without {calls.services[mix.left_out]}"
    return calls.operations[mix.operation], text + without
