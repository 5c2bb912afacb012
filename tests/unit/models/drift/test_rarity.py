"""Risk is the share of windows in which such a finding or a stronger one begins; at first, what its effect is rated."""

from collections.abc import Mapping, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from models.drift.detection import Detection
from models.drift.rarity import HALF_LIFE_MS, Rarity, Tail, risk_of, score_of
from schemas.drift import DriftKind, Evidence

SURGE: str = DriftKind.RATE_SURGE.value
EDGE: str = DriftKind.NEW_EDGE.value


def rarity_of(windows: Sequence[Mapping[str, float]]) -> Rarity:
    rarity = Rarity()
    for index, began in enumerate(windows):
        rarity.close(index * 10_000, began)
    return rarity


def test_without_history_the_risk_is_what_the_effect_is_rated() -> None:
    assert [risk_of(Tail(0, 0), effect) for effect in range(101)] == list(range(101))


@given(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_risk_is_above_its_effect_and_more_of_the_like_is_less_risk(effect: int, alike: int, quiet: int) -> None:
    risk = risk_of(Tail(alike, alike + quiet), effect)
    assert 0 <= risk <= effect
    assert risk_of(Tail(alike + 1, alike + quiet + 1), effect) <= risk
    assert risk_of(Tail(alike, alike + quiet + 1), effect) >= risk


@pytest.mark.parametrize(("every", "risk"), [(1, 0), (10, 20), (100, 40), (1_000, 60)])
def test_with_history_the_risk_is_the_share_of_windows(every: int, risk: int) -> None:
    """An effect of 60 is thought to come once in 1,000 windows; a hundred times as many say how often it does."""
    tail = rarity_of([{SURGE: 7.0} if index % every == 0 else {} for index in range(100_000)]).tail(SURGE, 7.0)
    assert tail == (100_000 // every, 100_000)
    assert risk_of(tail, 60) == pytest.approx(risk, abs=1)


def test_only_what_is_as_loud_or_louder_counts_and_only_of_its_kind() -> None:
    rarity = rarity_of([{SURGE: 7.0}, {SURGE: 50.0, EDGE: 0.0}, {}, {SURGE: 8.0}])
    assert rarity.tail(SURGE, 6.5).alike == 3
    assert rarity.tail(SURGE, 20.0).alike == 1
    assert rarity.tail(SURGE, 99.0).alike == 0
    assert rarity.tail(EDGE, 0.0) == (1, 4)


def test_counts_are_halved_with_each_half_life_however_far_apart() -> None:
    windows = [{SURGE: 7.0}] * 64
    step, jump = rarity_of(windows), rarity_of(windows)
    for half_life in (1, 2, 3):
        step.close(half_life * HALF_LIFE_MS, {})
    assert step.tail(SURGE, 7.0) == (8, 8 + 1)  # 64 + 0.25 + 0.5 + 1 of the windows
    jump.close(3 * HALF_LIFE_MS, {})
    assert jump.tail(SURGE, 7.0) == (8, 9)
    jump.close(200 * HALF_LIFE_MS, {})
    assert jump.tail(SURGE, 7.0) == (0, 1) and jump.loudest == {}
    jump.close(100 * HALF_LIFE_MS, {})
    assert jump.windows == 2 << 10, "time that goes back halves nothing"


@given(st.lists(st.dictionaries(st.sampled_from([SURGE, EDGE]), st.floats(0, 1e6)), max_size=20), st.integers(0, 20))
def test_two_parts_of_the_windows_add_up_to_the_whole(windows: list[dict[str, float]], cut: int) -> None:
    whole, merged = rarity_of(windows), rarity_of(windows[:cut])
    merged.merge(rarity_of(windows[cut:]))
    assert merged.windows == whole.windows and merged.loudest == whole.loudest


def test_a_detection_is_as_loud_as_its_loudest_evidence_and_a_sample_is_none() -> None:
    def evidence(signal: str, score: float) -> Evidence:
        return Evidence(signal, 1.0, 1.0, "", score, 1, 1, "robust-z")

    items = (evidence("calls_per_window", -9.0), evidence("bytes_per_window", 7.0), evidence("sampled", 99.0))
    assert score_of(Detection(DriftKind.RATE_SURGE, "a", "b", 1, 6, (), 0, items, 50, 50, 0)) == 9.0
    assert score_of(Detection(DriftKind.RATE_SURGE, "a", "b", 1, 6, (), 0, (), 50, 50, 0)) == 0.0
