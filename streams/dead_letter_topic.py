"""The dead-letter topic for people: what stands in it, each dead letter once. Does I/O: reads Kafka."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import msgspec
from aiokafka import TopicPartition

from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError, WireFormatError
from schemas.ids import stable_hash64
from schemas.settings import Settings
from streams.dead_letters import decode_dead_letter, merge, needs_source
from streams.ingest.chunk import chunk_of
from streams.ingest.tenant import TenantRule
from streams.topic_reading import ProgressCallback, consuming, read_to_end, topic_counts


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
    async with consuming(settings, "dead letters") as consumer:
        async for record in read_to_end(consumer, [TopicPartition(topic, number) for number in wanted], progress):
            try:
                letter = decode_dead_letter(record.value, record.headers)
            except WireFormatError:
                continue  # somebody else's message: nothing that a replay could use
            yield Place(record.partition, record.offset), record.timestamp, letter


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
