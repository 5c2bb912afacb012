"""Inserts the messages of one Kafka partition into ClickHouse: in order, in batches, repeated until they are in.

Return means durable: the caller acknowledges its offsets after `write`, never before. A repeat is harmless twice over:
the same insert carries the same deduplication token, and rows that come again in another batch (after a crash the fetch
is cut elsewhere) collapse in the ReplacingMergeTree under FINAL.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from clickhouse_connect.driver import Client

from schemas.errors import ConfigurationError
from schemas.tables import TableDeclaration
from streams.metrics import Metrics
from streams.sinks.faults import Fault, advice, classify, describe
from streams.sinks.rows import Rows, RowsOf

logger = logging.getLogger(__name__)

MAX_ROWS_PER_INSERT = 100_000
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0


class Message(NamedTuple):
    """One message of the sink's Kafka partition."""

    offset: int
    value: bytes


class Poison(NamedTuple):
    """A message that cannot become rows: what a dead letter needs of it."""

    topic: str
    partition: int
    offset: int
    value: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class _Insert:
    """Rows of consecutive messages for one table and one of its partitions."""

    table: TableDeclaration
    partition_key: str
    messages: tuple[Message, ...]
    rows: tuple[Rows, ...]

    def halves(self) -> "tuple[_Insert, _Insert]":
        """Cut the insert in two, to find the message that the server refuses."""
        middle = len(self.messages) // 2
        return (
            _Insert(self.table, self.partition_key, self.messages[:middle], self.rows[:middle]),
            _Insert(self.table, self.partition_key, self.messages[middle:], self.rows[middle:]),
        )

    def arrow_table(self) -> Any:
        """Return the rows as one block."""
        return pa.Table.from_batches([rows.batch for rows in self.rows]).combine_chunks()


def deduplication_token(
    table: str, partition_key: str, topic: str, partition: int, messages: Sequence[Message], epoch: int = 0
) -> str:
    """Name an insert by what it is made of, so that only the very same insert is taken for a repeat.

    ClickHouse drops an insert whose token it has seen without looking at the rows: hence the hash of the bytes.
    ``epoch``: raise it to write again what was deleted on purpose.
    """
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        digest.update(message.offset.to_bytes(8, "big"))
        digest.update(len(message.value).to_bytes(8, "big"))
        digest.update(message.value)
    first, last = messages[0].offset, messages[-1].offset
    return f"{table}|{partition_key}|{topic}|{partition}|{first}-{last}|{epoch}|{digest.hexdigest()}"


def group_inserts(parsed: Iterable[tuple[Message, Rows]], max_rows: int = MAX_ROWS_PER_INSERT) -> list[_Insert]:
    """Cut rows into inserts of one table, one partition and at most ``max_rows`` (one message may exceed it alone).

    Order: tables and partitions as first met, so a window's row never goes ahead of its edges.
    """
    open_groups: dict[tuple[str, str], list[tuple[Message, Rows]]] = {}
    counts: dict[tuple[str, str], int] = {}
    inserts: list[_Insert] = []

    def close(key: tuple[str, str]) -> None:
        group = open_groups.pop(key)
        inserts.append(_Insert(group[0][1].table, key[1], tuple(m for m, _ in group), tuple(r for _, r in group)))

    for message, rows in parsed:
        key = (rows.table.name, rows.partition_key)
        if key in open_groups and counts[key] + len(rows) > max_rows:
            close(key)
        if key not in open_groups:
            open_groups[key], counts[key] = [], 0
        open_groups[key].append((message, rows))
        counts[key] += len(rows)
    for key in list(open_groups):
        close(key)
    return inserts


