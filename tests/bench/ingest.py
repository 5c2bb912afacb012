"""Flows per second of one ingest worker, beside aiokafka alone (the limit) and Faust's `stream.take` idiom.

    drift bench ingest [--flows N] [--bootstrap HOST:PORT] [--json]
    python -m tests.bench.ingest ...

One broker, the same messages for all: JSON flows of 150 to 300 bytes, one a message, and Arrow batches of 1,000 rows.
Each reader runs alone in its own process; its clock runs from the first record it sees to the last, for ingest to the
last one acknowledged by `tenant-log`. The idiom is read on a part of the topic where the whole would take minutes.
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
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from schemas.flow import Flow
from schemas.settings import FlowTopic, KafkaSettings, Settings, TopicSettings, load_settings

PARTITIONS = 12
TENANTS, SERVICES, EDGES, ARROW_ROWS, TAKE = 20, 1_000, 10_000, 1_000, 5_000
JSON_TOPIC, ARROW_TOPIC = "bench-json", "bench-arrow"
SEED = 7
_BATCH = 500
_COMPRESSION = "DRIFT_BENCH_COMPRESSION"
"""Tells the processes of one run what `tenant-log` is compressed with."""
DEADLINE_S = 900.0


# -- the flows ---------------------------------------------------------------------------------------------------------


def make_edges(rotation: int = 0) -> tuple[list[tuple[str, str, str, int]], list[float]]:
    """Return 10,000 edges of 20 tenants of Zipf sizes, and their weights. Another rotation, other services."""
    rng = random.Random(SEED + rotation)
    sizes = [1 / (rank + 1) for rank in range(TENANTS)]
    edges, weights = [], []
    for tenant, size in enumerate(sizes):
        count = max(20, int(EDGES * size / sum(sizes)))
        for _ in range(count):
            numbers = rng.randrange(SERVICES), rng.randrange(SERVICES)
            src, dst = (f"namespace-{number % 30}/service-{rotation}-{number}" for number in numbers)
            edges.append((f"tenant-{tenant}", src, dst, rng.choice((80, 443, 5432, 6379, 8080))))
            weights.append(size / count)
    return edges, weights


def flows(count: int, rotate_every: int = 1_000_000) -> Iterator[dict[str, Any]]:
    """Return flows as a producer would describe them; each million has edges of its own."""
    rng = random.Random(SEED)
    made = 0
    while made < count:
        edges, weights = make_edges(made // rotate_every)
        size = min(rotate_every, count - made)
        for tenant, src, dst, port in rng.choices(edges, weights, k=size):
            made += 1
            yield {
                "time_ms": 1_700_000_000_000 + made // 100,
                "tenant": tenant,
                "src": src,
                "dst": dst,
                "port": port,
                "protocol": "tcp",
                "bytes_out": made * 7919 % 100_003,
                "bytes_in": made * 104_729 % 1_000_003,
                "latency_us": 200 + made * 31 % 20_011,
                "errors": int(made % 97 == 0),
                "reporter": "client",
                "host": f"node-{made % 40}",
            }


def arrow_message(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as one Arrow IPC stream with plain utf8 and int64 columns."""
    table = pa.Table.from_pylist(list(rows))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


