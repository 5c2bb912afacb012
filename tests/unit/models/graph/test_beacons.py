"""Clock-like contact with the outside is found once, however it is cut, kept and restored; nothing else is."""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from tests.builders import make_flow, make_lane, record_of
from tests.unit.models.graph import driving
from tests.unit.models.graph.driving import DETECTION, WINDOW_MS, Feed, story

WEB, C2 = "shop/web", "ext:net/c2"
LEAST = 90
"""Windows over which contact is judged here: a quarter of an hour."""
ASKED: dict[str, Any] = {"errors": 0, "bytes_out": 80, "bytes_in": 5_327, "packets_in": 4}


def background(until: int, every: int = 1) -> list[Flow]:
    """Return one call inside the estate in each window, or in one of so many: windows without calls cost no time."""
    return [make_flow(index * WINDOW_MS + 1, src=WEB, dst="shop/cart") for index in range(0, until, every)]


def contacts(windows: Iterable[float], **changes: Any) -> list[Flow]:
    values: dict[str, Any] = {"src": WEB, "dst": C2, "port": 443, **ASKED, **changes}
    return [make_flow(int(index * WINDOW_MS), **values) for index in windows]


def clock(interval: float, until: int, jitter: float = 0.2, first: float = 4.0, seed: int = 5) -> list[float]:
    """Return times in windows, from ``first`` on."""
    rng = np.random.default_rng(seed)
    times = first + np.cumsum(interval * rng.uniform(1 - jitter, 1 + jitter, int(until / interval * 2) + 2))
    return [first, *times[times < until].tolist()]


def judge(flows: list[Flow], **detection: Any) -> Output:
    return driving.judge(flows, **{"beacon_min_hours": LEAST * WINDOW_MS / 3_600_000, **detection})


def found(output: Output) -> list[DriftEvent]:
    return [e for e in output.events if e.kind is DriftKind.BEACONING and e.activity is Activity.CREATE]


@pytest.mark.parametrize("interval", [1 / 3, 1.0, 1.5, 4.5, 30.0])
def test_a_clock_is_told_once_when_it_has_gone_on_long_enough(interval: float) -> None:
    until = max(2 * LEAST, int(26 * interval))
    (event,) = found(judge(background(until) + contacts(clock(interval, until))))
    assert (event.src, event.dst, event.port, event.is_early) == (WEB, C2, 443, False)
    waited = event.window_start_ms // WINDOW_MS - 4
    assert max(LEAST, 18 * interval) <= waited <= max(LEAST, 22 * interval) + 2 * interval + 20
    spread, interval_seen, size_out, size_in = event.evidence
    assert spread.observed <= 0.15 and spread.expected == 1
    assert interval_seen.observed / 1_000 == pytest.approx(interval * WINDOW_MS, rel=0.1)
    assert (size_out.observed, size_in.observed) == (80, 5_327)


def test_contact_that_begins_in_the_learning_windows_is_found_after_them() -> None:
    flows = background(3 * LEAST) + contacts(clock(5.0, 3 * LEAST, first=0.0))
    (event,) = found(judge(flows, learning_windows=2 * LEAST))
    assert event.window_start_ms // WINDOW_MS in range(2 * LEAST, 2 * LEAST + 8)


def test_contact_by_chance_is_not_found() -> None:
    rng = np.random.default_rng(11)
    flows = background(6 * LEAST)
    for number, interval in enumerate((0.5, 1.0, 2.0, 5.0, 20.0) * 6):
        times = np.cumsum(rng.exponential(interval, int(9 * LEAST / interval)))
        flows += contacts(times[times < 6 * LEAST].tolist(), dst=f"ext:net/{number}")
    assert found(judge(flows)) == []


def test_bursts_of_tries_are_not_found_however_often_they_come() -> None:
    # Thirty tries of a password guesser, each time the lock-out is over.
    times = [start + 1.2 * number for start in range(4, 12 * LEAST, 2 * LEAST) for number in range(30)]
    assert found(judge(background(12 * LEAST) + contacts(times, src="ext:net/guesser", dst=WEB))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"dst": "shop/cart", "port": 9_000},  # inside the estate clocks are everywhere
        {"src": "ext:net/scan", "dst": WEB, "errors": 1, "bytes_in": 0, "packets_in": 1},  # nobody answers
    ],
)
def test_clocks_inside_and_refused_callers_are_not_found(changes: dict[str, Any]) -> None:
    assert found(judge(background(2 * LEAST) + contacts(clock(5.0, 2 * LEAST), **changes))) == []


def test_calling_home_in_vain_is_found() -> None:
    refused = contacts(clock(5.0, 2 * LEAST), errors=1, bytes_in=0, packets_in=1)
    assert len(found(judge(background(2 * LEAST) + refused))) == 1


def test_a_caller_of_an_open_service_is_found_among_strangers() -> None:
    until = 2 * LEAST
    strangers = [
        make_flow(index * WINDOW_MS + 2, src=f"ext:net/{index}", dst=WEB, port=443, **ASKED) for index in range(until)
    ]
    flows = background(until) + strangers + contacts(clock(4.5, until, 0.28), src="ext:net/bad", dst=WEB)
    (event,) = found(judge(flows))
    assert (event.src, event.dst) == ("ext:net/bad", WEB)


