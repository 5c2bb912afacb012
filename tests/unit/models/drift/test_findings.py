"""The life of findings: one Create, one settling Update, Close with its reason, episodes; incidents."""

import pytest

from models.drift import findings
from models.drift.detection import Detection
from models.drift.findings import FindingBook, Scope
from models.drift.incidents import Incident, assign
from schemas.detection import DetectionConfig
from schemas.drift import Activity, DriftKind, EdgeRef
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import Feed, in_window, judge, story, usual

WEB, CART, PAY = "shop/web", "shop/cart", "shop/pay"
SCOPE = Scope("acme", "test", 0, 10_000, DetectionConfig(close_after_windows=3, update_every_windows=4))


def detection(name: str, kind: DriftKind = DriftKind.NEW_SERVICE, risk: int = 30) -> Detection:
    return Detection(kind, name, "", -1, -1, (EdgeRef(WEB, name),), 1, (), risk, 50, 0)


def close(book: FindingBook, index: int) -> list[str]:
    events = book.expire(SCOPE, index, is_silent=lambda _: False, returned=lambda _: False, last_contact=lambda _: -1)
    return [event.close_reason for event in events]


def test_an_early_finding_is_created_once_and_settled_by_exactly_one_update() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(6):
        feed.send(usual([index]))
    for offset in range(5):
        feed.send([make_flow(60_000 + offset, dst="shop/new", port=9_000 + offset)])
    for index in range(7, 20):
        feed.send(usual([index]))
    assert story(feed.output.events, DriftKind.NEW_SERVICE) == [
        (DriftKind.NEW_SERVICE, "early", 6, ""),
        (DriftKind.NEW_SERVICE, "update", 6, ""),
        (DriftKind.NEW_SERVICE, "close", 11, "accepted"),
    ]
    create, update, _ = feed.output.events
    assert (create.evidence[0].observed, update.evidence[0].observed) == (1.0, 5.0)
    assert (create.edges_total, update.edges_total) == (1, 5)
    assert create.finding_id == update.finding_id
    assert create.incident_id != update.incident_id


def test_an_early_finding_is_settled_by_the_first_window_that_shows_it() -> None:
    """Its record was the first to arrive, not the first to happen."""
    feed = Feed(make_lane(lateness_ms=15_000))
    for index in range(6):
        feed.send(usual([index]))
    feed.send([make_flow(69_000, dst="shop/new")])
    feed.send([make_flow(55_000, dst="shop/new")])
    feed.send(usual([9]))
    assert story(feed.output.events) == [
        (DriftKind.NEW_SERVICE, "early", 6, ""),
        (DriftKind.NEW_SERVICE, "update", 5, ""),
    ]


def test_an_early_fan_out_holds_whatever_earlier_windows_still_bring() -> None:
    """The window before has no rows yet; when they come, they raise what is usual."""
    feed = Feed(make_lane(lateness_ms=15_000, detection=DetectionConfig(learning_windows=3, fan_out_min=10)))
    for index in range(6):
        feed.send(usual([index]))
    feed.send([make_flow(70_000 + n, dst=f"shop/a{n}") for n in range(12)])
    feed.send([make_flow(60_000 + n, dst=f"shop/b{n}") for n in range(9)])
    feed.send(usual([12]))
    feed.end()
    early = {event.finding_id for event in feed.output.events if event.is_early}
    settled = {event.finding_id for event in feed.output.events if event.activity is Activity.UPDATE}
    assert early <= settled
    assert "unconfirmed" not in {event.close_reason for event in feed.output.events}


def test_a_certain_fan_out_fires_before_its_window_closes() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(7):
        feed.send(usual([index]))
    output = feed.send([make_flow(60_000 + n, dst=f"shop/a{n}") for n in range(20)])
    assert (DriftKind.FAN_OUT_BURST, "early", 6, "") in story(output.events)


def test_a_certain_denied_burst_fires_before_its_window_closes_and_is_settled() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(7):
        feed.send(usual([index]))
    output = feed.send(in_window(6, denied=25, calls=25, reporter="client"))
    assert story(output.events) == [(DriftKind.DENIED_BURST, "early", 6, "")]
    feed.end()
    assert story(feed.output.events) == [
        (DriftKind.DENIED_BURST, "early", 6, ""),
        (DriftKind.DENIED_BURST, "update", 6, ""),
    ]


def test_refusals_that_only_the_server_or_a_late_record_reports_do_not_fire_early() -> None:
    """The client's report, should it come, is the one that counts; late records are not measured."""
    feed = Feed(make_lane(lateness_ms=0))
    for index in range(7):
        feed.send(usual([index]))
    assert feed.send(in_window(6, denied=500, calls=500, reporter="server")).events == []
    assert feed.send(in_window(2, denied=500, calls=500, reporter="client")).events == []
    feed.end()
    assert feed.output.events == []


def test_refusals_that_only_the_server_reports_are_found_at_the_close() -> None:
    flows = usual(range(6)) + in_window(6, src=WEB, dst=PAY, denied=500, calls=500, reporter="server")
    assert (DriftKind.DENIED_BURST, "create", 6, "") in story(judge(flows).events)


