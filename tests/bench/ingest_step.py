"""The ingest agent on messages that are there already: everything it does to them, and no Kafka."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, Member
from streams.ingest.agent import IngestOptions, IngestWorker
from streams.ingest.chunk import MessageChunk
from streams.ingest.ports import FetchStatus, Headers, SourcePartition
from streams.ingest.readers import FlowReader
from streams.metrics import Metrics

TARGETS = 12
TOPIC = "flows"
LOG, DEAD = "tenant-log", "flows-dead-letter"


@dataclass(frozen=True, slots=True)
class Fetched(MessageChunk):
    """Messages as the transport hands them over."""

    highwater: int = 0
    generation: int = 0

    def release(self) -> None:
        """Give nothing back: there is no budget."""


class Nowhere:
    """Kafka and clock that take what they get. ``sent``: records by topic."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {LOG: 0, DEAD: 0}

    async def send(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Acknowledge a record."""
        self.sent[topic] += 1
        return self.sent[topic]

    async def commit(self, offsets: Mapping[SourcePartition, int]) -> bool:
        """Take offsets."""
        return True

    def pause(self, partitions: Iterable[SourcePartition]) -> None:
        """Go on."""

    def resume(self, partitions: Iterable[SourcePartition]) -> None:
        """Go on."""

    def status(self) -> dict[SourcePartition, FetchStatus]:
        """Return nothing that is fetched."""
        return {}

    def now_ms(self) -> int:
        """Stand still."""
        return 1_800_000_000_000


def chunks_of(values: Sequence[bytes], rows: int) -> list[Fetched]:
    """Return messages as consecutive chunks of one source partition."""
    found = []
    for start in range(0, len(values), rows):
        mine = values[start : start + rows]
        stop = start + len(mine)
        offsets = np.arange(start, stop, dtype=np.int64)
        nothing = [None] * len(mine)
        found.append(Fetched(TOPIC, 0, start, stop, offsets, mine, nothing, [()] * len(mine), [-1] * len(mine)))
    return found


def ingest(spelling: str, chunks: Sequence[Fetched], metrics: Metrics) -> int:
    """Feed one source partition's chunks to a new agent; return how many flows `tenant-log` acknowledged.

    Raises:
        AssertionError: a record became a dead letter: that would be no measurement.
    """
    topic = FlowTopic(topic=TOPIC, format=spelling, tenant_from="fixed:acme")
    lane = LaneConfig("bench", members=(Member(f"{TOPIC}#1", 1),))
    kafka = Nowhere()
    worker = IngestWorker(
        IngestOptions("w", LOG, TARGETS, DEAD, 1, statement_every_ms=1_000, idle_ms={"bench": 5_000}),
        {TOPIC: FlowReader(topic, f"{TOPIC}#1", lane, TARGETS)},
        producer=kafka,
        commits=kafka,
        pauses=kafka,
        status=kafka,
        clock=kafka,
        metrics=metrics,
    )
    written = metrics.flows_in.labels(TOPIC)
    before = written._value.get()

    async def feed() -> None:
        await worker.start(TOPIC, 0, 0, 0)
        for chunk in chunks:
            worker.submit(chunk)
            await worker.drain()
        await worker.close()

    asyncio.run(feed())
    if kafka.sent[DEAD]:
        raise AssertionError(f"{spelling}: {kafka.sent[DEAD]} dead letters")
    return int(written._value.get() - before)
