"""What departs again at its hour is expected, and nothing else is."""

from dataclasses import replace

import pytest

from models.drift import calendar
from models.drift.calendar import DAY_MS, HOUR_MS, LONGEST_MS, MAX_OCCASIONS, Calendar, expect, is_recurring, size_of
from models.drift.detection import Detection
from schemas.drift import RECURRENCE, DriftKind, EdgeRef, Evidence

WINDOW_MS = 60_000
NIGHT = 2 * HOUR_MS
BACKUP = Detection(
    DriftKind.BYTES_SURGE,
    "shop/db",
    "shop/store",
    443,
    6,
    (EdgeRef("shop/db", "shop/store", 443, 6),),
    1,
    (Evidence("bytes_per_window", 1e9, 1e6, "bytes", 40.0, 90, 500, "robust-z"),),
    risk=80,
    confidence=90,
    first_seen_ms=0,
)


def sized(observed: float, kind: DriftKind = DriftKind.BYTES_SURGE) -> Detection:
    return replace(BACKUP, kind=kind, evidence=(replace_observed(BACKUP.evidence[0], observed),))


def replace_observed(item: Evidence, observed: float) -> Evidence:
    return Evidence(item.signal, observed, item.expected, item.unit, item.score, item.sample, item.history, "robust-z")


def told(days: Calendar, time_ms: int, detection: Detection = BACKUP, needed: int = 1, open_news: bool = False) -> bool:
    """Say whether a departure is news; it is noted."""
    return not is_recurring(expect(days, detection, time_ms, WINDOW_MS, needed, lambda _: open_news))


def over(days: Calendar, first_ms: int, length_ms: int, detection: Detection = BACKUP) -> list[bool]:
    return [told(days, time_ms, detection) for time_ms in range(first_ms, first_ms + length_ms, 10 * WINDOW_MS)]


def test_the_second_night_is_expected_and_says_as_when() -> None:
    days = Calendar()
    assert told(days, NIGHT)
    found = expect(days, BACKUP, DAY_MS + NIGHT + HOUR_MS, WINDOW_MS, 1, lambda _: False)
    *_, item = found.evidence
    assert (item.signal, item.observed, item.sample, item.history) == (RECURRENCE, NIGHT, 1, 25 * 60)
    assert found.risk <= calendar.RECURRING_RISK < BACKUP.risk
    assert found.evidence[:-1] == BACKUP.evidence


@pytest.mark.parametrize(
    ("after_ms", "is_news"),
    [
        (DAY_MS, False),
        (DAY_MS - HOUR_MS, False),
        (DAY_MS - HOUR_MS - 1, True),
        (DAY_MS + HOUR_MS, False),
        (DAY_MS + HOUR_MS + 1, True),
        (DAY_MS // 2, True),
        (3 * DAY_MS, False),
        (4 * DAY_MS, True),
        (7 * DAY_MS, False),
        (14 * DAY_MS, False),
        (21 * DAY_MS, True),
        (2 * HOUR_MS, True),
    ],
)
def test_only_the_same_hour_of_a_day_or_a_week_counts(after_ms: int, is_news: bool) -> None:
    days = Calendar()
    told(days, NIGHT)
    assert told(days, NIGHT + after_ms) == is_news


def test_a_long_job_is_expected_for_as_long_as_it_took() -> None:
    days = Calendar()
    over(days, NIGHT, 3 * HOUR_MS)
    assert not any(over(days, DAY_MS + NIGHT, 3 * HOUR_MS))
    assert told(days, DAY_MS + NIGHT + 4 * HOUR_MS), "longer than before, and its hour"


def test_what_is_larger_is_news_and_small_steps_do_not_raise_the_bar() -> None:
    days = Calendar()
    sizes = [1e9, 1.2e9, 1.24e9, 1.3e9, 1.3e9]
    assert [told(days, night * DAY_MS, sized(size)) for night, size in enumerate(sizes)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_smaller_one_does_not_lower_the_bar() -> None:
    days = Calendar()
    assert [told(days, n * DAY_MS, sized(size)) for n, size in enumerate([1e9, 1e8, 1e9])] == [True, False, False]


def test_the_size_of_a_drop_is_how_little_is_left() -> None:
    few, none = (sized(observed, DriftKind.RATE_DROP) for observed in (50.0, 0.0))
    assert size_of(none) > size_of(few) * calendar.SLACK
    days = Calendar()
    told(days, 0, few)
    assert told(days, DAY_MS, none)


def test_a_finding_that_was_told_as_news_stays_it() -> None:
    days = Calendar()
    told(days, NIGHT)
    assert told(days, DAY_MS + NIGHT, open_news=True)


@pytest.mark.parametrize(
    ("needed", "news"), [(0, [True] * 4), (1, [True, False, False, False]), (2, [True, True, False, False])]
)
def test_how_many_earlier_times_it_takes_is_a_setting(needed: int, news: list[bool]) -> None:
    days = Calendar()
    assert [told(days, night * DAY_MS, needed=needed) for night in range(4)] == news


@pytest.mark.parametrize(
    "kind", [DriftKind.NEW_EDGE, DriftKind.NEW_SERVICE, DriftKind.BEACONING, DriftKind.REMOVED_EDGE]
)
def test_news_of_other_kinds_never_recurs(kind: DriftKind) -> None:
    days = Calendar()
    assert told(days, 0, sized(1.0, kind)) and told(days, DAY_MS, sized(1.0, kind))
    assert not days.occasions


def test_what_goes_on_day_and_night_is_no_recurrence_of_itself_within_a_day() -> None:
    days = Calendar()
    assert all(over(days, 0, DAY_MS - HOUR_MS - 10 * WINDOW_MS))
    assert len(days.occasions[BACKUP.sort_key]) == 2, "an occasion has an end"
    assert all(o.last_ms - o.first_ms < LONGEST_MS for o in days.occasions[BACKUP.sort_key])


def test_no_more_is_kept_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "MAX_SUBJECTS", 3)
    days = Calendar()
    for night in range(20):
        told(days, night * DAY_MS)
    assert len(days.occasions[BACKUP.sort_key]) == MAX_OCCASIONS
    for number in range(3):
        told(days, 20 * DAY_MS, replace(BACKUP, src=f"shop/{number}"))
    assert [subject[1] for subject in days.occasions] == ["shop/0", "shop/1", "shop/2"], "the oldest went"


def test_the_calendar_follows_names() -> None:
    days = Calendar()
    told(days, NIGHT)
    told(days, NIGHT + 3 * HOUR_MS, replace(BACKUP, src="shop/other"))
    days.rename({"shop/db": "shop/data", "shop/other": "shop/data"})
    renamed = replace(BACKUP, src="shop/data")
    assert [o.first_ms for o in days.occasions[renamed.sort_key]] == [NIGHT, NIGHT + 3 * HOUR_MS]
    assert not told(days, DAY_MS + NIGHT, renamed)


def test_a_silence_is_to_end_as_those_before() -> None:
    days, edge = Calendar(), ("removed_edge", "a", "b", 1, 6)
    assert days.back_ms(edge, NIGHT) is None
    days.note_silence(edge, NIGHT, NIGHT + 20 * HOUR_MS)
    assert days.back_ms(edge, DAY_MS + NIGHT) == DAY_MS + NIGHT + 21 * HOUR_MS
    assert days.back_ms(edge, DAY_MS + NIGHT + 2 * HOUR_MS) is None, "it began at another hour"
