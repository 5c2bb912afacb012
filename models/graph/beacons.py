"""How regular contact across the estate's border is, edge by edge and window by window. Pure, vectorised.

A *run* is contact that goes on: intervals between windows with contact, the calls in them, and the size of a call most
windows agree on, all as sums of whole numbers that are halved when they get large, so that the last hours count most. A
silence far longer than the intervals so far begins a new run; intervals that lost records may hide in do not count.
"""

import numpy as np
import numpy.typing as npt

from models.drift import beacon
from models.drift.detection import Detection
from models.graph.border import Border
from models.graph.lane import LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import NEVER
from models.graph.thresholds import by_config
from schemas.drift import EdgeRef
from schemas.graph import MEASURE_INDEX

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_HALVED_AT = 128
"""Intervals summed up before the sums are halved."""
_BREAK_RATIO, _BREAK_WINDOWS = 5, 10
"""A run breaks at a silence of more windows than the second, and than the first times the mean interval."""
_MAX_CALLS = 1 << 20
_MAX_SIZE = (1 << 31) - 1
_HOUR_MS = 3_600_000
_SUMS = ("run_gaps", "run_windows", "run_squares", "run_calls", "run_call_squares")


def follow(
    lane: LaneState,
    index: int,
    present: IntColumn,
    chosen: IntColumn,
    border: Border,
    learned: Mask,
    detections: dict[int, list[Detection]],
) -> None:
    """Carry on the runs of a closed window's edges across the border, and report those that beacon, each once.

    Shapes:
        present: ``(P,)`` edge numbers, before they are noted as seen in this window. chosen: ``(M, P)`` measures.
        learned: ``(tenants,)``.
    """
    if lane.logic < PRODUCERS_OWN:
        return
    calls = chosen[MEASURE_INDEX["calls"]]
    rows = np.flatnonzero((border.inbound | border.outbound) & ~border.stray & (calls > 0))
    if not len(rows):
        return
    numbers = present[rows]
    _extend(lane, index, numbers, np.minimum(calls[rows], _MAX_CALLS))
    _vote(lane, numbers, chosen[:, rows])
    edge = lane.registry.edge.array
    some = np.flatnonzero(learned[edge["tenant"][numbers]] & edge["known"][numbers] & ~edge["beaconing"][numbers])
    for row in some[_beacons(lane, index, numbers[some])].tolist():
        number = int(numbers[row])
        edge["beaconing"][number] = True
        run = _run_of(lane, index, number, is_inbound=bool(border.inbound[rows[row]]))
        detections[int(edge["tenant"][number])].append(beacon.judge_beacon(run))


def _extend(lane: LaneState, index: int, numbers: IntColumn, calls: IntColumn) -> None:
    edge = lane.registry.edge.array
    last = edge["last_index"][numbers]
    gap = index - last
    gaps, windows = edge["run_gaps"][numbers].astype(np.int64), edge["run_windows"][numbers].astype(np.int64)
    broken = (gap > _BREAK_WINDOWS) & (gap * gaps > _BREAK_RATIO * windows)
    starts = (edge["run_from"][numbers] == NEVER) | (last == NEVER) | broken
    begun = numbers[starts]
    edge["run_from"][begun] = index
    for name in (*_SUMS, "size_votes"):
        edge[name][begun] = 0
    counts = ~starts & (last >= lane.quiet_floor)
    floors = lane.guard.floors(len(lane.registry.tenants), index)
    if floors is not None:
        counts &= last >= np.minimum(floors[edge["tenant"][numbers]], index)
    going, gap, calls = numbers[counts], gap[counts], calls[counts]
    for name, value in zip(_SUMS, (1, gap, gap**2, calls, calls**2), strict=True):
        edge[name][going] += value
    large = going[edge["run_gaps"][going] >= _HALVED_AT]
    for name in (*_SUMS, "size_votes"):
        edge[name][large] >>= 1


def _vote(lane: LaneState, numbers: IntColumn, chosen: IntColumn) -> None:
    """Let each window vote for its size of a call: the majority's stays (Boyer & Moore 1981, MJRTY)."""
    edge = lane.registry.edge.array
    sizes = {}
    for name in ("out", "in"):
        size = np.minimum(chosen[MEASURE_INDEX[f"bytes_{name}"]] // chosen[MEASURE_INDEX["calls"]], _MAX_SIZE)
        sizes[f"size_{name}"] = np.where(chosen[MEASURE_INDEX[f"bytes_{name}_flows"]] > 0, size, -1)
    agrees = np.logical_and.reduce([edge[name][numbers] == size for name, size in sizes.items()])
    votes = edge["size_votes"][numbers] + np.where(agrees, 1, -1)
    loses = votes < 0
    for name, size in sizes.items():
        edge[name][numbers[loses]] = size[loses]
    edge["size_votes"][numbers] = np.where(loses, 1, np.minimum(votes, _HALVED_AT))


def _beacons(lane: LaneState, index: int, numbers: IntColumn) -> Mask:
    edge = lane.registry.edge.array
    sums = [edge[name][numbers].astype(np.int64) for name in _SUMS]
    spread = beacon.dispersion(*sums)
    found = np.zeros(len(numbers), dtype=bool)
    for config, rows in by_config(lane, edge["tenant"][numbers]):
        mine = slice(None) if rows is None else rows
        least = -(-int(config.beacon_min_hours * _HOUR_MS) // lane.config.window_ms)
        with np.errstate(invalid="ignore"):
            found[mine] = (
                (sums[0][mine] >= max(config.beacon_min_contacts, 2))
                & (index - edge["run_from"][numbers[mine]] >= least)
                & (spread[mine] <= config.beacon_max_dispersion)
            )
    return found


def _run_of(lane: LaneState, index: int, number: int, is_inbound: bool) -> beacon.Run:
    registry = lane.registry
    edge, identity = registry.edge.array, registry.identities[number]
    assert identity is not None
    outside, inside = ("src", "dst") if is_inbound else ("dst", "src")
    sharing = edge["known"][: len(registry)] & (edge[outside][: len(registry)] == edge[outside][number])
    one = np.array([number])
    gaps, windows, calls = (int(edge[name][number]) for name in ("run_gaps", "run_windows", "run_calls"))
    return beacon.Run(
        ref=EdgeRef(*identity[1:]),
        is_inbound=is_inbound,
        dispersion=float(beacon.dispersion(*(edge[name][one].astype(np.int64) for name in _SUMS))[0]),
        interval_ms=beacon.interval_ms(gaps, windows, calls, lane.config.window_ms),
        contacts=gaps,
        windows=index - int(edge["run_from"][number]),
        same_size=min(1.0, int(edge["size_votes"][number]) / gaps),
        bytes_out=int(edge["size_out"][number]),
        bytes_in=int(edge["size_in"][number]),
        peers_sharing=len(np.unique(edge[inside][: len(registry)][sharing])),
        first_ms=int(edge["run_from"][number]) * lane.config.window_ms,
    )
