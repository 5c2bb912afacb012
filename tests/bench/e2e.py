"""The whole pipeline's maximum, and the delay of a new edge at half of it: `flows` to `drift-events` and ClickHouse.

    drift bench e2e [--flows N] [--bootstrap HOST:PORT] [--json]
    python -m tests.bench.e2e ...

One worker with everything on (ingest, graph, sinks into chdb) in its own process, on a broker beside it. Maximum: a
backlog of JSON flows, one a message, is read until all are folded and every closed window is in ClickHouse; the
producer has ended by then. The same flows once more as Arrow batches. Delay: a producer in a process of its own sends
JSON at half the maximum, stamped with the clock, and now and then the first flow of a new edge; from handing that flow
to the producer until a consumer of `drift-events` has the event.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec
from pydantic import SecretStr

from schemas.settings import (
    ClickHouseSettings,
    FlowTopic,
    KafkaSettings,
    LaneSettings,
    Settings,
    TopicSettings,
    WorkerSettings,
    load_settings,
)
from schemas.topics import INTERNAL_AND_PUBLIC
from tests.bench.ingest import ARROW_ROWS, arrow_message, make_edges

PARTITIONS = 4
WINDOW_MS, LATENESS_MS, LEARNING_WINDOWS = 10_000, 2_000, 2
BACKLOG_MS = 40_000
"""Event time that a backlog covers: 4 windows of 10,000 edges close while it is read."""
PACED_S, WARM_UP_S = 35.0, 5.0
NEW_EDGES_PER_S = 10
DEADLINE_S = 150.0
_BATCH = 500
_ENCODE = msgspec.json.Encoder().encode


# -- the flows ---------------------------------------------------------------------------------------------------------


def flow_of(edge: tuple[str, str, str, int], number: int, time_ms: int) -> dict[str, Any]:
    """Return one flow as a producer would describe it."""
    tenant, src, dst, port = edge
    return {
        "time_ms": time_ms,
        "tenant": tenant,
        "src": src,
        "dst": dst,
        "port": port,
        "protocol": "tcp",
        "bytes_out": number * 7919 % 100_003,
        "bytes_in": number * 104_729 % 1_000_003,
        "latency_us": 200 + number * 31 % 20_011,
        "errors": int(number % 97 == 0),
        "reporter": "client",
        "host": f"node-{number % 40}",
    }


def unknown_pairs(count: int) -> list[tuple[str, str, str, int]]:
    """Return edges of known services that no flow has had; a source has few of them, so that none is a burst."""
    edges, weights = make_edges()
    usual = sorted(zip(weights, edges, strict=True), reverse=True)[: len(edges) // 2]
    by_tenant: dict[str, tuple[list[str], list[str]]] = {}
    for _, (tenant, src, dst, _) in usual:
        sources, targets = by_tenant.setdefault(tenant, ([], []))
        sources.append(src)
        targets.append(dst)
    taken = {edge[:3] for edge in edges}
    rng = random.Random(3)
    found: dict[tuple[str, str, str], tuple[str, str, str, int]] = {}
    while len(found) < count:
        tenant = rng.choice(sorted(by_tenant))
        pair = (tenant, rng.choice(by_tenant[tenant][0]), rng.choice(by_tenant[tenant][1]))
        if pair not in taken and pair[1] != pair[2]:
            found[pair] = (*pair, 8080)
    return list(found.values())


# -- processes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a run lives. ``folder``: ClickHouse. ``name``: prefix of its topics."""

    bootstrap: str
    folder: str
    name: str

    def settings(self) -> Settings:
        """Return the worker's settings."""
        lane = LaneSettings(
            name="default",
            window_ms=WINDOW_MS,
            lateness_ms=LATENESS_MS,
            detection={"learning_windows": LEARNING_WINDOWS},
        )
        names = {topic.role: f"{self.name}-{topic.default_name}" for topic in INTERNAL_AND_PUBLIC}
        kafka = KafkaSettings(bootstrap=self.bootstrap, session_timeout_ms=10_000, rebalance_timeout_ms=6_000)
        return load_settings(
            None,
            kafka=kafka,
            topics=TopicSettings(names=names, partitions=PARTITIONS),
            lanes=(lane,),
            flows=(FlowTopic(topic=f"{self.name}-flows"),),
            worker=WorkerSettings(group=self.name, state_directory=Path(self.folder) / "state"),
            clickhouse=ClickHouseSettings(dsn=SecretStr(f"chdb://{self.folder}/clickhouse")),
        )


