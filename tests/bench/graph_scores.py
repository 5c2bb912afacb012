"""The graph model on the stream: closed windows from a real broker to rows in ClickHouse, by the worker's own agent.

    drift bench graph-scores [--nodes N] [--edges N] [--windows N] [--bootstrap HOST:PORT] [--json]
    python -m tests.bench.graph_scores ...

Another process writes windows of one tenant to `graph-windows`; this one scores them into an embedded ClickHouse, as a
worker would beside detection: with at most a quarter of a core. Without --bootstrap on Tansu. Time on the processor is
that of all threads; memory is what the process holds beyond what it held before the first window. How late a sleep of
10 ms ends in the event loop, idle and while windows are scored, says what agents in the same process would feel.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from deploy.brokers.tansu import TansuBroker
from models.drift.baseline import WARM_UP
from schemas.graph import MEASURE_INDEX, MEASURES, ClosedWindow, EdgeTable, chunk_window, encode_chunk
from schemas.settings import ClickHouseSettings, GraphModelSettings, KafkaSettings, Settings, TopicSettings
from streams.clickhouse import connect
from streams.graph_scores.agent import GraphScores
from streams.kafka_clients import make_producer
from streams.metrics import Metrics
from streams.migrate import migrate
from streams.topics import ensure_topics
from tests.graph_scores import put_model

START_MS = 1_700_002_800_000
WINDOW_MS = 60_000
SEED = 1
DEADLINE_S = 600.0
NAP_S, IDLE_S = 0.01, 10.0


def windows_of(nodes: int, edges: int, count: int) -> Iterator[ClosedWindow]:
    """Yield windows of the same edges, whose calls, bytes and latencies vary."""
    generator = np.random.default_rng(SEED)
    pairs = np.unique(generator.integers(nodes, size=(edges * 21 // 20, 2)), axis=0)[:edges]
    src, dst = ([f"namespace/service-{number:05}" for number in pairs[:, end].tolist()] for end in (0, 1))
    none = np.zeros(0, dtype=np.int64)
    for number in range(count):
        calls = generator.poisson(50, edges) + 1
        measures = np.zeros((edges, len(MEASURES)), dtype=np.int64)
        values = {"flows": calls, "calls": calls, "bytes_out": calls * 100, "bytes_out_flows": calls}
        for name, column in values.items():
            measures[:, MEASURE_INDEX[name]] = column
        p50 = generator.integers(900, 1_100, edges)
        flat = np.full(edges, 80, dtype=np.int64)
        table = EdgeTable(src, dst, flat, flat, measures, 0 * flat, none, none, none, p50, 2 * p50, 3 * p50)
        start = START_MS + number * WINDOW_MS
        yield ClosedWindow("acme", "default", 0, start, start + WINDOW_MS, table)


def settings_of(bootstrap: str, folder: Path) -> Settings:
    """Return a worker's settings: one partition, models and an embedded ClickHouse in ``folder``."""
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap),
        topics=TopicSettings(partitions=1),
        clickhouse=ClickHouseSettings(dsn=SecretStr(f"chdb://{folder}/clickhouse")),
        gnn=GraphModelSettings(models_dir=folder / "models"),
    )


async def produce(bootstrap: str, nodes: int, edges: int, count: int) -> None:
    """Write the windows, as workers write them."""
    settings = settings_of(bootstrap, Path())
    await ensure_topics(settings)
    topic = settings.topics.name("graph_windows")
    producer = make_producer(settings.kafka)
    await producer.start()
    try:
        for window in windows_of(nodes, edges, count):
            sent = [await producer.send(topic, encode_chunk(one), partition=0) for one in chunk_window(window)]
            await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def late_ms(found: list[float]) -> None:
    """Note how late sleeps end, until cancelled."""
    while True:
        begin_s = time.perf_counter()
        await asyncio.sleep(NAP_S)
        found.append((time.perf_counter() - begin_s - NAP_S) * 1_000)