async def produce(settings: Settings, count: int) -> dict[str, float]:
    """Write the flows once as JSON and once as Arrow; return mean sizes in bytes."""
    from streams.kafka_clients import make_producer
    from streams.topics import ensure_topics

    await ensure_topics(settings)
    producer = make_producer(settings.kafka, max_batch_size=1 << 19, compression_type=None)
    await producer.start()
    encode = msgspec.json.Encoder().encode
    sizes: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    under_way: list[Awaitable[Any]] = []
    arrow = 0
    for number, flow in enumerate(flows(count)):
        rows.append(flow)
        if len(rows) == ARROW_ROWS or number == count - 1:
            for start in range(0, len(rows), _BATCH):
                batch = producer.create_batch()
                for row in rows[start : start + _BATCH]:
                    value = encode(row)
                    sizes["json"] += len(value)
                    batch.append(key=None, value=value, timestamp=None)
                partition = (number // ARROW_ROWS + start // _BATCH) % PARTITIONS
                under_way.append(await producer.send_batch(batch, JSON_TOPIC, partition=partition))
            message = arrow_message(rows)
            sizes["arrow"] += len(message)
            under_way.append(await producer.send(ARROW_TOPIC, message, partition=arrow % PARTITIONS))
            arrow += 1
            rows = []
            if len(under_way) > 200:
                await asyncio.gather(*under_way)
                under_way.clear()
    await asyncio.gather(*under_way)
    await producer.stop()
    return {"json_bytes": sizes["json"] / count, "arrow_bytes": sizes["arrow"] / count}


# -- the readers -------------------------------------------------------------------------------------------------------


class Count:
    """Flows seen, and the time from the first to the last; the clock starts with the first record."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.flows = wanted, 0
        self.began_s = self.ended_s = self.cpu_s = 0.0
        self.done = asyncio.Event()

    def begin(self) -> None:
        """Start the clock, with the first call."""
        if not self.began_s:
            self.began_s, self.cpu_s = time.perf_counter(), -time.process_time()

    def add(self, flows: int) -> None:
        """Count; the clock stops when all have been seen."""
        self.flows += flows
        if self.flows >= self.wanted and not self.done.is_set():
            self.ended_s = time.perf_counter()
            self.cpu_s += time.process_time()
            self.done.set()


async def read_raw(settings: Settings, topic: str, count: Count) -> None:
    """aiokafka alone: fetch and count, nothing is decoded."""
    from streams.kafka_clients import make_consumer

    consumer = make_consumer(settings.kafka, topic)
    await consumer.start()
    try:
        while not count.done.is_set():
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                count.begin()
                count.add(len(records))
    finally:
        await consumer.stop()


async def read_idiom(settings: Settings, topic: str, count: Count) -> None:
    """Faust as it is documented: `stream.take`, the same decoding, a count per edge."""
    app = _faust_app(settings)
    decoder = msgspec.json.Decoder(Flow)
    edges: Counter[tuple[Any, ...]] = Counter()

    async def take(stream: Any) -> None:
        async for values in stream.take(TAKE, within=0.5):
            count.begin()
            decoded = map(decoder.decode, values)
            edges.update((f.tenant, f.src, f.dst, f.port, f.protocol) for f in decoded)
            count.add(len(values))

    app.agent(app.topic(topic, value_type=bytes, value_serializer="raw", acks=False), name="idiom")(take)
    await _until_done(app, count)


async def read_ingest(settings: Settings, topic: str, count: Count) -> None:
    """Our ingest agent with everything on, until every partition of `tenant-log` has acknowledged all flows."""
    from streams.batching import use_batching
    from streams.clock import SystemClock
    from streams.ingest.faust_agent import register_ingest, tune_garbage_collection
    from streams.kafka_clients import make_producer
    from streams.metrics import Metrics
    from streams.producing import AcknowledgedProducer
    from streams.topics import ensure_topics

    counts = await ensure_topics(settings)
    producer = make_producer(settings.kafka)
    await producer.start()
    app, metrics = _faust_app(settings), Metrics()
    ingest = register_ingest(app, settings, counts, AcknowledgedProducer(producer, metrics), metrics, SystemClock())
    use_batching(
        app,
        ingest.topics,
        start_offset=ingest.start_offset,
        on_out_of_range=ingest.on_out_of_range,
        max_chunk_bytes=settings.worker.max_fetch_bytes,
    )
    submit = ingest.worker.submit

    def first(chunk: Any) -> None:
        count.begin()
        submit(chunk)

    ingest.worker.submit = first  # type: ignore[method-assign]
    written = metrics.flows_in.labels(topic)

    async def follow() -> None:
        while not count.done.is_set():
            count.add(int(written._value.get()) - count.flows)
            await asyncio.sleep(0.005)

    following = asyncio.ensure_future(follow())
    tune_garbage_collection()
    try:
        await _until_done(app, count, ingest.close)
    finally:
        following.cancel()
        await producer.stop()
    dead = sum(s.value for m in metrics.dead_letters.collect() for s in m.samples if s.name.endswith("_total"))
    if dead:
        raise SystemExit(f"{dead:.0f} dead letters: this is no measurement")


READERS: dict[str, tuple[Callable[[Settings, str, Count], Awaitable[None]], str]] = {
    "raw": (read_raw, JSON_TOPIC),
    "idiom": (read_idiom, JSON_TOPIC),
    "ours": (read_ingest, JSON_TOPIC),
    "arrow": (read_ingest, ARROW_TOPIC),
}


async def _until_done(app: Any, count: Count, close: Callable[[], Awaitable[None]] | None = None) -> None:
    await app.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await count.done.wait()
        if close is not None:
            await close()
    finally:
        await app.stop()


def _faust_app(settings: Settings) -> Any:
    import faust

    from streams.kafka_clients import faust_broker

    return faust.App(
        f"bench-{uuid.uuid4().hex[:8]}",
        **faust_broker(settings.kafka),
        consumer_max_fetch_size=settings.worker.max_fetch_bytes,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        web_enabled=False,
        store="memory://",
        datadir=tempfile.gettempdir(),
    )


def _settings(bootstrap: str, reader: str) -> Settings:
    """Settings of one reader: its own `tenant-log` and the like, so that none sees another's."""
    names = {
        role: f"{reader}-{role.replace('_', '-')}" for role in ("tenant_log", "dead_letter", "replay", "drift_controls")
    }
    topic = ARROW_TOPIC if reader == "arrow" else JSON_TOPIC
    topics = (JSON_TOPIC, ARROW_TOPIC) if reader == "produce" else (topic,)
    return load_settings(
        None,
        kafka=KafkaSettings(
            bootstrap=bootstrap,
            compression=os.environ.get(_COMPRESSION, KafkaSettings().compression),
            session_timeout_ms=10_000,
            rebalance_timeout_ms=6_000,
        ),
        topics=TopicSettings(partitions=PARTITIONS, names=names),
        flows=tuple(FlowTopic(topic=name) for name in topics),
    )


# -- running -----------------------------------------------------------------------------------------------------------


async def _read(reader: str, bootstrap: str, wanted: int) -> dict[str, float]:
    read, topic = READERS[reader]
    count = Count(wanted)
    await read(_settings(bootstrap, reader), topic, count)
    seconds = count.ended_s - count.began_s
    return {
        "flows": count.flows if reader != "raw" else wanted,
        "seconds": seconds,
        "cpu_s": count.cpu_s,
        "flows_per_s": wanted / seconds,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _in_own_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.ingest", "--in-process", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S, env=dict(os.environ))
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(
    flow_count: int = 1_000_000,
    idiom_flows: int = 200_000,
    bootstrap: str | None = None,
    readers: Sequence[str] = tuple(READERS),
) -> dict[str, float]:
    """Measure the readers one after the other on one broker; return flows/s of each and the ingest worker's peak RSS.

    Args:
        idiom_flows: how many of the flows the idiom reads.
        bootstrap: a broker that is there; ``None`` starts Tansu.
    """
    from deploy.brokers.tansu import TansuBroker

    result: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        if bootstrap is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bootstrap = stack.enter_context(TansuBroker(folder)).address
        result.update(_in_own_process("produce", bootstrap, str(flow_count)))
        for reader in readers:
            wanted = min(idiom_flows, flow_count) if reader == "idiom" else flow_count
            measured = _in_own_process(reader, bootstrap, str(wanted))
            result[f"{reader}_flows_per_s"] = round(measured["flows_per_s"])
            result[f"{reader}_flows"] = wanted
            result[f"{reader}_cpu_us_per_flow"] = round(measured["cpu_s"] / wanted * 1e6, 2)
            if reader in ("ours", "arrow"):
                result["rss_mb" if reader == "ours" else "arrow_rss_mb"] = round(measured["rss_mb"])
    if "ours_flows_per_s" in result:
        for other in ("raw", "idiom"):
            if f"{other}_flows_per_s" in result:
                result[f"ours_to_{other}"] = round(result["ours_flows_per_s"] / result[f"{other}_flows_per_s"], 2)
    return result


def print_table(result: dict[str, float]) -> None:
    """Print the figures in words."""
    names = {
        "raw": "aiokafka getmany, nothing decoded",
        "idiom": "Faust stream.take, decode and count edges",
        "ours": "ingest, JSON one a message, everything on",
        "arrow": f"ingest, Arrow batches of {ARROW_ROWS:,} rows",
    }
    print(
        f"{PARTITIONS} partitions, {TENANTS} tenants (Zipf), {EDGES:,} edges, JSON of {result['json_bytes']:.0f} bytes"
    )
    for reader, name in names.items():
        if f"{reader}_flows_per_s" in result:
            rate, count = result[f"{reader}_flows_per_s"], result[f"{reader}_flows"]
            print(f"{name:44} {rate:>10,.0f} flows/s  ({count:,.0f} flows)")
    for other in ("idiom", "raw"):
        if f"ours_to_{other}" in result:
            print(f"{f'ingest over {other}':44} {result[f'ours_to_{other}']:>10} times")
    if "rss_mb" in result:
        print(f"{'peak memory of the ingest process':44} {result['rss_mb']:>10} MiB")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(prog="drift bench ingest", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--idiom-flows", type=int, default=200_000, help="how many of them the idiom reads")
    parser.add_argument("--bootstrap", help="HOST:PORT of a broker that is there; without it, Tansu is started")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument(
        "--compression", default=KafkaSettings().compression, help="what we write with (kafka.compression)"
    )
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    os.environ[_COMPRESSION] = parsed.compression
    result = run(parsed.flows, parsed.idiom_flows, parsed.bootstrap, parsed.readers)
    if not parsed.json:
        print_table(result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-process"]:
        _, _, what, address, number = sys.argv
        if what == "produce":
            print(json.dumps(asyncio.run(produce(_settings(address, what), int(number)))))
        else:
            print(json.dumps(asyncio.run(_read(what, address, int(number)))))
    else:
        outcome = main()
        if "--json" in sys.argv:
            print(json.dumps(outcome))
