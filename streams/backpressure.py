"""When ingest must wait for the graph side: how old unread records of `tenant-log` are, and the brake over it. Pure."""

from bisect import bisect_right
from dataclasses import dataclass

RELEASE_SHARE = 0.5
"""Held above the limit, released below this share of it: a lag that hovers at the limit switches nothing to and fro."""
MAX_SAMPLES = 512


class AppendTimes:
    """When records of one partition were appended, from looking at the log's end now and then.

    A record at or behind the end seen at some moment was appended after that moment: no request for the record itself,
    and no comparison of two machines' clocks. What was in the log before the first look needs a timestamp (`read`).
    """

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._seen_ms: list[int] = []
        self._read: tuple[int, int] | None = None

    def see(self, now_ms: int, end: int) -> None:
        """Note the log's end. Of several looks at the same end the latest says most."""
        if self._ends and end < self._ends[-1]:
            self._ends, self._seen_ms, self._read = [], [], None  # another log of the same name
        if self._ends and self._ends[-1] == end:
            self._seen_ms[-1] = now_ms
            return
        self._ends.append(end)
        self._seen_ms.append(now_ms)
        if len(self._ends) > MAX_SAMPLES:  # a lag of days: coarser, never too young
            self._ends, self._seen_ms = self._ends[::2], self._seen_ms[::2]

    def read(self, offset: int, timestamp_ms: int) -> None:
        """Note the timestamp of the record at ``offset``."""
        self._read = offset, timestamp_ms

    def forget_below(self, offset: int) -> None:
        """Drop what is not needed for ``offset`` and what follows it."""
        keep = bisect_right(self._ends, offset) - 1
        if keep > 0:
            del self._ends[:keep], self._seen_ms[:keep]

    def not_before_ms(self, offset: int) -> int | None:
        """Return a moment before which the record at ``offset`` was not appended; ``None``: nobody has looked."""
        found = bisect_right(self._ends, offset) - 1
        if found >= 0:
            return self._seen_ms[found]
        if self._read is not None and self._read[0] <= offset:
            return self._read[1]
        return None


@dataclass(slots=True)
class Brake:
    """Hysteresis over the age of the oldest record that is not stored yet.

    Attributes:
        limit_ms: held above it; ``None`` never holds.
    """

    limit_ms: int | None
    is_held: bool = False

    def judge(self, age_ms: int) -> bool:
        """Take in an age; return whether ingest is held from now on."""
        if self.limit_ms is None:
            self.is_held = False
        elif self.is_held:
            self.is_held = age_ms > self.limit_ms * RELEASE_SHARE
        else:
            self.is_held = age_ms > self.limit_ms
        return self.is_held


def limit_of(retention_ms: int | None, override_ms: int | None) -> int | None:
    """Return half of the retention of `tenant-log` (-1 or ``None`` is for ever), or what the operator set."""
    if override_ms is not None:
        return override_ms
    return retention_ms // 2 if retention_ms is not None and retention_ms >= 0 else None
