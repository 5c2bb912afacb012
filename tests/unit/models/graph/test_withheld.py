"""Findings that an incomplete window keeps back are counted, and change nothing else."""

import numpy as np

from models.graph.output import WITHHELD
from schemas.drift import DriftKind
from schemas.tenant_log import PAUSED
from tests.builders import make_lane
from tests.unit.models.graph.driving import DETECTION, Feed, created, usual

HISTORY = 12


def learned(partitions: int = 2) -> Feed:
    """Return a feed with two edges of 12 calls a window and enough history."""
    feed = Feed(make_lane(lateness_ms=0, partitions=partitions, detection=DETECTION))
    for index in range(HISTORY):
        rows = usual([index]) + usual([index], dst="shop/quiet")
        feed.send(sorted(rows, key=lambda flow: flow.time_ms))
        feed.state(1, clocks=(("node", rows[-1].time_ms),))
    return feed


def send_window(feed: Feed, index: int, count: int = 12, paused: bool = False) -> None:
    rows = usual([index], count)
    feed.send(rows)
    if paused:
        feed.state(1, PAUSED)
    else:
        feed.state(1, clocks=(("node", usual([index])[-1].time_ms),))


def drops(feed: Feed) -> list[tuple[str, int]]:
    return [(dst, index) for kind, _, dst, index in created(feed.output) if kind is DriftKind.RATE_DROP]


def test_complete_windows_withhold_nothing_and_tell() -> None:
    feed = learned()
    for index in range(HISTORY, HISTORY + 3):
        send_window(feed, index)
    assert drops(feed) == [("shop/quiet", HISTORY)]
    assert WITHHELD not in feed.output.counts


def test_an_edge_silent_in_an_incomplete_window_is_counted_once_and_told_when_it_stays_silent() -> None:
    feed = learned()
    send_window(feed, HISTORY, paused=True)
    send_window(feed, HISTORY + 1)
    assert drops(feed) == []
    assert feed.output.counts[WITHHELD] == 1
    for index in range(HISTORY + 2, HISTORY + 5):
        send_window(feed, index)
    assert [dst for dst, _ in drops(feed)] == ["shop/quiet"]
    assert feed.output.counts[WITHHELD] == 1


def test_a_drop_of_the_rate_in_an_incomplete_window_is_counted() -> None:
    whole, torn = learned(), learned()
    for feed in (whole, torn):
        rows = usual([HISTORY], 1) + usual([HISTORY], dst="shop/quiet")
        feed.send(sorted(rows, key=lambda flow: flow.time_ms))
        if feed is torn:
            feed.state(1, PAUSED)
        else:
            feed.state(1, clocks=(("node", rows[-1].time_ms),))
        send_window(feed, HISTORY + 1)
    told = [(dst, index) for dst, index in drops(whole) if index == HISTORY]
    assert len(told) == 1 and WITHHELD not in whole.output.counts
    assert [index for _, index in drops(torn) if index == HISTORY] == []
    assert torn.output.counts[WITHHELD] == 1


def test_counting_changes_no_state() -> None:
    """The registry after an incomplete window is that of a machine that closed it without counting."""
    feed = learned()
    registry = feed.machine.lanes["test"].registry
    send_window(feed, HISTORY, paused=True)
    before = registry.edge.array["history"].copy()
    send_window(feed, HISTORY + 1, paused=True)
    assert np.array_equal(before, registry.edge.array["history"])
    assert not registry.edge.array["dropped"][: len(registry)].any()
