"""The law: one input, any interleaving, any cuts, any re-delivery, any restart: the same windows and settled findings.

A hypothesis state machine drives the pure core as brokers, rebalances and crashes would; the oracle is a straight run.
"""

from collections import defaultdict
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftEvent
from schemas.flow import Flow
from schemas.graph import ClosedWindow
from schemas.tenant_log import LogRecord
from tests.builders import end_of, make_flow, make_lane, record_of

PARTITIONS = 3
WINDOW_MS = 10_000
LATENESS_MS = 5_000
SERVICES = ["web", "cart", "pay", "ship", "mail"]
DETECTION = DetectionConfig(learning_windows=3, open_after_windows=2, beacon_min_contacts=5, beacon_min_hours=0.01)
"""Few windows are enough for habits and clocks to show."""


def make_input(seed: int, windows: int) -> list[list[Flow]]:
    """Flows of each source partition: steady edges of two tenants, drifts, and disorder within the lateness."""
    rng = np.random.default_rng(seed)
    partitions: list[list[Flow]] = [[] for _ in range(PARTITIONS)]
    edges = [(a, b) for a in SERVICES for b in SERVICES if a < b]
    slow = edges[rng.integers(len(edges))] if rng.random() < 0.7 else None
    quiet_after = {edges[rng.integers(len(edges))]: rng.integers(4, windows)}
    for window in range(windows):
        for tenant in ("acme", "globex"):
            for edge in edges:
                if window >= quiet_after.get(edge, windows):
                    continue
                if (len(edge[1]) + window) % 4 == 0 and edge[0] == "mail":
                    continue
                latency = 1000 * (8 if edge == slow and window == windows - 3 else 1)
                for _ in range(int(rng.integers(10, 13))):
                    side = "server" if rng.random() < 0.3 else "client"
                    flow = make_flow(
                        window * WINDOW_MS + int(rng.integers(WINDOW_MS)),
                        src=edge[0],
                        dst=edge[1],
                        tenant=tenant,
                        reporter=side,
                        latency_us=latency + int(rng.integers(100)),
                        bytes_out=int(rng.integers(1000)),
                        errors=int(rng.random() < 0.02),
                    )
                    partitions[int(rng.integers(PARTITIONS))].append(flow)
        for _ in range(int(rng.integers(0, 3))):
            drift = make_flow(
                window * WINDOW_MS + int(rng.integers(WINDOW_MS)),
                src=SERVICES[rng.integers(5)],
                dst=["ext:paste", "new-a", "new-b", *SERVICES][rng.integers(8)],
                port=int(rng.integers(8080, 8083)),
            )
            partitions[int(rng.integers(PARTITIONS))].append(drift)
        # Across the border: habits that form, scans, a clock.
        for _ in range(int(rng.integers(0, 5))):
            stranger, ours = f"ext:net/{rng.integers(60)}", SERVICES[rng.integers(3)]
            is_inbound, is_refused = rng.random() < 0.7, rng.random() < 0.4
            crossing = make_flow(
                window * WINDOW_MS + int(rng.integers(WINDOW_MS)),
                src=stranger if is_inbound else ours,
                dst=ours if is_inbound else stranger,
                port=int(rng.choice([443, 443, 443, 22, 9200])),
                errors=int(is_refused),
                bytes_in=0 if is_refused else int(rng.integers(1, 1 << 22)),
                calls=int(rng.choice([1, 1, 1, 200])),
            )
            partitions[int(rng.integers(PARTITIONS))].append(crossing)
        beat = make_flow(window * WINDOW_MS + int(rng.integers(WINDOW_MS)), dst="ext:home", src="web", bytes_in=7)
        partitions[int(rng.integers(PARTITIONS))].append(beat)
    # Scans of ports and of hosts, from within and by somebody new.
    for _ in range(int(rng.integers(0, 3))):
        window, scanner = int(rng.integers(4, windows)), str(rng.choice([*SERVICES, "scanner"]))
        by_port = rng.random() < 0.5
        for number in range(int(rng.integers(10, 25))):
            target = {"port": 9_000 + number} if by_port else {"dst": f"host-{number}"}
            time_ms = window * WINDOW_MS + int(rng.integers(WINDOW_MS))
            probe = make_flow(time_ms, **{"src": scanner, "dst": SERVICES[0], **target})  # type: ignore[arg-type]
            partitions[int(rng.integers(PARTITIONS))].append(probe)
    for flows in partitions:
        flows.sort(key=lambda flow: flow.time_ms + int(rng.integers(LATENESS_MS)))
    return partitions


