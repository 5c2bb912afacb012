"""How long a worker takes to have its state back after `kill -9`: Apache Kafka, `tenant-state`, 12 partitions.

    drift bench recovery [--edges N] [--windows N] [--json]
    python -m tests.bench.recovery ...

A worker in a process of its own applies windows in which every edge has traffic, with a checkpoint every 2 s: the state
topic then holds many generations of the same pages. It is killed while it applies the last window. A fresh process,
the same worker, is timed from its start until every partition's state is restored, and until every partition has
applied `tenant-log` to its end. Then the broker compacts, and all is done once more.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.settings import FlowTopic, KafkaSettings, Settings, TopicSettings, WorkerSettings
from tests.bench.graph import LATENESS_MS, RECORD_ROWS, SEED, WINDOW_MS, Feed, make_identities

PARTITIONS = 12
TENANTS_A_PARTITION = 5
CHECKPOINT_MS = 2_000
SESSION_MS = 10_000
"""How long brokers keep the partitions of a dead worker from its successor."""
START_MS = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS
DEADLINE_S = 600.0
LOOK_S = 0.1
HEAP_MB = 512
_MEGA = 1 << 20


def settings_of(bootstrap: str) -> Settings:
    """Return the worker's settings: state in Kafka, checkpoints often."""
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=SESSION_MS, rebalance_timeout_ms=SESSION_MS),
        topics=TopicSettings(partitions=PARTITIONS),
        flows=(FlowTopic(topic="flows"),),
        worker=WorkerSettings(group="recovery", checkpoint_every_ms=CHECKPOINT_MS),
    )


# -- the worker's process ----------------------------------------------------------------------------------------------


