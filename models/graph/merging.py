"""Services of a lane get other names in place: edges, what is remembered of them, and open windows move. Pure.

All of it happens at once, so that names can be swapped, and several services can become one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.drift.persistence import PERSISTENCE_COLUMNS
from models.drift.slowness import SLOW_COLUMNS
from models.graph.admission import is_overflow
from models.graph.lane import IntColumn, LaneState
from models.graph.registry import EDGE_COLUMNS, HABIT_COLUMNS, PAGE_ROWS, RUN_COLUMNS, TREND_COLUMNS, Registry
from schemas.ids import is_external
from schemas.tenant_log import EdgeIdentity

# What is remembered of edges that become one. The sum of two baselines is the baseline of neither, and two beacons are
# no clock: signals, silences, windows and runs of contact begin anew.
EDGE_MERGE: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "known": np.logical_or.reduce,
    "hearsay": np.logical_and.reduce,
    "first_seen_ms": np.min,
    "last_index": np.max,
    "gap_max": np.max,
    "scale": np.max,
    "gone": np.logical_and.reduce,
    "vouched": np.bitwise_or.reduce,
    "seen_elsewhere": np.max,
    "beaconing": np.logical_or.reduce,
}
EDGE_RELEARNED = ("windows_seen", "dropped", "history")
EDGE_BEGUN_ANEW = (
    "expected_back",
    *SLOW_COLUMNS,
    *PERSISTENCE_COLUMNS,
    *(name for name in RUN_COLUMNS if name not in EDGE_MERGE),
)
EDGE_KEPT = ("tenant", "src", "dst", "port", "protocol", "mean", "spread", *TREND_COLUMNS)
SERVICE_MERGE: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "known": np.logical_or.reduce,
    "fan_out_max": np.max,
    "denied_max": np.max,
    "vouched": np.logical_or.reduce,
    **dict.fromkeys(HABIT_COLUMNS, np.max),
}
SERVICE_KEPT = ("tenant", "external", "given")


def edges_of(lane: LaneState, tenant: int, services: npt.NDArray[np.int64] | None = None) -> IntColumn:
    """Return the numbers of a tenant's edges, of all or of those that touch ``services``; ascending."""
    registry = lane.registry
    edge = {name: registry.edge.array[name][: len(registry)] for name in ("tenant", "src", "dst")}
    mine = edge["tenant"] == tenant
    if services is not None:
        mine &= np.isin(edge["src"], services) | np.isin(edge["dst"], services)
    live = [
        n for n in np.flatnonzero(mine).tolist() if (i := registry.identities[n]) is not None and not is_overflow(i)
    ]
    return np.array(live, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of services and edges, by number.

    Attributes:
        services: the new number of each renamed service. merged: new numbers that several services share now.
        edges: edges that were merged, into which.
    """

    services: dict[int, int]
    merged: set[int]
    edges: dict[int, int]


def rename_services(lane: LaneState, tenant: int, names: Mapping[int, str]) -> Moved:
    """Give services of a tenant other names.

    Args:
        names: the new name of each, by number. A number stays with its name: the edges move.
    """
    registry = lane.registry
    target = {number: registry.service_named(tenant, name) for number, name in sorted(names.items())}
    edges = edges_of(lane, tenant)
    ends = np.unique(np.concatenate([registry.edge.array[end][edges] for end in ("src", "dst")]))
    shared = Counter(target.get(number, number) for number in ends.tolist())
    into = _move_edges(registry, edges_of(lane, tenant, np.array(sorted(target), dtype=np.int64)), target)
    for window in lane.windows.values():
        window.merge(into, registry.edge.capacity)
        window.rename_services(target)
    state = lane.tenant_state(tenant)
    state.edges.count -= len(into)
    state.edges.candidates = None
    last = max(lane.windows, default=0)
    state.edges.quarantine += [(number, last) for number in sorted(into)]
    _move_services(registry, target)
    registry.find_known_pairs()
    registry.find_unsettled()
    return Moved(target, {number for number in target.values() if shared[number] > 1}, into)


def _move_edges(registry: Registry, edges: IntColumn, target: Mapping[int, int]) -> dict[int, int]:
    """Move edges to their ends' new numbers; return which were merged into which."""
    columns = registry.edge.array
    groups: dict[EdgeIdentity, list[int]] = defaultdict(list)
    for number in edges.tolist():
        identity = registry.identities[number]
        assert identity is not None
        del registry.edge_number[identity]
        src, dst = int(columns["src"][number]), int(columns["dst"][number])
        src, dst = target.get(src, src), target.get(dst, dst)
        columns["src"][number], columns["dst"][number] = src, dst
        names = registry.services
        groups[identity[0], names[src][1], names[dst][1], identity[3], identity[4]].append(number)
    into: dict[int, int] = {}
    for identity, numbers in groups.items():
        stays = registry.edge_number.get(identity)
        group = numbers if stays is None else [stays, *numbers]
        kept = group[0]
        registry.edge_number[identity] = kept
        registry.identities[kept] = identity
        if len(group) > 1:
            for name, merged in EDGE_MERGE.items():
                columns[name][kept] = merged(columns[name][group])
            for name in (*EDGE_RELEARNED, *EDGE_BEGUN_ANEW):
                columns[name][kept] = EDGE_COLUMNS[name][1]
        for gone in group[1:]:
            registry.identities[gone] = None
            columns["known"][gone] = columns["hearsay"][gone] = False
            into[gone] = kept
        registry.edge_pages.update(number // PAGE_ROWS for number in group)
    return into


def _move_services(registry: Registry, target: Mapping[int, int]) -> None:
    """Move what is remembered of services to their new numbers; the old ones are as if never seen."""
    columns = registry.service.array
    sources: dict[int, list[int]] = defaultdict(list)
    for old, new in target.items():
        sources[new].append(old)
    for new, olds in sources.items():
        if new not in target:
            olds.append(new)
    merged = {
        (new, name): merge(columns[name][olds])
        for new, olds in sources.items()
        for name, merge in SERVICE_MERGE.items()
    }
    for old in target:
        tenant, name = registry.services[old]
        registry.service.clear(old)
        columns["tenant"][old], columns["external"][old], columns["given"][old] = tenant, is_external(name), False
    for (new, name), value in merged.items():
        columns[name][new] = value
    registry.service_pages.update(number // PAGE_ROWS for number in (*target, *sources))


def learn_anew(lane: LaneState, edges: IntColumn) -> None:
    """Have edges learn their signals and silences anew: they carry other traffic than before."""
    for name in EDGE_RELEARNED:
        lane.registry.edge.array[name][edges] = EDGE_COLUMNS[name][1]
    lane.registry.touch(edges)
