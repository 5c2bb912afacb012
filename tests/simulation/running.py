"""Runs schedules for tests, the command line and the benchmark."""

from collections.abc import Sequence
from dataclasses import replace

from tests.simulation.scenario import Scenario, draw
from tests.simulation.simulator import Simulator
from tests.simulation.variants import SOUND, Variant
from tests.simulation.verdict import Verdict, judge


def run_seed(seed: int, variant: Variant = SOUND) -> Verdict:
    """Run a seed's schedule and judge it."""
    return run_scenario(draw(seed), variant)


def run_scenario(scenario: Scenario, variant: Variant = SOUND, trace: list[str] | None = None) -> Verdict:
    """Run a schedule and judge it; its history goes to ``trace``."""
    sim = Simulator(scenario, variant, trace)
    sim.run()
    verdict = judge(sim)
    if sim.loop.errors:
        raise AssertionError(f"seed {scenario.seed}: {sim.loop.errors}")
    return verdict


def first_find(variant: Variant, seeds: range) -> Verdict | None:
    """Return the verdict on the first seed that shows what a variant does wrong; ``None`` if none does."""
    for seed in seeds:
        verdict = run_seed(seed, variant)
        if not verdict.is_exact:
            return verdict
    return None


def calm(seed: int) -> Scenario:
    """Return a seed's input without any of its faults."""
    drawn = draw(seed)
    return Scenario(
        seed,
        drawn.messages,
        controls=drawn.controls,
        append_time=drawn.append_time,
        fetch_s=2.0,
        learning_windows=drawn.learning_windows,
        checkpoint_every_ms=5_000,
        heal_s=drawn.heal_s,
    )


def crashing(scenario: Scenario, crashes: dict[int, str], recrash: Sequence[tuple[int, str]] = ()) -> Scenario:
    """Return the schedule with other crashes."""
    return replace(scenario, crashes=crashes, recrash=list(recrash))
