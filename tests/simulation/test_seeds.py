"""Seeded schedules of faults: whatever happens, results are those of an undisturbed run. A failing seed replays with
``python -m tests.simulation SEED``.
"""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.running import calm, crashing, first_find, run_scenario, run_seed
from tests.simulation.scenario import draw
from tests.simulation.simulator import quiet
from tests.simulation.variants import VARIANTS, Variant

SEEDS = 100
SMALL = 1
"""Seed of the schedule that is crashed everywhere."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    quiet()
    yield
    logging.disable(logging.NOTSET)


def test_results_are_exact_whatever_fails() -> None:
    lanes = Counter[int]()
    for seed in range(SEEDS):
        verdict = run_seed(seed)
        assert verdict.is_exact, "\n".join([str(verdict), *verdict.notes])
        assert verdict.effects >= 40 and verdict.tenants == 2
        lanes[verdict.lanes] += 1
    assert lanes[1] > SEEDS / 2 and lanes[2] > SEEDS / 8


def test_a_schedule_is_the_same_every_time() -> None:
    first: list[str] = []
    again: list[str] = []
    run_scenario(draw(3), trace=first)
    run_scenario(draw(3), trace=again)
    assert first == again and len(first) > 40


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_at_every_effect_changes_nothing(side: str) -> None:
    scenario = calm(SMALL)
    for effect in range(1, run_scenario(scenario).effects + 1):
        verdict = run_scenario(crashing(scenario, {effect: side}))
        assert verdict.is_exact, "\n".join([f"crash {side} effect {effect}", str(verdict), *verdict.notes])


def test_a_request_that_outlives_its_sender_changes_nothing() -> None:
    scenario = calm(SMALL)
    for effect in range(1, run_scenario(scenario).effects + 1, 4):
        verdict = run_scenario(crashing(scenario, {effect: "wire"}))
        assert verdict.is_exact, "\n".join([f"crash at effect {effect}", str(verdict), *verdict.notes])


@pytest.mark.parametrize("effect", [21, 57, 90])
def test_a_second_crash_at_every_effect_of_the_recovery_changes_nothing(effect: int) -> None:
    scenario = calm(SMALL)
    for later in range(1, 20):
        verdict = run_scenario(crashing(scenario, {effect: "after"}, [(later, "before")]))
        assert verdict.is_exact, "\n".join([f"crash after {effect}, then {later}", str(verdict), *verdict.notes])


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_broken_variant_is_found(variant: Variant) -> None:
    assert run_scenario(calm(SMALL), variant).is_exact, "without faults nobody would notice"
    verdict = first_find(variant, range(1_000))
    assert verdict is not None, f"{variant.name}: not found in 1,000 seeds"
    print(verdict, *verdict.notes[:3], sep="\n  ")
