"""Alerts from scores alone: learned from past days, within the budget, blind to chunk cuts."""

import dataclasses
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from models.drift.edge_stream.calibration import AlertCalibration, AlertParams, AlertState
from tests.unit.models.drift.edge_stream.streams import hashes

DAY_MS = 86_400_000
NAMES = hashes(3, 400)


def _fields(state: AlertState) -> list[object]:
    return [np.asarray(getattr(state, item.name)).tolist() for item in dataclasses.fields(state)]


def _day(day: int, scores: npt.NDArray[np.float64], src: npt.NDArray[np.uint64], dst: npt.NDArray[np.uint64]):  # type: ignore[no-untyped-def]
    times = day * DAY_MS + np.linspace(0, DAY_MS - 1, len(scores)).astype(np.int64)
    return src, dst, times, scores


def _ordinary(day: int, rng: np.random.Generator, records: int = 2_000):  # type: ignore[no-untyped-def]
    return _day(day, rng.normal(size=records), rng.choice(NAMES[:200], records), rng.choice(NAMES[200:], records))


def test_first_day_learns_and_raises_nothing() -> None:
    alerts = AlertCalibration()
    assert alerts.threshold is None
    assert not alerts.observe(*_ordinary(0, np.random.default_rng(1))).any()


def test_ordinary_days_raise_about_the_budget_and_never_more() -> None:
    rng = np.random.default_rng(2)
    alerts = AlertCalibration(AlertParams(budget_per_day=20))
    raised = [int(alerts.observe(*_ordinary(day, rng)).sum()) for day in range(12)]
    assert max(raised) <= 20
    assert 8 <= float(np.mean(raised[2:])) <= 20


def test_attack_day_does_not_move_the_threshold_of_the_next() -> None:
    rng = np.random.default_rng(3)
    alerts = AlertCalibration(AlertParams(budget_per_day=20))
    for day in range(5):
        alerts.observe(*_ordinary(day, rng))
    alerts.observe(*_ordinary(5, rng))
    before = alerts.threshold
    src, dst, times, scores = _ordinary(6, rng)
    alerts.observe(src, dst, times, scores + 50.0)
    alerts.observe(*_ordinary(7, rng))
    assert before is not None and alerts.threshold is not None
    assert abs(alerts.threshold - before) <= 0.5


def test_flood_from_forged_callers_is_one_alert_an_hour() -> None:
    rng = np.random.default_rng(4)
    alerts = AlertCalibration()
    alerts.observe(*_ordinary(0, rng))
    flood = 5_000
    times = DAY_MS + np.arange(flood, dtype=np.int64) * 100
    raised = alerts.observe(hashes(9, flood), np.full(flood, NAMES[300]), times, np.full(flood, 30.0))
    assert raised.sum() == 1
    assert raised[0]


def test_alerts_beyond_the_budget_are_counted_as_withheld() -> None:
    rng = np.random.default_rng(5)
    alerts = AlertCalibration(AlertParams(budget_per_day=10))
    alerts.observe(*_ordinary(0, rng))
    src, dst, times, scores = _day(1, np.full(40, 60.0), NAMES[:40], NAMES[200:240])
    assert alerts.observe(src, dst, times, scores).sum() == 10
    assert alerts.state.withheld == 30


def test_risk_is_the_share_of_past_cases_below() -> None:
    rng = np.random.default_rng(6)
    alerts = AlertCalibration()
    assert alerts.risk(np.array([5.0])).tolist() == [0.0]
    for day in range(3):
        alerts.observe(*_ordinary(day, rng))
    low, middle, high = alerts.risk(np.array([-100.0, 0.5, 100.0]))
    assert low == 0.0
    assert 0.0 < middle < high == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.integers(1, 400), max_size=10))
def test_any_chunking_raises_the_same_alerts(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    columns = [np.concatenate(parts) for parts in zip(*(_ordinary(day, rng, 500) for day in range(4)), strict=True)]
    params = AlertParams(budget_per_day=5, columns=64)
    whole, cut = AlertCalibration(params), AlertCalibration(params)
    at_once = whole.observe(*columns)
    places = [0, *np.minimum(np.cumsum([0, *lengths]), 2_000).tolist(), 2_000]
    piecewise = [cut.observe(*(column[begin:end] for column in columns)) for begin, end in pairwise(places)]
    np.testing.assert_array_equal(np.concatenate(piecewise), at_once)
    assert _fields(cut.state) == _fields(whole.state)
