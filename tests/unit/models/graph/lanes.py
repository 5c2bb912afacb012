"""Drives two or more lanes of one partition in tests: records of either, in the order they are sent."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from models.graph.logic import LOGIC_VERSION
from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.tenant_log import LaneConfig, LogRecord, Member
from tests.builders import end_of, make_lane, record_of
from tests.unit.models.graph.driving import WINDOW_MS

AS_OF_MS = 1 << 42


def live_lane(name: str, **changes: Any) -> LaneConfig:
    """Return a live lane over a source topic of its own; learns for 3 windows of 10 s, waits for nobody."""
    values = {"mode": "live", "lateness_ms": 0, "max_wait_ms": 0, "skew_ms": WINDOW_MS, **changes}
    return make_lane(name=name, members=(Member(f"{name}#1", 1),), **values)


class Lanes:
    """One machine, its log, and how far each lane's source is. Lanes are live unless given."""

    def __init__(self, *lanes: str | LaneConfig, logic: int = LOGIC_VERSION) -> None:
        made = [live_lane(lane) if isinstance(lane, str) else lane for lane in lanes]
        self.config = {lane.name: lane for lane in made}
        self.machine = Machine()
        self.log: list[LogRecord] = []
        self.logic = logic
        self.output = Output()
        self.events: dict[str, list[DriftEvent]] = defaultdict(list)
        self._next: dict[str, int] = defaultdict(int)

    def append(self, record: LogRecord) -> Output:
        """Apply a record."""
        self.log.append(record)
        output = self.machine.apply(len(self.log) - 1, record)
        self.output.extend(output)
        for event in output.events:
            self.events[event.lane].append(event)
        return output

    def record(self, lane: str, flows: Sequence[Flow], as_of_ms: int = AS_OF_MS) -> LogRecord:
        """Return the next record of a lane's source, each flow a message."""
        start = self._next[lane]
        self._next[lane] += len(flows)
        return self._own(lane, record_of(self.config[lane], 0, start, flows, as_of_ms=as_of_ms))

    def _own(self, lane: str, record: LogRecord) -> LogRecord:
        source = self.config[lane].members[0].source
        progress = tuple(msgspec.structs.replace(p, source=source) for p in record.progress)
        return msgspec.structs.replace(record, progress=progress, logic=self.logic)

    def send(self, lane: str, flows: Iterable[Flow]) -> Output:
        """Send flows of a lane in order of time."""
        return self.append(self.record(lane, sorted(flows, key=lambda flow: flow.time_ms)))

    def end(self, lane: str) -> Output:
        """End a lane's input."""
        return self.append(self._own(lane, end_of(self.config[lane], 0, self._next[lane])))

    def restart(self) -> None:
        """Go on from a state that was stored and read back."""
        self.machine = restore({name: data for name, data in take(self.machine, everything=True) if data is not None})

    def told(self, lane: str) -> list[tuple[DriftKind, str, str]]:
        """Return kind and subject of the findings a lane has opened, in order."""
        return [(e.kind, e.src, e.dst) for e in self.events[lane] if e.activity is Activity.CREATE]


def learning(windows: int = 3, **changes: Any) -> DetectionConfig:
    """Return thresholds with few learning windows and little history."""
    return DetectionConfig(learning_windows=windows, **changes)
