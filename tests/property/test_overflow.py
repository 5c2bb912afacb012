"""Bounded cardinality: known edges stay, then the new ones of least hash; nothing is lost, in any order."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.drift import Activity
from schemas.flow import Flow
from schemas.graph import MEASURE_INDEX, ClosedWindow
from schemas.ids import stable_hash64
from schemas.tenant_log import LaneConfig
from tests.builders import end_of, make_flow, make_lane, record_of

CAP = 16
KNOWN = 6


def lane_of(**changes: object) -> LaneConfig:
    return make_lane(lateness_ms=0, detection=DetectionConfig(learning_windows=3, max_edges_per_tenant=CAP, **changes))  # type: ignore[arg-type]


def usual(index: int) -> list[Flow]:
    return [make_flow(index * 10_000 + n, dst=f"shop/known-{n}") for n in range(KNOWN)]


def flood(index: int, count: int, rng: np.random.Generator) -> list[Flow]:
    flows = []
    for n in range(count):
        for _ in range(int(rng.integers(1, 4))):
            side = ("client", "server")[int(rng.random() < 0.3)]
            at = index * 10_000 + int(rng.integers(10_000))
            flows.append(make_flow(at, dst=f"shop/flood-{n}", reporter=side, latency_us=int(rng.integers(10_000))))
    return flows


def run(parts: list[list[Flow]], lane: LaneConfig, restarts: bool = False) -> Output:
    machine, output, offset = Machine(), Output(), 0
    for number, part in enumerate(parts):
        output.extend(machine.apply(number, record_of(lane, 0, offset, part)))
        offset += len(part)
        if restarts:
            machine = restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})
    output.extend(machine.apply(len(parts), end_of(lane, 0, offset)))
    return output


def values(window: ClosedWindow) -> object:
    edges = window.edges
    histogram = (edges.histogram_edge.tolist(), edges.histogram_bucket.tolist(), edges.histogram_count.tolist())
    return edges.dst, edges.measures.tolist(), edges.p50_us.tolist(), histogram, window.overflow.tolist()


def overflow_flows(window: ClosedWindow) -> int:
    return int(window.overflow[MEASURE_INDEX["flows"]])


def cut(flows: list[Flow], rng: np.random.Generator) -> list[list[Flow]]:
    order = rng.permutation(len(flows)).tolist()
    bounds = sorted({0, len(flows), *rng.integers(len(flows) + 1, size=5).tolist()})
    return [[flows[i] for i in order[a:b]] for a, b in pairwise(bounds)]


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_known_edges_stay_and_the_new_ones_of_least_hash_in_any_order(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    lane = lane_of()
    flooded = usual(5) + flood(5, count, rng)
    before = [usual(index) for index in range(5)]
    one = run([*before, flooded], lane)
    other = run([*before, *cut(flooded, rng)], lane, restarts=True)
    assert [values(w) for w in one.windows] == [values(w) for w in other.windows]

    room = CAP - KNOWN
    names = [f"shop/flood-{n}" for n in range(count)]
    least = sorted(names, key=lambda dst: stable_hash64("admit", "acme", "shop/web", dst, 8080, 6))[:room]
    assert one.windows[-1].edges.dst == sorted([f"shop/known-{n}" for n in range(KNOWN)] + least)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), ahead=st.booleans())
@settings(max_examples=25, deadline=None)
def test_no_record_is_lost_in_overflow(seed: int, count: int, ahead: bool) -> None:
    """Floods in windows that are open together: an edge pushed out leaves nothing behind for the next of its number."""
    rng = np.random.default_rng(seed)
    lane = make_lane(lateness_ms=15_000, detection=DetectionConfig(learning_windows=3, max_edges_per_tenant=CAP))
    parts = [usual(index) for index in range(5)]
    mixed = flood(5, count, rng) + (flood(6, count, rng) if ahead else [])
    parts += [*cut(mixed, rng), usual(7), flood(8, 5, rng), usual(9)]
    output = run(parts, lane)
    flows = sum(int(w.edges.measure("flows").sum() + w.edges.other_side_flows.sum()) for w in output.windows)
    late = sum(
        int(w.edges.measure("late_flows").sum() + w.overflow[MEASURE_INDEX["late_flows"]]) for w in output.windows
    )
    overflow = sum(map(overflow_flows, output.windows))
    assert flows + overflow == output.counts["on_time"]
    assert late == output.counts["late"]
    assert flows + overflow + late == sum(map(len, parts))
    for window in output.windows:
        edges = window.edges
        timed = np.zeros(len(edges), dtype=np.int64)
        np.add.at(timed, edges.histogram_edge, edges.histogram_count)
        assert timed.tolist() == edges.measure("latency_calls").tolist()


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 60))
@settings(max_examples=20, deadline=None)
def test_above_half_the_cap_nothing_fires_early_and_all_that_is_kept_is_found_at_the_close(
    seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    lane = lane_of(fan_out_min=10_000)
    output = run([*(usual(index) for index in range(6)), *cut(flood(5, count, rng), rng)], lane)
    early = [event for event in output.events if event.is_early]
    assert len(early) <= CAP // 2 - KNOWN
    kept = {event.src for event in output.events if event.activity is not Activity.CLOSE and not event.is_early}
    assert kept == {dst for dst in output.windows[-1].edges.dst if "flood" in dst}


def test_edges_of_a_flood_become_known_and_are_kept_from_then_on() -> None:
    rng = np.random.default_rng(1)
    lane = lane_of()
    parts = [*(usual(index) for index in range(5)), flood(5, 40, rng), flood(6, 40, rng)]
    output = run(parts, lane)
    five, six = output.windows[-2:]
    assert set(six.edges.dst) == {dst for dst in five.edges.dst if "flood" in dst}
    assert overflow_flows(six) > 0


def test_one_tenants_flood_takes_no_room_from_another() -> None:
    lane = lane_of()
    mine = [make_flow(n, dst=f"shop/{n}") for n in range(100)]
    others = [make_flow(n, dst=f"shop/{n}", tenant="globex") for n in range(CAP)]
    output = run([mine + others], lane)
    assert {w.tenant: (len(w.edges), overflow_flows(w)) for w in output.windows} == {
        "acme": (CAP, 100 - CAP),
        "globex": (CAP, 0),
    }