@contextlib.contextmanager
def process(role: str, place: Place, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a part in a process of its own; killed at the end if it has not ended."""
    command = [sys.executable, "-m", "tests.bench.e2e", "--in-process", role]
    child = subprocess.Popen(
        [*command, place.bootstrap, place.folder, place.name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


async def line_of(stream: IO[str] | None) -> dict[str, Any]:
    """Wait for the next line of JSON."""
    assert stream is not None
    async with asyncio.timeout(DEADLINE_S):
        line = await asyncio.to_thread(stream.readline)
    if not line:
        raise SystemExit("a process of the measurement ended early")
    found: dict[str, Any] = json.loads(line)
    return found


def say(**values: float) -> None:
    """Write a line of JSON to whoever started this process."""
    print(json.dumps(values), flush=True)


async def fill(settings: Settings, count: int, as_arrow: bool) -> None:
    """Write a backlog whose event time ends now."""
    from streams.kafka_clients import make_producer
    from streams.topics import ensure_topics

    await ensure_topics(settings)
    producer = make_producer(settings.kafka, max_batch_size=1 << 19)
    await producer.start()
    edges, weights = make_edges()
    rng = random.Random(5)
    start_ms = time.time_ns() // 1_000_000 - BACKLOG_MS
    topic = settings.flows[0].topic
    under_way: list[Awaitable[Any]] = []
    for first in range(0, count, ARROW_ROWS):
        size = min(ARROW_ROWS, count - first)
        chosen = rng.choices(edges, weights, k=size)
        rows = [flow_of(e, n, start_ms + n * BACKLOG_MS // count) for n, e in enumerate(chosen, first)]
        partition = first // ARROW_ROWS % PARTITIONS
        if as_arrow:
            under_way.append(await producer.send(topic, arrow_message(rows), partition=partition))
        else:
            batch = producer.create_batch()
            for row in rows:
                batch.append(key=None, value=_ENCODE(row), timestamp=None)
            under_way.append(await producer.send_batch(batch, topic, partition=partition))
        if len(under_way) > 100:
            await asyncio.gather(*under_way)
            under_way.clear()
    await asyncio.gather(*under_way)
    await producer.stop()


async def work(settings: Settings, backlog: int) -> None:
    """Be the worker: say how long the backlog took, then go on until a line comes in."""
    from streams.app import Worker
    from streams.clickhouse import connect
    from streams.ingest.faust_agent import tune_garbage_collection
    from streams.migrate import migrate

    clickhouse = settings.clickhouse
    migrate(connect(clickhouse), clickhouse.database, clickhouse.retention_days)
    worker = Worker(settings, partial(connect, clickhouse))
    stop = asyncio.Event()

    def total(name: str, **labels: str) -> float:
        samples = (sample for metric in worker.metrics.registry.collect() for sample in metric.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def until(condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)

    await worker.start()
    tune_garbage_collection()
    running = asyncio.ensure_future(worker.run_until(stop))
    await until(lambda: total("drift_ingest_flows_total") > 0)
    # The first chunk is already through: what it held does not count.
    began_s, began_flows, cpu_s = time.perf_counter(), total("drift_rows_folded_total"), time.process_time()
    await until(lambda: total("drift_rows_folded_total") >= backlog)
    await until(
        lambda: total("drift_clickhouse_rows_total", table="windows") >= total("drift_windows_closed_total") > 0
    )
    say(
        seconds=time.perf_counter() - began_s,
        flows=backlog - began_flows,
        cpu_s=time.process_time() - cpu_s,
        windows=total("drift_windows_closed_total"),
        late=total("drift_rows_folded_total", outcome="late"),
    )
    await asyncio.to_thread(sys.stdin.readline)
    if running.done():
        running.result()
    say(
        rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        flows=total("drift_rows_folded_total") - backlog,
        late=total("drift_rows_folded_total", outcome="late"),
        dead=total("drift_dead_letters_total"),
    )
    stop.set()
    await running
    await worker.stop()


async def pace(settings: Settings, per_s: int, seconds: float) -> None:
    """Be the producer: so many flows a second, stamped with the clock; say when each new edge was handed over."""
    from streams.kafka_clients import make_producer

    producer = make_producer(settings.kafka)
    await producer.start()
    edges, weights = make_edges()
    rng = random.Random(9)
    chosen = rng.choices(edges, weights, k=200_000)
    news = iter(unknown_pairs(int(seconds * NEW_EDGES_PER_S) + 1))
    topic = settings.flows[0].topic
    sent = news_sent = 0
    told: list[tuple[float, tuple[str, str, str, int]]] = []
    began_s = time.time()
    while (passed_s := time.time() - began_s) < seconds:
        due = int(passed_s * per_s)
        now_ms = time.time_ns() // 1_000_000
        while sent < due:
            partition = sent // _BATCH % PARTITIONS
            batch = producer.create_batch()
            for number in range(sent, min(due, sent + _BATCH)):
                batch.append(key=None, value=_ENCODE(flow_of(chosen[number % 200_000], number, now_ms)), timestamp=None)
            sent = min(due, sent + _BATCH)
            await producer.send_batch(batch, topic, partition=partition)
        if news_sent < passed_s * NEW_EDGES_PER_S:
            edge = next(news)
            told.append((time.time(), edge))
            flow = flow_of(edge, news_sent, int(told[-1][0] * 1000))
            await producer.send(topic, _ENCODE(flow), partition=news_sent % PARTITIONS)
            news_sent += 1
        await asyncio.sleep(0.005)
    await producer.stop()
    print(json.dumps({"sent": sent, "seconds": time.time() - began_s, "told": told}), flush=True)


# -- measuring ---------------------------------------------------------------------------------------------------------


async def arrivals(settings: Settings, found: dict[tuple[str, str, str], float]) -> None:
    """Note when the first event of each new edge was read from `drift-events`, until cancelled."""
    from aiokafka import TopicPartition

    from schemas.drift import DriftKind
    from schemas.ocsf import decode_event
    from streams.kafka_clients import make_consumer

    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        topic = settings.topics.name("drift_events")
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        while True:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                at_s = time.time()
                for record in records:
                    event = decode_event(record.value)
                    if event.kind is DriftKind.NEW_EDGE:
                        found.setdefault((event.tenant, event.src, event.dst), at_s)
    finally:
        await consumer.stop()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _measure(bootstrap: str, folder: Path, flows: int, paced_s: float) -> dict[str, float]:
    result: dict[str, float] = {}
    arrow = Place(bootstrap, str(folder / "arrow"), f"arrow-{uuid.uuid4().hex[:8]}")
    await fill(arrow.settings(), flows, as_arrow=True)
    with process("worker", arrow, str(flows)) as worker:
        drained = await line_of(worker.stdout)
        result["arrow_max_flows_per_s"] = round(drained["flows"] / drained["seconds"])
        result["arrow_cpu_us_per_flow"] = round(drained["cpu_s"] / drained["flows"] * 1e6, 2)
    place = Place(bootstrap, str(folder / "json"), f"json-{uuid.uuid4().hex[:8]}")
    settings = place.settings()
    await fill(settings, flows, as_arrow=False)
    with process("worker", place, str(flows)) as worker:
        drained = await line_of(worker.stdout)
        maximum = drained["flows"] / drained["seconds"]
        result |= {
            "max_flows_per_s": round(maximum),
            "cpu_us_per_flow": round(drained["cpu_s"] / drained["flows"] * 1e6, 2),
            "windows": drained["windows"],
        }
        arrived: dict[tuple[str, str, str], float] = {}
        listening = asyncio.create_task(arrivals(settings, arrived))
        with process("producer", place, str(round(maximum / 2)), str(paced_s)) as producer:
            told = await line_of(producer.stdout)
        wanted = {tuple(edge[:3]): at_s for at_s, edge in told["told"]}
        end_s = time.monotonic() + 20
        while wanted.keys() - arrived.keys() and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        listening.cancel()
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        ended = await line_of(worker.stdout)
        worker.wait(30)
    first_s = min(wanted.values()) + WARM_UP_S
    delays = [arrived[edge] - at_s for edge, at_s in wanted.items() if edge in arrived and at_s >= first_s]
    missing = len(wanted.keys() - arrived.keys())
    if missing or ended["dead"]:
        raise SystemExit(f"{missing} new edges were not told, {ended['dead']:.0f} dead letters: this is no measurement")
    return result | {
        "paced_flows_per_s": round(told["sent"] / told["seconds"]),
        "p50_ms": round(quantile(delays, 0.50) * 1000),
        "p99_ms": round(quantile(delays, 0.99) * 1000),
        "max_ms": round(max(delays) * 1000),
        "new_edges": len(delays),
        "late_flows": ended["late"],
        "rss_mb": round(ended["rss_mb"]),
        "load_average": round(os.getloadavg()[0], 1),
    }


def run(flows: int = 1_000_000, paced_s: float = PACED_S, bootstrap: str | None = None) -> dict[str, float]:
    """Measure on a broker that is there, or on a Tansu of our own.

    Returns:
        ``max_flows_per_s`` (JSON) and ``arrow_max_flows_per_s``, ``p50_ms`` and ``p99_ms`` of ``new_edges`` at half the
        maximum, ``rss_mb`` (the worker's peak), and what helps to read them.
    """
    from deploy.brokers.tansu import TansuBroker

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        if bootstrap is None:
            bootstrap = stack.enter_context(TansuBroker(folder / "broker")).address
        return asyncio.run(_measure(bootstrap, folder, flows, paced_s))


def print_table(result: dict[str, float]) -> None:
    """Print the figures in words."""
    for title, key, unit in (
        ("maximum, JSON one a message", "max_flows_per_s", "flows/s"),
        (f"maximum, Arrow batches of {ARROW_ROWS:,} rows", "arrow_max_flows_per_s", "flows/s"),
        ("half the maximum, as sent", "paced_flows_per_s", "flows/s"),
        ("new edge, produce to event, median", "p50_ms", "ms"),
        ("new edge, produce to event, 99 %", "p99_ms", "ms"),
        ("new edges measured", "new_edges", ""),
        ("peak memory of the worker", "rss_mb", "MiB"),
    ):
        print(f"{title:44} {result[key]:>10,.0f} {unit}")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(prog="drift bench e2e", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flows", type=int, default=1_000_000, help="backlog of each maximum (default: %(default)s)")
    parser.add_argument("--bootstrap", help="a broker that is there; default: an own Tansu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = run(options.flows, bootstrap=options.bootstrap)
    if not options.json:
        print_table(result)
    return result


def _in_process(role: str, *values: str) -> None:
    settings = Place(*values[:3]).settings()
    if role == "worker":
        asyncio.run(work(settings, int(values[3])))
    else:
        asyncio.run(pace(settings, int(values[3]), float(values[4])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-process"]:
        _in_process(*sys.argv[2:])
    else:
        found = main()
        if "--json" in sys.argv:
            print(json.dumps(found))
