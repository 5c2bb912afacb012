"""The graph agent on Faust: one batched topic, one state machine per assigned partition."""

import logging
from collections.abc import Callable
from typing import Any

import faust
from faust.types import TP

from streams.batching import EARLIEST, Chunk, batched_topic, commit
from streams.graph.partition import GraphPartition

logger = logging.getLogger(__name__)


class GraphAgent:
    """Owns the partitions of `tenant-log` that are assigned to this worker."""

    def __init__(self, app: faust.App, topic: str, make_partition: Callable[[int], GraphPartition]) -> None:
        self.topic = topic
        self.partitions: dict[int, GraphPartition] = {}
        self._app = app
        self._make_partition = make_partition
        self._source = batched_topic(app, topic)
        app.agent(self._source, name="graph", concurrency=1)(self._run)
        app.on_partitions_assigned.connect(self._on_assigned)  # type: ignore[arg-type]

    async def _on_assigned(self, _app: Any, *arguments: Any, **_: Any) -> None:
        """Drop partitions that went elsewhere; those kept through consecutive generations stay as they are."""
        assigned: set[TP] = arguments[0]
        mine = {tp.partition for tp in assigned if tp.topic == self.topic}
        for partition in [p for p in self.partitions if p not in mine]:
            del self.partitions[partition]

    async def start_offset(self, tp: TP) -> int | None:
        """Restore a partition's state before its first chunk; return where to go on."""
        partition = self.partitions.get(tp.partition)
        if partition is None:
            partition = self.partitions[tp.partition] = self._make_partition(tp.partition)
        start = await partition.recover()
        return EARLIEST if start is None else start

    async def _run(self, stream: Any) -> None:
        async for event in stream.events():
            if self._app.crashed:
                continue  # Faust restarts an agent that raised: it would go on, and commit, behind what failed
            chunk: Chunk = event.value
            try:
                await self._take(chunk)
            except Exception as error:
                # Faust would log, skip the chunk and go on: that is a hole in the state. Stop the worker instead.
                logger.error("%s[%d]: the graph agent stops: %s", chunk.topic, chunk.partition, error)
                await self._app.crash(error)
                raise

    async def _take(self, chunk: Chunk) -> None:
        partition = self.partitions.get(chunk.partition)
        if partition is None:
            return  # assigned elsewhere meanwhile
        offset = await partition.apply(chunk.offsets.tolist(), chunk.values)
        if offset is not None:
            await commit(self._app, {TP(chunk.topic, chunk.partition): offset})

    async def checkpoint_all(self) -> None:
        """Store and commit every partition's state: called when the worker stops."""
        for number, partition in list(self.partitions.items()):
            offset = await partition.checkpoint()
            if offset is not None:
                await commit(self._app, {TP(self.topic, number): offset})
