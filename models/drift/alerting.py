"""A tenant's alerts of a day never exceed its budget, whatever comes: who gets a place, and why not. Pure.

A day is a calendar day, UTC, of event time; the budget is the tenant's, over all its live lanes. Three things together:

- *Level.* Each past day says from which risk on its candidates would just have kept the budget; a finding of today must
  reach the median of the last 14 days, once there are three. So a usual day spends its places on its best, and one bad
  day moves nothing (as in models/drift/edge_stream/calibration.py).
- *Pace.* Half of the places is free at midnight, the rest becomes so evenly over the day: its first hour cannot
  use them up.
- *Reserve.* A fifth of the places is for critical findings alone, paced alike.

The cap itself is a count per day. Whether a finding is kept, published and updated does not depend on any of it.
"""

from dataclasses import dataclass

import msgspec

from schemas.drift import AlertReason, Severity

DAY_MS = 86_400_000
LEARNED_DAYS = 14
LEAST_DAYS = 3
"""Past days from which there is a level: a tenant's first day is noisier than those that follow."""
KEPT_DAYS = 45
"""Lanes of one tenant may be so far apart; what a lane tells of a day that nobody counts any longer is no alert."""
RESERVE_SHARE = 5
"""One place in so many is for critical findings alone."""
FREE_AT_ONCE = 2
"""One place in so many is free from midnight on."""
ALERT_FROM = Severity.MEDIUM


class Day(msgspec.Struct, omit_defaults=True):
    """What one day brought: alerts that were raised, and by risk how many findings could have been some."""

    alerts: int = 0
    candidates: dict[int, int] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Whether a finding is an alert; ``alerts``: of its day by then. ``level``: 0 while no past day says."""

    reason: AlertReason
    alerts: int
    level: int


class AlertLedger(msgspec.Struct, omit_defaults=True):
    """Alerts of one tenant by day since the epoch.

    Attributes:
        first_day: of the first candidate or alert; -1 before. Quiet days after it count as such.
        floor: days before it are no longer counted.
        is_stored: the last checkpoint holds it; nothing judges by it.
    """

    days: dict[int, Day] = {}
    first_day: int = -1
    floor: int = 0
    is_stored: bool = False

    def ask(self, time_ms: int, risk: int, severity: Severity, budget: int, is_new: bool = True) -> Place:
        """Ask for a place for a finding that is bad enough for an alert; a place that is given is used.

        Attributes:
            time_ms: event time of the event that would be the alert.
            is_new: it was no candidate before.
        """
        number = time_ms // DAY_MS
        if number < self.floor:
            return Place(AlertReason.TOO_OLD, 0, 0)
        self.is_stored = False
        day = self._day(number)
        level = self.level(number, budget)
        if is_new:
            day.candidates[risk] = day.candidates.get(risk, 0) + 1
        if risk < level:
            return Place(AlertReason.BELOW_LEVEL, day.alerts, level)
        if day.alerts >= places(budget, time_ms % DAY_MS, severity):
            is_over = day.alerts >= places(budget, DAY_MS, severity)
            return Place(AlertReason.BUDGET_USED if is_over else AlertReason.PACED, day.alerts, level)
        day.alerts += 1
        return Place(AlertReason.ALERTED, day.alerts, level)

    def level(self, number: int, budget: int) -> int:
        """Return the risk that a candidate of a day must reach; 0 while no past day says."""
        if self.first_day < 0 or number < self.first_day + LEAST_DAYS:
            return 0
        past = range(max(self.first_day, number - LEARNED_DAYS), number)
        levels = sorted(_level_of(self.days[n].candidates, budget) if n in self.days else 0 for n in past)
        return levels[(len(levels) - 1) // 2]

    def _day(self, number: int) -> Day:
        if self.first_day < 0:
            self.first_day = number
        day = self.days.get(number)
        if day is None:
            day = self.days[number] = Day()
            self.floor = max(self.floor, number - KEPT_DAYS)
            for old in [n for n in self.days if n < self.floor]:
                del self.days[old]
        return day


def reserve(budget: int) -> int:
    """Return how many places of a day are for critical findings alone."""
    return -(-budget // RESERVE_SHARE) if budget > 1 else 0


def places(budget: int, since_midnight_ms: int, severity: Severity) -> int:
    """Return how many alerts a day may have had by a time of it for one more of a severity to be kept out."""
    ordinary = _paced(budget - reserve(budget), since_midnight_ms)
    return ordinary + _paced(reserve(budget), since_midnight_ms) if severity is Severity.CRITICAL else ordinary


def _paced(count: int, since_midnight_ms: int) -> int:
    free = DAY_MS + (FREE_AT_ONCE - 1) * since_midnight_ms
    return -(-count * free // (FREE_AT_ONCE * DAY_MS))


def _level_of(candidates: dict[int, int], budget: int) -> int:
    """Return the least risk at which a day's candidates keep to the places that are not reserved."""
    room = budget - reserve(budget)
    for risk in sorted(candidates, reverse=True):
        room -= candidates[risk]
        if room < 0:
            return risk + 1
    return 0
