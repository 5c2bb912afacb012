"""Lanes of one tenant: an edge known in one is no news in another, and gone only when no lane sees it."""

from typing import Any

import msgspec
import pytest

from models.graph.output import SEEN_ELSEWHERE
from models.graph.snapshot import mark_clean, take
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import WINDOW_MS, story, usual
from tests.unit.models.graph.lanes import Lanes, learning, live_lane

NEW_EDGE, NEW_PORT, NEW_SERVICE = DriftKind.NEW_EDGE, DriftKind.NEW_PORT, DriftKind.NEW_SERVICE
EGRESS, REMOVED, BURST = DriftKind.NEW_EXTERNAL_EGRESS, DriftKind.REMOVED_EDGE, DriftKind.FAN_OUT_BURST
WEB, CART, PAY = "shop/web", "shop/cart", "shop/pay"


def base(index: int, **changes: Any) -> list[Flow]:
    """Return what every window of a lane has: web and pay call cart."""
    return usual([index], **changes) + usual([index], src=PAY, **changes)


def at(index: int, **changes: Any) -> Flow:
    return make_flow(index * WINDOW_MS + 5_000, **changes)


def both_learned(*lanes: Any, windows: int = 6) -> Lanes:
    """Return lanes that all have learned the same traffic for some windows."""
    feed = Lanes(*(lanes or ("hubble", "vpc")))
    for index in range(windows):
        for lane in feed.config:
            feed.send(lane, base(index))
    return feed


def run(feed: Lanes, windows: range, lanes: tuple[str, ...] = ("hubble", "vpc")) -> None:
    for index in windows:
        for lane in lanes:
            feed.send(lane, base(index))


def news(feed: Lanes) -> dict[str, list[tuple[DriftKind, str, str]]]:
    """Return what each lane told of what is new; lanes that told nothing are left out."""
    kinds = {NEW_EDGE, NEW_PORT, NEW_SERVICE, EGRESS}
    found = {lane: [told for told in feed.told(lane) if told[0] in kinds] for lane in feed.config}
    return {lane: told for lane, told in found.items() if told}


def test_the_lane_that_sees_an_edge_first_tells_it_and_the_other_lists_itself_as_a_source() -> None:
    feed = both_learned()
    feed.send("hubble", [*base(6), at(6, src=WEB, dst=PAY)])
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY)])
    run(feed, range(7, 9))
    assert feed.told("hubble") == [(NEW_EDGE, WEB, PAY)]
    assert feed.told("vpc") == []
    early, settled = feed.events["hubble"][:2]
    assert (early.is_early, early.seen_in, early.confidence) == (True, ("hubble",), 40 + 2 * 5)
    assert (settled.activity, settled.seen_in, settled.confidence) == (
        Activity.UPDATE,
        ("hubble", "vpc"),
        40 + 2 * 6 + 4,
    )
    assert "It is also seen in lane vpc (since 1970-01-01T00:01:05.000Z)." in settled.message
    assert "also seen" not in early.message


def test_an_edge_that_another_lane_has_known_for_long_is_no_news() -> None:
    feed = Lanes("hubble", "vpc")
    for index in range(8):
        feed.send("hubble", [*base(index), at(index, src=WEB, dst=PAY)])
        feed.send("vpc", base(index))
    feed.send("vpc", [*base(8), at(8, src=WEB, dst=PAY)])
    run(feed, range(9, 12))
    assert news(feed) == {}
    window = next(w for w in feed.output.windows if w.lane == "vpc" and w.start_ms == 8 * WINDOW_MS)
    assert PAY in window.edges.dst, "the lane counts it all the same"


def test_an_edge_that_no_lane_knew_is_news_whichever_lane_sees_it() -> None:
    feed = both_learned()
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY)])
    feed.send("hubble", base(6))
    run(feed, range(7, 9))
    assert (feed.told("vpc"), feed.told("hubble")) == ([(NEW_EDGE, WEB, PAY)], [])
    assert {event.seen_in for event in feed.events["vpc"]} == {("vpc",)}


