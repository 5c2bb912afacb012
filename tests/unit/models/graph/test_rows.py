"""Rows: where they are folded, what is late, skewed, refused, and what is not known."""

import numpy as np
import pytest

from models.graph.folding import MAX_OPEN_WINDOWS
from models.graph.window import MAX_SUM
from schemas.dead_letter import Reason
from schemas.drift import DriftKind
from schemas.graph import MEASURE_INDEX
from schemas.ids import end_position, position_of
from schemas.tenant_log import LogRecord, Progress, pack_rows
from tests.builders import SOURCE, make_flow, make_lane
from tests.unit.models.graph.driving import (
    AS_OF_MS,
    WINDOW_MS,
    Feed,
    created,
    in_window,
    records_in,
    total,
    usual,
)

HUGE = 1 << 42


def send_columns(feed: Feed, **columns: list[int]) -> None:
    """Send rows as no decoder would let them through."""
    count = len(columns["time_ms"])
    start = feed.next_offset.get(0, 0)
    feed.next_offset[0] = start + count
    values = {
        "position": [position_of(start + n, 0) for n in range(count)],
        "edge": [0] * count,
        "side": [0] * count,
        "skewed": [0] * count,
        "calls": [1] * count,
        **columns,
    }
    rows = pack_rows([("acme", "a", "b", 80, 6)], {n: np.array(v, dtype=np.int64) for n, v in values.items()})
    progress = Progress(SOURCE, 0, end_position(start - 1), end_position(start + count - 1), (("host", 1),))
    feed.append(LogRecord(worker="test", as_of_ms=AS_OF_MS, progress=(progress,), lane=feed.lane, rows=rows))


def test_late_rows_are_counted_in_the_window_that_holds_the_watermark_and_not_measured() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(in_window(5))
    feed.send(in_window(2, count=3, calls=7, bytes_out=10, bytes_in=1))
    feed.end()
    (window,) = feed.output.windows
    assert window.start_ms == 5 * WINDOW_MS
    assert feed.output.counts["late"] == 3
    assert [int(window.edges.measure(name)[0]) for name in ("flows", "calls", "late_flows")] == [1, 1, 3]
    assert [int(window.edges.measure(name)[0]) for name in ("late_calls", "late_bytes")] == [21, 33]


def test_rows_behind_the_watermark_but_within_their_open_window_are_on_time() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send([make_flow(59_000)])
    feed.send([make_flow(51_000)])
    assert feed.output.counts["late"] == 0


def test_structural_rules_see_late_rows() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(6):
        feed.send(in_window(index))
    output = feed.send([make_flow(1_000, dst="shop/stranger")])
    assert [(e.kind, e.src, e.is_early) for e in output.events] == [(DriftKind.NEW_SERVICE, "shop/stranger", True)]
    feed.end()
    assert created(feed.output) == [(DriftKind.NEW_SERVICE, "shop/stranger", "", 5)]


def test_late_rows_move_no_rate() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    feed.send(usual([3], count=500))
    feed.end()
    assert created(feed.output) == [(DriftKind.DELIVERY_LAG, "lane:test", "", 11)], "but it is said that they are late"


def test_a_record_ahead_of_the_logs_clock_is_folded_there_and_marked_skewed() -> None:
    feed = Feed(make_lane(mode="live", skew_ms=10_000))
    feed.send([make_flow(100_000), make_flow(110_000), make_flow(110_001)], as_of_ms=100_000)
    feed.end()
    assert [(w.start_ms, total([w], "skewed_flows")) for w in feed.output.windows] == [(100_000, 1), (110_000, 0)]
    assert feed.output.counts["skewed"] == 1


def test_a_record_more_than_a_day_ahead_is_a_dead_letter() -> None:
    feed = Feed(make_lane())
    day = 86_400_000
    output = feed.send([make_flow(day), make_flow(day + 1), make_flow(5)], as_of_ms=0)
    (dead,) = output.dead
    assert (dead.source, dead.partition, dead.position, dead.reason) == (SOURCE, 0, position_of(1, 0), Reason.FUTURE)
    feed.end()
    assert records_in(feed.output.windows) == 2


def test_a_flow_reported_by_both_sides_is_counted_once_from_the_clients_report() -> None:
    feed = Feed()
    client = in_window(0, count=3, reporter="client", latency_us=1_000, bytes_out=5)
    server = in_window(0, count=4, reporter="server", latency_us=9_000, bytes_out=7)
    feed.send(server + client)
    feed.end()
    edges = feed.output.windows[0].edges
    assert [int(edges.measure(name)[0]) for name in ("flows", "calls", "bytes_out")] == [3, 3, 15]
    assert int(edges.other_side_flows[0]) == 4
    assert 900 <= int(edges.p99_us[0]) <= 1_100


