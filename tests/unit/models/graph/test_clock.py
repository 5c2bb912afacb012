"""Lane clocks: what is waited for, and what is not."""

import pytest

from schemas.tenant_log import ACTIVE, ENDED, IDLE, PAUSED, Member
from tests.builders import SOURCE, make_flow, make_lane
from tests.unit.models.graph.driving import WINDOW_MS, Feed, in_window

START_MS = 1_000_000_000
LIVE = {"mode": "live", "lateness_ms": 5_000, "max_wait_ms": 60_000}


def live(partitions: int = 2, **changes: object) -> Feed:
    return Feed(make_lane(partitions, **{**LIVE, **changes}))


def watermark(feed: Feed) -> int | None:
    return feed.machine.lanes["test"].clock.watermark_ms


def closed(feed: Feed) -> list[int]:
    return [window.start_ms // WINDOW_MS for window in feed.output.windows]


def test_watermark_is_the_least_clock_minus_lateness() -> None:
    feed = Feed(make_lane(2, lateness_ms=5_000))
    feed.send([make_flow(100_000)], partition=0)
    feed.send([make_flow(70_000)], partition=1)
    assert watermark(feed) == 65_000


def test_watermark_never_goes_back() -> None:
    feed = Feed(make_lane(1, lateness_ms=5_000))
    feed.send([make_flow(100_000)])
    feed.send([make_flow(20_000)])
    assert watermark(feed) == 95_000


def test_watermark_stays_when_a_member_joins_behind() -> None:
    feed = Feed(make_lane(1, lateness_ms=5_000))
    feed.send([make_flow(100_000)])
    feed.lane = make_lane(2, lateness_ms=5_000)
    feed.send([make_flow(200_000)])
    assert watermark(feed) == 95_000
    feed.send([make_flow(50_000)], partition=1)
    assert watermark(feed) == 95_000


def test_a_member_never_heard_of_holds_the_watermark() -> None:
    feed = Feed(make_lane(2))
    feed.send([make_flow(1_000_000)])
    assert watermark(feed) is None
    assert feed.output.windows == []


@pytest.mark.parametrize("heard", [True, False])
def test_a_silent_member_is_waited_for_until_max_wait_and_then_windows_close_incomplete(heard: bool) -> None:
    feed = live()
    if heard:
        feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    for step in range(61):
        at = START_MS + 1_000 * step
        feed.send([make_flow(at)], as_of_ms=at)
    assert closed(feed) == []
    feed.send([make_flow(START_MS + 61_000)], as_of_ms=START_MS + 61_000)
    assert closed(feed) == [START_MS // WINDOW_MS + i for i in range(5)]
    assert {window.incomplete for window in feed.output.windows} == {("silent",)}


def test_a_silent_member_that_speaks_again_is_waited_for_again() -> None:
    feed = live()
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    for step in range(80):
        feed.send([make_flow(START_MS + 1_000 * step)], as_of_ms=START_MS + 1_000 * step)
    before = watermark(feed)
    feed.state(partition=1, as_of_ms=START_MS + 80_000)
    feed.send([make_flow(START_MS + 100_000)], as_of_ms=START_MS + 81_000)
    assert watermark(feed) == before


def test_a_hole_in_the_log_is_nobodys_silence() -> None:
    feed = live()
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    later = START_MS + 3_600_000
    feed.send([make_flow(later)], as_of_ms=later)
    assert watermark(feed) == START_MS - 5_000


def test_progress_without_rows_is_no_silence() -> None:
    """A partition with backlog is waited for as long as its owner states progress."""
    feed = live()
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    for step in range(120):
        at = START_MS + 1_000 * step
        feed.send([make_flow(at)], as_of_ms=at)
        feed.state(partition=1, as_of_ms=at)
    assert watermark(feed) == START_MS - 5_000


def test_an_idle_member_does_not_hold_the_watermark() -> None:
    feed = live()
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS)
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    assert watermark(feed) == START_MS - 5_000
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS + 20_000)
    feed.send([make_flow(START_MS + 20_000)], as_of_ms=START_MS + 20_000)
    assert [window.incomplete for window in feed.output.windows] == [()]


@pytest.mark.parametrize(("logic", "expected_ms"), [(1, START_MS + 15_000), (2, START_MS - 3_000)])
def test_what_an_idle_member_stated_holds_up_to_then(logic: int, expected_ms: int) -> None:
    """Its owner may have died since: what is pushed meanwhile is read late, and came in time."""
    feed = live()
    feed.logic = logic
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS + 2_000)
    feed.send([make_flow(START_MS + 20_000)], as_of_ms=START_MS + 20_000)
    assert watermark(feed) == expected_ms


def test_an_idle_member_that_falls_silent_no_longer_holds_the_watermark() -> None:
    feed = live()
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS)
    for step in range(0, 100, 5):
        feed.send([make_flow(START_MS + 1_000 * step)], as_of_ms=START_MS + 1_000 * step)
    assert watermark(feed) == START_MS + 95_000 - 5_000
    assert feed.output.windows[-1].incomplete == ("silent",)


