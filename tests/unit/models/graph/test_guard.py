"""While a source loses data, what is missing means nothing: it is withheld, and a finding says so."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from models.drift.telemetry_state import MAX_HOSTS, MAX_NOTED
from models.graph.machine import Machine
from models.graph.output import WITHHELD
from models.graph.snapshot import restore, take
from schemas.detection import DetectionConfig
from schemas.drift import TELEMETRY_KINDS, Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.tenant_log import PAUSED, LogRecord
from tests.builders import make_lane
from tests.unit.models.graph.driving import WINDOW_MS, Feed, story, usual

HISTORY = 14
"""Windows of usual traffic before anything happens."""
QUIET = DetectionConfig().loss_quiet_windows
CONFIG = DetectionConfig(learning_windows=3)
PATIENCE = 5
"""Windows after which a host is silent that reported in all of the history."""


def make_feed(**detection: Any) -> Feed:
    config = {"learning_windows": 3, **detection}
    return Feed(make_lane(lateness_ms=0, detection=DetectionConfig(**config)))


def traffic(index: int, hosts: Iterable[str | None] = ("n1", "n2", "n3"), **changes: Any) -> list[Flow]:
    """One edge per host, reported by it."""
    flows = [flow for host in hosts for flow in usual([index], dst=f"shop/of-{host}", host=host, **changes)]
    return sorted(flows, key=lambda flow: flow.time_ms)


def run(feed: Feed, windows: Iterable[int], hosts: Iterable[str | None] = ("n1", "n2", "n3"), **changes: Any) -> None:
    for index in windows:
        feed.send(traffic(index, hosts, **changes))


def learned(**detection: Any) -> Feed:
    feed = make_feed(**detection)
    run(feed, range(HISTORY))
    return feed


def of_kinds(feed: Feed, *kinds: DriftKind) -> list[tuple[DriftKind, str, str, int]]:
    """Kind, activity, subject's last name and window of each event of some kinds."""
    return [
        (e.kind, e.activity.name.lower(), e.dst or e.src, e.window_start_ms // WINDOW_MS)
        for e in feed.output.events
        if e.kind in kinds
    ]


def missing(feed: Feed) -> list[tuple[DriftKind, str, str, int]]:
    """What was told to be gone or to have dropped."""
    found = of_kinds(feed, DriftKind.REMOVED_EDGE, DriftKind.RATE_DROP)
    return [event for event in found if event[1] == "create"]


def sources(feed: Feed) -> list[tuple[DriftKind, str, str, int]]:
    return of_kinds(feed, *TELEMETRY_KINDS)


def first(feed: Feed, kind: DriftKind) -> DriftEvent:
    return next(event for event in feed.output.events if event.kind is kind)


def incomplete(feed: Feed) -> list[int]:
    return [w.start_ms // WINDOW_MS for w in feed.output.windows if w.incomplete == ("losing",)]


# -- lost records ------------------------------------------------------------------------------------------------------


def test_without_a_report_of_loss_a_missing_edge_is_told() -> None:
    feed = learned()
    run(feed, range(HISTORY, HISTORY + 30), ["n1", None])
    # Nobody reported for n2 and n3 here, so this is told although their hosts are silent too: see below.
    feed = make_feed()
    run(feed, range(HISTORY), [None, "n1"])
    run(feed, range(HISTORY, HISTORY + 30), ["n1"])
    assert [(kind, index) for kind, _, _, index in missing(feed)] == [
        (DriftKind.RATE_DROP, HISTORY),
        (DriftKind.REMOVED_EDGE, HISTORY + 9),
    ]


def silent_edge(feed: Feed, until: int, loses_at: Iterable[int] = ()) -> None:
    """Let an edge of no host fall silent, while the source says in some windows that it lost records."""
    for index in range(HISTORY, until):
        feed.send(traffic(index, ["n1"]))
        if index in loses_at:
            feed.lose(index * WINDOW_MS + 1)


def with_silent_edge(until: int, loses_at: Iterable[int] = (), **detection: Any) -> Feed:
    feed = make_feed(**detection)
    run(feed, range(HISTORY), [None, "n1"])
    silent_edge(feed, until, loses_at)
    return feed


def test_while_the_source_loses_records_nothing_missing_is_told_and_then_silence_counts_anew() -> None:
    feed = with_silent_edge(HISTORY + 40, loses_at=[HISTORY])
    # The drop is told one window after the quiet windows, the removal after as many as it always takes.
    assert [(kind, index) for kind, _, _, index in missing(feed)] == [
        (DriftKind.RATE_DROP, HISTORY + QUIET + 1),
        (DriftKind.REMOVED_EDGE, HISTORY + QUIET + 10),
    ]
    assert feed.output.counts[WITHHELD] == 2, "the drop, and the removal"
    assert incomplete(feed) == list(range(HISTORY, HISTORY + QUIET + 1))


def test_as_long_as_it_loses_records_nothing_is_told_at_all() -> None:
    feed = with_silent_edge(HISTORY + 40, loses_at=range(HISTORY, HISTORY + 40, QUIET))
    assert missing(feed) == []
    assert feed.output.counts[WITHHELD] == 1 + 1, "the drop once, the removal once"


def test_the_event_says_who_loses_what_and_closes_when_it_is_over() -> None:
    feed = with_silent_edge(HISTORY + 20, loses_at=[HISTORY, HISTORY + 1])
    kind = DriftKind.TELEMETRY_LOSS
    assert story(feed.output.events, kind) == [
        (kind, "create", HISTORY, ""),
        (kind, "close", HISTORY + 1 + QUIET, "recovered"),
    ]
    event = first(feed, kind)
    assert (event.tenant, event.src, event.dst, event.severity, event.is_alert) == ("acme", "host:n1", "", 2, False)
    (evidence,) = event.evidence
    assert (evidence.signal, evidence.observed, evidence.unit, evidence.detector, evidence.sample) == (
        "lost_records",
        5.0,
        "records",
        "lost_events",
        1,
    )
    assert "withheld" in event.message


def test_reports_of_a_window_are_added_up_by_kind() -> None:
    feed = with_silent_edge(HISTORY + 1)
    for count, kind in ((3, "a"), (4, "a"), (-1, "a"), (-1, "b")):
        feed.lose((HISTORY + 1) * WINDOW_MS, count, kind=kind)
    run(feed, range(HISTORY + 1, HISTORY + 3), ["n1"])
    evidence = first(feed, DriftKind.TELEMETRY_LOSS).evidence
    assert [(e.signal, e.observed, e.sample, e.detector) for e in evidence] == [
        ("lost_records", 7.0, 3, "a"),
        ("loss_reports", 1.0, 3, "a"),
        ("loss_reports", 1.0, 1, "b"),
    ]


def test_a_loss_of_nothing_and_one_below_the_least_number_mean_nothing() -> None:
    feed = with_silent_edge(HISTORY + 1, loss_min_records=10)
    feed.lose((HISTORY + 1) * WINDOW_MS, 0)
    feed.lose((HISTORY + 1) * WINDOW_MS, 9)
    run(feed, range(HISTORY + 1, HISTORY + 4), ["n1"])
    assert sources(feed) == [] and len(missing(feed)) == 1


def test_a_loss_of_another_tenant_withholds_nothing_and_one_of_nobody_in_particular_all() -> None:
    for tenant, told in (("globex", 2), ("", 0)):
        feed = make_feed()
        for index in range(HISTORY):
            feed.send(traffic(index, [None, "n1"]) + traffic(index, [None, "n1"], tenant="globex"))
        feed.lose(HISTORY * WINDOW_MS, tenant=tenant)
        for index in range(HISTORY, HISTORY + QUIET):
            feed.send(traffic(index, ["n1"]) + traffic(index, ["n1"], tenant="globex"))
        assert len(missing(feed)) == (1 if told else 0)
        concerned = {event.tenant for event in feed.output.events if event.kind is DriftKind.TELEMETRY_LOSS}
        assert concerned == ({"globex"} if told else {"acme", "globex"})


def test_a_report_of_loss_that_is_late_counts_to_the_window_that_is_open() -> None:
    feed = with_silent_edge(HISTORY + 3)
    feed.lose(0)
    run(feed, range(HISTORY + 3, HISTORY + 5), ["n1"])
    assert [index for *_, index in sources(feed)] == [HISTORY + 2]


def test_a_report_without_a_time_counts_to_the_window_that_is_open() -> None:
    feed = with_silent_edge(HISTORY + 3)
    feed.lose(-1)
    run(feed, range(HISTORY + 3, HISTORY + 5), ["n1"])
    assert [index for *_, index in sources(feed)] == [HISTORY + 2]


def test_a_report_of_loss_beyond_the_last_row_is_told_too() -> None:
    feed = learned()
    feed.lose((HISTORY + 5) * WINDOW_MS)
    feed.end()
    assert [event[1:] for event in sources(feed)] == [("create", "host:n1", HISTORY + 5)]
    assert not feed.machine.lanes["test"].guard.open


def test_a_losing_window_teaches_no_rates() -> None:
    feed = learned()
    lane = feed.machine.lanes["test"]
    before = lane.registry.edge.array["history"][:, 0].copy()
    feed.lose((HISTORY - 1) * WINDOW_MS)
    run(feed, [HISTORY, HISTORY + 1])
    assert (lane.registry.edge.array["history"][:, 0] == before).all()
    run(feed, range(HISTORY + 2, HISTORY + QUIET + 3))
    assert (lane.registry.edge.array["history"][:3, 0] > before[:3]).all()


def test_many_hosts_that_lose_records_are_one_finding() -> None:
    feed = learned()
    for host in range(7):
        feed.lose(HISTORY * WINDOW_MS, 2, host=f"n{host}")
    run(feed, [HISTORY, HISTORY + 1])
    assert [event[1:] for event in sources(feed)] == [("create", "lane:test", HISTORY)]
    evidence = first(feed, DriftKind.TELEMETRY_LOSS).evidence
    assert [(e.signal, e.observed) for e in evidence] == [("losing_hosts", 7.0), ("lost_records", 14.0)]


def test_nothing_is_told_while_the_tenant_learns() -> None:
    feed = make_feed()
    run(feed, [0])
    feed.lose(0)
    run(feed, [1, 2])
    assert sources(feed) == []


# -- hosts that fall silent --------------------------------------------------------------------------------------------


def test_a_host_that_falls_silent_while_others_go_on_withholds_what_it_alone_saw() -> None:
    feed = learned()
    run(feed, range(HISTORY, HISTORY + 30), ["n1", "n2"])
    assert missing(feed) == []
    told = HISTORY - 1 + PATIENCE
    assert sources(feed) == [(DriftKind.SILENT_HOST, "create", "host:n3", told)]
    (evidence,) = first(feed, DriftKind.SILENT_HOST).evidence
    assert (evidence.signal, evidence.observed, evidence.expected) == ("silent_windows", PATIENCE, 1.0)
    assert incomplete(feed) == list(range(told, HISTORY + 29)), "until then it may be chance"
    assert feed.output.counts[WITHHELD] == 2, "the drop, from its first window on, and the removal"


def test_a_host_that_misses_a_window_puts_a_drop_off_and_changes_nothing_else() -> None:
    """The edge is gone for another reason: it is told once the host is back, and removed when it would have been."""
    feed = learned()
    for index in range(HISTORY, HISTORY + 15):
        hosts = ["n1"] if index == HISTORY else ["n1", "n3"]
        feed.send(traffic(index, hosts) + usual([index], dst="shop/of-n1", host="n2"))
    assert sources(feed) == [] and incomplete(feed) == []
    assert [(kind, dst, index) for kind, _, dst, index in missing(feed)] == [
        (DriftKind.RATE_DROP, "shop/of-n2", HISTORY + 1),
        (DriftKind.REMOVED_EDGE, "shop/of-n2", HISTORY + 9),
    ]


def test_when_it_reports_again_the_finding_closes_and_silence_counts_anew() -> None:
    feed = learned()
    run(feed, range(HISTORY, HISTORY + 8), ["n1", "n2"])
    for index in range(HISTORY + 8, HISTORY + 30):
        feed.send(traffic(index, ["n1", "n2"]) + usual([index], dst="shop/of-n1", host="n3"))
    assert sources(feed) == [
        (DriftKind.SILENT_HOST, "create", "host:n3", HISTORY - 1 + PATIENCE),
        (DriftKind.SILENT_HOST, "close", "host:n3", HISTORY + 8),
    ]
    assert feed.output.events[-1].kind is DriftKind.REMOVED_EDGE
    closed = next(e for e in feed.output.events if e.activity is Activity.CLOSE and e.kind is DriftKind.SILENT_HOST)
    assert closed.close_reason == "returned"
    # Its edge did not come back with it: n3 was last known to be lost in window HISTORY + 7.
    assert [(kind, dst, index) for kind, _, dst, index in missing(feed)] == [
        (DriftKind.RATE_DROP, "shop/of-n3", HISTORY + 8),
        (DriftKind.REMOVED_EDGE, "shop/of-n3", HISTORY + 17),
    ]


def test_a_host_that_stays_away_is_forgotten_and_what_it_saw_is_told_to_be_gone() -> None:
    feed = learned(silent_host_max_windows=10)
    run(feed, range(HISTORY, HISTORY + 40), ["n1", "n2"])
    forgotten = HISTORY - 1 + PATIENCE + 10 + 1
    assert sources(feed) == [
        (DriftKind.SILENT_HOST, "create", "host:n3", HISTORY - 1 + PATIENCE),
        (DriftKind.SILENT_HOST, "close", "host:n3", forgotten),
    ]
    closed = next(e for e in feed.output.events if e.activity is Activity.CLOSE)
    assert closed.close_reason == "accepted"
    assert [(kind, index) for kind, _, _, index in missing(feed)] == [
        (DriftKind.RATE_DROP, forgotten),
        (DriftKind.REMOVED_EDGE, forgotten + 9),
    ]


def test_a_host_that_comes_and_goes_regularly_is_told_of_until_its_gap_is_known() -> None:
    feed = make_feed()
    for index in range(200):
        hosts = ["n1", "n2"] if index % 20 < 12 else ["n1"]
        feed.send(traffic(index, hosts))
    told = [index for kind, activity, _, index in sources(feed) if activity == "create"]
    assert told == [17, 36], "two gaps of 8 windows, and then that is how long it goes"


def test_one_outage_does_not_become_usual() -> None:
    feed = make_feed()
    for index in range(120):
        away = 20 <= index < 40 or 80 <= index < 90
        feed.send(traffic(index, ["n1"] if away else ["n1", "n2"]))
    assert [index for _, activity, _, index in sources(feed) if activity == "create"] == [24, 83]


def test_hosts_that_are_replaced_by_as_many_others_are_not_lost() -> None:
    feed = learned()
    run(feed, [HISTORY, HISTORY + 1], ["n1", "n2", "n3", "m1"])  # a rolling update starts the new first
    run(feed, range(HISTORY + 2, HISTORY + 20), ["n2", "n3", "m1"])
    assert sources(feed) == []
    assert [dst for _, _, dst, _ in missing(feed)] == ["shop/of-n1"] * 2


def test_where_hosts_go_for_good_all_day_long_one_more_is_no_news_and_many_are() -> None:
    """An autoscaler takes a host away every 40 windows and brings another, under a new name, 15 windows later."""
    feed = make_feed()
    base = [f"n{number}" for number in range(5)]
    for index in range(400):
        taken, since = divmod(index, 40)
        hosts = [*base, f"scaled-{taken}"] if since < 25 else base
        feed.send([flow for host in hosts for flow in usual([index], 1, dst="shop/db", host=host)])
    told = [(subject, index) for _, activity, subject, index in sources(feed) if activity == "create"]
    assert [subject for subject, _ in told] == [f"host:scaled-{number}" for number in range(5)], "then it is usual"
    for index in range(400, 410):
        feed.send([flow for host in base[:2] for flow in usual([index], 1, dst="shop/db", host=host)])
    assert sources(feed)[-1][:3] == (DriftKind.SILENT_HOST, "create", "lane:test")


def test_when_all_hosts_fall_silent_it_is_the_tenant_and_told_as_that() -> None:
    feed = make_feed()
    for index in range(HISTORY):
        feed.send(traffic(index) + traffic(index, tenant="globex"))
    for index in range(HISTORY, HISTORY + 15):
        feed.send(traffic(index, tenant="globex"))
    assert sources(feed) == []
    gone = [event for event in missing(feed) if event[0] is DriftKind.REMOVED_EDGE]
    assert len(gone) == 3


def test_when_all_fall_silent_after_one_did_the_worst_outage_is_seen() -> None:
    feed = make_feed()
    for index in range(HISTORY):
        feed.send(traffic(index) + traffic(index, tenant="globex"))
    for index in range(HISTORY, HISTORY + 15):
        mine = traffic(index, ["n1", "n2"]) if index < HISTORY + 5 else []
        feed.send(mine + traffic(index, tenant="globex"))
    drops = {(dst, index) for kind, _, dst, index in missing(feed) if kind is DriftKind.RATE_DROP}
    assert drops == {("shop/of-n1", HISTORY + 5), ("shop/of-n2", HISTORY + 5), ("shop/of-n3", HISTORY + 5)}


def test_many_hosts_at_once_are_one_finding() -> None:
    feed = make_feed()
    hosts = [f"n{number}" for number in range(10)]
    run(feed, range(HISTORY), hosts)
    run(feed, range(HISTORY, HISTORY + 9), hosts[:3])
    run(feed, range(HISTORY + 9, HISTORY + 12), hosts)
    assert sources(feed) == [
        (DriftKind.SILENT_HOST, "create", "lane:test", HISTORY - 1 + PATIENCE),
        (DriftKind.SILENT_HOST, "close", "lane:test", HISTORY + 9),
    ]
    evidence = first(feed, DriftKind.SILENT_HOST).evidence
    assert [(e.signal, e.observed, e.sample) for e in evidence] == [
        ("silent_hosts", 7.0, 10),
        ("silent_windows", PATIENCE, PATIENCE),
    ]


def test_a_finding_of_silence_stays_open_for_as_long_as_it_lasts() -> None:
    feed = learned()
    run(feed, range(HISTORY, HISTORY + 5 * QUIET), ["n1", "n2"])
    assert [event[1] for event in sources(feed)] == ["create"]


def test_silence_in_incomplete_windows_is_nobody_s() -> None:
    feed = Feed(make_lane(2, lateness_ms=0, detection=CONFIG))
    for index in range(HISTORY):
        flows = traffic(index)
        feed.send(flows)
        feed.state(1, clocks=(("x", flows[-1].time_ms),))
    for index in range(HISTORY, HISTORY + 8):
        flows = traffic(index, ["n1", "n2"])
        feed.send(flows)
        feed.state(1, PAUSED)
    for index in range(HISTORY + 8, HISTORY + 10):
        flows = traffic(index, ["n1", "n2"])
        feed.send(flows)
        feed.state(1, clocks=(("x", flows[-1].time_ms),))
    assert sources(feed) == []


def test_flows_that_name_no_host_are_no_hosts() -> None:
    feed = make_feed()
    run(feed, range(HISTORY), [None])
    for index in range(HISTORY, HISTORY + 20):
        feed.send(usual([index], dst="shop/other"))
    assert sources(feed) == []


# -- sampling ----------------------------------------------------------------------------------------------------------


def resampled(before: int, after: int) -> Feed:
    feed = make_feed()
    for index in range(HISTORY):
        feed.send(traffic(index, count=24), sampling=before)
    for index in range(HISTORY, HISTORY + 30):
        feed.send(traffic(index, count=4), sampling=after)
    return feed


@pytest.mark.parametrize(("before", "after"), [(1, 50), (50, 1)])
def test_rates_before_and_after_another_sampling_are_not_compared(before: int, after: int) -> None:
    """Five of six rows are gone: without the guard each edge has dropped."""
    feed = resampled(before, after)
    assert missing(feed) == []
    hosts = [event[1:] for event in sources(feed) if event[1] == "create"]
    assert hosts == [("create", f"host:n{number}", HISTORY) for number in (1, 2, 3)]
    assert len(missing(resampled(before, before))) == 3, "the same rows under the same sampling"


def test_the_event_names_the_factors_and_edges_are_learned_anew() -> None:
    feed = make_feed()
    for index in range(HISTORY):
        feed.send(traffic(index, ["n1"]))
    for index in range(HISTORY, HISTORY + 3):
        feed.send(traffic(index, ["n1"]), sampling=20)
    (evidence,) = first(feed, DriftKind.SAMPLING_CHANGE).evidence
    assert (evidence.signal, evidence.observed, evidence.expected, evidence.sample) == (
        "sampling_factor",
        20.0,
        1.0,
        12,
    )
    edge = feed.machine.lanes["test"].registry.edge.array
    assert edge["windows_seen"][0] == 2, "the two windows closed since"
    assert edge["history"][0, 0] == 1, "the window of the change taught nothing, the one after did"


def test_edges_that_vanish_with_a_larger_factor_are_never_told_to_be_removed_and_later_ones_are() -> None:
    feed = make_feed()
    for index in range(HISTORY):
        feed.send(traffic(index, ["n1"]) + usual([index], dst="shop/rare", host="n1"))
    for index in range(HISTORY, HISTORY + 40):
        rest = usual([index], dst="shop/stays", host="n1") if index < HISTORY + 20 else []
        feed.send(traffic(index, ["n1"]) + rest, sampling=50)
    assert {dst for _, _, dst, _ in missing(feed)} == {"shop/stays"}


def test_a_steady_mix_of_factors_is_no_change() -> None:
    feed = make_feed()
    for index in range(HISTORY + 20):
        feed.send(traffic(index), sampling=1)
        feed.send(traffic(index), sampling=100)
    assert sources(feed) == []


def test_sources_that_name_no_hosts_have_a_sampling_too() -> None:
    feed = make_feed()
    for index in range(HISTORY + 2):
        feed.send(traffic(index, [None]), sampling=1 if index < HISTORY else 8)
    assert [event[:3] for event in sources(feed)] == [(DriftKind.SAMPLING_CHANGE, "create", "lane:test")]


# -- delivery lag ------------------------------------------------------------------------------------------------------


def late(feed: Feed, index: int, on_time: int, behind: int) -> None:
    feed.send(usual([index], on_time, host="n1") + usual([index - 5], behind, host="n1"))


def test_rows_that_come_late_withhold_what_is_missing_meanwhile() -> None:
    feed = make_feed()
    run(feed, range(HISTORY), [None, "n1"])
    for index in range(HISTORY - 1, HISTORY + 20):
        feed.send(usual([index], 100, dst="shop/of-n1", host="n1"))
        feed.send(usual([3], 30, dst="shop/of-n1", host="n1"))
    assert missing(feed) == []
    created = [event[1:] for event in sources(feed)]
    assert created[0] == ("create", "lane:test", HISTORY - 1)
    (evidence,) = first(feed, DriftKind.DELIVERY_LAG).evidence
    assert (evidence.signal, evidence.unit) == ("late_ratio", "ratio")
    assert 0.1 < evidence.observed < 0.3


@pytest.mark.parametrize(("rows", "behind"), [(600, 25), (100, 19)])
def test_a_small_share_or_a_small_number_of_late_rows_means_nothing(rows: int, behind: int) -> None:
    feed = make_feed()
    run(feed, range(HISTORY), [None])
    for index in range(HISTORY, HISTORY + 3):
        feed.send(usual([index], rows, dst="shop/of-None"))
        feed.send(usual([3], behind, dst="shop/of-None"))
    assert sources(feed) == []


def test_a_share_of_one_never_lags() -> None:
    feed = make_feed(late_min_share=1.0)
    run(feed, range(HISTORY), [None])
    feed.send(usual([3], 500, dst="shop/of-None"))
    run(feed, range(HISTORY, HISTORY + 2), [None])
    assert sources(feed) == []


# -- logic versions and checkpoints ------------------------------------------------------------------------------------


def eventful(logic: int) -> Feed:
    """Losses, a silent host, another sampling, late rows."""
    feed = make_feed()
    feed.logic = logic
    for index in range(HISTORY + 30):
        hosts = ["n1", "n2"] if 20 <= index < 30 else ["n1", "n2", "n3"]
        feed.send(traffic(index, hosts), sampling=1 if index < 35 else 50)
        if index in (16, 40):
            feed.lose(index * WINDOW_MS + 1)
        if index == 25:
            feed.send(usual([3], 60, dst="shop/of-n1"))
    return feed


def as_before(record: LogRecord) -> LogRecord:
    """A record as workers of the version before would have written it."""
    rows = record.rows
    if rows is not None:
        columns = {name: column for name, column in rows.columns.items() if name not in ("host", "sampling")}
        rows = msgspec.structs.replace(rows, columns=columns, hosts=())
    return msgspec.structs.replace(record, rows=rows, losses=())


def whole(machine: Machine) -> dict[str, bytes | None]:
    return dict(take(machine, everything=True))


def test_before_logic_version_3_the_same_log_gives_the_same_state_and_events() -> None:
    told, bare = eventful(2), make_feed()
    bare.logic = 2
    for record in told.log:
        bare.append(as_before(record))
    assert told.output.events == bare.output.events and told.output.counts == bare.output.counts
    assert whole(told.machine) == whole(bare.machine)
    assert not any("guard" in name for name in whole(told.machine))
    assert not {event.kind for event in told.output.events} & TELEMETRY_KINDS
    assert {event.kind for event in eventful(3).output.events} >= TELEMETRY_KINDS


def test_the_guard_begins_where_logic_version_3_takes_over() -> None:
    feed = eventful(2)
    feed.logic = 3
    as_of_ms = 1 << 42
    index = HISTORY + 30
    while feed.machine.logic.in_force < 3:
        as_of_ms += 5_000
        feed.send(traffic(index), as_of_ms=as_of_ms)
        index += 1
    start = index
    for index in range(start, start + HISTORY):
        feed.send(traffic(index), as_of_ms=as_of_ms)
    run(feed, range(start + HISTORY, start + HISTORY + PATIENCE + 1), ["n1", "n2"])
    assert [event[2] for event in sources(feed)] == ["host:n3"]


def test_a_machine_restored_at_any_record_goes_on_as_if_it_had_never_stopped() -> None:
    log = eventful(3).log
    straight, restored = Machine(), Machine()
    for offset, record in enumerate(log):
        expected, found = straight.apply(offset, record), restored.apply(offset, record)
        assert (found.events, found.counts) == (expected.events, expected.counts)
        assert [w.incomplete for w in found.windows] == [w.incomplete for w in expected.windows]
        restored = restore({name: chunk for name, chunk in whole(restored).items() if chunk is not None})
        assert whole(restored) == whole(straight)
    assert any(name.count("/") == 3 for name in whole(straight) if "guard" in name), "something was noted and is open"


def test_records_delivered_again_count_once() -> None:
    feed = eventful(3)
    before = whole(feed.machine)
    for record in list(feed.log):
        feed.append(record)
    changed = {name for name, chunk in whole(feed.machine).items() if chunk != before.get(name)}
    assert changed == {"meta"}, "the offset alone"


def test_hosts_without_bound_are_watched_within_one_whatever_their_order() -> None:
    names = [f"n{number}" for number in range(2 * MAX_NOTED)]
    states = []
    for order in (names, names[::-1]):
        feed = make_feed()
        for index in range(2):
            feed.send([flow for host in order for flow in usual([index], 1, dst="shop/db", host=host)])
        state = feed.machine.lanes["test"].guard.tenants[0]
        assert len(state.hosts) == MAX_HOSTS
        states.append(state)
    assert states[0] == states[1]
    chunk = whole(feed.machine)["test/guard/0"]
    assert chunk is not None and len(chunk) < 512 * 1024


def test_a_state_of_the_widest_names_fits_a_chunk() -> None:
    feed = make_feed()
    hosts = [f"{number:0>256}" for number in range(MAX_NOTED + 10)]
    for index in range(2):
        feed.send([flow for host in hosts for flow in usual([index], 1, dst="shop/db", host=host)], sampling=1 << 19)
    sizes = {name: len(chunk) for name, chunk in whole(feed.machine).items() if chunk is not None and "guard" in name}
    assert len(sizes) == 3 and max(sizes.values()) < 512 * 1024