@pytest.mark.parametrize("is_open", [True, False])
def test_a_pair_that_another_lane_has_on_another_port_is_confirmed(is_open: bool) -> None:
    """A service's port and its pods' port are one conversation: the second lane has nothing new to say."""
    feed = both_learned()
    feed.send("hubble", [*base(6), at(6, src=WEB, dst=PAY, port=8080)])
    if not is_open:
        feed.send("hubble", base(7))
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY, port=80)])
    run(feed, range(8, 18))
    assert news(feed) == {"hubble": [(NEW_EDGE, WEB, PAY)]}
    closed = next(event for event in feed.events["hubble"] if event.activity is Activity.CLOSE)
    assert closed.seen_in == ("hubble", "vpc")


def test_a_port_that_no_lane_knew_on_a_pair_this_lane_knows_is_news() -> None:
    feed = both_learned()
    feed.send("vpc", [*base(6), at(6, port=9_999)])
    feed.send("hubble", [*base(6), at(6, port=9_999)])
    run(feed, range(7, 9))
    assert (feed.told("vpc"), feed.told("hubble")) == ([(NEW_PORT, WEB, CART)], [])
    assert feed.events["vpc"][-1].seen_in == ("hubble", "vpc")


def test_all_ports_of_a_new_pair_are_listed_by_the_lane_that_owns_it() -> None:
    """The other lane has the pair by then, through this lane's own news: that vouches for no further port."""
    feed = both_learned()
    feed.send("vpc", [at(6, src=WEB, dst=PAY, port=1)])
    feed.send("hubble", [at(6, src=WEB, dst=PAY, port=1)])
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY, port=2)])
    run(feed, range(7, 9))
    assert (feed.told("vpc"), feed.told("hubble")) == ([(NEW_EDGE, WEB, PAY)], [])
    assert [ref.port for ref in feed.events["vpc"][-1].edges] == [1, 2]


def test_a_pair_is_told_by_the_lane_that_owns_it_though_an_edge_of_the_other_lane_closes_first() -> None:
    feed = both_learned(live_lane("hubble"), live_lane("vpc", lateness_ms=WINDOW_MS))
    feed.send("vpc", [*base(6), at(7, src=WEB, dst=PAY, port=2)])
    feed.send("hubble", [at(6, src=WEB, dst=PAY, port=1)])
    feed.send("vpc", [at(6, src=WEB, dst=PAY, port=1)])
    run(feed, range(7, 10))
    assert feed.told("hubble") == []
    assert feed.told("vpc") == [(NEW_EDGE, WEB, PAY), (NEW_PORT, WEB, PAY)]
    early, settled = feed.events["vpc"][:2]
    assert (early.is_early, settled.is_early, settled.window_start_ms) == (True, False, 6 * WINDOW_MS)
    assert settled.finding_id == early.finding_id


def test_ports_that_come_after_the_first_window_of_a_confirmed_pair_are_news() -> None:
    feed = both_learned()
    feed.send("hubble", [*base(6), at(6, src=WEB, dst=PAY, port=8080)])
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY, port=80)])
    run(feed, range(7, 9))
    feed.send("vpc", [*base(9), at(9, src=WEB, dst=PAY, port=22)])
    run(feed, range(10, 12))
    assert feed.told("vpc") == [(NEW_PORT, WEB, PAY)]


def test_a_restart_keeps_what_was_confirmed_of_a_pair_whose_window_is_open() -> None:
    feed = both_learned()
    feed.send("hubble", [*base(6), at(6, src=WEB, dst=PAY, port=8080)])
    feed.send("vpc", [at(6, src=WEB, dst=PAY, port=80)])
    feed.restart()
    feed.send("vpc", [*base(6), at(6, src=WEB, dst=PAY, port=81)])
    run(feed, range(7, 10))
    assert news(feed) == {"hubble": [(NEW_EDGE, WEB, PAY)]}


