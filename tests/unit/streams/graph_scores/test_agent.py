"""What the agent does while it cannot work: it says so, goes on trying, and a stop does not wait for ever."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.app import Worker
from streams.graph_scores import agent
from streams.graph_scores.agent import GraphScores
from streams.metrics import Metrics


def away() -> Any:
    raise ConfigurationError("ClickHouse at there\ncannot be reached")


async def test_what_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent, "FIRST_BACKOFF_S", 0.0)
    tries = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def connect() -> Any:
        loop.call_soon_threadsafe(tries.release)
        return away()

    scores = GraphScores(Settings(), tmp_path, connect, Metrics())
    scores.start()
    for _ in range(3):
        await tries.acquire()
    assert scores.is_failing
    assert scores.status().reasons == ("graph model: windows are not scored: ClickHouse at there cannot be reached",)
    await scores.stop(10)
    assert not scores.is_cut
    assert "cannot be reached; again in" in caplog.text


async def test_a_stop_does_not_wait_for_a_clickhouse_that_hangs(tmp_path: Path) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def connect() -> Any:
        hangs.set()
        goes_on.wait()
        return away()

    scores = GraphScores(Settings(), tmp_path, connect, Metrics())
    scores.start()
    await asyncio.to_thread(hangs.wait)
    try:
        await scores.stop(0.05)
        assert scores.is_cut
    finally:
        goes_on.set()


async def test_a_stop_before_the_start_and_a_worker_without_models_have_nothing_to_do(tmp_path: Path) -> None:
    await GraphScores(Settings(), tmp_path, away, Metrics()).stop(1)
    worker = Worker(Settings(), away)
    worker._start_scores()
    assert worker.standing.scores is None and worker.standing.graph_models() is None
    await worker.stop()
