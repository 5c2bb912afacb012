"""What metrics of services and edges tell, and that their excess finds its way to where it comes from."""

import numpy as np
import pytest

from models.rca.causes import causes_of
from models.rca.error_rank import Symptom, score_services
from models.rca.evidence import Shift
from models.rca.gather import MetricRanges, gather
from models.rca.metric_shifts import metric_shifts
from models.rca.topology import Topology
from schemas.rca_inputs import Metric, MetricSamples

CHAIN = Topology.of(["web", "app", "web"], ["app", "db", "ads"])
USUAL: dict[tuple[str, str], dict[Metric, float]] = {
    ("", "web"): {
        Metric.LATENCY: 90_000,
        Metric.REQUESTS: 400,
        Metric.FAILED_RATIO: 0.0,
        Metric.CPU: 30,
        Metric.MEMORY: 50,
    },
    ("", "app"): {
        Metric.LATENCY: 50_000,
        Metric.REQUESTS: 390,
        Metric.FAILED_RATIO: 0.0,
        Metric.CPU: 20,
        Metric.MEMORY: 50,
    },
    ("", "db"): {
        Metric.LATENCY: 12_000,
        Metric.REQUESTS: 380,
        Metric.FAILED_RATIO: 0.0,
        Metric.CPU: 10,
        Metric.MEMORY: 50,
    },
    ("", "ads"): {
        Metric.LATENCY: 5_000,
        Metric.REQUESTS: 40,
        Metric.FAILED_RATIO: 0.0,
        Metric.CPU: 0.0,
        Metric.MEMORY: 50,
    },
    ("web", "app"): {Metric.NETWORK: 900.0},
    ("app", "db"): {Metric.NETWORK: 900.0},
    ("web", "ads"): {Metric.NETWORK: 900.0},
}
Changes = dict[tuple[str, str], dict[Metric, float]]
BEFORE, NOW = 40, 4


def ranges_of(changes: Changes) -> MetricRanges:
    rng = np.random.default_rng(4)
    rows: list[tuple[int, int, int, int, float]] = []
    for tick in range(BEFORE + NOW):
        for (src, dst), usual in USUAL.items():
            for metric, level in usual.items():
                value = level * rng.uniform(0.95, 1.05)
                if tick >= BEFORE:
                    value = changes.get((src, dst), {}).get(metric, value)
                caller = CHAIN.services.index(src) if src else -1
                rows.append((caller, CHAIN.services.index(dst), list(Metric).index(metric), tick * 60_000, value))
    callers, callees, metrics, at_ms = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(4))
    samples = MetricSamples(CHAIN.services, callers, callees, metrics, at_ms, np.array([row[4] for row in rows]))
    now = samples.at_ms >= BEFORE * 60_000
    return MetricRanges(samples, now, ~now)


def shifts_of(changes: Changes) -> dict[str, Shift]:
    return {shift.signal: shift for shift in gather(CHAIN, metrics=ranges_of(changes))}


def first(changes: Changes, symptom: Symptom | None = None) -> str:
    kept = score_services(CHAIN, list(shifts_of(changes).values()), symptom).kept
    return CHAIN.services[int(np.argmax(kept))]


def test_nothing_is_found_where_nothing_changed() -> None:
    assert not any(shift.is_evidence.any() for shift in shifts_of({}).values())


def test_slowness_is_passed_down_to_the_service_it_comes_from() -> None:
    slow: Changes = {
        ("", "web"): {Metric.LATENCY: 190_000},
        ("", "app"): {Metric.LATENCY: 150_000},
        ("", "db"): {Metric.LATENCY: 112_000},
    }
    shift = shifts_of(slow)["latency"]
    db = CHAIN.services.index("db")
    assert shift.excess[db] == pytest.approx(100_000 * 380 * NOW, rel=0.1)
    scores = score_services(CHAIN, [shift])
    assert CHAIN.services[int(np.argmax(scores.kept))] == "db"
    assert scores.kept.sum() == pytest.approx(scores.seed.sum())
    assert scores.seed[db] < 0.7 * scores.kept[db]


