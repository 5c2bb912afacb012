"""Features mean what they say, come from the past alone, and do not grow without bound."""

from dataclasses import replace

import numpy as np
import pytest

from models.gnn import features
from models.gnn.features import EDGE_FEATURES, NODE_FEATURES, PAST_FEATURES, GraphHistory, GraphSample
from models.gnn.windows import WindowEdges, edges_of
from schemas.graph import MEASURE_INDEX, MEASURES, ClosedWindow, EdgeTable
from tests.gnn_windows import made_windows

EDGE, NODE = list(EDGE_FEATURES), list(NODE_FEATURES)


def taken(windows: list[WindowEdges]) -> list[GraphSample]:
    history = GraphHistory()
    return [history.take(window) for window in windows]


def only(window: WindowEdges, rows: list[int]) -> WindowEdges:
    """Return the window with some of its edges."""
    kept = [window.keys[row] for row in rows]
    return replace(window, keys=kept, calls=window.calls[rows], signals=window.signals[rows])


def test_there_are_eight_node_and_ten_edge_features_with_a_meaning_each() -> None:
    assert len(NODE_FEATURES) == 8 and len(EDGE_FEATURES) == 10 and EDGE.index("calls_now") == PAST_FEATURES
    assert all(NODE_FEATURES.values()) and all(EDGE_FEATURES.values())


def test_past_features_do_not_depend_on_the_window_that_is_judged() -> None:
    windows = made_windows(12)
    loud = replace(windows[-1], calls=windows[-1].calls * 9, signals=windows[-1].signals + 2.0)
    calm, changed = taken(windows)[-1], taken([*windows[:-1], loud])[-1]
    assert np.array_equal(calm.edges[:, :PAST_FEATURES], changed.edges[:, :PAST_FEATURES])
    assert np.array_equal(calm.nodes, changed.nodes)
    assert (changed.edges[:, EDGE.index("calls_now")] > calm.edges[:, EDGE.index("calls_now")]).all()


def test_node_features_count_callers_and_know_the_outside() -> None:
    sample = taken(made_windows(8))[-1]
    degree = np.bincount(sample.dst, minlength=len(sample.nodes))
    assert np.allclose(sample.nodes[:, NODE.index("callers")], np.log1p(degree))
    assert sample.nodes[:, NODE.index("is_external")].sum() == 1
    assert np.allclose(sample.nodes[:, NODE.index("age")], np.log1p(7))


def test_a_new_edge_has_no_past_and_no_deviation() -> None:
    windows = made_windows(8)
    last = windows[-1]
    windows[-1] = replace(last, keys=[*last.keys[:-1], ("cart", "web", 80, 6)])
    sample = taken(windows)[-1]
    assert sample.is_new.tolist() == [False] * 4 + [True]
    assert np.isnan(sample.deviations[4]).all() and not sample.edges[4, :PAST_FEATURES].any()
    assert sample.statistical[4] == 0


def test_looking_learns_nothing() -> None:
    windows = made_windows(12)
    looked, plain = GraphHistory(), GraphHistory()
    for window in windows[:-1]:
        stranger = replace(window, keys=[*window.keys[:-1], ("stranger", "web", 80, 6)])
        looked.look(stranger)
        assert looked.look(stranger).is_new.tolist()[-1]
        looked.take(window)
        plain.take(window)
    assert looked.edges == plain.edges
    seen, expected = looked.take(windows[-1]), plain.take(windows[-1])
    assert np.array_equal(seen.edges, expected.edges) and np.array_equal(seen.nodes, expected.nodes)


def test_a_silent_edge_stays_in_the_graph_for_the_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "HORIZON", 3)
    windows = made_windows(12)
    samples = taken([*windows[:8], *(only(window, [0, 1]) for window in windows[8:])])
    assert [len(one.src) - one.present for one in samples[8:]] == [3, 3, 3, 0]
    silent = samples[8].edges[2:]
    assert np.allclose(silent[:, EDGE.index("calls_now")], -features.REACH * silent[:, EDGE.index("presence")])


def test_what_is_silent_for_long_is_forgotten_and_comes_back_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FORGET", 2)
    monkeypatch.setattr(features, "_TIDY_EVERY", 4)
    windows = made_windows(10)
    few = [only(window, [1]) for window in windows[2:9]]
    history = GraphHistory()
    for window in [*windows[:2], *few]:
        history.take(window)
    assert history.edges == {windows[0].keys[1]}
    back = history.take(windows[9])
    assert back.is_new.tolist() == [True, False, True, True, True]


def test_forgetting_changes_nothing_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = made_windows(12)
    windows = [windows[0], *(only(window, [0, 2, 3]) for window in windows[1:])]
    monkeypatch.setattr(features, "HORIZON", 1)
    plain = taken(windows)
    monkeypatch.setattr(features, "FORGET", 1)
    monkeypatch.setattr(features, "_TIDY_EVERY", 1)
    for kept, tidied in zip(plain, taken(windows), strict=True):
        assert np.array_equal(kept.edges, tidied.edges)
        assert np.array_equal(kept.nodes[kept.src], tidied.nodes[tidied.src])


def test_a_closed_window_is_read_with_unknown_as_unknown() -> None:
    measures = np.zeros((3, len(MEASURES)), dtype=np.int64)
    for row, values in enumerate(({"calls": 4, "error_flows": 4, "errors": 6}, {"late_calls": 5}, {"calls": 2})):
        for name, value in values.items():
            measures[row, MEASURE_INDEX[name]] = value
    none, ports = np.zeros(0, dtype=np.int64), np.full(3, 80)
    p50 = np.array([900, -1, -1])
    table = EdgeTable(
        ["a", "b", "c"], ["b", "c", "d"], ports, ports, measures, 0 * ports, none, none, none, p50, p50, p50
    )
    window = edges_of(ClosedWindow("t", "l", 0, 60_000, 120_000, table))
    assert window.keys == [("a", "b", 80, 80), ("c", "d", 80, 80)]
    assert window.calls.tolist() == [4, 2]
    # calls, bytes, errors, p50, p95; a reply that tells of an error again does not make more errors than calls
    expected = [[np.log1p(4), np.nan, 1.0, np.log1p(900), np.log1p(900)], [np.log1p(2), *[np.nan] * 4]]
    assert np.allclose(window.signals, expected, equal_nan=True)
