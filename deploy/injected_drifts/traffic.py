"""Endless traffic resampled from recorded, fault-free traces. Pure, seeded.

Bootstrap in two stages (Efron 1979; Davison & Hinkley 1997, section 3.8): each minute draws one recorded stretch, and
from its traces, with replacement, as many as come in a minute at the stretch's own rate (Poisson). The calls of a trace
stay together. So minutes differ as recorded stretches do, in load and latency, but do not depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

MINUTE_MS = 60_000
BASE_ERROR_SHARE = 0.002
"""Of calls that fail on an ordinary day. Made: the recordings hold no status."""
TCP = 6
UNUSUAL_PORT = 8080
"""Port of what was never called before."""
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls as columns.

    Shapes:
        all ``(C,)`` int64. edge: place in ``Edges``. errors: 0 or 1.
    """

    time_ms: Ints
    edge: Ints
    errors: Ints
    bytes_out: Ints
    bytes_in: Ints
    latency_us: Ints

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, rows: Ints | Mask) -> "Calls":
        """Return some of the calls; a place that comes twice is a call that comes twice."""
        return Calls(*(column[rows] for column in self._columns()))

    def _columns(self) -> tuple[Ints, ...]:
        return (self.time_ms, self.edge, self.errors, self.bytes_out, self.bytes_in, self.latency_us)

    @staticmethod
    def joined(parts: "Sequence[Calls]") -> "Calls":
        """Return the calls of all parts, one part after the other."""
        return Calls(*(np.concatenate(columns) for columns in zip(*(one._columns() for one in parts), strict=True)))

    @staticmethod
    def none() -> "Calls":
        """Return no calls."""
        return Calls(*([np.empty(0, dtype=np.int64)] * 6))


@dataclass(slots=True)
class Edges:
    """Edges by number: ``(src, dst, port)``."""

    known: list[tuple[str, str, int]] = field(default_factory=list)
    _number: dict[tuple[str, str, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, edges: Sequence[tuple[str, str, int]]) -> "Edges":
        """Return the edges given, numbered in their order."""
        made = cls()
        for edge in edges:
            made.number(*edge)
        return made

    def number(self, src: str, dst: str, port: int) -> int:
        """Return an edge's number; a new edge gets the next one."""
        found = self._number.get((src, dst, port))
        if found is None:
            found = self._number[src, dst, port] = len(self.known)
            self.known.append((src, dst, port))
        return found


@dataclass(frozen=True, slots=True)
class Recording:
    """Fault-free traces of one system.

    Attributes:
        edges: of the calls; ``(src, dst)`` has one port.

    Shapes:
        calls: ``(C,)``, ordered by trace, ``time_ms`` since the trace began. first_call: ``(T + 1,)``, where each
        trace begins among the calls. first_trace: ``(S + 1,)``, where each stretch begins among the traces.
        seconds: ``(S,)`` float64, length of each stretch.
    """

    system: str
    edges: tuple[tuple[str, str, int], ...]
    calls: Calls
    first_call: Ints
    first_trace: Ints
    seconds: npt.NDArray[np.float64]

    def calls_a_minute(self) -> npt.NDArray[np.float64]:
        """Return how many calls each edge has in a mean minute, ``(E,)``."""
        return np.bincount(self.calls.edge, minlength=len(self.edges)) * 60 / float(self.seconds.sum())


@dataclass(slots=True)
class Traffic:
    """Minutes of traffic, one after the other.

    Attributes:
        waiting: calls of traces that began before and go on beyond the minutes that were given out.
    """

    recording: Recording
    rng: np.random.Generator
    waiting: Calls = field(default_factory=Calls.none)

    def minute(self, index: int) -> Calls:
        """Return the calls of minute ``index`` (since the epoch), to be asked for in order; unsorted within it."""
        recording, rng = self.recording, self.rng
        stretch = int(rng.choice(len(recording.seconds), p=recording.seconds / recording.seconds.sum()))
        first, last = (int(recording.first_trace[stretch + n]) for n in (0, 1))
        count = int(rng.poisson((last - first) * 60 / recording.seconds[stretch]))
        traces = rng.integers(first, last, count)
        began_ms = index * MINUTE_MS + rng.integers(0, MINUTE_MS, count)
        lengths = recording.first_call[traces + 1] - recording.first_call[traces]
        # Places of all calls of the traces: each trace's first, and as many steps of one as it has further calls.
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if count else 0) + np.repeat(
            recording.first_call[traces] - (ends - lengths), lengths
        )
        drawn = recording.calls.take(places)
        drawn = replace(
            drawn,
            time_ms=drawn.time_ms + np.repeat(began_ms, lengths),
            errors=(rng.random(len(drawn)) < BASE_ERROR_SHARE).astype(np.int64),
        )
        calls = Calls.joined([self.waiting, drawn])
        later = calls.time_ms >= (index + 1) * MINUTE_MS
        self.waiting = calls.take(later)
        return calls.take(~later)
