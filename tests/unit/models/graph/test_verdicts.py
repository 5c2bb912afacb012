"""Verdicts in the state machine: one budget over live lanes, settled when windows close, restored, from logic 3 on."""

from collections import Counter

import msgspec

from models.graph.machine import Machine
from models.graph.snapshot import mark_clean, restore, take
from schemas.detection import DetectionConfig
from schemas.drift import Activity, AlertReason, DriftEvent, DriftKind, Severity
from schemas.flow import Flow
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import WINDOW_MS, Feed, usual
from tests.unit.models.graph.lanes import Lanes, live_lane

DAY_MS = 86_400_000
NEW_EDGE = DriftKind.NEW_EDGE
PEERS = [f"shop/p{number}" for number in range(12)]


def peers(index: int) -> list[Flow]:
    """Twelve services that call and are called, but not by each other."""
    return [make_flow(index * WINDOW_MS + n, dst=peer) for n, peer in enumerate(PEERS)]


def news(index: int, count: int, first: int = 0) -> list[Flow]:
    """``count`` edges between the twelve that nobody saw before."""
    pairs = [(a, b) for a in PEERS for b in PEERS if a < b][first : first + count]
    return [make_flow(index * WINDOW_MS + 100 + n, src=a, dst=b) for n, (a, b) in enumerate(pairs)]


def feed_of(budget: int, start: int = 0) -> Feed:
    detection = DetectionConfig(
        learning_windows=3, alerts_per_day=budget, fan_out_min=1_000, close_after_windows=2, removed_min_windows=10_000
    )
    feed = Feed(make_lane(lateness_ms=0, detection=detection))
    for index in range(start, start + 6):
        feed.send(usual([index]) + peers(index))
    return feed


def reasons(events: list[DriftEvent]) -> Counter[AlertReason]:
    return Counter(event.verdict.reason for event in events if event.verdict is not None)


def test_an_early_finding_waits_for_its_window_and_is_an_alert_then() -> None:
    feed = feed_of(budget=20)
    early = feed.send(usual([6]) + news(6, 1)).events
    settled = feed.send(usual([7])).events
    assert [(e.is_early, e.is_alert) for e in early + settled] == [(True, False), (False, True)]
    assert "No alert yet: that is decided when its window closes." in early[0].message
    assert "An alert: number 1 of at most 20 of this day." in settled[0].message


def test_without_a_budget_every_finding_from_medium_on_is_an_alert_at_once() -> None:
    feed = feed_of(budget=0)
    events = feed.send(usual([6]) + news(6, 30)).events + feed.send(usual([7])).events
    assert len(events) == 60 and all(event.is_alert for event in events)
    assert "An alert: there is no limit to alerts." in events[0].message


def test_a_day_has_its_places_and_tells_those_who_get_none_why() -> None:
    feed = feed_of(budget=5)
    feed.send(usual([6]) + news(6, 8))
    feed.send(usual([7]))
    settled = [event for event in feed.output.events if not event.is_early and event.activity is Activity.UPDATE]
    assert reasons(settled) == {AlertReason.ALERTED: 3, AlertReason.PACED: 5}
    told = next(event for event in settled if not event.is_alert)
    assert "No alert: of the 5 alerts of this day, 3 are used; the others are kept for later" in told.message
    last = DAY_MS // WINDOW_MS - 2
    outside = [make_flow(last * WINDOW_MS, src=peer, dst=f"ext:{peer}") for peer in PEERS]
    feed.send(usual([last]) + outside)
    feed.send(usual([last + 1]))
    assert len({event.finding_id for event in feed.output.events if event.is_alert}) == 4
    told = [event for event in feed.output.events if event.kind is DriftKind.NEW_EXTERNAL_EGRESS][-1]
    assert "No alert: of the 5 alerts of this day, 4 are used, and what is left is reserved." in told.message


