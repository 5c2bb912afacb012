"""Times and cursors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.parameters import MAX_TIME_MS, decode_cursor, encode_cursor, parse_time
from api.problems import Problem

NEWEST_MS = 1_769_860_800_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", NEWEST_MS),
        ("2026-01-31T13:00:00+01:00", NEWEST_MS),
        ("2026-01-31T13:00:00 01:00", NEWEST_MS),  # an unescaped plus sign
        ("2026-01-31T12:00:00.250Z", NEWEST_MS + 250),
        ("1769860800000", NEWEST_MS),
        ("0", 0),
        ("-30s", NEWEST_MS - 30_000),
        ("-15m", NEWEST_MS - 900_000),
        ("-1h", NEWEST_MS - 3_600_000),
        ("-7d", NEWEST_MS - 7 * 86_400_000),
        ("-999999d", 0),
    ],
)
def test_time_is_understood(text: str, expected: int) -> None:
    assert parse_time("since", text, NEWEST_MS) == expected


@pytest.mark.parametrize("text", ["", "now", "1h", "-1y", "-h", "2026-01-31", "2026-01-31T12:00", "1769860800", "1e12"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(Problem) as raised:
        parse_time("since", text, NEWEST_MS)
    assert raised.value.status == 422
    assert raised.value.errors[0][0] == "since"


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, MAX_TIME_MS), st.text(max_size=40))
def test_cursor_returns_its_position_to_the_same_query_alone(time_ms: int, name: str) -> None:
    text = encode_cursor({"lane": name}, [time_ms, name])
    assert decode_cursor({"lane": name}, text, (int, str)) == [time_ms, name]
    with pytest.raises(Problem, match="other filters"):
        decode_cursor({"lane": name + "x"}, text, (int, str))


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=60))
def test_any_other_cursor_is_refused(text: str) -> None:
    with pytest.raises(Problem):
        decode_cursor({}, text, (int, str))


def test_cursor_position_must_be_a_time() -> None:
    with pytest.raises(Problem):
        decode_cursor({}, encode_cursor({}, [1 << 70, "x"]), (int, str))
    with pytest.raises(Problem):
        decode_cursor({}, encode_cursor({}, [-1, "x"]), (int, str))
