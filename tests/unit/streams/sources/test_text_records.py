"""Columns of text: numbers, what is unset, and headers that speak for their own message."""

import pytest

from streams.sources.text_records import NO_NUMBER, runs_by_kind, text_floats, text_integers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        ("4611686018427387903", (1 << 62) - 1),
        ("4611686018427387904", NO_NUMBER),
        ("9" * 30, NO_NUMBER),
        ("-", -1),
        ("-1", NO_NUMBER),
        ("--", NO_NUMBER),
        ("1-2", NO_NUMBER),
        ("", NO_NUMBER),
        (" 1", NO_NUMBER),
        ("1_0", NO_NUMBER),
        ("0x1F", NO_NUMBER),
        ("1.0", NO_NUMBER),
        ("٣", NO_NUMBER),
        ("²", NO_NUMBER),
        (None, -1),
    ],
)
@pytest.mark.parametrize("neighbour", ["5", "-", "x", "", None, "9" * 40])
def test_integers_do_not_depend_on_their_neighbours(text: str | None, number: int, neighbour: str | None) -> None:
    assert text_integers([text]).tolist() == [number]
    assert int(text_integers([text, neighbour])[0]) == number
    assert int(text_integers([neighbour, text])[1]) == number


def test_floats() -> None:
    found = text_floats(["1.5", "-", "x", None])
    assert found[0] == 1.5 and all(value != value for value in found[1:])


def test_messages_are_cut_where_their_kind_changes() -> None:
    assert list(runs_by_kind([b"{}", b"[1]", b"a", b"", b"{"])) == [(True, 0, 2), (False, 2, 4), (True, 4, 5)]
    assert list(runs_by_kind([b"\xef\xbb\xbf{}", b" \n[1]", b" a", b"\n"])) == [(True, 0, 2), (False, 2, 4)]
    assert list(runs_by_kind([])) == []
