"""A logic version takes over at one record of the log, when nobody is left that cannot run it."""

import random

import msgspec
import pytest

from models.graph.logic import LOGIC_VERSION, SETTLE_MS, UNDECIDED, Hearing, Logic
from models.graph.machine import Machine
from models.graph.snapshot import mark_clean, restore, take
from schemas.errors import CheckpointError, LogicVersionError
from schemas.tenant_log import LogRecord, decode_record, encode_record
from tests.builders import make_flow, make_lane, record_of

SECOND = 1_000


def run(records: list[tuple[str, int, int]], logic: Logic | None = None) -> list[int]:
    """Return the version in force after each (worker, clock in s, version it can run)."""
    logic = Logic(1) if logic is None else logic
    versions = []
    for worker, at_s, can_run in records:
        logic = logic.after(worker, at_s * SECOND, can_run)
        versions.append(logic.in_force)
    return versions


def test_the_first_record_decides_for_a_state_that_has_applied_nothing() -> None:
    assert run([("a", 0, 2), ("b", 1, 1), ("a", 2, 2)], Logic()) == [2, 2, 2]


def test_nobody_listens_while_nobody_can_run_more() -> None:
    assert Logic(2).after("a", 5, 2) == Logic(2).after("b", 9_000_000, 1) == Logic(2)


def test_the_later_version_waits_until_the_span_is_over_and_all_can_run_it() -> None:
    assert run([("new", s, 2) for s in range(62)]) == [1] * 60 + [2] * 2
    both = [(worker, s, can) for s in range(90) for worker, can in (("new", 2), ("old", 1))]
    assert run(both) == [1] * 180
    gone = run([*both, *(("new", s, 2) for s in range(90, 200))])
    assert gone.index(2) - len(both) + 90 == 89 + SETTLE_MS // SECOND + 1  # the old one last wrote at 89 s


def test_the_least_of_what_all_can_run_takes_over() -> None:
    records = [(worker, s, can) for s in range(70) for worker, can in (("a", 3), ("b", 2))]
    assert run(records)[-1] == 2
    assert run([*records, *(("a", s, 3) for s in range(70, 200))])[-1] == 3


def test_a_hole_in_the_log_makes_nobody_forgotten() -> None:
    records = [("old", 0, 1), ("new", 0, 2), ("old", 1, 1), ("new", 3_600, 2), ("old", 3_601, 1), ("new", 3_602, 2)]
    assert run(records) == [1] * 6


def test_a_clock_that_goes_back_moves_nothing_back() -> None:
    logic = Logic(1, Hearing(100 * SECOND, 5 * SECOND)).after("new", 40 * SECOND, 2)
    assert logic.hearing is not None
    assert (logic.hearing.as_of_ms, logic.hearing.elapsed_ms) == (100 * SECOND, 5 * SECOND)


def test_a_roll_back_ends_the_hearing() -> None:
    records = [("new", 0, 2), *(("old", s, 1) for s in range(1, 80))]
    logic = Logic(1)
    for worker, at_s, can_run in records:
        logic = logic.after(worker, at_s * SECOND, can_run)
    assert logic == Logic(1)


def log_of(seed: int) -> list[LogRecord]:
    """Workers of two versions, rolled from the one to the other."""
    rng = random.Random(seed)
    lane, records, at_ms = make_lane(), [], 1_000_000
    workers = {f"old-{n}": 1 for n in range(3)}
    for number in range(300):
        if number % 40 == 39 and number < 200 and (old := [name for name, can in workers.items() if can == 1]):
            del workers[rng.choice(old)]
            workers[f"new-{number}"] = 2
        at_ms += rng.randrange(500, 3_000)
        worker = rng.choice(sorted(workers))
        flows = [make_flow(at_ms, dst=f"svc-{rng.randrange(9)}")]
        record = record_of(lane, 0, number, flows, as_of_ms=at_ms)
        records.append(msgspec.structs.replace(record, worker=worker, logic=workers[worker]))
    return records


def state_of(machine: Machine) -> dict[str, bytes | None]:
    return dict(take(machine, everything=True))


def reload(machine: Machine) -> Machine:
    return restore({name: data for name, data in state_of(machine).items() if data is not None}, machine.can_run)


@pytest.mark.parametrize("seed", range(4))
def test_a_restart_at_any_record_moves_the_switch_nowhere(seed: int) -> None:
    log = log_of(seed)
    straight, restarted = Machine(can_run=2), Machine(can_run=2)
    in_force, versions = [], set()
    for offset, record in enumerate(log):
        straight.apply(offset, record)
        restarted = reload(restarted)
        restarted.apply(offset, decode_record(encode_record(record)))
        assert restarted.logic == straight.logic
        in_force.append(straight.logic.in_force)
        versions.add(msgspec.msgpack.decode(state_of(straight)["meta"] or b"")["version"])
    assert in_force == sorted(in_force) and set(in_force) == {1, 2}
    assert versions == {1, 3}
    assert state_of(restarted) == state_of(straight)


def test_a_worker_that_cannot_run_it_stops_there_and_the_next_one_goes_on_as_if_it_never_had() -> None:
    log = log_of(1)
    straight, older = Machine(can_run=2), Machine(can_run=1)
    for offset, record in enumerate(log):
        straight.apply(offset, record)
    switch = -1
    for offset, record in enumerate(log):
        before = state_of(older)
        try:
            older.apply(offset, record)
        except LogicVersionError as error:
            switch = offset
            assert str(error).startswith(f"from offset {offset} on logic version 2 is in force, this worker runs 1")
            assert state_of(older) == before
            break
    assert switch > 100
    newer = restore({name: data for name, data in state_of(older).items() if data is not None}, can_run=2)
    for offset, record in enumerate(log):
        newer.apply(offset, record)
    assert state_of(newer) == state_of(straight)


def test_a_state_of_a_later_logic_version_is_refused() -> None:
    machine = Machine(can_run=LOGIC_VERSION + 1)
    record = record_of(make_lane(), 0, 0, [make_flow(1_000)])
    machine.apply(0, msgspec.structs.replace(record, logic=LOGIC_VERSION + 1))
    chunks = {name: data for name, data in state_of(machine).items() if data is not None}
    text = f"follows logic version {LOGIC_VERSION + 1}, this worker runs {LOGIC_VERSION} at most: run the version"
    with pytest.raises(CheckpointError, match=text):
        restore(chunks)


def test_a_new_incarnation_keeps_the_version_in_force() -> None:
    machine = Machine(can_run=2)
    for offset, record in enumerate(log_of(2)):
        machine.apply(offset, record)
    assert machine.logic.in_force == 2
    machine.begin_incarnation()
    mark_clean(machine)
    assert machine.logic == Logic(2) == reload(machine).logic


def test_a_state_that_has_applied_nothing_is_undecided() -> None:
    assert reload(Machine()).logic.in_force == UNDECIDED


def test_a_record_of_a_worker_that_knows_no_versions_counts_as_the_first() -> None:
    record = record_of(make_lane(), 0, 0, [make_flow(1_000)])
    plain = msgspec.msgpack.decode(encode_record(msgspec.structs.replace(record, logic=7)))
    assert plain.pop("logic") == 7
    assert decode_record(msgspec.msgpack.encode(plain)).logic == 1
