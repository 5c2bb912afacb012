"""The graph agent stops the worker rather than go on behind what it could not read."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from schemas.errors import WireFormatError
from streams.batching import Chunk, CorruptBatch
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
