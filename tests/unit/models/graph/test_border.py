"""Services that meet strangers outside by habit are judged by what is unusual for them; scans are no news."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.registry import NEVER
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, WINDOW_MS, Feed, created, judge, story, usual

WEB, CART = "shop/web", "shop/cart"
DAY = 86_400_000 // WINDOW_MS
ANSWERED: dict[str, Any] = {"errors": 0, "bytes_in": 500, "packets_in": 5}
REFUSED: dict[str, Any] = {"errors": 1, "bytes_in": 0, "packets_in": 1}


def stranger(index: int, number: int = 0, **changes: Any) -> Flow:
    """Return a call from somebody outside who is not seen otherwise."""
    values: dict[str, Any] = {"src": f"ext:net/{index}-{number}", "dst": WEB, "port": 443, **ANSWERED, **changes}
    return make_flow(index * WINDOW_MS + number, **values)


def strangers(windows: Iterable[int], count: int = 1, **changes: Any) -> list[Flow]:
    return [stranger(index, number, **changes) for index in windows for number in range(count)]


def inside(windows: Iterable[int]) -> list[Flow]:
    """Return traffic that keeps windows coming."""
    return usual(windows, src=WEB, dst=CART)


def machine_after(flows: list[Flow], **detection: Any) -> Machine:
    feed = Feed(make_lane(lateness_ms=0, detection=msgspec.structs.replace(DETECTION, **detection)))
    feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    feed.end()
    return feed.machine


def column(machine: Machine, name: str, service: str = WEB) -> int:
    registry = machine.lanes["test"].registry
    return int(registry.service.array[name][registry.service_number[0, service]])


def news(output: Output) -> list[tuple[DriftKind, str, str, int]]:
    return [found for found in created(output) if found[0] in (DriftKind.NEW_EDGE, DriftKind.NEW_EXTERNAL_EGRESS)]


def test_a_habit_is_told_of_a_few_times_and_then_no_more() -> None:
    # The first window with a stranger is everybody's first; after four more it is a habit.
    output = judge(inside(range(60)) + strangers(range(10, 60)))
    assert [index for *_, index in news(output)] == [10, 11, 12, 13, 14]


def test_a_habit_of_the_learning_windows_is_known_afterwards() -> None:
    assert news(judge(inside(range(20)) + strangers(range(20), 3), learning_windows=6)) == []


def test_calls_to_strangers_are_a_habit_of_their_own() -> None:
    crawl = [make_flow(i * WINDOW_MS + 1, src=WEB, dst=f"ext:net/{i}", port=443, **ANSWERED) for i in range(10, 40)]
    output = judge(inside(range(40)) + strangers(range(40)) + crawl)
    egress = [index for kind, *_, index in news(output) if kind is DriftKind.NEW_EXTERNAL_EGRESS]
    assert egress == [10, 11, 12, 13, 14]
    # One that may turn out to be a habit is told when its window closes, those before at once.
    assert {what for kind, what, _, _ in story(output.events, DriftKind.NEW_EXTERNAL_EGRESS) if what != "close"} == {
        "early",
        "update",
    }


def test_what_earlier_windows_may_make_a_habit_waits_for_its_window() -> None:
    feed = Feed(make_lane(lateness_ms=60_000, detection=DETECTION))
    calls = [make_flow(i * WINDOW_MS + 1, src=WEB, dst=f"ext:net/{i}", port=443, **ANSWERED) for i in range(8, 11)]
    feed.send(inside(range(8)) + inside(range(8, 14)))
    early = [feed.send([call]) for call in calls]
    assert feed.machine.lanes["test"].closed_index == 7
    # The first leaves room for no habit; before the third closes, three windows may bring news.
    assert [bool(output.events) for output in early] == [True, True, True]
    assert not feed.send([make_flow(13 * WINDOW_MS + 1, src=WEB, dst="ext:net/13", port=443, **ANSWERED)]).events
    feed.end()
    assert [index for *_, index in news(feed.output)] == [8, 9, 10, 13]


def test_a_habit_that_ends_is_forgotten() -> None:
    habit = strangers(range(10, 40))
    for days, is_told in ((2, False), (3, True)):
        later = 39 + days * DAY
        flows = inside([*range(40), *range(40 + DAY, later + 2 * DAY, DAY), later]) + habit + strangers([later])
        told = [index for *_, index in news(judge(flows)) if index >= 40]
        assert told == ([later] if is_told else [])


@pytest.mark.parametrize(
    ("answer", "is_answered"),
    [
        ({"errors": 1}, False),
        ({"denied": 1}, False),
        ({"errors": 1, "bytes_in": 40, "packets_in": 1}, False),  # a reset with its headers
        ({"bytes_in": 0, "packets_in": 0}, False),
        ({"errors": 0, "bytes_in": 0}, True),  # a handshake and no data
        ({"errors": 1, "bytes_in": 5_000, "packets_in": 9}, True),  # aborted after data
        ({"errors": 1, "bytes_in": 21, "packets_in": 3}, True),  # the same, headers not counted
        ({"errors": 1, "calls": 2}, True),
        ({}, True),  # a source that says nothing of it
    ],
)
def test_only_an_answer_makes_a_caller_from_outside_news(answer: dict[str, Any], is_answered: bool) -> None:
    call = make_flow(12 * WINDOW_MS + 5, src="ext:net/1", dst=WEB, port=22, **answer)
    output = judge([*inside(range(14)), call])
    assert news(output) == ([(DriftKind.NEW_EDGE, "ext:net/1", WEB, 12)] if is_answered else [])


def test_scans_leave_nothing_behind() -> None:
    quiet = machine_after(inside(range(14)))
    scan = [stranger(index, number, port=number + 1, **REFUSED) for index in range(14) for number in range(50)]
    scanned = machine_after(inside(range(14)) + scan)
    assert len(scanned.lanes["test"].registry.edge_number) == len(quiet.lanes["test"].registry.edge_number)
    assert scanned.lanes["test"].tenants[0].edges.count == quiet.lanes["test"].tenants[0].edges.count
    assert column(scanned, "in_news") == -1


def test_a_scan_of_addresses_that_nobody_has_is_no_new_service() -> None:
    probes = [stranger(12, n, dst=f"ip:10.0.0.{n}", **REFUSED) for n in range(14)]
    assert created(judge(inside(range(14)) + probes)) == []


@pytest.mark.parametrize("together", [True, False])
def test_scans_before_the_first_answer_change_nothing_whenever_they_arrive(together: bool) -> None:
    """The window of the scan may be open still when the answered call comes, or may have closed."""
    caller: dict[str, Any] = {"src": "ext:net/1", "dst": WEB, "port": 22}
    scan = make_flow(9 * WINDOW_MS + 1, **caller, **REFUSED)
    call = make_flow(10 * WINDOW_MS + 3_000, **caller, **ANSWERED, latency_us=5)
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.send(inside(range(9)))
    if together:
        feed.send([scan, call])
        feed.send(inside(range(11, 14)))
    else:
        feed.send([scan])
        feed.send(inside([10]))
        feed.send([call])
        feed.send(inside(range(11, 14)))
    feed.end()
    (event,) = [e for e in feed.output.events if e.kind is DriftKind.NEW_EDGE and e.activity is Activity.CREATE]
    registry = feed.machine.lanes["test"].registry
    number = registry.edge_number["acme", "ext:net/1", WEB, 22, 6]
    assert (
        event.window_start_ms == event.first_seen_ms == registry.edge.array["first_seen_ms"][number] == 10 * WINDOW_MS
    )
    assert registry.edge.array["history"][number].tolist() == [1, 1, 1, 1, 1]
    assert registry.edge.array["run_from"][number] == 10


@pytest.mark.parametrize(
    ("sent", "is_call"),
    [
        ({"packets_out": 0, "bytes_out": 0}, False),  # answers to calls that somebody forged
        ({"packets_out": 0}, False),
        ({"packets_out": 1, "bytes_out": 0}, True),
        ({"packets_out": 0, "bytes_out": 9}, True),
        ({}, True),  # a source that does not count
    ],
)
def test_what_comes_from_outside_unasked_is_no_call_to_it(sent: dict[str, Any], is_call: bool) -> None:
    back = make_flow(12 * WINDOW_MS + 5, src=WEB, dst="ext:net/1", port=443, bytes_in=44, packets_in=1, **sent)
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.send(inside(range(12)))
    assert bool([event for event in feed.send([back]).events if event.is_early]) == is_call
    feed.end()
    assert news(feed.output) == ([(DriftKind.NEW_EXTERNAL_EGRESS, WEB, "ext:net/1", 12)] if is_call else [])
    assert (("acme", WEB, "ext:net/1", 443, 6) in feed.machine.lanes["test"].registry.edge_number) == is_call


@pytest.mark.parametrize("together", [True, False])
def test_backscatter_before_a_call_changes_nothing_whenever_it_arrives(together: bool) -> None:
    peer: dict[str, Any] = {"src": WEB, "dst": "ext:net/1", "port": 443}
    back = make_flow(9 * WINDOW_MS + 1, packets_out=0, packets_in=1, **peer)
    call = make_flow(10 * WINDOW_MS + 3_000, packets_out=5, packets_in=4, **peer)
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.send(inside(range(9)))
    for flows in [[back, call]] if together else [[back], inside([10]), [call]]:
        feed.send(flows)
    feed.send(inside(range(11, 14)))
    feed.end()
    events = [e for e in feed.output.events if e.kind is DriftKind.NEW_EXTERNAL_EGRESS]
    assert [(e.is_early, e.activity.name, e.window_start_ms // WINDOW_MS) for e in events[:2]] == [
        (True, "CREATE", 10),
        (False, "UPDATE", 10),
    ]
    assert {e.first_seen_ms for e in events} == {10 * WINDOW_MS + 3_000}


def judge_open(flows: list[Flow]) -> Output:
    """Return what comes of traffic in which a habit has formed in the learning windows."""
    return judge(flows, learning_windows=8)


def open_service(until: int, **changes: Any) -> list[Flow]:
    """Return traffic of a service that strangers call in each window."""
    return inside(range(until)) + strangers(range(until), 3, **changes)


def only(output: Output, kind: DriftKind) -> list[DriftEvent]:
    return [event for event in output.events if event.kind is kind and event.activity is Activity.CREATE]


def test_a_port_newly_answered_outside_is_told_once_whoever_calls() -> None:
    flows = open_service(30) + strangers(range(20, 30), 4, port=9200) + strangers(range(5, 30), 2, port=23, **REFUSED)
    output = judge_open(flows)
    (event,) = only(output, DriftKind.NEW_PORT)
    assert (event.src, event.dst, event.port, event.window_start_ms) == ("", WEB, 9200, 20 * WINDOW_MS)
    assert [edge.src for edge in event.edges] == [f"ext:net/20-{n}" for n in range(4)]
    assert event.title == f"{WEB} (9200/tcp) newly answers callers outside"
    assert news(output) == []


def test_a_port_newly_called_outside_is_told_of_who_calls_everybody() -> None:
    crawl = [make_flow(i * WINDOW_MS + 1, src=CART, dst=f"ext:net/{i}", port=443, **ANSWERED) for i in range(30)]
    odd = make_flow(25 * WINDOW_MS + 2, src=CART, dst="ext:net/odd", port=4444, **REFUSED)
    (event,) = only(judge(inside(range(30)) + crawl + [odd]), DriftKind.NEW_PORT)
    assert (event.src, event.dst, event.port) == (CART, "", 4444)
    assert event.title == f"New port called outside by {CART} (4444/tcp)"


def test_ports_without_end_are_a_habit_too() -> None:
    flows = open_service(60) + [stranger(index, 9, port=10_000 + index) for index in range(10, 60)]
    told = [event.window_start_ms // WINDOW_MS for event in only(judge_open(flows), DriftKind.NEW_PORT)]
    # The first window of all, with 443, counts for none; so four more are told.
    assert told == [10, 11, 12, 13]


def test_one_known_port_more_of_the_unknown_protocol_is_no_exposure() -> None:
    flows = open_service(30) + strangers(range(20, 30), port=None, protocol="icmp")
    assert only(judge_open(flows), DriftKind.NEW_PORT) == []


def surges(output: Output) -> list[tuple[str, str, int, tuple[str, ...]]]:
    return [
        (e.src, e.dst, e.window_start_ms // WINDOW_MS, tuple(item.signal for item in e.evidence))
        for e in only(output, DriftKind.RATE_SURGE)
    ]


@pytest.mark.parametrize(("callers", "fires"), [(14, False), (15, True)])
def test_far_more_callers_than_ever_are_a_surge(callers: int, fires: bool) -> None:
    output = judge_open(open_service(20) + strangers([20], callers))
    assert surges(output) == ([("", WEB, 20, ("outside_callers",))] if fires else [])


def test_refused_callers_count_for_a_surge() -> None:
    output = judge_open(open_service(20) + strangers([20], 40, **REFUSED))
    assert surges(output) == [("", WEB, 20, ("outside_callers",))]


def test_a_service_nobody_outside_gets_into_can_be_hammered() -> None:
    hammer = strangers([15], 10, calls=20, errors=20, bytes_in=0)
    assert surges(judge(inside(range(20)) + hammer)) == [("", WEB, 15, ("outside_calls_per_window",))]


@pytest.mark.parametrize(("calls", "fires"), [(99, False), (100, True)])
def test_far_more_calls_than_ever_are_a_surge(calls: int, fires: bool) -> None:
    output = judge_open([*open_service(20), stranger(20, calls=calls)])
    assert surges(output) == ([("", WEB, 20, ("outside_calls_per_window",))] if fires else [])
    for event in only(output, DriftKind.RATE_SURGE):
        assert (event.evidence[0].observed, event.evidence[0].expected, event.edges_total) == (100.0, 3.0, 1)
        assert event.title == f"Calls from outside to {WEB} surged"


def test_what_was_told_moves_what_is_usual_so_that_the_same_again_is_not_told() -> None:
    flows = open_service(200) + [stranger(index, 9, calls=1_000) for index in range(20, 200, 20)]
    assert [index for _, _, index, _ in surges(judge_open(flows))] == [20, 40, 60]  # from 3: 100, 300, 900


def test_a_ramp_does_not_lead_around_the_alarm() -> None:
    ramp = [stranger(20 + step, 9, calls=40 * 2**step) for step in range(6)]
    assert [index for _, _, index, _ in surges(judge_open(open_service(40) + ramp))] == [22]


def test_what_was_most_fades_by_an_eighth_a_day() -> None:
    flows = [*open_service(20), stranger(15, 9, calls=800)]
    machine = machine_after([*flows, *inside([DAY + 1])], learning_windows=18)
    assert column(machine, "in_calls_max") == 803 - 100
    assert column(machine_after([*flows, *inside([9 * DAY + 1])], learning_windows=18), "in_calls_max") == 803 - 100


def test_calls_to_the_whole_outside_surge_as_well() -> None:
    crawl = [make_flow(i * WINDOW_MS + 1, src=CART, dst=f"ext:net/{i}", port=443, **ANSWERED) for i in range(30)]
    burst = make_flow(25 * WINDOW_MS + 2, src=CART, dst="ext:net/odd", port=443, calls=500, **ANSWERED)
    assert surges(judge(inside(range(30)) + crawl + [burst])) == [(CART, "", 25, ("outside_calls_per_window",))]


@pytest.mark.parametrize(("volume", "fires"), [((1 << 20) - 1, False), (1 << 20, True)])
def test_one_peer_with_far_more_bytes_than_any_before_is_told(volume: int, fires: bool) -> None:
    big = stranger(20, 50, bytes_in=volume)
    output = judge_open([*open_service(20), big, *strangers([20], 3)])
    found = only(output, DriftKind.BYTES_SURGE)
    assert [(e.src, e.dst, e.port) for e in found] == ([(big.src, WEB, 443)] if fires else [])
    assert all(e.evidence[0].observed == volume and e.evidence[0].expected == 500 for e in found)


def test_edges_of_an_open_service_are_not_missed_nor_measured_one_by_one() -> None:
    regular: dict[str, Any] = {"src": "ext:net/regular", "dst": WEB, "port": 443, "latency_us": 1_000, **ANSWERED}
    steady = usual(range(15), count=12, **{"bytes_out": None, **regular})
    slow = usual([15], count=12, **{**regular, "latency_us": 900_000, "errors": 1, "bytes_out": None})
    closed = judge(inside(range(40)) + steady + slow)
    kinds = {kind for kind, src, *_ in created(closed) if src == "ext:net/regular"}
    assert kinds >= {DriftKind.LATENCY_INCREASE, DriftKind.ERROR_INCREASE, DriftKind.RATE_DROP, DriftKind.REMOVED_EDGE}
    assert created(judge_open(open_service(40) + steady + slow)) == []


def test_a_caller_from_outside_fans_out_only_where_it_gets_in_and_where_that_is_no_habit() -> None:
    names = [f"shop/{n}" for n in range(20)]
    base = [flow for name in names for flow in usual(range(12), count=1, src=WEB, dst=name)]
    base += [make_flow(i * WINDOW_MS + 7, src="ext:net/1", dst=WEB, **ANSWERED) for i in range(12)]

    def sweep(answer: dict[str, Any]) -> list[Flow]:
        return [make_flow(12 * WINDOW_MS + n, src="ext:net/1", dst=name, **answer) for n, name in enumerate(names)]

    public = [stranger(i, n, dst=name) for i in range(12) for n, name in enumerate(names)]
    bursts = [
        [event.src for event in only(judge_open(flows), DriftKind.FAN_OUT_BURST)]
        for flows in (base + sweep(ANSWERED), base + sweep(REFUSED), base + public + sweep(ANSWERED))
    ]
    assert bursts == [["ext:net/1"], [], []]


def test_refusals_of_one_caller_from_outside_are_no_burst_of_their_own() -> None:
    refused = make_flow(12 * WINDOW_MS, src="ext:net/1", dst=WEB, calls=90, denied=90)
    known = [make_flow(i * WINDOW_MS + 7, src="ext:net/1", dst=WEB, denied=0, **ANSWERED) for i in range(12)]
    kinds = {kind for kind, *_ in created(judge(inside(range(14)) + known + [refused]))}
    assert DriftKind.DENIED_BURST not in kinds


def test_a_crawler_that_crawls_more_is_told_of_once() -> None:
    crawl = [make_flow(i * WINDOW_MS + 1, src=CART, dst=f"ext:net/{i}", port=443, **ANSWERED) for i in range(100)]
    more = [
        make_flow(i * WINDOW_MS + n, src=CART, dst=f"ext:net/{i}-{n}", port=443, **ANSWERED)
        for i in range(20, 100, 20)
        for n in range(40)
    ]
    output = judge(inside(range(100)) + crawl + more)
    assert [e.window_start_ms // WINDOW_MS for e in only(output, DriftKind.FAN_OUT_BURST)] == [20]


def test_under_an_older_logic_each_call_from_outside_is_news_and_nothing_of_this_is_kept() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.logic = 2
    flows = inside(range(30)) + strangers(range(10, 30), 1, **REFUSED)
    feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    feed.end()
    assert [index for *_, index in news(feed.output)] == list(range(10, 30))
    registry = feed.machine.lanes["test"].registry
    size = len(registry.services)
    assert registry.service.array["in_news"][:size].tolist() == [-1] * size
    assert registry.service.array["in_calls_max"][:size].tolist() == [0] * size
    assert registry.edge.array["run_from"][: len(registry)].tolist() == [NEVER] * len(registry)


def test_a_tenant_can_have_its_own_measure_of_a_habit() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.control(b'{"open_after_windows": 2}', tenant="globex")
    flows = [
        msgspec.structs.replace(flow, tenant=tenant)
        for tenant in ("acme", "globex")
        for flow in inside(range(30)) + strangers(range(10, 30))
    ]
    feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    feed.end()
    told = dict.fromkeys(("acme", "globex"), 0)
    for event in only(feed.output, DriftKind.NEW_EDGE):
        told[event.tenant] += 1
    assert told == {"acme": 5, "globex": 3}
