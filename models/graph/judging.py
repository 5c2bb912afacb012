"""A closed window's rows against what is usual: signals of each edge, and the structure they make. Pure, vectorised."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.drift import baseline, statistical, structural
from models.drift.detection import Detection
from models.drift.persistence import DIRECTIONS, SLOW
from models.drift.scanning import judge_scans
from models.drift.slowness import Slowness
from models.graph.border import Border, open_services
from models.graph.corroboration import news_from_outside, peers_elsewhere
from models.graph.creeping import follow_trends
from models.graph.cutting import WindowColumns
from models.graph.lane import LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.persisting import judge_persistence, learn_persistence
from models.graph.recurring import goes_on, teaches_nothing
from models.graph.registry import INBOUND, OUTBOUND, P95, VOUCHED_EDGE, pair_of
from models.graph.slowing import judge_slowness, learn_slowness
from models.graph.thresholds import by_config, limits_of
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef, Evidence
from schemas.graph import MEASURE_INDEX

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MAX_DENIED = 1 << 40  # of one edge in one window: sums over a source's edges stay exact


def judge_signals(
    lane: LaneState,
    index: int,
    columns: WindowColumns,
    border: Border,
    learned: Mask,
    whole: bool,
    may_drop: bool,
    detections: dict[int, list[Detection]],
    withholding: Mask,
    teaching: Mask,
) -> int:
    """Compare each edge with its baseline, then move the baseline on (complete windows alone teach).

    Shapes:
        learned: of the edges. withholding, teaching: of tenants by number: whose source loses data, or may, so that a
            drop means nothing; whose rows show what is usual.

    Returns:
        How many drops of an edge's rate were kept back, because the window is incomplete or a source loses data.
    """
    withheld = 0
    edge = lane.registry.edge.array
    present, chosen, p50, p95 = columns.present, columns.chosen, columns.p50, columns.p95

    def take(name: str) -> IntColumn:
        column: IntColumn = chosen[MEASURE_INDEX[name]]
        return column

    on_time = take("flows") > 0
    errors = take("errors")
    if lane.logic >= PRODUCERS_OWN:  # a call and its reply may both tell of the same error
        errors = np.minimum(errors, take("calls"))
    values = baseline.signals_of(
        take("calls"),
        take("bytes_out") + take("bytes_in"),
        (take("bytes_out_flows") > 0) | (take("bytes_in_flows") > 0),
        errors,
        take("error_flows") > 0,
        p50,
        p95,
    )
    values[~on_time | border.stray] = np.nan
    mean, spread, history = edge["mean"][present], edge["spread"][present], edge["history"][present]
    sampled, flows = take("sampled_flows"), take("flows")
    # A record of a sample is one call that was seen, whatever it was multiplied to.
    seen, timed = (np.where(sampled > 0, np.minimum(take(n), flows), take(n)) for n in ("calls", "latency_calls"))
    scale = np.where(on_time & (seen > 0), take("calls") / np.maximum(seen, 1), edge["scale"][present])
    edge["scale"][present] = scale
    scores = baseline.scores_of(values, mean, spread, seen, scale, sampled)
    slowness = None
    if lane.logic >= PRODUCERS_OWN:
        scores = baseline.sized(scores, mean, spread, timed)
        slowness = judge_slowness(lane, index, columns, ~np.isnan(values[:, P95]), mean, history)
    sampling = np.rint(take("sampling_sum") / np.maximum(sampled, 1)).astype(np.int64)
    signals = statistical.EdgeSignals(
        values, mean, spread, scores, history, seen, timed, scale=scale, sampled=sampled, sampling=sampling
    )
    eligible = learned & on_time & edge["known"][present] & ~border.open

    def identity(row: int) -> tuple[str, str, str, int, int]:
        found = lane.registry.identities[int(present[row])]
        assert found is not None
        return found

    held = np.zeros(values.shape, dtype=bool)
    told, going_on = (np.zeros((len(values), DIRECTIONS), dtype=bool) for _ in range(2))
    if lane.logic >= PRODUCERS_OWN:
        long_mean, creeping = follow_trends(lane, present, signals, teaching if whole else None)
        signals = replace(signals, trend=long_mean, creeping=creeping)
        assert slowness is not None
        may_drops = ~withholding[edge["tenant"][present]] & (whole and may_drop)
        departures, news = judge_persistence(lane, index, present, signals, slowness, may_drops)
        signals = replace(signals, news=news)
    for config, rows in by_config(lane, edge["tenant"][present]):
        part = signals if rows is None else signals.take(rows)
        may_judge = eligible if rows is None else eligible[rows]
        if not whole:
            withheld += int(np.count_nonzero(statistical.drops(config, part) & may_judge))
        found = statistical.judge(
            config,
            part,
            may_judge,
            lambda row, rows=rows: identity(row if rows is None else int(rows[row])),  # type: ignore[misc]
            index * lane.config.window_ms,
            may_drop=may_drop,
            slow=_slow_edges(config, slowness, signals.news, rows, history),
        )
        for row, detection in found:
            at = int(row if rows is None else rows[row])
            number = int(present[at])
            if detection.kind is DriftKind.RATE_DROP and withholding[edge["tenant"][number]]:
                withheld += 1
                continue
            detections[int(edge["tenant"][number])].append(detection)
            if lane.logic >= PRODUCERS_OWN:
                departing = statistical.signals_departing(detection)
                if teaches_nothing(lane, int(edge["tenant"][number]), index, detection, int(history[at].max())):
                    held[at, departing] = True
                    told[at, statistical.directions_of(detection)] = True
                    if goes_on(lane, int(edge["tenant"][number]), index, detection):
                        going_on[at, statistical.directions_of(detection)] = True
            if detection.kind is DriftKind.RATE_DROP:
                edge["dropped"][number] = True
    if whole:
        values = np.where(held, np.nan, values)
        shows = teaching[edge["tenant"][present]]
        if slowness is not None:
            learn_slowness(lane, present, slowness, shows)
            # What an edge does now and then is its way, a departure that goes on is not: else it would hide itself.
            learn_persistence(lane, present, departures, told, shows[:, None] & ~going_on)
        if not shows.all():
            present, values, mean, spread, history = (c[shows] for c in (present, values, mean, spread, history))
        edge["mean"][present], edge["spread"][present], edge["history"][present] = baseline.learn(
            values, mean, spread, history
        )
    return withheld


def _slow_edges(
    config: DetectionConfig,
    slowness: Slowness | None,
    news: Mask | None,
    rows: IntColumn | None,
    history: npt.NDArray[np.int32],
) -> dict[int, Evidence] | None:
    """Return the evidence of edges whose calls have become slow, by their place among ``rows``."""
    if slowness is None or news is None:
        return None
    departs = slowness.departs(config.slow_call_doubt) & news[:, SLOW]
    places = np.flatnonzero(departs if rows is None else departs[rows]).tolist()
    numbers = {place: place if rows is None else int(rows[place]) for place in places}
    return {place: slowness.evidence(row, int(history[row, P95])) for place, row in numbers.items()}


def judge_structure(
    lane: LaneState,
    index: int,
    present: IntColumn,
    chosen: IntColumn,
    border: Border,
    learned: Mask,
    detections: dict[int, list[Detection]],
) -> None:
    """Unknown edges, fan-out and denials of a closed window; learning tenants only teach."""
    edge = lane.registry.edge.array
    calls = chosen[MEASURE_INDEX["calls"]] + chosen[MEASURE_INDEX["late_calls"]]
    unknown: dict[int, list[structural.EdgeFacts]] = defaultdict(list)
    is_news = learned[edge["tenant"][present]] & ~edge["known"][present] & ~_is_told_elsewhere(lane, present)
    is_news &= ~border.stray & ~border.open
    for row in np.flatnonzero(is_news).tolist():
        number = int(present[row])
        tenant = int(edge["tenant"][number])
        facts: structural.EdgeFacts | None = lane.facts(number, int(calls[row]), int(edge["first_seen_ms"][number]))
        if lane.beside and border.inbound[row] and facts is not None:
            facts = news_from_outside(lane, lane.registry.tenants[tenant], facts)
        if facts is not None:
            unknown[tenant].append(facts)
    for tenant, facts_of_tenant in unknown.items():
        detections[tenant] += structural.judge_new(facts_of_tenant)
    usual = lane.registry.service.array["fan_out_max"].copy()  # before this window teaches
    _judge_sources(lane, index, present, chosen, border, learned, detections)
    if lane.logic >= PRODUCERS_OWN:
        unsettled = set(lane.unsettled().tolist())
        for tenant, facts_of_tenant in unknown.items():
            detections[tenant] = _with_scans(lane, tenant, usual, unsettled, facts_of_tenant, detections[tenant])


def _with_scans(
    lane: LaneState,
    tenant: int,
    usual: npt.NDArray[np.int32],
    unsettled: set[int],
    unknown: list[structural.EdgeFacts],
    detections: list[Detection],
) -> list[Detection]:
    """Return a tenant's detections with its scans as one finding each."""
    registry, config = lane.registry, lane.detection(lane.registry.tenants[tenant])

    def usual_of(service: str) -> int:
        return int(usual[registry.service_number[tenant, service]])

    def limit_of(service: str) -> float:
        if registry.service_number[tenant, service] in unsettled:
            return math.inf
        return structural.fan_out_limit(config, usual_of(service))

    is_burst = [detection.kind is DriftKind.FAN_OUT_BURST for detection in detections]
    bursts = [detection for detection, burst in zip(detections, is_burst, strict=True) if burst]
    others = [detection for detection, burst in zip(detections, is_burst, strict=True) if not burst]
    return [*others, *judge_scans(unknown, bursts, usual_of, limit_of)]