async def lateness(work: Awaitable[object]) -> dict[str, float]:
    """Return how late sleeps end while something else is awaited: median, 99th of a hundred, the worst."""
    found: list[float] = []
    watch = asyncio.create_task(late_ms(found))
    await work
    watch.cancel()
    return {
        name: round(float(np.quantile(found, share)), 1) for name, share in (("p50", 0.5), ("p99", 0.99), ("worst", 1))
    }


def resident_mib() -> float:
    """Return what this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def score(settings: Settings, count: int) -> dict[str, Any]:
    """Score all windows and return the figures."""
    metrics, folder = Metrics(), settings.gnn.models_dir
    assert folder is not None
    put_model(folder, "acme")
    client = connect(settings.clickhouse)
    migrate(client, settings.clickhouse.database, 90)
    scores = GraphScores(settings, folder, partial(connect, settings.clickhouse), metrics)

    def sample(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(name, labels) or 0.0

    late_idle = await lateness(asyncio.sleep(IDLE_S))
    before_mib, begin_s, begin_cpu_s = resident_mib(), time.perf_counter(), time.process_time()
    scores.start()

    async def all_scored() -> None:
        while sample("drift_graph_score_windows_total", outcome="scored") < count - WARM_UP:
            await asyncio.sleep(0.1)
            if time.perf_counter() - begin_s > DEADLINE_S:
                raise SystemExit(f"not scored within {DEADLINE_S:g} s: {scores.status().reasons}")

    late_busy = await lateness(all_scored())
    seconds, cpu_s, after_mib = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s, resident_mib()
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    await scores.stop(DEADLINE_S)
    stored_s, stored_cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    database = settings.clickhouse.database
    rows = client.query(f"SELECT count() FROM {database}.edge_scores").result_rows[0][0]
    size = client.query(f"SELECT max(length(memory)) FROM {database}.edge_score_memory").result_rows[0][0]
    [parts] = client.query(
        "SELECT sum(data_compressed_bytes) / sum(rows) FROM system.parts WHERE active AND table = 'edge_scores'"
    ).result_rows
    return {
        "windows": count,
        "scored": count - WARM_UP,
        "rows": rows,
        "stored_bytes_a_row": round(parts[0], 1),
        "loop_late_ms_idle": late_idle,
        "loop_late_ms_scoring": late_busy,
        "clock_s_a_window": round(seconds / count, 3),
        "cpu_s_a_window": round(cpu_s / count, 3),
        "scoring_s_a_window": round(sample("drift_graph_score_seconds_sum") / (count - WARM_UP), 3),
        "resident_before_mib": round(before_mib),
        "resident_after_mib": round(after_mib),
        "resident_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024,
        "stored_mb": round(size / 1e6, 1),
        "storing_and_stopping_s": round(stored_s, 2),
        "storing_and_stopping_cpu_s": round(stored_cpu_s, 2),
        "load_average": os.getloadavg()[0],
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure and return the figures."""
    parser = argparse.ArgumentParser(prog="graph-scores", description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--bootstrap")
    parser.add_argument("--produce", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.produce:
        asyncio.run(produce(options.bootstrap, options.nodes, options.edges, options.windows))
        return {}
    with tempfile.TemporaryDirectory(prefix="graph-scores-") as name:
        broker = None if options.bootstrap else TansuBroker(Path(name) / "broker", port=0)
        if broker is not None:
            broker.start()
        try:
            bootstrap = options.bootstrap if broker is None else broker.address
            sizes = [f"--{one}={getattr(options, one)}" for one in ("nodes", "edges", "windows")]
            command = [sys.executable, "-m", "tests.bench.graph_scores", "--produce", "--bootstrap", bootstrap, *sizes]
            subprocess.run(command, check=True)
            result = asyncio.run(score(settings_of(bootstrap, Path(name).resolve()), options.windows))
        finally:
            if broker is not None:
                broker.stop()
    result |= {"nodes": options.nodes, "edges": options.edges}
    if not options.json:
        for key, value in result.items():
            print(f"{key:<28} {value}")
    return result


if __name__ == "__main__":
    found = main(sys.argv[1:])
    if "--json" in sys.argv:
        print(json.dumps(found))
