"""A sink waits for a ClickHouse that is away; it neither stops the worker nor blocks the event loop."""

import asyncio
import tempfile
from types import SimpleNamespace
from typing import Any

import faust
import numpy as np
import pytest

from schemas.errors import ConfigurationError
from streams.batching import Chunk, CorruptBatch
from streams.batching.budget import Budget
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
    app = faust.App("sink-test", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tempfile.gettempdir())
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
    app = faust.App("sink-test-2", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tempfile.gettempdir())
    app.consumer_generation_id = 1
    sink = SinkAgent(app, "t", lambda value: None, lambda: None, "drift", keep, Metrics())  # type: ignore[arg-type,return-value]
    sink._writers[0] = Writer()  # type: ignore[assignment]
    await sink._run(SimpleNamespace(events=stream))
    assert sink._task is not None
    await sink._task
    poison, offsets = done
    assert (poison.topic, poison.offset, poison.value) == ("t", 5, b"\1\2")
    assert "checksum does not match" in poison.detail
    assert list(offsets.values()) == [9]


async def test_a_sink_that_waits_for_clickhouse_holds_up_no_other_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    is_back = asyncio.Event()

    async def commit(_: Any, offsets: Any, **__: Any) -> bool:
        return True

    class Writer:
        async def write(self, messages: Any) -> int:
            await is_back.wait()
            stored.extend(message.offset for message in messages)
            return len(messages)

    def chunk(offset: int, generation: int) -> Chunk:
        one: list[Any] = [b"v"]
        return Chunk("t", 0, offset, offset + 1, np.array([offset]), one, one, one, [0], 0, 99, generation, 0, 1)

    async def stream() -> Any:
        for offset in range(20):  # far more than Faust would let wait
            yield SimpleNamespace(value=chunk(offset, 1 if offset < 19 else 0))

    async def no_poison(_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(agents, "commit", commit)
    app = faust.App("sink-test-3", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tempfile.gettempdir())
    app.consumer_generation_id = 1
    sink = SinkAgent(app, "t", lambda value: None, lambda: None, "drift", no_poison, Metrics())  # type: ignore[arg-type,return-value]
    sink._writers[0] = Writer()  # type: ignore[assignment]
    async with asyncio.timeout(60):
        await sink._run(SimpleNamespace(events=stream))  # returns although nothing can be stored
        assert stored == [] and sink._task is not None
        is_back.set()
        await sink._task
    assert stored == list(range(19))  # not that of a generation that is over


async def test_what_waits_is_dropped_when_partitions_are_assigned_anew() -> None:
    app = faust.App("sink-test-4", broker="kafka://127.0.0.1:1", web_enabled=False, datadir=tempfile.gettempdir())
    sink = SinkAgent(app, "t", None, None, "drift", None, Metrics())  # type: ignore[arg-type]
    budget = Budget(100, 1, lambda: None)
    none: list[Any] = []
    lease = budget.lend("t0", 7)
    sink._queue.append(Chunk("t", 0, 0, 0, np.empty(0, np.int64), none, none, none, none, 0, 0, 1, 0, 7, None, lease))
    assert not budget.admits("t0")
    await sink._on_assigned(app, set())
    assert not sink._queue and budget.admits("t0")