def _is_told_elsewhere(lane: LaneState, present: IntColumn) -> Mask:
    """Say of which unknown edges another lane tells, or has told.

    Another lane may have an edge before this one, and this one have another edge of the same two services before it:
    that they met is this lane's news, and may have been told early, whichever of their edges closes first.
    """
    edge, known = lane.registry.edge.array, lane.registry.known_pairs
    vouched = edge["vouched"][present]
    elsewhere: Mask = vouched > 0
    for row in np.flatnonzero((vouched == VOUCHED_EDGE) & ~edge["known"][present]).tolist():
        number = present[row]
        elsewhere[row] = (int(edge["src"][number]) << 32 | int(edge["dst"][number])) in known
    return elsewhere


def _judge_sources(
    lane: LaneState,
    index: int,
    present: IntColumn,
    chosen: IntColumn,
    border: Border,
    learned: Mask,
    detections: dict[int, list[Detection]],
) -> None:
    registry = lane.registry
    edge, service = registry.edge.array, registry.service.array
    src, dst = edge["src"][present], edge["dst"][present]
    # Callers from outside knock at every door: only one that gets into what is not open to them fans out.
    ordinary = ~border.inbound & ~border.stray
    if border.inbound.any():
        ordinary |= ~border.unanswered & ~open_services(lane, INBOUND)[dst]
    pairs = np.unique(pair_of(src, dst)[ordinary])
    callers, peers = np.unique(pairs >> 32, return_counts=True)
    sources = np.unique(src)
    fan_out = np.zeros(len(registry.services), dtype=np.int64)
    fan_out[callers] = peers
    denied = np.zeros(len(registry.services), dtype=np.int64)
    counted = np.flatnonzero(~border.inbound)
    np.add.at(denied, src[counted], np.minimum(chosen[MEASURE_INDEX["denied"]][counted], _MAX_DENIED))
    tenants = service["tenant"][sources]
    judged = learned[tenants] & service["known"][sources] & ~np.isin(sources, lane.unsettled())
    habit = open_services(lane, OUTBOUND)[sources] & (lane.logic >= PRODUCERS_OWN)
    for kind, observed, usual_name, limit in (
        (DriftKind.FAN_OUT_BURST, fan_out[sources], "fan_out_max", structural.fan_out_limit),
        (DriftKind.DENIED_BURST, denied[sources], "denied_max", structural.denied_limit),
    ):
        usual = service[usual_name][sources]
        limits = limits_of(lane, tenants, usual, limit)
        burst = judged & (observed >= limits)
        for row in np.flatnonzero(burst).tolist():
            number, tenant = int(sources[row]), int(tenants[row])
            edges, seen = present[np.flatnonzero(ordinary & (src == number))], int(observed[row])
            if kind is DriftKind.FAN_OUT_BURST and lane.beside:
                edges = _without_peers_of_others(lane, index, number, edges)
                seen = len(np.unique(edge["dst"][edges]))
                if seen < limits[row]:
                    burst[row] = False
                    continue
            facts = _source_facts(lane, index, number, seen, int(usual[row]), edges)
            detections[tenant].append(structural.judge_source(kind, facts))
        # What was an alarm teaches nothing, so that a burst does not make the next one normal; but whoever meets
        # strangers by habit is told of once, not day by day.
        taught = np.where(burst, np.where(habit, limits.astype(np.int64), usual), observed)
        teaches = taught > usual
        service[usual_name][sources[teaches]] = taught[teaches]


