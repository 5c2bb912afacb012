"""Halves of calls: which find each other, where they count, and what becomes of those that are left over."""

import msgspec
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind
from schemas.graph import ClosedWindow
from tests.builders import make_flow, make_lane, record_of
from tests.halves import Half, client_half, flows_of, server_half
from tests.unit.models.graph.driving import WINDOW_MS, Feed, created, in_window, records_in, total

CALL = (("shop/web", "shop/cart"), 1)


class Spans(Feed):
    """A feed of halves; the watermark stands still until it is told to move."""

    def __init__(self, **detection: int) -> None:
        super().__init__(make_lane(lateness_ms=0, detection=DetectionConfig(learning_windows=0, **detection)))

    def say(self, *halves: Half, is_loss: bool = False) -> Output:
        """Send halves that move no clock. ``is_loss``: a record before them is lost."""
        flows, pairs = flows_of(halves)
        start = self.next_offset.get(0, 0) + is_loss
        self.next_offset[0] = start + len(flows)
        record = record_of(self.lane, 0, start, flows, marks={"pair": pairs})
        progress = msgspec.structs.replace(record.progress[0], clocks=())
        return self.append(msgspec.structs.replace(record, progress=(progress,), loss=is_loss))

    def close_before(self, index: int) -> Output:
        """Let the windows before ``index`` close."""
        return self.state(clocks=(("host", index * WINDOW_MS),))


def edges_of(window: ClosedWindow) -> dict[tuple[str, str], tuple[int, int]]:
    """Return calls and the other side's flows by edge."""
    edges = window.edges
    calls, other = edges.measure("calls").tolist(), edges.other_side_flows.tolist()
    return {
        (src, dst): (calls[row], other[row]) for row, (src, dst) in enumerate(zip(edges.src, edges.dst, strict=True))
    }


def closed(feed: Spans) -> list[tuple[int, dict[tuple[str, str], tuple[int, int]]]]:
    """End the input and return the edges of each window."""
    feed.end()
    return [(window.start_ms // WINDOW_MS, edges_of(window)) for window in feed.output.windows]


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("apart", [False, True], ids=["one record", "two records"])
def test_two_halves_are_two_reports_of_one_call(server_first: bool, apart: bool) -> None:
    feed = Spans()
    halves = [client_half(7, 1_000, bytes_out=5), server_half(7, 1_500, bytes_out=7)]
    if server_first:
        halves.reverse()
    if apart:
        for half in halves:
            feed.say(half)
    else:
        feed.say(*halves)
    assert closed(feed) == [(0, {("shop/web", "shop/cart"): (1, 1)})]
    (window,) = feed.output.windows
    assert window.edges.port.tolist() == [8080], "the server's half knows none: the client's is taken"
    assert window.edges.measure("bytes_out").tolist() == [5] and 1_900 <= window.edges.p50_us[0] <= 2_300
    assert feed.output.counts["halves_paired"] == 2 and feed.output.counts["on_time"] == 2


def test_the_port_is_the_servers_where_the_client_does_not_know_it() -> None:
    feed = Spans()
    feed.say(client_half(1, 0, port=None, protocol=None), server_half(1, 0, port=9_090, protocol="udp"))
    feed.end()
    edges = feed.output.windows[0].edges
    assert (edges.port.tolist(), edges.protocol.tolist()) == ([9_090], [17])


def test_halves_of_different_tenants_or_keys_or_lanes_have_nothing_to_do_with_each_other() -> None:
    feed = Spans()
    feed.say(client_half(1, 0), server_half(1, 0, tenant="globex"), server_half(2, 0))
    feed.lane = make_lane(name="other", lateness_ms=0)
    feed.say(server_half(1, 0))
    assert feed.output.counts["halves_paired"] == 0
    assert [len(lane.halves) for lane in feed.machine.lanes.values()] == [3, 1]


def test_both_halves_count_in_the_clients_window() -> None:
    feed = Spans()
    feed.say(client_half(1, 9_999), server_half(1, 10_001))
    feed.say(server_half(2, 10_002), client_half(2, 9_998))
    assert closed(feed) == [(0, {("shop/web", "shop/cart"): (2, 2)})]


def test_a_half_whose_window_closes_is_counted_as_it_is() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000), server_half(2, 12_000))
    output = feed.close_before(1)
    assert [edges_of(window) for window in output.windows] == [{("shop/web", "ext:cart"): (1, 0)}]
    assert output.counts["on_time"] == 1 and output.counts["halves_alone"] == 1
    assert closed(feed)[1:] == [(1, {("ext:unknown", "shop/cart"): (1, 0)})]


