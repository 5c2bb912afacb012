"""ErrorRank on small graphs whose cause is known by construction."""

from dataclasses import replace
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rca.error_rank import rank_causes
from models.rca.propagation import redistribute, seed_of
from models.rca.robust import weighted_median
from models.rca.topology import Topology
from models.rca.window_levels import levels_of
from models.rca.window_shifts import find_shifts
from schemas.drift import Activity, DriftEvent, DriftKind, EdgeRef, Severity
from schemas.drift import Evidence as DriftEvidence
from schemas.rca import NameColumn, RcaReport, ServiceWindowEdges

WINDOW_MS = 10_000
Calls = dict[tuple[str, str], dict[str, int]]

SHOP: Calls = {
    ("user", "frontend"): {"us": 60_000},
    ("frontend", "cart"): {"us": 5_000},
    ("frontend", "checkout"): {"us": 30_000},
    ("frontend", "catalog"): {"us": 8_000},
    ("checkout", "cart"): {"us": 5_000},
    ("checkout", "payment"): {"us": 9_000},
    ("checkout", "shipping"): {"us": 6_000},
}


def edges(calls: Calls, windows: int, first: int = 0) -> ServiceWindowEdges:
    """Repeat the same calls over ``windows`` windows with a small, fixed wobble of latency."""
    rows: list[tuple[int, str, str, int, int, int, int]] = []
    for w in range(windows):
        for (src, dst), values in calls.items():
            n = values.get("calls", 50)
            us = values["us"] + (w % 3 - 1) * values["us"] // 100
            rows.append(((first + w) * WINDOW_MS, src, dst, n, values.get("errors", 0), values.get("denied", 0), us))
    array = {
        name: np.array([row[i] for row in rows], dtype=np.int64)
        for i, name in ((0, "w"), (3, "n"), (4, "e"), (5, "d"), (6, "us"))
    }
    return ServiceWindowEdges(
        window_start_ms=array["w"],
        src=NameColumn.of(row[1] for row in rows),
        dst=NameColumn.of(row[2] for row in rows),
        calls=array["n"],
        errors=array["e"],
        denied=array["d"],
        latency_calls=array["n"],
        latency_sum_us=array["n"] * array["us"],
        p50_us=array["us"],
        p95_us=array["us"] * 2,
        bytes=array["n"] * 100,
    )


def changed(changes: Calls) -> Calls:
    return {edge: {**values, **changes.get(edge, {})} for edge, values in SHOP.items()}


def slower(by_us: int, *slow: tuple[str, str]) -> Calls:
    return changed({edge: {"us": SHOP[edge]["us"] + by_us} for edge in slow})


def event(**changes: object) -> DriftEvent:
    plain = DriftEvent(
        event_id="e1",
        finding_id="f1",
        fingerprint="p1",
        incident_id="i1",
        tenant="t",
        lane="default",
        generation=0,
        kind=DriftKind.NEW_EDGE,
        activity=Activity.CREATE,
        episode=0,
        severity=Severity.HIGH,
        risk_score=80,
        confidence=90,
        is_alert=True,
        is_early=False,
        time_ms=0,
        window_start_ms=0,
        window_end_ms=WINDOW_MS,
        first_seen_ms=0,
        src="cart",
        dst="ext:evil",
        port=443,
        protocol=6,
        edges=(EdgeRef("cart", "ext:evil", 443, 6),),
        edges_total=1,
        evidence=(DriftEvidence("edge_presence", 1.0, 0.0, "edges", 0.0, 3, 30, "structural"),),
        title="New edge",
        message="cart talks to ext:evil for the first time.",
        checks=(),
    )
    return msgspec.structs.replace(plain, **changes)


def names(report: RcaReport) -> list[str]:
    return [cause.service for cause in report.causes]


BASE = edges(SHOP, 20)


def test_unchanged_graph_has_no_cause() -> None:
    report = rank_causes(edges(SHOP, 5, first=20), BASE)
    assert report.causes == ()
    assert (report.services, report.edges, report.current_windows, report.baseline_windows) == (7, 7, 5, 20)


def test_slow_leaf_is_the_cause_although_all_its_callers_are_slow() -> None:
    slow = slower(200_000, ("user", "frontend"), ("frontend", "checkout"), ("checkout", "payment"))
    report = rank_causes(edges(slow, 5, first=20), BASE)
    first = report.causes[0]
    assert first.service == "payment"
    assert first.path == ("payment", "checkout", "frontend", "user")
    assert first.score > 0.8 > first.seed_score
    assert first.confidence > 0.5


