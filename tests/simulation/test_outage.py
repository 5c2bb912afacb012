"""An owner that is gone for longer than the lateness, while other partitions go on."""

import logging

import pytest

from tests.simulation import process as shell
from tests.simulation.scenario import EPOCH_MS, LATENESS_MS, PROMPT, WINDOW_MS, Message, Row, Scenario
from tests.simulation.simulator import Simulator
from tests.simulation.verdict import judge

TAKEOVER_S = 25.0


def _message(at_s: float, partition: int, dst: str, number: int) -> Message:
    time_ms = EPOCH_MS + int(at_s * 1000) - 100
    value = f'{{"time_ms":{time_ms},"src":"a","dst":"{dst}","tenant":"acme","calls":{1 << number},"host":"h"}}'
    row = Row("acme", "a", dst, 1 << number, False, time_ms // WINDOW_MS, PROMPT)
    return Message(at_s, partition, value.encode(), (row,))


def _scenario(seed: int) -> Scenario:
    """One row of partition 0, silence, its owner's death, a second row; the others go on all the time."""
    quiet_one = [_message(1.0, 0, "b", 0), _message(16.5, 0, "b", 1)]
    others = [_message(1.5 + 2.0 * n, 1 + n % 2, "c", n) for n in range(27)]
    messages = sorted([*quiet_one, *others], key=lambda message: message.at_s)
    return Scenario(seed, messages, fetch_s=1.0, heal_s=56.0, takeover_s=(TAKEOVER_S, TAKEOVER_S))


def test_rows_of_an_idle_partition_whose_owner_died_are_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TAKEOVER_S * 1000 > LATENESS_MS
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    struck, wrong = 0, []
    for seed in range(40):
        sim = Simulator(_scenario(seed))

        def strike(sim: Simulator = sim) -> None:
            nonlocal struck
            owners = {p: n for n, process in sim.processes.items() for t, p in process.fetches if t == shell.FLOWS}
            if owners[1] == owners[2] != owners[0]:
                struck += 1
                sim.processes[owners[0]].kill()

        sim.loop.call_later(15.5, strike)
        sim.run()
        verdict = judge(sim)
        wrong += [] if verdict.is_exact else [verdict]
    assert struck >= 5
    assert not wrong, "\n".join([str(wrong[0]), *wrong[0].notes])
