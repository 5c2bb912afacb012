"""All evidence of a range: from what a source has, the finest measurement of each thing. Pure."""

from dataclasses import dataclass

from models.rca.call_mix import mix_shift
from models.rca.call_shifts import time_shifts
from models.rca.calls import CallTable
from models.rca.evidence import Shift
from models.rca.metric_shifts import metric_shifts
from models.rca.robust import Mask
from models.rca.topology import Topology
from models.rca.window_levels import levels_of
from models.rca.window_shifts import find_shifts
from schemas.rca import ServiceWindowEdges
from schemas.rca_inputs import Metric, MetricSamples

_MEASURED_BY_CALLS = (Metric.LATENCY, Metric.NETWORK)


@dataclass(frozen=True, slots=True)
class CallRanges:
    """Calls, and which of them are of the range and of its baseline, ``(R,)``."""

    table: CallTable
    now: Mask
    before: Mask


@dataclass(frozen=True, slots=True)
class MetricRanges:
    """Samples, and which of them are of the range and of its baseline, ``(R,)``."""

    samples: MetricSamples
    now: Mask
    before: Mask


@dataclass(frozen=True, slots=True)
class WindowRanges:
    """Stored windows of the range and of its baseline."""

    now: ServiceWindowEdges
    before: ServiceWindowEdges


def gather(
    topology: Topology,
    calls: CallRanges | None = None,
    windows: WindowRanges | None = None,
    metrics: MetricRanges | None = None,
) -> tuple[Shift, ...]:
    """Return the shifts that these inputs show. ``topology`` must hold all their services and edges.

    Time is measured once: by calls where there are any in both ranges, else by stored windows, else by metrics.
    """
    shifts: list[Shift] = []
    if calls is not None and calls.now.any() and calls.before.any():
        shifts += time_shifts(calls.table, calls.now, calls.before, topology)
        shifts.append(mix_shift(calls.table, calls.now, calls.before, topology))
    elif windows is not None and len(windows.now) and len(windows.before):
        shifts += find_shifts(levels_of(windows.now, topology), levels_of(windows.before, topology), topology)
    if metrics is not None:
        leave_out = _MEASURED_BY_CALLS if shifts else ()
        shifts += metric_shifts(metrics.samples, metrics.now, metrics.before, topology, leave_out)
    return tuple(shifts)