def test_service_that_is_slow_itself_keeps_its_evidence() -> None:
    slow = slower(200_000, ("user", "frontend"), ("frontend", "checkout"))
    first = rank_causes(edges(slow, 5, first=20), BASE).causes[0]
    assert first.service == "checkout"
    assert {one.signal for one in first.evidence} == {"latency", "self_time"}


def test_caller_whose_callees_are_all_slow_for_it_alone_is_the_cause() -> None:
    slow = slower(90_000, ("frontend", "cart"), ("frontend", "checkout"), ("frontend", "catalog"), ("user", "frontend"))
    report = rank_causes(edges(slow, 5, first=20), BASE)
    assert report.causes[0].service == "frontend"
    assert report.causes[0].seed_score < report.causes[0].score


def test_callee_that_all_its_callers_find_slow_is_the_cause() -> None:
    slow = slower(90_000, ("frontend", "cart"), ("checkout", "cart"))
    assert names(rank_causes(edges(slow, 5, first=20), BASE))[0] == "cart"


def test_errors_are_traced_to_the_service_that_raises_them() -> None:
    failing = changed(
        {
            ("user", "frontend"): {"errors": 20},
            ("frontend", "checkout"): {"errors": 20},
            ("checkout", "payment"): {"errors": 20},
        }
    )
    first = rank_causes(edges(failing, 5, first=20), BASE).causes[0]
    assert first.service == "payment"
    assert (first.evidence[0].signal, first.evidence[0].observed, first.evidence[0].expected) == (
        "error_ratio",
        0.4,
        0.0,
    )


def test_denied_calls_are_evidence() -> None:
    denied = changed({("checkout", "payment"): {"denied": 50}})
    report = rank_causes(edges(denied, 5, first=20), BASE)
    assert report.causes[0].service == "payment"
    assert report.causes[0].evidence[0].signal == "denied_ratio"


def test_vanished_calls_are_evidence_but_less_traffic_from_users_is_not() -> None:
    without = {edge: values for edge, values in SHOP.items() if edge != ("checkout", "shipping")}
    report = rank_causes(edges(without, 5, first=20), BASE)
    assert report.causes[0].service == "shipping"
    assert report.causes[0].evidence[0].observed == 0
    assert report.causes[0].evidence[0].expected == 250
    quiet = {edge: {**values, "calls": 10} for edge, values in SHOP.items()}
    assert rank_causes(edges(quiet, 5, first=20), BASE).causes == ()


def test_unknown_errors_and_latencies_are_no_evidence_and_are_noted() -> None:
    now = edges(SHOP, 5, first=20)
    unknown = np.full(len(now), -1)
    blind = replace(
        now, errors=unknown, latency_calls=unknown * 0, latency_sum_us=unknown * 0, p50_us=unknown, p95_us=unknown
    )
    report = rank_causes(blind, BASE)
    assert report.causes == ()
    assert len(report.notes) == 2


def test_structural_event_speaks_for_its_caller() -> None:
    current = edges({**SHOP, ("cart", "ext:evil"): {"us": 1_000}}, 5, first=20)
    report = rank_causes(current, BASE, [event()])
    assert names(report) == ["cart"]
    assert report.causes[0].evidence[0].event_id == "e1"
    assert report.causes[0].evidence[0].score == 7.2


def test_closed_finding_is_no_evidence_and_an_updated_one_counts_once() -> None:
    current = edges({**SHOP, ("cart", "ext:evil"): {"us": 1_000}}, 5, first=20)
    closed = event(event_id="e3", activity=Activity.CLOSE, window_start_ms=20)
    updated = event(event_id="e2", activity=Activity.UPDATE, window_start_ms=10)
    assert rank_causes(current, BASE, [event(), updated, closed]).causes == ()
    assert [one.event_id for one in rank_causes(current, BASE, [updated, event()]).causes[0].evidence] == ["e2"]


def test_event_of_a_measured_shift_is_cited_without_counting_twice() -> None:
    slow = edges(slower(200_000, ("checkout", "payment")), 5, first=20)
    seen = event(kind=DriftKind.LATENCY_INCREASE, src="checkout", dst="payment", port=-1, protocol=-1)
    with_event, without = rank_causes(slow, BASE, [seen]), rank_causes(slow, BASE)
    assert [cause.score for cause in with_event.causes] == [cause.score for cause in without.causes]
    assert "drift_event" in {one.signal for one in with_event.causes[0].evidence}


