"""A closed window at the estate's border: strays, services that are open to the outside, and what is unusual for them.

A service is open in a direction (it is called from outside, or calls there) if meeting new peers there is its habit:
windows in which it met one are counted and halved each day (``DetectionConfig.open_after_windows``). Edges across the
border of such a service are not judged one by one, only all together (models/drift/outside.py). Pure, vectorised.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift import outside
from models.drift.detection import MAX_EDGES_LISTED, Detection
from models.graph.corroboration import is_port_known_elsewhere
from models.graph.lane import DAY_MS, LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.registry import INBOUND, OUTBOUND, pair_of, port_key
from models.graph.thresholds import limits_of
from schemas.drift import EdgeRef
from schemas.graph import MEASURE_INDEX

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NEWS_KEPT = 4
"""Counts of windows with news stop at this many times their threshold: a habit that ends is forgotten in three days."""
_EMPTY_PACKET_BYTES = (40, 80)
"""Bytes of a packet that carries nothing, say a refusal: IPv4 and TCP, to IPv6 and TCP with options in a frame."""
_MAXIMA = ("in_peers_max", "in_calls_max", "in_bytes_max", "out_calls_max", "out_bytes_max")
_FADES_BY = 3
"""On each new day a maximum loses this power of two of itself: half of it is gone after five days."""
_LEARNS_BY = 1.5
"""What is no alarm raises a maximum to this many times itself at most: a few steps do not lead around the alarm."""
_MANY_DAYS = 30
_MAX_SUMMED = 1 << 40  # of one edge in one window: sums over a service's edges stay exact
_COUNTED = {INBOUND: ("in_news", "in_port_news"), OUTBOUND: ("out_news", "out_port_news")}
_INSIDE, _OUTSIDE = {INBOUND: "dst", OUTBOUND: "src"}, {INBOUND: "src", OUTBOUND: "dst"}


@dataclass(frozen=True, slots=True)
class Border:
    """What the rows of a closed window have to do with the outside; all False before logic version 3.

    Shapes:
        all ``(P,)`` bool. inbound: the caller is outside. outbound: the callee is. unanswered: no call got an answer.
        stray: of an unknown edge, calls from outside that nobody answered, or packets from outside nobody asked for
        (of the callee of calls that were not made). open: an edge of a service open in its direction.
    """

    inbound: Mask
    outbound: Mask
    unanswered: Mask
    stray: Mask
    open: Mask

    def mask(self, direction: int) -> Mask:
        """Return the rows of a direction."""
        return self.inbound if direction == INBOUND else self.outbound

    def of(self, rows: IntColumn) -> "Border":
        """Return what some of the rows have to do with the outside."""
        return Border(self.inbound[rows], self.outbound[rows], self.unanswered[rows], self.stray[rows], self.open[rows])


def border_of(lane: LaneState, index: int, present: IntColumn, chosen: IntColumn) -> Border:
    """Return what the rows of window ``index`` have to do with the outside; habits are aged up to that window.

    Shapes:
        present: ``(P,)`` edge numbers. chosen: ``(M, P)`` measures.
    """
    if lane.logic < PRODUCERS_OWN:
        nothing = np.zeros(len(present), dtype=bool)
        return Border(nothing, nothing, nothing, nothing, nothing)
    _age(lane, index, present)
    edge, external = lane.registry.edge.array, lane.registry.service.array["external"]
    inbound = external[edge["src"][present]].astype(bool)
    outbound = external[edge["dst"][present]].astype(bool)
    unanswered = _unanswered(chosen)
    stray = (inbound & unanswered | outbound & _unsent(chosen)) & ~edge["known"][present]
    return Border(inbound, outbound, unanswered, stray, of_open_services(lane, present))


def _age(lane: LaneState, index: int, present: IntColumn) -> None:
    """Halve counts of windows with news once for each day passed, and let maxima fade, of services in this window."""
    edge, service = lane.registry.edge.array, lane.registry.service.array
    day = index * lane.config.window_ms // DAY_MS
    services = np.unique(np.concatenate([edge["src"][present], edge["dst"][present]]))
    then = service["news_day"][services]
    old = services[(then >= 0) & (then < day)]
    passed = np.minimum(day - service["news_day"][old], _MANY_DAYS)
    for columns in _COUNTED.values():
        for column in columns:
            service[column][old] >>= passed
    for column in _MAXIMA:
        service[column][old] -= service[column][old] >> _FADES_BY  # once, so that an idle week forgets no more
    service["news_day"][services] = np.maximum(then, day)


def open_services(lane: LaneState, direction: int) -> Mask:
    """Say of each service whether it is open in a direction, ``(S,)``."""
    service, size = lane.registry.service.array, len(lane.registry.services)
    least = np.maximum(lane.thresholds("open_after_windows", service["tenant"][:size]), 1)
    is_open: Mask = service[_COUNTED[direction][0]][:size] >= least
    return is_open


def of_open_services(lane: LaneState, numbers: IntColumn | slice) -> Mask:
    """Say of edges whether they cross the border of a service that is open in their direction, ``(N,)``."""
    edge, external = lane.registry.edge.array, lane.registry.service.array["external"]
    src, dst = edge["src"][numbers], edge["dst"][numbers]
    crossing = np.zeros(len(src), dtype=bool)
    if lane.logic >= PRODUCERS_OWN:
        for direction, inside, peer in ((INBOUND, dst, src), (OUTBOUND, src, dst)):
            is_open = open_services(lane, direction)
            if is_open.any():
                crossing |= external[peer] & is_open[inside]
    return crossing


def may_open(lane: LaneState, service: int, windows: int) -> bool:
    """Say whether a service is open outbound, or may be once so many windows more have closed."""
    tenant = lane.registry.services[service][0]
    least = max(1, lane.detection(lane.registry.tenants[tenant]).open_after_windows)
    return int(lane.registry.service.array["out_news"][service]) + windows >= least


def _unanswered(chosen: IntColumn) -> Mask:
    """Say of which edges nothing came: no data back, and no call in it, all denied or failed, or no way back seen."""

    def take(name: str) -> IntColumn:
        column: IntColumn = chosen[MEASURE_INDEX[name]]
        return column

    flows, calls, judged = take("flows"), take("calls"), take("error_flows")
    # Fewer bytes than headers have are bytes of data alone: then a refusal has none.
    back, least, most = take("bytes_in"), *(bound * take("packets_in") for bound in _EMPTY_PACKET_BYTES)
    data = (back > 0) & ((back < least) | (back > most))
    denied = (take("denied_flows") > 0) & (take("denied") >= calls)
    # Where some records do not know whether they failed, each of the others stands for one call at least.
    failed = (judged > 0) & (take("errors") >= np.where(judged == flows, calls, judged))
    counted = (take("bytes_in_flows") > 0) | (take("packets_in_flows") > 0)
    silent = (judged == 0) & counted & (take("packets_in") == 0)
    nothing: Mask = (flows > 0) & ~data & ((calls == 0) | denied | failed | silent)
    return nothing


def _unsent(chosen: IntColumn) -> Mask:
    """Say of which edges every record knows that the caller sent nothing: what came back is no answer, but backscatter.

    A host whose address somebody forged gets answers to calls it never made.
    """

    def take(name: str) -> IntColumn:
        column: IntColumn = chosen[MEASURE_INDEX[name]]
        return column

    flows, counted = take("flows"), take("packets_out_flows")
    nothing: Mask = (flows > 0) & (counted == flows) & (take("packets_out") == 0) & (take("bytes_out") == 0)
    return nothing


def unsent_rows(lane: LaneState, numbers: IntColumn, columns: dict[str, IntColumn]) -> Mask | None:
    """Say of single rows whether they are of calls to the outside in which nothing was sent; None if there are none.

    Shapes:
        numbers: ``(N,)`` edge number of each row. columns: the rows.
    """
    mask: Mask = columns["packets_out"] == 0
    if lane.logic < PRODUCERS_OWN or not mask.any():
        return None
    mask &= (columns["bytes_out"] <= 0) & lane.registry.service.array["external"][
        lane.registry.edge.array["dst"][numbers]
    ]
    return mask if mask.any() else None


def judge_border(
    lane: LaneState,
    index: int,
    present: IntColumn,
    chosen: IntColumn,
    border: Border,
    learned: Mask,
    detections: dict[int, list[Detection]],
) -> None:
    """Judge a window's traffic with the outside as a whole, then move on what is usual; learning tenants only teach."""
    if not (border.inbound | border.outbound).any():
        return
    calls = np.minimum(chosen[MEASURE_INDEX["calls"]] + chosen[MEASURE_INDEX["late_calls"]], _MAX_SUMMED)
    volume = np.minimum(chosen[MEASURE_INDEX["bytes_out"]] + chosen[MEASURE_INDEX["bytes_in"]], _MAX_SUMMED)
    window = _Window(lane, index, present, calls, border, learned, detections)
    for direction in (INBOUND, OUTBOUND):
        rows = np.flatnonzero(border.mask(direction))
        if len(rows):
            is_open = open_services(lane, direction)
            window.judge_ports(direction, rows, is_open)
            window.judge_surges(direction, rows, is_open)
            window.judge_volumes(direction, rows, is_open, volume)
    window.count_news()