def test_a_service_that_another_lane_knows_is_no_new_service() -> None:
    feed = Lanes("hubble", "vpc")
    for index in range(8):
        feed.send("hubble", [*base(index), at(index, src=WEB, dst="shop/mail")])
        feed.send("vpc", base(index))
    feed.send("vpc", [*base(8), at(8, src="shop/mail", dst=CART), at(8, src="shop/mail", dst="ext:relay")])
    run(feed, range(9, 11))
    assert sorted(feed.told("vpc")) == [(NEW_EDGE, "shop/mail", CART), (EGRESS, "shop/mail", "ext:relay")]


def test_a_new_service_that_two_lanes_see_is_told_once() -> None:
    feed = both_learned()
    feed.send("hubble", [*base(6), at(6, src=WEB, dst="shop/mail")])
    feed.send("vpc", [*base(6), at(6, src=WEB, dst="shop/mail")])
    run(feed, range(7, 9))
    assert (feed.told("hubble"), feed.told("vpc")) == ([(NEW_SERVICE, "shop/mail", "")], [])
    assert feed.events["hubble"][-1].seen_in == ("hubble", "vpc")


def test_a_new_service_keeps_its_edges_together_although_the_other_lane_has_it_meanwhile() -> None:
    feed = both_learned()
    feed.send("hubble", [at(6, src=WEB, dst="shop/mail")])
    feed.send("vpc", [at(6, src=WEB, dst="shop/mail")])
    feed.send("hubble", [*base(6), at(6, src="shop/mail", dst=CART)])
    run(feed, range(7, 9))
    assert feed.told("hubble") == [(NEW_SERVICE, "shop/mail", "")]
    assert feed.events["hubble"][-1].edges_total == 2


# -- calls from outside ----------------------------------------------------------------------------------------------


ANSWERED: dict[str, Any] = {"errors": 0, "bytes_in": 900}
UNANSWERED: dict[str, Any] = {"errors": 1, "bytes_in": 0}


def from_outside(index: int, dst: str = WEB, **changes: Any) -> Flow:
    return at(index, src="ext:partner", dst=dst, **changes)


@pytest.mark.parametrize("first", ["hubble", "vpc"])
def test_an_edge_from_outside_is_told_by_the_lane_whose_window_closes_first(first: str) -> None:
    """Whether it is a scan is not known before."""
    feed = both_learned()
    other = "vpc" if first == "hubble" else "hubble"
    for lane in ("hubble", "vpc"):
        feed.send(lane, [*base(6), from_outside(6, **ANSWERED)])
    run(feed, range(7, 9), (first, other))
    run(feed, range(9, 18))
    assert news(feed) == {first: [(NEW_EDGE, "ext:partner", WEB)]}
    assert feed.events[first][0].seen_in == ("hubble", "vpc")


def test_a_service_that_another_lane_told_early_is_no_news_by_an_earlier_call_from_outside() -> None:
    feed = both_learned(live_lane("hubble"), live_lane("vpc", lateness_ms=2 * WINDOW_MS))
    feed.send("vpc", [*base(6), from_outside(6, dst="shop/mail", **ANSWERED)])
    feed.send("hubble", [*base(6), at(7, src=WEB, dst="shop/mail")])
    feed.send("vpc", [*base(7), at(7, src=WEB, dst="shop/mail")])
    run(feed, range(8, 12))
    assert feed.told("hubble") == [(NEW_SERVICE, "shop/mail", "")]
    assert feed.told("vpc") == [(NEW_EDGE, "ext:partner", "shop/mail")]


def test_what_one_lane_takes_for_a_scan_hides_nothing_from_the_other() -> None:
    """Flow logs of one direction never see an answer."""
    feed = both_learned()
    feed.send("hubble", [*base(6), from_outside(6, **UNANSWERED)])
    feed.send("vpc", [*base(6), from_outside(6, **ANSWERED)])
    run(feed, range(7, 10))
    assert news(feed) == {"vpc": [(NEW_EDGE, "ext:partner", WEB)]}


