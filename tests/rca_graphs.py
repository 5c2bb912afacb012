"""The graph on which ErrorRank's walk is networkx's personalised PageRank."""

import networkx as nx
import numpy as np

from models.rca.evidence import Moves


def twins(moves: Moves, nodes: int) -> "nx.DiGraph[int]":
    """Return the graph of ``moves`` where each node n has a twin, ``nodes + n``, that keeps what n does not give."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(2 * nodes))
    kept = 1 - np.bincount(moves.source, moves.share, nodes)
    graph.add_weighted_edges_from((n, nodes + n, float(kept[n])) for n in range(nodes))
    graph.add_weighted_edges_from((nodes + n, nodes + n, 1.0) for n in range(nodes))
    for source, target, share in zip(moves.source.tolist(), moves.target.tolist(), moves.share.tolist(), strict=True):
        weight = graph.get_edge_data(source, target, {"weight": 0.0})["weight"]
        graph.add_edge(source, target, weight=weight + share)
    return graph