def test_a_late_half_is_joined_to_one_that_waits_and_else_counts_as_late() -> None:
    feed = Spans()
    feed.say(client_half(1, 12_000), server_half(2, 13_000))
    feed.close_before(1)
    late_server = feed.say(server_half(1, 9_000))
    assert (late_server.counts["on_time"], late_server.counts["late"]) == (2, 0), "it takes the client's time"
    late_client = feed.say(client_half(2, 8_000))
    assert (late_client.counts["on_time"], late_client.counts["late"]) == (1, 1), "the server's half keeps its own"
    alone = feed.say(client_half(3, 7_000), server_half(4, 7_000))
    assert (alone.counts["late"], alone.counts["halves_alone"]) == (2, 2)
    again = feed.say(server_half(2, 13_500))
    assert not again.counts["halves_paired"], "of a client's late half nothing is kept"
    feed.end()
    (window,) = feed.output.windows
    late = dict(
        zip(
            zip(window.edges.src, window.edges.dst, strict=True),
            window.edges.measure("late_flows").tolist(),
            strict=True,
        )
    )
    assert late == {("shop/web", "shop/cart"): 1, ("shop/web", "ext:cart"): 1, ("ext:unknown", "shop/cart"): 1}
    assert edges_of(window)["shop/web", "shop/cart"] == (1, 2)


def test_one_message_to_many_consumers_gives_an_edge_to_each() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000), server_half(1, 1_100, dst="shop/mail"))
    feed.say(server_half(1, 12_000, dst="shop/audit"), server_half(1, 1_300, dst="shop/mail"))
    feed.say(server_half(2, 2_000, dst="shop/mail"), server_half(2, 2_000, dst="shop/audit"), client_half(2, 2_500))
    ((index, edges),) = closed(feed)
    assert index == 0 and edges == {("shop/web", "shop/mail"): (2, 3), ("shop/web", "shop/audit"): (2, 0)}


def test_consumers_of_one_message_that_wait_leave_with_the_first_whose_window_closes() -> None:
    feed = Spans()
    feed.say(server_half(1, 1_000, dst="shop/mail"), server_half(1, 15_000, dst="shop/audit"))
    output = feed.close_before(1)
    assert output.counts["halves_alone"] == 2 and len(feed.machine.lanes["test"].halves) == 0


@pytest.mark.parametrize("when", ["before the server", "after the server", "without a server"])
def test_a_clients_half_that_comes_twice_counts_one_call(when: str) -> None:
    feed = Spans()
    half = client_half(1, 1_000, bytes_out=9, calls=4)
    feed.say(half)
    if when == "before the server":
        feed.say(half)
    if when != "without a server":
        feed.say(server_half(1, 1_000, calls=4))
    if when != "before the server":
        feed.say(half)
    ((_, edges),) = closed(feed)
    (window,) = feed.output.windows
    to = "ext:cart" if when == "without a server" else "shop/cart"
    assert edges == {("shop/web", to): (4, 0 if when == "without a server" else 1)}
    assert window.edges.measure("flows").tolist() == [2] and window.edges.measure("bytes_out").tolist() == [9]
    assert window.edges.measure("bytes_out_flows").tolist() == [1]
    assert records_in(feed.output.windows) == feed.output.counts["on_time"] == sum(feed.next_offset.values())


def test_what_was_joined_is_forgotten_when_its_window_closes() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000), server_half(1, 1_000), client_half(2, 11_000))
    feed.close_before(1)
    output = feed.say(server_half(1, 12_000))
    assert output.counts["on_time"] == 0 and len(feed.machine.lanes["test"].halves) == 2


