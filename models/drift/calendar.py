"""When things departed before: what comes back at the same hour of a day or a week is expected. Pure, small state.

Kept is only what departed, not a profile of every hour of every edge: most edges never depart, and a profile of 168
hours for 5 signals of 100 thousand edges would take more memory than all else. Times are those of events, in UTC; the
tolerance of one hour takes in summer time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from models.drift.detection import Detection
from schemas.drift import RECURRENCE, DriftKind, Evidence

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
PERIODS_MS = (DAY_MS, 2 * DAY_MS, 3 * DAY_MS, 7 * DAY_MS, 14 * DAY_MS)
"""After which times something counts as coming back: the days since Friday, a week, one that was left out."""
TOLERANCE_MS = HOUR_MS
"""How much earlier or later than before; pauses no longer than this do not end an occasion."""
LONGEST_MS = 12 * HOUR_MS
"""What goes on for longer is another occasion."""
SLACK = 1.25
"""How many times as large as before is no larger."""
MAX_OCCASIONS = 8
"""Kept of one subject, the last ones: a week of days and the one before."""
MAX_SUBJECTS = 10_000
"""Kept of a tenant in a lane; those that departed last stay."""
RECURRING_RISK = 30
"""The most that something expected can be at risk of: it is told, and is no alert."""
RECURRING_KINDS = frozenset(
    {
        DriftKind.RATE_SURGE,
        DriftKind.RATE_DROP,
        DriftKind.BYTES_SURGE,
        DriftKind.ERROR_INCREASE,
        DriftKind.LATENCY_INCREASE,
        DriftKind.FAN_OUT_BURST,
        DriftKind.DENIED_BURST,
    }
)
DETECTOR = "calendar"

Subject = tuple[str, str, str, int, int]
"""A kind and what it is about, as ``Detection.sort_key`` gives it."""


class Occasion(msgspec.Struct, array_like=True):
    """One time that a subject departed: from its first window's start to its last one's, and how far at most."""

    first_ms: int
    last_ms: int
    size: float


@dataclass(slots=True)
class Calendar:
    """Occasions by subject, oldest first; the subject noted last stands last.

    Attributes:
        changed: since the last checkpoint.
    """

    occasions: dict[Subject, list[Occasion]] = field(default_factory=dict)
    changed: bool = False

    def note(self, subject: Subject, time_ms: int, size: float) -> None:
        """Note that a subject departs in the window that starts at ``time_ms``; times never go back."""
        occasions = self.occasions.pop(subject, [])
        current = occasions[-1] if occasions else None
        if current is None or not _goes_on(current, time_ms):
            occasions = [*occasions[1 - MAX_OCCASIONS :], Occasion(time_ms, time_ms, size)]
        else:
            current.last_ms = time_ms
            current.size = max(current.size, size)
        self.occasions[subject] = occasions
        self._forget()
        self.changed = True

    def note_within(self, subject: Subject, first_ms: int, time_ms: int, size: float) -> None:
        """Note that a subject departs at ``time_ms``, in an occasion of something else that began at ``first_ms``."""
        occasions = self.occasions.pop(subject, [])
        if occasions and occasions[-1].first_ms == first_ms:
            occasions[-1].last_ms, occasions[-1].size = time_ms, max(occasions[-1].size, size)
        else:
            occasions = [*occasions[1 - MAX_OCCASIONS :], Occasion(first_ms, time_ms, size)]
        self.occasions[subject] = occasions
        self._forget()
        self.changed = True

    def _forget(self) -> None:
        while len(self.occasions) > MAX_SUBJECTS:
            del self.occasions[next(iter(self.occasions))]

    def since_ms(self, subject: Subject, time_ms: int) -> int | None:
        """Return when the occasion began that a departure at ``time_ms`` would belong to; None if it begins one."""
        occasions = self.occasions.get(subject)
        return occasions[-1].first_ms if occasions and _goes_on(occasions[-1], time_ms) else None

    def earlier(self, subject: Subject, time_ms: int) -> list[Occasion]:
        """Return the occasions, over by now, that were at the same hour of a day or a week; oldest first."""
        return [
            occasion
            for occasion in self.occasions.get(subject, ())
            if not _goes_on(occasion, time_ms)
            and any(
                occasion.first_ms - TOLERANCE_MS <= time_ms - period_ms <= occasion.last_ms + TOLERANCE_MS
                for period_ms in PERIODS_MS
            )
        ]

    def note_silence(self, subject: Subject, first_ms: int, end_ms: int) -> None:
        """Note that an edge that was silent from ``first_ms`` on came back at ``end_ms``."""
        occasions = self.occasions.pop(subject, [])
        self.occasions[subject] = [*occasions[1 - MAX_OCCASIONS :], Occasion(first_ms, end_ms, 0.0)]
        self._forget()
        self.changed = True

    def back_ms(self, subject: Subject, first_ms: int) -> int | None:
        """Return by when an edge that is silent from ``first_ms`` on is to be back; None where that is not known."""
        ends = [
            first_ms + occasion.last_ms - occasion.first_ms + TOLERANCE_MS
            for occasion in self.occasions.get(subject, ())
            if any(abs(first_ms - period_ms - occasion.first_ms) <= TOLERANCE_MS for period_ms in PERIODS_MS)
        ]
        return max(ends, default=None)

    def rename(self, names: Mapping[str, str]) -> None:
        """Follow services that got other names; what becomes one keeps the last occasions of all."""
        before, self.occasions = self.occasions, {}
        for (kind, src, dst, port, protocol), occasions in before.items():
            subject = (kind, names.get(src, src), names.get(dst, dst), port, protocol)
            merged = sorted([*self.occasions.pop(subject, []), *occasions], key=lambda o: (o.first_ms, o.last_ms))
            self.occasions[subject] = merged[-MAX_OCCASIONS:]
        self.changed = True

    def pages(self, size: int) -> Iterator[list[tuple[Subject, list[Occasion]]]]:
        """Yield all that is kept, at most ``size`` subjects at once."""
        entries = list(self.occasions.items())
        for start in range(0, len(entries), size):
            yield entries[start : start + size]


def _goes_on(occasion: Occasion, time_ms: int) -> bool:
    return time_ms - occasion.last_ms <= TOLERANCE_MS and time_ms - occasion.first_ms < LONGEST_MS


def size_of(detection: Detection) -> float:
    """Return how large a departure is; larger is worse. Of a drop it is how little is left."""
    observed = max(
        (e.observed for e in detection.evidence if e.unit and e.detector != DETECTOR and e.signal != "silent_windows"),
        default=0.0,
    )
    return 1.0 / (1.0 + observed) if detection.kind is DriftKind.RATE_DROP else observed


def is_recurring(detection: Detection) -> bool:
    """Say whether a detection was found to be expected."""
    return any(item.signal == RECURRENCE for item in detection.evidence)


def expect(
    calendar: Calendar,
    detection: Detection,
    time_ms: int,
    window_ms: int,
    needed: int,
    is_open_news: Callable[[Detection], bool],
    notes: bool = True,
) -> Detection:
    """Return a detection as it is to be told: as expected, if it is; and note it in the calendar.

    Expected is what departs no further than at ``needed`` earlier occasions at this hour. Then it does not raise the
    bar either: the next one may be no larger than what was told as news, so nobody grows by small steps unseen.

    Args:
        needed: earlier occasions; 0: nothing is expected.
        is_open_news: whether it goes on with a finding that was told as news, and stays it.
        notes: whether to note it; not before its window closes.
    """
    if detection.kind not in RECURRING_KINDS:
        return detection
    subject, size = detection.sort_key, size_of(detection)
    earlier = [o for o in calendar.earlier(subject, time_ms) if size <= o.size * SLACK]
    expected = 0 < needed <= len(earlier) and not is_open_news(detection)
    if notes:
        calendar.note(subject, time_ms, max(o.size for o in earlier) if expected else size)
    if not expected:
        return detection
    last = earlier[-1]
    item = Evidence(
        signal=RECURRENCE,
        observed=float(last.first_ms),
        expected=float(last.first_ms),
        unit="",
        score=0.0,
        sample=len(earlier),
        history=(time_ms - last.first_ms) // window_ms,
        detector=DETECTOR,
    )
    return replace(detection, evidence=(*detection.evidence, item), risk=min(detection.risk, RECURRING_RISK))
