"""The edge scorer: equal to a plain reference, blind to chunk cuts, the same compiled; what raises a score."""

import dataclasses
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.drift.edge_stream import compiled
from models.drift.edge_stream.parameters import EdgeScorerParams
from models.drift.edge_stream.scorer import EdgeScorer
from models.drift.edge_stream.state import empty_state, restore, take
from tests.unit.models.drift.edge_stream.streams import Stream, hashes, make_stream, reference_scores

SMALL = EdgeScorerParams(columns=16, edge_columns=64)
"""So few cells that services share them: exactness must not hang on the absence of collisions."""
MINUTE = 60_000
START = 900_028_800_000
ENGINES = [False, True]


def _score(
    stream: Stream, params: EdgeScorerParams | None = None, *, use_numba: bool = False
) -> npt.NDArray[np.float64]:
    return EdgeScorer(params, use_numba=use_numba).score(stream.src, stream.dst, stream.event_ms)


@pytest.mark.parametrize("use_numba", ENGINES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_equal_a_plain_reference(seed: int, use_numba: bool) -> None:
    stream = make_stream(seed, 3_000, days=9.0)
    params = EdgeScorerParams(minute_cap=7, memory_days=20)
    expected = reference_scores(stream, params)
    # A fixed-point logarithm is at most 2.6e-4 below the true one, and the score adds this many.
    weights = sum(dataclasses.astuple(params.weights))
    np.testing.assert_allclose(_score(stream, params, use_numba=use_numba), expected, atol=weights * 2.6e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1_000), st.lists(st.integers(1, 300), max_size=12), st.sampled_from([1, 2]))
def test_any_chunking_gives_the_same_scores_and_state(seed: int, lengths: list[int], rows: int) -> None:
    stream = make_stream(seed, 900)
    params = EdgeScorerParams(rows=rows, columns=16, edge_columns=64, minute_cap=5)
    whole = EdgeScorer(params, use_numba=False)
    at_once = whole.score(stream.src, stream.dst, stream.event_ms)
    cut = EdgeScorer(params, use_numba=False)
    places = [0, *np.minimum(np.cumsum(lengths), 900).tolist(), 900] if lengths else [0, 900]
    parts = [stream.part(begin, end) for begin, end in pairwise(places)]
    piecewise = [cut.score(part.src, part.dst, part.event_ms) for part in parts]
    np.testing.assert_array_equal(np.concatenate(piecewise), at_once)
    assert take(cut.state) == take(whole.state)


@pytest.mark.skipif(not compiled.HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize("seed", range(6))
def test_compiled_loop_equals_columns_bit_for_bit(seed: int) -> None:
    stream = make_stream(seed, 4_000, services=60, days=40.0 if seed % 2 else 2.0)
    plain, fast = EdgeScorer(SMALL, use_numba=False), EdgeScorer(SMALL, use_numba=True)
    first, second = stream.part(0, 1_700), stream.part(1_700, 4_000)
    for part in (first, second):
        np.testing.assert_array_equal(
            plain.score(part.src, part.dst, part.event_ms), fast.score(part.src, part.dst, part.event_ms)
        )
    assert take(plain.state) == take(fast.state)


@pytest.mark.parametrize("use_numba", ENGINES)
def test_restored_scorer_goes_on_as_if_never_stopped(use_numba: bool) -> None:
    stream = make_stream(5, 2_000)
    whole = _score(stream, SMALL, use_numba=use_numba)
    before, after = stream.part(0, 1_234), stream.part(1_234, 2_000)
    stopped = EdgeScorer(SMALL, use_numba=use_numba)
    stopped.score(before.src, before.dst, before.event_ms)
    resumed = EdgeScorer(SMALL, restore(SMALL, take(stopped.state)), use_numba=not use_numba)
    np.testing.assert_array_equal(resumed.score(after.src, after.dst, after.event_ms), whole[1_234:])


def test_snapshot_of_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="other tables"):
        restore(EdgeScorerParams(), take(empty_state(SMALL)))


def test_memory_does_not_grow_with_services() -> None:
    scorer = EdgeScorer(use_numba=False)
    before = scorer.state.size_bytes
    stream = make_stream(1, 20_000, services=5_000)
    scorer.score(stream.src, stream.dst, stream.event_ms)
    assert scorer.state.size_bytes == before < 5 * 2**20


def test_nothing_is_scored_from_nothing() -> None:
    empty = np.empty(0, dtype=np.uint64)
    assert len(EdgeScorer().score(empty, empty, np.empty(0, dtype=np.int64))) == 0


@pytest.mark.parametrize(
    "change", [{"columns": 1000}, {"rows": 3}, {"edge_columns": 8}, {"probation": 0}, {"minute_cap": 0}]
)
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        EdgeScorerParams(**change)  # type: ignore[arg-type]


def test_compiled_engine_is_refused_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.drift.edge_stream.scorer.HAS_NUMBA", False)
    assert EdgeScorer().engine == "numpy"
    with pytest.raises(ModuleNotFoundError, match=r"secureguard-drift\[fast\]"):
        EdgeScorer(use_numba=True)


# --- what the score says ---