async def work(settings: Settings) -> None:
    """Be the worker, without sinks; write a line of JSON about the state of all partitions ten times a second."""
    from streams.app import Worker

    try:
        from streams.graph.chunk_stores import _PartitionReader as reader
    except ImportError:  # an older tree
        reader = None  # type: ignore[assignment, misc]
    read_bytes = 0
    if reader is not None:
        plain = reader.read

        async def counted(self: Any, first: int, last: int) -> Any:
            nonlocal read_bytes
            async for record in plain(self, first, last):
                read_bytes += len(record.value or b"")
                yield record

        reader.read = counted  # type: ignore[method-assign]
    worker = Worker(settings, None)
    starting = asyncio.ensure_future(worker.start())
    while True:
        await asyncio.sleep(LOOK_S)
        if starting.done():
            starting.result()
        if worker.app is not None and worker.app.crashed:
            raise SystemExit(f"the worker stopped: {worker.app.crash_reason}")
        owned = list(worker.graph.partitions.values()) if worker.graph is not None else []
        line = {
            "at_s": time.time(),
            "recovered": sum(partition._recovered for partition in owned),
            "performed": {partition.partition: partition.performed_offset for partition in owned},
            "edges": sum(len(lane.registry) for p in owned for lane in p.machine.lanes.values()),
            "live_bytes": sum(ref.size_bytes for p in owned for ref in live_chunks(p)),
            "stored": {partition.partition: partition._checkpointed_offset for partition in owned},
            "owned": len(owned),
            "checkpoint_ms": max((getattr(p, "checkpoint_ms", None) or 0 for p in owned), default=0),
            "read_bytes": read_bytes,
            "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(line), flush=True)


def live_chunks(partition: Any) -> list[Any]:
    """Return what the partition's last checkpoint consists of."""
    history = partition._checkpoints._last.get(partition.partition)
    return list(history[-1].chunks.values()) if history else []


@dataclass
class Child:
    """A worker's process and the last it said of itself."""

    process: subprocess.Popen[str]
    began_s: float
    said: dict[str, Any]

    async def until(self, condition: Any, what: str) -> float:
        """Read its lines until one meets the condition; return the seconds since its start."""
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(asyncio.to_thread(self.process.stdout.readline), DEADLINE_S)
            if not line:
                raise SystemExit(f"the worker ended before: {what}")
            self.said = json.loads(line)
            if condition(self.said):
                return float(self.said["at_s"]) - self.began_s
            if time.time() - self.began_s > DEADLINE_S:
                raise SystemExit(f"after {DEADLINE_S:g} s still not: {what}")


@contextlib.contextmanager
def started(bootstrap: str, root: Path) -> Iterator[Child]:
    """Run a worker of the source tree ``root``; killed at the end."""
    command = [sys.executable, str(Path(__file__).resolve()), "--in-process", bootstrap]
    began_s = time.time()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    try:
        yield Child(process, began_s, {})
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# -- the log it reads --------------------------------------------------------------------------------------------------


async def fill(settings: Settings, feeds: Sequence[Feed], window: int, share: float = 1.0) -> None:
    """Write one window in which every edge has a row; with all of them, the statement that closes it."""
    from streams.kafka_clients import make_producer

    topic = settings.topics.name("tenant_log")
    start_ms = START_MS + window * WINDOW_MS
    producer = make_producer(settings.kafka)
    await producer.start()
    try:
        under_way = []
        for partition, feed in enumerate(feeds):
            edges = int(len(feed.identities) * share)
            for turn, first in enumerate(range(0, edges, RECORD_ROWS)):
                numbers = np.arange(first, min(edges, first + RECORD_ROWS))
                record = feed.record(turn % PARTITIONS, numbers, start_ms, start_ms + WINDOW_MS)
                under_way.append(await producer.send(topic, record, partition=partition))
            if share == 1.0:
                record = feed.statement(start_ms + WINDOW_MS + LATENESS_MS)
                under_way.append(await producer.send(topic, record, partition=partition))
        await asyncio.gather(*under_way)
    finally:
        await producer.stop()


async def ends_of(settings: Settings, role: str) -> dict[int, int]:
    """Return the end of every partition of one of our topics."""
    from aiokafka import TopicPartition

    from streams.kafka_clients import make_consumer

    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        topic = settings.topics.name(role)
        ends = await consumer.end_offsets([TopicPartition(topic, number) for number in range(PARTITIONS)])
        return {tp.partition: int(end) for tp, end in ends.items()}
    finally:
        await consumer.stop()


def is_through(ends: dict[int, int], step: str = "performed") -> Any:
    """Make the condition that all partitions have applied the log up to these ends; ``stored``: and checkpointed it."""
    return lambda said: all(said[step].get(str(number), -1) >= end - 1 for number, end in ends.items())


# -- the broker's disk -------------------------------------------------------------------------------------------------


def topic_bytes(data: Path, topic: str) -> int:
    """Return the size of a topic's segments."""
    return sum(file.stat().st_size for folder in data.glob(f"{topic}-*") for file in folder.glob("*.log"))


async def compact(settings: Settings, data: Path) -> None:
    """Have the broker compact the state topic now: segments of a second, a tombstone more to close them, then wait."""
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    from streams.kafka_clients import make_admin, make_producer

    topic = settings.topics.name("state")
    admin = make_admin(settings.kafka)
    await admin.start()
    hasty = {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"}
    hasty |= {"cleanup.policy": "compact", "max.message.bytes": "2097152", "delete.retention.ms": "0"}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=hasty)])
    await admin.close()
    await asyncio.sleep(2)
    producer = make_producer(settings.kafka)
    await producer.start()
    for partition in range(PARTITIONS):
        await producer.send_and_wait(topic, None, key=b"nothing@0", partition=partition)
    await producer.stop()
    size, since_s, began_s = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - since_s < 8 and time.monotonic() - began_s < 120:
        await asyncio.sleep(0.5)
        now = topic_bytes(data, topic)
        if now != size:
            size, since_s = now, time.monotonic()


# -- the measurement ---------------------------------------------------------------------------------------------------


async def recover(settings: Settings, root: Path) -> dict[str, float]:
    """Start a fresh worker, time it, and kill it."""
    ends = await ends_of(settings, "tenant_log")
    with started(settings.kafka.bootstrap, root) as child:
        assigned_s = await child.until(lambda said: said["owned"] == PARTITIONS, "all partitions are assigned")
        restored_s = await child.until(lambda said: said["recovered"] == PARTITIONS, "all states are restored")
        said = child.said
        applied_s = await child.until(is_through(ends), "tenant-log is applied to its end")
        return {
            "assigned_s": assigned_s,
            "restored_s": restored_s,
            "applied_s": applied_s,
            "edges": said["edges"],
            "read_bytes": said["read_bytes"],
            "live_bytes": said["live_bytes"],
            "rss_bytes": child.said["rss_bytes"],
        }


