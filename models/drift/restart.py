"""What comes with each restart of a service: departures, and silences of all its edges, that were there before. Pure.

A deployment comes at no fixed hour, so the calendar of hours does not know it. Signs of a start are found in a window's
edges (models/graph/restarting.py); here they are remembered, in the calendar and within its bounds, and compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from models.drift.calendar import (
    MINUTE_MS,
    RECURRING_KINDS,
    RECURRING_RISK,
    SLACK,
    Calendar,
    Occasion,
    Subject,
    is_recurring,
    size_of,
)
from models.drift.detection import MAX_EDGES_LISTED, Detection, confidence_of, rounded
from schemas.drift import RECURRENCE, DriftKind, EdgeRef, Evidence

START_MS = 15 * MINUTE_MS
"""For how long after the first sign of it what departs belongs to a start. Down for longer is an outage."""
OUTAGE = -1.0
"""Size of a start that was none; the size of any other is for how many windows all edges were down, 0: none was."""
CALLER, CALLEE, RESTART = "caller-restart", "callee-restart", "restart"
"""Detectors: which end of the edge restarted, or the service that the finding is about."""
_START = "start"


def start_of(service: str) -> Subject:
    """Return the subject under which a service's starts are kept."""
    return (_START, service, "", -1, -1)


def note_start(calendar: Calendar, service: str, time_ms: int) -> None:
    """Note a sign, in the window that starts at ``time_ms``, that a service has started anew.

    A sign within an hour of another begins no start of its own: who shows one all the time, or falls again and again,
    does not start, and what departs there is told as ever.
    """
    calendar.note(start_of(service), time_ms, OUTAGE)
    current = calendar.occasions[start_of(service)][-1]
    if current.first_ms == time_ms:
        current.size = max(current.size, 0.0)


def note_down(calendar: Calendar, service: str, time_ms: int, window_ms: int, is_removed: bool = False) -> None:
    """Note that all edges of a service are down in the window that starts at ``time_ms``.

    Args:
        is_removed: one of them is down for so long that it was told as removed.
    """
    note_start(calendar, service, time_ms)
    current = calendar.occasions[start_of(service)][-1]
    if current.size != OUTAGE:
        since_ms = time_ms - current.first_ms
        current.size = since_ms // window_ms + 1.0 if since_ms < START_MS and not is_removed else OUTAGE


def was_down(calendar: Calendar, service: str, time_ms: int) -> bool:
    """Say whether a window belongs to a start of a service in which all its edges were down."""
    current = _current(calendar, service, time_ms)
    return current is not None and current.size > 0


def _current(calendar: Calendar, service: str, time_ms: int) -> Occasion | None:
    occasions = calendar.occasions.get(start_of(service))
    if not occasions or occasions[-1].size == OUTAGE:
        return None
    return occasions[-1] if 0 <= time_ms - occasions[-1].first_ms <= START_MS else None


def _earlier(calendar: Calendar, service: str) -> list[Occasion]:
    """Return the starts before the current one, oldest first."""
    return [start for start in calendar.occasions.get(start_of(service), [])[:-1] if start.size != OUTAGE]


def expect_at_start(
    calendar: Calendar,
    detection: Detection,
    time_ms: int,
    window_ms: int,
    needed: int,
    is_open_news: Callable[[Detection], bool],
    notes: bool = True,
) -> Detection:
    """Return a detection as it is to be told: as expected, if earlier starts of one of its ends brought it as well.

    As `calendar.expect`: no larger than at ``needed`` earlier ones, and what is expected does not raise the bar. Nor
    may it come, or go on, longer after the start than it did then.
    """
    if detection.kind not in RECURRING_KINDS:
        return detection
    found = _starting_end(calendar, detection, time_ms)
    if found is None:
        return detection
    detector, service, current = found
    kind, src, dst, port, protocol = detection.sort_key
    subject, size = (f"{_START}:{kind}", src, dst, port, protocol), size_of(detection)
    starts = {start.first_ms for start in _earlier(calendar, service)}
    earlier = [
        occasion
        for occasion in calendar.occasions.get(subject, ())
        if occasion.first_ms in starts
        and size <= occasion.size * SLACK
        # No later either, give or take a window: a drop that goes on after the restart is one.
        and time_ms - current.first_ms <= (occasion.last_ms - occasion.first_ms) * SLACK + window_ms
    ]
    expected = 0 < needed <= len(earlier) and not is_open_news(detection)
    if notes:
        bar = max(occasion.size for occasion in earlier) if expected else size
        calendar.note_within(subject, current.first_ms, time_ms, bar)
    if not expected or is_recurring(detection):
        return detection
    item = _recurrence(detector, earlier, time_ms, window_ms)
    return replace(detection, evidence=(*detection.evidence, item), risk=min(detection.risk, RECURRING_RISK))


