"""A fault whose root cause is known, with the evidence that a data set holds of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from models.rca.error_rank import Symptom
from models.rca.evidence import Shift
from models.rca.topology import Topology


class Baseline(StrEnum):
    """Which fault-free time says what is usual."""

    BEFORE = "before"
    """What came before the fault: all that somebody looking at it live could know."""
    DAY = "day"
    """All of the day, later than the fault too: a look back."""


class Input(StrEnum):
    """What ErrorRank is given."""

    TRACES = "traces"
    METRICS = "metrics"
    WINDOWS = "windows"
    """Traces folded into windows of a minute, as ClickHouse stores them: all that the API has."""


@dataclass(frozen=True, slots=True)
class FaultCase:
    """One case.

    Attributes:
        system: the files' common prefix. family: kind of fault that figures are given for. fault: its name in the data.
        find: gathers the evidence; costly, so not called before it is needed.
        symptom: what raised the alarm, where the data set says so.
        outside: nodes of the topology that are no services, such as users.
    """

    case: str
    system: str
    family: str
    fault: str
    root_cause: str
    topology: Topology
    find: Callable[[], Sequence[Shift]]
    symptom: Symptom = field(default_factory=Symptom)
    outside: frozenset[str] = frozenset()