def test_a_service_that_is_called_from_outside_alone_is_new_once() -> None:
    feed = both_learned()
    for lane in ("vpc", "hubble"):
        feed.send(lane, [*base(6), from_outside(6, dst="shop/edge", **ANSWERED)])
    run(feed, range(7, 9))
    for lane in ("hubble", "vpc"):
        feed.send(lane, [*base(9), at(9, src="ext:other", dst="shop/edge", **ANSWERED)])
    run(feed, range(10, 12))
    assert news(feed) == {"hubble": [(NEW_SERVICE, "shop/edge", ""), (NEW_EDGE, "ext:other", "shop/edge")]}


# -- who vouches -------------------------------------------------------------------------------------------------------


def test_replays_neither_vouch_nor_are_vouched_for() -> None:
    replay = make_lane(name="replay:old", lateness_ms=0, members=live_lane("old").members)
    feed = both_learned("hubble", replay)
    for lane, other in (("hubble", "replay:old"), ("replay:old", "hubble")):
        index = 6 if lane == "hubble" else 9
        feed.send(lane, [*base(index), at(index, src=WEB, dst=PAY)])
        feed.send(other, base(index))
        run(feed, range(index + 1, index + 3), tuple(feed.config))
    assert feed.told("hubble") == feed.told("replay:old") == [(NEW_EDGE, WEB, PAY)]
    assert {event.seen_in for event in feed.events["replay:old"]} == {("replay:old",)}


def test_what_a_lane_learns_with_the_others_vouches() -> None:
    """Both lanes began together: what the slower one has seen belongs to what the tenant began with."""
    slow = live_lane("vpc", detection=learning(8))
    feed = Lanes("hubble", slow)
    for index in range(5):
        feed.send("vpc", [*base(index), at(index, src=WEB, dst=PAY)])
        feed.send("hubble", base(index))
    feed.send("hubble", [*base(5), at(5, src=WEB, dst=PAY)])
    run(feed, range(6, 8))
    assert feed.told("hubble") == []


def newcomer() -> Lanes:
    """Return a lane that has learned for long, and one that joins and learns for 5 windows, from window 8 on."""
    feed = Lanes("hubble", live_lane("vpc", detection=learning(5)))
    for index in range(8):
        feed.send("hubble", base(index))
    return feed


def test_a_lane_that_joins_a_learned_tenant_silences_nobody_while_it_learns() -> None:
    feed = newcomer()
    feed.send("vpc", [*base(8), at(8, src=WEB, dst=PAY)])
    feed.restart()
    feed.send("hubble", [*base(8), at(8, src=WEB, dst=PAY)])
    run(feed, range(9, 11))
    assert (feed.told("hubble"), feed.told("vpc")) == ([(NEW_EDGE, WEB, PAY)], [])


def test_once_it_has_learned_what_it_knows_vouches() -> None:
    feed = newcomer()
    for index in range(8, 15):
        feed.send("vpc", [*base(index), at(index, src=WEB, dst=PAY)])
        feed.send("hubble", base(index))
    feed.send("hubble", [*base(15), at(15, src=WEB, dst=PAY)])
    run(feed, range(16, 18))
    assert (feed.told("hubble"), feed.told("vpc")) == ([], [])


def test_a_lane_that_ended_a_month_ago_vouches_for_nothing() -> None:
    for days, expected in ((29, []), (31, [(NEW_EDGE, WEB, PAY)])):
        feed = Lanes("hubble", "old")
        for index in range(6):
            feed.send("hubble", base(index))
            feed.send("old", [*base(index), at(index, src=WEB, dst=PAY)])
        later = days * 8_640
        run(feed, range(later, later + 2), ("hubble",))
        feed.send("hubble", [*base(later + 2), at(later + 2, src=WEB, dst=PAY)])
        run(feed, range(later + 3, later + 5), ("hubble",))
        news = [told for told in feed.told("hubble") if told[0] is NEW_EDGE]
        assert news == expected, days


