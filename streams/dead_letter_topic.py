"""The dead-letter topic for people: what stands in it, each dead letter once. Does I/O: reads Kafka."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError, WireFormatError
from schemas.ids import stable_hash64
from schemas.settings import Settings
from streams.dead_letters import decode_dead_letter, merge, needs_source
from streams.ingest.chunk import chunk_of
from streams.ingest.tenant import TenantRule
from streams.kafka_clients import make_admin, make_consumer
from streams.result import short
from streams.topics import partition_counts

ProgressCallback = Callable[[int, int], None]
POLL_MS = 500
SEEK_BEYOND = 2_000
"""Records nobody asked for are read over; a longer way is sought."""
SILENCE_S = 30.0
"""A broker that has nothing more to give for so long, short of the end it named, will not come back in time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands in the dead-letter topic."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant; an empty field means any.

    Attributes:
        sources: coordinates, ``topic:partition:offset:index``.
        since_ms: written to the dead-letter topic at or after this.
    """

    reasons: frozenset[Reason] = frozenset()
    topics: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    tenant: str | None = None
    since_ms: int | None = None

    def names(self, letter: DeadLetter) -> bool:
        """Say whether the coordinate is one of those meant."""
        return (not self.topics or letter.topic in self.topics) and (not self.sources or letter.key in self.sources)

    def wants(self, found: "Found") -> bool:
        """Say whether a dead letter, all its repetitions taken together, is meant."""
        return (
            (not self.reasons or found.letter.reason in self.reasons)
            and (self.since_ms is None or found.written_ms >= self.since_ms)
            and (self.tenant is None or found.tenant == self.tenant)
        )


@dataclass(slots=True)
class Found:
    """A dead letter in the topic, all its repetitions taken together.

    Attributes:
        letter: the latest verdict; without payload and, unless a replay has to look at them, headers.
        size_bytes: of the payload kept.
        written_ms: when the latest repetition was written, by Kafka's timestamp.
        place: where its bytes stand.
        needs: why it must be read anew from its source topic; ``None`` if the bytes here are enough.
        tenant: whose record it is, where that can be told.
    """

    letter: DeadLetter
    size_bytes: int
    written_ms: int
    times: int
    place: Place
    needs: str | None
    tenant: str | None


class TenantGuess:
    """Whose record a dead letter is, as far as its topic's rule and what was kept of it say."""

    def __init__(self, settings: Settings) -> None:
        self._rules = {flow.topic: TenantRule(flow.tenant_from, flow.topic) for flow in settings.flows}

    def of(self, letter: DeadLetter) -> str | None:
        """Return the tenant, or ``None`` where nothing tells."""
        rule = self._rules.get(letter.topic)
        if rule is None:
            return None
        message = chunk_of(
            letter.topic, 0, 0, [letter.payload], keys=[letter.message_key], headers=[letter.message_headers]
        )
        tenants = rule.tenants(message)
        if isinstance(tenants, str):
            return tenants
        if tenants is not None:
            return tenants[0]
        return _named_tenant(letter.payload)


class _Named(msgspec.Struct):
    tenant: str | None = None


_named = msgspec.json.Decoder(_Named)


def _named_tenant(payload: bytes) -> str | None:
    try:
        return _named.decode(payload).tenant
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# -- reading -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def consuming(settings: Settings) -> AsyncIterator[Any]:
    """Open a consumer without group; what Kafka refuses comes out as `ConfigurationError`."""
    consumer = make_consumer(settings.kafka)
    try:
        await consumer.start()
        yield consumer
    except KafkaError as error:
        raise ConfigurationError(f"dead letters cannot be read: {type(error).__name__}: {short(str(error))}") from error
    finally:
        await consumer.stop()


async def topic_counts(settings: Settings, names: Iterable[str]) -> dict[str, int]:
    """Return partition counts of the topics that exist.

    Raises:
        ConfigurationError: the broker cannot say.
    """
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        return await partition_counts(admin, names)
    except KafkaError as error:
        raise ConfigurationError(f"topics cannot be looked up: {type(error).__name__}") from error
    finally:
        await admin.close()


async def read_letters(
    settings: Settings, *, partition_of_key: str | None = None, progress: ProgressCallback | None = None
) -> AsyncIterator[tuple[Place, int, DeadLetter]]:
    """Read the topic from its start to the end it has now; yields place, time of writing (ms) and dead letter.

    Args:
        partition_of_key: read only the partition that this coordinate goes to.
        progress: called with (messages read, messages in all).

    Raises:
        ConfigurationError: the topic does not exist or cannot be read.
    """
    topic = settings.topics.name("dead_letter")
    count = (await topic_counts(settings, [topic])).get(topic)
    if count is None:
        raise ConfigurationError(f"topic {topic} does not exist: a worker makes it, or `drift topics`")
    wanted = range(count) if partition_of_key is None else [stable_hash64(partition_of_key) % count]
    async with consuming(settings) as consumer:
        async for record in _read_all(consumer, [TopicPartition(topic, number) for number in wanted], progress):
            try:
                letter = decode_dead_letter(record.value, record.headers)
            except WireFormatError:
                continue  # somebody else's message: nothing that a replay could use
            yield Place(record.partition, record.offset), record.timestamp, letter


