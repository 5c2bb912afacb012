"""What root-cause analysis can read beside stored windows: single calls of traces, metrics of services and edges."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CallRecords:
    """Single calls, in any order; calls of one trace tell which call was made within which.

    Shapes:
        services, operations, traces: names. All other columns ``(R,)`` int64.
        src, dst: positions in ``services``. operation: of ``dst``, position in ``operations``. trace: in ``traces``.
        start_us: when the callee began, Unix microseconds. server_us: how long it took there.
        client_us: how long the caller waited, on its own clock.

    Raises:
        ValueError: the columns differ in length.
    """

    services: list[str]
    operations: list[str]
    start_us: IntColumn
    src: IntColumn
    dst: IntColumn
    operation: IntColumn
    trace: IntColumn
    server_us: IntColumn
    client_us: IntColumn

    def __post_init__(self) -> None:
        columns = (self.start_us, self.src, self.dst, self.operation, self.trace, self.server_us, self.client_us)
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns of unlike lengths {sorted({len(column) for column in columns})}")

    def __len__(self) -> int:
        return len(self.start_us)


class Metric(StrEnum):
    """What a sample measures, and its unit."""

    LATENCY = "latency"
    """Microseconds a service takes to answer, its own calls included."""
    NETWORK = "network"
    """Microseconds that the caller waited beyond that: an edge's."""
    REQUESTS = "requests"
    """Requests answered since the sample before, or per second: weights latencies and failures."""
    FAILED_RATIO = "error_ratio"
    """Share of the requests that failed, 0..1."""
    CPU = "cpu"
    """Processor time used, in any unit that is the same for all services."""
    MEMORY = "memory"
    """Memory used, in any unit that is the same for all services."""


@dataclass(frozen=True, slots=True)
class MetricSamples:
    """Samples of metrics, in any order.

    Shapes:
        services: names. All other columns ``(R,)``: ``src``, ``dst`` int64, positions in ``services``, ``src`` -1 where
        the sample is of ``dst`` itself and not of an edge; ``metric`` int64, position in ``list(Metric)``; ``at_ms``
        int64; ``value`` float64, NaN where unknown.

    Raises:
        ValueError: the columns differ in length.
    """

    services: list[str]
    src: IntColumn
    dst: IntColumn
    metric: IntColumn
    at_ms: IntColumn
    value: FloatColumn

    def __post_init__(self) -> None:
        columns = (self.src, self.dst, self.metric, self.at_ms, self.value)
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns of unlike lengths {sorted({len(column) for column in columns})}")

    def __len__(self) -> int:
        return len(self.at_ms)
