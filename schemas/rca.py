"""Root-cause analysis: the stored edges it reads and the report it returns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]

_COLUMNS = (
    "window_start_ms",
    "calls",
    "errors",
    "denied",
    "latency_calls",
    "latency_sum_us",
    "p50_us",
    "p95_us",
    "bytes",
)


@dataclass(frozen=True, slots=True)
class NameColumn:
    """A column of names, each name once: hundreds of thousands of rows have some thousands of names.

    Shapes:
        names: all different, some of which may stand in no row. at: ``(R,)`` int64, which name each row has.
    """

    names: Sequence[str]
    at: IntColumn

    @classmethod
    def of(cls, rows: Iterable[str]) -> "NameColumn":
        """Return the column of ``rows``."""
        place: dict[str, int] = {}
        at = [place.setdefault(name, len(place)) for name in rows]
        return cls(list(place), np.array(at, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Iterable["NameColumn"]) -> "NameColumn":
        """Return the rows of ``parts``, one part below the other."""
        place: dict[str, int] = {}
        at = [np.empty(0, dtype=np.int64)]
        for part in parts:
            own = [place.setdefault(name, len(place)) for name in part.names]
            at.append(np.array(own, dtype=np.int64)[part.at])
        return cls(list(place), np.concatenate(at))

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[str]:
        return (self.names[place] for place in self.at.tolist())

    def present(self) -> Iterator[str]:
        """Return each name that stands in a row, once."""
        counts = np.bincount(self.at, minlength=len(self.names))
        return (name for name, rows in zip(self.names, counts.tolist(), strict=True) if rows)

    def take(self, rows: IntColumn) -> "NameColumn":
        """Return some of the rows, by their numbers."""
        return NameColumn(self.names, self.at[rows])


@dataclass(frozen=True, slots=True)
class ServiceWindowEdges:
    """Edges of one tenant and lane over some windows, in any order; one row an edge (or port of it) and window.

    Shapes:
        src, dst: ``R`` names. All other columns ``(R,)`` int64.
        errors, p50_us, p95_us, bytes: -1 where unknown. denied: refused calls, 0 where unknown.
        latency_calls: calls whose latency is known; latency_sum_us: their sum, as the caller saw it where it reported.

    Raises:
        ValueError: the columns differ in length.
    """

    window_start_ms: IntColumn
    src: NameColumn
    dst: NameColumn
    calls: IntColumn
    errors: IntColumn
    denied: IntColumn
    latency_calls: IntColumn
    latency_sum_us: IntColumn
    p50_us: IntColumn
    p95_us: IntColumn
    bytes: IntColumn

    def __post_init__(self) -> None:
        lengths = {len(self.src), len(self.dst), *(len(getattr(self, name)) for name in _COLUMNS)}
        if len(lengths) != 1:
            raise ValueError(f"columns of unlike lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.src)

    def where(self, rows: npt.NDArray[np.bool_]) -> "ServiceWindowEdges":
        """Return the rows of a mask, ``(R,)``."""
        return self.take(np.flatnonzero(rows))

    def take(self, rows: IntColumn) -> "ServiceWindowEdges":
        """Return some of the rows, by their numbers."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return ServiceWindowEdges(src=self.src.take(rows), dst=self.dst.take(rows), **columns)

    @classmethod
    def joined(cls, parts: Sequence["ServiceWindowEdges"]) -> "ServiceWindowEdges":
        """Return the rows of ``parts``, one part below the other."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        src, dst = (NameColumn.joined([getattr(part, end) for part in parts]) for end in ("src", "dst"))
        return cls(src=src, dst=dst, **columns)

    @classmethod
    def empty(cls) -> "ServiceWindowEdges":
        """Return a range without any edge."""
        columns = {name: np.empty(0, dtype=np.int64) for name in _COLUMNS}
        return cls(src=NameColumn.of(()), dst=NameColumn.of(()), **columns)


class CauseEvidence(msgspec.Struct, frozen=True):
    """One thing that was not as before, and speaks for a service being the cause.

    Attributes:
        signal: ``latency``, ``self_time``, ``error_ratio``, ``denied_ratio``, ``missing_calls`` or ``drift_event``; of
            traces and metrics also ``network``, ``call_mix``, ``cpu`` and ``memory``.
        src, dst: the edge; ``src`` is empty where the evidence is the service's own (self time).
        observed, expected: in ``unit``, 6 significant digits; the sentence repeats the same numbers.
        score: strength in spreads of the baseline (robust z), 2 decimals; of a drift event, its weight alike.
        sample: calls the observation rests on. history: windows the expectation rests on.
        event_id: the drift event it is taken from, or empty.
    """

    signal: str
    src: str
    dst: str
    observed: float
    expected: float
    unit: str
    score: float
    sample: int
    history: int
    sentence: str
    event_id: str = ""


class RootCause(msgspec.Struct, frozen=True):
    """A service that may be the cause.

    Attributes:
        score: share of all evidence that ended at this service, 0..1; the scores of all services sum to 1.
        seed_score: its share before anything was propagated.
        confidence: 0..1, heuristic: strength of the evidence, amount of history and distance to the runner-up.
        path: services from the cause to the symptom, each called by the next.
        evidence: strongest first.
    """

    rank: int
    service: str
    score: float
    seed_score: float
    confidence: float
    path: tuple[str, ...]
    evidence: tuple[CauseEvidence, ...]


class RcaReport(msgspec.Struct, frozen=True):
    """Ranked root causes of a range against its baseline; empty ``causes`` means nothing was out of the ordinary.

    Attributes:
        current_windows, baseline_windows: windows that held at least one edge.
        notes: what limits the answer, in sentences.
    """

    causes: tuple[RootCause, ...]
    services: int
    edges: int
    current_windows: int
    baseline_windows: int
    notes: tuple[str, ...] = ()