def _without_peers_of_others(lane: LaneState, index: int, src: int, edges: IntColumn) -> IntColumn:
    """Leave out a source's edges to peers that are new to this lane alone: another one knew them before this window.

    Peers that an early burst counts are never among them: those nobody vouched for.
    """
    edge, names = lane.registry.edge.array, lane.registry.services
    usual = peers_elsewhere(lane, src, index * lane.config.window_ms)
    others = (edge["vouched"][edges] > 0) & ~edge["known"][edges]
    others &= np.array([names[dst][1] in usual for dst in edge["dst"][edges].tolist()], dtype=bool)
    counted = np.unique(edge["dst"][edges][~others])
    kept: IntColumn = edges[~others | np.isin(edge["dst"][edges], counted)]
    return kept


def _source_facts(
    lane: LaneState, index: int, number: int, observed: int, usual: int, edges: IntColumn
) -> structural.SourceFacts:
    tenant, name = lane.registry.services[number]
    pairs = {i[1:3] for i in (lane.registry.identities[e] for e in edges.tolist()) if i is not None}
    refs = tuple(sorted(EdgeRef(src, dst) for src, dst in pairs))
    return structural.SourceFacts(
        src=name,
        observed=observed,
        usual_max=usual,
        edges=refs,
        edges_total=len(refs),
        first_ms=index * lane.config.window_ms,
        history=lane.tenants[tenant].closed_windows,
    )