def test_tenants_are_apart() -> None:
    feed = both_learned()
    for index in range(6, 12):
        feed.send("hubble", [*base(index), *base(index, tenant="globex"), at(index, src=WEB, dst=PAY)])
        feed.send("vpc", [*base(index), *base(index, tenant="globex")])
    feed.send("vpc", [*base(12), at(12, src=WEB, dst=PAY, tenant="globex")])
    run(feed, range(13, 15))
    assert [(event.tenant, event.kind) for event in feed.events["vpc"] if event.activity is Activity.CREATE] == [
        ("globex", NEW_EDGE)
    ]


def test_under_an_older_logic_lanes_know_nothing_of_each_other() -> None:
    feed = Lanes("hubble", "vpc", logic=2)
    run(feed, range(6))
    for lane in feed.config:
        feed.send(lane, [*base(6), at(6, src=WEB, dst=PAY)])
    run(feed, range(7, 9))
    assert feed.told("hubble") == feed.told("vpc") == [(NEW_EDGE, WEB, PAY)]
    assert {event.seen_in for events in feed.events.values() for event in events} == {()}
    chunks = dict(take(feed.machine, everything=True))
    page = msgspec.msgpack.decode(chunks["vpc/edges/0"] or b"")
    assert not {"vouched", "seen_elsewhere"} & page["columns"].keys()
    assert "is_newcomer" not in msgspec.msgpack.decode(chunks["vpc/tenant/0"] or b"")


# -- fan-out -----------------------------------------------------------------------------------------------------------


def peers(index: int, count: int) -> list[Flow]:
    return [at(index, src=WEB, dst=f"peer-{number}") for number in range(count)]


def test_peers_that_another_lane_knew_before_make_no_burst() -> None:
    """A lane that comes to see more of the estate: news to it alone, and from then on its usual."""
    feed = Lanes("hubble", "vpc")
    for index in range(8):
        feed.send("hubble", [*base(index), *peers(index, 40)])
        feed.send("vpc", base(index))
    for index in range(8, 11):
        feed.send("vpc", [*base(index), *peers(index, 40)])
        feed.send("hubble", [*base(index), *peers(index, 40)])
    assert (feed.told("hubble"), feed.told("vpc")) == ([], [])


def test_a_scan_that_both_lanes_see_is_a_burst_however_they_share_its_edges() -> None:
    """Each lane counts all peers that are new since the window began: none can hide in the other's half."""
    feed = both_learned()
    some = peers(6, 16)
    feed.send("hubble", some[:8])
    feed.send("vpc", [*base(6), *some])
    feed.send("hubble", [*base(6), *some[8:]])
    run(feed, range(7, 9))
    assert [told for lane in feed.config for told in feed.told(lane) if told[0] is BURST] == [(BURST, WEB, "")] * 2


def test_an_early_burst_counts_only_peers_that_nobody_vouches_for_and_stands() -> None:
    feed = both_learned()
    feed.send("hubble", [*base(6), *peers(6, 50)])
    feed.send("vpc", [*base(6), *peers(6, 50)])
    run(feed, range(7, 9))
    bursts = {lane: [e for e in feed.events[lane] if e.kind is BURST] for lane in feed.config}
    assert [(e.activity, e.is_early) for e in bursts["hubble"][:2]] == [
        (Activity.CREATE, True),
        (Activity.UPDATE, False),
    ]
    assert [(e.activity, e.is_early) for e in bursts["vpc"][:1]] == [(Activity.CREATE, False)]


# -- removal -----------------------------------------------------------------------------------------------------------


def with_quiet(index: int, has_quiet: bool = True) -> list[Flow]:
    return base(index) + (usual([index], src=WEB, dst=PAY) if has_quiet else [])


def removal(event: DriftEvent) -> bool:
    return event.kind is REMOVED


