"""The walk is networkx's personalised PageRank; blame goes to whom the other edges point."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rca.evidence import Moves
from models.rca.propagation import DAMPING, callee_blame, moves_of, redistribute
from models.rca.robust import Floats
from models.rca.topology import Topology
from tests.rca_graphs import twins

Part = tuple[int, int, float]


def _moves(nodes: int, parts: list[Part]) -> Moves:
    """Return moves whose shares of each source sum to 1 at most."""
    source = np.array([a % nodes for a, _, _ in parts], dtype=np.int64)
    target = np.array([b % nodes for _, b, _ in parts], dtype=np.int64)
    share = np.array([c for _, _, c in parts])
    given_away = np.bincount(source, share, nodes)
    return Moves(source, target, share / np.maximum(given_away, 1.0)[source])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.floats(0, 1)), max_size=20),
    st.lists(st.floats(0.01, 10), min_size=8, max_size=8),
)
def test_walk_equals_personalised_pagerank_of_networkx(nodes: int, parts: list[Part], weights: list[float]) -> None:
    moves, seed = _moves(nodes, parts), np.array(weights[:nodes])
    rank = nx.pagerank(
        twins(moves, nodes), DAMPING, dict(enumerate(seed / seed.sum())), max_iter=1_000, tol=1e-12, dangling=None
    )
    expected = [rank[n] + rank[nodes + n] for n in range(nodes)]
    assert redistribute(seed, moves) / seed.sum() == pytest.approx(expected, abs=1e-6)


def test_walk_equals_networkx_on_a_large_graph() -> None:
    rng = np.random.default_rng(5)
    nodes, edges = 400, 12_000
    source, target = rng.integers(0, nodes, edges), rng.integers(0, nodes, edges)
    moves = Moves(source, target, rng.random(edges) / np.bincount(source, minlength=nodes)[source])
    seed = rng.random(nodes)
    rank = nx.pagerank(twins(moves, nodes), DAMPING, dict(enumerate(seed / seed.sum())), max_iter=1_000, tol=1e-13)
    expected = [rank[n] + rank[nodes + n] for n in range(nodes)]
    assert redistribute(seed, moves) / seed.sum() == pytest.approx(expected, abs=1e-7)


def test_what_does_not_move_stays() -> None:
    seed = np.array([1.0, 0.0, 2.5])
    assert redistribute(seed, Moves.none()).tolist() == seed.tolist()


SHOP = Topology.of(["web", "web", "web", "app", "app"], ["cart", "pay", "ads", "cart", "mail"])


def _edge(src: str, dst: str) -> int:
    a, b = SHOP.places([src, dst])
    return int(SHOP.edge_numbers(np.array([a]), np.array([b]))[0])


def _blame(risen: dict[tuple[str, str], float]) -> Floats:
    delta = np.zeros(len(SHOP))
    for (src, dst), rise in risen.items():
        delta[_edge(src, dst)] = rise
    return callee_blame(SHOP, delta, delta > 1, np.ones(len(SHOP), dtype=np.bool_))


def test_a_callee_that_all_its_callers_find_slow_is_blamed() -> None:
    blame = _blame({("web", "cart"): 50.0, ("app", "cart"): 40.0})
    assert blame[_edge("web", "cart")] > 0.9
    assert blame[_edge("app", "cart")] > 0.9


def test_a_caller_that_finds_all_its_callees_slow_is_blamed() -> None:
    blame = _blame({("web", "cart"): 50.0, ("web", "pay"): 50.0, ("web", "ads"): 50.0})
    assert blame[_edge("web", "cart")] < 0.5
    assert blame[_edge("app", "cart")] == 1  # it has not risen at all


def test_what_goes_up_does_not_go_down_too() -> None:
    weight = np.ones(len(SHOP))
    blame = _blame({("web", "cart"): 50.0, ("web", "pay"): 50.0, ("web", "ads"): 50.0})
    received = np.ones(len(SHOP.services))
    moves = moves_of(SHOP, weight, blame, np.ones(len(SHOP)), received)
    given_away = np.bincount(moves.source, moves.share, len(SHOP.services))
    assert (given_away <= 1 + 1e-12).all()
    assert given_away[SHOP.places(["web"])[0]] == pytest.approx(1.0)  # nobody calls it, its calls explain all of it


@pytest.mark.parametrize("seed", range(20))
def test_blame_of_shifted_edges_needs_only_those_that_have_a_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = int(rng.integers(2, 30))
    pairs = np.unique(rng.integers(0, nodes * nodes, int(rng.integers(1, 120))))
    graph = Topology([f"s{number:02}" for number in range(nodes)], pairs // nodes, pairs % nodes)
    delta = np.round(rng.normal(0, 2, len(graph)), 1)
    shifted, known = (delta > 1) & (rng.random(len(graph)) < 0.4), rng.random(len(graph)) < 0.8
    whole = callee_blame(graph, delta, shifted, known)
    alone = callee_blame(graph, delta, shifted, known, of_shifted_alone=True)
    assert (alone[shifted] == whole[shifted]).all()
    assert (alone[~shifted] == 1).all()
