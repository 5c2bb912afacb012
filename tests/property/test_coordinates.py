"""Coordinates: whatever is repeated, cut, replayed, late, skewed or refused, every input row counts exactly once."""

from collections import Counter

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.flow import Flow
from schemas.graph import MEASURE_INDEX
from schemas.ids import split_position
from schemas.tenant_log import LaneConfig, LogRecord
from tests.builders import end_of, make_flow, make_lane, record_of

DAY_MS = 86_400_000
AS_OF_MS = 1_000_000


def draw_flows(seed: int, count: int) -> list[Flow]:
    """Flows of all sorts: in time, behind, ahead of the clock, a day ahead, of both sides."""
    rng = np.random.default_rng(seed)
    flows = []
    now = 500_000
    for _ in range(count):
        now += int(rng.integers(0, 1_500))
        sort = rng.random()
        at = now
        if sort < 0.15:
            at = max(0, now - int(rng.integers(0, 60_000)))
        elif sort < 0.2:
            at = AS_OF_MS + int(rng.integers(10_001, DAY_MS))
        elif sort < 0.25:
            at = AS_OF_MS + DAY_MS + int(rng.integers(1, DAY_MS))
        flow = make_flow(
            at,
            dst=f"shop/{rng.integers(4)}",
            tenant=("acme", "globex")[int(rng.integers(2))],
            reporter=("client", "server", None)[int(rng.integers(3))],
            calls=int(rng.integers(1, 5)),
        )
        flows.append(flow)
    return flows


def deliver(rng: np.random.Generator, lane: LaneConfig, sources: list[list[Flow]]) -> list[LogRecord]:
    """Cut sources into records in any interleaving, with repeats that overlap what went before."""
    done = [0] * len(sources)
    log: list[LogRecord] = []
    while any(done[p] < len(flows) for p, flows in enumerate(sources)):
        partition = int(rng.integers(len(sources)))
        flows = sources[partition]
        if done[partition] == len(flows):
            continue
        start = done[partition]
        if rng.random() < 0.3:
            start = int(rng.integers(0, start + 1))  # a new owner starts at the committed offset
        upto = min(len(flows), max(done[partition], start + int(rng.integers(1, 40))))
        if upto > start:
            log.append(record_of(lane, partition, start, flows[start:upto], as_of_ms=AS_OF_MS))
            done[partition] = max(done[partition], upto)
        if rng.random() < 0.2:
            log.append(log[int(rng.integers(len(log)))])
    return log + [end_of(lane, p, len(flows), as_of_ms=AS_OF_MS) for p, flows in enumerate(sources)]


@given(seed=st.integers(0, 2**32 - 1), partitions=st.integers(1, 3), live=st.booleans(), crashes=st.booleans())
@settings(max_examples=40, deadline=None)
def test_on_time_and_late_and_dead_rows_are_the_input_by_coordinate(
    seed: int, partitions: int, live: bool, crashes: bool
) -> None:
    rng = np.random.default_rng(seed)
    sources = [draw_flows(seed + n, int(rng.integers(0, 120))) for n in range(partitions)]
    lane = make_lane(partitions, mode="live" if live else "replay", max_wait_ms=0)
    machine, output = Machine(), Output()
    for offset, record in enumerate(deliver(rng, lane, sources)):
        output.extend(machine.apply(offset, record))
        if crashes and rng.random() < 0.2:
            machine = restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})

    dead = [(letter.partition, *split_position(letter.position)) for letter in output.dead]
    expected_dead = [
        (partition, offset, 0)
        for partition, flows in enumerate(sources)
        for offset, flow in enumerate(flows)
        if flow.time_ms > AS_OF_MS + DAY_MS
    ]
    assert sorted(dead) == expected_dead
    rows = sum(map(len, sources))
    counts = output.counts
    assert counts["on_time"] + counts["late"] + counts["skewed"] + counts["dead"] == rows

    measures = Counter[str]()
    for window in output.windows:
        measures["flows"] += int(window.edges.measure("flows").sum() + window.edges.other_side_flows.sum())
        for name in ("late_flows", "late_calls"):
            measures[name] += int(window.edges.measure(name).sum())
        assert not window.overflow.any()
    assert measures["flows"] == counts["on_time"] + counts["skewed"]
    assert measures["late_flows"] == counts["late"]
    if not counts["late"]:
        assert not measures["late_calls"]
    ahead = sum(AS_OF_MS + lane.skew_ms < f.time_ms <= AS_OF_MS + DAY_MS for flows in sources for f in flows)
    assert counts["skewed"] <= (ahead if live else 0)
    assert not live or counts["skewed"] == ahead or counts["late"]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_totals_of_an_edge_are_those_of_its_rows(seed: int) -> None:
    """No row is late or dead here: each edge's calls are those of the client's rows, or of the server's where alone."""
    rng = np.random.default_rng(seed)
    flows = [
        make_flow(
            int(rng.integers(0, 50_000)),
            dst=f"shop/{rng.integers(5)}",
            reporter=("client", "server")[int(rng.random() < 0.4)],
            calls=int(rng.integers(1, 9)),
            bytes_out=int(rng.integers(0, 1 << 42)),
        )
        for _ in range(int(rng.integers(1, 150)))
    ]
    lane = make_lane(lateness_ms=100_000)
    machine, output = Machine(), Output()
    for offset, record in enumerate(deliver(rng, lane, [flows])):
        output.extend(machine.apply(offset, record))
    expected: dict[tuple[int, str], list[int]] = {}
    for window in range(5):
        for name in {flow.dst for flow in flows}:
            mine = [f for f in flows if f.dst == name and f.time_ms // 10_000 == window]
            chosen = [f for f in mine if f.reporter == "client"] or mine
            if mine:
                known = [f.bytes_out for f in chosen if f.bytes_out is not None]
                expected[window, name] = [
                    len(chosen),
                    sum(f.calls for f in chosen),
                    sum(known),
                    len(mine) - len(chosen),
                ]
    columns = [MEASURE_INDEX[name] for name in ("flows", "calls", "bytes_out")]
    found = {
        (w.start_ms // 10_000, dst): [*w.edges.measures[row, columns].tolist(), int(w.edges.other_side_flows[row])]
        for w in output.windows
        for row, dst in enumerate(w.edges.dst)
    }
    assert found == expected


@given(seed=st.integers(0, 2**32 - 1), lost_after=st.integers(0, 60), lost=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_an_accepted_loss_costs_exactly_what_was_lost(seed: int, lost_after: int, lost: int) -> None:
    flows = draw_flows(seed, 100)
    lane = make_lane()
    records = [record_of(lane, 0, n, [flow], as_of_ms=AS_OF_MS) for n, flow in enumerate(flows)]
    log = records[: lost_after + 1] + records[lost_after + 1 + lost :]
    log[lost_after + 1] = msgspec.structs.replace(log[lost_after + 1], loss=True)
    machine, output = Machine(), Output()
    for offset, record in enumerate([*log, end_of(lane, 0, len(flows), as_of_ms=AS_OF_MS)]):
        output.extend(machine.apply(offset, record))
    counts = output.counts
    assert counts["on_time"] + counts["late"] + counts["dead"] == len(flows) - lost
