"""Instants of producers: units, spellings, bounds; no text's meaning depends on its neighbours."""

import pytest

from streams.sources.times import BAD_TIME, MAX_TIME_MS, iso_ms, milliseconds, mixed_ms

TEXTS = {
    "2023-08-21T12:12:18.510175415Z": 1692619938510,
    "2023-08-21T12:12:18Z": 1692619938000,
    "2021-06-06T15:59:46.457984+0200": 1622987986457,
    "2021-06-06T15:59:46.999999-05:30": 1623014986999,
    "2023-08-21 12:12:18": 1692619938000,
    "2023-08-21T12:12:18,5Z": 1692619938500,
    "2023-08-21T12:12Z": 1692619920000,
    "1970-01-01T00:00:00Z": 0,
    "1969-12-31T23:59:59.999Z": BAD_TIME,
    "2023-02-30T00:00:00Z": BAD_TIME,
    "2023-08-21T24:00:00Z": BAD_TIME,
    "2023-08-21": BAD_TIME,
    "9999-12-31T23:59:59Z": BAD_TIME,
    "XXXX": BAD_TIME,
    "": BAD_TIME,
    "-": BAD_TIME,
}


@pytest.mark.parametrize(("text", "time_ms"), TEXTS.items())
@pytest.mark.parametrize("neighbour", ["2023-08-21T12:12:18Z", "nonsense", None])
def test_iso_is_read_whatever_stands_beside_it(text: str, time_ms: int, neighbour: str | None) -> None:
    assert iso_ms([text]).tolist() == [time_ms]
    assert int(iso_ms([text, neighbour])[0]) == time_ms


def test_units() -> None:
    assert milliseconds([1713484795.943239, 0], 1).tolist() == [1713484795943, 0]
    assert milliseconds([1727962687516, None], 1_000).tolist() == [1727962687516, BAD_TIME]
    assert milliseconds([1680000000123456], 1_000_000).tolist() == [1680000000123]


@pytest.mark.parametrize("value", [-1.0, 1e300, MAX_TIME_MS + 1.0, float("nan"), float("inf")])
def test_what_is_out_of_bounds_is_bad(value: float) -> None:
    assert milliseconds([value], 1_000).tolist() == [BAD_TIME]


def test_numbers_and_texts_may_stand_side_by_side() -> None:
    mixed = [1.5, "2.5", "2023-08-21T12:12:18Z", "nonsense", None]
    assert mixed_ms(mixed, 1).tolist() == [1500, 2500, 1692619938000, BAD_TIME, BAD_TIME]
    for value, time_ms in zip(mixed[:4], [1500, 2500, 1692619938000, BAD_TIME], strict=True):
        assert mixed_ms([value], 1).tolist() == [time_ms]
    assert len(mixed_ms([], 1)) == 0