async def _read_all(
    consumer: Any, partitions: Sequence[TopicPartition], progress: ProgressCallback | None
) -> AsyncIterator[Any]:
    firsts = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    left = {tp for tp in partitions if ends[tp] > firsts[tp]}
    total, read = sum(ends[tp] - firsts[tp] for tp in left), 0
    if not left:
        return
    consumer.assign(sorted(left))
    for tp in left:
        consumer.seek(tp, firsts[tp])
    silent_s = 0.0
    settled: set[TopicPartition] = set()
    while left:
        fetched = await consumer.getmany(*left, timeout_ms=POLL_MS)
        silent_s = 0.0 if fetched else silent_s + POLL_MS / 1000
        if silent_s >= SILENCE_S:
            raise ConfigurationError(f"{min(left).topic}: the broker gives nothing more, {total - read} messages short")
        for tp, records in fetched.items():
            for record in records:
                yield record
            read += len(records)
            if tp not in settled:  # Tansu names the last batch's first offset as the end: the fetch knows better
                settled.add(tp)
                more = max(ends[tp], consumer.highwater(tp) or 0) - ends[tp]
                ends[tp], total = ends[tp] + more, total + more
        if progress is not None:
            progress(min(read, total), total)
        left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
    if progress is not None:
        progress(total, total)


async def find_letters(
    settings: Settings, selection: Selection, progress: ProgressCallback | None = None
) -> list[Found]:
    """Return the dead letters selected, each once, in the order in which they were written last."""
    tenants = TenantGuess(settings)
    replay_topic = settings.topics.name("replay")
    found: dict[tuple[str, str], Found] = {}
    only = next(iter(selection.sources)) if len(selection.sources) == 1 else None
    async for place, written_ms, letter in read_letters(settings, partition_of_key=only, progress=progress):
        if not selection.names(letter):
            continue
        headers = letter.message_headers if letter.topic == replay_topic else ()
        now = Found(
            letter=msgspec.structs.replace(letter, payload=b"", message_headers=headers),
            size_bytes=len(letter.payload),
            written_ms=written_ms,
            times=1,
            place=place,
            needs=needs_source(letter),
            tenant=tenants.of(letter),
        )
        key = (letter.incarnation, letter.key)  # made anew, a topic gives its coordinates to other records
        earlier = found.get(key)
        found[key] = now if earlier is None else _together(earlier, now)
    return sorted(filter(selection.wants, found.values()), key=lambda one: one.written_ms)


def _together(earlier: Found, later: Found) -> Found:
    """Return two repetitions as one; a later one without bytes keeps those of the one before."""
    times = earlier.times + later.times
    if later.needs is None or earlier.needs is not None:
        return replace(later, times=times, tenant=later.tenant or earlier.tenant)
    letter = msgspec.structs.replace(earlier.letter, reason=later.letter.reason, detail=later.letter.detail)
    return replace(earlier, letter=letter, times=times, written_ms=later.written_ms)


async def read_letter(settings: Settings, source: str) -> tuple[DeadLetter, int, int] | None:
    """Return one dead letter with its bytes, when it was last written (ms) and how often; ``None``: there is none."""
    found: dict[str, tuple[DeadLetter, int, int]] = {}
    async for _, at_ms, letter in read_letters(settings, partition_of_key=source):
        if letter.key == source:
            earlier, _, times = found.pop(letter.incarnation, (letter, 0, 0))
            found[letter.incarnation] = (merge(earlier, letter), at_ms, times + 1)
    return found[list(found)[-1]] if found else None


async def log_range(consumer: Any, where: TopicPartition) -> tuple[int, int]:
    """Return the first offset of a partition's log and the offset behind its last record."""
    first, end = (await consumer.beginning_offsets([where]))[where], (await consumer.end_offsets([where]))[where]
    if end > first:  # a fetch says it as well, and right on Tansu too, which names the last batch's first offset
        consumer.assign([where])
        consumer.seek(where, end - 1)
        await consumer.getmany(where, timeout_ms=POLL_MS)
        end = max(end, consumer.highwater(where) or 0)
    return first, end


async def read_at(consumer: Any, where: TopicPartition, offsets: Sequence[int]) -> AsyncIterator[Any]:
    """Yield the records at rising offsets of one partition; those that are not there are left out."""
    if not offsets:
        return
    _, end = await log_range(consumer, where)
    consumer.assign([where])
    wanted = deque(offsets)
    at, silent_s = -1, 0.0
    while wanted and silent_s < SILENCE_S:
        if not at <= wanted[0] <= at + SEEK_BEYOND or at < 0:
            consumer.seek(where, wanted[0])
        records = (await consumer.getmany(where, timeout_ms=POLL_MS)).get(where, [])
        for record in records:
            while wanted and wanted[0] < record.offset:
                wanted.popleft()
            if wanted and wanted[0] == record.offset:
                wanted.popleft()
                yield record
        at = await consumer.position(where)
        if at >= end:
            return
        silent_s = 0.0 if records else silent_s + POLL_MS / 1000
