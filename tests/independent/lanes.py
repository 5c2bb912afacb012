"""Lanes of one tenant, recomputed: which lane tells what is new or gone, by the words of docs/guarantee.md.

Row by row and window by window, with plain sets and dictionaries; shares no code with the state machine. Windows are
whole, rows come in time, nothing calls from outside: what those would do is checked elsewhere.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.flow import Flow

Edge = tuple[str, str, int]
"""Caller, callee, port."""
Told = tuple[str, str, str, str, int, int]
"""Lane, kind, source, destination, port (-1: none), index of the window."""


@dataclass(frozen=True)
class Rules:
    """What a lane is judged by. Times in ms; the rest counts windows."""

    window_ms: int
    lateness_ms: int
    learning_windows: int
    min_history: int = 8
    removed_min_windows: int = 5
    removed_after_silences: int = 10


@dataclass
class Seen:
    """What a lane remembers of an edge."""

    elsewhere: bool  # another lane had this very edge before
    foreign: bool  # another lane had its two services together before
    windows: set[int] = field(default_factory=set)
    gap: int = 1
    last: int = -1
    kept_to: int = -1
    told_gone: bool = False


@dataclass
class Lane:
    """One lane and its open windows."""

    name: str
    rules: Rules
    latest_ms: int = -1
    closed_to: int | None = None
    taught: int = 0
    newcomer: bool = False
    edges: dict[Edge, Seen] = field(default_factory=dict)
    known: set[Edge] = field(default_factory=set)
    open: dict[int, set[Edge]] = field(default_factory=lambda: defaultdict(set))
    foreign_services: set[str] = field(default_factory=set)  # another lane had them when this one saw them first
    foreign_pairs: set[tuple[str, str]] = field(default_factory=set)

    @property
    def has_learned(self) -> bool:
        """Say whether the lane may tell."""
        return self.taught >= self.rules.learning_windows

    @property
    def vouches(self) -> bool:
        """Say whether what it has counts for other lanes."""
        return bool(self.edges) and (self.has_learned or not self.newcomer)

    def services(self, edges: Iterable[Edge]) -> set[str]:
        """Return the services of edges."""
        return {name for edge in edges for name in edge[:2]}


def judge(log: Sequence[tuple[str, Sequence[Flow]]], rules: dict[str, Rules]) -> set[Told]:
    """Return what lanes tell of a log of rows, each entry one lane's."""
    lanes = {name: Lane(name, of_lane) for name, of_lane in rules.items()}
    told: set[Told] = set()
    for name, flows in log:
        lane = lanes[name]
        others = [other for other in lanes.values() if other is not lane]
        for flow in flows:
            edge = (flow.src, flow.dst, -1 if flow.port is None else flow.port)
            if not lane.edges:
                lane.newcomer = any(other.has_learned for other in others)
            if edge not in lane.edges:
                _first_sight(lane, [other for other in others if other.vouches], edge)
            lane.open[flow.time_ms // lane.rules.window_ms].add(edge)
            lane.latest_ms = max(lane.latest_ms, flow.time_ms)
        _close_to(lane, others, (lane.latest_ms - lane.rules.lateness_ms) // lane.rules.window_ms, told)
    return told


def _first_sight(lane: Lane, vouching: list[Lane], edge: Edge) -> None:
    for service in set(edge[:2]) - lane.services(lane.edges):
        if any(service in other.services(other.edges) for other in vouching):
            lane.foreign_services.add(service)
    pair = edge[:2]
    if pair not in {one[:2] for one in lane.edges} and any(pair in {e[:2] for e in o.edges} for o in vouching):
        lane.foreign_pairs.add(pair)
    is_pair_open = pair not in {one[:2] for one in lane.known}
    elsewhere = any(edge in other.edges for other in vouching)
    lane.edges[edge] = Seen(elsewhere, is_pair_open and pair in lane.foreign_pairs)


def _close_to(lane: Lane, others: list[Lane], closed_to: int, told: set[Told]) -> None:
    """Close windows one by one, those without rows too."""
    begin = min([closed_to, *lane.open]) if lane.closed_to is None else lane.closed_to
    lane.closed_to = max(begin, closed_to)
    for index in range(begin, closed_to):
        rows = lane.open.pop(index, set())
        if rows:
            if lane.has_learned:
                told |= {(lane.name, *subject, index) for edge in rows for subject in _news(lane, edge)}
            for edge in rows:
                seen = lane.edges[edge]
                wait = _wait(lane, seen)
                if seen.last >= 0:
                    # A silence that was told at most doubles the usual one: it is no habit yet.
                    gap = min(index - seen.last, wait, 2 * seen.gap if seen.told_gone else wait)
                    seen.gap = max(seen.gap, gap)
                seen.last, seen.told_gone = index, False
                seen.windows.add(index)
            lane.known |= rows
            lane.taught += 1
        if lane.has_learned:
            _gone(lane, others, index, told)


def _news(lane: Lane, edge: Edge) -> list[tuple[str, str, str, int]]:
    src, dst, port = edge
    if edge in lane.known or lane.edges[edge].foreign:
        return []
    if lane.edges[edge].elsewhere and (src, dst) in {one[:2] for one in lane.known}:
        return []
    had = lane.services(lane.known) | lane.foreign_services
    new = [("new_service", name, "", -1) for name in (src, dst) if name not in had]
    if new:
        return new
    if (src, dst) in {one[:2] for one in lane.known}:
        return [("new_port", src, dst, port)]
    return [("new_edge", src, dst, -1)]


def _wait(lane: Lane, seen: Seen) -> int:
    return max(lane.rules.removed_min_windows, lane.rules.removed_after_silences * seen.gap)


def _gone(lane: Lane, others: list[Lane], index: int, told: set[Told]) -> None:
    for edge in sorted(lane.known):
        seen = lane.edges[edge]
        if seen.told_gone or len(seen.windows) < lane.rules.min_history:
            continue
        if index < max(seen.last, seen.kept_to) + _wait(lane, seen):
            continue
        if any(_shows(other, edge) for other in others):
            seen.kept_to = index
            continue
        seen.told_gone = True
        told.add((lane.name, "removed_edge", *edge, index))
        for other in others:
            if edge in other.known:
                other.edges[edge].told_gone = True


def _shows(other: Lane, edge: Edge) -> bool:
    seen = other.edges.get(edge)
    if seen is None:
        return False
    if any(edge in rows for rows in other.open.values()):
        return True
    return other.closed_to is not None and seen.last >= 0 and other.closed_to - 1 - seen.last <= seen.gap
