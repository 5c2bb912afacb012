"""The clock of one lane in one partition: members, what they state, and the watermark that follows. Pure.

Every decision rests on what stands in `tenant-log`; ``as_of`` is the writing worker's clock as the log quotes it.
"""

from dataclasses import dataclass, field

from schemas.tenant_log import ENDED, IDLE, PAUSED, LaneConfig, LogRecord

END_OF_TIME_MS = 1 << 60
DAY_MS = 86_400_000
JUMP_MS = 600_000
"""A jump of a source's clock beyond this needs three hosts that agree, where three report."""
_SILENCE_STEP_MS = 10_000
"""Silence counts while the log goes on; a hole in the log itself (all workers down) is nobody's silence."""

MemberKey = tuple[str, int]


@dataclass(slots=True)
class MemberClock:
    """What is known of one source partition."""

    event_ms: int | None = None
    state: int = 0
    as_of_ms: int = 0
    silent_ms: int = 0


@dataclass(slots=True)
class LaneClock:
    """Clocks of all members of a lane.

    Attributes:
        idle_expires: what an idle member stated holds up to when it was stated, not beyond (from logic version 2 on).
            Its owner may have died: what is pushed meanwhile is read late, and came in time.
    """

    config: LaneConfig
    members: dict[MemberKey, MemberClock] = field(default_factory=dict)
    as_of_ms: int = 0
    watermark_ms: int | None = None
    paused: bool = False
    idle_expires: bool = False

    def declare(self, config: LaneConfig) -> None:
        """Take over a declaration; members that are gone no longer hold the watermark."""
        self.config = config
        declared = {(member.source, partition) for member in config.members for partition in range(member.partitions)}
        for key in sorted(declared - self.members.keys()):
            self.members[key] = MemberClock(as_of_ms=self.as_of_ms)
        for key in self.members.keys() - declared:
            del self.members[key]

    def state(self, record: LogRecord) -> None:
        """Take in what a record states of its source partitions."""
        if self.as_of_ms:
            step = min(max(0, record.as_of_ms - self.as_of_ms), _SILENCE_STEP_MS)
            if step:
                for member in self.members.values():
                    member.silent_ms += step
        self.as_of_ms = max(self.as_of_ms, record.as_of_ms)
        for progress in record.progress:
            stated = self.members.get((progress.source, progress.partition))
            if stated is None:
                continue
            stated.silent_ms = 0
            stated.as_of_ms = max(stated.as_of_ms, record.as_of_ms)
            if stated.state != ENDED:
                stated.state = progress.state
            self.paused = self.paused or progress.state == PAUSED
            self._advance(stated, progress.clocks, record)

    def _advance(self, member: MemberClock, clocks: tuple[tuple[str, int], ...], record: LogRecord) -> None:
        if not record.append_time:
            # What is folded nowhere moves no clock: a row further ahead is a dead letter.
            clocks = tuple(clock for clock in clocks if clock[1] <= record.as_of_ms + DAY_MS)
        if not clocks:
            return
        furthest = clocks[0][1]
        if not record.append_time:
            if self.config.mode == "live":
                furthest = min(furthest, record.as_of_ms + self.config.skew_ms)
            jumps = member.event_ms is not None and furthest > member.event_ms + JUMP_MS
            if jumps and len({host for host, _ in clocks}) >= 3:
                furthest = min(furthest, clocks[2][1])
        if member.event_ms is None or furthest > member.event_ms:
            member.event_ms = furthest

    def _waited_for(self, member: MemberClock) -> bool:
        if member.state == ENDED:
            return False
        if self.config.mode != "live":
            return True
        if member.state in (IDLE, PAUSED):
            return False
        return not self._is_silent(member)

    def _is_silent(self, member: MemberClock) -> bool:
        limit = self.config.max_wait_ms
        return self.config.mode == "live" and limit > 0 and member.silent_ms > limit

    def advance(self) -> tuple[int | None, tuple[str, ...]]:
        """Return the watermark after all that was stated, and why windows it closes may lack records.

        The watermark never goes back. ``None`` until every member that is waited for has been heard of.
        """
        waited = [member for member in self.members.values() if self._waited_for(member)]
        candidate: int | None
        if waited:
            clocks = [member.event_ms for member in waited]
            if self.idle_expires:
                clocks += [m.as_of_ms for m in self.members.values() if m.state == IDLE and not self._is_silent(m)]
            candidate = None if None in clocks else min(c for c in clocks if c is not None) - self.config.lateness_ms
        elif not self.members:
            candidate = None
        elif all(member.state == ENDED for member in self.members.values()):
            candidate = END_OF_TIME_MS
        else:
            # A member that fell silent, idle or not, does not stop the clock of those that go on.
            stated = [m.as_of_ms for m in self.members.values() if m.state != ENDED and not self._is_silent(m)]
            candidate = min(stated) - self.config.lateness_ms if stated else None
        reasons = set()
        if self.paused:
            reasons.add("paused")
        if any(member.state != ENDED and self._is_silent(member) for member in self.members.values()):
            reasons.add("silent")
        if candidate is not None and (self.watermark_ms is None or candidate > self.watermark_ms):
            self.watermark_ms = candidate
        return self.watermark_ms, tuple(sorted(reasons))
