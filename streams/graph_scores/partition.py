"""One partition of `graph-windows`: messages in, rows of scores out. No Kafka, no ClickHouse, no clock of its own."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from streams.graph_scores.assembly import LaneKey, WindowAssembly
from streams.graph_scores.lanes import LaneMemory, Outcome, ScoredWindow
from streams.graph_scores.model_folder import Found, ModelFolder

IDLE_STORES = 12
"""Memories that were stored so often without a new window are let go; their next window loads them again."""


@dataclass(slots=True)
class Work:
    """What some messages brought: windows with scores, what became of all windows, and how long each one took."""

    scored: list[ScoredWindow] = field(default_factory=list)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class PartitionScores:
    """Takes the messages of one partition in order; one call at a time, from any thread.

    Args:
        models: where models come from.
        load: returns a lane's stored memory, else an empty one. It may block; what it raises comes out of `take`, and
            the partition has to be read again from where it was committed.
        seconds: a clock that only goes forward.

    Attributes:
        lanes: memories held. found: each lane's model when its last window came, or why there was none.
    """

    def __init__(
        self, models: ModelFolder, load: Callable[[LaneKey], LaneMemory], seconds: Callable[[], float]
    ) -> None:
        self._models = models
        self._load = load
        self._seconds = seconds
        self._assembly = WindowAssembly()
        self._idle: Counter[LaneKey] = Counter()
        self.lanes: dict[LaneKey, LaneMemory] = {}
        self.found: dict[LaneKey, Found] = {}

    @property
    def safe_offset(self) -> int:
        """Return the offset that may be committed once rows and memories are stored; 0 before the first message."""
        return self._assembly.safe_offset

    @property
    def next_offset(self) -> int:
        """Return the offset behind the last message taken."""
        return self._assembly.next_offset

    def take(self, messages: Iterable[tuple[int, bytes | None]]) -> Work:
        """Take messages (offset, value) and return what they brought."""
        work, assembly = Work(), self._assembly
        before = assembly.repeated, assembly.unreadable + assembly.given_up
        for offset, value in messages:
            for window in assembly.take(offset, value):
                memory = self.lanes.get(window.lane)
                if memory is None:
                    memory = self.lanes[window.lane] = self._load(window.lane)
                begin = self._seconds()
                found = self.found[window.lane] = self._models.look(*window.lane)
                outcome, scored = memory.take(window, found.model)
                work.outcomes[outcome] += 1
                if scored is not None:
                    work.scored.append(scored)
                    work.seconds.append(self._seconds() - begin)
        work.outcomes[Outcome.REPEATED] += assembly.repeated - before[0]
        work.outcomes[Outcome.DAMAGED] += assembly.unreadable + assembly.given_up - before[1]
        return work

    def dirty(self) -> list[LaneMemory]:
        """Return memories that have to be stored, and let those go that have not changed for long.

        What is returned counts as stored: should that fail, the partition must be read again.
        """
        changed = []
        for lane, memory in list(self.lanes.items()):
            if memory.is_dirty:
                memory.is_dirty = False
                self._idle[lane] = 0
                changed.append(memory)
                continue
            self._idle[lane] += 1
            if self._idle[lane] >= IDLE_STORES:
                del self.lanes[lane], self._idle[lane]
                self.found.pop(lane, None)
        return changed
