"""Who is hurt when a service or an edge degrades."""

import math

import networkx as nx
import numpy as np
import pytest

from models.impact.blast_radius import DECAY, LEAST_IMPACT, MAX_HOPS, blast_radius
from schemas.impact import BlastRadiusReport, CallGraph, Degradation


def graph_of(*edges: tuple[str, str, int]) -> CallGraph:
    services = sorted({name for src, dst, _ in edges for name in (src, dst)})
    number = {name: i for i, name in enumerate(services)}
    return CallGraph(
        services,
        np.array([number[src] for src, _, _ in edges], dtype=np.int64),
        np.array([number[dst] for _, dst, _ in edges], dtype=np.int64),
        np.array([calls for _, _, calls in edges], dtype=np.int64),
    )


def impacts(report: BlastRadiusReport) -> dict[str, float]:
    return {one.service: one.impact for one in report.impacted}


SHOP = graph_of(
    ("ext:internet", "frontend", 1_000),
    ("frontend", "checkout", 100),
    ("frontend", "catalog", 900),
    ("checkout", "payment", 50),
    ("checkout", "catalog", 200),
    ("batch", "payment", 10),
)


def test_impact_decays_by_share_of_traffic() -> None:
    report = blast_radius(SHOP, ["payment"])
    checkout = 0.5 * DECAY
    frontend = 0.1 * DECAY * checkout
    assert impacts(report) == {
        "batch": pytest.approx(DECAY),  # nobody calls it, and all its calls go there
        "checkout": pytest.approx(checkout),
        "frontend": pytest.approx(frontend),
        "ext:internet": pytest.approx(DECAY * frontend, rel=1e-5),
    }
    assert [one.hops for one in report.impacted] == [1, 1, 2, 3]
    by_name = {one.service: one for one in report.impacted}
    assert by_name["frontend"].path == ("frontend", "checkout", "payment")
    assert by_name["frontend"].requests == 1_000 and by_name["frontend"].requests_at_risk == 40


def test_entry_points_are_what_only_the_outside_or_nobody_calls() -> None:
    assert blast_radius(SHOP, ["payment"]).entry_points == ("batch", "frontend")


def test_an_edge_hurts_its_caller_and_those_above_alone() -> None:
    report = blast_radius(SHOP, ["checkout", "payment"])
    assert "batch" not in impacts(report) and "payment" not in impacts(report)
    assert impacts(report)["checkout"] == pytest.approx(0.5 * DECAY)
    assert impacts(report)["frontend"] == pytest.approx(0.1 * DECAY * 0.5 * DECAY)


def test_several_degraded_callees_are_met_more_often_than_one() -> None:
    graph = graph_of(("user", "a", 10), ("a", "b", 5), ("a", "c", 5), ("b", "db", 5), ("c", "db", 5))
    at_b = DECAY
    one_path = 0.5 * DECAY * at_b
    assert impacts(blast_radius(graph, ["db"]))["a"] == pytest.approx(1 - (1 - one_path) ** 2)


def test_a_cycle_ends_and_leaves_out_the_origin() -> None:
    report = blast_radius(graph_of(("a", "b", 5), ("b", "c", 5), ("c", "a", 5)), ["a"])
    assert {one.service: one.hops for one in report.impacted} == {"c": 1, "b": 2}


def test_what_was_seen_is_told_apart_from_what_is_predicted() -> None:
    seen = {
        "checkout": Degradation("checkout", 12.0, "checkout fails 8 % of its calls."),
        "search": Degradation("search", 4.0, "search is slow."),
    }
    report = blast_radius(SHOP, ["payment"], seen)
    status = {one.service: (one.status, one.observed) for one in report.impacted}
    assert status["checkout"] == ("hurt", "checkout fails 8 % of its calls.")
    assert status["frontend"] == ("at_risk", "")
    assert report.unexplained == (seen["search"],)


def test_unknown_origins_are_refused() -> None:
    with pytest.raises(KeyError):
        blast_radius(SHOP, ["nobody"])
    with pytest.raises(KeyError):
        blast_radius(SHOP, ["payment", "checkout"])


def test_a_long_chain_is_cut_and_says_so() -> None:
    # Each service calls the next three times a request: dependence 1, so that only the decay and the bound end it.
    chain = [(f"s{n:02}", f"s{n + 1:02}", 100) for n in range(MAX_HOPS + 5)]
    report = blast_radius(graph_of(*chain), [f"s{MAX_HOPS + 5:02}"])
    assert max(one.hops for one in report.impacted) == MAX_HOPS
    assert any("not followed" in note for note in report.notes)
    assert blast_radius(SHOP, ["payment"]).notes == ()


@pytest.mark.parametrize("seed", range(5))
def test_distances_and_impacts_are_those_of_a_walk_over_a_networkx_graph(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.impact.blast_radius.LEAST_IMPACT", 0.0)  # networkx would not stop at it either
    rng = np.random.default_rng(seed)
    size = 60
    pairs = {(int(a), int(b)) for a, b in rng.integers(0, size, (240, 2)) if a != b}
    edges = [(f"s{a:02}", f"s{b:02}", int(rng.integers(1, 500))) for a, b in sorted(pairs)]
    graph = graph_of(*edges)
    reference: nx.DiGraph[str] = nx.DiGraph()
    reference.add_weighted_edges_from(edges)
    origin = edges[0][1]
    received = {s: reference.in_degree(s, "weight") or reference.out_degree(s, "weight") for s in reference}
    impact = {origin: 1.0}
    distance = nx.single_source_shortest_path_length(reference.reverse(copy=False), origin)
    for hop in range(1, max(distance.values()) + 1):
        for service in [s for s, d in distance.items() if d == hop]:
            spared = math.prod(
                1 - min(1.0, data["weight"] / received[service]) * DECAY * impact[callee]
                for _, callee, data in reference.out_edges(service, data=True)
                if distance.get(callee) == hop - 1
            )
            impact[service] = 1 - spared
    del impact[origin]
    report = blast_radius(graph, [origin])
    assert impacts(report) == pytest.approx(impact, rel=1e-5)
    assert {one.service: one.hops for one in report.impacted} == {s: distance[s] for s in impact}


def test_what_hardly_depends_is_not_told() -> None:
    graph = graph_of(("user", "a", 100_000), ("a", "rare", 50), ("user", "b", 1_000), ("b", "rare", 2))
    assert LEAST_IMPACT == 0.001
    assert impacts(blast_radius(graph, ["rare"])).keys() == {"b"}  # a: 0.00045
