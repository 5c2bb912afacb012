"""Halves of calls: no cut of the log into records and no restart changes the state; plain rules give the same rows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.flow import Flow
from schemas.ids import end_position
from schemas.tenant_log import ACTIVE, LaneConfig, LogRecord, Progress
from tests.builders import SOURCE, end_of, make_flow, make_lane, record_of
from tests.halves import Half, client_half, server_half
from tests.property.test_law import settled, window_values

WINDOW_MS = 10_000
NEVER_LEARNED = 1_000_000
Step = Half | int
"""A row, or the index before which windows close from here on."""
Edge = tuple[str, str, str]


def draw_steps(seed: int, size: int) -> list[Step]:
    """Halves of few calls, so that repeats and fans are common; other rows; a clock that moves on now and then."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    closed = 0
    for _ in range(size):
        if rng.random() < 0.06:
            closed += int(rng.integers(1, 3))
            steps.append(closed)
            continue
        time_ms = int((closed + rng.integers(-1, 3)) * WINDOW_MS + rng.integers(WINDOW_MS))
        values: dict[str, Any] = {
            "tenant": ("acme", "globex")[int(rng.integers(2))],
            "calls": int(rng.integers(1, 9)),
            "bytes_out": int(rng.integers(100)),
            "latency_us": int(rng.integers(1_000)),
            "denied": int(rng.random() < 0.1),
        }
        key = int(rng.integers(closed * 2, closed * 2 + 12))
        sort = rng.random()
        if sort < 0.4:
            half = client_half(key, max(0, time_ms), src=f"a{rng.integers(3)}", guess=f"b{rng.integers(3)}", **values)
        elif sort < 0.8:
            half = server_half(key, max(0, time_ms), dst=f"b{rng.integers(4)}", **values)
        else:
            half = Half(make_flow(max(0, time_ms), src=f"a{rng.integers(3)}", dst=f"b{rng.integers(3)}", **values))
        steps.append(half)
    return steps


def log_of(lane: LaneConfig, steps: list[Step], longest: int, seed: int) -> list[LogRecord]:
    """Cut rows between two moves of the clock into records of random lengths."""
    rng = np.random.default_rng(seed)
    log: list[LogRecord] = []
    pending: list[Half] = []
    sent = 0

    def cut(everything: bool) -> None:
        nonlocal sent
        while pending and (everything or len(pending) >= longest):
            part = pending[: int(rng.integers(1, longest + 1))]
            del pending[: len(part)]
            record = record_of(lane, 0, sent, [h.flow for h in part], marks={"pair": [h.pair for h in part]})
            progress = msgspec.structs.replace(record.progress[0], clocks=())
            log.append(msgspec.structs.replace(record, progress=(progress,)))
            sent += len(part)

    for step in steps:
        if isinstance(step, Half):
            pending.append(step)
            continue
        cut(everything=True)
        at = end_position(sent - 1)
        progress = Progress(SOURCE, 0, at, at, (("host", step * WINDOW_MS),), ACTIVE)
        log.append(LogRecord("test", 1 << 42, (progress,), lane, logic=log[0].logic if log else 3))
    cut(everything=True)
    return [*log, end_of(lane, 0, sent)]


def state_of(machine: Machine) -> dict[str, bytes | None]:
    """Return the state without what counts records."""
    offset, machine.offset = machine.offset, 0
    try:
        return dict(take(machine, everything=True))
    finally:
        machine.offset = offset


def run(log: list[LogRecord], restarts: np.random.Generator | None = None) -> tuple[Output, list[dict[str, Any]]]:
    """Apply a log; return what it brought about and the states at moves of the clock."""
    machine, output, states = Machine(), Output(), []
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
        if restarts is not None and restarts.random() < 0.1:
            machine = restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})
        if record.rows is None:
            states.append(state_of(machine))
    return output, states


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 150),
    bound=st.sampled_from([0, 1, 3, 10, 200_000]),
    longest=st.integers(1, 60),
    learning=st.sampled_from([0, 1, NEVER_LEARNED]),
)
@settings(max_examples=30, deadline=None)
def test_cuts_and_restarts_change_nothing(seed: int, size: int, bound: int, longest: int, learning: int) -> None:
    steps = draw_steps(seed, size)
    detection = DetectionConfig(learning_windows=learning, max_pending_pairs=bound, denied_min=2)
    lane = make_lane(lateness_ms=0, detection=detection)
    straight, states = run(log_of(lane, steps, 1, seed))
    cut, states_of_cut = run(log_of(lane, steps, longest, seed + 1), np.random.default_rng(seed))
    if learning == NEVER_LEARNED:  # early events, and what is kept for them, say what a record brought so far
        assert states == states_of_cut
    assert [window_values(w) for w in straight.windows] == [window_values(w) for w in cut.windows]
    assert settled(straight.events) == settled(cut.events)
    assert straight.counts == cut.counts


# -- plain rules -------------------------------------------------------------------------------------------------------


