"""Which logic version judges: changed at one point of the log, the same for every worker and every replay. Pure.

A logic version is a way of turning the log into state and events. A worker says in each record that it writes which
version it can run at most. Once one says more than is in force, the state machine listens: when log time of
`SETTLE_MS` has passed since, and every worker heard of within that span can run a later version, that one is in force
from this record on. An older worker that comes by afterwards stops, instead of judging by rules that no longer hold.
"""

from typing import Self

import msgspec

LOGIC_VERSION = 3
"""Latest version that this code can run. Raise it with any change of what the same log brings about (docs/adr/0008)."""
IDLE_EXPIRES = 2
"""From this version on an idle member holds the watermark at the time of its last statement (models/graph/clock.py)."""
PRODUCERS_OWN = 3
"""From this version on what only producers' own formats bring counts: halves of calls are paired, rows without a call
taken, services named by the tenant's inventory, sources that lose data guarded against, lanes of a tenant compared."""
UNDECIDED = 0
"""Of a state that has applied nothing: the first record's version is in force."""
SETTLE_MS = 60_000
"""A worker writes a statement every second; one that has not for this long is gone."""
_STEP_MS = 10_000
"""Time counts while the log goes on: a hole in it (all workers down) does not make anyone forgotten."""


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """A worker: at which time of the hearing it last wrote, and the version it can run at most."""

    worker: str
    at_ms: int
    can_run: int


class Hearing(msgspec.Struct, frozen=True, array_like=True):
    """Who was heard of since a worker first could run more than is in force.

    Attributes:
        as_of_ms: largest clock of a worker, as the log quotes it. elapsed_ms: log time since the hearing began.
    """

    as_of_ms: int
    elapsed_ms: int = 0
    workers: tuple[Heard, ...] = ()


class Logic(msgspec.Struct, frozen=True, array_like=True):
    """The version in force, and the hearing for a later one, if there is one."""

    in_force: int = UNDECIDED
    hearing: Hearing | None = None

    def after(self, worker: str, as_of_ms: int, can_run: int) -> Self:
        """Return what holds from a record on that this worker wrote."""
        if self.in_force == UNDECIDED:
            return type(self)(can_run)
        if self.hearing is None and can_run <= self.in_force:
            return self
        hearing = _heard(self.hearing or Hearing(as_of_ms), worker, as_of_ms, can_run)
        able = [other.can_run for other in hearing.workers]
        if max(able) <= self.in_force:
            return type(self)(self.in_force)  # whoever could run more is gone again
        if hearing.elapsed_ms >= SETTLE_MS and min(able) > self.in_force:
            return type(self)(min(able))
        return type(self)(self.in_force, hearing)


def _heard(hearing: Hearing, worker: str, as_of_ms: int, can_run: int) -> Hearing:
    elapsed_ms = hearing.elapsed_ms + min(max(0, as_of_ms - hearing.as_of_ms), _STEP_MS)
    others = [other for other in hearing.workers if other.worker != worker and other.at_ms >= elapsed_ms - SETTLE_MS]
    workers = sorted([*others, Heard(worker, elapsed_ms, can_run)], key=lambda heard: heard.worker)
    return Hearing(max(hearing.as_of_ms, as_of_ms), elapsed_ms, tuple(workers))