def test_a_finding_keeps_its_alert_in_later_updates_and_costs_one_place() -> None:
    feed = feed_of(budget=1)
    detection = msgspec.structs.replace(feed.lane.detection, update_every_windows=1)
    feed.lane = msgspec.structs.replace(feed.lane, version=feed.lane.version + 1, detection=detection)
    for index in range(6, 20):
        feed.send(usual([index]) + peers(index))
    for index in range(20, 26):
        loud = [make_flow(index * WINDOW_MS + n, bytes_out=1 << 30, calls=50) for n in range(40)]
        feed.send(usual([index]) + loud)
    feed.send(usual([26]))
    told = [event for event in feed.output.events if event.kind is DriftKind.RATE_SURGE]
    assert [event.activity for event in told][:3] == [Activity.CREATE, Activity.UPDATE, Activity.UPDATE]
    alerts = {event.finding_id for event in feed.output.events if event.is_alert}
    assert len(alerts) == 1
    of_alert = [e for e in feed.output.events if e.finding_id in alerts and e.activity is not Activity.CLOSE]
    assert len(of_alert) > 2 and all(event.is_alert for event in of_alert)


def test_what_a_tenant_has_all_the_time_is_less_risk_and_of_others_it_is_not() -> None:
    def run(noisy: bool) -> DriftEvent:
        feed = feed_of(budget=20)
        for index in range(6, 66):
            feed.send(usual([index]) + peers(index) + (news(index, 1, first=index - 6) if noisy else []))
        feed.send(usual([66]) + news(66, 1, first=65))
        feed.send(usual([67]))
        told = (event for event in feed.output.events if event.kind is NEW_EDGE and not event.is_early)
        return next(event for event in told if event.window_start_ms == 660_000)

    calm, noisy = run(noisy=False), run(noisy=True)
    assert calm.verdict is not None and noisy.verdict is not None
    assert (calm.risk_score, calm.severity, calm.is_alert) == (45, Severity.MEDIUM, True)
    assert (noisy.verdict.effect, noisy.verdict.windows, noisy.verdict.windows_alike) == (45, 63, 60)
    assert noisy.risk_score < 20 and noisy.severity is Severity.INFORMATIONAL and not noisy.is_alert
    assert "such a finding or a stronger one began in 60 of 63 windows before" in noisy.message


def test_live_lanes_of_a_tenant_have_one_budget() -> None:
    replay = msgspec.structs.replace(live_lane("replay:old"), mode="replay")
    feed = Lanes("hubble", "vpc", replay)
    for name, lane in feed.config.items():
        feed.config[name] = msgspec.structs.replace(
            lane, detection=DetectionConfig(learning_windows=3, alerts_per_day=4, fan_out_min=1_000)
        )
    for index in range(9):
        for number, name in enumerate(feed.config):
            flows = usual([index]) + (peers(index) if index < 6 else [])
            feed.send(name, flows + (news(index, 6, first=6 * number) if index == 6 else []))
    alerts = Counter(event.lane for event in feed.output.events if event.is_alert)
    assert alerts["hubble"] + alerts["vpc"] == 2 and alerts["replay:old"] == 2


def copy_of(machine: Machine) -> Machine:
    return restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})


def test_what_verdicts_rest_on_is_restored_and_stored_only_when_it_changed() -> None:
    feed = feed_of(budget=5)
    for index in range(6, 10):
        feed.send(usual([index]) + peers(index) + news(index, 4, first=4 * index))
    again = copy_of(feed.machine)
    assert again.ledgers == feed.machine.ledgers and again.ledgers["test"]["acme"].days[0].alerts == 3
    assert again.lanes["test"].tenants[0].rarity == feed.machine.lanes["test"].tenants[0].rarity
    assert again.lanes["test"].ledgers is again.ledgers["test"]
    mark_clean(feed.machine)
    feed.send(usual([10]) + peers(10))
    feed.send(usual([11]))
    feed.send(usual([12]))
    mark_clean(feed.machine)
    feed.send(usual([13]))
    assert dict(take(feed.machine))["/alerts/test/0"] is None


def test_under_an_older_logic_detectors_speak_for_themselves() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=DetectionConfig(learning_windows=3)))
    feed.logic = 2
    for index in range(6):
        feed.send(usual([index]) + peers(index))
    feed.send(usual([6]) + news(6, 30))
    feed.send(usual([7]))
    assert len(feed.output.events) == 60
    assert {(event.risk_score, event.is_alert, event.verdict) for event in feed.output.events} == {(45, True, None)}
    chunks = dict(take(feed.machine, everything=True))
    meta, tenant = (msgspec.msgpack.decode(chunks[name] or b"") for name in ("meta", "test/tenant/0"))
    assert "ledgers" not in meta and "rarity" not in tenant
    assert not {"verdict", "risk"} & tenant["book"]["open"][0].keys()
    assert not any(name.startswith("/alerts") for name in chunks)