def test_beyond_the_bound_the_oldest_go_alone_and_what_was_joined_is_forgotten_first() -> None:
    feed = Spans(max_pending_pairs=4)
    feed.say(client_half(1, 1_000), client_half(2, 1_000), server_half(2, 1_000), server_half(3, 1_000))
    output = feed.say(client_half(4, 1_000), client_half(5, 1_000))
    assert output.counts == {"repeated": 0}, "the joined half of call 2 made room"
    output = feed.say(client_half(6, 1_000))
    assert (output.counts["halves_crowded_out"], output.counts["on_time"]) == (1, 1)
    assert len(feed.machine.lanes["test"].halves) == 4
    output = feed.say(server_half(1, 1_000), server_half(5, 1_000))
    assert output.counts["halves_paired"] == 2, "call 1 had been the oldest"
    assert total_records(feed) == 9


def total_records(feed: Spans) -> int:
    feed.end()
    assert records_in(feed.output.windows) == feed.output.counts["on_time"] + feed.output.counts["skewed"]
    return int(feed.output.counts["on_time"])


def test_a_bound_of_none_pairs_nothing() -> None:
    feed = Spans(max_pending_pairs=0)
    feed.say(client_half(1, 1_000), server_half(1, 1_000))
    assert feed.output.counts["on_time"] == 2 and len(feed.machine.lanes["test"].halves) == 0


def test_a_tenants_bound_is_its_own() -> None:
    feed = Spans()
    feed.control(b'{"max_pending_pairs": 1}')
    feed.say(*(client_half(n, 1_000, tenant=tenant) for n in range(3) for tenant in ("acme", "globex")))
    assert feed.output.counts["halves_crowded_out"] == 2


# -- what is news ------------------------------------------------------------------------------------------------------


def learned(feed: Spans) -> None:
    """Make ``web -> cart`` and ``cart -> db`` known, and let windows close up to the second."""
    feed.send([*in_window(0), *in_window(0, src="shop/cart", dst="shop/db")])
    feed.close_before(2)
    feed.output = Output()


def test_a_new_edge_fires_as_soon_as_both_halves_are_there() -> None:
    feed = Spans()
    learned(feed)
    assert feed.say(server_half(1, 21_000, dst="shop/db")).events == []
    output = feed.say(client_half(1, 21_000, guess="ext:database"))
    assert [(e.kind, e.src, e.dst, e.is_early) for e in output.events] == [
        (DriftKind.NEW_EDGE, "shop/web", "shop/db", True)
    ]
    feed.end()
    assert created(feed.output) == [(DriftKind.NEW_EDGE, "shop/web", "shop/db", 2)]


def test_a_half_alone_fires_when_its_window_closes_not_before() -> None:
    feed = Spans(max_pending_pairs=1)
    learned(feed)
    crowded = feed.say(client_half(1, 21_000, guess="ext:a"), client_half(2, 21_000, guess="ext:b"))
    late = feed.say(client_half(3, 1_000, guess="ext:c"))
    assert crowded.counts["halves_crowded_out"] == late.counts["late"] == 1
    assert crowded.events == late.events == []
    feed.end()
    assert created(feed.output) == [(DriftKind.NEW_EXTERNAL_EGRESS, "shop/web", f"ext:{name}", 2) for name in "abc"]


def test_a_servers_half_alone_is_measured_and_never_news() -> None:
    feed = Spans()
    learned(feed)
    for index in range(2, 8):
        feed.say(*(server_half(index * 100 + n, index * WINDOW_MS, dst=f"new/{n}") for n in range(40)))
        feed.close_before(index)
    feed.end()
    assert created(feed.output) == []
    assert total(feed.output.windows, "flows") == 240
    lane = feed.machine.lanes["test"]
    assert not [
        service
        for number, service in enumerate(lane.registry.services)
        if service[1].startswith("new/") and lane.registry.service.array["known"][number]
    ]


