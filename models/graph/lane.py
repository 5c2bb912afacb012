"""One lane of one partition: rows are folded into open windows, and the watermark closes them. Pure, deterministic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from models.drift import structural
from models.drift.findings import FindingBook, Scope
from models.graph.admission import TenantEdges, admit
from models.graph.clock import LaneClock
from models.graph.output import Output, RowDeadLetter
from models.graph.registry import Registry, distinct
from models.graph.taken import TakenOrigins
from models.graph.window import WindowTable
from schemas.dead_letter import Reason
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind, EdgeRef
from schemas.flow import MAX_MEASURE, SIDE_SERVER
from schemas.tenant_log import ORIGIN, EdgeIdentity, LaneConfig, LogRecord, unpack_column, unpack_rows

IntColumn = npt.NDArray[np.int64]
DAY_MS = 86_400_000
MAX_OPEN_WINDOWS = 512
"""Windows open at once; rows beyond are folded into the nearest one. Only hostile clocks come near it."""
MAX_CALLS = 1 << 32
MAX_TIME_MS = 1 << 43
"""As schemas/flow.py bounds them: the year 2248, and more calls than one record can stand for."""
NO_LIMIT = (1 << 63) - 1
_BEYOND_ANY_BURST = 1 << 40
_MEASURED = ("errors", "denied", "bytes_out", "bytes_in", "packets_out", "packets_in", "latency_us")


@dataclass(slots=True)
class TenantState:
    """One tenant in one lane.

    Attributes:
        closed_windows: windows with traffic that have closed; the tenant learns until it has enough.
        detection: the tenant's own thresholds, from its controls; None takes the lane's.
    """

    closed_windows: int = 0
    edges: TenantEdges = field(default_factory=TenantEdges)
    book: FindingBook = field(default_factory=FindingBook)


class LaneState:
    """Registry, open windows, tenants and clock of a lane.

    Attributes:
        closed_index: windows with a smaller index are closed; None before the first watermark.
        judged_index: deadlines up to the end of this window have fired.
        quiet_floor: silence before the end of this window counts for nothing: records may be missing.
    """

    def __init__(self, config: LaneConfig) -> None:
        self.config = config
        self.clock = LaneClock(config)
        self.clock.declare(config)
        self.registry = Registry()
        self.windows: dict[int, WindowTable] = {}
        self.tenants: dict[int, TenantState] = {}
        self.closed_index: int | None = None
        self.judged_index = -1
        self.quiet_floor = -1
        self.detection_of: dict[str, DetectionConfig] = {}
        self.lost = False

    def declare(self, config: LaneConfig) -> None:
        """Take over a newer declaration. The window length stays: closed windows are cut by it."""
        config = msgspec.structs.replace(config, window_ms=self.config.window_ms)
        self.config = config
        self.clock.declare(config)

    def tenant_state(self, number: int) -> TenantState:
        """Return a tenant's state in this lane."""
        state = self.tenants.get(number)
        if state is None:
            state = self.tenants[number] = TenantState()
        return state

    def detection(self, tenant: str) -> DetectionConfig:
        """Return the thresholds in force for a tenant."""
        return self.detection_of.get(tenant, self.config.detection)

    def thresholds(self, name: str, tenants: IntColumn) -> IntColumn:
        """Return a whole-number threshold as it is in force for each of ``tenants`` (numbers)."""
        if not self.detection_of:
            return np.full(len(tenants), getattr(self.config.detection, name), dtype=np.int64)
        by_tenant = [getattr(self.detection(tenant), name) for tenant in self.registry.tenants] or [0]
        return np.array(by_tenant, dtype=np.int64)[tenants]

    def scope(self, tenant: str) -> Scope:
        """Return whose findings these are."""
        return Scope(tenant, self.config.name, self.config.generation, self.config.window_ms, self.detection(tenant))

    def has_learned(self, number: int) -> bool:
        """Say whether a tenant is past its learning windows."""
        state = self.tenants.get(number)
        return (
            state is not None and state.closed_windows >= self.detection(self.registry.tenants[number]).learning_windows
        )

    # -- rows ------------------------------------------------------------------------------------------------------

    def fold(self, record: LogRecord, applied: int, taken: TakenOrigins) -> Output:
        """Fold the rows of a record beyond the applied coordinate; return early detections and refused rows.

        Rows that were dead letters once are folded if they are not yet among ``taken``, and are then.
        """
        assert record.rows is not None
        output = Output()
        columns = unpack_rows(record.rows)
        good = columns["position"] > applied
        if record.origin is not None:
            columns[ORIGIN] = unpack_column(record.rows.columns[ORIGIN], record.rows.count)
            good = taken.fresh(record.origin, columns[ORIGIN], good)
        output.counts["repeated"] += int(len(good) - good.sum())
        good = self._refuse(record, columns, good, output)
        whole = bool(good.all())
        if record.origin is not None:
            # They count among on time, late and skewed too: those, without these, and the dead, are the input.
            output.counts["retaken"] += int(good.sum())
            taken.add(record.origin, columns.pop(ORIGIN)[good])
        if not whole:
            columns = {name: column[good] for name, column in columns.items()}
        if not len(columns["position"]):
            return output
        times = self._believed_times(record, columns)
        codes = columns["edge"]
        edges = record.rows.edges
        numbers, is_new = self._numbers(edges, None if whole else codes)
        index = times // self.config.window_ms
        index, late = self._place(index, columns)
        late_rows = int(np.count_nonzero(late))
        output.counts["late"] += late_rows
        skewed_rows = int(np.count_nonzero((columns["skewed"] > 0) & ~late))
        output.counts["skewed"] += skewed_rows
        output.counts["on_time"] += len(late) - late_rows - skewed_rows
        self._note_first_seen(numbers, codes, times)
        capacity = self.registry.edge.capacity
        touched = distinct(index)
        if len(touched) == 1:
            self._window(touched[0]).fold(columns, codes, numbers, late if late_rows else None, capacity)
        else:
            for value in touched:
                rows = np.flatnonzero(index == value)
                part = {name: column[rows] for name, column in columns.items()}
                self._window(value).fold(part, codes[rows], numbers, late[rows] if late_rows else None, capacity)
        if self.closed_index is not None:
            self._early(output, edges, numbers, is_new, codes, times, index, columns)
        return output

    def _refuse(
        self, record: LogRecord, columns: dict[str, IntColumn], good: npt.NDArray[np.bool_], output: Output
    ) -> npt.NDArray[np.bool_]:
        """Dead-letter rows that cannot be folded; what they would break is checked before anything is changed."""
        assert record.rows is not None
        if not len(good):
            return good
        latest_ms = NO_LIMIT if record.append_time else record.as_of_ms + DAY_MS
        bounds = {
            "edge": (0, len(record.rows.edges) - 1),
            "calls": (1, MAX_CALLS),
            "time_ms": (0, MAX_TIME_MS),
            **dict.fromkeys(_MEASURED, (-1, MAX_MEASURE)),
        }
        # Nearly every record is sound: two extremes a column say so without a mask.
        outside = [n for n, (low, high) in bounds.items() if columns[n].min() < low or columns[n].max() > high]
        if not outside and columns["time_ms"].max() <= latest_ms:
            return good
        broken = np.zeros(len(good), dtype=bool)
        for name in outside:
            broken |= (columns[name] < bounds[name][0]) | (columns[name] > bounds[name][1])
        future = columns["time_ms"] > latest_ms
        for mask, reason, detail in (
            (broken & good, Reason.STATE_MACHINE, "a value is outside its bounds"),
            (future & good & ~broken, Reason.FUTURE, "more than a day ahead of the log's clock"),
        ):
            progress = record.progress[0]
            source, partition = record.origin or (progress.source, progress.partition)
            positions = columns["position" if record.origin is None else ORIGIN][mask].tolist()
            output.dead += [RowDeadLetter(source, partition, position, reason, detail) for position in positions]
            # A dead letter that is replayed and refused again was counted where it became one.
            output.counts["dead" if record.origin is None else "dead_again"] += len(positions)
        return good & ~broken & ~future

    def _believed_times(self, record: LogRecord, columns: dict[str, IntColumn]) -> IntColumn:
        """Fold records ahead of the log's clock at that clock, marked ``skewed``; ingest did so for LogAppendTime."""
        times = columns["time_ms"]
        if record.append_time or self.config.mode != "live":
            return times
        ahead = times > record.as_of_ms + self.config.skew_ms
        if ahead.any():
            columns["skewed"] = np.where(ahead, 1, columns["skewed"])
            times = np.where(ahead, record.as_of_ms, times)
        return times

    def _numbers(self, edges: Sequence[EdgeIdentity], used: IntColumn | None) -> tuple[IntColumn, list[int]]:
        """Return edge numbers by code, and the codes that are new."""
        number_of = self.registry.edge_number.get
        found = self.registry.numbers_of(edges)
        new: list[int] = []
        missing = np.flatnonzero(found < 0)
        if len(missing):
            wanted = range(len(edges)) if used is None else np.unique(used).tolist()
            if used is not None:
                missing = missing[np.isin(missing, used)]
            for code in missing.tolist():
                identity = edges[code]
                again = number_of(identity)
                if again is not None:
                    found[code] = again
                    continue
                state = self.tenant_state(self.registry.tenant(identity[0])).edges
                cap = self.detection(identity[0]).max_edges_per_tenant
                found[code], is_new = admit(self.registry, state, identity, cap, self.windows)
                if is_new:
                    new.append(code)
            if new:
                # An admission can push out another edge of this very record: look again.
                overflow = {t: s.edges.overflow for t, s in self.tenants.items() if s.edges.overflow is not None}
                if overflow:
                    for code in wanted:
                        if number_of(edges[code]) is None:
                            found[code] = overflow[self.registry.tenant_number[edges[code][0]]]
                    new = [code for code in new if edges[code] in self.registry.edge_number]
        return np.maximum(found, 0), new

    def _place(self, index: IntColumn, columns: dict[str, IntColumn]) -> tuple[IntColumn, npt.NDArray[np.bool_]]:
        """Return the window index each row is folded into, and which rows are late."""
        late = np.zeros(len(index), dtype=bool)
        if self.closed_index is not None:
            late = index < self.closed_index
            if late.any():
                index = np.maximum(index, self.closed_index)
        fresh = [value for value in distinct(index) if value not in self.windows]
        if len(self.windows) + len(fresh) > MAX_OPEN_WINDOWS:
            allowed = sorted([*self.windows, *fresh[: max(0, MAX_OPEN_WINDOWS - len(self.windows))]])
            slot = np.clip(np.searchsorted(allowed, index), 0, len(allowed) - 1)
            nearest = np.asarray(allowed, dtype=np.int64)[slot]
            columns["skewed"] = np.where(nearest != index, 1, columns["skewed"])
            index = nearest
        return index, late

    def _window(self, index: int) -> WindowTable:
        window = self.windows.get(index)
        if window is None:
            window = self.windows[index] = WindowTable(index)
            if self.lost:
                window.incomplete.add("loss")
        return window

    def _note_first_seen(self, numbers: IntColumn, codes: IntColumn, times: IntColumn) -> None:
        columns = self.registry.edge.array
        unknown = ~columns["known"][numbers]
        if unknown.any():
            rows = np.flatnonzero(unknown[codes])
            np.minimum.at(columns["first_seen_ms"], numbers[codes[rows]], times[rows])
            self.registry.touch(numbers[codes[rows]])

    # -- early detections ------------------------------------------------------------------------------------------

    def _early(
        self,
        output: Output,
        edges: Sequence[EdgeIdentity],
        numbers: IntColumn,
        is_new: list[int],
        codes: IntColumn,
        times: IntColumn,
        index: IntColumn,
        columns: dict[str, IntColumn],
    ) -> None:
        """Raise what no record still to come can undo: unknown edges, bursts far beyond any limit still possible."""
        candidates = [c for c in is_new if self._fires_early(self.registry.tenant_number[edges[c][0]])]
        order = np.argsort(codes, kind="stable") if candidates else codes[:0]
        starts = np.searchsorted(codes[order], candidates)
        ends = np.searchsorted(codes[order], candidates, side="right")
        for code, start, end in zip(candidates, starts.tolist(), ends.tolist(), strict=True):
            identity = edges[code]
            tenant = self.registry.tenant_number[identity[0]]
            rows = order[start:end]
            at = rows[np.argmin(times[rows])]
            facts = self.facts(int(numbers[code]), int(columns["calls"][rows].sum()), int(times[at]))
            state = self.tenants[tenant]
            scope = self.scope(identity[0])
            for detection in structural.judge_new([facts]):
                event = state.book.raise_early(scope, int(index[at]), detection, int(times[at]))
                if event is not None:
                    output.events.append(event)
            self._early_fan_out(output, tenant, int(numbers[code]), int(index[at]), int(times[at]))
        denied = columns["denied"] > 0
        if denied.any():
            # Certain are refusals that the client reported on time: its report is the one chosen, whatever still comes.
            assert self.closed_index is not None
            denied &= (columns["side"] != SIDE_SERVER) & (times >= self.closed_index * self.config.window_ms)
        if denied.any():
            self._early_denied(output, numbers, codes[denied], times[denied], index[denied], columns["denied"][denied])

    def _fires_early(self, tenant: int) -> bool:
        state = self.tenants.get(tenant)
        cap = self.detection(self.registry.tenants[tenant]).max_edges_per_tenant
        return state is not None and self.has_learned(tenant) and state.edges.count * 2 <= cap

    def facts(self, number: int, calls: int, first_ms: int) -> structural.EdgeFacts:
        """Return what a structural rule may know of an unknown edge."""
        identity = self.registry.identities[number]
        assert identity is not None
        edge, service = self.registry.edge.array, self.registry.service.array
        src, dst = int(edge["src"][number]), int(edge["dst"][number])
        return structural.EdgeFacts(
            ref=EdgeRef(*identity[1:]),
            src_known=bool(service["known"][src]),
            dst_known=bool(service["known"][dst]),
            pair_known=(src << 32 | dst) in self.registry.known_pairs,
            calls=calls,
            first_ms=first_ms,
            history=self.tenants[int(edge["tenant"][number])].closed_windows,
        )

    def _early_fan_out(self, output: Output, tenant: int, number: int, index: int, time_ms: int) -> None:
        edge, service = self.registry.edge.array, self.registry.service.array
        src = int(edge["src"][number])
        if not service["known"][src]:
            return
        peers = self._window(index).new_peers.setdefault(src, set())
        peers.add(int(edge["dst"][number]))
        config = self.detection(self.registry.tenants[tenant])
        usual = int(service["fan_out_max"][src])
        if len(peers) < self._certain_limit(index, structural.fan_out_limit, config, usual):
            return
        names = self.registry.services
        refs = tuple(sorted(EdgeRef(names[src][1], names[peer][1]) for peer in peers))
        facts = structural.SourceFacts(
            names[src][1], len(peers), usual, refs, len(refs), time_ms, self.tenants[tenant].closed_windows
        )
        self._raise_burst(output, tenant, DriftKind.FAN_OUT_BURST, facts, index, time_ms)

    def _certain_limit(
        self, index: int, limit: Callable[[DetectionConfig, int], float], config: DetectionConfig, usual: int
    ) -> float:
        """Return the limit that a burst of window ``index`` has to reach whatever is still to come.

        Earlier windows that have not closed, rows or not, may raise the usual maximum: one step each, up to the limit.
        """
        assert self.closed_index is not None
        worst = usual
        for _ in range(index - self.closed_index):
            worst = int(limit(config, worst))
            if worst > _BEYOND_ANY_BURST:
                break
        return limit(config, worst)

    def _early_denied(
        self,
        output: Output,
        numbers: IntColumn,
        codes: IntColumn,
        times: IntColumn,
        index: IntColumn,
        denied: IntColumn,
    ) -> None:
        edge, service = self.registry.edge.array, self.registry.service.array
        sums: dict[tuple[int, int], tuple[int, int]] = {}
        sources = edge["src"][numbers[codes]].tolist()
        for src, at, count, time_ms in zip(sources, index.tolist(), denied.tolist(), times.tolist(), strict=True):
            before, first_ms = sums.get((src, at), (0, time_ms))
            sums[src, at] = before + count, min(first_ms, time_ms)
        for (src, at), (count, time_ms) in sums.items():
            tenant = int(service["tenant"][src])
            if not service["known"][src] or not self._fires_early(tenant):
                continue
            window = self._window(at)
            total = window.denied_by_source[src] = window.denied_by_source.get(src, 0) + count
            config = self.detection(self.registry.tenants[tenant])
            usual = int(service["denied_max"][src])
            if total < self._certain_limit(at, structural.denied_limit, config, usual):
                continue
            name = self.registry.services[src][1]
            facts = structural.SourceFacts(name, total, usual, (), 0, time_ms, self.tenants[tenant].closed_windows)
            self._raise_burst(output, tenant, DriftKind.DENIED_BURST, facts, at, time_ms)

    def _raise_burst(
        self, output: Output, tenant: int, kind: DriftKind, facts: structural.SourceFacts, index: int, time_ms: int
    ) -> None:
        scope = self.scope(self.registry.tenants[tenant])
        detection = structural.judge_source(kind, facts)
        event = self.tenants[tenant].book.raise_early(scope, index, detection, time_ms)
        if event is not None:
            output.events.append(event)
