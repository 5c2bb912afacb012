"""Resource faults put into fault-free minutes of recorded calls: is the service that has them named first?

Data sets hold few resource faults. Here each service in turn is made slow itself, or its network is, in stretches
without a fault; the minutes before them are the baseline. Seeded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.commands.evaluate_rca import rank_case
from deploy.rca_datasets.cases import Baseline, FaultCase, Input
from deploy.rca_datasets.nezha import USER, NezhaDay, fold_calls, nezha_days, ranges_of
from models.rca.accuracy import accuracy_of
from models.rca.calls import CallTable, parents_of
from models.rca.evidence import MIN_SAMPLE_CALLS, Shift
from models.rca.gather import CallRanges, WindowRanges, gather
from models.rca.robust import Floats, Ints, Mask
from schemas.rca_inputs import CallRecords

SEED = 11
STRETCH_S = 180
BEFORE_FAULT_S = 10
"""A stretch ends this long before the recorded fault that it was recorded for."""
AFTER_FAULT_S = 120
"""And begins this long after the one before: some wear off slowly, and would be named rightly."""
MIN_CALLS = 300
MIN_BASELINE_CALLS = 1_000
STRETCHES = 5
SLOW_SHARE = 0.8
"""Share of a busy service's calls that are slow: the others were quick enough to get through."""
LEAST_OWN_US = 1_000.0
_US_PER_MS = 1_000.0
_US_PER_S = 1e6


@dataclass(frozen=True)
class Injected:
    """A fault: own time ``times`` as long, or ``wait_ms`` more between it and its peers; by half either way."""

    name: str
    times: float = 1.0
    wait_ms: float = 0.0


FAULTS = (
    Injected("busy, 2 times its own time", times=2.0),
    Injected("busy, 5 times its own time", times=5.0),
    Injected("busy, 20 times its own time", times=20.0),
    Injected("network, 5 ms", wait_ms=5.0),
    Injected("network, 50 ms", wait_ms=50.0),
    Injected("network, 200 ms", wait_ms=200.0),
)


def added_around(parent: Ints, added_us: Floats) -> Floats:
    """Return what calls add to those they were made within, ``(R,)``: their callers wait for one call after another.

    Shapes: parent ``(R,)``, -1 for none; added_us ``(R,)``.
    """
    around = np.zeros(len(parent))
    rows = np.flatnonzero(added_us)
    at, amount = parent[rows], added_us[rows]
    while len(at):
        known = at >= 0
        at, amount = at[known], amount[known]
        np.add.at(around, at, amount)
        at = parent[at]
    return around


def with_fault(
    records: CallRecords,
    parent: Ints,
    own_us: Floats,
    use: Mask,
    service: int,
    fault: Injected,
    rng: np.random.Generator,
) -> CallRecords:
    """Return the calls as they had been with ``fault`` at ``service`` in the rows of ``use``."""
    size = rng.uniform(0.5, 1.5, len(records))
    busy_us, wait_us = np.zeros(len(records)), np.zeros(len(records))
    if fault.times > 1:
        rows = use & (records.dst == service) & (rng.random(len(records)) < SLOW_SHARE)
        busy_us[rows] = ((fault.times - 1) * size * np.maximum(own_us, LEAST_OWN_US))[rows]
    if fault.wait_ms > 0:
        rows = use & ((records.dst == service) | (records.src == service))
        wait_us[rows] = fault.wait_ms * _US_PER_MS * size[rows]
    server_us = busy_us + added_around(parent, busy_us + wait_us)
    return replace(
        records,
        server_us=records.server_us + np.rint(server_us).astype(np.int64),
        client_us=records.client_us + np.rint(server_us + wait_us).astype(np.int64),
    )


def stretches_of(day: NezhaDay) -> Iterator[tuple[Mask, Mask]]:
    """Return some fault-free stretches and the fault-free time before each, ``(R,)`` each, over the whole day."""
    at_s = day.records.start_us / _US_PER_S
    found = []
    for fault in day.faults:
        begin = fault["inject_ts"] - BEFORE_FAULT_S - STRETCH_S
        stretch = {"inject_ts": begin, "duration_s": STRETCH_S}
        now, before = ranges_of(at_s, stretch, day, Baseline.BEFORE, 0)
        now &= ranges_of(at_s, stretch, day, Baseline.DAY, 0)[1]
        ends = [other["inject_ts"] + other["duration_s"] for other in day.faults if other["inject_ts"] < begin]
        is_calm = begin >= max(ends, default=0) + AFTER_FAULT_S
        if is_calm and now.sum() >= MIN_CALLS and before.sum() >= MIN_BASELINE_CALLS:
            found.append((now, before))
    step = max(len(found) // STRETCHES, 1)
    yield from found[::step][:STRETCHES]


def injected_cases(day: NezhaDay, fault: Injected, source: Input) -> Iterator[FaultCase]:
    """Return a case for each stretch and each service with enough calls in both ranges."""
    records, parent = day.records, parents_of(day.records)
    own_us = day.calls.self_us
    rng = np.random.default_rng(SEED)
    for number, (now, before) in enumerate(stretches_of(day)):
        for service, name in enumerate(records.services):
            calls = [int((rows & (records.dst == service)).sum()) for rows in (now, before)]
            if name == USER or min(calls) < MIN_SAMPLE_CALLS:
                continue
            faulty = with_fault(records, parent, own_us, now, service, fault, rng)
            yield FaultCase(
                case=f"{number}_{name}",
                system="",
                family="injected",
                fault=fault.name,
                root_cause=name,
                topology=day.topology,
                find=_evidence(day, faulty, parent, now, before, source),
                outside=frozenset({USER}),
            )


def _evidence(
    day: NezhaDay, faulty: CallRecords, parent: Ints, now: Mask, before: Mask, source: Input
) -> Callable[[], tuple[Shift, ...]]:
    def find() -> tuple[Shift, ...]:
        if source is Input.WINDOWS:
            windows = WindowRanges(fold_calls(faulty, now), fold_calls(faulty, before))
            return gather(day.topology, windows=windows)
        return gather(day.topology, CallRanges(CallTable.of(faulty, parent), now, before))

    return find


def injected(data: Path) -> dict[str, Any]:
    """Return how often the service with the fault is first, by day, input and fault."""
    result: dict[str, Any] = {}
    for name, day in nezha_days(data).items():
        for source in (Input.TRACES, Input.WINDOWS):
            for fault in FAULTS:
                ranked = [rank_case(case) for case in injected_cases(day, fault, source)]
                found, seed = accuracy_of([one.rank for one in ranked]), accuracy_of([one.seed_rank for one in ranked])
                result.setdefault(f"{name}, {source.value} alone", {})[fault.name] = {
                    "ac1": found.ac1,
                    "ac3": found.ac3,
                    "avg5": found.avg5,
                    "seed_ac1": seed.ac1,
                    "seed_avg5": seed.avg5,
                    "cases": found.cases,
                }
    return result
