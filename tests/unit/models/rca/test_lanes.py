"""Edges that several lanes saw are read from one lane each, and counted once."""

import numpy as np

from models.rca.error_rank import rank_causes
from models.rca.lanes import LaneEdges, one_lane_a_pair, one_lane_a_subject
from schemas.drift import DriftEvent, DriftKind
from schemas.rca import NameColumn, ServiceWindowEdges
from tests.unit.schemas.events import make_event

MINUTE = 60_000
Row = tuple[int, str, str, int, int]
"""Window, source, destination, calls, calls whose latency is known."""


def edges(rows: list[Row], window_ms: int = MINUTE, latency_us: int = 1_000) -> ServiceWindowEdges:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    timed = column([row[4] for row in rows])
    return ServiceWindowEdges(
        window_start_ms=column([row[0] * window_ms for row in rows]),
        src=NameColumn.of(row[1] for row in rows),
        dst=NameColumn.of(row[2] for row in rows),
        calls=column([row[3] for row in rows]),
        errors=column([0] * len(rows)),
        denied=column([0] * len(rows)),
        latency_calls=timed,
        latency_sum_us=timed * latency_us,
        p50_us=np.where(timed > 0, latency_us, -1),
        p95_us=np.where(timed > 0, 2 * latency_us, -1),
        bytes=column([-1] * len(rows)),
    )


def lane(name: str, current: list[Row], baseline: list[Row] | None = None, window_ms: int = MINUTE) -> LaneEdges:
    return LaneEdges(name, window_ms, edges(current, window_ms), edges(baseline or [], window_ms))


def rows_of(part: ServiceWindowEdges) -> list[tuple[int, str, str, int]]:
    starts, calls = part.window_start_ms.tolist(), part.calls.tolist()
    return sorted(zip(starts, part.src, part.dst, calls, strict=True))


def test_one_lane_is_taken_as_it_is() -> None:
    only = lane("hubble", [(5, "a", "b", 3, 0)])
    assert one_lane_a_pair([only]) == (only.current, only.baseline)


def test_the_lane_that_timed_most_calls_speaks_for_a_pair_else_the_one_with_most() -> None:
    vpc = lane("vpc", [(5, "a", "b", 900, 0), (5, "a", "c", 40, 0), (5, "x", "y", 7, 0)])
    traces = lane("traces", [(5, "a", "b", 30, 30), (5, "a", "c", 30, 0)])
    current, baseline = one_lane_a_pair([vpc, traces])
    minute = 5 * MINUTE
    assert rows_of(current) == [(minute, "a", "b", 30), (minute, "a", "c", 40), (minute, "x", "y", 7)]
    assert len(baseline) == 0


def test_one_lane_speaks_in_both_ranges_and_for_all_ports() -> None:
    """Else a pair would seem to lose calls because its lane changed."""
    one = lane("one", [(5, "a", "b", 10, 0)], [(n, "a", "b", 100, 0) for n in range(5)])
    other = lane("other", [(5, "a", "b", 60, 0), (5, "a", "b", 5, 0)], [(n, "a", "b", 50, 0) for n in range(5)])
    current, baseline = one_lane_a_pair([one, other])
    assert rows_of(current) == [(5 * MINUTE, "a", "b", 10)]
    assert baseline.calls.tolist() == [100] * 5


def test_of_equals_the_first_given_speaks() -> None:
    rows: list[Row] = [(5, "a", "b", 10, 10)]
    current, _ = one_lane_a_pair([LaneEdges("z", MINUTE, edges(rows, latency_us=7), edges([])), lane("a", rows)])
    assert current.latency_sum_us.tolist() == [70]


def test_windows_of_unlike_length_are_counted_to_the_longest() -> None:
    short = lane("short", [(60 + n, "a", "b", 1, 1) for n in range(6)], window_ms=10_000)
    current, _ = one_lane_a_pair([short, lane("long", [(10, "b", "c", 5, 5)])])
    assert set(current.window_start_ms.tolist()) == {10 * MINUTE}
    assert short.current.window_start_ms.tolist()[-1] == 650_000, "the input stays as it is"


def test_two_lanes_that_saw_the_same_rank_as_one() -> None:
    calm: list[Row] = [(n, src, dst, 50, 50) for n in range(12) for src, dst in (("user", "web"), ("web", "db"))]
    slow = edges([(12, "user", "web", 50, 50), (12, "web", "db", 50, 50)], latency_us=90_000)
    alone = LaneEdges("hubble", MINUTE, slow, edges(calm))
    network = lane(
        "vpc", [(12, "web", "db", 51, 0), (12, "db", "disk", 20, 0)], [(n, "web", "db", 51, 0) for n in range(12)]
    )
    report, both = rank_causes(*one_lane_a_pair([alone])), rank_causes(*one_lane_a_pair([alone, network]))
    assert [(cause.service, cause.score) for cause in both.causes] == [
        (cause.service, cause.score) for cause in report.causes
    ]
    assert (report.edges, both.edges) == (2, 3)


def event(lane_name: str, kind: DriftKind = DriftKind.LATENCY_INCREASE) -> DriftEvent:
    return make_event(kind, lane=lane_name, event_id=f"{lane_name}-{kind}")


def test_what_two_lanes_tell_of_one_subject_counts_once() -> None:
    told = [event("vpc"), event("hubble"), event("vpc", DriftKind.NEW_EDGE), event("replay:x", DriftKind.NEW_PORT)]
    kept = one_lane_a_subject(told, ["hubble", "vpc"])
    assert [one.event_id for one in kept] == ["hubble-latency_increase", "vpc-new_edge"]
    assert one_lane_a_subject(told, ["vpc"]) == [told[0], told[2]]
