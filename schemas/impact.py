"""Blast radius: the call graph it walks and the report it returns."""

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CallGraph:
    """Who called whom how often over a range: one row an edge, each pair once.

    Shapes:
        services: ``N`` names. src, dst: ``(E,)`` int64, positions in ``services``. calls: ``(E,)`` int64, 1 or more.

    Raises:
        ValueError: the columns differ in length.
    """

    services: list[str]
    src: IntColumn
    dst: IntColumn
    calls: IntColumn

    def __post_init__(self) -> None:
        if not len(self.src) == len(self.dst) == len(self.calls):
            raise ValueError(f"columns of unlike lengths {len(self.src)}, {len(self.dst)}, {len(self.calls)}")


class Degradation(msgspec.Struct, frozen=True):
    """What was seen of a service in the range asked about: measured by its callers, or told by a drift event.

    Attributes:
        score: strength in spreads of the baseline. sentence: what was seen, in words.
    """

    service: str
    score: float
    sentence: str


class ImpactedService(msgspec.Struct, frozen=True):
    """A service that depends on what degrades.

    Attributes:
        impact: share of its requests predicted to be hurt, 0..1, 6 significant digits.
        hops: calls between it and what degrades.
        requests: calls it received in the range looked at, or made where nobody calls it.
        requests_at_risk: ``impact`` of these, rounded.
        path: services from it to what degrades, each calling the next: the one through which most of the impact comes.
        is_entry_point: nobody inside the estate calls it, so users do.
        status: ``hurt`` if it was seen to degrade too, else ``at_risk``.
        observed: what was seen of it, empty where nothing was.
    """

    service: str
    impact: float
    hops: int
    requests: int
    requests_at_risk: int
    path: tuple[str, ...]
    is_entry_point: bool
    status: str
    observed: str = ""


class BlastRadiusReport(msgspec.Struct, frozen=True):
    """Who is hurt, or at risk, when ``origin`` degrades; most impact first.

    Attributes:
        origin: the service, or caller and callee of the edge.
        entry_points: names of impacted entry points, most impact first.
        unexplained: services seen to degrade that do not depend on the origin: it alone cannot be the reason.
        notes: what limits the answer, in sentences.
    """

    origin: tuple[str, ...]
    impacted: tuple[ImpactedService, ...]
    entry_points: tuple[str, ...]
    unexplained: tuple[Degradation, ...] = ()
    notes: tuple[str, ...] = ()
