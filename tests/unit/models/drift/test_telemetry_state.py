"""What is remembered of a source: how many silent hosts are usual, which hosts are watched."""

import pytest

from models.drift.telemetry_state import MAX_HOSTS, NOBODY, HostState, Noted, TenantTelemetry, keep_watched

DAY = 1_440


def after(*counts: tuple[int, int]) -> TenantTelemetry:
    """``(silent hosts, ticks)`` one after the other."""
    state = TenantTelemetry()
    for count, ticks in counts:
        for _ in range(ticks):
            state.note_silent(count)
    return state


@pytest.mark.parametrize(
    ("counts", "usual"),
    [
        ((), 0),
        (((0, 100),), 0),
        (((0, 5), (1, 60)), 0),  # an hour in the first day is not usual yet
        (((0, 500), (1, 80)), 1),
        (((0, 5 * DAY), (1, 60)), 0),
        (((0, 5 * DAY), (3, 60)), 0),
        (((0, 20), (3, 80), (1, 50)), 3),
        (((0, 20), (7, 40), (2, 200)), 2),
        (((1, 300), (0, 10 * DAY)), 0),  # and is forgotten again
        (((999, 100),), 50),
    ],
)
def test_so_many_silent_hosts_are_usual(counts: tuple[tuple[int, int], ...], usual: int) -> None:
    assert after(*counts).usual_silent() == usual


def test_the_same_hosts_are_watched_whatever_their_order() -> None:
    names = [f"n{number}" for number in range(MAX_HOSTS + 300)]
    kept = []
    for order in (names, names[::-1]):
        hosts = {name: HostState(1, 1, 1) for name in (NOBODY, *order)}
        keep_watched(hosts)
        kept.append(set(hosts))
    assert kept[0] == kept[1] and len(kept[0]) == MAX_HOSTS + 1 and NOBODY in kept[0]


def test_a_window_adds_up_rows_and_reports() -> None:
    noted = Noted()
    for step, rows, total in ((0, 3, 3), (11, 2, 100), (0, 1, 1)):
        noted.add_rows("n1", step, rows, total)
    assert noted.rows == 6
    assert [(f.step, f.rows, f.total) for f in noted.hosts["n1"].factors] == [(0, 4, 4), (11, 2, 100)]
    for count in (5, -1, 2):
        noted.add_loss("lost", "n1", count)
    lost = noted.lost["lost"]["n1"]
    assert (lost.reports, lost.records, lost.unsaid) == (3, 7, 1)
