"""The simulator's own parts: virtual time, the group's fences, tokens, and input that tells its rows apart."""

import asyncio
import logging

import pytest

from tests.simulation.broker import Broker
from tests.simulation.clickhouse import Store
from tests.simulation.loop import Died, VirtualLoop
from tests.simulation.scenario import DEAD, PARTITIONS, SOURCES, draw
from tests.simulation.simulator import Simulator
from tests.simulation.verdict import Verdict, replay


def test_sleep_costs_no_time_and_order_follows_from_virtual_time() -> None:
    loop, seen = VirtualLoop(), []

    async def work(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        seen.append((name, loop.now_s))

    for name, delay_s in (("b", 3600.0), ("a", 5.0), ("c", 3600.0)):
        loop.spawn(work(name, delay_s))
    loop.run_until(7_200.0)
    assert seen == [("a", 5.0), ("b", 3600.0), ("c", 3600.0)]
    assert loop.now_s == 7_200.0


def test_blocking_work_runs_on_the_spot_and_the_dead_never_return() -> None:
    loop, seen = VirtualLoop(), []

    def die() -> None:
        raise Died

    async def work() -> None:
        seen.append(await asyncio.to_thread(lambda: 1))
        await asyncio.to_thread(die)
        seen.append(2)

    loop.spawn(work())
    loop.run_until(10.0)
    assert seen == [1]


@pytest.mark.parametrize(
    ("member", "generation", "tp", "taken"),
    [("0", 2, ("t", 0), True), ("0", 1, ("t", 0), False), ("1", 2, ("t", 0), False), ("9", 2, ("t", 0), False)],
)
def test_commits_of_another_generation_or_owner_are_refused(
    member: str, generation: int, tp: tuple[str, int], taken: bool
) -> None:
    broker = Broker()
    broker.assign({"1": frozenset({("t", 0)})})
    broker.assign({"0": frozenset({("t", 0)}), "1": frozenset()})
    assert broker.commit(member, generation, {tp: 5}) is taken
    assert (tp in broker.committed) is taken


def test_an_insert_with_a_known_token_is_dropped_unseen() -> None:
    store = Store()
    store.insert("t", [b"a"], "one")
    store.insert("t", [b"b"], "one")
    store.insert("u", [b"c"], "one")
    assert store.inserted == {"t": [b"a"], "u": [b"c"]} and store.repeats == 1


def test_every_schedule_has_what_it_takes() -> None:
    for seed in range(200):
        scenario = draw(seed)
        rows = [row for message in scenario.messages for row in message.rows]
        client_calls = [(r.lane, r.tenant, r.dst, r.calls) for r in rows if not r.is_server]
        assert len(client_calls) == len(set(client_calls)), "calls of an edge tell its rows apart"
        assert len({row.tenant for row in rows}) == 2
        assert len({row.window for row in rows if row.fate != DEAD}) >= 2
        assert {message.partition for message in scenario.messages} <= set(range(SOURCES))
        assert scenario.messages == draw(seed).messages


def test_what_machines_did_from_an_empty_state_is_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    taken_over = 0
    for seed in range(1, 13):
        found = []
        for every in (1, 1 << 60):
            monkeypatch.setattr("tests.simulation.simulator.FULL_REPLAY_EVERY", every)
            sim = Simulator(draw(seed))
            sim.run()
            verdict = Verdict(seed, "sound", sim.effects)
            found.append((replay(sim, verdict), verdict))
        taken_over += sum(lineage.length for partition in range(PARTITIONS) for lineage in sim.lineages[partition])
        assert found[0] == found[1]
        assert found[0][0] is not None and found[0][0].windows
    assert taken_over > 100