@pytest.mark.parametrize("in_one_record", [False, True])
def test_another_row_of_such_an_edge_is_news(in_one_record: bool) -> None:
    feed = Spans()
    learned(feed)
    feed.say(server_half(1, 21_000, dst="new/one"))
    feed.close_before(3)
    row = Half(make_flow(31_000, src="ext:unknown", dst="new/one", port=None, reporter="server"))
    if in_one_record:
        feed.say(server_half(2, 31_000, dst="new/one"), row)
    else:
        feed.say(row)
    feed.end()
    assert created(feed.output) == [(DriftKind.NEW_SERVICE, "new/one", "", 3)]


def test_edges_of_servers_halves_alone_are_forgotten_in_the_end() -> None:
    feed = Spans()
    learned(feed)
    feed.say(server_half(1, 21_000, dst="new/one"))
    feed.close_before(3)
    registry = feed.machine.lanes["test"].registry
    assert ("acme", "ext:unknown", "new/one", -1, 6) in registry.edge_number
    count = feed.machine.lanes["test"].tenants[0].edges.count
    for index in (43_300, 43_328, 43_392, 43_456):
        feed.send(in_window(index))
        feed.close_before(index + 1)
    assert ("acme", "ext:unknown", "new/one", -1, 6) not in registry.edge_number
    assert feed.machine.lanes["test"].tenants[0].edges.count == count - 2, "cart -> db is gone too; each counts once"


# -- the life of a lane ------------------------------------------------------------------------------------------------


def test_the_end_of_input_counts_what_waits_even_beyond_the_last_clock() -> None:
    feed = Spans()
    feed.say(client_half(1, 51_000), server_half(2, 91_000))
    assert [index for index, _ in closed(feed)] == [5, 9]
    assert feed.output.counts["on_time"] == 2


def test_a_new_incarnation_counts_what_waits_in_incomplete_windows() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000), server_half(2, 12_000))
    output = feed.machine.begin_incarnation()
    assert [(w.start_ms, w.incomplete) for w in output.windows] == [(0, ("incarnation",)), (10_000, ("incarnation",))]
    assert output.counts["on_time"] == 2 and len(feed.machine.lanes["test"].halves) == 0


def test_a_new_generation_drops_what_waits_like_its_open_windows_and_counts_it() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000), server_half(2, 12_000))
    feed.lane = msgspec.structs.replace(feed.lane, generation=1)
    output = feed.say(server_half(1, 1_000))
    assert output.counts["stale_generation"] == 2 and output.counts["halves_paired"] == 0


def test_a_loss_marks_windows_in_which_halves_wait() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000))
    feed.say(server_half(2, 1_000), is_loss=True)
    feed.close_before(1)
    assert [window.incomplete for window in feed.output.windows] == [("loss",)]


def test_a_half_ahead_of_the_clock_waits_where_it_is_believed_to_be() -> None:
    feed = Spans()
    feed.lane = make_lane(mode="live", lateness_ms=0, skew_ms=1_000)
    flows, pairs = flows_of([client_half(1, 50_000), server_half(1, 1_000)])
    feed.send(flows, as_of_ms=5_000, pair=pairs)
    feed.end()
    assert feed.output.counts["skewed"] == feed.output.counts["on_time"] == 1
    assert [(w.start_ms, total([w], "skewed_flows")) for w in feed.output.windows] == [(0, 1)]


def test_rows_with_and_without_a_pair_may_come_together() -> None:
    feed = Spans()
    feed.say(
        Half(make_flow(1_000)), client_half(1, 1_000), Half(make_flow(1_000, dst="shop/db")), server_half(1, 1_000)
    )
    assert closed(feed) == [(0, {("shop/web", "shop/cart"): (2, 1), ("shop/web", "shop/db"): (1, 0)})]


def test_sampling_of_halves_is_kept_by_side() -> None:
    feed = Spans()
    flows, pairs = flows_of([client_half(1, 1_000), server_half(1, 1_000)])
    feed.send(flows[:1], pair=pairs[:1], sampling=10)
    feed.send(flows[1:], pair=pairs[1:])
    feed.end()
    assert (total(feed.output.windows, "sampled_flows"), total(feed.output.windows, "sampling_sum")) == (1, 10)


