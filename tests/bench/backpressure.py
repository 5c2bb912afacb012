"""Producers far faster than the worker: does its memory stay bounded, is the lag told, is everything processed?

    drift bench backpressure [--seconds N] [--share F] [--bootstrap HOST:PORT] [--json]
    python -m tests.bench.backpressure ...

One `drift worker` process (without sinks: ClickHouse inside the process would hide what the pipeline needs) on Apache
Kafka. First a warm-up at full speed: what the worker needs when it keeps up. Then producers write as fast as they can
while the worker is given only a share of its CPU time (stopped and continued ten times a second), so that they are
many times faster. Then the producers end, the brake comes off, and the worker has to get through all of it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deploy.brokers.kafka import KafkaBroker
from schemas.settings import FlowTopic, KafkaSettings, LaneSettings, Settings, TopicSettings, WorkerSettings
from schemas.topics import INTERNAL_AND_PUBLIC
from streams.kafka_clients import make_producer
from streams.topics import ensure_topics
from tests.bench.e2e import flow_of
from tests.bench.ingest import make_edges
from tests.worker_process import WorkerProcess

PARTITIONS = 4
WARM_UP_FLOWS = 400_000
CYCLE_S = 0.1
SAMPLE_S = 0.5
_BATCH = 1_000
_UNDER_WAY = 64
DEADLINE_S = 1_500.0
_ENCODE = msgspec.json.Encoder().encode


def settings_of(bootstrap: str, folder: Path) -> Settings:
    """Return the worker's settings: names of its own, state in a folder."""
    name = f"backpressure-{uuid.uuid4().hex[:8]}"
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=30_000),
        topics=TopicSettings(
            names={topic.role: f"{name}-{topic.default_name}" for topic in INTERNAL_AND_PUBLIC}, partitions=PARTITIONS
        ),
        lanes=(LaneSettings(name="default", window_ms=10_000, lateness_ms=5_000),),
        flows=(FlowTopic(topic=f"{name}-flows"),),
        worker=WorkerSettings(group=name, state_directory=folder / "state", metrics_port=0, lag_every_ms=1_000),
    )


