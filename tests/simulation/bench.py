"""How many schedules a minute one core runs, and where the time goes: ``python -m tests.simulation.bench``."""

import argparse
import signal
import time
from collections import Counter
from types import FrameType

from tests.simulation.running import run_seed
from tests.simulation.simulator import quiet

_BLOCK = 100
_STAGES = (  # the first that stands in the stack takes the sample
    ("replay by the judge", "verdict.py", "replay"),
    ("judge, the rest", "verdict.py", "judge"),
    ("state machine: fold rows", "lane.py", "fold"),
    ("state machine: close windows", "closing.py", "_judge_index"),
    ("state machine, the rest", "machine.py", "apply"),
    ("checkpoints", "partition.py", "_checkpoint"),
    ("recovery", "partition.py", "recover"),
    ("ingest: encode", "readers.py", "encode"),
    ("ingest, the rest", "agent.py", ""),
    ("publish", "sink.py", ""),
    ("ClickHouse sink", "writer.py", ""),
)


def main() -> None:
    """Run schedules and print the rate, by CPU time, and a sampled profile."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.bench", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--profile", action="store_true", help="sample where the time goes (costs some)")
    options = parser.parse_args()
    quiet()
    samples: Counter[str] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        places = set()
        while frame is not None:
            name = frame.f_code.co_filename.rpartition("/")[2]
            places |= {(name, frame.f_code.co_name), (name, "")}
            frame = frame.f_back
        samples[next((stage for stage, *place in _STAGES if tuple(place) in places), "simulation")] += 1

    for seed in range(10):  # imports and caches
        run_seed(seed)
    if options.profile:
        signal.signal(signal.SIGPROF, sample)
        signal.setitimer(signal.ITIMER_PROF, 0.004, 0.004)
    started_s, cpu_s, effects, failed = time.perf_counter(), time.process_time(), [], 0
    blocks_ms, block_s, with_two = [], cpu_s, 0
    for seed in range(options.seeds):
        verdict = run_seed(seed)
        effects.append(verdict.effects)
        with_two += verdict.open_windows >= 2
        failed += not verdict.is_exact
        if seed % _BLOCK == _BLOCK - 1:
            now_s = time.process_time()
            blocks_ms.append((now_s - block_s) / _BLOCK * 1000)
            block_s = now_s
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - started_s
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    each_ms = cpu_s / options.seeds * 1000
    print(f"{options.seeds} schedules, {failed} failed, {min(effects)} to {max(effects)} effects each")
    print(f"{with_two / options.seeds:.1%} of them with two open windows or more in one partition")
    print(f"{each_ms:.1f} ms of CPU a schedule: {60_000 / each_ms:,.0f} a minute on one core (elapsed {wall_s:.1f} s)")
    if blocks_ms:
        print(f"the quickest {_BLOCK}: {min(blocks_ms):.1f} ms")
    for stage, count in samples.most_common():
        print(f"{count / samples.total() * each_ms:7.2f} ms  {stage}")


if __name__ == "__main__":
    main()
