"""A live lane: windows close although input stops, what is new is told before its window closes, what stops is told."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.settings import LaneSettings, Settings
from streams.kafka_clients import make_producer
from tests.builders_clickhouse import ClickHouse
from tests.e2e.pipeline import Topics, following, running, send_all
from tests.e2e.traffic import as_line

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

MakeSettings = Callable[..., Settings]
EVERY_S = 0.1


def live_settings(
    settings_for: MakeSettings, bootstrap: str, clickhouse: ClickHouse, lane: LaneSettings, **changes: Any
) -> Settings:
    """Return settings of a worker that states and checkpoints often."""
    settings = settings_for(bootstrap, clickhouse=clickhouse.settings, lanes=(lane,), **changes)
    worker = settings.worker.model_copy(update={"statement_every_ms": 100, "checkpoint_every_ms": 1_000})
    return settings.model_copy(update={"worker": worker})


def now_ms() -> int:
    """Return what a producer would write into ``time_ms``."""
    return time.time_ns() // 1_000_000


class Producer:
    """Sends one flow of each edge several times a second, stamped with the clock, until the edge is stopped."""

    def __init__(self, settings: Settings, *edges: tuple[str, str]) -> None:
        self.settings = settings
        self.edges = set(edges)
        self.sent_ms: dict[tuple[str, str], int] = {}

    def stop(self, *edge: str) -> int:
        """Send no more of an edge; return the time of its last flow."""
        self.edges.discard((edge[0], edge[1]))
        return self.sent_ms[edge[0], edge[1]]

    async def run(self) -> None:
        """Send until cancelled."""
        producer = make_producer(self.settings.kafka)
        await producer.start()
        try:
            turn = 0
            while True:
                for src, dst in sorted(self.edges):
                    turn += 1
                    at_ms = self.sent_ms[src, dst] = now_ms()
                    line = as_line(at_ms, src, dst)
                    await producer.send(
                        self.settings.flows[0].topic, line, partition=turn % self.settings.topics.partitions
                    )
                await asyncio.sleep(EVERY_S)
        finally:
            await producer.stop()


def is_removed(topics: Topics, src: str, dst: str, last_ms: int) -> DriftEvent | None:
    """Return the event that says that an edge is gone, by a silence after its last flow.

    Where this process stood still for some windows, the edge was silent before, was told, and came back.
    """
    found = (
        event
        for event in topics.results.events
        if (event.kind, event.src, event.dst, event.activity) == (DriftKind.REMOVED_EDGE, src, dst, Activity.CREATE)
        and event.time_ms > last_ms
    )
    return next(found, None)


async def test_windows_close_without_input_and_edges_that_stop_are_removed(
    kafka_bootstrap: str, settings_for: MakeSettings, clickhouse: ClickHouse
) -> None:
    detection = {
        "learning_windows": 3,
        "min_history": 3,
        "removed_after_silences": 2,
        "removed_min_windows": 2,
    }
    lane = LaneSettings(name="default", window_ms=2_000, lateness_ms=500, idle_ms=500, detection=detection)
    settings = live_settings(settings_for, kafka_bootstrap, clickhouse, lane)
    producer = Producer(settings, ("web", "cart"), ("web", "pay"))
    async with following(settings) as topics, running(settings) as worker:
        task = asyncio.create_task(producer.run())
        try:
            await worker.until(lambda: len(topics.results.markers) >= 5, "five windows closed")
            last_ms = producer.stop("web", "pay")
            await worker.until(lambda: is_removed(topics, "web", "pay", last_ms), "the edge that stopped is removed")
            last_sent_ms = producer.stop("web", "cart")
            # From here on nothing is sent at all: the lane's clock is the worker's, as the log quotes it.
            await worker.until(
                lambda: is_removed(topics, "web", "cart", last_sent_ms), "the last edge is removed in silence"
            )
            last_index = last_sent_ms // lane.window_ms
            await worker.until(
                lambda: any(start >= (last_index - 1) * lane.window_ms for _, _, _, start, _ in topics.results.markers),
                "its windows closed",
            )
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_new_edge_is_told_before_its_window_closes(
    kafka_bootstrap: str, settings_for: MakeSettings, clickhouse: ClickHouse
) -> None:
    # The lateness keeps the window open for a minute after its end, however slow this machine is.
    lane = LaneSettings(
        name="default", window_ms=60_000, lateness_ms=60_000, idle_ms=500, detection={"learning_windows": 3}
    )
    settings = live_settings(settings_for, kafka_bootstrap, clickhouse, lane)
    topic = settings.flows[0].topic
    async with following(settings) as topics:
        began_ms = now_ms()
        usual = [("web", "cart"), ("cart", "db")]
        past = [(0, as_line(began_ms - minute * 60_000, src, dst)) for minute in range(9, 2, -1) for src, dst in usual]
        await send_all(settings, topic, past)
        async with running(settings) as worker:
            await worker.until(lambda: len(topics.results.markers) >= 4, "the tenant has learned")
            assert topics.results.events == []
            sent_ms = now_ms()
            await send_all(settings, topic, [(1, as_line(sent_ms, "web", "db")), (0, as_line(sent_ms, "web", "cart"))])
            await worker.until(lambda: topics.results.events, "the new edge is told")
            closed = {start for _, _, _, start, _ in topics.results.markers}
            event = topics.results.events[0]
            assert event.is_early
            assert (event.kind, event.src, event.dst) == (DriftKind.NEW_EDGE, "web", "db")
            assert event.window_start_ms == sent_ms // lane.window_ms * lane.window_ms
            assert event.window_start_ms not in closed
            assert event.time_ms == sent_ms
