"""What a lane does with its guard: reports of loss come in, windows are judged, rates learned anew. Pure."""

from collections.abc import Iterable

import numpy as np

from models.drift.detection import Detection
from models.drift.telemetry import Moment
from models.graph.guard import ALL_TENANTS
from models.graph.lane import DAY_MS, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import BYTES, CALLS
from schemas.tenant_log import LogRecord, SourceLoss

MAX_OPEN_WINDOWS = 512
"""Open windows with reports at once; those beyond count to the nearest one. Only hostile clocks come near it."""


def note_losses(lane: LaneState, record: LogRecord, applied: int) -> None:
    """Note what a record's source says it lost beyond the applied coordinate.

    A report without a time counts to the window that is open when it is applied, and to none where none has closed yet.
    """
    if lane.logic < PRODUCERS_OWN:
        return
    for loss in record.losses:
        index = _index_of(lane, record, loss)
        if loss.position <= applied or not loss.count or index is None:
            continue
        tenant = lane.registry.tenant(loss.tenant) if loss.tenant else ALL_TENANTS
        lane.guard.noted(index, tenant).add_loss(loss.kind, loss.host, loss.count)


def _index_of(lane: LaneState, record: LogRecord, loss: SourceLoss) -> int | None:
    """Return the window a report counts to: late ones to the first that is open, as late rows do."""
    time_ms = loss.time_ms
    if not record.append_time:
        if lane.config.mode == "live" and time_ms > record.as_of_ms + lane.config.skew_ms:
            time_ms = record.as_of_ms
        elif time_ms > record.as_of_ms + DAY_MS:
            time_ms = -1
    if time_ms < 0:
        return lane.closed_index
    index = max(time_ms // lane.config.window_ms, lane.closed_index or 0)
    known = lane.guard.open
    if index in known or len(known) < MAX_OPEN_WINDOWS:
        return index
    return min(known, key=lambda other: (abs(other - index), other))


def close_guard(lane: LaneState, index: int, whole: bool, is_over: bool) -> dict[int, list[Detection]]:
    """Judge the sources of all tenants in a window that closes; return what is found, by tenant.

    Args:
        whole: nothing but a source itself can be missing from the window. is_over: the input ended within it.
    """
    window = lane.guard.take(index)
    if window is None:
        return {}
    of_all = window.pop(ALL_TENANTS, None)
    concerned = window.keys() | (lane.tenants.keys() if of_all is not None else set())
    found = {}
    for number in sorted(concerned, key=lambda n: lane.registry.tenants[n]):
        moment = Moment(
            lane.config.name, index, lane.config.window_ms, whole, is_over, may_tell=lane.has_learned(number)
        )
        noted = [some for some in (of_all, window.get(number)) if some is not None]
        config = lane.detection(lane.registry.tenants[number])
        found[number] = lane.guard.close(number, noted, config, moment)
    resampled = [number for number in concerned if lane.guard.tenants[number].resampled_index == index]
    if resampled:
        _learn_rates_anew(lane, resampled)
    return found


def _learn_rates_anew(lane: LaneState, tenants: Iterable[int]) -> None:
    """Forget how much edges usually carry, and how often they are seen: under another sampling it means nothing."""
    edge = lane.registry.edge.array
    mine = np.flatnonzero(np.isin(edge["tenant"][: len(lane.registry)], list(tenants)))
    for signal in (CALLS, BYTES):
        edge["history"][mine, signal] = 0
    edge["windows_seen"][mine] = 0
    lane.registry.touch(mine)
