"""The state machine: coordinates, loss, generations, declarations, settings, incarnations."""

import msgspec
import pytest

from models.graph.machine import MAX_SETTING
from schemas.drift import DriftKind
from schemas.errors import LossDetected
from schemas.ids import end_position
from schemas.tenant_log import IDLE, Member
from tests.builders import SOURCE, make_flow, make_lane, record_of
from tests.unit.models.graph.driving import (
    DETECTION,
    WINDOW_MS,
    Feed,
    created,
    in_window,
    records_in,
    story,
    total,
    usual,
)

NEW = DriftKind.NEW_SERVICE


def test_rows_at_or_below_the_applied_coordinate_are_skipped() -> None:
    feed = Feed()
    flows = in_window(0, count=5)
    feed.send(flows)
    output = feed.append(record_of(feed.lane, 0, 3, [*flows[3:], make_flow(1), make_flow(2)]))
    assert (output.counts["repeated"], output.counts["on_time"]) == (2, 2)
    feed.next_offset[0] = 7
    feed.end()
    assert records_in(feed.output.windows) == 7


def test_a_log_record_that_was_applied_changes_nothing() -> None:
    feed = Feed()
    feed.send(in_window(0, count=5))
    output = feed.machine.apply(0, feed.log[0])
    assert (output.counts, output.events) == ({}, [])


def test_coordinates_of_partitions_are_apart() -> None:
    feed = Feed(make_lane(2))
    feed.send(in_window(0, count=5), partition=0)
    output = feed.send(in_window(0, count=3), partition=1)
    assert output.counts["on_time"] == 3


def test_a_batch_above_the_applied_coordinate_is_a_loss() -> None:
    feed = Feed()
    feed.send(in_window(0, count=5))
    with pytest.raises(LossDetected, match=r"change topics\.incarnation"):
        feed.machine.apply(1, record_of(feed.lane, 0, 6, in_window(0)))
    assert feed.machine.offset == 0


def test_a_source_that_was_never_heard_of_may_start_anywhere() -> None:
    feed = Feed()
    feed.append(record_of(feed.lane, 0, 1_000, in_window(0)))
    assert feed.output.counts["on_time"] == 1


def lose(feed: Feed) -> None:
    """Skip one message, with the operator's word."""
    start = feed.next_offset[0] + 1
    record = record_of(feed.lane, 0, start, [make_flow(feed.last_ms)])  # type: ignore[attr-defined]
    feed.append(msgspec.structs.replace(record, loss=True))
    feed.next_offset[0] = start + 1


