"""Thresholds as they are in force for each tenant, asked for many edges or services at once. Pure."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from models.graph.lane import LaneState
from schemas.detection import DetectionConfig

IntColumn = npt.NDArray[np.int64]
FloatColumn = npt.NDArray[np.float64]


def by_config(lane: LaneState, tenants: IntColumn) -> Iterator[tuple[DetectionConfig, IntColumn | None]]:
    """Yield the thresholds in force with the rows of ``tenants`` (numbers) they hold for; None is all rows."""
    if not lane.detection_of:
        yield lane.config.detection, None
        return
    own = [number for number in np.unique(tenants).tolist() if lane.registry.tenants[number] in lane.detection_of]
    yield lane.config.detection, np.flatnonzero(~np.isin(tenants, own))
    for number in own:
        yield lane.detection(lane.registry.tenants[number]), np.flatnonzero(tenants == number)


def limits_of(
    lane: LaneState, tenants: IntColumn, usual: IntColumn, limit: Callable[[DetectionConfig, int], float]
) -> FloatColumn:
    """Return the limit for each ``usual`` of a tenant; few values differ, so each is asked for once. Shape ``(N,)``."""
    limits = np.empty(len(usual))
    for config, rows in by_config(lane, tenants):
        mine = usual if rows is None else usual[rows]
        values, codes = np.unique(mine, return_inverse=True)
        of_value = np.array([limit(config, value) for value in values.tolist()], dtype=np.float64)
        limits[slice(None) if rows is None else rows] = of_value[codes]
    return limits


def of_each(lane: LaneState, tenants: IntColumn, name: str) -> FloatColumn:
    """Return a threshold as it is in force for each of ``tenants`` (numbers). Shape ``(N,)``."""
    values = np.empty(len(tenants))
    for config, rows in by_config(lane, tenants):
        values[slice(None) if rows is None else rows] = getattr(config, name)
    return values