def test_much_harm_outweighs_many_spreads() -> None:
    # ads is farther from its usual in its own spreads, yet what it costs is next to nothing.
    slow: Changes = {
        ("", "web"): {Metric.LATENCY: 140_000},
        ("", "app"): {Metric.LATENCY: 100_000},
        ("", "ads"): {Metric.LATENCY: 60_000},
    }
    latency = shifts_of(slow)["latency"]
    app, ads = CHAIN.services.index("app"), CHAIN.services.index("ads")
    assert latency.score[ads] > latency.score[app]
    assert first(slow, Symptom(("web",))) == "app"


def test_evidence_of_the_symptoms_kind_of_harm_comes_first() -> None:
    both: Changes = {("", "db"): {Metric.LATENCY: 30_000}, ("", "ads"): {Metric.FAILED_RATIO: 0.2}}
    assert first(both, Symptom(("web",), "us")) == "db"
    assert first(both, Symptom(("web",), "calls")) == "ads"


def test_few_failures_are_evidence_where_there_are_none_usually() -> None:
    failing: Changes = {
        ("", "web"): {Metric.FAILED_RATIO: 0.01},
        ("", "app"): {Metric.FAILED_RATIO: 0.01},
    }
    shift = shifts_of(failing)["error_ratio"]
    app = CHAIN.services.index("app")
    assert shift.is_evidence[app]
    assert shift.excess[app] == pytest.approx(0.01 * 390 * NOW, rel=0.1)
    assert first(failing) == "app"


def test_one_failure_is_no_evidence() -> None:
    shift = shifts_of({("", "ads"): {Metric.FAILED_RATIO: 1 / (40 * NOW)}})["error_ratio"]
    assert not shift.is_evidence.any()


def test_processor_and_memory_stay_where_they_were_measured() -> None:
    busy: Changes = {("", "app"): {Metric.CPU: 500, Metric.MEMORY: 95}}
    shifts = shifts_of(busy)
    app = CHAIN.services.index("app")
    assert shifts["cpu"].is_evidence[app]
    assert shifts["memory"].is_evidence[app]
    assert len(shifts["cpu"].moves.source) == 0
    assert first(busy) == "app"


def test_an_idle_service_that_wakes_is_no_evidence() -> None:
    assert not shifts_of({("", "ads"): {Metric.CPU: 2.0}})["cpu"].is_evidence.any()


def test_the_network_of_an_edge_is_its_callees() -> None:
    slow: Changes = {("app", "db"): {Metric.NETWORK: 250_000}}
    assert first(slow) == "db"
    ranges = ranges_of(slow)
    shifts = gather(CHAIN, metrics=ranges)
    scores = score_services(CHAIN, shifts)
    causes = causes_of(CHAIN, shifts, scores.seed, scores.kept, {}, windows=BEFORE, limit=1)
    evidence = causes[0].evidence[0]
    assert evidence.sentence.startswith(f"Calls from app to db wait {evidence.observed:g} ms between the two against")
    assert evidence.observed == 250
    assert f"{evidence.expected:g} ms before" in evidence.sentence
    assert causes[0].path == ("db", "app")


def test_samples_without_requests_count_alike_and_unknown_values_not_at_all() -> None:
    ranges = ranges_of({("", "db"): {Metric.LATENCY: 90_000}})
    samples = ranges.samples
    is_request = samples.metric == list(Metric).index(Metric.REQUESTS)
    blind = MetricSamples(
        samples.services,
        samples.src,
        samples.dst,
        samples.metric,
        samples.at_ms,
        np.where(is_request, np.nan, samples.value),
    )
    by_signal = {shift.signal: shift for shift in metric_shifts(blind, ranges.now, ranges.before, CHAIN)}
    db = CHAIN.services.index("db")
    assert by_signal["latency"].excess[db] == pytest.approx(78_000 * NOW, rel=0.1)
    unknown = MetricSamples(
        samples.services, samples.src, samples.dst, samples.metric, samples.at_ms, samples.value * np.nan
    )
    assert metric_shifts(unknown, ranges.now, ranges.before, CHAIN) == ()


def test_what_is_left_out_gives_no_evidence() -> None:
    ranges = ranges_of({("", "db"): {Metric.LATENCY: 900_000}})
    signals = {
        shift.signal for shift in metric_shifts(ranges.samples, ranges.now, ranges.before, CHAIN, [Metric.LATENCY])
    }
    assert "latency" not in signals
    assert "cpu" in signals


def test_columns_of_unlike_lengths_are_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="unlike"):
        MetricSamples([], none, none, none, none, np.ones(1))
