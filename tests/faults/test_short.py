"""A short choreography on real processes: nothing is lost, doubled, invented or miscounted."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.pipeline import GRACE_MS
from tests.faults import plan as kinds
from tests.faults.cluster import Size
from tests.faults.plan import Plan
from tests.faults.report import write_report
from tests.faults.run import run

SIZE = Size(workers=3, partitions=6, rate=1_000, edges=1_000, tenants=12, seed=3, grace_ms=GRACE_MS)
PLAN = Plan(
    in_turn=(kinds.KILL, kinds.ZOMBIE, kinds.KILL, kinds.SCALE, kinds.KILL, kinds.BROKER_KILL, kinds.KILL),
    beside=((0.0, kinds.CLOSE, 8.0), (10.0, kinds.AWAY, 8.0), (30.0, kinds.BEHIND, 8.0), (45.0, kinds.FLOOD, 2.0)),
)


@pytest.mark.kafka
@pytest.mark.timeout(7200)
async def test_nothing_is_lost_or_doubled_whatever_fails(apache_kafka: str, kafka_cache: Path, tmp_path: Path) -> None:
    run_of = partial(run, prompt_s=None, well_within_s=900.0)  # how soon, `make test-faults` measures
    outcome = await run_of(tmp_path / "run", kafka_cache, SIZE, 0.0, lambda _: PLAN, {}, print)
    facts = write_report(outcome, tmp_path / "report.md", "the short choreography")
    print((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert outcome.problems == []
    assert outcome.verdict is not None and outcome.verdict.is_clean, outcome.verdict
    assert (outcome.stored, outcome.wrong_edges, outcome.unknown) == (outcome.flows, 0, 0)
    done = Counter(fault.kind for fault in outcome.injected)
    assert done >= Counter(PLAN.in_turn) + Counter(kind for _, kind, _ in PLAN.beside)
    assert outcome.clickhouse_hits["close-after-store"] > 0
    assert facts["verdict"]["counts"]["events"] > 0