def test_the_servers_report_counts_where_the_client_is_silent() -> None:
    feed = Feed()
    feed.send(in_window(0, count=4, reporter="server", latency_us=9_000))
    feed.end()
    edges = feed.output.windows[0].edges
    assert (int(edges.measure("calls")[0]), int(edges.other_side_flows[0])) == (4, 0)
    assert 8_400 <= int(edges.p50_us[0]) <= 9_600


def test_a_late_report_of_the_client_does_not_displace_the_servers() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(in_window(5, count=2, reporter="server"))
    feed.send(in_window(1, count=3, reporter="client"))
    feed.end()
    edges = feed.output.windows[0].edges
    assert [int(edges.measure(name)[0]) for name in ("calls", "late_flows")] == [2, 3]


def test_unknown_is_not_zero() -> None:
    feed = Feed()
    feed.send([make_flow(0), make_flow(1, dst="shop/known", errors=0, bytes_out=0, denied=0, latency_us=0)])
    feed.end()
    edges = feed.output.windows[0].edges
    assert edges.dst == ["shop/cart", "shop/known"]
    for name in ("error_flows", "bytes_out_flows", "denied_flows", "latency_calls"):
        assert edges.measure(name).tolist() == [0, 1]
    assert edges.p50_us.tolist() == [-1, 0]


def test_an_unknown_signal_teaches_nothing() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(in_window(0, count=5))
    feed.end()
    registry = feed.machine.lanes["test"].registry
    assert registry.edge.array["history"][0].tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("calls", [1, 0, 1]),
        ("calls", [1, -1, 1]),
        ("calls", [1, (1 << 32) + 1, 1]),
        ("edge", [0, 1, 0]),
        ("edge", [0, -1, 0]),
        ("time_ms", [0, -1, 0]),
        ("errors", [0, -2, 0]),
        ("bytes_out", [0, HUGE + 1, 0]),
        ("bytes_in", [0, -(1 << 62), 0]),
        ("latency_us", [0, (1 << 63) - 1, 0]),
        ("denied", [0, 1 << 62, 0]),
    ],
)
def test_a_row_with_a_value_out_of_bounds_is_a_dead_letter_and_the_rows_around_it_count(
    column: str, values: list[int]
) -> None:
    feed = Feed()
    send_columns(feed, **{"time_ms": [1, 2, 3], column: values})
    feed.end()
    (dead,) = feed.output.dead
    assert (dead.position, dead.reason) == (position_of(1, 0), Reason.STATE_MACHINE)
    assert feed.output.counts["dead"] == 1
    assert (feed.output.counts["on_time"], records_in(feed.output.windows)) == (2, 2)


def test_the_largest_values_that_are_allowed_do_not_wrap() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    count = 1_000
    for index in range(4):
        for _ in range(3):
            send_columns(
                feed,
                time_ms=[index * WINDOW_MS] * count,
                calls=[1 << 32] * count,
                **{name: [HUGE] * count for name in ("errors", "denied", "bytes_out", "bytes_in", "latency_us")},
            )
    feed.end()
    window = feed.output.windows[0]
    assert total([window], "bytes_out") == 3 * count * HUGE
    assert total([window], "calls") == 3 * count << 32
    assert (window.edges.measures >= 0).all()
    assert HUGE <= int(window.edges.p50_us[0]) <= HUGE * 1.125


def test_sums_stop_at_their_bound_in_any_order() -> None:
    outcomes = []
    for cuts in ([1_000] * 600, [6_000] * 100):
        feed = Feed()
        for count in cuts:
            send_columns(feed, time_ms=[1] * count, calls=[1 << 32] * count, latency_us=[HUGE] * count)
        feed.end()
        outcomes.append(feed.output.windows[0].edges.measures.tolist())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0][MEASURE_INDEX["latency_sum_us"]] == MAX_SUM


def test_open_windows_are_bounded_and_no_row_is_lost_by_it() -> None:
    feed = Feed(make_lane(2))
    for index in range(MAX_OPEN_WINDOWS + 50):
        feed.send(in_window(index * 7))
    assert len(feed.machine.lanes["test"].windows) == MAX_OPEN_WINDOWS
    feed.end(0)
    feed.end(1)
    assert records_in(feed.output.windows) == MAX_OPEN_WINDOWS + 50
    assert feed.output.counts["skewed"] == 50
