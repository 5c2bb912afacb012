"""Rows whose call another record counts (replies, later packets): they bring measures and no call."""

import pytest

from schemas.dead_letter import Reason
from schemas.drift import Activity, DriftKind
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import Feed, created, in_window, records_in, story, total, usual


def test_a_reply_adds_its_measures_to_its_edge_and_no_call() -> None:
    feed = Feed()
    flows = [make_flow(1_000, bytes_out=100, errors=0), make_flow(1_100, bytes_in=900, errors=1, latency_us=4_000)]
    feed.send(flows, continued=[0, 1])
    feed.end()
    (window,) = feed.output.windows
    measures = {name: int(window.edges.measure(name)[0]) for name in ("flows", "calls", "errors", "error_flows")}
    assert measures == {"flows": 2, "calls": 1, "errors": 1, "error_flows": 2}
    assert (total([window], "bytes_out"), total([window], "bytes_in")) == (100, 900)
    assert (total([window], "latency_calls"), total([window], "latency_sum_us")) == (1, 4_000)
    assert feed.output.counts["on_time"] == records_in(feed.output.windows) == 2


def test_late_replies_are_no_late_calls() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(in_window(5))
    feed.send([make_flow(1_000), make_flow(1_000)], continued=[0, 1])
    feed.end()
    assert (total(feed.output.windows, "late_flows"), total(feed.output.windows, "late_calls")) == (2, 1)


def test_no_call_is_a_value_of_replies_alone() -> None:
    feed = Feed()
    none = make_flow(1_000, calls=0)
    output = feed.send([none, none], continued=[1, 0])
    assert [dead.reason for dead in output.dead] == [Reason.STATE_MACHINE]
    assert output.counts["on_time"] == output.counts["dead"] == 1
    assert feed.send([none]).counts["dead"] == 1


def test_a_reply_alone_is_a_new_edge_too() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(usual(range(6)))
    output = feed.send([make_flow(61_000, dst="shop/stranger")], continued=[1])
    assert [(e.kind, e.src, e.is_early) for e in output.events] == [(DriftKind.NEW_SERVICE, "shop/stranger", True)]
    feed.end()
    (settled,) = [event for event in feed.output.events if event.activity is Activity.UPDATE]
    assert settled.evidence[0].observed == 1 and "1 call seen" in settled.message
    assert total(feed.output.windows[-1:], "calls") == 0


def test_replies_alone_keep_an_edge_from_being_removed_and_show_its_calls_gone() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    for index in range(12, 40):
        feed.send(usual([index], errors=12), continued=[1] * 12)
    feed.end()
    assert created(feed.output) == [(DriftKind.RATE_DROP, "shop/web", "shop/cart", 12)]


def test_errors_that_a_call_and_its_reply_both_tell_of_are_one() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    feed.send([*usual([12], errors=1), *usual([12], errors=1)], continued=[0] * 12 + [1] * 12)
    feed.end()
    (event,) = [e for e in feed.output.events if e.kind is DriftKind.ERROR_INCREASE and e.activity is Activity.CREATE]
    assert event.evidence[0].observed == 1.0
    assert total(feed.output.windows[-1:], "errors") == 24


@pytest.mark.parametrize("logic", [1, 2])
def test_before_logic_version_3_replies_are_calls(logic: int) -> None:
    feed = Feed()
    feed.logic = logic
    feed.send([make_flow(1_000), make_flow(2_000)], continued=[0, 1])
    feed.end()
    assert total(feed.output.windows, "calls") == 2
    assert story(feed.output.events) == []
