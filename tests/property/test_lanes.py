"""Two live lanes of one tenant: one order of rows, any cuts into records, any restart, any re-delivery: the same story.

Which lane owns a piece of news depends on the order in the log, so the order of rows over the lanes is kept; how rows
of one lane that follow each other are cut into records is not.
"""

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from schemas.drift import Activity, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow
from tests.property.test_law import settled, window_values
from tests.unit.models.graph.lanes import Lanes, learning, live_lane

WINDOW_MS = 10_000
SERVICES = ("web", "cart", "pay", "ship")
STRANGERS = ("ext:paste", "new-a", "new-b", *SERVICES)
CALLERS = ("ext:partner", "ext:scanner", *SERVICES)
NEWS = {DriftKind.NEW_EDGE, DriftKind.NEW_PORT, DriftKind.NEW_EXTERNAL_EGRESS, DriftKind.NEW_SERVICE}
Runs = list[tuple[str, list[Flow]]]


def make_rows(rng: np.random.Generator, windows: int) -> Runs:
    """Return runs of rows by lane: edges that both see, with drift that one sees, or both, a while apart."""
    edges = [(a, b) for a in SERVICES for b in SERVICES if a < b]
    lag_ms = int(rng.integers(0, 3)) * 7_000  # of the second lane, in the log
    quiet = {(lane, edges[rng.integers(len(edges))]): int(rng.integers(9, windows)) for lane in ("fast", "slow")}
    gone = edges[rng.integers(len(edges))]
    quiet |= {(lane, gone): int(rng.integers(9, 14)) for lane in ("fast", "slow")}
    rows: list[tuple[int, str, Flow]] = []

    def add(lane: str, time_ms: int, **values: Any) -> None:
        shake_ms = int(rng.integers(0, 4_000))
        rows.append((time_ms + shake_ms + (lag_ms if lane == "slow" else 0), lane, make_flow(time_ms, **values)))

    for window in range(windows):
        start_ms = window * WINDOW_MS
        for lane in ("fast", "slow"):
            for edge in edges:
                if window < quiet.get((lane, edge), windows):
                    for _ in range(3):
                        add(lane, start_ms + int(rng.integers(WINDOW_MS)), src=edge[0], dst=edge[1])
        for _ in range(int(rng.integers(0, 4))):
            time_ms = start_ms + int(rng.integers(WINDOW_MS))
            src, dst, port = str(rng.choice(CALLERS)), str(rng.choice(STRANGERS)), int(rng.integers(8080, 8083))
            for lane in ("fast", "slow"):
                if rng.random() < 0.7:  # who calls from outside may get no answer, or none that a lane sees
                    failed = int(src == "ext:scanner" or rng.random() < 0.3)
                    add(lane, time_ms, src=src, dst=dst, port=port, errors=failed, bytes_in=100 * (1 - failed))
        if window > 8 and rng.random() < 0.15:
            for number in range(40):
                lane = ("fast", "slow")[rng.integers(2)]
                add(lane, start_ms + int(rng.integers(WINDOW_MS)), src="web", dst=f"peer-{number}")
    runs: Runs = []
    for _, lane, flow in sorted(rows, key=lambda row: row[0]):
        if not runs or runs[-1][0] != lane:
            runs.append((lane, []))
        runs[-1][1].append(flow)
    # Lanes take turns less often than rows: a fetch holds many.
    merged: Runs = []
    for lane, flows in runs:
        if len(merged) > 1 and merged[-1][0] != lane and merged[-2][0] == lane and rng.random() < 0.9:
            merged[-2][1].extend(flows)
        else:
            merged.append((lane, list(flows)))
    return merged


def make_lanes() -> Lanes:
    late = {"lateness_ms": 6_000}
    return Lanes(live_lane("fast", **late), live_lane("slow", detection=learning(5), **late))


def play(feed: Lanes, runs: Runs, rng: np.random.Generator | None) -> Lanes:
    """Send the runs; with ``rng`` cut, delivered again and restarted anywhere."""
    for lane, flows in runs:
        rest = flows
        while rest:
            size = len(rest) if rng is None else int(rng.integers(1, 40))
            # As they come, not in order of time: cuts must not sort across them.
            feed.append(feed.record(lane, rest[:size]))
            rest = rest[size:]
            if rng is not None and rng.random() < 0.05:
                feed.append(feed.log[int(rng.integers(len(feed.log)))])
            if rng is not None and rng.random() < 0.05:
                feed.restart()
    for lane in feed.config:
        feed.end(lane)
    return feed


@given(seed=st.integers(0, 2**32 - 1), windows=st.integers(10, 26))
@settings(max_examples=25, deadline=None)
def test_cuts_restarts_and_repeats_change_nothing_that_two_lanes_say(seed: int, windows: int) -> None:
    rng = np.random.default_rng(seed)
    runs = make_rows(rng, windows)
    straight, shaken = play(make_lanes(), runs, None), play(make_lanes(), runs, rng)
    assert [window_values(w) for w in shaken.output.windows] == [window_values(w) for w in straight.output.windows]
    assert settled(shaken.output.events) == settled(straight.output.events)
    ids = [event.event_id for event in shaken.output.events]
    assert len(ids) == len(set(ids))
    early = {event.finding_id for event in shaken.output.events if event.is_early}
    assert early <= settled(straight.output.events).keys()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_two_lanes_never_tell_the_same_news(seed: int) -> None:
    feed = play(make_lanes(), make_rows(np.random.default_rng(seed), 18), None)
    told = [e for events in feed.events.values() for e in events if e.activity is Activity.CREATE and e.kind in NEWS]
    twice = {
        subject
        for subject, count in Counter((e.kind, e.src, e.dst, e.port, e.protocol, e.episode) for e in told).items()
        if count > 1
    }
    assert twice == set()
    assert all(e.lane in e.seen_in and list(e.seen_in) == sorted(e.seen_in) for e in told)


def test_the_rows_bring_all_that_lanes_can_share() -> None:
    """The laws would say little of an input in which nothing is shared."""
    kinds: Counter[DriftKind] = Counter()
    shared, vouched = 0, Counter[str]()
    for seed in range(8):
        feed = play(make_lanes(), make_rows(np.random.default_rng(seed), 26), None)
        kinds.update(event.kind for event in feed.output.events)
        shared += sum(len(event.seen_in) == 2 for event in feed.output.events)
        for name, lane in feed.machine.lanes.items():
            vouched[name] += int(np.count_nonzero(lane.registry.edge.array["vouched"][: len(lane.registry)]))
    assert min(vouched["fast"], vouched["slow"]) > 10
    assert NEWS | {DriftKind.REMOVED_EDGE, DriftKind.FAN_OUT_BURST} <= kinds.keys()
    assert shared > 100