def test_an_accepted_loss_marks_windows_that_are_open_until_the_next_close_and_no_others() -> None:
    feed = Feed(make_lane(lateness_ms=15_000))
    for index in range(6):
        feed.send(in_window(index))
    feed.last_ms = 5 * WINDOW_MS  # type: ignore[attr-defined]
    lose(feed)
    feed.send(in_window(9))
    feed.send(in_window(12))
    feed.end()
    marks = {window.start_ms // WINDOW_MS: window.incomplete for window in feed.output.windows}
    assert marks == {0: (), 1: (), 2: (), 3: ("loss",), 4: ("loss",), 5: ("loss",), 9: ("loss",), 12: ()}


def test_a_loss_is_no_silence() -> None:
    """Records of the quiet edge may be among what was lost: its silence counts from the loss on."""
    feed = Feed(make_lane(lateness_ms=15_000))
    for index in range(12):
        feed.send(sorted(usual([index]) + usual([index], dst="shop/quiet"), key=lambda f: f.time_ms))
    feed.send(usual([12]))
    feed.send(usual([13]))
    feed.last_ms = 13 * WINDOW_MS  # type: ignore[attr-defined]
    lose(feed)
    for index in range(14, 18):
        feed.send(usual([index]))
    assert [e for e in story(feed.output.events) if e[0] is DriftKind.RATE_DROP] == [
        (DriftKind.RATE_DROP, "create", 15, "")
    ]


def test_a_new_generation_starts_from_nothing_and_the_old_one_is_ignored() -> None:
    feed = Feed(make_lane(generation=1))
    feed.send(in_window(0, count=2))
    old = feed.lane
    feed.lane = make_lane(generation=2)
    feed.send(in_window(0, count=3))
    feed.lane = old
    stale = feed.send(in_window(0, count=4))
    assert stale.counts == {"stale_generation": 4}
    feed.lane = make_lane(generation=2)
    feed.end()
    assert [(w.generation, records_in([w])) for w in feed.output.windows] == [(2, 3)]


def test_findings_of_two_generations_have_different_ids() -> None:
    ids = []
    for generation in (1, 2):
        feed = Feed(make_lane(generation=generation, lateness_ms=0))
        feed.send(usual(range(6)))
        feed.send(in_window(6, dst="shop/new"))
        feed.end()
        ids.append({event.finding_id for event in feed.output.events})
    assert len(ids[0]) == len(ids[1]) == 1
    assert ids[0] != ids[1]


def test_the_window_length_of_a_lane_never_changes() -> None:
    feed = Feed(make_lane(window_ms=10_000))
    feed.send(in_window(0))
    feed.lane = make_lane(window_ms=60_000, version=5, lateness_ms=1_000)
    feed.send(in_window(1))
    feed.end()
    assert [(w.start_ms, w.end_ms) for w in feed.output.windows] == [(0, 10_000), (10_000, 20_000)]
    assert feed.machine.lanes["test"].config.lateness_ms == 1_000


def test_the_declaration_with_the_highest_version_is_in_force_whoever_speaks_last() -> None:
    feed = Feed()
    for version in (2, 3, 1):
        feed.lane = make_lane(version=version, lateness_ms=1_000 * version)
        feed.send(in_window(0))
    assert feed.machine.lanes["test"].config.lateness_ms == 3_000


def test_of_two_declarations_of_one_version_the_same_one_wins_in_either_order() -> None:
    found = set()
    for order in ((1_000, 2_000), (2_000, 1_000)):
        feed = Feed()
        for lateness_ms in order:
            feed.lane = make_lane(version=2, lateness_ms=lateness_ms)
            feed.send(in_window(0))
        found.add(feed.machine.lanes["test"].config.lateness_ms)
    assert len(found) == 1


def test_an_old_record_takes_no_partition_away() -> None:
    feed = Feed(make_lane(1))
    feed.send(in_window(0))
    feed.lane = make_lane(2)
    feed.send(in_window(0), partition=1)
    feed.append(feed.log[0])
    assert feed.machine.lanes["test"].config.members == (Member(SOURCE, 2),)


def test_an_older_version_brings_no_member() -> None:
    feed = Feed(make_lane(1, version=2))
    feed.send(in_window(0))
    feed.lane = make_lane(4, version=1)
    feed.send(in_window(0))
    assert feed.machine.lanes["test"].config.members == (Member(SOURCE, 1),)


def learned(feed: Feed) -> None:
    for index in range(4):
        feed.send(in_window(index))


def test_a_tenants_settings_control_its_learning_and_nobody_elses() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.control(b'{"learning_windows": 50}')
    for index in range(4):
        feed.send(sorted(in_window(index) + in_window(index, tenant="globex"), key=lambda f: f.time_ms))
    feed.send([make_flow(45_000, dst="shop/new"), make_flow(46_000, dst="shop/new", tenant="globex")])
    feed.end()
    assert {event.tenant for event in feed.output.events} == {"globex"}
    assert {w.tenant for w in feed.output.windows if w.is_learning and w.start_ms >= 30_000} == {"acme"}


def test_a_tenants_settings_control_when_an_edge_counts_as_removed() -> None:
    found = {}
    for value in (b'{"removed_min_windows": 7, "removed_after_silences": 1}', b'{"min_history": 100}', b""):
        feed = Feed(make_lane(lateness_ms=0))
        feed.control(value)
        for index in range(40):
            names = ["shop/cart"] if index >= 12 else ["shop/cart", "shop/quiet"]
            feed.send(sorted((f for name in names for f in usual([index], dst=name)), key=lambda f: f.time_ms))
        feed.end()
        found[value] = [i for kind, _, _, i in created(feed.output) if kind is DriftKind.REMOVED_EDGE]
    assert list(found.values()) == [[11 + 7], [], [11 + 10]]


def test_a_tenants_settings_control_statistical_thresholds() -> None:
    for value, expected in ((b'{"min_effect_ratio": 100}', []), (b"{}", [DriftKind.RATE_SURGE])):
        feed = Feed(make_lane(lateness_ms=0))
        feed.control(value)
        for index in range(13):
            feed.send(usual([index], count=120 if index == 12 else 12, bytes_out=None))
        feed.end()
        assert [kind for kind, *_ in created(feed.output)] == expected


def test_a_control_delivered_again_changes_nothing() -> None:
    feed = Feed()
    feed.control(b'{"learning_windows": 5}', offset=0)
    feed.control(b'{"learning_windows": 7}', offset=1)
    feed.append(feed.log[0])
    assert feed.machine.settings == {"acme": {"learning_windows": 7}}


@pytest.mark.parametrize(
    "value",
    [
        b"not json",
        b"[1]",
        b'{"learning_windows": "many"}',
        b'{"learning_windows": 1e400}',
        b'{"nobody_knows_this": 3}',
        b'{"removed_after_silences": 99999999999999999999999, "fan_out_ratio": 1e308, "min_calls": -7}',
        b'{"close_after_windows": 0, "update_every_windows": 0, "removed_min_windows": 0, "max_edges_per_tenant": 0}',
    ],
)
def test_settings_of_any_value_break_nothing(value: bytes) -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.control(value)
    for index in range(15):
        feed.send(usual([index], dst="shop/cart" if index < 12 else "shop/other", denied=1))
    feed.end()
    assert records_in(feed.output.windows) == 15 * 12
    for settings in feed.machine.settings.values():
        assert all(0 <= number <= MAX_SETTING for number in settings.values())


def test_removing_a_tenants_settings_brings_the_lanes_back() -> None:
    feed = Feed()
    feed.send(in_window(0))
    feed.control(b'{"learning_windows": 50}', offset=0)
    assert feed.machine.lanes["test"].detection("acme").learning_windows == 50
    feed.control(b"", offset=1)
    assert feed.machine.lanes["test"].detection("acme") == DETECTION


def test_a_new_incarnation_closes_open_windows_as_incomplete_and_keeps_what_was_learned() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    feed.send(in_window(11, dst="shop/new"))
    before = len(feed.output.windows)
    output = feed.machine.begin_incarnation()
    assert [(w.start_ms // WINDOW_MS, w.incomplete) for w in output.windows] == [(11, ("incarnation",))]
    assert before == 11
    assert (feed.machine.offset, feed.machine.applied) == (-1, {})
    lane = feed.machine.lanes["test"]
    assert lane.tenants[0].closed_windows == 12
    assert len(lane.tenants[0].book.open) == 1
    feed.log.clear()
    feed.next_offset.clear()
    feed.output.events.clear()
    for index in range(12, 18):
        feed.send(sorted(usual([index]) + in_window(index, dst="shop/new"), key=lambda f: f.time_ms))
    assert story(feed.output.events) == [(NEW, "close", 16, "accepted")]
    assert feed.output.counts["late"] == 0


def test_an_incomplete_window_teaches_no_baseline() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(usual([0]))
    before = feed.machine.lanes["test"].registry.edge.array["history"][0].tolist()
    feed.machine.begin_incarnation()
    registry = feed.machine.lanes["test"].registry
    assert registry.edge.array["history"][0].tolist() == before == [0] * 5
    assert registry.edge.array["known"][0]


def test_silence_across_a_new_incarnation_is_nobodys() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    feed.machine.begin_incarnation()
    feed.log.clear()
    feed.next_offset.clear()
    for index in range(12, 15):
        feed.send(usual([index], dst="shop/other"))
    drops = [index for kind, _, _, index in created(feed.output) if kind is DriftKind.RATE_DROP]
    assert drops == [12]


def test_deadlines_of_an_ended_replay_do_not_depend_on_how_far_the_watermark_had_come() -> None:
    """The lane's last rows may lie in another partition of the log: here only the clock shows them."""
    found = []
    for lag in (False, True):
        feed = Feed(make_lane(2, lateness_ms=0))
        feed.send(usual(range(12)))
        feed.state(clocks=(("host", 17 * WINDOW_MS + 5),))
        if lag:
            feed.state(partition=1, clocks=(("host", 2 * WINDOW_MS),))
        else:
            feed.state(partition=1, clocks=(("host", 17 * WINDOW_MS + 9_999),))
        feed.state(partition=1, clocks=(("host", 17 * WINDOW_MS + 9_999),), state=IDLE)
        feed.end(1)
        feed.end(0)
        found.append(created(feed.output))
    assert found[0] == found[1]
    assert (DriftKind.RATE_DROP, "shop/web", "shop/cart", 12) in found[0]


def test_a_silence_of_years_is_judged_at_once() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(12):
        feed.send(usual([index]))
    output = feed.send([make_flow(10 * 365 * 86_400_000)])
    assert story(output.events) == [
        (DriftKind.RATE_DROP, "create", 12, ""),
        (DriftKind.REMOVED_EDGE, "create", 21, ""),
        (DriftKind.RATE_DROP, "close", 1_452, "accepted"),
        (DriftKind.REMOVED_EDGE, "close", 1_461, "accepted"),
    ]


def test_an_edge_that_returns_as_others_are_forgotten_keeps_its_measures() -> None:
    """Its window is open, but not closed, when the month of silence is judged."""
    feed = Feed(make_lane(lateness_ms=0))
    flows = usual(range(3)) + usual(range(3), dst="shop/other")
    feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    far = 50_000 // 64 * 64
    back = usual([far + 1], calls=5) + usual([far + 1], dst="shop/new")
    feed.send(usual([far], dst="shop/third") + sorted(back, key=lambda flow: flow.time_ms))
    feed.send(usual([far + 2], dst="shop/fourth"))
    feed.end()
    (window,) = [w for w in feed.output.windows if w.start_ms == (far + 1) * WINDOW_MS]
    assert window.edges.dst == ["shop/cart", "shop/new"]
    assert window.edges.measure("calls").tolist() == [60, 12]
    assert records_in(feed.output.windows) == feed.output.counts["on_time"]
    registry = feed.machine.lanes["test"].registry
    assert ("acme", "shop/web", "shop/cart", 8080, 6) in registry.edge_number
    assert ("acme", "shop/web", "shop/other", 8080, 6) not in registry.edge_number


def test_a_forgotten_pair_is_forgotten_before_and_after_a_restore() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(usual(range(4)))
    far = 50_000 // 64 * 64
    feed.send(usual([far], dst="shop/third") + usual([far + 1], dst="shop/third"))
    registry = feed.machine.lanes["test"].registry
    before = set(registry.known_pairs)
    registry.find_known_pairs()
    assert registry.known_pairs == before
    assert len(before) == 1


def test_every_row_is_on_time_late_dead_or_repeated() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send(in_window(5, count=3))
    feed.send(in_window(1, count=2))
    feed.append(feed.log[0])
    feed.append(record_of(feed.lane, 0, 4, [make_flow(0), make_flow(1 << 50)], as_of_ms=0))
    feed.next_offset[0] = 6
    feed.end()
    counts = feed.output.counts
    assert [counts[name] for name in ("on_time", "late", "dead", "repeated")] == [3, 2, 1, 4]
    assert records_in(feed.output.windows) == 3
    assert total(feed.output.windows, "late_flows") == 2
    assert feed.machine.applied[(SOURCE, 0)] == end_position(6)
