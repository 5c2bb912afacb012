"""Edges that several lanes of a tenant saw, as one graph: each pair of services is read from one lane. Pure.

Two lanes see the same calls. Added up they would count twice, and a rate of the one says nothing of a rate of the
other; so the lane that knows most of a pair speaks for it, in the current range and in the baseline alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from schemas.drift import DriftEvent
from schemas.rca import ServiceWindowEdges


@dataclass(frozen=True, slots=True)
class LaneEdges:
    """What one lane saw. ``window_ms``: how long its windows are."""

    lane: str
    window_ms: int
    current: ServiceWindowEdges
    baseline: ServiceWindowEdges


def one_lane_a_pair(lanes: Sequence[LaneEdges]) -> tuple[ServiceWindowEdges, ServiceWindowEdges]:
    """Return the current range and the baseline, each pair of services from one lane.

    It is the lane that timed most of the pair's calls over both ranges, else the one with most calls, else the first
    given. Where windows differ in length, all are counted to the longest.
    """
    if len(lanes) == 1:
        return lanes[0].current, lanes[0].baseline
    chosen: dict[tuple[str, str], tuple[int, int, int]] = {}
    for place, one in enumerate(lanes):
        for pair, (timed, calls) in _calls_by_pair(one).items():
            chosen[pair] = max(chosen.get(pair, (-1, -1, 0)), (timed, calls, -place))
    longest_ms = max(one.window_ms for one in lanes)
    current, baseline = (
        ServiceWindowEdges.joined(
            [_taken(getattr(one, part), chosen, -place, longest_ms) for place, one in enumerate(lanes)]
        )
        for part in ("current", "baseline")
    )
    return current, baseline


def _calls_by_pair(one: LaneEdges) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for part in (one.current, one.baseline):
        columns = part.latency_calls.tolist(), part.calls.tolist()
        for src, dst, timed, calls in zip(part.src, part.dst, *columns, strict=True):
            before = sums.get((src, dst), (0, 0))
            sums[src, dst] = before[0] + timed, before[1] + calls
    return sums


def _taken(
    part: ServiceWindowEdges, chosen: dict[tuple[str, str], tuple[int, int, int]], place: int, window_ms: int
) -> ServiceWindowEdges:
    """Return the rows of the pairs that are read from the lane at ``place`` (negative)."""
    rows = [row for row, pair in enumerate(zip(part.src, part.dst, strict=True)) if chosen[pair][2] == place]
    taken = part.take(np.array(rows, dtype=np.int64))
    return replace(taken, window_start_ms=taken.window_start_ms - taken.window_start_ms % window_ms)


def one_lane_a_subject(events: Sequence[DriftEvent], lanes: Sequence[str]) -> list[DriftEvent]:
    """Return the events of ``lanes``; of what two lanes tell of one subject, those of the lane that is named first."""
    place = {lane: number for number, lane in enumerate(lanes)}
    speaks: dict[tuple[str, str, str, int, int], int] = {}
    told = [event for event in events if event.lane in place]
    for event in told:
        subject = (event.kind, event.src, event.dst, event.port, event.protocol)
        speaks[subject] = min(speaks.get(subject, len(lanes)), place[event.lane])
    return [
        event
        for event in told
        if speaks[event.kind, event.src, event.dst, event.port, event.protocol] == place[event.lane]
    ]