def test_a_paused_member_counts_as_idle_and_marks_windows_incomplete_until_it_goes_on() -> None:
    feed = live()
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    feed.state(partition=1, state=PAUSED, as_of_ms=START_MS)
    feed.send([make_flow(START_MS + 20_000)], as_of_ms=START_MS + 20_000)
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS + 40_000)
    feed.send([make_flow(START_MS + 40_000)], as_of_ms=START_MS + 40_000)
    assert [window.incomplete for window in feed.output.windows] == [("paused",), ()]


def test_when_all_are_idle_the_watermark_follows_the_least_as_of() -> None:
    feed = live()
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    feed.state(partition=0, state=IDLE, as_of_ms=START_MS + 30_000)
    feed.state(partition=1, state=IDLE, as_of_ms=START_MS + 40_000)
    assert watermark(feed) == START_MS + 25_000
    assert closed(feed) == [START_MS // WINDOW_MS]


@pytest.mark.parametrize("state", [ACTIVE, IDLE])
def test_a_member_that_fell_silent_does_not_stop_an_idle_lane(state: int) -> None:
    """The worst outage: all traffic ends while one worker dies."""
    feed = live()
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    feed.state(partition=1, state=state, as_of_ms=START_MS)
    for step in range(1, 100):
        feed.state(partition=0, state=IDLE, as_of_ms=START_MS + 1_000 * step)
    assert watermark(feed) == START_MS + 99_000 - 5_000


def test_a_replay_lane_waits_for_data_whatever_the_clock_says() -> None:
    feed = Feed(make_lane(2, mode="replay", max_wait_ms=60_000))
    feed.send([make_flow(START_MS)], partition=1, as_of_ms=START_MS)
    for step in range(0, 400, 5):
        feed.send([make_flow(START_MS + 1_000 * step)], as_of_ms=START_MS + 1_000 * step)
        feed.state(partition=1, state=IDLE, as_of_ms=START_MS + 1_000 * step)
    assert watermark(feed) == START_MS - 5_000


def test_the_end_of_input_of_all_members_closes_everything() -> None:
    feed = Feed(make_lane(2))
    feed.send(in_window(3))
    feed.send(in_window(7), partition=1)
    feed.end(0)
    assert closed(feed) == [3]
    feed.end(1)
    assert closed(feed) == [3, 7]
    assert feed.machine.lanes["test"].clock.members[(SOURCE, 0)].state == ENDED


def test_a_jump_of_the_clock_needs_three_hosts_where_three_report() -> None:
    feed = live(1)
    now = START_MS + 7_200_000
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    feed.state(clocks=(("a", now), ("b", START_MS + 1_000), ("c", START_MS + 500)), as_of_ms=now)
    assert watermark(feed) == START_MS + 500 - 5_000
    feed.state(clocks=(("a", now), ("b", now - 1_000), ("c", now - 2_000)), as_of_ms=now)
    assert watermark(feed) == now - 2_000 - 5_000


def test_a_step_within_ten_minutes_needs_one_host() -> None:
    feed = live(1)
    feed.send([make_flow(START_MS)], as_of_ms=START_MS)
    later = START_MS + 600_000
    feed.state(clocks=(("a", later), ("b", START_MS), ("c", START_MS)), as_of_ms=later)
    assert watermark(feed) == later - 5_000


def test_a_live_clock_is_not_believed_beyond_as_of_plus_skew() -> None:
    feed = live(1, skew_ms=10_000)
    feed.state(clocks=(("a", START_MS + 500_000),), as_of_ms=START_MS)
    assert watermark(feed) == START_MS + 10_000 - 5_000


def test_a_row_of_the_next_century_moves_no_replay_clock() -> None:
    feed = Feed(make_lane(1))
    output = feed.send([make_flow(START_MS), make_flow(START_MS + 100 * 365 * 86_400_000)], as_of_ms=START_MS)
    assert [dead.reason for dead in output.dead] == ["future"]
    feed.send([make_flow(START_MS + 1_000)], as_of_ms=START_MS)
    assert feed.output.counts["late"] == 0
    assert watermark(feed) == START_MS + 1_000 - 5_000


def test_a_statement_below_the_applied_coordinate_changes_nothing() -> None:
    feed = live(1)
    feed.send([make_flow(START_MS), make_flow(START_MS + 1)], as_of_ms=START_MS)
    stale = feed.log[0].progress[0]
    feed.next_offset[0] = 1
    feed.state(state=IDLE, as_of_ms=START_MS + 100_000, clocks=(("host", START_MS + 90_000),))
    member = feed.machine.lanes["test"].clock.members[(SOURCE, 0)]
    assert (member.state, member.event_ms) == (ACTIVE, START_MS + 1)
    assert feed.machine.applied[(SOURCE, 0)] == stale.upto


def test_a_topic_that_leaves_the_lane_no_longer_holds_it() -> None:
    feed = Feed(make_lane(1, members=(Member(SOURCE, 1), Member("gone#1", 1))))
    feed.send([make_flow(100_000)])
    assert watermark(feed) is None
    feed.lane = make_lane(1, version=2)
    feed.send([make_flow(100_000)])
    assert watermark(feed) == 95_000
