"""Replayed dead letters in the state machine: each coordinate once, no clock moved, and a state that remembers it."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.graph import snapshot
from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import SNAPSHOT_VERSION, mark_clean, restore, take
from models.graph.taken import TakenOrigins
from schemas.dead_letter import Reason
from schemas.errors import CheckpointError
from schemas.flow import Flow
from schemas.ids import end_position, position_of, split_position
from schemas.tenant_log import (
    ORIGIN,
    LogRecord,
    Member,
    Progress,
    decode_record,
    encode_record,
    pack_column,
    pack_positions,
    unpack_positions,
)
from tests.builders import make_flow, make_lane, record_of, rows_of
from tests.unit.models.graph.driving import AS_OF_MS, Feed, records_in, total
from tests.unit.models.graph.test_snapshot import copy_of, said, whole

REPLAY = "flows-replay#1"
ORIGINS = ("flows#1", 0)
STATE_1 = Path(__file__).parents[3] / "data" / "state-1.msgpack.gz"


class Replays:
    """Writes replayed rows as ingest would, at rising coordinates of the replay topic."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.next_offset = 0

    def send(
        self,
        rows: Sequence[tuple[int, Flow]],
        source: tuple[str, int] = ORIGINS,
        elsewhere: Sequence[int] = (),
        as_of_ms: int = AS_OF_MS,
    ) -> Output:
        """Replay flows, each with the position it had in its own source partition."""
        start, self.next_offset = self.next_offset, self.next_offset + max(1, len(rows))
        packed = rows_of([flow for _, flow in rows], [position_of(start + n, 0) for n in range(len(rows))])
        packed.columns[ORIGIN] = pack_column(np.array([origin for origin, _ in rows], dtype=np.int64))
        progress = Progress(REPLAY, 0, end_position(start - 1), end_position(self.next_offset - 1))
        return self.feed.append(
            LogRecord(
                "test",
                as_of_ms,
                (progress,),
                lane=self.feed.lane,
                rows=packed if rows else None,
                origin=source,
                elsewhere=pack_positions(np.array(sorted(elsewhere), dtype=np.int64)),
            )
        )


def at(offset: int, index: int = 0) -> int:
    return position_of(offset, index)


def test_a_replayed_row_counts_once_however_often_it_comes() -> None:
    feed = Feed()
    replays = Replays(feed)
    first = replays.send([(at(7), make_flow(1_000)), (at(9), make_flow(2_000))])
    assert first.counts == {"on_time": 2, "retaken": 2, "late": 0, "skewed": 0, "repeated": 0}
    again = replays.send([(at(9), make_flow(2_000)), (at(8), make_flow(3_000)), (at(8), make_flow(3_000))])
    assert (again.counts["retaken"], again.counts["repeated"]) == (1, 2)
    feed.end()
    assert records_in(feed.output.windows) == 3


def test_the_same_position_of_another_source_partition_is_another_row() -> None:
    feed = Feed()
    replays = Replays(feed)
    for source in (ORIGINS, ("flows#1", 1), ("flows#2", 0), ("other#1", 0)):
        assert replays.send([(at(7), make_flow(1_000))], source).counts["retaken"] == 1


def test_what_went_elsewhere_is_taken_here_no_more() -> None:
    feed = Feed()
    replays = Replays(feed)
    replays.send([], elsewhere=[at(3), at(4)])
    output = replays.send([(at(4), make_flow(1_000)), (at(5), make_flow(1_000))], elsewhere=[at(6)])
    assert (output.counts["retaken"], output.counts["repeated"]) == (1, 1)
    assert [split_position(p)[0] for p in feed.machine.taken.positions(ORIGINS).tolist()] == [3, 4, 5, 6]


def test_a_record_delivered_again_changes_nothing() -> None:
    feed = Feed()
    replays = Replays(feed)
    replays.send([(at(7), make_flow(1_000))], elsewhere=[at(8)])
    before = whole(feed.machine)
    output = feed.append(feed.log[-1])
    assert (output.counts["retaken"], output.counts["repeated"]) == (0, 1)
    after = whole(feed.machine)
    assert {name for name in after if after[name] != before[name]} == {"meta"}, "nothing but the offset"


def test_a_replayed_row_behind_closed_windows_is_late_and_moves_no_clock() -> None:
    feed = Feed(make_lane(lateness_ms=0))
    feed.send([make_flow(5_000), make_flow(45_000)])
    lane = feed.machine.lanes["test"]
    watermark = lane.clock.watermark_ms
    output = Replays(feed).send([(at(100), make_flow(6_000)), (at(101), make_flow(900_000))])
    assert (output.counts["late"], output.counts["on_time"], output.counts["retaken"]) == (1, 1, 2)
    assert lane.clock.watermark_ms == watermark and not output.windows
    assert REPLAY not in {source for source, _ in lane.clock.members}
    feed.end()
    assert total(feed.output.windows, "late_flows") == 1


