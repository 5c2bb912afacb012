"""Slow drift: the test is Page's and Hinkley's, creeps are found, and noise, spikes and load are none."""

import math

import numpy as np
import pytest
from river.drift import PageHinkley

from models.drift import baseline, trend
from models.drift.trend import Trends, common_rise, creeps, follow, moved_mean, page_hinkley
from models.graph.registry import BYTES, CALLS, ERRORS, P50, P95, SIGNALS
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind

CONFIG = DetectionConfig()


def first_alarms(values: np.ndarray, tolerance: float, threshold: float) -> list[int]:
    """Run one column as it is used here, begun anew after each alarm."""
    alarms, mean, excess, count = [], np.zeros(1), np.zeros(1), 0
    for at, value in enumerate(values):
        count += 1
        mean = moved_mean(np.array([value]), mean, np.array([count]))
        excess = page_hinkley(value - mean, excess, tolerance)
        if excess[0] > threshold:
            alarms.append(at)
            mean, excess, count = np.zeros(1), np.zeros(1), 0
    return alarms


def reference_alarms(values: np.ndarray, tolerance: float, threshold: float) -> list[int]:
    """Page-Hinkley as it is written down: the cumulative sum less its minimum so far."""
    alarms: list[int] = []
    seen: list[float] = []
    total, least = 0.0, math.inf
    for at, value in enumerate(values):
        seen.append(float(value))
        total += value - sum(seen) / len(seen) - tolerance
        least = min(least, total)
        if total - least > threshold:
            alarms.append(at)
            seen, total, least = [], 0.0, math.inf
    return alarms


def rivers_alarms(values: np.ndarray, tolerance: float, threshold: float) -> list[int]:
    """River's own, that forgets nothing. It begins anew with the value after an alarm, as ours does."""
    detector = PageHinkley(min_instances=1, delta=tolerance, threshold=threshold, alpha=1.0, mode="up")
    alarms = []
    for at, value in enumerate(values.tolist()):
        detector.update(value)  # type: ignore[no-untyped-call]
        if detector.drift_detected:
            alarms.append(at)
    return alarms


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_test_of_page_and_hinkley(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, 600) + np.repeat(rng.choice([0.0, 1.0, 4.0], 6), 100)
    tolerance, threshold = float(rng.uniform(0.005, 0.5)), float(rng.uniform(5, 50))
    expected = reference_alarms(values, tolerance, threshold)
    assert rivers_alarms(values, tolerance, threshold) == expected
    assert first_alarms(values, tolerance, threshold) == expected


def run(values: np.ndarray, signal: int, common: float = 0.0, config: DetectionConfig = CONFIG) -> list[int]:
    """Return the windows in which one edge's signal creeps; ``values`` as ``baseline.signals_of`` gives them."""
    return run_edges([values], signal, common, config)[0]


def run_edges(
    edges: list[np.ndarray], signal: int, common: float = 0.0, config: DetectionConfig = CONFIG
) -> list[list[int]]:
    """Return what `run` does for each of several edges, side by side."""
    shape = len(edges), len(SIGNALS)
    mean, spread, history = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int32)
    trends = Trends(np.zeros(shape), np.zeros(shape), np.zeros(shape))
    calls, none = np.full(len(edges), 100), np.zeros(len(edges), dtype=np.int64)
    found: list[list[int]] = [[] for _ in edges]
    for at, values in enumerate(np.stack(edges, axis=1)):
        row = np.full(shape, np.nan)
        row[:, signal] = values
        before = trends.mean
        trends, past = follow(config, row, mean, history, np.full_like(row, common), trends, accept_windows=360)
        masks = creeps(config, row, before, past, calls, calls, none)
        for edge in np.flatnonzero(np.any(list(masks.values()), axis=0)):
            found[edge].append(at)
        mean, spread, history = baseline.learn(row, mean, spread, history)
    return found


def steady(count: int, sigma: float, level: float, seed: int) -> np.ndarray:
    noise: np.ndarray = np.random.default_rng(seed).normal(0, sigma, count)
    return noise + math.log1p(level)


