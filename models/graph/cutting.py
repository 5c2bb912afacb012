"""A closed window as columns, and each tenant's graph cut out of it. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.graph.histogram import BUCKETS, quantiles
from models.graph.lane import LaneState
from models.graph.window import WindowTable
from schemas.graph import MEASURE_INDEX, ClosedWindow, EdgeTable

IntColumn = npt.NDArray[np.int64]

LOSING = "losing"
"""Why a window of one tenant may lack records: the source of its flows was losing data."""


@dataclass(frozen=True, slots=True)
class WindowColumns:
    """All tenants' edges of a window in the order of identity; histogram rows count edges from 0."""

    present: IntColumn
    chosen: IntColumn
    other: IntColumn
    h_edge: IntColumn
    h_bucket: IntColumn
    h_count: IntColumn
    p50: IntColumn
    p95: IntColumn
    p99: IntColumn


def columns_of(lane: LaneState, table: WindowTable) -> tuple[WindowColumns, dict[int, IntColumn]]:
    """Return a window's edges, one side chosen, with quantiles; and the sums of each overflow row by its number."""
    registry = lane.registry
    capacity = registry.edge.capacity
    measures, other, use_server = table.chosen(capacity)
    flows, late = measures[MEASURE_INDEX["flows"]], measures[MEASURE_INDEX["late_flows"]]
    present = np.flatnonzero((flows > 0) | (late > 0))
    beyond = [s.edges.overflow for s in lane.tenants.values() if s.edges.overflow is not None]
    overflow = {number: table.total(number) for number in beyond if flows[number] > 0 or late[number] > 0}
    if overflow:
        present = present[~np.isin(present, list(overflow))]
    present = present[registry.identity_order(present)]
    local = np.full(capacity, -1, dtype=np.int64)
    local[present] = np.arange(len(present))
    h_edge, h_bucket, h_count = table.latencies(use_server)
    inside = local[h_edge] >= 0
    h_edge, h_bucket, h_count = local[h_edge[inside]], h_bucket[inside], h_count[inside]
    by_edge = np.argsort(h_edge * BUCKETS + h_bucket)  # unique keys
    histogram = (h_edge[by_edge], h_bucket[by_edge], h_count[by_edge])
    quantile_columns = quantiles(*histogram, len(present), (0.50, 0.95, 0.99))
    columns = WindowColumns(present, measures[:, present], other[present], *histogram, *quantile_columns)
    return columns, overflow


def cut_tenant(
    lane: LaneState,
    table: WindowTable,
    tenant: int,
    rows: slice,
    columns: WindowColumns,
    is_learning: bool,
    is_losing: bool,
) -> ClosedWindow:
    """Cut one tenant's graph out of a window: its edges are neighbours."""
    registry = lane.registry
    numbers = columns.present[rows]
    edge, names = registry.edge.array, registry.services
    inside = slice(*np.searchsorted(columns.h_edge, [rows.start, rows.stop]).tolist())
    start_ms = table.index * lane.config.window_ms
    return ClosedWindow(
        tenant=registry.tenants[tenant],
        lane=lane.config.name,
        generation=lane.config.generation,
        start_ms=start_ms,
        end_ms=start_ms + lane.config.window_ms,
        edges=EdgeTable(
            src=[names[service][1] for service in edge["src"][numbers].tolist()],
            dst=[names[service][1] for service in edge["dst"][numbers].tolist()],
            port=edge["port"][numbers],
            protocol=edge["protocol"][numbers],
            measures=np.ascontiguousarray(columns.chosen[:, rows].T),
            other_side_flows=columns.other[rows],
            histogram_edge=columns.h_edge[inside] - rows.start,
            histogram_bucket=columns.h_bucket[inside],
            histogram_count=columns.h_count[inside],
            p50_us=columns.p50[rows],
            p95_us=columns.p95[rows],
            p99_us=columns.p99[rows],
        ),
        incomplete=tuple(sorted(table.incomplete | ({LOSING} if is_losing else set()))),
        is_learning=is_learning,
    )
