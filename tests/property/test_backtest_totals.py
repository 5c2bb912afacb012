"""Whatever the file, `drift backtest` counts each record once, where the independent check counts it too."""

import asyncio
import itertools
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, settings

from deploy.commands.backtest import run_backtest
from schemas.dead_letter import DeadLetter
from streams.replay import ReplayLane
from tests.builders_clickhouse import ClickHouse
from tests.independent.check import Rules, check, messages_of
from tests.independent.pipeline import FAR_MS, Run, store
from tests.independent.traffic import WINDOW_MS, make_chunks, make_flows

LATENESS_MS = 5_000
_number = itertools.count()


def backtest(path: Path, lane: ReplayLane) -> Run:
    """Run the backtest and keep all it says."""
    run = Run(raw=messages_of(str(path)))

    def keep(letter: DeadLetter) -> None:
        run.dead.append((letter.partition, letter.offset, letter.index, letter.reason))

    for output in run_backtest(path, "canonical", lane, as_of_ms=FAR_MS, on_dead_letter=keep):
        run.windows += output.windows
        run.events += output.events
        run.counts.update(output.counts)
    return run


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # the seed says enough
)
@given(
    seed=st.integers(0, 1 << 32),
    windows=st.integers(1, 14),
    learning_windows=st.integers(0, 6),
    disorder_ms=st.sampled_from([1, LATENESS_MS, 6 * LATENESS_MS]),
)
def test_backtest_totals(
    clickhouse: ClickHouse, seed: int, windows: int, learning_windows: int, disorder_ms: int
) -> None:
    lane = ReplayLane(
        f"replay:{next(_number)}", WINDOW_MS, LATENESS_MS, {"learning_windows": learning_windows}, None, 1
    )
    flows = make_flows(seed, windows, news_from=learning_windows, per_window=25)
    chunks = make_chunks(seed, flows, 1, disorder_ms)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flows.jsonl"
        path.write_bytes(b"".join(value.rstrip() + b"\n" for _, messages in chunks for value, _ in messages))
        run = backtest(path, lane)
    asyncio.run(store(run, clickhouse))
    rules = Rules(lane.name, WINDOW_MS, LATENESS_MS, learning_windows)
    report = check(clickhouse.client, clickhouse.database, run.raw, rules, run.dead)
    assert report.differences == []
    assert report.counts["input"] == run.counts["on_time"] + run.counts["late"] + len(run.dead)
    assert report.is_exact or disorder_ms > LATENESS_MS