@dataclass(frozen=True, slots=True)
class _Window:
    lane: LaneState
    index: int
    present: IntColumn
    calls: IntColumn
    border: Border
    learned: Mask
    detections: dict[int, list[Detection]]

    def _report(self, service: int, detection: Detection) -> None:
        self.detections[int(self.lane.registry.service.array["tenant"][service])].append(detection)

    def _facts(self, service: int) -> tuple[str, int, int]:
        """Return a service's name, when the window began, and how many windows its tenant has closed."""
        tenant, name = self.lane.registry.services[service]
        return name, self.index * self.lane.config.window_ms, self.lane.tenant_state(tenant).closed_windows

    def _settled(self, services: IntColumn) -> Mask:
        """Say of services whether what is usual for them is known, and still means the same."""
        service = self.lane.registry.service.array
        known: Mask = self.learned[service["tenant"][services]] & service["known"][services]
        return known & ~np.isin(services, self.lane.unsettled())

    def _taught(
        self, usual: IntColumn, seen: IntColumn, limits: npt.NDArray[np.float64], burst: Mask, tenants: IntColumn
    ) -> IntColumn:
        """Return the maxima after a window: an alarm moves them up to the limit it broke, so that it is none again."""
        ratios = np.array([self.lane.detection(tenant).outside_surge_ratio for tenant in self.lane.registry.tenants])
        slow = np.maximum(_LEARNS_BY * usual, limits / np.maximum(ratios, 1.0)[tenants])
        most = np.where(burst, limits, np.where(self.learned[tenants], slow, _MAX_SUMMED << 20)).astype(np.int64)
        taught: IntColumn = np.maximum(usual, np.minimum(seen, most))
        return taught

    def _ref(self, row: int) -> EdgeRef:
        identity = self.lane.registry.identities[int(self.present[row])]
        assert identity is not None
        return EdgeRef(*identity[1:])

    def _new_ports(self, direction: int, rows: IntColumn) -> IntColumn:
        """Return the rows, of those given, with a port that no known edge of the service has across the border."""
        edge, known = self.lane.registry.edge.array, self.lane.registry.known_ports
        numbers = self.present[rows]
        keys = port_key(edge[_INSIDE[direction]][numbers], direction, edge["port"][numbers], edge["protocol"][numbers])
        new: IntColumn = rows[np.array([key not in known for key in keys.tolist()], dtype=bool)]
        return new

    def _unknown(self, rows: IntColumn) -> IntColumn:
        known = self.lane.registry.edge.array["known"][self.present[rows]]
        unknown: IntColumn = rows[~known & ~self.border.stray[rows]]
        return unknown

    def judge_ports(self, direction: int, rows: IntColumn, is_open: Mask) -> None:
        """Report ports new to the outside, of services that are open: of others each new edge is told anyway."""
        edge, service = self.lane.registry.edge.array, self.lane.registry.service.array
        fresh = self._new_ports(direction, self._unknown(rows))
        fresh = fresh[edge["port"][self.present[fresh]] >= 0]
        own = edge[_INSIDE[direction]][self.present[fresh]]
        tenants = service["tenant"][own]
        habit = service[_COUNTED[direction][1]][own] >= self.lane.thresholds("open_after_windows", tenants)
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for row in fresh[is_open[own] & self.learned[tenants] & ~habit].tolist():
            number = self.present[row]
            groups[
                int(edge[_INSIDE[direction]][number]), int(edge["port"][number]), int(edge["protocol"][number])
            ].append(row)
        for (number, port, protocol), members in groups.items():
            if is_port_known_elsewhere(self.lane, number, direction, port, protocol):
                continue
            name, _, history = self._facts(number)
            first_ms = int(edge["first_seen_ms"][self.present[members]].min())
            calls = int(self.calls[members].sum())
            refs = sorted(self._ref(row) for row in members)
            self._report(
                number,
                outside.judge_port(name, direction == INBOUND, port, protocol, calls, refs, first_ms, history),
            )

    def judge_surges(self, direction: int, rows: IntColumn, is_open: Mask) -> None:
        """Compare callers and calls of each service with the most there ever were; of closed services only scans."""
        lane, service = self.lane, self.lane.registry.service.array
        edge = lane.registry.edge.array
        own = edge[_INSIDE[direction]][self.present[rows]]
        services, place = np.unique(own, return_inverse=True)
        tenants = service["tenant"][services]
        judged = is_open[own] | self.border.stray[rows]
        calls = np.zeros((2, len(services)), dtype=np.int64)
        np.add.at(calls[0], place, self.calls[rows])
        np.add.at(calls[1], place[judged], self.calls[rows[judged]])
        measures = [(outside.CALLS, "calls_max", outside.calls_limit, calls)]
        if direction == INBOUND:  # how many a service calls is its fan-out, judged as that
            pairs = pair_of(place, edge["src"][self.present[rows]])
            peers = np.stack([_distinct(pairs, len(services)), _distinct(pairs[judged], len(services))])
            measures.append((outside.CALLERS, "peers_max", outside.callers_limit, peers))
        prefix = "in_" if direction == INBOUND else "out_"
        settled = self._settled(services)
        surges: dict[int, list[outside.Surge]] = defaultdict(list)
        for signal, name, limit_of, (seen, to_judge) in measures:
            usual = service[prefix + name][services]
            limits = limits_of(lane, tenants, usual, limit_of)
            burst = settled & (to_judge >= limits)
            for at in np.flatnonzero(burst).tolist():
                surges[at].append(outside.Surge(signal, int(to_judge[at]), int(usual[at]), float(limits[at])))
            service[prefix + name][services] = self._taught(usual, seen, limits, burst, tenants)
        for at in sorted(surges):
            of_service = rows[(place == at) & judged]
            busiest = of_service[np.argsort(-self.calls[of_service], kind="stable")]
            name, first_ms, history = self._facts(int(services[at]))
            refs = [self._ref(row) for row in busiest[:MAX_EDGES_LISTED].tolist()]
            self._report(
                int(services[at]),
                outside.judge_surge(
                    name, direction == INBOUND, tuple(surges[at]), refs, len(of_service), first_ms, history
                ),
            )

    def judge_volumes(self, direction: int, rows: IntColumn, is_open: Mask, volume: IntColumn) -> None:
        """Compare the largest volume of one edge of each service with the largest there ever was."""
        lane, service = self.lane, self.lane.registry.service.array
        own = lane.registry.edge.array[_INSIDE[direction]][self.present[rows]]
        order = np.lexsort((np.arange(len(rows)), -volume[rows], own))
        first = np.flatnonzero(np.diff(own[order], prepend=-1))
        services, largest = own[order][first], rows[order][first]
        tenants, column = service["tenant"][services], "in_bytes_max" if direction == INBOUND else "out_bytes_max"
        usual = service[column][services]
        limits = limits_of(lane, tenants, usual, outside.volume_limit)
        burst = self._settled(services) & is_open[services] & (volume[largest] >= limits)
        for at in np.flatnonzero(burst).tolist():
            row = int(largest[at])
            _, first_ms, history = self._facts(int(services[at]))
            surge = outside.Surge(outside.VOLUME, int(volume[row]), int(usual[at]), float(limits[at]))
            detection = outside.judge_volume(self._ref(row), surge, int(self.calls[row]), first_ms, history)
            self._report(int(services[at]), detection)
        service[column][services] = self._taught(usual, volume[largest], limits, burst, tenants)

    def count_news(self) -> None:
        """Count this window for the services that met somebody new outside, or used a new port there."""
        lane = self.lane
        edge, service = lane.registry.edge.array, lane.registry.service.array
        for direction, (peers, ports) in _COUNTED.items():
            unknown = self._unknown(np.flatnonzero(self.border.mask(direction)))
            numbers = self.present[unknown]
            pairs = pair_of(edge["src"][numbers], edge["dst"][numbers]).tolist()
            strange = unknown[np.array([pair not in lane.registry.known_pairs for pair in pairs], dtype=bool)]
            ports_used = unknown[edge["port"][numbers] >= 0]
            for column, news in ((peers, strange), (ports, self._new_ports(direction, ports_used))):
                services = np.unique(edge[_INSIDE[direction]][self.present[news]])
                least = np.maximum(lane.thresholds("open_after_windows", service["tenant"][services]), 1)
                service[column][services] = np.minimum(service[column][services] + 1, _NEWS_KEPT * least)


def _distinct(pairs: IntColumn, size: int) -> IntColumn:
    """Return how many different low halves each high half below ``size`` has."""
    return np.bincount(np.unique(pairs) >> 32, minlength=size).astype(np.int64)
