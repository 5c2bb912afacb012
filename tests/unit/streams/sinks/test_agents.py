"""A sink waits for a ClickHouse that is away; it neither stops the worker nor blocks the event loop."""

from typing import Any

import faust
import pytest

from schemas.errors import ConfigurationError
from streams.metrics import Metrics
from streams.sinks import agents
from streams.sinks.agents import SinkAgent


async def test_a_sink_waits_until_clickhouse_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(agents.asyncio, "sleep", no_wait)
    tries = iter(
        [ConfigurationError("ClickHouse at http://h cannot be reached"), ConfigurationError("again"), "client"]
    )

    def connect() -> Any:
        outcome = next(tries)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def no_poison(_: Any) -> None:
        raise AssertionError

    metrics = Metrics()
    app = faust.App("sink-test", broker="kafka://127.0.0.1:1", web_enabled=False)
    sink = SinkAgent(app, "drift-events", lambda value: None, connect, "drift", no_poison, metrics)  # type: ignore[arg-type,return-value]
    assert await sink._connected() == "client"
    assert len(waits) == 2 and waits[1] > waits[0]
    assert metrics.registry.get_sample_value("drift_sink_retries_total", {"table": "drift-events"}) == 2