@pytest.mark.parametrize("signal", [CALLS, BYTES, P50, P95])
def test_a_creep_is_found_before_it_has_grown_fivefold(signal: int) -> None:
    edges, growths = [], []
    for percent in (1.0, 2.0, 3.0):
        for seed in range(3):
            growths.append(np.log1p(percent / 100) * np.arange(1, 300))
            calm = steady(300, 0.1, 200_000, seed)
            edges.append(np.concatenate([calm, steady(299, 0.1, 200_000, seed + 50) + growths[-1]]))
    for found, growth in zip(run_edges(edges, signal), growths, strict=True):
        assert found and found[0] >= 300
        assert np.log(2) <= growth[found[0] - 300] + 0.3 and growth[found[0] - 300] <= np.log(5)


def test_the_robust_score_does_not_see_it() -> None:
    values = np.concatenate([steady(300, 0.1, 200_000, 1), steady(200, 0.1, 200_000, 2) + 0.0198 * np.arange(200)])
    mean, spread = np.zeros((1, len(SIGNALS))), np.zeros((1, len(SIGNALS)))
    history, scores = np.zeros((1, len(SIGNALS)), dtype=np.int32), []
    one = np.ones(1, dtype=np.int64)
    for value in values:
        row = np.full((1, len(SIGNALS)), np.nan)
        row[0, P95] = value
        effect = value - mean[0, P95]
        score = baseline.scores_of(row, mean, spread, 100 * one, np.ones(1), 0 * one)[0, P95]
        scores.append(score >= CONFIG.z_threshold and effect >= math.log(CONFIG.min_effect_ratio))
        mean, spread, history = baseline.learn(row, mean, spread, history)
    assert not any(scores[10:])
    assert run(values, P95)


def test_errors_that_creep_are_found_at_a_share() -> None:
    ratio = np.concatenate([np.full(200, 0.01), 0.01 + 0.001 * np.arange(200)])
    (first, *_) = run(ratio, ERRORS)
    assert 0.05 <= ratio[first] - 0.01 <= 0.1


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3, 1.0])
def test_noise_is_no_creep(sigma: float) -> None:
    assert run_edges([steady(1_500, sigma, 200_000, seed) for seed in range(4)], P95) == [[]] * 4


def test_spikes_are_no_creep() -> None:
    values = steady(600, 0.1, 200_000, 3)
    values[100::20] += 4.0
    assert not run(values, P95)


def test_load_of_all_edges_is_no_creep_of_one() -> None:
    rise = np.concatenate([np.zeros(100), np.linspace(0, 2, 200)])
    edges = np.full((6, len(SIGNALS)), np.nan)
    edges[:5, CALLS], edges[5, CALLS] = 3.0, 1.0
    history = np.full((6, len(SIGNALS)), 50, dtype=np.int32)
    assert common_rise(edges, np.ones_like(edges), history, 30)[CALLS] == 2.0
    assert common_rise(edges[:4], np.ones((4, len(SIGNALS))), history[:4], 30)[CALLS] == 0.0, "few edges say nothing"
    assert run(5 + rise, CALLS)
    assert not run(5 + rise, CALLS, common=2.0)


def test_a_level_that_stays_is_accepted() -> None:
    values = np.concatenate([steady(400, 0.05, 1_000, 1), steady(1_500, 0.05, 4_000, 2)])
    found = run(values, CALLS)
    assert found and 1_000 > found[-1] > found[0]


@pytest.mark.parametrize(
    ("changes", "fires"), [({}, True), ({"min_latency_shift_us": 10**9}, False), ({"min_calls": 101}, False)]
)
def test_a_creep_needs_an_effect_and_a_sample(changes: dict[str, int], fires: bool) -> None:
    values = np.concatenate([steady(100, 0.05, 10_000, 1), steady(150, 0.05, 10_000, 2) + 0.02 * np.arange(150)])
    config = DetectionConfig(**changes)
    assert bool(run(values, P50, config=config)) == fires


def test_kinds_are_those_of_the_signals() -> None:
    past = np.ones((1, len(SIGNALS)), dtype=bool)
    masks = creeps(CONFIG, np.full((1, 5), 14.0), np.full((1, 5), 9.0), past, *(np.array([n]) for n in (99, 99, 0)))
    assert {key for key, mask in masks.items() if mask[0]} == {
        (DriftKind.RATE_SURGE, CALLS),
        (DriftKind.BYTES_SURGE, BYTES),
        (DriftKind.ERROR_INCREASE, ERRORS),
        (DriftKind.LATENCY_INCREASE, P50),
        (DriftKind.LATENCY_INCREASE, P95),
    }
    assert trend.DETECTOR == "page-hinkley"
