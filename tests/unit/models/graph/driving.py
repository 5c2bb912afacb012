"""Drives the pure core in tests: one `tenant-log` partition fed the short way."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from models.graph.logic import LOGIC_VERSION
from models.graph.machine import TENANT_SETTINGS, Machine
from models.graph.output import Output
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.graph import MEASURE_INDEX, ClosedWindow
from schemas.ids import end_position, position_of
from schemas.inventory import INVENTORY
from schemas.tenant_log import ACTIVE, Control, LaneConfig, LogRecord, Progress, SourceLoss
from tests.builders import SOURCE, end_of, make_flow, make_lane, record_of

WINDOW_MS = 10_000
AS_OF_MS = 1 << 42
DETECTION = DetectionConfig(learning_windows=3)


class Feed:
    """One machine and the log it has read; keeps offsets of source partitions."""

    def __init__(self, lane: LaneConfig | None = None) -> None:
        self.lane = make_lane() if lane is None else lane
        self.machine = Machine()
        self.log: list[LogRecord] = []
        self.next_offset: dict[int, int] = {}
        self.output = Output()
        self.logic = LOGIC_VERSION
        self.next_control = 0

    def append(self, record: LogRecord) -> Output:
        """Apply a record and return what this one brought about."""
        record = msgspec.structs.replace(record, logic=self.logic)
        self.log.append(record)
        output = self.machine.apply(len(self.log) - 1, record)
        self.output.extend(output)
        return output

    def send(
        self,
        flows: Sequence[Flow],
        partition: int = 0,
        as_of_ms: int = AS_OF_MS,
        sampling: int = 1,
        **marks: Sequence[int],
    ) -> Output:
        """Send flows of a source partition, one message each. ``marks``: columns that only own formats bring."""
        start = self.next_offset.get(partition, 0)
        self.next_offset[partition] = start + len(flows)
        record = record_of(self.lane, partition, start, flows, as_of_ms=as_of_ms, sampling=sampling, marks=marks)
        return self.append(record)

    def lose(
        self, time_ms: int, count: int = 5, host: str = "n1", tenant: str = "acme", kind: str = "lost_events"
    ) -> Output:
        """Send one message by which the source says that it lost records."""
        start = self.next_offset.get(0, 0)
        self.next_offset[0] = start + 1
        loss = SourceLoss(position_of(start, 0), tenant, kind, host, count, time_ms)
        progress = Progress(SOURCE, 0, end_position(start - 1), end_position(start), (), ACTIVE)
        return self.append(
            LogRecord(worker="test", as_of_ms=AS_OF_MS, progress=(progress,), lane=self.lane, losses=(loss,))
        )

    def state(
        self,
        partition: int = 0,
        state: int = ACTIVE,
        as_of_ms: int = AS_OF_MS,
        clocks: tuple[tuple[str, int], ...] = (),
    ) -> Output:
        """Send a statement of a source partition."""
        at = end_position(self.next_offset.get(partition, 0) - 1)
        progress = Progress(SOURCE, partition, at, at, clocks, state)
        return self.append(LogRecord(worker="test", as_of_ms=as_of_ms, progress=(progress,), lane=self.lane))

    def end(self, partition: int = 0) -> Output:
        """End a source partition's input."""
        return self.append(end_of(self.lane, partition, self.next_offset.get(partition, 0)))

    def control(
        self,
        value: bytes,
        tenant: str = "acme",
        offset: int | None = None,
        kind: str = TENANT_SETTINGS,
        name: str = "detection",
    ) -> Output:
        """Send a control: a tenant's settings, or another kind; at an offset, or the next one."""
        offset = self.next_control if offset is None else offset
        self.next_control = max(self.next_control, offset + 1)
        position = position_of(offset, 0)
        progress = Progress("drift-controls#1", 0, end_position(offset - 1), end_position(offset))
        control = Control(tenant, kind, name, value, position)
        return self.append(LogRecord(worker="test", as_of_ms=AS_OF_MS, progress=(progress,), controls=(control,)))

    def inventory(self, document: dict[str, Any] | None, name: str = "main", tenant: str = "acme") -> Output:
        """Send a document of a tenant's inventory, or take it away."""
        value = b"" if document is None else msgspec.json.encode(document)
        return self.control(value, tenant, kind=INVENTORY, name=name)


def in_window(index: int, count: int = 1, **changes: Any) -> list[Flow]:
    """Return ``count`` flows alike, spread over a window."""
    return [make_flow(index * WINDOW_MS + number * WINDOW_MS // count, **changes) for number in range(count)]


def usual(windows: Iterable[int], count: int = 12, **changes: Any) -> list[Flow]:
    """Return the same traffic in every window."""
    values: dict[str, Any] = {"latency_us": 10_000, "errors": 0, "denied": 0, "bytes_out": 1_000, **changes}
    return [flow for index in windows for flow in in_window(index, count, **values)]


def judge(flows: Iterable[Flow], **detection: Any) -> Output:
    """Return what a whole input gives, fed in order of event time, a window a record."""
    config = msgspec.structs.replace(DETECTION, **detection)
    feed = Feed(make_lane(lateness_ms=0, detection=config))
    by_window: dict[int, list[Flow]] = {}
    for flow in flows:
        by_window.setdefault(flow.time_ms // WINDOW_MS, []).append(flow)
    for index in sorted(by_window):
        feed.send(sorted(by_window[index], key=lambda flow: flow.time_ms))
    feed.end()
    return feed.output


def story(events: Iterable[DriftEvent], kind: DriftKind | None = None) -> list[tuple[DriftKind, str, int, str]]:
    """Return ``(kind, activity, window index, close reason)`` of events, early Creates as ``early``."""
    return [
        (e.kind, "early" if e.is_early else e.activity.name.lower(), e.window_start_ms // WINDOW_MS, e.close_reason)
        for e in events
        if kind is None or e.kind is kind
    ]


def created(output: Output) -> list[tuple[DriftKind, str, str, int]]:
    """Return kind, subject and window index of all findings, in order."""
    return [
        (e.kind, e.src, e.dst, e.window_start_ms // WINDOW_MS) for e in output.events if e.activity is Activity.CREATE
    ]


def total(windows: Iterable[ClosedWindow], name: str) -> int:
    """Return a measure summed over edges and windows, overflow included."""
    return sum(int(w.edges.measure(name).sum()) + int(w.overflow[MEASURE_INDEX[name]]) for w in windows)


def records_in(windows: Iterable[ClosedWindow]) -> int:
    """Return how many on-time records closed windows account for, of both sides."""
    windows = list(windows)
    return total(windows, "flows") + sum(int(w.edges.other_side_flows.sum()) for w in windows)
