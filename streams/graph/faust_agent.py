"""The graph agent on Faust: one batched topic, one state machine and one task per assigned partition."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import faust
from faust.types import TP

from schemas.errors import WireFormatError
from streams.batching import EARLIEST, Chunk, batched_topic, commit, committed
from streams.graph.partition import GraphPartition

logger = logging.getLogger(__name__)


class GraphAgent:
    """Owns the partitions of `tenant-log` that are assigned to this worker.

    Each partition has a task of its own: while one waits for acknowledgements, the others go on. Chunks that wait stay
    in the transport's budget, which bounds the queues.
    """

    def __init__(self, app: faust.App, topic: str, make_partition: Callable[[int], GraphPartition]) -> None:
        self.topic = topic
        self.partitions: dict[int, GraphPartition] = {}
        self._queues: dict[int, asyncio.Queue[Chunk]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._generations: dict[int, int] = {}  # in which a partition was last ours
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
            await self._stop_task(partition)
            del self.partitions[partition]

    async def _stop_task(self, partition: int) -> None:
        task = self._tasks.pop(partition, None)
        self._queues.pop(partition, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def start_offset(self, tp: TP) -> int | None:
        """Restore a partition's state before its first chunk; return where to go on."""
        generation = self._app.consumer_generation_id
        if generation - self._generations.get(tp.partition, generation) > 1:
            # Another worker may have owned it meanwhile: it has published what we do not know of, and removed chunks.
            await self._stop_task(tp.partition)
            self.partitions.pop(tp.partition, None)
        self._generations[tp.partition] = generation
        partition = self.partitions.get(tp.partition)
        if partition is None:
            partition = self.partitions[tp.partition] = self._make_partition(tp.partition)
        if partition.is_recovered:
            start = await partition.recover()
        else:
            offset = (await committed(self._app, [tp])).get(tp)
            start = await partition.recover(-1 if offset is None else offset - 1)
        if tp.partition not in self._tasks:
            queue = self._queues[tp.partition] = asyncio.Queue()
            self._tasks[tp.partition] = asyncio.create_task(self._work(partition, queue))
        return EARLIEST if start is None else start

    async def _run(self, stream: Any) -> None:
        async for event in stream.events():
            chunk: Chunk = event.value
            queue = self._queues.get(chunk.partition)
            if queue is not None and not self._app.crashed:
                chunk.keep()
                queue.put_nowait(chunk)

    async def _work(self, partition: GraphPartition, queue: asyncio.Queue[Chunk]) -> None:
        while not self._app.crashed:
            chunk = await queue.get()
            try:
                offset = await partition.apply(chunk.offsets.tolist(), chunk.values)
                if chunk.corrupt is not None:
                    raise WireFormatError(
                        f"offsets {chunk.corrupt.first_offset} to {chunk.corrupt.last_offset} cannot be read: "
                        f"{chunk.corrupt.detail}"
                    )
                if offset is not None and await commit(self._app, {TP(chunk.topic, chunk.partition): offset}):
                    await partition.prune()
            except Exception as error:
                # Going on behind what failed would be a hole in the state: stop the worker instead.
                logger.error("%s[%d]: the graph agent stops: %s", chunk.topic, chunk.partition, error)
                await self._app.crash(error)
                return
            finally:
                chunk.release()

    async def checkpoint_all(self) -> None:
        """Take no more, then store and commit every partition's state: called when the worker stops.

        The record under way is finished first: a state whose results are not out could not be stored.
        """
        await asyncio.gather(*(self._finish(number, partition) for number, partition in list(self.partitions.items())))

    async def _finish(self, number: int, partition: GraphPartition) -> None:
        if not partition.is_recovered:
            return  # nothing was applied since the checkpoint it would have come from
        async with partition.turn:
            await self._stop_task(number)
        offset = await partition.checkpoint()
        if offset is not None and await commit(self._app, {TP(self.topic, number): offset}):
            await partition.prune()