def test_symptom_sets_aside_what_it_does_not_depend_on() -> None:
    two = {**SHOP, ("batch", "store"): {"us": 10_000}}
    slow = {edge: {**v, "us": v["us"] + (300_000 if edge == ("batch", "store") else 0)} for edge, v in two.items()}
    slow["checkout", "payment"] = {"us": 100_000}
    current, base = edges(slow, 5, first=20), edges(two, 20)
    assert set(names(rank_causes(current, base))[:2]) == {"payment", "store"}
    symptom = event(kind=DriftKind.LATENCY_INCREASE, src="frontend", dst="checkout")
    report = rank_causes(current, base, symptom=symptom)
    assert names(report)[0] == "payment"
    assert "store" not in names(report)
    assert report.causes[0].path == ("payment", "checkout", "frontend")


def test_cycle_of_calls_ends_and_keeps_all_evidence() -> None:
    ring: Calls = {("a", "b"): {"us": 5_000}, ("b", "c"): {"us": 5_000}, ("c", "a"): {"us": 5_000}}
    slow = {edge: {"us": 90_000} for edge in ring}
    report = rank_causes(edges(slow, 5, first=20), edges(ring, 20))
    assert sum(cause.score for cause in report.causes) == pytest.approx(1.0, abs=1e-4)


def test_ports_of_one_edge_are_added_up() -> None:
    slow = edges(slower(200_000, ("checkout", "payment")), 5, first=20)
    half = replace(slow, calls=slow.calls // 2, latency_calls=slow.calls // 2, latency_sum_us=slow.latency_sum_us // 2)
    twice = half.take(np.array([*range(len(half)), *range(len(half))]))
    assert rank_causes(twice, BASE) == rank_causes(slow, BASE)


def test_sentences_say_the_numbers_of_their_evidence() -> None:
    slow = edges(slower(200_000, ("frontend", "checkout"), ("checkout", "payment")), 5, first=20)
    for cause in rank_causes(slow, BASE).causes:
        for one in cause.evidence:
            assert f"{one.observed:g} ms" in one.sentence
            assert f"{one.expected:g} ms" in one.sentence
            assert f"{one.score:g}" in one.sentence


def test_limit_is_kept_and_must_be_positive() -> None:
    slow = edges(slower(90_000, *SHOP), 5, first=20)
    assert len(rank_causes(slow, BASE, limit=1).causes) == 1
    with pytest.raises(ValueError, match="limit"):
        rank_causes(slow, BASE, limit=0)


def test_empty_ranges_give_an_empty_report_with_notes() -> None:
    nothing = ServiceWindowEdges.empty()
    assert rank_causes(nothing, nothing).causes == ()
    assert "no edges" in rank_causes(nothing, BASE).notes[0]
    assert "baseline" in rank_causes(edges(SHOP, 2), nothing).notes[0]


def test_report_survives_encoding() -> None:
    report = rank_causes(edges(slower(200_000, ("checkout", "payment")), 5, first=20), BASE)
    assert msgspec.json.decode(msgspec.json.encode(report), type=RcaReport) == report


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"), st.integers(1, 500)), min_size=1, max_size=15
    ),
    st.randoms(use_true_random=False),
)
def test_propagation_redistributes_and_row_order_does_not_matter(
    calls: list[tuple[str, str, int]], random: Random
) -> None:
    plain: Calls = {(src, dst): {"us": 5_000} for src, dst, _ in calls}
    slow: Calls = {(src, dst): {"us": 5_000 + extra * 1_000, "errors": extra % 50} for src, dst, extra in calls}
    current, base = edges(slow, 3, first=20), edges(plain, 6)
    topology = Topology.of([*current.src, *base.src], [*current.dst, *base.dst])
    for shift in find_shifts(levels_of(current, topology), levels_of(base, topology), topology):
        seed = seed_of(shift, len(topology.services), float(shift.excess.max()))
        kept = redistribute(seed, shift.moves)
        assert kept.sum() == pytest.approx(seed.sum(), rel=1e-6, abs=1e-9)
        assert (kept >= -1e-12).all()
        assert ((shift.blame > 0) & (shift.blame <= 1)).all()
    order = list(range(len(current)))
    random.shuffle(order)
    shuffled = current.take(np.array(order))
    assert rank_causes(shuffled, base) == rank_causes(current, base)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50), st.integers(1, 9)), max_size=40))
def test_weighted_median_is_the_median_of_repeated_values(rows: list[tuple[int, int, int]]) -> None:
    group = np.array([row[0] for row in rows], dtype=np.int64)
    values = np.array([row[1] for row in rows], dtype=np.float64)
    weights = np.array([row[2] for row in rows], dtype=np.float64)
    medians = weighted_median(values, weights, group, 4)
    for g in range(4):
        repeated = sorted(v for i, v, w in rows if i == g for _ in range(w))
        if repeated:
            assert medians[g] == repeated[(len(repeated) - 1) // 2]
        else:
            assert np.isnan(medians[g])


def test_columns_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="unlike"):
        replace(BASE, calls=BASE.calls[:-1])