def _starting_end(calendar: Calendar, detection: Detection, time_ms: int) -> tuple[str, str, Occasion] | None:
    """Return the end of an edge that is starting, the one that began last; of both at once the callee."""
    ends = [
        (current.first_ms, detector, service, current)
        for detector, service in ((CALLER, detection.src), (CALLEE, detection.dst))
        if service and (current := _current(calendar, service, time_ms)) is not None
    ]
    if not ends:
        return None
    _, detector, service, current = max(ends, key=lambda end: (end[0], end[1] == CALLEE))
    return detector, service, current


def _recurrence(detector: str, earlier: Sequence[Occasion], time_ms: int, window_ms: int) -> Evidence:
    last = float(earlier[-1].first_ms)
    return Evidence(
        signal=RECURRENCE,
        observed=last,
        expected=last,
        unit="",
        score=0.0,
        sample=len(earlier),
        history=(time_ms - earlier[-1].first_ms) // window_ms,
        detector=detector,
    )


@dataclass(frozen=True, slots=True)
class Downtime:
    """A service all of whose edges are down, as they were at earlier starts.

    Attributes:
        windows: for how many by now. usual: for how many at most before. earlier: those starts, oldest first.
    """

    service: str
    windows: int
    usual: int
    earlier: tuple[Occasion, ...]


def usual_downtime(calendar: Calendar, service: str, needed: int) -> Downtime | None:
    """Return how a service that is down compares with its earlier starts; None if it is down longer than usual.

    Args:
        needed: earlier starts with all edges down that it takes; 0: nothing is expected.
    """
    windows = next((start.size for start in calendar.occasions.get(start_of(service), [])[-1:]), OUTAGE)
    earlier = tuple(start for start in _earlier(calendar, service) if start.size > 0)
    if windows == OUTAGE or not 0 < needed <= len(earlier):
        return None
    usual = max(start.size for start in earlier)
    # One window more: where in its first and last window a service went and came back is chance.
    if windows > usual * SLACK + 1:
        return None
    return Downtime(service, int(windows), int(usual), earlier)


def judge_downtime(
    downtime: Downtime,
    refs: Sequence[EdgeRef],
    calls: float,
    usual_calls: float,
    history: int,
    time_ms: int,
    window_ms: int,
) -> Detection:
    """State that a service is down for no longer than its restarts take: one finding instead of one for each edge.

    Args:
        refs: the edges that are down, sorted. calls, usual_calls: in a window, over all of them.
        history: windows in which the one of them seen least was seen.
    """
    evidence = (
        Evidence("calls_per_window", rounded(calls), rounded(usual_calls), "calls", 0.0, int(calls), history, RESTART),
        Evidence(
            "down_windows",
            float(downtime.windows),
            float(downtime.usual),
            "windows",
            0.0,
            len(downtime.earlier),
            history,
            RESTART,
        ),
        _recurrence(RESTART, downtime.earlier, time_ms, window_ms),
    )
    return Detection(
        kind=DriftKind.RATE_DROP,
        src=downtime.service,
        dst="",
        port=-1,
        protocol=-1,
        edges=tuple(refs[:MAX_EDGES_LISTED]),
        edges_total=len(refs),
        evidence=evidence,
        risk=RECURRING_RISK,
        confidence=confidence_of(history),
        first_seen_ms=time_ms - (downtime.windows - 1) * window_ms,
    )
