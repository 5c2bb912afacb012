"""Dispersion tells clocks from chance, at any interval; a beacon's evidence says what was counted."""

import numpy as np
import pytest

from models.drift.beacon import DISPERSION, INTERVAL, SIZE_IN, SIZE_OUT, Run, dispersion, interval_ms_of, judge_beacon
from models.drift.detection import severity_of
from schemas.drift import EdgeRef, Severity
from schemas.flow import PROTOCOL_NUMBERS

IntColumn = np.ndarray[tuple[int], np.dtype[np.int64]]
TCP, UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]


def spread_of(times: IntColumn) -> float:
    """Return the dispersion of contacts at times in windows, fractions cut off."""
    index, calls = np.unique(times.astype(np.int64), return_counts=True)
    gaps = np.diff(index)
    sums = [len(gaps), gaps.sum(), (gaps**2).sum(), calls[1:].sum(), (calls[1:] ** 2).sum()]
    return float(dispersion(*(np.array([value], dtype=np.int64) for value in sums))[0])


def clock(interval: float, jitter: float, contacts: int, seed: int) -> IntColumn:
    rng = np.random.default_rng(seed)
    times: IntColumn = np.cumsum(interval * rng.uniform(1 - jitter, 1 + jitter, contacts))
    return times


def chance(interval: float, contacts: int, seed: int) -> IntColumn:
    times: IntColumn = np.cumsum(np.random.default_rng(seed).exponential(interval, contacts))
    return times


INTERVALS = (1 / 6, 0.5, 1.0, 1.3, 1.5, 2.0, 2.5, 4.5, 7.0, 60.0, 1_440.0)


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_clock_has_none_whatever_windows_cut_it_into(interval: float) -> None:
    assert spread_of(clock(interval, 0.0, 400, 1)) < 0.03


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_clock_with_a_fifth_of_jitter_is_far_from_chance(interval: float) -> None:
    assert np.mean([spread_of(clock(interval, 0.2, 400, seed)) for seed in range(20)]) < 0.1


@pytest.mark.parametrize("interval", INTERVALS)
def test_contact_by_chance_has_one(interval: float) -> None:
    spreads = [spread_of(chance(interval, 400, seed)) for seed in range(50)]
    assert np.mean(spreads) == pytest.approx(1.0, abs=0.1)
    assert min(spreads) > 0.5


def test_contact_in_bunches_has_more() -> None:
    bunches = np.concatenate([start + np.arange(5) * 3 for start in chance(300.0, 40, 3)])
    assert spread_of(np.sort(bunches)) > 2


def test_a_missed_beat_in_ten_leaves_a_clock_a_clock() -> None:
    times = clock(10.0, 0.1, 400, 4)
    assert spread_of(np.delete(times, slice(None, None, 10))) < 0.15


def run(**changes: object) -> Run:
    values: dict[str, object] = {
        "ref": EdgeRef("shop/web", "ext:net/1", 443, TCP),
        "is_inbound": False,
        "dispersion": 0.0271234567,
        "interval_ms": 270_800,
        "contacts": 80,
        "windows": 361,
        "same_size": 0.95,
        "bytes_out": 80,
        "bytes_in": 327,
        "peers_sharing": 1,
        "first_ms": 60_000,
    }
    return Run(**{**values, **changes})  # type: ignore[arg-type]


def test_evidence_is_what_was_counted() -> None:
    detection = judge_beacon(run())
    assert [(item.signal, item.observed, item.unit, item.sample) for item in detection.evidence] == [
        (DISPERSION, 0.0271235, "ratio", 80),
        (INTERVAL, 270_800_000.0, "us", 80),
        (SIZE_OUT, 80.0, "bytes", 76),
        (SIZE_IN, 327.0, "bytes", 76),
    ]
    assert {item.history for item in detection.evidence} == {361}
    assert interval_ms_of(detection.evidence) == 270_800
    assert (detection.src, detection.dst, detection.port, detection.first_seen_ms) == (
        *("shop/web", "ext:net/1"),
        443,
        60_000,
    )


@pytest.mark.parametrize("changes", [{"same_size": 0.79}, {"bytes_in": -1}])
def test_a_size_that_varies_or_is_unknown_is_not_stated(changes: dict[str, float]) -> None:
    assert [item.signal for item in judge_beacon(run(**changes)).evidence] == [DISPERSION, INTERVAL]


def test_what_calls_home_ranks_above_what_is_polled_and_time_servers_come_last() -> None:
    ordered = [
        judge_beacon(run()),
        judge_beacon(run(same_size=0.1)),
        judge_beacon(run(is_inbound=True)),
        judge_beacon(run(peers_sharing=3, same_size=0.1)),
        judge_beacon(run(ref=EdgeRef("shop/web", "ext:net/1", 123, UDP))),
    ]
    risks = [detection.risk for detection in ordered]
    assert risks[0] > risks[1] > risks[2] - 1 and risks[2] > risks[3] > risks[4]
    assert [severity_of(risk) for risk in (risks[0], risks[4])] == [Severity.HIGH, Severity.LOW]
    assert judge_beacon(run(ref=EdgeRef("a", "ext:b", 53, UDP), peers_sharing=9, same_size=0.0)).risk >= 0