class PartitionWriter:
    """Writes one partition of one topic. One `write` at a time; writers may share a client.

    Args:
        rows_of: reads a message's value; a message on which it raises is poison.
        on_poison: keeps a message that cannot be written (a dead letter). If it raises, `write` raises.
        incarnation: of the topics, told with each position (schemas/sql/0007_event_positions.sql).
        sleep: waits seconds between repeats. jitter: a value in [0, 1) that spreads the repeats of many workers.
    """

    def __init__(
        self,
        client: Client,
        database: str,
        topic: str,
        partition: int,
        rows_of: RowsOf,
        on_poison: Callable[[Poison], Awaitable[None]],
        metrics: Metrics,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        epoch: int = 0,
        max_rows: int = MAX_ROWS_PER_INSERT,
        incarnation: str = "",
    ) -> None:
        self._incarnation = incarnation
        self._client = client
        self._database = database
        self._topic = topic
        self._partition = partition
        self._rows_of = rows_of
        self._on_poison = on_poison
        self._metrics = metrics
        self._sleep = sleep
        self._jitter = jitter
        self._epoch = epoch
        self._max_rows = max_rows
        # Since 26.x one setting decides over deduplication of all kinds of inserts; older servers do not know it.
        self._pinned = {"deduplicate_insert": "enable"} if "deduplicate_insert" in client.server_settings else {}

    async def write(self, messages: Sequence[Message]) -> int:
        """Insert ``messages`` and return how many rows they were. Waits for ever while ClickHouse is away.

        On return each of them is in ClickHouse or was given to ``on_poison``; their offsets may be committed.

        Raises:
            ConfigurationError: only an operator can mend it (table missing, password changed); nothing was skipped.
        """
        parsed: list[tuple[Message, Rows]] = []
        for message in messages:
            try:
                rows = self._rows_of(message.value).at(self._incarnation, message.offset)
            except Exception as error:  # pure code over foreign bytes: whatever it raises, this message is the cause
                await self._set_aside(message, f"cannot be read: {error}")
            else:
                if len(rows):
                    parsed.append((message, rows))
        return sum([await self._write_insert(insert) for insert in group_inserts(parsed, self._max_rows)])

    async def _write_insert(self, insert: _Insert) -> int:
        """Insert until it is in; a refused insert is halved down to the message that the server cannot take."""
        table = insert.table.name
        rows = sum(len(part) for part in insert.rows)
        attempt = 0
        while True:
            try:
                # A cancelled wait leaves the thread to finish; the insert repeated later carries the same token.
                await asyncio.to_thread(self._insert_blocking, insert)
            except Exception as error:
                fault = classify(error)
                if fault is Fault.GIVE_UP:
                    raise ConfigurationError(
                        f"ClickHouse refuses rows for {self._database}.{table}: {describe(error)}; {advice(error)}"
                    ) from error
                if fault is Fault.POISON:
                    return await self._write_parts(insert, error)
                attempt += 1
                self._metrics.sink_retries.labels(table).inc()
                delay_s = self._backoff_s(attempt)
                logger.warning(
                    "insert into %s failed, %s; attempt %d, again in %.1f s", table, describe(error), attempt, delay_s
                )
                await self._sleep(delay_s)
            else:
                self._metrics.rows_inserted.labels(table).inc(rows)
                return rows

    async def _write_parts(self, insert: _Insert, error: Exception) -> int:
        if len(insert.messages) == 1:
            await self._set_aside(insert.messages[0], f"refused by ClickHouse: {describe(error)}")
            return 0
        first, second = insert.halves()
        return await self._write_insert(first) + await self._write_insert(second)

    def _insert_blocking(self, insert: _Insert) -> None:
        settings = {
            "async_insert": 0,  # asynchronous inserts are cut into blocks as time goes, which no token survives
            "wait_end_of_query": 1,  # over HTTP an error after the first byte would otherwise look like success
            "insert_deduplicate": 1,
            "insert_deduplication_token": deduplication_token(
                insert.table.name, insert.partition_key, self._topic, self._partition, insert.messages, self._epoch
            ),
            "max_insert_threads": 1,  # one block, one part: a token names exactly one
            **self._pinned,
        }
        self._client.insert_arrow(insert.table.name, insert.arrow_table(), database=self._database, settings=settings)

    async def _set_aside(self, message: Message, detail: str) -> None:
        await self._on_poison(Poison(self._topic, self._partition, message.offset, message.value, detail))

    def _backoff_s(self, attempt: int) -> float:
        """Double from ``FIRST_BACKOFF_S`` to ``LONGEST_BACKOFF_S``, each spread over its upper half."""
        ceiling_s: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(attempt - 1, 16))
        return ceiling_s * (0.5 + 0.5 * self._jitter())
