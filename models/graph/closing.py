"""What happens when the watermark passes: windows close in order, deadlines fire, baselines move on. Pure.

A jump of the watermark is judged in the order of event time, so that one big step and many small ones say the same.
"""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.detection import Detection
from models.drift.findings import Finding
from models.drift.scanning import as_pieces
from models.graph import beacons
from models.graph.border import border_of, judge_border, of_open_services
from models.graph.clock import END_OF_TIME_MS
from models.graph.corroboration import is_back_elsewhere, is_still_seen, tell_removed
from models.graph.cutting import columns_of, cut_tenant
from models.graph.declaring import judge_meaning
from models.graph.folding import fold_halves
from models.graph.guarding import close_guard
from models.graph.judging import judge_signals, judge_structure
from models.graph.lane import LaneState
from models.graph.logic import PRODUCERS_OWN
from models.graph.output import EXPECTED_BACK, SEEN_ELSEWHERE, WITHHELD, Output
from models.graph.persisting import learn_silence, silence_is_news_after
from models.graph.recurring import note_returns, put_off_removal, with_expected
from models.graph.registry import CALLS, NEVER, UNSEEN_MS
from models.graph.restarting import (
    Restarts,
    active_edges,
    find_restarts,
    is_restart_over,
    last_index_of,
    note_starts,
    tell_restarts,
)
from models.graph.window import WindowTable
from schemas.drift import DriftKind, EdgeRef

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FORGET_AFTER_WINDOWS = 43_200
"""Edges unseen for this many windows (30 days of minutes) are forgotten."""
_FORGET_EVERY = 64
_NO_DEADLINE = np.int64(1) << 60