@pytest.mark.parametrize("logic", [1, 2])
def test_before_logic_version_3_halves_are_plain_rows(logic: int) -> None:
    feed = Spans()
    feed.logic = logic
    feed.say(client_half(1, 1_000), server_half(1, 1_000))
    assert closed(feed) == [(0, {("shop/web", "ext:cart"): (1, 0), ("ext:unknown", "shop/cart"): (1, 0)})]
    assert not any(name.startswith("halves") for name in feed.output.counts)


def test_a_checkpoint_holds_what_waits_in_chunks_of_bounded_size() -> None:
    feed = Spans()
    long = "x" * 250
    for start in range(0, 12_000, 2_000):
        halves = [
            client_half(n, n % 10_000, src=f"{long}{n}", guess=f"ext:{long}{n}") for n in range(start, start + 2_000)
        ]
        feed.say(*halves)
    feed.say(*(server_half(n, 0) for n in range(0, 12_000, 3)))
    chunks = {name: chunk for name, chunk in take(feed.machine, everything=True) if chunk is not None}
    sizes = [len(chunk) for name, chunk in chunks.items() if "/halves/" in name]
    assert len(sizes) > 10 and max(sizes) < 512 * 1024
    again = restore(chunks)
    assert dict(take(again, everything=True)) == chunks
    assert isinstance(again, Machine) and len(again.lanes["test"].halves) == 8_000


# -- beside what else looks at rows ------------------------------------------------------------------------------------


def test_a_servers_half_alone_vouches_for_nothing_in_another_lane() -> None:
    feed = Spans()
    feed.lane = msgspec.structs.replace(feed.lane, mode="live")
    flows = make_lane(name="flows", mode="live", lateness_ms=0, detection=DetectionConfig(learning_windows=0))
    spans = feed.lane
    for lane in (spans, flows):
        feed.lane = lane
        feed.say(Half(make_flow(1_000)))
        feed.close_before(2)
    feed.lane = spans
    feed.say(server_half(1, 21_000, dst="new/one"))
    feed.close_before(3)
    feed.lane, feed.output = flows, Output()
    feed.say(Half(make_flow(31_000, dst="new/one")))
    assert [(event.kind, event.src) for event in feed.output.events] == [(DriftKind.NEW_SERVICE, "new/one")]


def test_what_a_row_confirms_another_lane_may_have_known() -> None:
    feed = Spans()
    feed.lane = msgspec.structs.replace(feed.lane, mode="live")
    flows = make_lane(name="flows", mode="live", lateness_ms=0, detection=DetectionConfig(learning_windows=0))
    spans, row = feed.lane, Half(make_flow(31_000, src="ext:unknown", dst="new/one", port=None))
    feed.say(Half(make_flow(1_000)), server_half(1, 1_000, dst="new/one"))
    feed.close_before(2)
    feed.lane = flows
    feed.say(Half(make_flow(1_000)), row)
    feed.close_before(4)
    feed.lane, feed.output = spans, Output()
    feed.say(row)
    feed.close_before(4)
    assert feed.output.events == []


def test_who_reported_a_half_is_noted_when_it_comes() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000, host="n1"))
    feed.say(client_half(2, 1_000, host="n1"), server_half(2, 12_000, host="n2"))
    guard = feed.machine.lanes["test"].guard
    guard.settle()
    noted = {(index, name): seen.rows for index in guard.open for name, seen in guard.open[index][0].hosts.items()}
    assert noted == {(0, "n1"): 2, (1, "n2"): 1}
    assert feed.output.counts["on_time"] == 2


def test_names_given_by_rules_hold_for_pairs_too() -> None:
    feed = Spans()
    feed.say(client_half(1, 1_000, src="ip:203.0.113.9"), server_half(1, 1_000, dst="ip:10.0.0.7"))
    assert closed(feed) == [(0, {("ext:net/203.0.0.0/16", "ip:10.0.0.7"): (1, 1)})]
