"""Signs, in the edges of a closed window, that a service starts anew, and what is told of it then. Pure.

Two signs, the only ones that flows give: all edges of a service go down together while others of its tenant go on; a
service makes a call inside the estate that it has not made for an hour. models/drift/restart.py says what they mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.calendar import HOUR_MS
from models.drift.detection import Detection
from models.drift.findings import key_of
from models.drift.restart import START_MS, Downtime, judge_downtime, note_down, note_start, usual_downtime, was_down
from models.graph.cutting import WindowColumns
from models.graph.lane import IntColumn, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import CALLS, NEVER
from schemas.drift import DriftKind, EdgeRef
from schemas.graph import MEASURE_INDEX

Mask = npt.NDArray[np.bool_]

MIN_EDGES = 2
"""Edges of a service that go down together; one alone may be down for any reason."""
MOST_STARTS = 50
"""Services of a tenant that show the second sign in one window; more is a source that came back, or a new one."""
FORGOTTEN_WINDOWS = 12
"""Edges silent for longer than this, and than two starts, have been missed before, whatever their services do now."""
UP_SHARE = 0.75
"""Share of its usual calls from which an edge is up: with less, a service may have gone in the midst of the window."""


def note_starts(lane: LaneState, index: int, present: IntColumn, last: IntColumn) -> None:
    """Note the services that make a call they have not made for an hour, or never; before they are noted as seen.

    Shapes:
        present: ``(P,)`` edge numbers. last: ``(P,)`` window up to which silence counts for nothing.
    """
    if lane.logic < PRODUCERS_OWN:
        return
    registry = lane.registry
    edge, service = registry.edge.array, registry.service.array
    src, dst = edge["src"][present], edge["dst"][present]
    hour = max(1, HOUR_MS // lane.config.window_ms)
    is_seldom = edge["known"][present] & (edge["last_index"][present] != NEVER) & (index - last > hour)
    is_first = ~edge["known"][present] & ~edge["hearsay"][present] & (edge["vouched"][present] == 0)
    shows = (is_seldom | is_first) & service["known"][src] & ~service["external"][src] & ~service["external"][dst]
    starting: dict[int, list[str]] = defaultdict(list)
    for number in np.unique(src[shows]).tolist():
        tenant, name = registry.services[number]
        starting[tenant].append(name)
    for tenant, names in starting.items():
        state = lane.tenant_state(tenant)
        # While names have just changed, a call may be new by its name alone.
        if lane.has_learned(tenant) and state.settling is None and len(names) <= MOST_STARTS:
            for name in sorted(names):
                note_start(state.calendar, name, index * lane.config.window_ms)


def active_edges(lane: LaneState, columns: WindowColumns) -> IntColumn:
    """Return the edges of a window that carry about as many calls as usual, of those that usually carry enough."""
    edge, present = lane.registry.edge.array, columns.present
    usual = np.expm1(edge["mean"][present, CALLS])
    enough = lane.thresholds("min_calls", edge["tenant"][present]) * edge["scale"][present]
    ripe = edge["history"][present, CALLS] >= lane.thresholds("min_history", edge["tenant"][present])
    is_up = columns.chosen[MEASURE_INDEX["calls"]] >= UP_SHARE * usual
    active: IntColumn = present[edge["known"][present] & ripe & (usual >= enough) & is_up]
    return active


def is_restart_over(lane: LaneState, index: int, numbers: IntColumn) -> Mask:
    """Say of edges that are back in a window whether they were silent by a restart only: that is no habit of theirs."""
    names, edge = lane.registry.services, lane.registry.edge.array
    found = np.zeros(len(numbers), dtype=bool)
    for place in np.flatnonzero(~edge["gone"][numbers]).tolist():
        number = int(numbers[place])
        calendar = lane.tenant_state(int(edge["tenant"][number])).calendar
        ends = (int(edge["src"][number]), int(edge["dst"][number]))
        found[place] = any(was_down(calendar, names[end][1], index * lane.config.window_ms) for end in ends)
    return found


def last_index_of(lane: LaneState, tenant: str, service: str) -> int:
    """Return the index of the last closed window in which a service had any edge."""
    size, edge = len(lane.registry), lane.registry.edge.array
    number = lane.registry.service_number.get((lane.registry.tenant_number[tenant], service))
    at = edge["known"][:size] & ((edge["src"][:size] == number) | (edge["dst"][:size] == number))
    return int(edge["last_index"][:size].max(where=at, initial=NEVER))


@dataclass(slots=True)
class Restarts:
    """What of one tenant is down in one window as it was at earlier restarts.

    Attributes:
        down: each restart with its edges (numbers). covered: all of these.
    """

    down: list[tuple[Downtime, list[int]]] = field(default_factory=list)
    covered: set[int] = field(default_factory=set)


def find_restarts(
    lane: LaneState, index: int, active: IntColumn | None, detections: dict[int, list[Detection]]
) -> dict[int, Restarts]:
    """Return by tenant what is down as usual, note all that is down, and add silences that it covered until now.

    Args:
        active: edges that are up; None: the window may lack rows, or none came, so nothing is known to be down.
        detections: of the window, by tenant; drops of edges that are down for longer than a restart takes are added.
    """
    if lane.logic < PRODUCERS_OWN or not len(lane.registry):
        return {}
    tenant_of = lane.registry.edge.array["tenant"]
    withholding = lane.guard.withholding(len(lane.registry.tenants), index)
    silent = [number for number in _silent_edges(lane, index) if not withholding[tenant_of[number]]]
    down: dict[int, set[int]] = defaultdict(set)
    for number in silent:
        down[int(tenant_of[number])].add(number)
    dropping = {tenant: set(_dropping(lane, tenant, found)) for tenant, found in detections.items()}
    for tenant, numbers in dropping.items():
        if numbers:
            down[tenant] |= numbers
    restarts: dict[int, Restarts] = {}
    if active is not None and down:
        active = active[np.argsort(tenant_of[active], kind="stable")]
        for tenant in sorted(down):
            mine = slice(*np.searchsorted(tenant_of[active], [tenant, tenant + 1]).tolist())
            if len(active[mine]):
                restarts[tenant] = _restarts_of(lane, tenant, index, down[tenant], active[mine])
    for number in silent:
        tenant = int(tenant_of[number])
        is_covered = tenant in restarts and number in restarts[tenant].covered
        if not is_covered and number not in dropping.get(tenant, ()):
            _tell_untold(lane, tenant, index, number, detections[tenant])
    return restarts


def tell_restarts(
    lane: LaneState, tenant: int, index: int, restarts: Restarts | None, detections: Sequence[Detection]
) -> list[Detection]:
    """Return a tenant's detections with one for each restart instead of the drops of its edges."""
    if restarts is None or not restarts.covered:
        return list(detections)
    book, name = lane.tenants[tenant].book, lane.registry.tenants[tenant]
    drops: dict[int, Detection] = {}
    told = []
    for detection in detections:
        numbers = list(_dropping(lane, tenant, [detection]))
        is_covered = bool(numbers) and numbers[0] in restarts.covered
        if is_covered:
            drops[numbers[0]] = detection
        # One that was told by itself goes on by itself.
        if not is_covered or key_of(name, lane.config.name, detection) in book.open:
            told.append(detection)
    told += [_tell(lane, index, downtime, numbers, drops) for downtime, numbers in restarts.down]
    return told


