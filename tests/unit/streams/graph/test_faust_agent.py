"""The graph agent stops the worker rather than go on behind what it could not read."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from schemas.errors import WireFormatError
from streams.batching import Chunk, CorruptBatch
from streams.graph import faust_agent
from streams.graph.faust_agent import GraphAgent


def chunk_of(offset: int, corrupt: CorruptBatch | None = None) -> Chunk:
    rows: list[Any] = [] if corrupt else [b"record"]
    offsets = np.arange(offset, offset + len(rows))
    return Chunk(
        "tenant-log", 0, offset, offset + 1, offsets, rows, rows, rows, [0] * len(rows), 0, 9, 1, 0, 0, corrupt
    )


async def test_a_batch_of_tenant_log_that_cannot_be_read_stops_the_worker() -> None:
    applied: list[int] = []
    crashes: list[Exception] = []
    app = SimpleNamespace(crashed=False)

    async def crash(error: Exception) -> None:
        app.crashed = True
        crashes.append(error)

    async def apply(offsets: list[int], values: list[bytes]) -> None:
        applied.extend(offsets)

    app.crash = crash
    agent = object.__new__(GraphAgent)
    agent._app = app  # type: ignore[assignment]
    queue: asyncio.Queue[Chunk] = asyncio.Queue()
    for chunk in (chunk_of(0), chunk_of(1, CorruptBatch(1, 1, "checksum does not match", b"", 2)), chunk_of(2)):
        queue.put_nowait(chunk)
    await agent._work(SimpleNamespace(apply=apply), queue)  # type: ignore[arg-type]
    assert applied == [0]
    [error] = crashes
    assert isinstance(error, WireFormatError) and "checksum does not match" in str(error)


class _Partition:
    is_recovered = False
    recovered_with: int | None = None

    async def recover(self, at_least: int = -1) -> int:
        if not self.is_recovered:
            self.recovered_with = at_least
        self.is_recovered = True
        return 70


async def test_state_is_kept_through_consecutive_generations_and_read_anew_after_a_missed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever owned the partition meanwhile has published events and removed chunks that this worker does not know."""
    made: list[_Partition] = []

    def make(_: int) -> Any:
        made.append(_Partition())
        return made[-1]

    async def committed(_: Any, tps: list[TP]) -> dict[TP, int | None]:
        return dict.fromkeys(tps, 51)

    monkeypatch.setattr(faust_agent, "committed", committed)
    app = SimpleNamespace(crashed=False, consumer_generation_id=3)
    agent = object.__new__(GraphAgent)
    agent._app, agent._make_partition = app, make  # type: ignore[assignment]
    agent.partitions, agent._queues, agent._tasks, agent._generations = {}, {}, {}, {}
    here = TP("tenant-log", 0)
    for generation, expected in ((3, 1), (4, 1), (5, 1), (7, 2), (8, 2)):
        app.consumer_generation_id = generation
        assert await agent.start_offset(here) == 70
        assert len(made) == expected
    assert [partition.recovered_with for partition in made] == [50, 50]
    await agent._stop_task(0)
