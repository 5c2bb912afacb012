"""Nightly jobs and slow drift through the state machine: told once, however the log is cut, kept and restored."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from models.graph.machine import Machine
from models.graph.output import EXPECTED_BACK, Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.drift import RECURRENCE, Activity, DriftEvent, DriftKind
from schemas.flow import Flow
from schemas.tenant_log import LogRecord
from tests.builders import make_flow, make_lane
from tests.unit.models.graph.driving import DETECTION, Feed

WINDOW_MS = 600_000
DAY = 144
"""Windows of ten minutes in a day; the first stands for Thursday 1970-01-01 00:00."""
AT_TWO = range(12, 21)


def calls(index: int, count: int = 10, **changes: object) -> list[Flow]:
    step = WINDOW_MS // count
    return [make_flow(index * WINDOW_MS + n * step, **{"bytes_out": 20_000, **changes}) for n in range(count)]  # type: ignore[arg-type]


def is_night(index: int) -> bool:
    return index % DAY in AT_TWO


def backup(index: int, size: int = 2_000_000) -> list[Flow]:
    """Traffic that goes on, and a backup each night on an edge that is always in use."""
    return calls(index) + calls(index, src="shop/db", dst="shop/store", bytes_out=size if is_night(index) else 20_000)


def job(index: int) -> list[Flow]:
    """Traffic that goes on, and an edge that is there only at night."""
    return calls(index) + (calls(index, src="shop/cron", dst="shop/report") if is_night(index) else [])


def feed_of(windows: list[list[Flow]], logic: int | None = None, **detection: object) -> Feed:
    config = msgspec.structs.replace(DETECTION, **{"learning_windows": 8, **detection})
    feed = Feed(make_lane(lateness_ms=0, window_ms=WINDOW_MS, detection=config))
    feed.logic = feed.logic if logic is None else logic
    for flows in windows:
        feed.send(sorted(flows, key=lambda flow: flow.time_ms))
    return feed


def creates(output: Output, kind: DriftKind) -> list[DriftEvent]:
    return [e for e in output.events if e.kind is kind and e.activity is Activity.CREATE]


def nights(events: list[DriftEvent]) -> list[int]:
    return [event.window_start_ms // WINDOW_MS // DAY for event in events]


def test_a_nightly_backup_is_an_alert_once() -> None:
    output = feed_of([backup(index) for index in range(4 * DAY)]).output
    told = creates(output, DriftKind.BYTES_SURGE)
    assert nights(told) == [0, 1, 2, 3], "it exists each night"
    assert [event.is_alert for event in told] == [True, False, False, False]
    assert not any(e.is_alert for e in output.events if e.window_start_ms >= DAY * WINDOW_MS)
    assert "Expected at this hour, so no alert: as on Thursday 1970-01-01 02:00 UTC (1 such time remembered)." in (
        told[1].message
    )
    assert [item.signal for item in told[1].evidence] == ["bytes_per_window", RECURRENCE]
    assert not creates(output, DriftKind.RATE_DROP)


def test_a_backup_twice_as_large_is_an_alert_again() -> None:
    output = feed_of([backup(index, 2_000_000 if index < 2 * DAY else 4_000_000) for index in range(3 * DAY)]).output
    assert [event.is_alert for event in creates(output, DriftKind.BYTES_SURGE)] == [True, False, True]


def test_the_baseline_does_not_learn_the_hour_of_the_job() -> None:
    feed = feed_of([backup(index) for index in range(3 * DAY + 30)])
    registry = feed.machine.lanes["test"].registry
    number = registry.edge_number["acme", "shop/db", "shop/store", 8080, 6]
    assert np.expm1(registry.edge.array["mean"][number, 1]) == pytest.approx(10 * 20_000, rel=0.05)
    before = feed_of([backup(index) for index in range(AT_TWO.stop)], logic=2)
    registry = before.machine.lanes["test"].registry
    number = registry.edge_number["acme", "shop/db", "shop/store", 8080, 6]
    assert np.expm1(registry.edge.array["mean"][number, 1]) > 1.2 * 10 * 20_000, "earlier versions learned it"


def test_a_nightly_edge_is_new_once_and_removed_once() -> None:
    output = feed_of([job(index) for index in range(4 * DAY)]).output
    assert len(creates(output, DriftKind.NEW_SERVICE)) == 2
    assert nights(creates(output, DriftKind.REMOVED_EDGE)) == [0]
    assert len(creates(output, DriftKind.RATE_DROP)) <= 1
    assert output.counts[EXPECTED_BACK] == 3, "each later night"


def test_a_nightly_edge_that_does_not_come_is_told_an_hour_after_its_time() -> None:
    output = feed_of([job(index) if index < 3 * DAY else calls(index) for index in range(4 * DAY)]).output
    _, missed = creates(output, DriftKind.REMOVED_EDGE)
    assert 3 * DAY + AT_TWO.start <= missed.window_start_ms // WINDOW_MS <= 3 * DAY + AT_TWO.start + 7


def test_expectations_can_be_switched_off() -> None:
    output = feed_of([backup(index) for index in range(3 * DAY)], recurring_after=0).output
    assert [event.is_alert for event in creates(output, DriftKind.BYTES_SURGE)] == [True] * 3


@pytest.mark.parametrize("logic", [1, 2])
def test_earlier_versions_keep_no_calendar_and_no_trend(logic: int) -> None:
    feed = feed_of([backup(index) for index in range(2 * DAY)], logic=logic)
    assert [event.is_alert for event in creates(feed.output, DriftKind.BYTES_SURGE)] == [True, True]
    lane = feed.machine.lanes["test"]
    assert not any(state.calendar.occasions for state in lane.tenants.values())
    assert not lane.registry.edge.array["trend_mean"].any()
    chunks = dict(take(feed.machine))
    assert not any("/calendar/" in name for name in chunks)
    page = msgspec.msgpack.decode(chunks["test/edges/0"] or b"")
    assert not {"expected_back", "trend_mean", "trend_spread", "trend_excess"} & page["columns"].keys()


def straight(log: list[LogRecord]) -> Output:
    machine, output = Machine(), Output()
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
    return output


@pytest.mark.parametrize("traffic", [backup, job])
def test_what_is_remembered_outlives_restarts(traffic: object) -> None:
    log = feed_of([traffic(index) for index in range(DAY + 40)]).log  # type: ignore[operator]
    machine, output = Machine(), Output()
    chunks: dict[str, bytes] = {}
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
        if offset % 43 == 0:
            chunks |= {name: chunk for name, chunk in take(machine) if chunk is not None}
            mark_clean(machine)
            machine = restore(chunks)
    assert [e.event_id for e in output.events] == [e.event_id for e in straight(log).events]
    assert [e.is_alert for e in output.events] == [e.is_alert for e in straight(log).events]


def test_records_cut_anew_say_the_same() -> None:
    windows = [backup(index) for index in range(2 * DAY)]
    rng = np.random.default_rng(7)
    flows = [flow for window in windows for flow in sorted(window, key=lambda flow: flow.time_ms)]
    cuts = [0, *sorted(rng.choice(len(flows), 60, replace=False).tolist()), len(flows)]
    again = feed_of([flows[a:b] for a, b in pairwise(cuts)])
    once = feed_of(windows)
    for feed in (again, once):
        feed.end()
    assert [msgspec.to_builtins(e) for e in again.output.events] == [msgspec.to_builtins(e) for e in once.output.events]


def test_a_slow_creep_is_told_though_the_score_never_sees_it() -> None:
    windows = [calls(n, latency_us=int(10_000 * 1.02 ** max(0, n - 100)), bytes_out=None) for n in range(200)]
    (found,) = creates(feed_of(windows).output, DriftKind.LATENCY_INCREASE)
    assert {item.detector for item in found.evidence} == {"page-hinkley"}
    assert 130 <= found.window_start_ms // WINDOW_MS <= 150
    assert "median latency crept to " in found.message and found.is_alert
    assert not creates(feed_of(windows, logic=2).output, DriftKind.LATENCY_INCREASE)
