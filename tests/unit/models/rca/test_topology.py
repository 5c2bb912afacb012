"""Hops and shortest ways over columns are those of networkx."""

import itertools

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rca.topology import Topology, hops_from, shortest_way

Pairs = list[tuple[str, str]]
PAIRS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), min_size=1, max_size=25)


def _graph(topology: Topology) -> "nx.DiGraph[int]":
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(topology.services)))
    graph.add_edges_from(zip(topology.src.tolist(), topology.dst.tolist(), strict=True))
    return graph


@settings(deadline=None)
@given(PAIRS, st.data())
def test_hops_and_ways_equal_those_of_networkx(pairs: Pairs, data: st.DataObject) -> None:
    topology = Topology.of([a for a, _ in pairs], [b for _, b in pairs])
    graph, nodes = _graph(topology), len(topology.services)
    start = data.draw(st.lists(st.integers(0, nodes - 1), min_size=1, unique=True))
    for directed in (True, False):
        walked = graph if directed else graph.to_undirected()
        expected = nx.multi_source_dijkstra_path_length(walked, set(start), weight=None)
        hops = hops_from(np.array(start), topology.src, topology.dst, nodes, directed=directed)
        assert [expected.get(n, np.inf) for n in range(nodes)] == hops.tolist()
    for end in range(nodes):
        way = shortest_way(start[0], end, topology.src, topology.dst, nodes)
        if not nx.has_path(graph, start[0], end):
            assert way == []
            continue
        assert (way[0], way[-1]) == (start[0], end)
        assert len(way) == nx.shortest_path_length(graph, start[0], end) + 1
        assert all(graph.has_edge(a, b) for a, b in itertools.pairwise(way))


def test_edges_are_numbered_and_unknown_names_are_not_found() -> None:
    topology = Topology.of(["b", "a", "b", "b"], ["c", "b", "c", "a"], ["lonely"])
    assert topology.services == ["a", "b", "c", "lonely"]
    assert len(topology) == 3
    places = topology.places(["c", "nobody", "a"])
    assert places.tolist() == [2, -1, 0]
    numbers = topology.edge_numbers(topology.places(["b", "a", "b"]), topology.places(["c", "b", "a"]))
    assert [(topology.services[topology.src[n]], topology.services[topology.dst[n]]) for n in numbers] == [
        ("b", "c"),
        ("a", "b"),
        ("b", "a"),
    ]


def test_edges_that_may_not_be_walked_are_not() -> None:
    topology = Topology.of(["a", "b", "a"], ["b", "c", "c"])
    direct = np.array([True, True, True])
    direct[topology.edge_numbers(topology.places(["a"]), topology.places(["c"]))] = False
    assert shortest_way(0, 2, topology.src, topology.dst, 3, direct) == [0, 1, 2]
    assert shortest_way(0, 2, topology.src, topology.dst, 3) == [0, 2]
    assert shortest_way(1, 1, topology.src, topology.dst, 3) == [1]


def test_nothing_is_reached_from_nowhere() -> None:
    topology = Topology.of(["a"], ["b"])
    assert np.isinf(hops_from(np.empty(0, dtype=np.int64), topology.src, topology.dst, 2, directed=True)).all()
