"""A stop of the embedded worker: its broker forgets, so ClickHouse must have all that was published by then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.settings import Settings
from streams.replay import ReplayLane
from tests.builders_clickhouse import ClickHouse
from tests.e2e import traffic
from tests.e2e.pipeline import GRACE_MS, catch_up, following, pushing, running

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]


async def test_what_was_published_is_stored_before_the_embedded_broker_goes(
    tansu_bootstrap: str, settings_for: Callable[..., Settings], clickhouse: ClickHouse, tmp_path: Path
) -> None:
    settings = settings_for(tansu_bootstrap, clickhouse=clickhouse.settings)
    settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"grace_ms": GRACE_MS})})
    flows = traffic.write_traffic(tmp_path / "flows.jsonl", seed=9)
    lane = ReplayLane("replay:stop", traffic.WINDOW_MS, traffic.LATENESS_MS, {"learning_windows": 3}, generation=1)
    async with following(settings) as topics:
        async with running(settings, broker_forgets=True) as worker:
            async with pushing(settings, flows.path, lane):
                pass
            await worker.until(lambda: worker.is_closed(lane.name), "the last window was published")
        found = await catch_up(topics)
    assert found.markers and found.values
    assert clickhouse.rows("SELECT count() FROM {db}.windows FINAL") == [(len(found.markers),)]
    assert {event_id for (event_id,) in clickhouse.rows("SELECT event_id FROM {db}.drift_events FINAL")} == set(
        found.values
    )