def test_a_replayed_row_that_is_refused_goes_by_its_own_coordinate_and_may_come_again() -> None:
    day_ms = 86_400_000
    feed = Feed(make_lane(mode="live", members=(Member("flows#1", 1),)))
    replays = Replays(feed)
    early = replays.send([(at(7, 3), make_flow(3 * day_ms))], as_of_ms=day_ms)
    assert [(d.source, d.partition, split_position(d.position), d.reason) for d in early.dead] == [
        ("flows#1", 0, (7, 3), Reason.FUTURE)
    ]
    assert (early.counts["dead"], early.counts["dead_again"], early.counts["retaken"]) == (0, 1, 0)
    in_time = replays.send([(at(7, 3), make_flow(3 * day_ms))], as_of_ms=3 * day_ms)
    assert (in_time.counts["retaken"], in_time.counts["on_time"]) == (1, 1)


def test_rows_of_before_and_after_a_replay_add_up_by_coordinate() -> None:
    feed = Feed(make_lane(mode="live", members=(Member("flows#1", 1),)))
    flows = [make_flow(1_000), make_flow(86_400_000 * 9), make_flow(2_000)]
    feed.send(flows, as_of_ms=5_000)
    dead = feed.output.dead[0]
    Replays(feed).send([(dead.position, flows[1])], as_of_ms=86_400_000 * 9)
    counts = feed.output.counts
    in_all = counts["on_time"] + counts["late"] + counts["skewed"] + counts["dead"] - counts["retaken"]
    assert (in_all, counts["dead"], counts["retaken"]) == (3, 1, 1)


# -- the state ---------------------------------------------------------------------------------------------------------


def version_of(machine: Machine) -> int:
    meta = msgspec.msgpack.decode(dict(take(machine, everything=True))["meta"] or b"")
    version: int = meta["version"]
    return version


def test_a_state_is_written_in_the_oldest_version_that_can_hold_it() -> None:
    feed = Feed()
    feed.logic = 1
    feed.send([make_flow(1_000)])
    assert version_of(feed.machine) == 1
    assert "taken" not in msgspec.msgpack.decode(dict(take(feed.machine))["meta"] or b"")
    Replays(feed).send([(at(7), make_flow(1_000))])
    assert version_of(feed.machine) == snapshot.TAKEN_VERSION == 2


def test_a_restored_machine_knows_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "TAKEN_PAGE", 3)
    feed = Feed()
    replays = Replays(feed)
    for source in (ORIGINS, ("flows#1", 11)):
        replays.send([(at(n * n), make_flow(n)) for n in range(8)], source)
    feed.machine = copy_of(feed.machine)
    assert replays.send([(at(n), make_flow(n)) for n in range(50)]).counts["retaken"] == 42
    names = [name for name in whole(feed.machine) if name.startswith("/taken/")]
    assert len(names) == 17 + 3


def test_what_was_taken_is_written_anew_only_where_it_changed() -> None:
    feed = Feed()
    replays = Replays(feed)
    replays.send([(at(1), make_flow(1))])
    mark_clean(feed.machine)
    replays.send([(at(1), make_flow(1))], ("flows#1", 5))
    chunks = {name: chunk for name, chunk in take(feed.machine) if name.startswith("/taken/")}
    assert chunks["/taken/flows#1/0/0"] is None and chunks["/taken/flows#1/5/0"] is not None


def test_what_was_taken_outlives_an_incarnation_of_the_log() -> None:
    feed = Feed()
    replays = Replays(feed)
    replays.send([(at(1), make_flow(1))])
    feed.machine.begin_incarnation()
    feed.log = []
    assert replays.send([(at(1), make_flow(1))]).counts["repeated"] == 1


def stored_state() -> tuple[list[bytes], int, dict[str, bytes]]:
    """A log, how many of its records were applied, and the state then, as the version before replays wrote them."""
    stored: dict[str, Any] = msgspec.msgpack.decode(gzip.decompress(STATE_1.read_bytes()))
    return stored["records"], stored["applied"], stored["chunks"]


def check_same_but_for_rounding(found: dict[str, bytes | None], stored: dict[str, bytes]) -> None:
    """Compare a state with one that another processor worked out: numpy's logarithms differ in their last bits."""
    assert found.keys() == stored.keys()
    for name, chunk in stored.items():
        if found[name] == chunk:
            continue
        mine, its = msgspec.msgpack.decode(found[name] or b""), msgspec.msgpack.decode(chunk)
        for column, (kind, shape, data) in its["columns"].items():
            if np.dtype(kind).kind == "f":
                my_kind, my_shape, my_data = mine["columns"][column]
                assert (my_kind, my_shape) == (kind, shape), (name, column)
                np.testing.assert_allclose(np.frombuffer(my_data, kind), np.frombuffer(data, kind), rtol=1e-13)
                mine["columns"][column] = [kind, shape, data]
        assert mine == its, name