def seen_by(quiet_until: dict[str, int], windows: int, lanes: tuple[Any, ...] = ("hubble", "vpc")) -> Lanes:
    """Return lanes that see the edge web -> pay in every window before the one given for each."""
    feed = Lanes(*lanes)
    for index in range(windows):
        for lane in feed.config:
            feed.send(lane, with_quiet(index, index < quiet_until[lane]))
    return feed


def test_an_edge_that_another_lane_still_sees_is_not_removed() -> None:
    feed = seen_by({"hubble": 12, "vpc": 100}, 60)
    assert [e for events in feed.events.values() for e in events if removal(e)] == []
    assert feed.output.counts[SEEN_ELSEWHERE] == 1, "kept back several times, counted once"


def test_it_is_removed_when_no_lane_sees_it_and_one_lane_says_so() -> None:
    feed = seen_by({"hubble": 12, "vpc": 30}, 60)
    found = [e for events in feed.events.values() for e in events if removal(e)]
    assert [(e.lane, e.activity, e.seen_in) for e in found] == [("vpc", Activity.CREATE, ("hubble", "vpc"))]
    assert found[0].window_start_ms // WINDOW_MS == 29 + 10
    assert "Other lanes that knew it do not see it either: hubble." in found[0].message


def test_it_is_told_once_where_all_lose_it_at_the_same_time() -> None:
    feed = seen_by({"hubble": 12, "vpc": 12}, 60)
    found = [e for events in feed.events.values() for e in events if removal(e)]
    assert [e.activity for e in found] == [Activity.CREATE]


def test_a_drop_stays_a_drop_of_its_lane() -> None:
    feed = seen_by({"hubble": 12, "vpc": 100}, 20)
    drops = [e for events in feed.events.values() for e in events if e.kind is DriftKind.RATE_DROP]
    assert {e.lane for e in drops} == {"hubble"}


