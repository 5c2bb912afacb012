"""Alerts of a day never exceed the budget; noise cannot use it up at once; a critical finding keeps its place."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from models.drift.alerting import DAY_MS, KEPT_DAYS, LEARNED_DAYS, AlertLedger, places, reserve
from models.drift.detection import severity_of
from schemas.drift import AlertReason, Severity

ALERTED, PACED, USED = AlertReason.ALERTED, AlertReason.PACED, AlertReason.BUDGET_USED
HOUR_MS = DAY_MS // 24


def ask(ledger: AlertLedger, time_ms: int, risk: int = 50, budget: int = 20) -> AlertReason:
    return ledger.ask(time_ms, risk, severity_of(risk), budget).reason


asked = st.tuples(st.integers(0, 60 * DAY_MS), st.integers(40, 100), st.booleans())


@given(st.lists(asked, max_size=300), st.integers(1, 30))
def test_no_day_has_more_alerts_than_the_budget_whatever_comes_in_whatever_order(
    sequence: list[tuple[int, int, bool]], budget: int
) -> None:
    ledger, alerts = AlertLedger(), Counter[int]()
    for time_ms, risk, is_new in sequence:
        place = ledger.ask(time_ms, risk, severity_of(risk), budget, is_new)
        alerts[time_ms // DAY_MS] += place.reason is ALERTED
        assert place.alerts <= budget
    assert max(alerts.values(), default=0) <= budget
    assert len(ledger.days) <= KEPT_DAYS + 1


@given(st.lists(st.tuples(st.integers(0, DAY_MS - 1), st.integers(40, 100)), min_size=50, max_size=200))
def test_a_budget_that_changes_within_the_day_holds_from_then_on(sequence: list[tuple[int, int]]) -> None:
    ledger = AlertLedger()
    for time_ms, risk in sequence[:25]:
        ask(ledger, time_ms, risk, budget=20)
    before = ledger.days[0].alerts
    for time_ms, risk in sequence[25:]:
        ask(ledger, time_ms, risk, budget=5)
    assert ledger.days[0].alerts <= max(before, 5)


@given(
    st.lists(st.tuples(st.integers(0, DAY_MS - 1), st.integers(40, 84)), max_size=200), st.integers(2, 40), st.data()
)
def test_a_critical_finding_has_a_place_after_any_noise(
    noise: list[tuple[int, int]], budget: int, data: st.DataObject
) -> None:
    ledger = AlertLedger()
    for time_ms, risk in noise:
        ask(ledger, time_ms, risk, budget)
    last_ms = max((time_ms for time_ms, _ in noise), default=0)
    assert ask(ledger, data.draw(st.integers(last_ms, DAY_MS - 1)), 90, budget) is ALERTED


def test_the_first_hour_of_noise_leaves_places_for_the_day() -> None:
    ledger = AlertLedger()
    told = [ask(ledger, n * HOUR_MS // 500) for n in range(500)]
    assert told.count(ALERTED) == 9 and told.count(PACED) == 491
    later = [ask(ledger, hour * HOUR_MS) for hour in range(1, 24) for _ in range(5)]
    assert later.count(ALERTED) == 16 - 9, "all but the four for critical findings"
    assert ask(ledger, DAY_MS - 1) is USED


def test_even_a_flood_of_critical_findings_leaves_places_for_the_evening() -> None:
    ledger = AlertLedger()
    told = [ask(ledger, 12 * HOUR_MS + n, 95) for n in range(500)]
    assert told.count(ALERTED) == 17
    assert [ask(ledger, 23 * HOUR_MS + n, 95) for n in range(3)] == [ALERTED] * 3


def test_a_days_level_is_what_would_have_kept_the_budget_on_the_median_of_the_days_before() -> None:
    ledger = AlertLedger()
    for day in range(9):
        noisy = day % 3 > 0
        for n in range(100 if noisy else 2):
            ask(ledger, day * DAY_MS + n * 60_000, 41 if noisy else 80)
        for n in range(5):
            ask(ledger, day * DAY_MS + 20 * HOUR_MS + n, 55)
    assert ledger.level(9, 20) == 42
    assert ask(ledger, 9 * DAY_MS, 41) is AlertReason.BELOW_LEVEL
    assert ask(ledger, 9 * DAY_MS, 55) is ALERTED
    assert ledger.level(9 + LEARNED_DAYS, 20) == 0, "days in which nothing came are calm days"


def test_one_day_of_attacks_does_not_move_the_level() -> None:
    ledger = AlertLedger()
    for day in range(5):
        for n in range(1_000 if day == 3 else 3):
            ask(ledger, day * DAY_MS + n, 95 if day == 3 else 45)
    assert ledger.level(5, 20) == 0


def test_the_first_day_has_no_level_and_a_candidate_counts_once() -> None:
    ledger = AlertLedger()
    for n in range(40):
        ask(ledger, n, 45)
        ledger.ask(n, 65, Severity.HIGH, 20, is_new=False)
    assert ledger.level(0, 20) == 0
    assert ledger.days[0].candidates == {45: 40}


def test_a_day_that_is_no_longer_counted_alerts_nobody() -> None:
    ledger = AlertLedger()
    assert ask(ledger, 100 * DAY_MS) is ALERTED
    assert ask(ledger, (100 - KEPT_DAYS) * DAY_MS) is ALERTED
    assert ask(ledger, (100 - KEPT_DAYS) * DAY_MS - 1) is AlertReason.TOO_OLD


@given(st.integers(0, 1_000), st.integers(0, DAY_MS))
def test_places_grow_over_the_day_up_to_the_budget(budget: int, time_ms: int) -> None:
    ordinary, critical = (places(budget, time_ms, severity) for severity in (Severity.HIGH, Severity.CRITICAL))
    assert 0 <= ordinary <= critical <= budget
    assert ordinary <= places(budget, DAY_MS, Severity.HIGH) == budget - reserve(budget)
    assert places(budget, DAY_MS, Severity.CRITICAL) == budget
    assert budget < 2 or critical > ordinary or not reserve(budget)


@pytest.mark.parametrize(("budget", "kept"), [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (20, 4)])
def test_a_fifth_is_reserved(budget: int, kept: int) -> None:
    assert reserve(budget) == kept


def test_a_noisy_first_day_is_no_level_for_the_second() -> None:
    ledger = AlertLedger()
    for n in range(100):
        ask(ledger, n, 50)
    assert [ledger.level(day, 20) for day in range(5)] == [0] * 5
    for day in (1, 2):
        for n in range(100):
            ask(ledger, day * DAY_MS + n, 50)
    assert [ledger.level(day, 20) for day in (2, 3)] == [0, 51]
