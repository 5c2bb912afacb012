"""What applying one log record brings about. Values; the agent turns them into effects in the order given."""

from collections import Counter
from dataclasses import dataclass, field

from schemas.dead_letter import Reason
from schemas.drift import DriftEvent
from schemas.graph import ClosedWindow

WITHHELD = "withheld"
"""Count of findings, not rows: removed edges and drops of rates that an incomplete window kept back."""
SEEN_ELSEWHERE = "seen_elsewhere"
"""Count of findings, too: removed edges kept back because another lane of the tenant still sees them."""
EXPECTED_BACK = "expected_back"
"""Count of findings, too: removed edges kept back because silences that began at this hour have ended before."""
PAIRED, REPEATED, ALONE, CROWDED_OUT = "halves_paired", "halves_repeated", "halves_alone", "halves_crowded_out"
HALVES = {PAIRED: "paired", REPEATED: "repeated", ALONE: "alone", CROWDED_OUT: "crowded_out"}
"""Counts of folded rows that are halves of calls, which are on time, late or skewed, too. What was crowded out is also
alone."""


@dataclass(frozen=True, slots=True)
class RowDeadLetter:
    """A row the state machine could not take, by its source coordinate."""

    source: str
    partition: int
    position: int
    reason: Reason
    detail: str


@dataclass(slots=True)
class Output:
    """Events and closed windows in order, rows refused, and counts: rows by outcome, findings kept back."""

    events: list[DriftEvent] = field(default_factory=list)
    windows: list[ClosedWindow] = field(default_factory=list)
    dead: list[RowDeadLetter] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def extend(self, other: "Output") -> None:
        """Append another output."""
        self.events += other.events
        self.windows += other.windows
        self.dead += other.dead
        self.counts.update(other.counts)