def test_an_edge_that_only_one_lane_ever_saw_is_removed_as_ever() -> None:
    feed = seen_by({"hubble": 12, "vpc": 0}, 40)
    found = [e for events in feed.events.values() for e in events if removal(e)]
    assert [(e.lane, e.window_start_ms // WINDOW_MS, e.seen_in) for e in found] == [("hubble", 21, ("hubble",))]


def test_a_removed_edge_is_back_when_any_lane_sees_it() -> None:
    feed = seen_by({"hubble": 12, "vpc": 12}, 60)
    teller = next(lane for lane in feed.config if any(map(removal, feed.events[lane])))
    other = next(lane for lane in feed.config if lane != teller)
    for index in range(60, 63):
        feed.send(other, with_quiet(index))
        feed.send(teller, base(index))
    found = [(kind, activity, reason) for kind, activity, _, reason in story(feed.events[teller], REMOVED)]
    assert found == [(REMOVED, "create", ""), (REMOVED, "close", "returned")]
    assert feed.told(other).count((NEW_EDGE, WEB, PAY)) == 0


def test_records_that_a_slow_lane_brings_late_of_the_time_before_bring_nothing_back() -> None:
    feed = Lanes("hubble", "vpc")
    for index in range(12):
        feed.send("hubble", with_quiet(index))
        if index < 6:
            feed.send("vpc", with_quiet(index))
    for index in range(12, 400):
        feed.send("hubble", base(index))
    for index in range(6, 12):
        feed.send("vpc", with_quiet(index))
    feed.send("vpc", base(12))
    run(feed, range(400, 402))
    assert [kind for kind, *_ in story(feed.events["hubble"], REMOVED)] == [REMOVED]
    feed.send("vpc", with_quiet(402))
    run(feed, range(403, 406))
    assert [reason for *_, reason in story(feed.events["hubble"], REMOVED)] == ["", "returned"]


def test_a_row_in_an_open_window_of_another_lane_shows_that_the_edge_is_there() -> None:
    feed = seen_by({"hubble": 12, "vpc": 12}, 20)
    feed.send("vpc", with_quiet(20))
    for index in range(20, 24):
        feed.send("hubble", base(index))
    assert [e for events in feed.events.values() for e in events if removal(e)] == []
    assert feed.output.counts[SEEN_ELSEWHERE] == 1


def test_a_lane_that_fell_silent_itself_holds_no_removal_back() -> None:
    """Its last word is that it saw the edge; an hour of the other lane's time later that counts no more."""
    feed = Lanes("hubble", "vpc")
    for index in range(12):
        for lane in feed.config:
            feed.send(lane, with_quiet(index))
    for index in range(12, 12 + 400):
        feed.send("hubble", with_quiet(index, has_quiet=False))
    found = [e for e in feed.events["hubble"] if removal(e)]
    assert [(e.activity, e.window_start_ms // WINDOW_MS > 360) for e in found] == [(Activity.CREATE, True)]


# -- state -------------------------------------------------------------------------------------------------------------


def scenario(feed: Lanes) -> list[tuple[str, list[Flow]]]:
    """Return rows of both lanes with news of every kind, shared and not, in an order that takes turns."""
    steps: list[tuple[str, list[Flow]]] = []
    for index in range(40):
        extra: dict[str, list[Flow]] = {"hubble": [], "vpc": []}
        if index < 14:
            extra["hubble"] += usual([index], src=WEB, dst=PAY)
        if index < 20:
            extra["vpc"] += usual([index], src=WEB, dst=PAY)
        if index == 7:
            extra["vpc"] += [at(7, src=PAY, dst="shop/mail", port=25)]
        if index in (7, 8):
            extra["hubble"] += [at(index, src=PAY, dst="shop/mail", port=2525), at(index, src="shop/mail", dst=CART)]
        if index == 8:
            extra["vpc"] += [at(8, src=CART, dst=PAY)]
        if index == 9:
            extra["hubble"] += [at(9, src=CART, dst=PAY)]
            extra["vpc"] += [at(9, port=p) for p in (1, 2, 3)]
            extra["hubble"] += [at(9, port=p) for p in (2, 3, 4)]
        if index in (11, 12):
            extra["hubble"] += peers(index, 18)
            extra["vpc"] += peers(index, 30)
        if index >= 34:
            extra["hubble"] += usual([index], src=WEB, dst=PAY)
        for lane in ("hubble", "vpc"):
            steps.append((lane, sorted(base(index) + extra[lane], key=lambda flow: flow.time_ms)))
    return steps


def test_a_restart_at_any_record_changes_nothing() -> None:
    straight, restarted = Lanes("hubble", "vpc"), Lanes("hubble", "vpc")
    for lane, flows in scenario(straight):
        straight.send(lane, flows)
        restarted.send(lane, flows)
        restarted.restart()
    assert restarted.output.events == straight.output.events
    assert dict(take(restarted.machine, everything=True)) == dict(take(straight.machine, everything=True))
    kinds = {event.kind for event in straight.output.events}
    assert {NEW_EDGE, NEW_PORT, NEW_SERVICE, BURST, REMOVED} <= kinds


def test_pages_of_the_other_lane_are_stored_when_it_learns_that_a_removal_was_told() -> None:
    """A checkpoint of what changed alone, after every record, is the whole state."""
    feed = Lanes("hubble", "vpc")
    chunks: dict[str, bytes] = {}

    def checkpoint() -> None:
        for name, data in take(feed.machine):
            chunks[name] = chunks[name] if data is None else data
        mark_clean(feed.machine)

    for index in range(15):
        for lane in feed.config:
            feed.send(lane, with_quiet(index, index < 12))
            checkpoint()
    for index in range(15, 25):
        feed.send("hubble", base(index))
        checkpoint()
    assert [e.lane for e in feed.output.events if removal(e)] == ["hubble"]
    whole = dict(take(feed.machine, everything=True))
    assert {name: chunks[name] for name in whole} == whole
