"""Each kind of drift fires when it should, and not below its thresholds."""

from typing import Any

import pytest

from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.tenant_log import ACTIVE, IDLE
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import Feed, created, in_window, judge, story, usual

LEARNED = range(12)
WEB, CART, PAY = "shop/web", "shop/cart", "shop/pay"


def known() -> list[Flow]:
    """Traffic of three services; web calls cart, and pay calls cart."""
    return usual(LEARNED) + usual(LEARNED, src=PAY)


def only(kind: DriftKind, events: list[DriftEvent]) -> DriftEvent:
    (event,) = [event for event in events if event.kind is kind and event.activity is Activity.CREATE]
    return event


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dst": "shop/new"}, (DriftKind.NEW_SERVICE, "shop/new", "")),
        ({"src": "shop/new"}, (DriftKind.NEW_SERVICE, "shop/new", "")),
        ({"dst": PAY}, (DriftKind.NEW_EDGE, WEB, PAY)),
        ({"src": CART, "dst": WEB}, (DriftKind.NEW_EDGE, CART, WEB)),
        ({"port": 9090}, (DriftKind.NEW_PORT, WEB, CART)),
        ({"protocol": "udp"}, (DriftKind.NEW_PORT, WEB, CART)),
        ({"port": None}, (DriftKind.NEW_PORT, WEB, CART)),
        ({"dst": "ext:paste.example"}, (DriftKind.NEW_EXTERNAL_EGRESS, WEB, "ext:paste.example")),
        ({"src": "ext:office"}, (DriftKind.NEW_EDGE, "ext:office", CART)),
        ({}, None),
        ({"tenant": "globex", "dst": "shop/new"}, None),
    ],
)
def test_what_was_never_seen_fires_once_as_what_it_is(
    changes: dict[str, Any], expected: tuple[DriftKind, str, str] | None
) -> None:
    output = judge([*known(), make_flow(120500, **changes), *usual([12]), *usual([12], src=PAY)])
    assert created(output) == ([] if expected is None else [(*expected, 12)])


def test_a_new_service_that_egresses_is_two_findings() -> None:
    output = judge(known() + in_window(12, src="shop/new", dst="ext:paste.example"))
    kinds = sorted(kind for kind, _, _, _ in created(output) if kind not in (DriftKind.RATE_DROP,))
    assert kinds == [DriftKind.NEW_EXTERNAL_EGRESS, DriftKind.NEW_SERVICE]


def test_a_new_service_lists_its_edges() -> None:
    flows = [flow for dst in (CART, PAY, WEB) for flow in in_window(12, src="shop/new", dst=dst)]
    output = judge(known() + sorted(flows, key=lambda flow: flow.time_ms))
    (settled,) = [e for e in output.events if e.activity is Activity.UPDATE and e.kind is DriftKind.NEW_SERVICE]
    assert [(edge.src, edge.dst) for edge in settled.edges] == [("shop/new", dst) for dst in (CART, PAY, WEB)]


@pytest.mark.parametrize(("windows", "fires"), [(2, False), (3, True)])
def test_nothing_fires_in_the_learning_windows(windows: int, fires: bool) -> None:
    flows = usual(range(windows)) + in_window(windows, dst="shop/new", denied=1_000)
    flows += [flow for n in range(50) for flow in in_window(windows, dst=f"shop/{n}")]
    output = judge(flows, learning_windows=3)
    assert bool(output.events) == fires
    assert [window.is_learning for window in output.windows] == [n < 3 for n in range(windows + 1)]


def scan(index: int, peers: int, src: str = WEB) -> list[Flow]:
    return [make_flow(index * 10_000 + n, src=src, dst=f"shop/{index}-{n}") for n in range(peers)]


@pytest.mark.parametrize(("peers", "fires"), [(14, False), (15, True)])
def test_a_fan_out_burst_needs_so_many_peers(peers: int, fires: bool) -> None:
    output = judge(known() + scan(12, peers), fan_out_min=15)
    assert ((DriftKind.FAN_OUT_BURST, WEB, "", 12) in created(output)) == fires


@pytest.mark.parametrize(("peers", "fires"), [(17, False), (18, True)])
def test_a_fan_out_burst_needs_so_many_times_the_usual(peers: int, fires: bool) -> None:
    busy = [make_flow(index * 10_000 + n, src=PAY, dst=f"shop/peer-{n}") for index in LEARNED for n in range(6)]
    output = judge(usual(LEARNED) + busy + scan(12, peers, src=PAY), fan_out_min=10, fan_out_ratio=3.0)
    assert ((DriftKind.FAN_OUT_BURST, PAY, "", 12) in created(output)) == fires


def test_many_ports_that_are_known_are_no_fan_out() -> None:
    flows = [make_flow(index * 10_000 + n, port=n) for index in LEARNED for n in range(40)]
    again = [make_flow(120_000 + n, port=n) for n in range(40)]
    assert DriftKind.FAN_OUT_BURST not in {kind for kind, *_ in created(judge(known() + flows + again))}


