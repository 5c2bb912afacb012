"""When a source partition is flooded with records that cannot be used: counts in, verdict out. Pure.

Flow control only: a crash forgets it, and nothing that is folded depends on it.
"""

from collections import deque
from dataclasses import dataclass

from schemas.settings import FlowTopic

_SLICES = 12
"""A span is counted in so many slices: what is older than the span leaves one slice at a time."""


@dataclass(frozen=True, slots=True)
class FloodRule:
    """When a source partition of a topic is paused, and for how long.

    Attributes:
        share: of dead letters among records (0..1) above which it is; 1 is never.
        min_records: with fewer records in the span nothing is said.
    """

    share: float
    span_ms: int
    min_records: int
    pause_ms: int


def rule_of(topic: FlowTopic) -> FloodRule:
    """Return the rule that a source topic is configured with."""
    return FloodRule(topic.flood_share, topic.flood_span_ms, topic.flood_min_records, topic.flood_pause_ms)


@dataclass(frozen=True, slots=True)
class Flood:
    """The verdict: so many of so many records in the span were dead letters."""

    records: int
    dead: int


class FloodWatch:
    """Records and dead letters of one source partition over the last span, by the worker's clock."""

    def __init__(self) -> None:
        self._slices: deque[tuple[int, int, int]] = deque()  # (number of the slice, records, dead letters)

    def note(self, rule: FloodRule, now_ms: int, records: int, dead: int) -> Flood | None:
        """Count a chunk's records, dead letters among them; say whether the partition is flooded now.

        A verdict starts the count anew: when the partition is tried again, it is judged by what it brings then.
        """
        number = now_ms * _SLICES // rule.span_ms
        if self._slices and self._slices[-1][0] >= number:  # a clock that was put back counts on where it was
            last, records_before, dead_before = self._slices.pop()
            number, records, dead = last, records + records_before, dead + dead_before
        self._slices.append((number, records, dead))
        while self._slices[0][0] <= number - _SLICES:
            self._slices.popleft()
        records = sum(count for _, count, _ in self._slices)
        dead = sum(count for _, _, count in self._slices)
        if records < rule.min_records or dead <= rule.share * records:
            return None
        self._slices.clear()
        return Flood(records, dead)