@dataclass
class Rules:
    """What docs/adr/0009 says, one half after the other. Rows that count: ``(edge, window, side, calls, is_late)``."""

    bound: int
    closed: int = 0
    waiting: dict[tuple[str, int, str], list[Flow]] = field(default_factory=dict)
    joined: dict[tuple[str, int], tuple[Flow, str]] = field(default_factory=dict)
    rows: list[tuple[Edge, int, str, int, bool]] = field(default_factory=list)

    def window_of(self, flow: Flow) -> int:
        return flow.time_ms // WINDOW_MS

    def count(self, flow: Flow, src: str, dst: str, like: Flow | None = None, calls: int | None = None) -> None:
        window = self.window_of(like if like is not None and self.window_of(like) >= self.closed else flow)
        assert flow.tenant is not None and flow.reporter is not None
        edge = (flow.tenant, src, dst)
        of_call = flow.calls if calls is None else calls
        self.rows.append((edge, max(window, self.closed), flow.reporter, of_call, window < self.closed))

    def take(self, half: Half) -> None:
        flow, key = half
        assert flow.tenant is not None
        if key < 0:
            self.count(msgspec.structs.replace(flow, reporter=flow.reporter or "client"), flow.src, flow.dst)
            return
        call, client, server = (flow.tenant, key), (flow.tenant, key, "client"), (flow.tenant, key, "server")
        is_late = self.window_of(flow) < self.closed
        if flow.reporter == "server":
            if call in self.joined:
                first, _ = self.joined[call]
                self.count(flow, first.src, flow.dst, first)
            elif client in self.waiting:
                first, *repeats = self.waiting.pop(client)
                self.count(first, first.src, flow.dst)
                self.count(flow, first.src, flow.dst, first)
                for repeat in repeats:
                    self.count(repeat, first.src, flow.dst, first, calls=0)
                self.joined[call] = (first, flow.dst)
            elif is_late:
                self.count(flow, flow.src, flow.dst)
            else:
                self.waiting.setdefault(server, []).append(flow)
        elif call in self.joined:
            first, dst = self.joined[call]
            self.count(flow, first.src, dst, first, calls=0)
        elif client in self.waiting:
            self.waiting[client].append(flow)
        elif server in self.waiting:
            servers = self.waiting.pop(server)
            self.count(flow, flow.src, servers[0].dst)
            for other in servers:
                self.count(other, flow.src, other.dst, flow)
            if not is_late:
                self.joined[call] = (flow, servers[0].dst)
        elif is_late:
            self.count(flow, flow.src, flow.dst)
        else:
            self.waiting[client] = [flow]
        self.make_room(flow.tenant)

    def make_room(self, tenant: str) -> None:
        held = {name: flows for name, flows in self.waiting.items() if name[0] == tenant}
        joined = [call for call in self.joined if call[0] == tenant]
        many = len(joined) + sum(map(len, held.values()))
        if many <= self.bound:
            return
        for call in joined:
            del self.joined[call]
        many -= len(joined)
        for name in held:  # in the order in which their first halves came
            if many <= self.bound - self.bound // 8:
                break
            many -= len(held[name])
            self.let_go(name)

    def let_go(self, name: tuple[str, int, str]) -> None:
        first, *others = self.waiting.pop(name)
        self.count(first, first.src, first.dst)
        for other in others:
            if name[2] == "server":
                self.count(other, other.src, other.dst)
            else:
                self.count(other, other.src, other.dst, first, calls=0)

    def close(self, before: int | None) -> None:
        for name in list(self.waiting):
            # A repeat lies where the first one does; servers' halves lie each in its own window, and leave together.
            flows = self.waiting[name][:1] if name[2] == "client" else self.waiting[name]
            if before is None or any(self.window_of(flow) < before for flow in flows):
                self.let_go(name)
        self.joined = {
            call: entry
            for call, entry in self.joined.items()
            if before is not None and self.window_of(entry[0]) >= before
        }
        if before is not None:
            self.closed = max(self.closed, before)


def counted(rows: list[tuple[Edge, int, str, int, bool]]) -> dict[tuple[int, Edge], list[int]]:
    """Return flows and calls of the chosen side, flows of the other one, late flows, by window and edge."""
    sums: dict[tuple[int, Edge], Counter[str]] = {}
    for edge, window, side, calls, is_late in rows:
        of = sums.setdefault((window, edge), Counter())
        of["late" if is_late else side] += 1
        of[f"{side} calls"] += 0 if is_late else calls
    found = {}
    for place, of in sums.items():
        side, other = ("client", "server") if of["client"] else ("server", "client")
        found[place] = [of[side], of[f"{side} calls"], of[other], of["late"]]
    return found


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 300), bound=st.sampled_from([0, 1, 2, 9, 20, 200_000]))
@settings(max_examples=40, deadline=None)
def test_plain_rules_give_the_same_rows(seed: int, size: int, bound: int) -> None:
    steps = draw_steps(seed, size)
    lane = make_lane(lateness_ms=0, detection=DetectionConfig(max_pending_pairs=bound))
    output, _ = run(log_of(lane, steps, 20, seed))
    rules = Rules(bound)
    for step in steps:
        if isinstance(step, Half):
            rules.take(step)
        else:
            rules.close(step)
    rules.close(None)
    found: dict[tuple[int, Edge], list[int]] = {}
    for window in output.windows:
        edges = window.edges
        columns = [edges.measure(name).tolist() for name in ("flows", "calls")]
        rows = zip(
            edges.src,
            edges.dst,
            *columns,
            edges.other_side_flows.tolist(),
            edges.measure("late_flows").tolist(),
            strict=True,
        )
        for src, dst, *sums in rows:
            place = (window.start_ms // WINDOW_MS, (window.tenant, src, dst))
            before = found.get(place, [0, 0, 0, 0])  # ports differ where a half alone does not know it
            found[place] = [a + b for a, b in zip(before, sums, strict=True)]
    assert found == counted(rules.rows)
    halves_and_rows = sum(isinstance(step, Half) for step in steps)
    assert output.counts["on_time"] + output.counts["late"] == len(rules.rows) == halves_and_rows
