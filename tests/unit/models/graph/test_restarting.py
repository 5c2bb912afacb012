"""Restarts and deployments through the state machine: news once, an outage for as long as it is one, however cut."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.drift import RECURRENCE, Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.tenant_log import LogRecord
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, Feed

WINDOW_MS = 60_000
FIRST, SECOND, THIRD = 40, 145, 260
"""Windows in which the service goes down: hours apart, and at no hour of their own."""
END = 300
BACK_AFTER = 3
CART = (("web", "cart"), ("cart", "db"), ("cart", "pay"))
"""Edges of the service that restarts. Nobody but it calls ``db`` and ``pay``; ``web`` goes on without it."""
OTHERS = (("web", "search"), ("search", "index"))


def calls(index: int, edge: tuple[str, str], count: int = 20, **changes: object) -> list[Flow]:
    step = WINDOW_MS // count
    values: dict[str, object] = {"bytes_out": 1_000, "errors": 0, "latency_us": 10_000, **changes}
    return [make_flow(index * WINDOW_MS + n * step, src=edge[0], dst=edge[1], **values) for n in range(count)]


def usual(index: int) -> list[Flow]:
    return [flow for edge in CART + OTHERS for flow in calls(index, edge)]


def without_cart(index: int, left: int = 0) -> list[Flow]:
    """A window in which the service is down, but for its first calls."""
    some = [flow for edge in CART for flow in calls(index, edge)[:left]]
    return [flow for edge in OTHERS for flow in calls(index, edge)] + some


def rush(index: int, count: int = 100) -> list[Flow]:
    """What waited comes at once."""
    return [*calls(index, CART[0], count), *(f for edge in CART[1:] + OTHERS for f in calls(index, edge))]


def restarts(index: int, at: tuple[int, ...] = (FIRST, SECOND), silent: int = BACK_AFTER, left: int = 0) -> list[Flow]:
    """Goes down in the midst of a window, stays away for some, comes back with a rush."""
    for first in at:
        if first <= index < first + silent:
            return without_cart(index, left if index == first else 0)
        if index == first + silent:
            return rush(index)
    return usual(index)


def deploys(index: int, at: tuple[int, ...] = (FIRST, SECOND), config: bool = True) -> list[Flow]:
    """A rolling deployment: never down, but it reads its configuration, and its first calls are slow."""
    if index not in at:
        return usual(index)
    slow = [flow for edge in CART[1:] for flow in calls(index, edge, latency_us=200_000)]
    start = calls(index, ("cart", "config"), 1) if config else []
    return slow + start + [flow for edge in (CART[0], *OTHERS) for flow in calls(index, edge)]


def feed_of(windows: list[list[Flow]], logic: int | None = None, **detection: object) -> Feed:
    config = msgspec.structs.replace(DETECTION, **{"learning_windows": 8, "alerts_per_day": 0, **detection})
    feed = Feed(make_lane(lateness_ms=0, window_ms=WINDOW_MS, detection=config))
    feed.logic = feed.logic if logic is None else logic
    for flows in windows:
        feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    return feed


def run(traffic: Callable[[int], list[Flow]], logic: int | None = None, end: int = END, **detection: object) -> Output:
    return feed_of([traffic(index) for index in range(end)], logic, **detection).output


@cache
def restarted() -> Output:
    """Return what usual restarts give, for those who only look."""
    return run(restarts)


def created(output: Output, since: int, to: int = END) -> list[DriftEvent]:
    found = [e for e in output.events if e.activity is Activity.CREATE]
    return [e for e in found if since <= e.window_start_ms // WINDOW_MS < to]


def subjects(events: list[DriftEvent]) -> list[tuple[DriftKind, str, str, bool]]:
    return sorted((e.kind, e.src, e.dst, e.is_alert) for e in events)


def test_the_second_restart_is_one_finding_and_no_alert() -> None:
    output = restarted()
    first, second = created(output, FIRST - 1, SECOND - 1), created(output, SECOND - 1)
    drops = [(e.src, e.dst) for e in first if e.kind is DriftKind.RATE_DROP and e.is_alert]
    assert sorted(drops) == sorted(CART), "the first is told for each edge"
    assert any(e.kind is DriftKind.RATE_SURGE and e.is_alert for e in first)
    assert [(e.kind, e.src, e.dst, e.is_alert) for e in second if e.kind is DriftKind.RATE_DROP] == [
        (DriftKind.RATE_DROP, "cart", "", False)
    ]
    assert not any(event.is_alert for event in output.events if event.window_start_ms >= (SECOND - 1) * WINDOW_MS)
    surges = [e for e in second if e.kind is DriftKind.RATE_SURGE]
    assert [(e.src, e.dst) for e in surges] == [CART[0]], "what departs is told all the same"
    assert surges[0].evidence[-1].signal == RECURRENCE
    assert "Expected at a restart of cart, so no alert: as on Thursday 1970-01-01 00:40 UTC" in surges[0].message


def test_what_it_says_of_a_restart_is_true() -> None:
    (event,) = [e for e in created(restarted(), SECOND - 1) if not e.dst]
    assert event.window_start_ms == SECOND * WINDOW_MS and event.first_seen_ms == SECOND * WINDOW_MS
    assert sorted((ref.src, ref.dst) for ref in event.edges) == sorted(CART)
    rate, down, recurrence = event.evidence
    assert (rate.observed, round(rate.expected)) == (0, 60)
    assert (down.observed, down.expected, down.sample) == (1, BACK_AFTER, 1)
    assert (recurrence.observed, recurrence.sample) == (FIRST * WINDOW_MS, 1)
    assert event.title == "Call rate of cart dropped"
    assert "cart: calls in a window was 0 calls, expected " in event.message
    assert (
        "cart: time for which all its edges carried few calls or none was 1 window, expected 3 windows "
        "(window 1 min; from 1 restart against " in event.message
    )
    assert "Expected at a restart of cart, so no alert: as on Thursday 1970-01-01 00:40 UTC (1 such time" in (
        event.message
    )


def test_it_closes_once_the_service_is_back() -> None:
    closes = [e for e in restarted().events if e.activity is Activity.CLOSE and e.kind is DriftKind.RATE_DROP]
    (close,) = [e for e in closes if not e.dst]
    assert close.close_reason == "recovered"
    assert SECOND + BACK_AFTER <= close.window_start_ms // WINDOW_MS <= SECOND + BACK_AFTER + 8


def test_one_that_does_not_come_back_is_an_outage_of_each_edge() -> None:
    output = run(lambda index: without_cart(index) if index >= SECOND else restarts(index))
    second = created(output, SECOND - 1)
    drops = [(e.src, e.dst, e.is_alert) for e in second if e.kind is DriftKind.RATE_DROP]
    assert drops[0] == ("cart", "", False)
    assert sorted(drops[1:]) == sorted((src, dst, True) for src, dst in CART)
    told = {e.window_start_ms // WINDOW_MS - SECOND for e in second if e.kind is DriftKind.RATE_DROP and e.dst}
    assert told == {BACK_AFTER + 1}, "3 windows were usual; a quarter more and one are no longer"
    assert len([e for e in second if e.kind is DriftKind.REMOVED_EDGE]) == len(CART)


def test_an_outage_teaches_no_restart() -> None:
    def traffic(index: int) -> list[Flow]:
        return without_cart(index) if FIRST <= index < FIRST + 30 else restarts(index, (SECOND,))

    drops = [e for e in created(run(traffic), SECOND - 1) if e.kind is DriftKind.RATE_DROP]
    assert sorted((e.src, e.dst, e.is_alert) for e in drops) == sorted((src, dst, True) for src, dst in CART)


def test_one_that_restarts_again_and_again_is_told_as_ever() -> None:
    def traffic(index: int) -> list[Flow]:
        return restarts(index, (FIRST, SECOND, SECOND + 25, SECOND + 50))

    again = created(run(traffic), SECOND + 20)
    assert {(e.src, e.dst) for e in again if e.kind is DriftKind.RATE_DROP and e.is_alert} == set(CART)


def test_one_edge_that_fails_is_no_restart() -> None:
    def traffic(index: int) -> list[Flow]:
        is_down = index in range(FIRST, FIRST + 3) or index in range(SECOND, SECOND + 3)
        return [f for f in usual(index) if not (is_down and (f.src, f.dst) == CART[0])]

    drops = [e for e in created(run(traffic), SECOND - 1) if e.kind is DriftKind.RATE_DROP]
    assert [(e.src, e.dst, e.is_alert) for e in drops] == [(*CART[0], True)]


def test_when_all_of_a_tenant_is_silent_nothing_is_said_to_restart() -> None:
    def traffic(index: int) -> list[Flow]:
        is_down = index in range(FIRST, FIRST + 3) or index in range(SECOND, SECOND + 3)
        return calls(index, ("a", "b"), tenant="globex") + ([] if is_down else usual(index))

    drops = [e for e in created(run(traffic), SECOND - 1) if e.kind is DriftKind.RATE_DROP]
    assert drops and all(e.dst and e.is_alert for e in drops)


@pytest.mark.parametrize("left", [2, 6, 9])
def test_it_is_seen_though_the_service_goes_in_the_midst_of_a_window(left: int) -> None:
    output = run(lambda index: restarts(index, left=left))
    assert any(e.is_alert for e in created(output, FIRST - 1, SECOND - 1))
    assert not any(event.is_alert for event in output.events if event.window_start_ms >= (SECOND - 1) * WINDOW_MS)


def test_a_larger_rush_than_before_is_an_alert() -> None:
    output = run(lambda index: rush(index, 400) if index == SECOND + BACK_AFTER else restarts(index))
    surges = [e for e in created(output, SECOND - 1) if e.kind is DriftKind.RATE_SURGE]
    assert [e.is_alert for e in surges] == [True]


def test_a_rolling_deployment_is_known_by_the_call_made_at_start() -> None:
    slow = [e for e in run(deploys).events if e.kind is DriftKind.LATENCY_INCREASE and e.activity is Activity.CREATE]
    assert [(e.src, e.dst, e.window_start_ms // WINDOW_MS, e.is_alert) for e in slow] == [
        ("cart", "db", FIRST, True),
        ("cart", "pay", FIRST, True),
        ("cart", "db", SECOND, False),
        ("cart", "pay", SECOND, False),
    ]
    assert "Expected at a restart of cart, so no alert" in slow[2].message
    unknown = run(lambda index: deploys(index, config=False))
    assert all(e.is_alert for e in created(unknown, SECOND - 1)), "without a sign nothing is expected"


def test_expectations_can_be_switched_off() -> None:
    output = run(restarts, recurring_after=0)
    drops = [(e.src, e.dst) for e in created(output, SECOND - 1) if e.kind is DriftKind.RATE_DROP and e.is_alert]
    assert sorted(drops) == sorted(CART)


@pytest.mark.parametrize("logic", [1, 2])
def test_earlier_versions_know_no_restarts(logic: int) -> None:
    feed = feed_of([restarts(index) for index in range(END)], logic)
    assert all(event.dst for event in feed.output.events if event.kind is DriftKind.RATE_DROP)
    assert all(event.is_alert for event in created(feed.output, FIRST - 1))
    assert not any("/calendar/" in name for name, _ in take(feed.machine))


def straight(log: list[LogRecord]) -> Output:
    machine, output = Machine(), Output()
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
    return output


@pytest.mark.parametrize("traffic", [restarts, deploys])
def test_what_is_remembered_outlives_restarts_of_the_worker(traffic: Callable[[int], list[Flow]]) -> None:
    log = feed_of([traffic(index) for index in range(SECOND + 20)]).log
    machine, output = Machine(), Output()
    chunks: dict[str, bytes] = {}
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
        if offset % 13 == 0:
            chunks |= {name: chunk for name, chunk in take(machine) if chunk is not None}
            mark_clean(machine)
            machine = restore(chunks)
    assert [msgspec.to_builtins(e) for e in output.events] == [msgspec.to_builtins(e) for e in straight(log).events]


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(20, 30),
    silent=st.integers(1, 5),
    left=st.integers(0, 19),
    apart=st.integers(30, 75),
)
def test_records_cut_anew_say_the_same(seed: int, first: int, silent: int, left: int, apart: int) -> None:
    at = (first, first + apart)
    windows = [restarts(index, at, silent, left) for index in range(first + apart + 20)]
    rng = np.random.default_rng(seed)
    flows = [flow for window in windows for flow in sorted(window, key=lambda flow: flow.time_ms)]
    cuts = [0, *sorted(rng.choice(len(flows), 60, replace=False).tolist()), len(flows)]
    again = feed_of([flows[a:b] for a, b in pairwise(cuts)])
    once = feed_of(windows)
    for feed in (again, once):
        feed.end()

    def settled(output: Output) -> list[object]:
        return [msgspec.to_builtins(e) for e in output.events if e.kind is DriftKind.RATE_DROP]

    assert settled(again.output) == settled(once.output)
