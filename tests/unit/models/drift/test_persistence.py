"""Departures against what their edge did before: rare ones are news at once, frequent ones when they last."""

import numpy as np
import pytest

from models.drift.persistence import (
    BYTES,
    DIRECTIONS,
    FEWER,
    PERSISTENCE_COLUMNS,
    SLOW,
    judge,
    learn,
    learn_silence,
    level_of,
    silent_windows,
)

DOUBT = 9.0
THRESHOLD = 6.0
LATENCY = 3


class Edge:
    """One edge that departs in one direction."""

    def __init__(self, direction: int = LATENCY) -> None:
        self.direction = direction
        self.departed, self.departing = (np.zeros((1, width)) for _, _, width in PERSISTENCE_COLUMNS.values())

    def window(self, score: float, silent: int = 1, judged: bool = True, teaches: bool = True) -> bool:
        """Judge a window and learn it as the state machine does; say whether it is news."""
        level = np.zeros((1, DIRECTIONS), dtype=np.int64)
        level[:, self.direction] = level_of(np.array([score]), THRESHOLD)
        seen = judge(
            self.departed,
            self.departing,
            level,
            np.full(level.shape, judged),
            np.array([silent]),
            np.array([[DOUBT]]),
        )
        news = seen.news(np.array([[DOUBT]]))
        self.departing = seen.doubt
        self.departed = learn(self.departed, seen, news, np.full(level.shape, teaches))
        return bool(news[0, self.direction])

    def calm(self, windows: int) -> "Edge":
        for _ in range(windows):
            assert not self.window(0.5)
        return self


@pytest.mark.parametrize("direction", [LATENCY, FEWER, SLOW])
@pytest.mark.parametrize("windows", [0, 8, 200])
def test_a_first_departure_at_the_threshold_is_news_at_once(direction: int, windows: int) -> None:
    assert Edge(direction).calm(windows).window(THRESHOLD)


def test_below_the_threshold_nothing_speaks_alone_however_rare_and_does_when_it_lasts() -> None:
    assert [Edge().calm(2_000).window(score) for score in (1.6, 3.1, 5.9)] == [False] * 3
    for score, windows in ((3.1, 2), (1.6, 4)):
        edge = Edge().calm(2_000)
        assert [edge.window(score) for _ in range(windows)] == [False] * (windows - 1) + [True]


def test_what_departs_at_random_all_day_is_news_only_when_it_lasts() -> None:
    rng, edge = np.random.default_rng(5), Edge().calm(50)
    told = [edge.window(20.0 if rng.random() < 0.1 else 0.5) for _ in range(2_000)]
    assert sum(told[500:]) <= 1, "three in a row come about once in 1,000 windows"
    edge.calm(5)
    lasting = [edge.window(20.0) for _ in range(6)]
    assert lasting[0] is False and lasting[-1] is True


def test_what_is_far_beyond_all_that_an_edge_did_is_sooner_news_than_what_it_often_does() -> None:
    def windows_until_told(score: float) -> int:
        rng, edge = np.random.default_rng(6), Edge().calm(50)
        for _ in range(2_000):
            edge.window(8.0 if rng.random() < 0.05 else 0.5)
        edge.calm(5)
        return next(number for number in range(1, 20) if edge.window(score))

    assert windows_until_told(THRESHOLD * 8) < windows_until_told(8.0)


def test_what_was_told_teaches_that_an_edge_departs_and_not_how_far() -> None:
    edge = Edge().calm(100)
    assert edge.window(1_000.0)
    counts = edge.departed.reshape(DIRECTIONS, -1)[LATENCY]
    assert counts[1:].tolist() == [1, 1, 1, 0, 0, 0]
    assert counts[0] == pytest.approx(101, rel=0.01)


def test_a_window_that_says_nothing_changes_nothing_but_what_silence_fades() -> None:
    edge = Edge().calm(300)
    edge.window(3.1)
    before, doubt = edge.departed.copy(), edge.departing[0, LATENCY]
    edge.window(100.0, judged=False)
    assert np.array_equal(edge.departed, before) and edge.departing[0, LATENCY] == doubt > 0
    edge.window(100.0, silent=11, judged=False)
    assert edge.departing[0, LATENCY] < 0.1 * doubt
    edge.window(100.0, teaches=False)
    assert np.array_equal(edge.departed, before)


def test_silence_is_news_sooner_on_an_edge_that_never_was_silent() -> None:
    def after(edge: Edge, score: float) -> int:
        each = (np.array([score]), np.array([THRESHOLD]), np.array([DOUBT]))
        return int(silent_windows(edge.departed, edge.departing, *each)[0])

    steady, pausing = Edge(FEWER).calm(300), Edge(FEWER).calm(300)
    for _ in range(20):
        pausing.departed = learn_silence(pausing.departed, level_of(np.array([8.0]), THRESHOLD), np.array([2]))
        pausing.calm(10)
    assert (after(steady, 8.0), after(steady, 4.0)) == (1, 2)
    assert after(pausing, 8.0) == 3
    assert pausing.departed.reshape(DIRECTIONS, -1)[FEWER, 3] == pytest.approx(40, rel=0.05)


def test_bytes_are_news_at_the_threshold_whatever_was_before() -> None:
    edge, latency = Edge(BYTES).calm(100), Edge().calm(100)
    assert [edge.window(THRESHOLD if n % 3 == 0 else 0.5) for n in range(30)] == [n % 3 == 0 for n in range(30)]
    told = [latency.window(THRESHOLD if n % 3 == 0 else 0.5) for n in range(30)]
    assert told[0] and sum(told) < 10
