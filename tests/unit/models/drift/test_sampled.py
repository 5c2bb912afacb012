"""Numbers that were multiplied: what a sample happens to hold is no drift, what really changed is, and it says so."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from models.graph.output import Output
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, WINDOW_MS, Feed, created, total

FACTOR = 50


def sampled_windows(seen: Sequence[int], factor: int, seed: int = 1, **changes: int) -> list[list[Flow]]:
    """Return a window each of so many records of a sample, with what a source multiplies already multiplied."""
    rng = np.random.default_rng(seed)
    windows = []
    for index, count in enumerate(seen):
        values: dict[str, Any] = {
            "calls": factor,
            "errors": 0,
            "bytes_out": factor * 20_000,
            "latency_us": 5_000,
            **changes,
        }
        times = np.sort(rng.integers(WINDOW_MS, size=count)) + index * WINDOW_MS
        windows.append([make_flow(int(time_ms), **values) for time_ms in times])
    return windows


def judged(windows: list[list[Flow]], factor: int) -> Output:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    for index, flows in enumerate(windows):
        if flows:
            feed.send(flows, sampling=factor)
        feed.state(clocks=(("host", (index + 1) * WINDOW_MS),))
    feed.end()
    return feed.output


def only(kind: DriftKind, events: list[DriftEvent]) -> DriftEvent:
    (event,) = [event for event in events if event.kind is kind and event.activity is Activity.CREATE]
    return event


def test_what_a_sample_happens_to_hold_is_no_drift() -> None:
    windows = sampled_windows([*[1] * 30, 4, *[1] * 10, 0, *[1] * 5], FACTOR)
    assert created(judged(windows, FACTOR)) == []
    unmarked = {kind for kind, *_ in created(judged(windows, 1))}
    assert unmarked == {DriftKind.RATE_SURGE, DriftKind.BYTES_SURGE, DriftKind.RATE_DROP}, "had each call been seen"


@pytest.mark.parametrize("rate", [0.7, 2.0, 8.0])
def test_chance_alone_is_no_drift(rate: float) -> None:
    seen = np.random.default_rng(7).poisson(rate, size=300).tolist()
    assert created(judged(sampled_windows(seen, FACTOR), FACTOR)) == []


def test_a_surge_in_a_sample_is_one_and_says_what_it_rests_on() -> None:
    seen = [*np.random.default_rng(3).poisson(20.0, size=40).tolist(), 200]
    windows = sampled_windows(seen, FACTOR)
    event = only(DriftKind.RATE_SURGE, judged(windows, FACTOR).events)
    assert event.evidence[0].observed == 200 * FACTOR and event.evidence[0].sample == 200
    sampled = event.evidence[-1]
    assert (sampled.signal, sampled.observed, sampled.sample) == ("sampled", FACTOR, 200)
    assert "These numbers are estimates: the source sees 1 in 50, here 200 records." in event.message
    whole = only(DriftKind.RATE_SURGE, judged(sampled_windows(seen, 1), 1).events)
    assert event.confidence < whole.confidence and len(whole.evidence) == 1


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (1, []),
        (4, [DriftKind.LATENCY_INCREASE]),  # all four are slow, which four records can say
        (20, [DriftKind.ERROR_INCREASE, DriftKind.LATENCY_INCREASE]),
    ],
)
def test_ratios_and_latencies_need_records_not_what_they_were_multiplied_to(
    seen: int, expected: list[DriftKind]
) -> None:
    windows = sampled_windows([20] * 20, FACTOR)
    bad = sampled_windows([0] * 20 + [seen], FACTOR, errors=FACTOR, latency_us=80_000)
    output = judged([*windows, bad[-1]], FACTOR)
    kinds = sorted(kind for kind, *_ in created(output) if kind is not DriftKind.RATE_DROP)
    assert kinds == expected


def test_bytes_alone_may_be_multiplied() -> None:
    seen = np.random.default_rng(5).poisson(3.0, size=200).tolist()
    windows = sampled_windows(seen, FACTOR, calls=1)
    output = judged(windows, FACTOR)
    assert created(output) == []
    assert total(output.windows, "calls") == sum(seen)


def test_windows_say_how_many_records_were_of_a_sample_and_of_which() -> None:
    feed = Feed()
    feed.send([make_flow(1_000), make_flow(2_000)], sampling=50)
    feed.send([make_flow(3_000)])
    feed.send([make_flow(4_000)], sampling=10)
    feed.end()
    measures = [total(feed.output.windows, name) for name in ("flows", "sampled_flows", "sampling_sum")]
    assert measures == [4, 3, 110]


@pytest.mark.parametrize("logic", [1, 2])
def test_before_logic_version_3_samples_are_not_told_apart(logic: int) -> None:
    feed = Feed()
    feed.logic = logic
    feed.send([make_flow(1_000)], sampling=50)
    feed.end()
    assert total(feed.output.windows, "sampled_flows") == 0