def settled(events: list[DriftEvent]) -> dict[str, Any]:
    """Reduce events to what is settled: per finding its settled content, later updates and its close."""
    found: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        if not event.is_early:
            content = msgspec.to_builtins(event)
            # A settled finding is a Create, or the one Update after an early Create.
            if event.activity is not Activity.CLOSE:
                for name in ("activity", "event_id", "title", "message"):
                    content.pop(name)
            found[event.finding_id].append(content)
    return dict(found)


def window_values(window: ClosedWindow) -> Any:
    """Return everything a closed window holds, as comparable values."""
    edges = window.edges
    arrays = {name: getattr(edges, name) for name in edges.__slots__}
    values = {name: a.tolist() if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    return (window.tenant, window.start_ms, window.incomplete, window.is_learning, window.overflow.tolist(), values)


class Law(RuleBasedStateMachine):
    """Feeds one input in pieces."""

    @initialize(seed=st.integers(0, 2**32 - 1), windows=st.integers(8, 16))
    def begin(self, seed: int, windows: int) -> None:
        self.flows = make_input(seed, windows)
        self.lane = make_lane(PARTITIONS, lateness_ms=LATENESS_MS, window_ms=WINDOW_MS, detection=DETECTION)
        self.fed = [0] * PARTITIONS
        self.log: list[LogRecord] = []
        self.machine = Machine()
        self.output = Output()
        self.saved: tuple[dict[str, bytes], int] | None = None
        self.chunks: dict[str, bytes] = {}

    def append(self, record: LogRecord) -> None:
        self.log.append(record)
        self.output.extend(self.machine.apply(len(self.log) - 1, record))

    def remaining(self) -> list[int]:
        return [p for p in range(PARTITIONS) if self.fed[p] < len(self.flows[p])]

    @precondition(lambda self: self.remaining())
    @rule(data=st.data(), size=st.integers(1, 400))
    def feed(self, data: st.DataObject, size: int) -> None:
        partition = data.draw(st.sampled_from(self.remaining()))
        start = self.fed[partition]
        batch = self.flows[partition][start : start + size]
        self.append(record_of(self.lane, partition, start, batch))
        self.fed[partition] += len(batch)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """A zombie, or a producer's retry, writes an old record once more."""
        self.append(data.draw(st.sampled_from(self.log)))

    @rule()
    def checkpoint(self) -> None:
        for name, chunk in take(self.machine):
            if chunk is not None:
                self.chunks[name] = chunk
        mark_clean(self.machine)
        self.saved = (dict(self.chunks), len(self.output.events))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def crash(self) -> None:
        """Start again from the last checkpoint; what it has published is published again, by the same ids."""
        assert self.saved is not None
        self.machine = restore(self.saved[0])
        again = Output()
        for offset in range(self.machine.offset + 1, len(self.log)):
            again.extend(self.machine.apply(offset, self.log[offset]))
        published = [event.event_id for event in self.output.events]
        replayed = [event.event_id for event in again.events]
        assert replayed == published[len(published) - len(replayed) :]
        self.chunks = dict(self.saved[0])
        for name, chunk in take(self.machine, everything=True):
            assert chunk is not None
            self.chunks[name] = chunk

    def teardown(self) -> None:
        if not hasattr(self, "flows"):
            return
        while self.remaining():
            partition = self.remaining()[0]
            start = self.fed[partition]
            batch = self.flows[partition][start : start + 500]
            self.append(record_of(self.lane, partition, start, batch))
            self.fed[partition] += len(batch)
        for partition in range(PARTITIONS):
            self.append(end_of(self.lane, partition, len(self.flows[partition])))
        oracle = Machine()
        straight = Output()
        log = []
        for start in range(0, max(map(len, self.flows)), 100):
            for partition, flows in enumerate(self.flows):
                if flows[start : start + 100]:
                    log.append(record_of(self.lane, partition, start, flows[start : start + 100]))
        log += [end_of(self.lane, partition, len(flows)) for partition, flows in enumerate(self.flows)]
        for offset, record in enumerate(log):
            straight.extend(oracle.apply(offset, record))
        assert [window_values(w) for w in self.output.windows] == [window_values(w) for w in straight.windows]
        assert settled(self.output.events) == settled(straight.events)
        ids = [event.event_id for event in self.output.events]
        assert len(ids) == len(set(ids))
        early = {event.finding_id for event in self.output.events if event.is_early}
        assert early <= settled(straight.events).keys()
        flows = sum(int(w.edges.measure("flows").sum() + w.edges.other_side_flows.sum()) for w in straight.windows)
        assert flows == sum(map(len, self.flows))


Law.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes; the seed says enough
)
test_any_interleaving_gives_the_same_windows_and_settled_findings = Law.TestCase
