"""How old waiting records are, told from looks at the log's end; when ingest is held and released."""

import random

import pytest

from streams.backpressure import MAX_SAMPLES, AppendTimes, Brake, limit_of


def test_a_record_is_younger_than_the_last_look_that_did_not_see_it() -> None:
    times = AppendTimes()
    for now_ms, end in ((1_000, 10), (2_000, 20), (3_000, 20), (4_000, 30)):
        times.see(now_ms, end)
    assert [times.not_before_ms(offset) for offset in (9, 10, 19, 20, 29, 30)] == [
        None,
        1_000,
        1_000,
        3_000,
        3_000,
        4_000,
    ]


def test_a_backlog_from_before_the_first_look_needs_its_timestamp() -> None:
    times = AppendTimes()
    times.see(5_000, 100)
    assert times.not_before_ms(40) is None
    times.read(40, 77)
    assert (times.not_before_ms(40), times.not_before_ms(99), times.not_before_ms(100)) == (77, 77, 5_000)
    assert times.not_before_ms(39) is None


def test_what_is_behind_is_forgotten_and_answers_stay_the_same() -> None:
    times = AppendTimes()
    for step in range(10):
        times.see(step * 100, step * 10)
    before = [times.not_before_ms(offset) for offset in range(45, 90)]
    times.forget_below(45)
    assert [times.not_before_ms(offset) for offset in range(45, 90)] == before


def test_a_log_that_begins_anew_forgets_the_old_one() -> None:
    times = AppendTimes()
    times.see(1_000, 50)
    times.read(10, 5)
    times.see(2_000, 3)
    assert (times.not_before_ms(2), times.not_before_ms(3)) == (None, 2_000)


def test_ages_are_never_too_young_however_long_the_lag() -> None:
    rng, times, appended, end = random.Random(5), AppendTimes(), [], 0
    times.see(0, 0)
    for now_ms in range(1, 5 * MAX_SAMPLES):
        added = rng.randrange(3)
        appended += [now_ms] * added
        end += added
        times.see(now_ms, end)
    for offset in range(0, end, 7):
        told_ms = times.not_before_ms(offset)
        assert told_ms is not None and told_ms <= appended[offset]
    assert len(times._ends) <= MAX_SAMPLES + 1


def test_the_brake_takes_hold_above_the_limit_and_lets_go_below_half_of_it() -> None:
    brake = Brake(1_000)
    ages = (0, 1_000, 1_001, 900, 501, 500, 900, 1_001)
    assert [brake.judge(age) for age in ages] == [False, False, True, True, True, False, False, True]


def test_a_brake_without_a_limit_holds_nothing_and_lets_go() -> None:
    brake = Brake(1_000)
    assert brake.judge(5_000)
    brake.limit_ms = None
    assert not brake.judge(5_000)


@pytest.mark.parametrize(
    ("retention_ms", "override_ms", "limit_ms"),
    [(1_000, None, 500), (-1, None, None), (None, None, None), (1_000, 70, 70), (-1, 70, 70)],
)
def test_the_limit_is_half_of_the_retention_unless_set(
    retention_ms: int | None, override_ms: int | None, limit_ms: int | None
) -> None:
    assert limit_of(retention_ms, override_ms) == limit_ms
