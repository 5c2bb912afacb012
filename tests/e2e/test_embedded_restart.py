"""`drift run` stopped and started on the same folder: what was learned is known, what was stored is there.

The broker starts empty each time, so every start is a new incarnation of the log.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from aiokafka import TopicPartition

from deploy.brokers.process import last_lines
from deploy.sql_console import ask_running
from schemas.drift import Activity, DriftEvent, DriftKind
from schemas.ids import partition_of
from schemas.ocsf import decode_event
from schemas.settings import KafkaSettings
from streams.graph.manifests import read_manifest
from streams.kafka_clients import make_consumer, make_producer
from tests.e2e.pipeline import GRACE_MS, until
from tests.e2e.traffic import as_line

pytestmark = [pytest.mark.kafka, pytest.mark.e2e, pytest.mark.timeout(3600)]

TENANT, PARTITIONS, WINDOW_MS = "acme", 4, 2_000
USUAL = (("web", "cart"), ("cart", "db"), ("web", "pay"))
EVERY_S = 0.1
DEADLINE_S = 600.0
STRUCTURAL = {DriftKind.NEW_EDGE, DriftKind.NEW_SERVICE, DriftKind.NEW_PORT}
_ADDRESS = re.compile(r"^Kafka +(\S+:\d+)\n", re.MULTILINE)


def now_ms() -> int:
    """Return what a producer would write into ``time_ms``."""
    return time.time_ns() // 1_000_000


@dataclass
class Instance:
    """A running `drift run` and what it has published so far."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    kafka: KafkaSettings
    events: list[DriftEvent]
    edges: set[tuple[str, str]]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Poll until the condition holds; an instance that ended says why."""

        def met() -> object:
            assert self.process.poll() is None, f"drift run ended before {what}: {last_lines(self.log)}"
            for task in self.tasks:
                if task.done():  # the one that sends or the one that follows: without it we would wait in vain
                    task.result()
            return condition()

        await until(met, what, DEADLINE_S)

    async def sql(self, query: str) -> str:
        """Ask the instance what `drift sql` asks it, without a process for each question."""
        return (await ask_running(self.folder, query, "TSV")).strip()

    async def stored_windows(self) -> set[str]:
        """Return what ClickHouse holds: one line for each edge and closed window."""
        query = f"SELECT window_start, src, dst, flows FROM drift.edges_1m FINAL WHERE tenant = '{TENANT}' ORDER BY ALL"
        return set((await self.sql(query)).splitlines())

    async def stored_events(self) -> set[str]:
        """Return the ids of the events in ClickHouse."""
        return set((await self.sql("SELECT event_id FROM drift.drift_events FINAL")).splitlines())

    def checkpoint_ms(self) -> float:
        """Return when the tenant's partition was last checkpointed (Unix time); 0 if never."""
        folder = self.folder / "state" / f"partition-{partition_of(TENANT, PARTITIONS)}"
        times = [0.0]
        for path in folder.glob("manifest@*") if folder.is_dir() else ():
            if path.suffix == ".tmp":
                continue  # not there yet: a kill now would leave the one before as the last
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime * 1000)
        return max(times)

    async def until_checkpointed(self) -> None:
        """Wait for a checkpoint made after now: it holds all that was published by now, as no other one must."""
        now = now_ms()
        await self.until(lambda: self.checkpoint_ms() > now, "what was published is checkpointed")

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, DEADLINE_S)


def created(events: list[DriftEvent], *kinds: DriftKind) -> set[tuple[str, str]]:
    """Return the edges that findings of these kinds were created for."""
    return {(e.src, e.dst) for e in events if e.activity is Activity.CREATE and e.kind in kinds}


