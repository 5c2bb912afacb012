"""A sink waits for a ClickHouse that is away; it neither stops the worker nor blocks the event loop."""

from types import SimpleNamespace
from typing import Any

import faust
import numpy as np
import pytest

from schemas.errors import ConfigurationError
from streams.batching import Chunk, CorruptBatch
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


async def test_a_batch_that_cannot_be_read_is_kept_as_a_dead_letter_before_its_offsets_are_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []

    async def keep(poison: Any) -> None:
        done.append(poison)

    async def commit(_: Any, offsets: Any, **__: Any) -> bool:
        done.append(offsets)
        return True

    class Writer:
        async def write(self, messages: Any) -> int:
            return len(messages)

    async def stream() -> Any:
        corrupt = CorruptBatch(5, 8, "checksum does not match", b"\1\2", 2)
        none: list[Any] = []
        yield SimpleNamespace(
            value=Chunk("t", 0, 5, 9, np.empty(0, np.int64), none, none, none, none, 0, 9, 1, 0, 0, corrupt)
        )

    monkeypatch.setattr(agents, "commit", commit)
    app = faust.App("sink-test-2", broker="kafka://127.0.0.1:1", web_enabled=False)
    sink = SinkAgent(app, "t", lambda value: None, lambda: None, "drift", keep, Metrics())  # type: ignore[arg-type,return-value]
    sink._writers[0] = Writer()  # type: ignore[assignment]
    await sink._run(SimpleNamespace(events=stream))
    poison, offsets = done
    assert (poison.topic, poison.offset, poison.value) == ("t", 5, b"\1\2")
    assert "checksum does not match" in poison.detail
    assert list(offsets.values()) == [9]
