"""Slow calls of an edge against its usual share of them."""

import numpy as np
import pytest

from models.drift.slowness import SLOW_COLUMNS, Slowness, count_slow, judge, learn, limit_us
from models.graph.histogram import bucket_of

WINDOWS = 60


class Edge:
    """One edge, window by window."""

    def __init__(self) -> None:
        self.state = {name: np.zeros(1) for name in SLOW_COLUMNS}

    def window(self, slow: int, calls: int, silent: int = 1, ripe: bool = True) -> Slowness:
        columns = (np.array([float(slow)]), np.array([float(calls)]), np.array([silent]), np.array([ripe]))
        found = judge(self.state, *columns)
        self.state |= learn(self.state, found) | {"slow_doubt": found.doubt}
        return found

    def usual(self, calls: int = 100, slow: int = 2) -> "Edge":
        for _ in range(WINDOWS):
            self.window(slow, calls)
        return self


def test_half_of_the_calls_slow_is_found_at_once_and_the_usual_share_never() -> None:
    edge = Edge().usual()
    assert not edge.window(2, 100).departs(8.0)[0]
    found = edge.window(50, 100)
    assert found.departs(8.0)[0]
    evidence = found.evidence(0, history=9)
    assert (evidence.observed, evidence.sample, evidence.history) == (0.5, 100, 9)
    assert evidence.expected == pytest.approx(0.02, abs=0.002)
    assert evidence.score == round(float(found.doubt[0]), 2)


def test_few_calls_in_each_of_several_windows_add_up() -> None:
    edge = Edge().usual(calls=4, slow=0)
    doubts = [edge.window(2, 4).doubt[0] for _ in range(2)]
    assert doubts[0] < 8.0 <= doubts[1]


def test_doubt_fades_in_silence_and_falls_with_fast_calls() -> None:
    for silent, calls, left in ((1, 1, 0.7), (30, 1, 0.0)):
        edge = Edge().usual(calls=2, slow=0)
        before = edge.window(2, 2).doubt[0]
        after = edge.window(0, calls, silent=silent).doubt[0]
        assert after < left * before + 1e-6
    assert not edge.window(0, 50).departs(0.0)[0], "what speaks against it is no evidence"


def test_bursts_that_come_again_are_usual_and_a_first_one_is_not() -> None:
    bursty = Edge()
    alarms = [bursty.window(25 if n % 10 == 9 else 2, 100).departs(8.0)[0] for n in range(400)]
    assert not any(alarms[200:])
    calm = Edge().usual()
    assert calm.window(25, 100).departs(8.0)[0]
    # As slow on an edge that is used to it, all calls are still news.
    assert bursty.window(100, 100).departs(8.0)[0]


def test_a_fault_teaches_only_so_much() -> None:
    edge = Edge().usual(calls=100, slow=0)
    for _ in range(3):
        edge.window(100, 100)
    for _ in range(10):
        edge.window(0, 100)
    assert edge.window(100, 100).departs(8.0)[0], "the next one is found"


def test_without_calls_or_a_limit_nothing_is_judged_or_learned() -> None:
    edge = Edge().usual()
    before = {name: column.copy() for name, column in edge.state.items()}
    assert not edge.window(0, 0).judged[0]
    assert not edge.window(9, 9, ripe=False).judged[0]
    assert {name: column.tolist() for name, column in edge.state.items() if name != "slow_doubt"} == {
        name: column.tolist() for name, column in before.items() if name != "slow_doubt"
    }


def test_slow_is_what_lies_above_the_bucket_of_the_limit() -> None:
    limit = limit_us(np.array([1_000.0, 100_000.0]), shift_us=5_000)
    assert limit.tolist() == [6_000, 300_000]
    took_us = np.array([5_000, 6_000, 9_000, 20_000, 300_000, 400_000])
    edge, count = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 1, 2, 3, 5, 7])
    assert count_slow(edge, bucket_of(took_us), count, limit).tolist() == [5, 7]