@asynccontextmanager
async def drift_run(folder: Path, log: Path, edges: set[tuple[str, str]]) -> AsyncIterator[Instance]:
    """Start `drift run` on the folder, send a flow of each edge ten times a second, and follow what it publishes."""
    config = log.with_suffix(".yaml")
    detection = {"learning_windows": 3}
    lane = {"name": "default", "window_ms": WINDOW_MS, "lateness_ms": 500, "idle_ms": 500, "detection": detection}
    worker = {"statement_every_ms": 100, "checkpoint_every_ms": 500, "grace_ms": GRACE_MS}
    config.write_text(yaml.safe_dump({"lanes": [lane], "worker": worker}), encoding="utf-8")
    command = [sys.executable, "-m", "deploy.cli", "--config", str(config), "run", "--no-sample"]
    command += ["--data", str(folder), "--api-port", "0", "--kafka-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    tasks: list[asyncio.Task[None]] = []
    try:

        def address() -> re.Match[str] | None:
            assert process.poll() is None, f"drift run did not start: {last_lines(log)}"
            return _ADDRESS.search(log.read_text(encoding="utf-8", errors="replace"))

        await until(address, "drift run is up", DEADLINE_S)
        found = address()
        assert found is not None
        instance = Instance(process, folder, log, KafkaSettings(bootstrap=found.group(1)), [], edges)
        tasks = instance.tasks = [asyncio.create_task(_follow(instance)), asyncio.create_task(_send(instance))]
        yield instance
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        process.kill()
        process.wait()


async def _send(instance: Instance) -> None:
    producer = make_producer(instance.kafka)
    await producer.start()
    try:
        turn = 0
        while True:
            for src, dst in sorted(instance.edges):
                turn += 1
                await producer.send("flows", as_line(now_ms(), src, dst), partition=turn % PARTITIONS)
            await asyncio.sleep(EVERY_S)
    finally:
        # The broker may have gone: without this, stop() would wait 40 s for messages that nobody will take.
        producer._sender.sender_task.cancel()
        await producer.stop()


async def _follow(instance: Instance) -> None:
    consumer = make_consumer(instance.kafka)
    await consumer.start()
    try:
        consumer.assign([TopicPartition("drift-events", number) for number in range(PARTITIONS)])
        while True:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                instance.events += [decode_event(record.value) for record in records]
    finally:
        await consumer.stop()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_what_was_learned_survives_a_stop_and_a_start(how: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with drift_run(folder, tmp_path / "first.log", set(USUAL)) as first:
        await first.until(lambda: _at_least(first, 5), "five windows are stored")
        assert not created(first.events, *STRUCTURAL)
        first.edges.add(("web", "db"))
        await first.until(lambda: ("web", "db") in created(first.events, *STRUCTURAL), "the new edge is told")
        await first.until(lambda: _is_closed(first, "web", "db"), "its window is stored")
        windows, stored = await first.stored_windows(), await first.stored_events()
        first_events = list(first.events)
        # After all that is compared below: a window closed since the last checkpoint is open in it, and the next start
        # closes it as incomplete, under the same identity.
        await first.until_checkpointed()
        code = await first.end(how)
        assert code == (0 if how is signal.SIGINT else -signal.SIGKILL), last_lines(first.log)

    async with drift_run(folder, tmp_path / "second.log", {*USUAL, ("web", "db")}) as second:
        began_ms = now_ms()
        await second.until(lambda: _closed_since(second, began_ms), "windows of the second run are stored")
        assert not created(second.events, *STRUCTURAL), "known edges were told as new"
        second.edges.add(("cart", "pay"))
        await second.until(lambda: ("cart", "pay") in created(second.events, *STRUCTURAL), "the new edge is told")
        assert created(second.events, *STRUCTURAL) == {("cart", "pay")}
        assert windows <= await second.stored_windows()
        assert stored <= await second.stored_events()
        before, after = ({event.event_id for event in events} for events in (first_events, second.events))
        assert before.isdisjoint(after)
        # The checkpoints of the log before this one are no longer needed.
        await second.until(lambda: set(epochs_of(folder)) == {1}, "the older checkpoints are gone")
        assert await second.end(signal.SIGINT) == 0, last_lines(second.log)
    assert set(epochs_of(folder)) == {1}


async def _at_least(instance: Instance, windows: int) -> bool:
    query = f"SELECT uniqExact(window_start) FROM drift.edges_1m FINAL WHERE tenant = '{TENANT}'"
    return int(await instance.sql(query)) >= windows


async def _is_closed(instance: Instance, src: str, dst: str) -> bool:
    query = f"SELECT count() FROM drift.edges_1m FINAL WHERE src = '{src}' AND dst = '{dst}'"
    return int(await instance.sql(query)) > 0


async def _closed_since(instance: Instance, since_ms: int) -> bool:
    query = "SELECT uniqExact(window_start) FROM drift.edges_1m FINAL WHERE toUnixTimestamp64Milli(window_start) >= "
    return int(await instance.sql(f"{query}{since_ms}")) >= 2


def epochs_of(folder: Path) -> list[int]:
    """Return the epochs of the tenant's checkpoints that a folder holds."""
    place = folder / "state" / f"partition-{partition_of(TENANT, PARTITIONS)}"
    epochs = []
    for path in place.glob("manifest@*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            if path.suffix != ".tmp":
                epochs.append(read_manifest(path.read_bytes()).epoch)
    return epochs
