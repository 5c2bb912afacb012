"""Ids of spans, the keys of pairs, and what a span stands for."""

import random

import numpy as np
import pytest

from streams.sources.format import MAX_PAIR
from streams.sources.otlp_spans import (
    MAX_SAMPLING,
    adjusted_count,
    is_local_parent,
    is_set,
    pair_keys,
    sampling_of,
    words_of,
)

TRACE, SPAN = "5B8EFFF798038103D269B633813FC60C", "EEE19B7EC3C1B173"


def key_of(trace: str, span: str) -> int:
    return int(pair_keys(words_of([trace], 16)[0], words_of([span], 8)[0])[0])


def test_a_pairs_key_is_the_same_for_ever() -> None:
    assert key_of(TRACE, SPAN) == 8492325927289185163  # it travels in tenant-log: another would part halves


def test_a_pairs_key_does_not_depend_on_the_encoding_or_case_of_ids() -> None:
    as_bytes = pair_keys(words_of([bytes.fromhex(TRACE)], 16)[0], words_of([bytes.fromhex(SPAN)], 8)[0])
    assert key_of(TRACE, SPAN) == key_of(TRACE.lower(), SPAN.lower()) == int(as_bytes[0])


def test_pairs_keys_differ_wherever_ids_do_and_fill_their_range() -> None:
    rng = random.Random(7)
    traces = [f"{rng.getrandbits(128):032x}" for _ in range(20_000)]
    spans = [f"{number:016x}" for number in range(1, 20_001)]
    keys = pair_keys(words_of(traces, 16)[0], words_of(spans, 8)[0])
    same_trace = pair_keys(words_of(traces[:1] * 20_000, 16)[0], words_of(spans, 8)[0])
    assert len(set(keys.tolist())) == len(set(same_trace.tolist())) == 20_000
    for found in (keys, same_trace):
        assert found.min() >= 0 and found.max() <= MAX_PAIR
        for bit in range(63):
            assert 0.47 < ((found >> bit) & 1).mean() < 0.53


@pytest.mark.parametrize(
    ("ids", "bad", "known"),
    [
        ([TRACE, TRACE.lower()], [False, False], [True, True]),
        ([TRACE, None, ""], [False, False, False], [True, False, False]),
        (["0" * 32, TRACE], [False, False], [False, True]),
        ([TRACE, TRACE[:-1]], [False, True], [True, False]),
        ([TRACE, "g" + TRACE[1:]], [False, True], [True, False]),
        ([" " + TRACE[:-2] + " ", TRACE], [True, False], [False, True]),
        (["YUMtSIxXQHea1DTgS+G2zg=="], [True], [False]),
        ([None, None], [False, False], [False, False]),
        ([bytes.fromhex(TRACE), b"", bytes(15)], [False, False, True], [True, False, False]),
        ([bytes.fromhex(TRACE), TRACE, None], [False, False, False], [True, True, False]),
        ([b"\xff" * 32], [True], [False]),
    ],
)
def test_ids_are_read_one_by_one(ids: list[str | bytes | None], bad: list[bool], known: list[bool]) -> None:
    words, found_bad = words_of(ids, 16)
    assert words.shape == (len(ids), 2) and words.dtype == np.uint64
    assert found_bad.tolist() == bad and is_set(words).tolist() == known


@pytest.mark.parametrize(
    ("state", "count"),
    [
        ("", 1.0),
        ("ot=th:0", 1.0),
        ("ot=th:8", 2.0),
        ("ot=th:c", 4.0),
        ("ot=th:C;rv:9b8233f7e3a151", 4.0),
        ("rojo=00f067aa0ba902b7, ot=rv:9b8233f7e3a151;th:8", 2.0),
        ("ot=th:fd70a3d70a3d71", pytest.approx(100)),
        ("ot=p:3;r:5", 8.0),
        ("ot=p:3;th:8", 2.0),
        ("ot=p:63", 1.0),
        ("ot=p:0", 1.0),
        ("ot=p:-1", 1.0),
        ("ot=th:", 1.0),
        ("ot=th:xyz", 1.0),
        ("ot=th:000000000000001", 1.0),
        ("hot=th:8", 1.0),
        ("acme@ot=th:8", 1.0),
    ],
)
def test_a_tracestate_says_how_many_spans_one_stands_for(state: str, count: float) -> None:
    assert adjusted_count(state) == count


def test_fractions_go_to_a_share_of_the_traces_so_that_sums_come_out_right() -> None:
    rng = random.Random(3)
    trace, _ = words_of([f"{rng.getrandbits(128):032x}" for _ in range(20_000)], 16)
    counts = sampling_of(["ot=th:4"] * 20_000, trace)  # 75 %: 1.333 spans each
    assert set(counts.tolist()) == {1, 2} and abs(counts.mean() - 4 / 3) < 0.01
    assert sampling_of(["ot=th:4"] * 20_000, trace).tolist() == counts.tolist()
    whole = sampling_of(["ot=th:c", None, "", "ot=th:8"], trace[:4])
    assert whole.tolist() == [4, 1, 1, 2]


def test_a_span_that_stands_for_more_than_can_be_believed_is_told() -> None:
    trace, _ = words_of([TRACE] * 3, 16)
    assert sampling_of(["ot=p:20", "ot=p:21", "ot=th:ffffffffffffff"], trace).tolist() == [MAX_SAMPLING, -2, -2]


def test_flags_say_whether_the_parent_is_of_the_same_process() -> None:
    assert [is_local_parent(flags) for flags in (0, 1, 0x101, 0x100, 0x301, 0x300, 0x201)] == [
        *(False, False, True, True, False, False, False)
    ]