def test_a_state_of_version_1_is_read_and_goes_on_as_if_it_had_never_stopped() -> None:
    log, applied, chunks = stored_state()
    assert msgspec.msgpack.decode(chunks["meta"])["version"] == 1
    records = [decode_record(data) for data in log]
    assert all(record.origin is None and record.elsewhere is None for record in records)
    straight, restored = Machine(), restore(chunks)
    for offset, record in enumerate(records[:applied]):
        straight.apply(offset, record)
    assert whole(restored) == chunks, "to the byte: the version before reads what this one writes"
    check_same_but_for_rounding(whole(straight), chunks)
    events = 0
    for offset, record in enumerate(records[applied:], applied):
        expected = straight.apply(offset, record)
        events += len(expected.events)
        assert said(restored.apply(offset, record)) == said(expected)
    assert events > 0


@pytest.mark.parametrize("version", [SNAPSHOT_VERSION + 1, 99, 0, None, "2"])
def test_a_state_of_another_version_is_refused_in_one_line(version: Any) -> None:
    _, _, chunks = stored_state()
    meta = msgspec.msgpack.encode({**msgspec.msgpack.decode(chunks["meta"]), "version": version})
    with pytest.raises(CheckpointError) as refused:
        restore({**chunks, "meta": meta})
    assert f"the state is of version {version}, this worker reads 1 to {SNAPSHOT_VERSION}" in str(refused.value)
    assert "run that version, or a later one" in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_positions_are_refused() -> None:
    feed = Feed()
    Replays(feed).send([(at(1), make_flow(1)), (at(2), make_flow(1))])
    chunks = {name: chunk or b"" for name, chunk in take(feed.machine, everything=True)}
    (name,) = [name for name in chunks if name.startswith("/taken/")]
    for positions in ([5], [5, 6, 7]):
        damaged = msgspec.msgpack.encode(pack_positions(np.array(positions, dtype=np.int64)))
        with pytest.raises(CheckpointError, match="cannot be read"):
            restore({**chunks, name: damaged})
    del chunks[name]
    with pytest.raises(CheckpointError, match="lacks chunk"):
        restore(chunks)


# -- sets and wire -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positions", [[], [0], [5, 6, 7], [1, 1 << 40, (1 << 62) + 1], list(range(0, 1 << 26, 1 << 20))]
)
def test_positions_come_back_as_they_were(positions: list[int]) -> None:
    packed = pack_positions(np.array(positions, dtype=np.int64))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=type(packed))
    assert unpack_positions(again).tolist() == positions


def test_neighbouring_positions_cost_next_to_nothing() -> None:
    positions = np.arange(100_000, dtype=np.int64) << 20
    assert len(msgspec.msgpack.encode(pack_positions(positions))) < 40


def test_of_rows_with_one_origin_the_first_is_fresh() -> None:
    taken = TakenOrigins()
    taken.add(ORIGINS, np.array([5], dtype=np.int64))
    origins = np.array([9, 5, 7, 7, 9, 3], dtype=np.int64)
    among = np.array([False, True, True, True, True, True])
    assert taken.fresh(ORIGINS, origins, among).tolist() == [False, False, True, False, True, True]
    assert taken.changed == {ORIGINS}
    taken.mark_clean()
    taken.add(ORIGINS, np.array([5], dtype=np.int64))
    assert not taken.changed and len(taken) == 1


class _RecordBefore(msgspec.Struct, frozen=True):
    """`LogRecord` as the version before replays had it, to read what this one writes."""

    worker: str
    as_of_ms: int
    progress: tuple[Progress, ...]
    lane: Any = None
    rows: Any = None
    controls: tuple[Any, ...] = ()
    append_time: bool = False
    loss: bool = False
    v: int = 1


def test_a_worker_of_the_version_before_reads_the_records_of_this_one() -> None:
    feed = Feed()
    Replays(feed).send([(at(1), make_flow(1))], elsewhere=[at(2)])
    for record in (feed.log[-1], record_of(make_lane(), 0, 4, [make_flow(5)])):
        old = msgspec.msgpack.decode(encode_record(record), type=_RecordBefore)
        assert (old.progress, old.as_of_ms, old.v) == (record.progress, record.as_of_ms, 1)
        assert old.rows[0] == 1
        again = decode_record(encode_record(record))
        assert (again.origin, again.elsewhere) == (record.origin, record.elsewhere)
