"""What two live lanes tell is what a recomputation in plain Python says of the same log."""

from collections import Counter

import numpy as np
import pytest

from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow
from tests.independent.lanes import Rules, Told, judge
from tests.unit.models.graph.lanes import Lanes, live_lane

WINDOW_MS = 10_000
KINDS = {DriftKind.NEW_EDGE, DriftKind.NEW_PORT, DriftKind.NEW_SERVICE, DriftKind.REMOVED_EDGE}
SERVICES = ("web", "cart", "pay", "ship", "mail")
STRANGERS = ("fraud", "miner", "audit", *SERVICES)
Log = list[tuple[str, list[Flow]]]


def make_log(seed: int, windows: int = 70) -> tuple[Log, dict[str, Rules]]:
    """Return two or three lanes' rows in log order, a slow lane behind, one that joins late, edges that come and go."""
    rng = np.random.default_rng(seed)
    learning = {"fast": 4, "slow": int(rng.integers(3, 9)), "joins": 5}
    starts = {"fast": 0, "slow": 0, "joins": 20}
    lags = {"fast": 0, "slow": int(rng.integers(0, 6)), "joins": int(rng.integers(0, 3))}  # in windows, in the log
    names = [name for name in starts if name != "joins" or rng.random() < 0.6]
    rows: list[tuple[float, str, Flow]] = []

    def add(lane: str, window: int, src: str, dst: str, port: int) -> None:
        if window >= starts[lane]:
            flow = make_flow(window * WINDOW_MS + int(rng.integers(WINDOW_MS)), src=src, dst=dst, port=port)
            rows.append((flow.time_ms + lags[lane] * WINDOW_MS, lane, flow))

    steady = [(a, b) for a in SERVICES for b in SERVICES if a < b]
    lives = {
        (lane, edge): (windows if rng.random() < 0.5 else int(rng.integers(12, 40)), int(rng.choice([1, 1, 1, 2, 3])))
        for lane in names
        for edge in steady
    }
    for window in range(windows):
        for (lane, (src, dst)), (until, every) in lives.items():
            if window % every == 0 and window < until:
                add(lane, window, src, dst, 80)
        for _ in range(int(rng.integers(0, 3))):
            src, dst, port = str(rng.choice(SERVICES)), str(rng.choice(STRANGERS)), int(rng.choice([80, 80, 81, 8080]))
            for lane in names:
                if rng.random() < 0.6:
                    add(lane, window + int(rng.integers(0, 2)), src, dst, port)
    log: Log = []
    for _, lane, flow in sorted(rows, key=lambda row: row[0]):
        if not log or log[-1][0] != lane:
            log.append((lane, []))
        log[-1][1].append(flow)
    return log, {name: Rules(WINDOW_MS, 0, learning[name]) for name in names}


def told_by_the_machine(log: Log, rules: dict[str, Rules]) -> set[Told]:
    feed = Lanes(
        *(
            live_lane(
                name, lateness_ms=one.lateness_ms, detection=DetectionConfig(learning_windows=one.learning_windows)
            )
            for name, one in rules.items()
        )
    )
    for lane, flows in log:
        feed.append(feed.record(lane, flows))
    settled: dict[str, Told] = {}
    for event in feed.output.events:
        # The first event that is not early is the settled one.
        if event.kind in KINDS and not event.is_early and event.activity is not Activity.CLOSE:
            index = event.window_start_ms // WINDOW_MS
            told = (event.lane, event.kind.value, event.src, event.dst, event.port, index)
            settled.setdefault(event.finding_id, told)
    return set(settled.values())


@pytest.mark.parametrize("seed", range(12))
def test_lanes_tell_what_the_recomputation_says(seed: int) -> None:
    log, rules = make_log(seed)
    expected, found = judge(log, rules), told_by_the_machine(log, rules)
    assert found ^ expected == set()


def test_the_logs_hold_what_can_go_wrong() -> None:
    told: Counter[tuple[str, str]] = Counter()
    for seed in range(12):
        told.update((lane, kind) for lane, kind, *_ in judge(*make_log(seed)))
    assert {kind for _, kind in told} == {kind.value for kind in KINDS}
    assert {lane for lane, _ in told} == {"fast", "slow", "joins"}
    assert min(told["fast", "new_edge"], told["slow", "new_edge"], told["slow", "removed_edge"]) >= 5


def test_a_lane_that_knew_nothing_of_the_others_would_tell_more() -> None:
    """The recomputation tells lanes that are compared from lanes that are not."""
    log, rules = make_log(3)
    alone = set().union(*(judge([entry for entry in log if entry[0] == name], {name: rules[name]}) for name in rules))
    assert len(alone) > 1.3 * len(judge(log, rules))