async def produce(settings: Settings, *, count: int | None = None, seconds: float | None = None) -> int:
    """Write flows as fast as one process can, so many or for so long; return how many were acknowledged."""
    producer = make_producer(settings.kafka, max_batch_size=1 << 19)
    await producer.start()
    edges, weights = make_edges()
    chosen = random.Random(5).choices(edges, weights, k=20_000)
    began_s, sent, values, made_s = time.monotonic(), 0, list[bytes](), -1.0
    under_way: list[Awaitable[Any]] = []
    try:
        while sent < count if count is not None else time.monotonic() - began_s < (seconds or 0):
            if time.monotonic() - made_s > 1:  # encoded once a second: the producer must not be what is slow
                made_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
                values = [_ENCODE(flow_of(edge, number, now_ms)) for number, edge in enumerate(chosen)]
            batch = producer.create_batch()
            start = sent % (len(values) - _BATCH)
            for value in values[start : start + _BATCH]:
                batch.append(key=None, value=value, timestamp=None)
            topic = settings.flows[0].topic
            under_way.append(await producer.send_batch(batch, topic, partition=sent // _BATCH % PARTITIONS))
            sent += _BATCH
            if len(under_way) >= _UNDER_WAY:
                await asyncio.gather(*under_way)
                under_way.clear()
        await asyncio.gather(*under_way)
    finally:
        await producer.stop()
    return sent


@contextlib.contextmanager
def slowed(pid: int, share: float) -> Iterator[None]:
    """Give a process only a share of its time."""
    ended = threading.Event()

    def cycle() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            ended.wait((1 - share) * CYCLE_S)
            os.kill(pid, signal.SIGCONT)
            ended.wait(share * CYCLE_S)

    thread = threading.Thread(target=cycle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@dataclass
class Watch:
    """Samples of a worker: memory every half second, lag as its endpoint tells it."""

    worker: WorkerProcess
    rss_mb: list[float] = field(default_factory=list)
    source_lag: list[float] = field(default_factory=list)
    graph_lag: list[float] = field(default_factory=list)

    async def sample(self) -> None:
        """Sample until cancelled. A worker that is stopped most of the time answers late: in a thread."""
        while True:
            self.rss_mb.append(rss_mb(self.worker.running.pid))
            for lags, name in ((self.source_lag, "drift_source_lag"), (self.graph_lag, "drift_graph_lag")):
                lags.append(await asyncio.to_thread(self.worker.metric, name))
            await asyncio.sleep(SAMPLE_S)


@contextlib.asynccontextmanager
async def watching(worker: WorkerProcess) -> Any:
    """Sample a worker meanwhile."""
    watch = Watch(worker)
    task = asyncio.create_task(watch.sample())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until_folded(worker: WorkerProcess, total: int) -> None:
    """Wait until so many rows have come to the graph side."""
    async with asyncio.timeout(DEADLINE_S):
        while await asyncio.to_thread(worker.metric, "drift_rows_folded_total") < total:
            if worker.running.poll() is not None:
                raise SystemExit(f"the worker ended: {worker.said()[-2000:]}")
            await asyncio.sleep(0.2)


async def _measure(bootstrap: str, folder: Path, seconds: float, share: float) -> dict[str, float]:
    settings = settings_of(bootstrap, folder)
    await ensure_topics(settings)
    with WorkerProcess(settings, folder / "worker", "--no-sinks") as worker:
        await asyncio.to_thread(worker.until_said, "drift worker: ready")
        async with watching(worker) as before:
            produced = await produce(settings, count=WARM_UP_FLOWS)
            await until_folded(worker, produced)
        with slowed(worker.running.pid, share):
            async with watching(worker) as during:
                began_s = time.monotonic()
                flood = await asyncio.to_thread(lambda: asyncio.run(produce(settings, seconds=seconds)))
                flooded_s = time.monotonic() - began_s
                taken = await asyncio.to_thread(worker.metric, "drift_ingest_flows_total") - produced
        produced += flood
        began_s = time.monotonic()
        async with watching(worker) as after:
            await until_folded(worker, produced)
        drained_s = time.monotonic() - began_s
        outcomes = {
            outcome: await asyncio.to_thread(worker.metric, "drift_rows_folded_total", outcome=outcome)
            for outcome in ("on_time", "late", "skewed", "repeated", "dead")
        }
        dead = worker.metric("drift_dead_letters_total")
        worker.terminate()
        code = await asyncio.to_thread(worker.wait, 60)
    counted = outcomes["on_time"] + outcomes["late"] + outcomes["skewed"]
    if counted != produced or dead or outcomes["repeated"] or code:
        raise SystemExit(f"{produced} flows produced, counted {outcomes}, {dead} dead letters, exit code {code}")
    return {
        "flows": produced,
        "flood_seconds": round(flooded_s, 1),
        "produced_per_s": round(flood / flooded_s),
        "taken_per_s": round(taken / flooded_s),
        "times_faster": round(flood / max(taken, 1), 1),
        "rss_before_mb": round(max(before.rss_mb)),
        "rss_during_mb": round(max(during.rss_mb)),
        "rss_after_mb": round(max(after.rss_mb)),
        "max_source_lag": max(during.source_lag + after.source_lag),
        "max_graph_lag": max(during.graph_lag + after.graph_lag),
        "drained_seconds": round(drained_s, 1),
        "drained_per_s": round((flood - taken) / drained_s),
        "late_flows": outcomes["late"],
        "lost_or_doubled": counted - produced,
        "load_average": round(os.getloadavg()[0], 1),
    }


def run(seconds: float = 120.0, share: float = 0.1, bootstrap: str | None = None) -> dict[str, float]:
    """Measure on a broker that is there, or on an Apache Kafka of our own; ends with an error unless totals are equal.

    Args:
        seconds: how long the producers are faster. share: of its CPU time that the worker gets meanwhile.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        if bootstrap is None:
            cache = Path(".pytest_cache/d/kafka").absolute()
            broker = KafkaBroker(folder / "kafka", cache=cache if cache.is_dir() else folder)
            bootstrap = stack.enter_context(broker).address
        return asyncio.run(_measure(bootstrap, folder, seconds, share))


def print_table(result: dict[str, float]) -> None:
    """Print the figures in words."""
    for title, key, unit in (
        ("flows in all", "flows", ""),
        ("producers", "produced_per_s", "flows/s"),
        ("the slowed worker took", "taken_per_s", "flows/s"),
        ("producers were faster", "times_faster", "times"),
        ("peak memory when it keeps up", "rss_before_mb", "MiB"),
        ("peak memory while producers are faster", "rss_during_mb", "MiB"),
        ("peak memory while it catches up", "rss_after_mb", "MiB"),
        ("largest lag of sources it told", "max_source_lag", "messages"),
        ("largest lag of the graph side it told", "max_graph_lag", "records"),
        ("caught up within", "drained_seconds", "s"),
        ("catching up", "drained_per_s", "flows/s"),
        ("flows lost or doubled", "lost_or_doubled", ""),
    ):
        print(f"{title:44} {result[key]:>12,.1f} {unit}".replace(".0 ", "   "))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(prog="drift bench backpressure", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of flood (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.1, help="of CPU time for the worker (default: %(default)s)")
    parser.add_argument("--bootstrap", help="a broker that is there; default: an own Apache Kafka")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.seconds, options.share, options.bootstrap)
    if not options.json:
        print_table(result)
    return result


if __name__ == "__main__":
    found = main()
    if "--json" in sys.argv:
        print(json.dumps(found))
