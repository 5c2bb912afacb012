"""What a recorded day with known faults shows of detection: recall, delay, false alarms. Pure, seeded.

Two runs. *As recorded*: the state begins empty with the first recorded minute and learns from what is there, faults
among it. *After a day*: it has seen a continuous day before, whose minutes are drawn from the fault-free ones, each as
it was recorded (block bootstrap: Kuensch 1989; within a block nothing is drawn anew: Davison & Hinkley 1997, section
3.8); that day gives the false alarms a day.

The recordings are stretches of about three minutes, cut out of the day within a minute: calls seem to stop and start,
so kinds that tell of volume or absence are left out on the recorded minutes, and counted on the day.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import msgspec
import numpy as np

from deploy.fault_recordings.days import FaultDay
from deploy.injected_drifts.stream import SOURCE, log_records
from deploy.injected_drifts.traffic import MINUTE_MS, Calls
from models.drift.labelled import DAY_MS, judge_findings
from models.graph.machine import Machine
from schemas.detection import DetectionConfig
from schemas.drift import STRUCTURAL_KINDS, TELEMETRY_KINDS, DriftEvent, DriftKind
from schemas.labelled import LabelledIncident, LabelledReport
from schemas.tenant_log import LaneConfig, Member

VOLUME_KINDS = frozenset(
    {DriftKind.RATE_SURGE, DriftKind.RATE_DROP, DriftKind.BYTES_SURGE, DriftKind.REMOVED_EDGE, DriftKind.BEACONING}
)
"""Kinds that cuts in a recording bring about."""
NOT_A_FAULT = VOLUME_KINDS | STRUCTURAL_KINDS | TELEMETRY_KINDS
"""Kinds that do not show that a service is slow or fails: they find no fault, whatever they touch."""
WEARS_OFF_WINDOWS = 1
"""After a fault, in which an alarm is neither of it nor false."""
_REST_MINUTES = 30
"""Between the resampled day and the recorded one, so that what was open is closed."""


@dataclass(slots=True)
class Seen:
    """What a run brought about. ``windows_ms``: starts of closed windows; ``learning_ms``: of those that only teach."""

    events: list[DriftEvent]
    windows_ms: list[int]
    learning_ms: list[int]

    def since(self, start_ms: int) -> "Seen":
        """Return what is of windows from ``start_ms`` on."""
        return Seen(
            [event for event in self.events if event.window_start_ms >= start_ms],
            [one for one in self.windows_ms if one >= start_ms],
            [one for one in self.learning_ms if one >= start_ms],
        )

    def before(self, end_ms: int) -> "Seen":
        """Return what is of windows before ``end_ms``."""
        return Seen(
            [event for event in self.events if event.window_start_ms < end_ms],
            [one for one in self.windows_ms if one < end_ms],
            [one for one in self.learning_ms if one < end_ms],
        )


class Share(msgspec.Struct, frozen=True):
    """Of so many faults that could be seen, how many were found, and when.

    ``delay_windows_*``: windows from the one in which a fault began to the end of the one that showed it; -1 for none.
    """

    faults: int
    found: int
    recall: float
    delay_windows_median: float
    delay_windows_max: int


class RunFigures(msgspec.Struct, frozen=True):
    """Figures of one run over the recorded minutes.

    ``families``, ``kinds``: shares by family of fault and by fault. ``missed``: ``kind@service`` of resource faults.
    ``false_alarms``: findings in ``fault_free_minutes`` that judged; volume kinds, told of cuts, apart.
    """

    families: dict[str, Share]
    kinds: dict[str, Share]
    missed: tuple[str, ...]
    false_alarms: int
    false_alarms_by_kind: dict[str, int]
    fault_free_minutes: int
    volume_findings: int


class SystemFigures(msgspec.Struct, frozen=True):
    """Figures of one system. ``false_alarms_*``: of the resampled continuous day, ``judged_days`` after learning."""

    system: str
    day: str
    as_recorded: RunFigures
    after_a_day: RunFigures
    false_alarms: int
    false_alarms_per_day: float
    false_alarms_by_kind: dict[str, int]
    judged_days: float


def figures_of(day: FaultDay, seed: int, hours: int, thresholds: Mapping[str, int | float]) -> SystemFigures:
    """Return the figures of a day, with ``hours`` of resampled traffic before it in the second run."""
    cold = _run(day.minutes(), day, thresholds)
    first = int(day.calls.time_ms[0]) // MINUTE_MS - _REST_MINUTES
    whole = _run(chain(_resampled(day, seed, first - hours * 60, first), day.minutes()), day, thresholds)
    resampled = whole.before(first * MINUTE_MS)
    alarms = _found(resampled.events)
    judged = len(set(resampled.windows_ms) - set(resampled.learning_ms)) * MINUTE_MS / DAY_MS
    return SystemFigures(
        day.system,
        day.day,
        _figures(day, cold),
        _figures(day, whole.since(int(day.calls.time_ms[0]) // MINUTE_MS * MINUTE_MS)),
        len(alarms),
        len(alarms) / judged if judged else -1.0,
        dict(sorted(Counter(one.kind.value for one in alarms).items())),
        judged,
    )


def _run(minutes: Iterable[tuple[int, Calls]], day: FaultDay, thresholds: Mapping[str, int | float]) -> Seen:
    machine, seen = Machine(), Seen([], [], [])
    config = LaneConfig(
        "replay:recorded",
        mode="replay",
        window_ms=MINUTE_MS,
        max_wait_ms=0,
        members=(Member(SOURCE, 1),),
        detection=msgspec.structs.replace(DetectionConfig(), **thresholds),
    )
    for offset, record in enumerate(log_records(minutes, day.edges, config)):
        output = machine.apply(offset, record)
        seen.events += output.events
        seen.windows_ms += [window.start_ms for window in output.windows]
        seen.learning_ms += [window.start_ms for window in output.windows if window.is_learning]
    return seen


def _resampled(day: FaultDay, seed: int, first: int, last: int) -> Iterator[tuple[int, Calls]]:
    calm, rng = day.calm_minutes(), np.random.default_rng(seed)
    for minute in range(first, last):
        recorded, calls = calm[int(rng.integers(len(calm)))]
        yield minute, replace(calls, time_ms=calls.time_ms + (minute - recorded) * MINUTE_MS)


def _found(events: Iterable[DriftEvent]) -> list[DriftEvent]:
    """Return the first event of each finding."""
    return list({event.finding_id: event for event in reversed(list(events)) if not event.close_reason}.values())


def _figures(day: FaultDay, seen: Seen) -> RunFigures:
    def judged(left_out: frozenset[DriftKind]) -> LabelledReport:
        events = [event for event in seen.events if event.kind not in left_out]
        windows = (events, seen.windows_ms, seen.learning_ms, day.incidents, MINUTE_MS)
        return judge_findings(*windows, grace_windows=WEARS_OFF_WINDOWS, lead_windows=0)

    shown, alarms, everything = judged(NOT_A_FAULT), judged(VOLUME_KINDS), judged(frozenset())
    of_name: dict[str, LabelledIncident] = {one.name: one for one in day.incidents}
    visible = [one for one in shown.incidents if one.had_traffic]
    found = [(day.family[one.kind], one.kind, one.delay_windows) for one in visible]
    families = sorted({family for family, _, _ in found})
    return RunFigures(
        {name: _share([delay for family, _, delay in found if family == name]) for name in families}
        | {"all": _share([delay for _, _, delay in found])},
        {
            name: _share([delay for _, kind, delay in found if kind == name])
            for name in sorted({k for _, k, _ in found})
        },
        tuple(
            f"{one.kind}@{of_name[one.name].services[0]}"
            for one in visible
            if one.delay_windows < 0 and day.family[one.kind] == "resource"
        ),
        alarms.false_alarms,
        alarms.false_alarms_by_kind,
        alarms.quiet_windows,
        everything.false_alarms - alarms.false_alarms,
    )


def _share(delays: Sequence[int]) -> Share:
    found = sorted(delay for delay in delays if delay > 0)
    recall = len(found) / len(delays) if delays else 0.0
    return Share(
        len(delays), len(found), recall, float(np.median(found)) if found else -1.0, found[-1] if found else -1
    )
