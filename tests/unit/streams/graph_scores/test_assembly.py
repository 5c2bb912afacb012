"""Windows come out whole, in order of time within a lane, however their messages mix or repeat."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.gnn.windows import edges_of, edges_of_chunks
from schemas import graph
from schemas.graph import ClosedWindow, chunk_window, encode_chunk
from streams.graph_scores import assembly
from streams.graph_scores.assembly import WholeWindow, WindowAssembly
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, make_window
from tests.graph_scores import numbered, values_of


def window(number: int, edges: int, **changes: object) -> ClosedWindow:
    found = [{"src": f"s{n:03}", "dst": "d", "calls": n % 3} for n in range(edges)]
    return make_window(HOUR_MS + number * MINUTE_MS, found, **changes)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "EDGES_PER_SHARD", 3)


def taken(values: list[bytes | None]) -> list[WholeWindow]:
    made = WindowAssembly()
    return [one for offset, value in numbered(values) for one in made.take(offset, value)]


def places(found: list[WholeWindow]) -> list[tuple[str, str, int, int]]:
    return [(*one.lane, *one.place) for one in found]


def test_a_window_comes_out_with_its_edges_as_they_closed() -> None:
    whole = [window(0, 10), window(1, 0), window(2, 4)]
    found = taken([*values_of(whole)])
    for one, closed in zip(found, whole, strict=True):
        assert one.shards is not None
        edges, expected = edges_of_chunks(one.marker.start_ms, one.shards), edges_of(closed)
        assert edges.keys == expected.keys and edges.calls.tolist() == expected.calls.tolist()
        assert edges.signals.tobytes() == expected.signals.tobytes()


def test_windows_published_side_by_side_come_out_in_order_of_time() -> None:
    first, second = (values_of([one]) for one in (window(0, 9), window(1, 2)))
    mixed = [first[0], second[0], second[1], *first[1:]]  # the later one's marker comes first
    assert [one.place[1] for one in taken([*mixed])] == [HOUR_MS, HOUR_MS + MINUTE_MS]


def test_lanes_and_tenants_do_not_wait_for_each_other() -> None:
    waiting, other = values_of([window(0, 4)]), values_of([window(1, 1, tenant="other"), window(1, 1, lane="cloud")])
    found = taken([waiting[0], *other])
    assert places(found) == [("other", "default", 0, HOUR_MS + MINUTE_MS), ("acme", "cloud", 0, HOUR_MS + MINUTE_MS)]


def test_a_window_that_was_published_twice_comes_out_once() -> None:
    values = values_of([window(0, 7), window(1, 2)])
    made = WindowAssembly()
    died = [*values[:2], *values]  # a worker died amid the first, its successor began anew, and a zombie said it again
    found = [one for offset, value in numbered([*died, *values]) for one in made.take(offset, value)]
    assert [one.place[1] for one in found] == [HOUR_MS, HOUR_MS + MINUTE_MS]
    assert all(one.shards is not None for one in found)
    assert made.repeated == 2 and made.safe_offset == made.next_offset == len(died) + len(values)


def test_a_window_whose_beginning_the_log_has_lost_is_told() -> None:
    values = values_of([window(0, 7), window(1, 2)])
    first, second = taken([*values[1:]])
    assert first.shards is None and second.shards is not None


def test_what_cannot_be_read_is_counted_and_passed_over() -> None:
    made = WindowAssembly()
    newer = encode_chunk(msgspec.structs.replace(chunk_window(window(0, 1))[0], v=2))
    for offset, value in numbered([b"", b"\xff", None, newer]):
        assert made.take(offset, value) == []
    assert made.unreadable == 3 and made.next_offset == 4


def test_a_window_that_never_ends_does_not_hold_its_lane_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MOST_OPEN", 3)
    stuck = values_of([window(0, 2)])[:1]
    made = WindowAssembly()
    found = []
    for offset, value in numbered([*stuck, *values_of([window(number, 1) for number in range(1, 5)])]):
        found += made.take(offset, value)
        assert made.safe_offset <= offset + 1
    assert [one.place[1] for one in found] == [HOUR_MS + number * MINUTE_MS for number in range(1, 5)]
    assert made.given_up == 1


def test_a_successor_that_reads_from_the_safe_offset_misses_nothing() -> None:
    messages = numbered(values_of([window(number, number % 8) for number in range(12)]))
    for cut in range(len(messages)):
        made = WindowAssembly()
        before = [one for offset, value in messages[:cut] for one in made.take(offset, value)]
        successor = WindowAssembly()
        after = [one for offset, value in messages[made.safe_offset :] for one in successor.take(offset, value)]
        assert {one.place for one in before} | {one.place for one in after} == {
            (0, HOUR_MS + number * MINUTE_MS) for number in range(12)
        }
        assert all(one.shards is not None for one in after)


@given(st.randoms(use_true_random=False))
def test_any_mix_of_lanes_gives_each_lane_its_windows_in_order(random: object) -> None:
    queues = [
        [encode_chunk(chunk) for number in range(4) for chunk in chunk_window(window(number, 5, tenant=tenant))]
        for tenant in ("a", "b", "c")
    ]
    mixed: list[bytes | None] = []
    while any(queues):
        mixed.append(random.choice([queue for queue in queues if queue]).pop(0))  # type: ignore[attr-defined]
    found = taken(mixed)
    for tenant in ("a", "b", "c"):
        mine = [one.place[1] for one in found if one.lane[0] == tenant]
        assert mine == [HOUR_MS + number * MINUTE_MS for number in range(4)]