def _silent_edges(lane: LaneState, index: int) -> list[int]:
    """Return the edges missed of late, but for those that are to be back later, in order."""
    size = len(lane.registry)
    edge = {name: lane.registry.edge.array[name][:size] for name in ("dropped", "known", "last_index", "expected_back")}
    last, late = edge["last_index"], index - max(FORGOTTEN_WINDOWS, 2 * START_MS // lane.config.window_ms)
    silent = edge["dropped"] & edge["known"] & (last < index) & (last >= late) & (edge["expected_back"] <= last)
    numbers: list[int] = np.flatnonzero(silent).tolist()
    return sorted((n for n in numbers if lane.registry.identities[n]), key=lambda n: lane.registry.identities[n] or ())


def _dropping(lane: LaneState, tenant: int, detections: Iterable[Detection]) -> Iterable[int]:
    name = lane.registry.tenants[tenant]
    for detection in detections:
        if detection.kind is DriftKind.RATE_DROP:
            number = lane.registry.edge_number.get((name, *detection.sort_key[1:]))
            if number is not None:
                yield number


def _restarts_of(lane: LaneState, tenant: int, index: int, down: set[int], active: IntColumn) -> Restarts:
    registry = lane.registry
    edge, names = registry.edge.array, registry.services
    up = {*edge["src"][active].tolist(), *edge["dst"][active].tolist()}
    edges_of: dict[int, list[int]] = defaultdict(list)
    for number in sorted(down, key=lambda n: registry.identities[n] or ()):
        for end in {int(edge["src"][number]), int(edge["dst"][number])}:
            edges_of[end].append(number)
    fallen = {
        service: numbers
        for service, numbers in edges_of.items()
        if len(numbers) >= MIN_EDGES and service not in up and not registry.service.array["external"][service]
    }
    calendar, window_ms = lane.tenant_state(tenant).calendar, lane.config.window_ms
    for service in sorted(fallen, key=lambda s: names[s][1]):
        is_removed = bool(edge["gone"][fallen[service]].any())
        note_down(calendar, names[service][1], index * window_ms, window_ms, is_removed)
    found = Restarts()
    needed = lane.detection(registry.tenants[tenant]).recurring_after
    for group in _groups(lane, fallen):
        downtime = usual_downtime(calendar, names[_first_of(lane, group, fallen)][1], needed)
        if downtime is not None:
            numbers = sorted({n for s in group for n in fallen[s]}, key=lambda n: registry.identities[n] or ())
            found.down.append((downtime, numbers))
            found.covered.update(numbers)
    return found


def _groups(lane: LaneState, fallen: dict[int, list[int]]) -> list[list[int]]:
    """Return the services that are down, those together that edges connect; in order of name."""
    edge, names = lane.registry.edge.array, lane.registry.services
    left = sorted(fallen, key=lambda s: names[s][1])
    groups = []
    seen: set[int] = set()
    for first in left:
        if first in seen:
            continue
        seen.add(first)
        group, at = [first], 0
        while at < len(group):
            for number in fallen[group[at]]:
                for end in (int(edge["src"][number]), int(edge["dst"][number])):
                    if end in fallen and end not in seen:
                        seen.add(end)
                        group.append(end)
            at += 1
        groups.append(group)
    return groups


def _first_of(lane: LaneState, group: list[int], fallen: dict[int, list[int]]) -> int:
    """Return the service that others are down for: one that somebody calls who is not down, or with most edges."""
    edge, names = lane.registry.edge.array, lane.registry.services

    def order(service: int) -> tuple[bool, int, str]:
        is_called = any(edge["dst"][n] == service and int(edge["src"][n]) not in fallen for n in fallen[service])
        return (not is_called, -len(fallen[service]), names[service][1])

    return min(group, key=order)


def _tell_untold(lane: LaneState, tenant: int, index: int, number: int, detections: list[Detection]) -> None:
    """Tell of an edge whose silence a restart has covered until now."""
    edge, identity = lane.registry.edge.array, lane.registry.identities[number]
    assert identity is not None
    if edge["gone"][number]:
        return
    last = int(edge["last_index"][number])
    detection = structural.judge_silent(
        DriftKind.RATE_DROP,
        EdgeRef(*identity[1:]),
        silent_windows=index - last,
        usual_gap=int(edge["gap_max"][number]),
        expected_calls=float(np.expm1(edge["mean"][number, CALLS])),
        history=int(edge["windows_seen"][number]),
        first_ms=(last + 1) * lane.config.window_ms,
    )
    if key_of(identity[0], lane.config.name, detection) not in lane.tenants[tenant].book.open:
        detections.append(detection)


def _tell(
    lane: LaneState, index: int, downtime: Downtime, numbers: list[int], drops: dict[int, Detection]
) -> Detection:
    edge, identities = lane.registry.edge.array, lane.registry.identities
    calls = {
        number: (item.observed, item.expected)
        for number, drop in drops.items()
        for item in drop.evidence
        if item.signal == "calls_per_window"
    }
    of_edges = [calls.get(n, (0.0, float(np.expm1(edge["mean"][n, CALLS])))) for n in numbers]
    return judge_downtime(
        downtime,
        sorted(EdgeRef(*identity[1:]) for n in numbers if (identity := identities[n]) is not None),
        calls=sum(observed for observed, _ in of_edges),
        usual_calls=sum(expected for _, expected in of_edges),
        history=min(int(edge["windows_seen"][n]) for n in numbers),
        time_ms=index * lane.config.window_ms,
        window_ms=lane.config.window_ms,
    )