def test_a_burst_does_not_make_the_next_one_usual() -> None:
    output = judge(known() + scan(12, 30) + usual(range(13, 30)) + scan(30, 30), close_after_windows=3)
    bursts = [index for kind, _, _, index in created(output) if kind is DriftKind.FAN_OUT_BURST]
    assert bursts == [12, 30]


@pytest.mark.parametrize(("denied", "fires"), [(19, False), (20, True)])
def test_a_denied_burst_needs_so_many_refusals(denied: int, fires: bool) -> None:
    output = judge(known() + usual([12], count=1, calls=100, denied=denied), denied_min=20)
    assert ((DriftKind.DENIED_BURST, WEB, "", 12) in created(output)) == fires


@pytest.mark.parametrize(("denied", "fires"), [(59, False), (60, True)])
def test_a_denied_burst_needs_so_many_times_the_usual(denied: int, fires: bool) -> None:
    flows = usual(LEARNED, denied=1) + usual([12], count=1, calls=100, denied=denied)
    output = judge(flows, denied_min=20, denied_ratio=5.0)
    assert ((DriftKind.DENIED_BURST, WEB, "", 12) in created(output)) == fires


@pytest.mark.parametrize(("count", "fires"), [(20, False), (200, True)])
def test_a_rate_surge_needs_a_score_and_an_effect(count: int, fires: bool) -> None:
    output = judge(usual(LEARNED, bytes_out=None) + usual([12], count=count, bytes_out=None))
    assert created(output) == ([(DriftKind.RATE_SURGE, WEB, CART, 12)] if fires else [])


def test_a_surge_below_the_minimum_effect_is_none_however_rare() -> None:
    flows = usual(LEARNED, calls=100_000, bytes_out=None) + usual([12], calls=190_000, bytes_out=None)
    assert created(judge(flows)) == []
    assert created(judge(flows, min_effect_ratio=1.5)) == [(DriftKind.RATE_SURGE, WEB, CART, 12)]


@pytest.mark.parametrize(("history", "fires"), [(7, False), (8, True)])
def test_a_signal_is_judged_only_with_enough_history(history: int, fires: bool) -> None:
    flows = usual(range(history), bytes_out=None) + usual([history], count=200, bytes_out=None)
    assert bool(created(judge(flows, min_history=8))) == fires


@pytest.mark.parametrize(("each", "fires"), [(5_000, False), (6_000, True)])
def test_a_surge_of_bytes_needs_64_kib(each: int, fires: bool) -> None:
    output = judge(usual(LEARNED, bytes_out=100) + usual([12], bytes_out=each))
    assert created(output) == ([(DriftKind.BYTES_SURGE, WEB, CART, 12)] if fires else [])


@pytest.mark.parametrize(("errors", "calls", "fires"), [(4, 100, False), (30, 100, True), (3, 9, False)])
def test_an_error_increase_needs_a_shift_and_a_sample(errors: int, calls: int, fires: bool) -> None:
    flows = usual(LEARNED, count=1, calls=100) + usual([12], count=1, calls=calls, errors=errors)
    kinds = [kind for kind, *_ in created(judge(flows))]
    assert (DriftKind.ERROR_INCREASE in kinds) == fires


def test_errors_are_judged_as_a_share_of_the_calls() -> None:
    flows = usual(LEARNED, count=1, calls=1_000, errors=100) + usual([12], count=1, calls=5_000, errors=500)
    assert DriftKind.ERROR_INCREASE not in {kind for kind, *_ in created(judge(flows))}


@pytest.mark.parametrize(
    ("usual_us", "now_us", "count", "fires"),
    [
        (10_000, 15_000, 12, False),  # less than twice
        (10_000, 40_000, 12, True),
        (10_000, 40_000, 5, True),  # all of the calls are slow, few as they are
        (10_000, 40_000, 1, False),  # a sample too small
        (10_000, 25_000, 9, False),  # alike for the median, which says less
        (500, 2_200, 12, False),  # less than 2 ms
        (500, 3_000, 12, True),
    ],
)
def test_a_latency_increase_needs_an_effect_a_shift_and_a_sample(
    usual_us: int, now_us: int, count: int, fires: bool
) -> None:
    flows = usual(LEARNED, latency_us=usual_us) + usual([12], count=count, latency_us=now_us)
    assert created(judge(flows)) == ([(DriftKind.LATENCY_INCREASE, WEB, CART, 12)] if fires else [])


