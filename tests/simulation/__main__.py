"""Replays schedules: ``python -m tests.simulation SEED [--until SEED] [--variant NAME]``."""

import argparse
import sys
import time

from tests.simulation.scenario import draw
from tests.simulation.simulator import Simulator, quiet
from tests.simulation.variants import SOUND, VARIANTS
from tests.simulation.verdict import judge


def main() -> int:
    """Run one schedule and print its history and verdict, or many and print those that fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--until", type=int, help="run all seeds below this one and print failures alone")
    parser.add_argument("--variant", default=SOUND.name, choices=[SOUND.name, *VARIANTS])
    options = parser.parse_args()
    quiet()
    variant = VARIANTS.get(options.variant, SOUND)
    if options.until is None:
        trace: list[str] = []
        sim = Simulator(draw(options.seed), variant, trace)
        sim.run()
        verdict = judge(sim)
        print(sim.scenario, *trace, *verdict.notes, verdict, sep="\n")
        return 0 if verdict.is_exact else 1
    started_s, failed, raw = time.process_time(), 0, 0
    for seed in range(options.seed, options.until):
        sim = Simulator(draw(seed), variant)
        try:
            sim.run()
            verdict = judge(sim)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        raw += verdict.raw_duplicates
        if not verdict.is_exact:
            failed += 1
            print(verdict, *verdict.notes[:5], sep="\n    ", flush=True)
    count = options.until - options.seed
    spent_s = time.process_time() - started_s
    print(f"{count} schedules, {failed} failed, {raw} raw duplicates, {spent_s:.1f} s of CPU")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
