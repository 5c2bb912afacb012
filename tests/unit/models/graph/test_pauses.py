"""How long an edge usually pauses, and when its silence is told: one outage must not hide the next."""

from collections.abc import Iterable
from typing import Any

import pytest

from models.graph.closing import FORGET_AFTER_WINDOWS
from schemas.drift import DriftKind
from tests.builders import make_lane
from tests.unit.models.graph.driving import DETECTION, Feed, created, usual

BEACON: dict[str, Any] = {"src": "shop/other", "dst": "shop/still-there"}


def told(windows: Iterable[int], to: int, logic: int = 3) -> list[tuple[DriftKind, int]]:
    """Return kind and window of silences of an edge that carries traffic in ``windows`` alone."""
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.logic = logic
    carried = set(windows)
    for index in range(to):
        feed.send(usual([index], **BEACON) + (usual([index]) if index in carried else []))
    feed.end()
    return [
        (kind, index)
        for kind, _, dst, index in created(feed.output)
        if kind in (DriftKind.RATE_DROP, DriftKind.REMOVED_EDGE) and dst == "shop/cart"
    ]


def but(to: int, *silent: range) -> list[int]:
    return [index for index in range(to) if not any(index in one for one in silent)]


def test_a_steady_edge_is_missed_at_once_and_after_an_outage_soon_again() -> None:
    outages = range(20, 25), range(50, 55)
    found = told(but(70, *outages), 70)
    assert found == [(DriftKind.RATE_DROP, 20), (DriftKind.RATE_DROP, 52)]


def test_a_removed_edge_that_came_back_is_removed_as_soon_the_next_time() -> None:
    silent = range(20, 40), range(60, 85)
    found = [index for kind, index in told(but(90, *silent), 90) if kind is DriftKind.REMOVED_EDGE]
    # Its usual pause is at most twice what it was: 20 windows are waited for, and not ten times the outage.
    assert found == [29, 79]


@pytest.mark.parametrize(("pause", "at"), [(1, 0), (2, 2), (3, 4), (5, 8)])
def test_an_edge_that_pauses_is_missed_after_twice_its_longest_pause(pause: int, at: int) -> None:
    """Learned while nothing was told: the first windows. ``pause``: from a window with traffic to the next."""
    learned = [0, pause, *range(pause + 1, 30)]
    assert told(learned, 60)[0] == (DriftKind.RATE_DROP, 30 + at)


def test_an_edge_that_pauses_for_long_is_removed_but_never_called_dropped() -> None:
    learned = [0, 6, *range(7, 30)]
    assert told(learned, 100) == [(DriftKind.REMOVED_EDGE, 29 + 60)]


def test_before_logic_version_3_every_silence_becomes_usual() -> None:
    outages = range(20, 25), range(50, 55)
    assert told(but(70, *outages), 70, logic=2) == [(DriftKind.RATE_DROP, 20)]
    assert told([0, 2, *range(3, 30)], 60, logic=2) == [(DriftKind.REMOVED_EDGE, 29 + 20)]


def test_a_long_pause_fades_when_it_does_not_come_again() -> None:
    feed = Feed(make_lane(lateness_ms=0, detection=DETECTION))
    feed.send(usual([0, 4]))
    feed.send(usual(range(5, 10)))
    edge = feed.machine.lanes["test"].registry.edge.array
    assert edge["gap_max"][0] == 4
    edge["windows_seen"][0] = FORGET_AFTER_WINDOWS - 1
    feed.send(usual([10, 11]))
    assert edge["gap_max"][0] == 2
    feed.send(usual([12, 13]))
    assert edge["gap_max"][0] == 2