async def measure(folder: Path, cache: Path, edges: int, windows: int, root: Path) -> dict[str, float]:
    """Grow the state, kill the worker, and time its return before and after compaction."""
    from deploy.brokers.kafka import KafkaBroker
    from streams.topics import ensure_topics

    rng = np.random.default_rng(SEED)
    each = -(-edges // PARTITIONS)
    feeds = [Feed(make_identities(each, TENANTS_A_PARTITION, rng), rng) for _ in range(PARTITIONS)]
    config = {"log.cleaner.backoff.ms": "1000"}
    with KafkaBroker(folder / "kafka", cache=cache, config=config, heap_mb=HEAP_MB) as broker:
        settings = settings_of(broker.address)
        await ensure_topics(settings)
        topic, data = settings.topics.name("state"), folder / "kafka" / "data"
        with started(broker.address, root) as child:
            longest_ms = 0

            def note(said: dict[str, Any]) -> bool:
                nonlocal longest_ms
                longest_ms = max(longest_ms, said["checkpoint_ms"])
                return True

            for window in range(windows):
                await fill(settings, feeds, window)
                ends = await ends_of(settings, "tenant_log")
                stored = is_through(ends, "stored")
                await child.until(lambda said, met=stored: note(said) and met(said), f"window {window} is stored")
            await fill(settings, feeds, windows, share=0.5)
            ends = {number: end + 3 for number, end in ends.items()}
            await child.until(is_through(ends), "the last window is under way")
            child.process.kill()
        size = topic_bytes(data, topic)
        first = await recover(settings, root)
        grown = topic_bytes(data, topic)
        await compact(settings, data)
        compacted = topic_bytes(data, topic)
        second = await recover(settings, root)
    return {
        "partitions": PARTITIONS,
        "checkpoint_s": longest_ms / 1000,
        "topic_bytes": size,
        **first,
        "topic_bytes_before_compaction": grown,
        "topic_bytes_after_compaction": compacted,
        **{f"compacted_{name}": second[name] for name in ("assigned_s", "restored_s", "applied_s", "read_bytes")},
        "load_average": round(os.getloadavg()[0], 1),
    }


def print_table(result: dict[str, float]) -> None:
    """Print the figures in words."""
    for title, key, unit, scale in (
        ("edges of state", "edges", "", 1),
        ("partitions", "partitions", "", 1),
        (f"kill -9 to all assigned (session {SESSION_MS // 1000} s)", "assigned_s", "s", 1),
        ("kill -9 to all states restored", "restored_s", "s", 1),
        ("kill -9 to all of tenant-log applied", "applied_s", "s", 1),
        ("longest checkpoint of a partition before", "checkpoint_s", "s", 1),
        ("live state, as stored", "live_bytes", "MiB", _MEGA),
        ("state topic on disk", "topic_bytes", "MiB", _MEGA),
        ("bytes of the state topic read", "read_bytes", "MiB", _MEGA),
        ("peak memory of the worker", "rss_bytes", "MiB", _MEGA),
        ("state topic before compaction", "topic_bytes_before_compaction", "MiB", _MEGA),
        ("state topic after compaction", "topic_bytes_after_compaction", "MiB", _MEGA),
        ("  all assigned", "compacted_assigned_s", "s", 1),
        ("  all states restored from it", "compacted_restored_s", "s", 1),
        ("  bytes of it read", "compacted_read_bytes", "MiB", _MEGA),
    ):
        print(f"{title:44} {result[key] / scale:>12,.1f} {unit}".replace(".0 \n", " \n"))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(prog="drift bench recovery", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--edges", type=int, default=1_000_000, help="in all (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="closed before the crash (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="tree of the worker")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    cache = Path(tempfile.gettempdir()) / "drift-kafka-classpath"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = asyncio.run(measure(Path(folder), cache, options.edges, options.windows, options.root.resolve()))
    if not options.json:
        print_table(result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-process"]:
        asyncio.run(work(settings_of(sys.argv[2])))
    else:
        found = main()
        if "--json" in sys.argv:
            print(json.dumps(found))