def test_a_finding_that_goes_on_is_updated_seldom_and_at_once_when_it_worsens() -> None:
    book = FindingBook()
    events = []
    for index in range(12):
        events += book.settle(SCOPE, index, [detection("a", DriftKind.RATE_SURGE, 90 if index >= 6 else 30)])
        assert close(book, index) == []
    assert [(e.activity, e.window_start_ms // 10_000) for e in events] == [
        (Activity.CREATE, 0),
        (Activity.UPDATE, 4),
        (Activity.UPDATE, 6),
        (Activity.UPDATE, 10),
    ]
    assert len({event.event_id for event in events}) == 4


def test_a_finding_closes_once_it_has_shown_no_evidence_for_so_long() -> None:
    book = FindingBook()
    book.settle(SCOPE, 5, [detection("a"), detection("b", DriftKind.RATE_SURGE)])
    book.settle(SCOPE, 6, [detection("b", DriftKind.RATE_SURGE)])
    assert [close(book, index) for index in range(6, 11)] == [[], [], ["accepted"], ["recovered"], []]


def test_an_early_finding_that_no_window_shows_closes_as_unconfirmed() -> None:
    book = FindingBook()
    assert book.raise_early(SCOPE, 5, detection("a"), 50_000) is not None
    assert book.raise_early(SCOPE, 6, detection("a"), 60_000) is None
    assert close(book, 8) == ["unconfirmed"]


def test_a_finding_that_comes_back_is_a_new_episode_with_new_ids() -> None:
    book = FindingBook()
    ids, episodes = set(), []
    for index in (0, 10, 20):
        (event,) = book.settle(SCOPE, index, [detection("a")])
        ids.add(event.finding_id)
        episodes.append(event.episode)
        close(book, index + 3)
    assert episodes == [0, 1, 2]
    assert len(ids) == 3


def test_a_forgotten_fingerprint_never_gets_an_id_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MAX_REMEMBERED", 5)
    book = FindingBook()
    ids = []
    for index in range(0, 400, 4):
        (event,) = book.settle(SCOPE, index, [detection(f"service-{index // 4 % 8}")])
        ids.append(event.event_id)
        close(book, index + 3)
    assert len(book.closed) == 5
    assert len(set(ids)) == len(ids)


def test_a_removed_edge_that_returns_closes_its_finding() -> None:
    flows = usual(range(12)) + usual(range(40), src=PAY) + usual(range(30, 40))
    assert story(judge(flows).events, DriftKind.REMOVED_EDGE) == [
        (DriftKind.REMOVED_EDGE, "create", 21, ""),
        (DriftKind.REMOVED_EDGE, "close", 30, "returned"),
    ]


def test_a_rate_drop_stays_open_while_the_edge_is_silent() -> None:
    """A window with little traffic, then none: it has not recovered."""
    first = usual([12], count=1, calls=1)
    flows = usual(range(12), count=1, calls=100) + first + usual(range(60), src=PAY)
    assert story(judge(flows).events, DriftKind.RATE_DROP) == [(DriftKind.RATE_DROP, "create", 12, "")]
    back = usual(range(40, 60), count=1, calls=100)
    drops = story(judge(flows + back).events, DriftKind.RATE_DROP)
    assert drops[0] == (DriftKind.RATE_DROP, "create", 12, "")
    assert [(what, reason) for _, what, _, reason in drops[1:]] == [("close", "recovered")]
    assert drops[1][2] >= 40


def test_no_event_id_is_ever_repeated() -> None:
    flows = usual(range(60)) + [
        flow
        for index in range(5, 60, 7)
        for flow in usual([index], dst=f"shop/{index}") + usual([index], latency_us=10**6)
    ]
    events = judge(flows, close_after_windows=2).events
    assert len(events) > 20
    assert len({event.event_id for event in events}) == len(events)


def test_findings_of_one_window_that_share_a_service_share_an_incident() -> None:
    open_incidents: list[Incident] = []
    a, b, c = (detection(name) for name in ("a", "b", "c"))
    apart = Detection(DriftKind.NEW_EDGE, "x", "y", -1, -1, (), 0, (), 30, 50, 0)
    ids = assign("acme", "test", 0, 1, [c, apart, a, b], open_incidents)
    assert ids[0] == ids[2] == ids[3] != ids[1]
    assert len(open_incidents) == 2


def test_incidents_do_not_depend_on_the_order_of_detections() -> None:
    detections = [
        Detection(DriftKind.NEW_EDGE, f"s{n}", f"s{n + step}", -1, -1, (), 0, (), 30, 50, 0)
        for n in range(20)
        for step in (3, 7)
    ]
    forward = dict(zip(detections, assign("acme", "test", 0, 1, detections, []), strict=True))
    backward = dict(zip(detections[::-1], assign("acme", "test", 0, 1, detections[::-1], []), strict=True))
    assert forward == backward


def test_an_incident_can_be_joined_for_six_windows() -> None:
    open_incidents: list[Incident] = []
    (first,) = assign("acme", "test", 0, 1, [detection("a")], open_incidents)
    assert assign("acme", "test", 0, 7, [detection("a")], open_incidents) == [first]
    assert assign("acme", "test", 0, 14, [detection("a")], open_incidents) != [first]


def test_a_flood_of_findings_joins_no_incident_twice() -> None:
    """Ten thousand unlike findings in one window: all with all would be a hundred million comparisons."""
    flood = [Detection(DriftKind.NEW_EDGE, f"a{n}", f"b{n}", -1, -1, (), 0, (), 30, 50, 0) for n in range(10_000)]
    incidents: list[Incident] = []
    assert len(set(assign("acme", "test", 0, 1, flood, incidents))) == 10_000
    assert len(assign("acme", "test", 0, 2, flood, incidents)) == 10_000
    assign("acme", "test", 0, 3, [], incidents)
    assert len(incidents) == 100