def advance(lane: LaneState) -> Output:
    """Close what the lane's watermark allows and fire the deadlines it has passed."""
    output = Output()
    watermark_ms, reasons = lane.clock.advance()
    if watermark_ms is None:
        return output
    window_ms = lane.config.window_ms
    if watermark_ms >= END_OF_TIME_MS:
        output.extend(fold_halves(lane))
        clocks = [m.event_ms for m in lane.clock.members.values() if m.event_ms is not None]
        deadline_to = max(clocks, default=0) // window_ms
        # Other partitions of the log may hold the last rows: how far this one's watermark had come must not matter.
        indexes = (*lane.windows, *lane.guard.open)
        closed_to = max([lane.closed_index or 0, deadline_to, *(index + 1 for index in indexes)])
    else:
        closed_to = deadline_to = max(watermark_ms // window_ms, 0)
    if lane.closed_index is not None and closed_to <= lane.closed_index:
        return output
    output.extend(fold_halves(lane, closed_to))
    if lane.closed_index is None:
        lane.judged_index = min([closed_to, *lane.windows]) - 1
    # A loss has raised the floor already, up to where the lane stood: what it kept back counts from there.
    floor = min(lane.quiet_floor, (lane.closed_index or 0) - 1) if lane.lost else lane.quiet_floor
    judged = lane.judged_index
    incomplete = set(reasons) | ({"loss"} if lane.lost else set())
    if incomplete:
        for index in [index for index in lane.windows if index < closed_to]:
            lane.windows[index].incomplete |= incomplete
        lane.quiet_floor = max(lane.quiet_floor, closed_to - 1)
    lane.closed_index = closed_to
    lane.clock.paused = False
    lane.lost = False
    while (due := _next_index(lane, closed_to, deadline_to)) is not None:
        _judge_index(lane, due, output, is_over=due >= deadline_to)
    lane.judged_index = max(lane.judged_index, deadline_to - 1)
    if withheld := _withheld_silences(lane, floor, deadline_to) + _guarded_silences(lane, judged, deadline_to):
        output.counts[WITHHELD] += withheld
    return output


def _withheld_silences(lane: LaneState, floor: int, deadline_to: int) -> int:
    """Count silences that would have been told by now, had incomplete windows not raised the floor from ``floor``."""
    if lane.quiet_floor <= floor or not len(lane.registry):
        return 0
    told = zip(_due(lane, floor), _due(lane, lane.quiet_floor), strict=True)
    return sum(int(np.count_nonzero((before < deadline_to) & (now >= deadline_to))) for before, now in told)


def _guarded_silences(lane: LaneState, judged: int, deadline_to: int) -> int:
    """Count silences that came due after window ``judged`` and are not told: their tenant's source loses data."""
    floors = lane.guard.waits(len(lane.registry.tenants), deadline_to - 1)
    if floors is None or not len(lane.registry):
        return 0
    told = zip(_due(lane, lane.quiet_floor), _due(lane, lane.quiet_floor, floors), strict=True)
    return sum(
        int(np.count_nonzero((judged < before) & (before < deadline_to) & (now >= deadline_to))) for before, now in told
    )


def close_all(lane: LaneState, reason: str) -> Output:
    """Close every open window as incomplete and forget the clocks of the sources: their log is gone."""
    output = fold_halves(lane)
    for window in lane.windows.values():
        window.incomplete.add(reason)
    if lane.windows:
        lane.closed_index = max(lane.windows) + 1
        lane.quiet_floor = max(lane.quiet_floor, lane.closed_index - 1)
    for index in sorted(lane.windows):
        _judge_index(lane, index, output, is_over=True)
    lane.guard.drop_open()
    lane.lost = lane.clock.paused = False
    lane.clock.members = {}
    lane.clock.declare(lane.config)
    return output


def _deadlines(lane: LaneState, tenant_floors: IntColumn | None) -> tuple[IntColumn, IntColumn]:
    """Return per edge the index at whose end its sudden silence and its removal are reported."""
    drop, removal = _due(lane, lane.quiet_floor, tenant_floors)
    floor = lane.judged_index + 1
    return np.maximum(drop, floor), np.maximum(removal, floor)


def _due(lane: LaneState, quiet_floor: int, tenant_floors: IntColumn | None = None) -> tuple[IntColumn, IntColumn]:
    """Return the same as if nothing had been judged yet, and silence counted from ``quiet_floor`` on.

    Shapes:
        tenant_floors: by tenant, up to where its silence is not told; None for no such thing.
    """
    registry = lane.registry
    size = len(registry)
    edge = {name: column[:size] for name, column in registry.edge.array.items()}
    last = np.maximum(edge["last_index"], quiet_floor)
    learned = np.array([lane.has_learned(number) for number in range(len(registry.tenants))] or [False])
    tenant = edge["tenant"]
    if tenant_floors is not None:
        last = np.maximum(last, tenant_floors[tenant])
    enough = edge["windows_seen"] >= lane.thresholds("min_history", tenant)
    ripe = edge["known"] & enough & learned[tenant] & ~edge["gone"] & ~of_open_services(lane, slice(size))
    wait = _removal_wait(lane, tenant, edge["gap_max"])
    removal = np.maximum(np.maximum(last, edge["seen_elsewhere"]) + wait, edge["expected_back"])
    removal = np.where(ripe, removal, _NO_DEADLINE)
    busy = np.expm1(edge["mean"][:, CALLS]) >= lane.thresholds("min_calls", tenant) * edge["scale"]
    gap = edge["gap_max"].astype(np.int64)
    pauses = np.ones_like(gap)
    if lane.logic >= PRODUCERS_OWN:
        # An edge that pauses now and then is missed after twice its longest pause;
        # for one that pauses most of the time, silence is usual.
        age = edge["last_index"] - edge["first_seen_ms"] // lane.config.window_ms + 1
        pauses = np.where(2 * edge["windows_seen"] >= age, lane.thresholds("removed_min_windows", tenant), 1)
    steady = gap <= np.maximum(pauses, 1)
    sudden = ripe & busy & steady & ~edge["dropped"]
    drop = np.where(sudden, last + 2 * gap - 1, _NO_DEADLINE)
    if lane.logic >= PRODUCERS_OWN:
        rows = np.flatnonzero(sudden)
        drop[rows] = np.maximum(drop[rows], last[rows] + silence_is_news_after(lane, rows))
    return drop, removal


def _removal_wait(lane: LaneState, tenants: IntColumn, gap_max: IntColumn) -> IntColumn:
    """Return after how many silent windows each edge is removed."""
    silences = lane.thresholds("removed_after_silences", tenants)
    return np.maximum(lane.thresholds("removed_min_windows", tenants), silences * gap_max.astype(np.int64))


def _next_index(lane: LaneState, closed_to: int, deadline_to: int) -> int | None:
    """Return the least window index with something to judge: rows, a deadline, or a finding that ends."""
    candidates = [index for index in (*lane.windows, *lane.guard.open) if index < closed_to]
    deadlines = []
    if len(lane.registry):
        drop, removal = _deadlines(lane, lane.guard.floors(len(lane.registry.tenants), lane.judged_index))
        deadlines += [int(drop.min()), int(removal.min())]
    floor = lane.judged_index + 1
    for number, state in lane.tenants.items():
        if state.book.open:
            scope = lane.scope(lane.registry.tenants[number])
            deadlines += [max(index, floor) for index in state.book.close_indexes(scope)]
    candidates += [index for index in deadlines if index < deadline_to]
    return min(candidates, default=None)


def _judge_index(lane: LaneState, index: int, output: Output, is_over: bool) -> None:
    """Judge one window: its rows if it has any, then the silences and findings that end with it.

    Attributes:
        is_over: the input ended within this window, so what is missing from it means nothing.
    """
    detections: dict[int, list[Detection]] = defaultdict(list)
    table = lane.windows.pop(index, None)
    whole = table is not None and not table.incomplete
    if table is not None and not whole:
        lane.quiet_floor = max(lane.quiet_floor, index)
    for number, found in close_guard(lane, index, whole, is_over).items():
        detections[number] += found
    counted: set[int] = set()
    active: IntColumn | None = None
    if table is not None:
        counted, active = _close_window(lane, table, detections, output, may_drop=whole and not is_over)
    restarts: dict[int, Restarts] = {}
    if not is_over:
        _fire_deadlines(lane, index, detections, output)
        if lane.quiet_floor < index:  # else rows may be missing
            restarts = find_restarts(lane, index, active, detections)
    lane.judged_index = max(lane.judged_index, index)
    last = lane.registry.edge.array["last_index"]

    for number in sorted(lane.tenants, key=lambda n: lane.registry.tenants[n]):
        state = lane.tenants[number]
        if not detections.get(number) and not state.book.open:
            if number in counted and lane.logic >= PRODUCERS_OWN:
                state.rarity.close((index + 1) * lane.config.window_ms, {})
            continue
        tenant = lane.registry.tenants[number]
        scope = lane.scope(tenant)

        def last_index(finding: Finding, tenant: str = tenant) -> int:
            d = finding.detection
            if d.kind is DriftKind.RATE_DROP and not d.dst:
                return last_index_of(lane, tenant, d.src)
            number = lane.registry.edge_number.get((tenant, d.src, d.dst, d.port, d.protocol))
            return NEVER if number is None else int(last[number])

        def has_returned(finding: Finding, tenant: str = tenant) -> bool:
            return last_index(finding) == index or is_back_elsewhere(lane, tenant, finding.detection)

        found = as_pieces(with_expected(lane, number, index, detections.get(number, [])))
        found = tell_restarts(lane, number, index, restarts.get(number), found)
        output.events += state.book.settle(scope, index, found)
        output.events += state.book.expire(
            scope,
            index,
            is_silent=lambda finding: last_index(finding) < finding.last_evidence_index,
            returned=has_returned,
            last_contact=last_index,
            source=lane.guard.tenants.get(number),
            is_over=is_over,
        )
        if scope.judge is not None and number in counted:
            state.rarity.close((index + 1) * lane.config.window_ms, scope.judge.began)
        elif scope.judge is not None:
            state.rarity.add(scope.judge.began)
    if index % _FORGET_EVERY == 0:
        _forget(lane, index)


def _fire_deadlines(lane: LaneState, index: int, detections: dict[int, list[Detection]], output: Output) -> None:
    if not len(lane.registry):
        return
    edge = lane.registry.edge.array
    # In doubt a silence is put off to the next window, whatever else there is to judge in it.
    drop, removal = _deadlines(lane, lane.guard.waits(len(lane.registry.tenants), index))
    for kind, due, flag in (
        (DriftKind.RATE_DROP, drop, "dropped"),
        (DriftKind.REMOVED_EDGE, removal, "gone"),
    ):
        for number in np.flatnonzero(due <= index).tolist():
            identity = lane.registry.identities[number]
            if identity is None:
                continue
            lane.registry.touch(np.array([number]))
            if kind is DriftKind.RATE_DROP and put_off_removal(lane, number, identity, index):
                output.counts[EXPECTED_BACK] += 1
                edge[flag][number] = True
                continue
            if kind is DriftKind.REMOVED_EDGE:
                if is_still_seen(lane, identity, index):
                    # Told, or kept back once more, when it has been missed for as long again.
                    output.counts[SEEN_ELSEWHERE] += int(edge["seen_elsewhere"][number] <= edge["last_index"][number])
                    edge["seen_elsewhere"][number] = index
                    continue
                if put_off_removal(lane, number, identity, index):
                    output.counts[EXPECTED_BACK] += 1
                    continue
                tell_removed(lane, identity)
            edge[flag][number] = True
            detections[int(edge["tenant"][number])].append(
                structural.judge_silent(
                    kind,
                    EdgeRef(*identity[1:]),
                    silent_windows=index - int(edge["last_index"][number]),
                    usual_gap=int(edge["gap_max"][number]),
                    expected_calls=float(np.expm1(edge["mean"][number, CALLS])),
                    history=int(edge["windows_seen"][number]),
                    first_ms=(int(edge["last_index"][number]) + 1) * lane.config.window_ms,
                )
            )


def _close_window(
    lane: LaneState, table: WindowTable, detections: dict[int, list[Detection]], output: Output, may_drop: bool
) -> tuple[set[int], IntColumn]:
    """Judge a window's rows and move on what they teach.

    Returns:
        The tenants of theirs that were past learning, and the edges that are as busy as usual.
    """
    registry = lane.registry
    columns, overflow = columns_of(lane, table)
    present = columns.present
    edge = registry.edge.array
    tenant_of = edge["tenant"][present]
    learned = np.array([lane.has_learned(number) for number in range(len(registry.tenants))] or [False])
    whole = not table.incomplete
    lane.begin_close(present)
    border = border_of(lane, table.index, present, columns.chosen)
    # Scans of the edge before this window leave no trace, whether they were forgotten meanwhile or not.
    unsure = border.inbound | (edge["first_seen_ms"][present] == UNSEEN_MS)
    edge["first_seen_ms"][present[unsure & ~edge["known"][present]]] = table.index * lane.config.window_ms
    size = max(1, len(registry.tenants))
    losing = lane.guard.losing(size, table.index)
    withholding = lane.guard.withholding(size, table.index)
    teaching = lane.guard.teaching(size, table.index)
    withheld = judge_signals(
        lane, table.index, columns, border, learned[tenant_of], whole, may_drop, detections, withholding, teaching
    )
    if withheld:
        output.counts[WITHHELD] += withheld
    told = np.flatnonzero(~edge["hearsay"][present])
    of_told = columns.chosen[:, told]
    for judge in (judge_structure, judge_border, beacons.follow, judge_meaning):
        judge(lane, table.index, present[told], of_told, border.of(told), learned, detections)
    # Sorted by identity, a tenant's edges are neighbours: cutting them out costs no more with many tenants.
    bounds = [0, *(np.flatnonzero(np.diff(tenant_of)) + 1).tolist(), len(present)]
    rows_of = {int(tenant_of[a]): slice(a, b) for a, b in pairwise(bounds) if a < b}
    tenants = sorted(
        rows_of.keys() | {int(edge["tenant"][n]) for n in overflow},
        key=lambda n: registry.tenants[n],
    )
    for tenant in tenants:
        rows = rows_of.get(tenant, slice(0, 0))
        is_losing = bool(losing[tenant])
        window = cut_tenant(lane, table, tenant, rows, columns, is_learning=not learned[tenant], is_losing=is_losing)
        for number, sums in overflow.items():
            if edge["tenant"][number] == tenant:
                window.overflow[:] = sums  # of both sides: whose edges these are is not known, so none can be chosen
        output.windows.append(window)
    active = active_edges(lane, columns)
    _remember(lane, table.index, present[~border.stray])
    _drop_strays(lane, present[border.stray])
    for tenant in tenants:
        state = lane.tenant_state(tenant)
        state.closed_windows += 1
        state.edges.candidates = None
        if state.settling is not None and state.settling.close(registry, state.closed_windows):
            state.settling = None
        if state.edges.quarantine:
            registry.release([number for number, last in state.edges.quarantine if last <= table.index])
            state.edges.quarantine = [entry for entry in state.edges.quarantine if entry[1] > table.index]
    return {tenant for tenant in tenants if learned[tenant]}, active


def _remember(lane: LaneState, index: int, present: IntColumn) -> None:
    """Note that the edges of a closed window were seen; unknown ones become known."""
    edge = lane.registry.edge.array
    last = np.maximum(edge["last_index"][present], lane.quiet_floor)
    floors = lane.guard.floors(len(lane.registry.tenants), index)
    if floors is not None:
        last = np.maximum(last, np.minimum(floors[edge["tenant"][present]], index))
    note_starts(lane, index, present, last)
    longest = _removal_wait(lane, edge["tenant"][present], edge["gap_max"][present])
    gap = np.where(edge["last_index"][present] == NEVER, 1, np.minimum(index - last, longest))
    usual = edge["gap_max"][present]
    if lane.logic >= PRODUCERS_OWN:
        # A silence that was told is no habit yet: it at most doubles the usual one, else one outage hides the next.
        told = edge["gone"][present] | edge["dropped"][present]
        learn_silence(lane, present, np.where(told, 1, gap - 1))
        gap = np.where(told, np.minimum(gap, 2 * usual), gap)
        gap[told] = np.where(is_restart_over(lane, index, present[told]), 1, gap[told])
        gap = np.where(note_returns(lane, index, present, floors), 1, gap)
        fades = (edge["windows_seen"][present] + 1) % FORGET_AFTER_WINDOWS == 0
        usual = np.where(fades, np.maximum(usual // 2, 1), usual)
    edge["gap_max"][present] = np.maximum(usual, gap)
    edge["last_index"][present] = index
    edge["windows_seen"][present] += 1
    edge["dropped"][present] &= False
    edge["gone"][present] = False
    lane.registry.learn(present[~edge["hearsay"][present]])
    lane.registry.touch(present)


def _drop_strays(lane: LaneState, numbers: IntColumn) -> None:
    """Forget edges on which only strays came, so that scans and backscatter fill no state."""
    if not len(numbers):
        return
    registry = lane.registry
    registry.touch(numbers)
    held = np.zeros(len(numbers), dtype=bool)
    for window in lane.windows.values():
        held |= window.have_rows(numbers)  # judged again when that one closes
    dropped = numbers[~held].tolist()
    for number in dropped:
        lane.tenant_state(int(registry.edge.array["tenant"][number])).edges.count -= 1
        registry.forget(number)
    registry.release(dropped)


def _forget(lane: LaneState, index: int) -> None:
    size = len(lane.registry)
    registry = lane.registry
    edge = registry.edge.array
    stale = (edge["known"] | edge["hearsay"])[:size] & (edge["last_index"][:size] < index - FORGET_AFTER_WINDOWS)
    for window in lane.windows.values():
        stale &= ~window.has_rows(size)  # it is back: its window is only not closed yet
    forgotten = np.flatnonzero(stale).tolist()
    for number in forgotten:
        lane.tenants[int(edge["tenant"][number])].edges.count -= 1
        registry.forget(number)
    if forgotten:
        registry.release(forgotten)
        registry.find_known_pairs()