def test_it_stays_open_while_contact_goes_on_and_recovers_when_it_stops() -> None:
    times = [time for time in clock(20.0, 900, 0.1) if time < 700]
    output = judge(background(900, every=5) + contacts(times))
    (_, created, opened, _), (_, closed, ended, reason) = story(output.events, DriftKind.BEACONING)
    assert (created, closed, reason) == ("create", "close", "recovered")
    assert opened == pytest.approx(404, abs=40) and ended == pytest.approx(700 + 60, abs=22)


def test_it_is_accepted_after_a_day_of_windows() -> None:
    output = judge(background(1_800, every=5) + contacts(clock(10.0, 1_800, 0.1)))
    (_, _, opened, _), (_, closed, ended, reason) = story(output.events, DriftKind.BEACONING)
    assert (closed, reason) == ("close", "accepted") and 1_440 <= ended - opened <= 1_480


def test_it_is_told_no_more_once_it_was() -> None:
    times = [time for time in clock(5.0, 800, 0.1) if time // 200 % 2 == 0]
    assert len(found(judge(background(800, every=5) + contacts(times)))) == 1


def test_time_and_names_are_asked_for_by_the_clock_and_rank_low() -> None:
    flows = background(2 * LEAST)
    flows += contacts(clock(6.0, 2 * LEAST), dst="ext:net/ntp", port=123, protocol="udp", errors=None)
    flows += contacts(clock(6.0, 2 * LEAST), dst="ext:net/home", port=123, protocol="tcp")
    by_peer = {event.dst: event for event in found(judge(flows))}
    assert by_peer["ext:net/ntp"].risk_score < 40 <= by_peer["ext:net/home"].risk_score
    assert not by_peer["ext:net/ntp"].is_alert


def test_a_supplier_many_services_share_ranks_lower() -> None:
    services = ["shop/a", "shop/b", "shop/c"]
    flows = background(2 * LEAST) + contacts(clock(6.0, 2 * LEAST), dst="ext:net/own")
    flows += [flow for n, name in enumerate(services) for flow in contacts(clock(6.0, 2 * LEAST, seed=n), src=name)]
    # The risk itself also says that the tenant has seen beacons before; what the marks are worth is the effect.
    risks = {(e.src, e.dst): e.verdict.effect for e in found(judge(flows)) if e.verdict is not None}
    assert {risks[name, C2] for name in services} == {risks[WEB, "ext:net/own"] - 15}


def test_intervals_in_which_records_may_be_missing_do_not_count() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    beats = [contacts([4.0 + 6 * number]) for number in range(20)]
    for number, beat in enumerate(beats):
        position = feed.next_offset.get(0, 0) + (number == 10)  # what was between is lost
        record = record_of(feed.lane, 0, position, beat)
        feed.append(msgspec.structs.replace(record, loss=number == 10))
        feed.next_offset[0] = position + 1
    feed.end()
    registry = feed.machine.lanes["test"].registry
    number = registry.edge_number["acme", WEB, C2, 443, 6]
    counted = {name: int(registry.edge.array[name][number]) for name in ("run_gaps", "run_windows", "run_from")}
    # The interval that ends in the lossy window, and the one before it whose window was open then, are left out.
    assert counted == {"run_gaps": 17, "run_windows": 17 * 6, "run_from": 4}


def test_a_machine_restored_at_any_record_finds_the_same() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=msgspec.structs.replace(DETECTION, beacon_min_hours=0.25)))
    flows = (
        background(2 * LEAST) + contacts(clock(4.5, 2 * LEAST, 0.3)) + contacts(clock(1.0, 2 * LEAST), dst="ext:net/2")
    )
    strange: dict[str, Any] = {"dst": WEB, **ASKED}
    flows += [make_flow(i * WINDOW_MS + 3, src=f"ext:net/{i}", **{"port": 443, **strange}) for i in range(2 * LEAST)]
    flows += [make_flow(100 * WINDOW_MS + 4, src="ext:net/odd", **{"port": 9_200, **strange})]
    flows.sort(key=lambda flow: flow.time_ms)
    for start in range(0, len(flows), 40):
        feed.send(flows[start : start + 40])
    feed.end()
    straight, restored = Machine(), Machine()
    events = []
    for offset, record in enumerate(feed.log):
        expected = straight.apply(offset, record)
        assert restored.apply(offset, record).events == expected.events
        events += expected.events
        chunks = dict(take(restored, everything=True))
        assert chunks == dict(take(straight, everything=True))
        restored = restore({name: chunk for name, chunk in chunks.items() if chunk is not None})
    assert {event.dst for event in events if event.kind is DriftKind.BEACONING} == {C2, "ext:net/2"}
    assert {event.kind for event in events} >= {DriftKind.NEW_EDGE, DriftKind.NEW_PORT}
