"""Statements: what a worker says of its source partitions when there are no rows to say it with. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.graph.logic import LOGIC_VERSION
from schemas.tenant_log import ACTIVE, END_REACHED, ENDED, IDLE, PAUSED, LaneConfig, LogRecord, Progress
from streams.ingest.columns import Clocks

FRESH_MS = 3_000
"""A fetch answered longer ago says nothing about the end any more."""


@dataclass(frozen=True, slots=True)
class SourceStanding:
    """Where one source partition stands with one lane.

    Attributes:
        position: acknowledged by every target.
        clocks: of the latest rows acknowledged.
        has_backlog: records wait to be read or acknowledged, as far as is known.
        fetched_ms_ago: when the broker last answered; ``None`` if it has not.
        unmoved_ms: for how long the clock has not advanced.
        ended: the end-of-input record was acknowledged.
        paused: stopped for a flood.
    """

    lane: LaneConfig
    source: str
    partition: int
    position: int
    clocks: Clocks
    has_backlog: bool
    fetched_ms_ago: int | None
    unmoved_ms: int
    ended: bool = False
    paused: bool = False


def state_of(standing: SourceStanding, idle_ms: int | None) -> int:
    """Return the state to be stated; ``idle_ms`` ``None``: the lane never idles, it waits for its end of input."""
    if standing.ended:
        return ENDED
    if standing.paused:
        return PAUSED
    fresh = standing.fetched_ms_ago is not None and standing.fetched_ms_ago <= FRESH_MS
    if standing.has_backlog or not fresh:
        return ACTIVE
    if idle_ms is not None and standing.unmoved_ms >= idle_ms:
        return IDLE
    return END_REACHED


def statements(
    standings: Iterable[SourceStanding], idle_ms: Mapping[str, int], worker: str, as_of_ms: int
) -> list[LogRecord]:
    """Return one record per lane. It covers nothing: ``after`` and ``upto`` are the acknowledged position."""
    lanes: dict[tuple[str, int], tuple[LaneConfig, list[Progress]]] = {}
    for standing in standings:
        lane = standing.lane
        _, progress = lanes.setdefault((lane.name, lane.generation), (lane, []))
        idle = idle_ms.get(lane.name) if lane.mode == "live" else None
        state = state_of(standing, idle)
        at = standing.position
        progress.append(Progress(standing.source, standing.partition, at, at, standing.clocks, state))
    return [
        LogRecord(
            worker,
            as_of_ms,
            tuple(sorted(progress, key=lambda p: (p.source, p.partition))),
            lane=lane,
            logic=LOGIC_VERSION,
        )
        for _, (lane, progress) in sorted(lanes.items())
    ]