def test_latency_says_which_quantiles_have_moved() -> None:
    flows = usual(LEARNED, count=100) + usual([12], count=90) + usual([12], count=10, latency_us=900_000)
    event = only(DriftKind.LATENCY_INCREASE, judge(flows).events)
    assert [item.signal for item in event.evidence] == ["latency_p95_us"]
    (evidence,) = event.evidence
    assert evidence.sample == 100 and evidence.history == 12
    assert 0.85e6 <= evidence.observed <= 0.95e6
    assert 9_000 <= evidence.expected <= 11_000


def test_a_single_window_in_trouble_does_not_change_what_is_usual() -> None:
    flows = usual(LEARNED) + usual([12], latency_us=900_000) + usual(range(13, 20)) + usual([20], latency_us=900_000)
    found = story(judge(flows, close_after_windows=2).events, DriftKind.LATENCY_INCREASE)
    assert [(what, index) for _, what, index, _ in found] == [
        ("create", 12),
        ("close", 14),
        ("create", 20),
    ]


@pytest.mark.parametrize(("count", "calls", "fires"), [(1, 10, True), (1, 60, False)])
def test_a_rate_drop_needs_an_effect(count: int, calls: int, fires: bool) -> None:
    flows = usual(LEARNED, count=1, calls=100) + usual([12], count=count, calls=calls)
    assert created(judge([*flows, *usual([13], count=1, calls=calls)])) == (
        [(DriftKind.RATE_DROP, WEB, CART, 12)] if fires else []
    )


@pytest.mark.parametrize(("calls", "fires"), [(9, False), (11, True)])
def test_sudden_silence_of_a_busy_edge_is_a_rate_drop_at_once(calls: int, fires: bool) -> None:
    flows = usual(LEARNED, count=1, calls=calls) + usual(range(14), src=PAY)
    output = judge(flows, min_calls=10)
    assert created(output) == ([(DriftKind.RATE_DROP, WEB, CART, 12)] if fires else [])


def test_silence_between_two_calls_is_usual_for_an_edge_that_always_pauses() -> None:
    flows = usual(range(0, 40, 3)) + usual(range(55), src=PAY)
    output = judge(flows, removed_after_silences=4)
    assert created(output) == [(DriftKind.REMOVED_EDGE, WEB, CART, 39 + 3 * 4)]


@pytest.mark.parametrize(("windows", "fires"), [(21, False), (22, True)])
def test_an_edge_is_removed_after_ten_times_its_usual_silence(windows: int, fires: bool) -> None:
    output = judge(usual(LEARNED) + usual(range(windows + 1), src=PAY))
    removed = [c for c in created(output) if c[0] is DriftKind.REMOVED_EDGE]
    assert removed == ([(DriftKind.REMOVED_EDGE, WEB, CART, 21)] if fires else [])


def quiet_edge(patience_ms: int) -> Feed:
    """A live lane in which an edge stops while a second partition of the source says nothing more."""
    feed = Feed(make_lane(2, mode="live", lateness_ms=0, max_wait_ms=patience_ms))
    for index in range(60):
        now = (index + 1) * 10_000
        flows = usual([index], src=PAY) + (usual([index]) if index < 12 else [])
        feed.send(sorted(flows, key=lambda flow: flow.time_ms), as_of_ms=now)
        if index < 12:
            feed.state(partition=1, state=ACTIVE, clocks=(("other", now - 1),), as_of_ms=now)
    return feed


def test_removed_and_drop_are_withheld_while_windows_are_incomplete() -> None:
    feed = quiet_edge(patience_ms=20_000)
    assert {window.incomplete for window in feed.output.windows if window.start_ms >= 150_000} == {("silent",)}
    assert created(feed.output) == []


def test_silence_counts_from_the_end_of_the_incomplete_windows() -> None:
    feed = quiet_edge(patience_ms=20_000)
    for index in range(60, 75):
        now = (index + 1) * 10_000
        feed.state(partition=1, clocks=(("other", now - 1),), as_of_ms=now)
        feed.send(usual([index], src=PAY), as_of_ms=now)
    assert [(kind, index) for kind, _, _, index in created(feed.output)] == [
        (DriftKind.RATE_DROP, 59),
        (DriftKind.REMOVED_EDGE, 68),
    ]


def test_the_end_of_a_file_is_no_outage() -> None:
    """The last window is cut off where the file ends: what is missing from it means nothing."""
    flows = usual(LEARNED, count=1, calls=100) + usual(LEARNED, count=1, calls=100, src=PAY)
    assert created(judge(flows + usual([12], count=1, calls=1))) == []


def test_a_whole_lane_that_falls_silent_is_seen_by_the_clock_alone() -> None:
    feed = Feed(make_lane(1, mode="live", lateness_ms=0))
    for index in LEARNED:
        feed.send(usual([index]), as_of_ms=(index + 1) * 10_000)
    for second in range(120, 141):
        feed.state(state=IDLE, as_of_ms=second * 1_000)
    assert created(feed.output) == [(DriftKind.RATE_DROP, WEB, CART, 12)]