CALLER, CALLEE, NEWCOMER, *OTHERS = hashes(77, 103)


def _usual_days(days: int, per_minute: int = 3) -> Stream:
    minutes = np.repeat(np.arange(days * 1440, dtype=np.int64), per_minute)
    count = len(minutes)
    return Stream(np.full(count, CALLER), np.full(count, CALLEE), START + minutes * MINUTE)


def _at(minute: int, src: list[np.uint64], dst: list[np.uint64]) -> Stream:
    return Stream(np.array(src), np.array(dst), np.full(len(src), START + minute * MINUTE, dtype=np.int64))


def _after(days: int, probe: Stream) -> npt.NDArray[np.float64]:
    scorer = EdgeScorer(use_numba=False)
    usual = _usual_days(days)
    scorer.score(usual.src, usual.dst, usual.event_ms)
    return scorer.score(probe.src, probe.dst, probe.event_ms)


def test_newcomer_scores_above_the_usual_caller() -> None:
    usual, new = _after(2, _at(2 * 1440, [CALLER, NEWCOMER], [CALLEE, CALLEE]))
    assert new > usual + 10


def test_burst_rises_with_every_record() -> None:
    scores = _after(1, _at(1440, [CALLER] * 50, [CALLEE] * 50))
    assert (np.diff(scores) > 0).all()


def test_sweep_rises_with_every_new_callee() -> None:
    sweep = _after(1, _at(1440, [CALLER] * 50, OTHERS[:50]))
    repeated = _after(1, _at(1440, [CALLER] * 50, [OTHERS[0], OTHERS[1]] * 25))
    assert (np.diff(sweep) > 0).all()
    assert sweep[-1] - sweep[1] > repeated[-1] - repeated[1]


def test_sweep_is_no_news_the_day_after() -> None:
    scorer = EdgeScorer(use_numba=False)
    sweeps = [_at(day * 1440, [CALLER] * 50, OTHERS[:50]) for day in range(2)]
    first, second = (scorer.score(sweep.src, sweep.dst, sweep.event_ms)[-1] for sweep in sweeps)
    assert second < first


def test_flooded_callee_stays_exposed() -> None:
    scorer = EdgeScorer(use_numba=False)
    usual = _usual_days(1)
    scorer.score(usual.src, usual.dst, usual.event_ms)
    flood = _at(1440, [OTHERS[1]] * 5_000, [OTHERS[0]] * 5_000)
    scorer.score(flood.src, flood.dst, flood.event_ms)
    calm = _at(1500, [NEWCOMER, NEWCOMER], [OTHERS[0], OTHERS[2]])
    flooded, other = scorer.score(calm.src, calm.dst, calm.event_ms)
    assert flooded > other


def test_flood_does_not_make_itself_usual() -> None:
    """Ten minutes of 5,000 records count no more than ten of 100, so that the eleventh still stands out."""
    minutes = np.repeat(np.arange(11), 5_000)
    usual = _usual_days(1)
    scorer = EdgeScorer(use_numba=False)
    everyday = scorer.score(usual.src, usual.dst, usual.event_ms)
    flood = Stream(np.full(len(minutes), NEWCOMER), np.full(len(minutes), CALLEE), START + (1440 + minutes) * MINUTE)
    scores = scorer.score(flood.src, flood.dst, flood.event_ms)
    assert scores[-5_000:].min() > everyday[-1_000:].max()


def test_poller_becomes_usual_over_days() -> None:
    scorer = EdgeScorer(use_numba=False)
    quiet = _usual_days(1, per_minute=1)
    scorer.score(quiet.src, quiet.dst, quiet.event_ms)
    last = []
    for day in range(1, 6):
        minutes = np.arange(day * 1440, (day + 1) * 1440, dtype=np.int64)
        polls = Stream(np.full(1440, NEWCOMER), np.full(1440, OTHERS[0]), START + minutes * MINUTE)
        last.append(float(scorer.score(polls.src, polls.dst, polls.event_ms)[-1]))
    assert last == sorted(last, reverse=True)
    assert last[0] - last[-1] > 5


def test_record_behind_its_time_counts_into_the_newest_minute() -> None:
    late = _at(1440, [CALLER, CALLER], [CALLEE, CALLEE])
    late.event_ms[1] -= 10 * MINUTE
    on_time = _at(1440, [CALLER, CALLER], [CALLEE, CALLEE])
    np.testing.assert_array_equal(_after(1, late), _after(1, on_time))


def test_caller_and_edge_unseen_for_long_are_new_again() -> None:
    params = EdgeScorerParams(memory_days=2)
    usual = _usual_days(1)

    def tenure_and_fan_out(gap_days: int) -> tuple[float, float]:
        scorer = EdgeScorer(params, use_numba=False)
        scorer.score(usual.src, usual.dst, usual.event_ms)
        probe = _at(1440 * (1 + gap_days), [CALLER], [CALLEE])
        scorer.score(probe.src, probe.dst, probe.event_ms)
        return float(scorer.state.source.first_tick.max()), float(scorer.state.source.fan_out.max())

    assert tenure_and_fan_out(1) == (0.0, 0.0)
    assert tenure_and_fan_out(4) == (1440.0, 1.0)
