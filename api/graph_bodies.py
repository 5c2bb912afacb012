"""The public HTTP contract of the graph over time: details, series, differences. Times are Unix epoch UTC in ms."""

from pydantic import BaseModel, ConfigDict, Field

from api.graph_difference import ChangedEdge, Difference, Levels, levels_of
from api.graph_repository import EdgePair, EdgeTotals
from api.responses import DriftEventOut, EdgeInLaneOut, ServiceOut, TenantEdgeOut, WindowOut


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class _Point(_Out):
    start_ms: int
    windows: int = Field(description="Closed windows in the bucket; a bucket without any is left out.")
    incomplete_windows: int


class EdgePoint(_Point):
    """An edge in one bucket. null is unknown."""

    calls: int = Field(description="0: its windows are closed, and do not show the edge.")
    errors: int | None
    denied: int | None
    bytes_out: int | None
    bytes_in: int | None
    latency_calls: int = Field(description="Calls whose latency is known.")
    latency_mean_us: float | None
    p50_us: int | None = Field(description="The largest of the bucket's windows, as p95_us and p99_us.")
    p95_us: int | None
    p99_us: int | None


class ServicePoint(_Point):
    """A service in one bucket. null is unknown."""

    calls_in: int
    errors_in: int | None
    latency_mean_us: float | None = Field(description="Of the calls it received, as their callers saw it.")
    calls_out: int
    errors_out: int | None
    callers: int
    callees: int


class EdgeDetail(BaseModel):
    """An edge, or all edges of a pair of services, over a range."""

    src: str
    dst: str
    port: int | None = Field(description="null: all ports.")
    protocol: int | None
    since_ms: int
    until_ms: int
    lanes: list[EdgeInLaneOut] = Field(description="What each lane counted: of the same calls, never add them.")
    series_lane: str
    bucket_ms: int
    series: list[EdgePoint]
    drift_events: list[DriftEventOut] = Field(description="The newest of the range that concern the edge.")


class ServiceDetail(BaseModel):
    """A service over a range."""

    service: str
    is_external: bool
    since_ms: int
    until_ms: int
    seen: list[ServiceOut] = Field(description="By lane, whenever that was.")
    callers: list[TenantEdgeOut]
    callees: list[TenantEdgeOut]
    is_truncated: bool = Field(description="There are more edges than are shown.")
    series_lane: str = Field(description="Empty: no live lane saw it in the range.")
    bucket_ms: int
    series: list[ServicePoint]
    drift_events: list[DriftEventOut] = Field(description="The newest of the range that concern the service.")


class LevelsOut(_Out):
    """An edge over a run of windows. null is unknown."""

    windows: int = Field(description="Windows of the run that show it.")
    calls_per_window: float
    error_ratio: float | None
    denied: int | None
    bytes_per_call: float | None
    latency_mean_us: float | None


class DifferentEdge(BaseModel):
    """An edge that is not as it was; ``before`` or ``after`` is null where it is not there."""

    src: str
    dst: str
    port: int
    protocol: int
    changes: list[str] = Field(
        description="added, gone, calls, error_ratio, denied, bytes_per_call, latency.", examples=[["calls", "latency"]]
    )
    before: LevelsOut | None
    after: LevelsOut | None


class RunOut(BaseModel):
    """Windows that are compared."""

    start_ms: int
    end_ms: int
    windows: int
    incomplete_windows: int


class GraphDifference(BaseModel):
    """What became of the edges of a lane between two times."""

    lane: str
    generation: int
    before: RunOut
    after: RunOut
    added_total: int
    gone_total: int
    changed_total: int
    unchanged_total: int
    edges: list[DifferentEdge] = Field(description="Added, then gone, then changed; by name.")
    is_truncated: bool
    notes: list[str] = Field(description="What limits the answer.")


def difference_out(found: Difference, windows: tuple[int, int], limit: int) -> tuple[list[DifferentEdge], bool]:
    """Return the first edges of a difference, and whether there are more."""
    edges = [_different(one, ("added",), None, _levels(one.after, windows[1])) for one in found.added]
    edges += [_different(one, ("gone",), _levels(one.before, windows[0]), None) for one in found.gone]
    edges += [_changed(one) for one in found.changed]
    return edges[:limit], len(edges) > limit


def _levels(totals: EdgeTotals, windows: int) -> Levels:
    return levels_of(totals, windows)


def _changed(one: ChangedEdge) -> DifferentEdge:
    return _different(one.pair, one.changes, one.before, one.after)


def _different(pair: EdgePair, changes: tuple[str, ...], before: Levels | None, after: Levels | None) -> DifferentEdge:
    return DifferentEdge(
        src=pair.src,
        dst=pair.dst,
        port=pair.port,
        protocol=pair.protocol,
        changes=list(changes),
        before=None if before is None else LevelsOut.model_validate(before),
        after=None if after is None else LevelsOut.model_validate(after),
    )


def run_out(windows: list[WindowOut]) -> RunOut:
    """Return what is said of a run of windows, newest first."""
    return RunOut(
        start_ms=windows[-1].start_ms,
        end_ms=windows[0].end_ms,
        windows=len(windows),
        incomplete_windows=sum(bool(window.incomplete) for window in windows),
    )
