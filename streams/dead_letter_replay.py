"""Dead letters pushed to the replay topic, each under the coordinate it had. Does I/O: reads and writes Kafka.

A replay can be repeated, by anybody, at any time: the state machine takes each record once, by that coordinate. All
that comes from one source partition goes to one partition of the replay topic, so that repetitions have one order.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from schemas.dead_letter import DeadLetter
from schemas.errors import ConfigurationError
from schemas.ids import REPLAY_PREFIX, stable_hash64
from schemas.settings import Settings
from schemas.topics import HEADER_LANE, HEADER_ORIGIN
from streams.dead_letter_topic import Found
from streams.dead_letters import decode_dead_letter, unreplayable
from streams.idempotence import supports_idempotence
from streams.ingest.lanes import read_header
from streams.ingest.replayed import MAX_INDEXES, OriginHeader, encode_origin, origin_of
from streams.kafka_clients import make_producer
from streams.result import WHOLE_MESSAGE, Refusal, short
from streams.topic_reading import ProgressCallback, consuming, log_range, read_at, topic_counts

AT_ONCE, AT_ONCE_BYTES = 5_000, 32 * 1024 * 1024
"""Dead letters read, sorted and pushed together: in runs of one source partition, which ingest need not cut."""
_MAX_REQUEST_BYTES = 10 * 1024 * 1024


@dataclass(slots=True)
class Replayed:
    """What a replay did.

    Attributes:
        pushed: dead letters written to the replay topic.
        refused: coordinate and reason of each that was not.
    """

    pushed: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def refusal_of(found: Found, settings: Settings) -> str | None:
    """Say why a dead letter is not replayed, as far as that is known before anything is read anew."""
    letter = found.letter
    never = unreplayable(letter)
    if never is not None:
        return never
    if letter.topic == settings.topics.name("replay"):
        return _refusal_of_replay(letter)
    if letter.topic not in {flow.topic for flow in settings.flows}:
        return f"topic {letter.topic!r} is no longer configured: add it to flows, then replay"
    return None


def _refusal_of_replay(letter: DeadLetter) -> str | None:
    """A replay of a file has a lane of its own, which has ended; what went into a declared lane can be replayed."""
    try:
        name = read_header(dict(letter.message_headers).get(HEADER_LANE)).name
    except Refusal as refusal:
        return f"{refusal.detail}: push the file again with `drift replay`"
    if name.startswith(REPLAY_PREFIX):
        return f"it was pushed by `drift replay` into {name}: correct the file and push it again under the same name"
    return None


@dataclass(frozen=True, slots=True)
class _Record:
    """One record for the replay topic, and the dead letters that it replays."""

    origin: OriginHeader
    value: bytes
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    letters: tuple[str, ...]


async def replay_letters(
    settings: Settings, found: Collection[Found], progress: ProgressCallback | None = None
) -> Replayed:
    """Push dead letters to the replay topic; return once every one is acknowledged or refused by name.

    Args:
        progress: called with (dead letters done, dead letters in all).

    Raises:
        ConfigurationError: brokers or topics cannot be used.
    """
    done = Replayed()
    wanted: list[Found] = []
    for one in found:
        why = refusal_of(one, settings)
        if why is None:
            wanted.append(one)
        else:
            done.refused.append((one.letter.key, why))
    if not wanted:
        return done
    topic, settled = settings.topics.name("replay"), len(done.refused)
    count = (await topic_counts(settings, [topic])).get(topic)
    if count is None:
        raise ConfigurationError(f"topic {topic} does not exist: run `drift topics`")
    producer = make_producer(
        settings.kafka,
        max_request_size=_MAX_REQUEST_BYTES,
        enable_idempotence=await supports_idempotence(settings.kafka),
    )
    await producer.start()
    try:
        async with consuming(settings, "dead letters") as consumer:
            own = _kept(consumer, settings, [one for one in wanted if one.needs is None], done)
            anew = _anew(consumer, settings, [one for one in wanted if one.needs is not None], done)
            for batches in (own, anew):
                async for records in batches:
                    await _push(producer, topic, count, records, done)
                    if progress is not None:
                        progress(done.pushed + len(done.refused) - settled, len(wanted))
    except KafkaError as error:
        raise ConfigurationError(
            f"after {done.pushed} dead letters: {type(error).__name__}: {short(str(error))}; replay again, what was "
            "taken is not taken twice"
        ) from error
    finally:
        await producer.stop()
    return done


async def _push(producer: Any, topic: str, partitions: int, records: Sequence[_Record], done: Replayed) -> None:
    under_way = []
    for record in sorted(records, key=lambda one: (one.origin.topic, one.origin.partition, one.origin.offset)):
        origin = record.origin
        headers = [(name, data) for name, data in record.headers if name != HEADER_ORIGIN]
        try:
            sent = await producer.send(
                topic,
                record.value,
                key=record.key,
                partition=stable_hash64(origin.topic, origin.partition) % partitions,
                headers=[*headers, (HEADER_ORIGIN, encode_origin(origin))],
            )
        except MessageSizeTooLargeError:
            why = f"with its headers it is larger than {_MAX_REQUEST_BYTES} bytes, the most that {topic} takes"
            done.refused += [(letter, why) for letter in record.letters]
        else:
            under_way.append((record, sent))
    for record, sent in under_way:
        try:
            await sent
            done.pushed += len(record.letters)
        except MessageSizeTooLargeError:
            why = f"{topic} takes no message of its size: raise its max.message.bytes"
            done.refused += [(letter, why) for letter in record.letters]


# -- what is pushed: bytes of the dead letters, or of their source topics ----------------------------------------------


async def _kept(
    consumer: Any, settings: Settings, found: Sequence[Found], done: Replayed
) -> AsyncIterator[list[_Record]]:
    """Yield the records of dead letters that hold all that is needed, some at a time."""
    topic = settings.topics.name("dead_letter")
    for partition, group in _grouped(found, lambda one: one.place.partition):
        by_offset = {one.place.offset: one for one in group}
        batch: list[_Record] = []
        size = 0
        async for record in read_at(consumer, TopicPartition(topic, partition), sorted(by_offset)):
            letter = decode_dead_letter(record.value, record.headers)
            del by_offset[record.offset]
            origin = origin_of(letter, settings.topics.incarnation)
            batch.append(_Record(origin, letter.payload, letter.message_key, letter.message_headers, (letter.key,)))
            size += len(letter.payload)
            if len(batch) >= AT_ONCE or size >= AT_ONCE_BYTES:
                yield batch
                batch, size = [], 0
        yield batch
        done.refused += [(one.letter.key, f"it has just been deleted from {topic}") for one in by_offset.values()]


async def _anew(
    consumer: Any, settings: Settings, found: Sequence[Found], done: Replayed
) -> AsyncIterator[list[_Record]]:
    """Yield records read from their source topics by coordinate, some at a time."""
    counts = await topic_counts(settings, {one.letter.topic for one in found}) if found else {}
    for (topic, partition), group in _grouped(found, lambda one: (one.letter.topic, one.letter.partition)):
        by_offset = {offset: list(some) for offset, some in _grouped(group, lambda one: one.letter.offset)}
        first = end = 0
        if partition < counts.get(topic, 0):
            where = TopicPartition(topic, partition)
            first, end = await log_range(consumer, where)
            batch: list[_Record] = []
            size = 0
            async for record in read_at(consumer, where, [o for o in sorted(by_offset) if first <= o < end]):
                batch += _of_source(record, by_offset.pop(record.offset), settings, done)
                size += len(record.value or b"")
                if len(batch) >= AT_ONCE or size >= AT_ONCE_BYTES:
                    yield batch
                    batch, size = [], 0
            yield batch
        for offset, some in by_offset.items():
            why = _gone(topic, partition, offset, first, end)
            done.refused += [(one.letter.key, f"{one.needs}, and {why}") for one in some]


def _gone(topic: str, partition: int, offset: int, first: int, end: int) -> str:
    if offset < first:
        return f"{topic}[{partition}] begins at offset {first} by now: its retention has passed"
    if offset >= end:
        return f"{topic}[{partition}] ends at offset {end}: the topic was made anew or is gone"
    return f"{topic}[{partition}] has no record at offset {offset} any more"


def _of_source(record: Any, found: Sequence[Found], settings: Settings, done: Replayed) -> list[_Record]:
    """Return what is to be pushed of one message of a source topic, for all its dead letters."""
    value, current = record.value or b"", settings.topics.incarnation
    wanted: list[Found] = []
    for one in found:
        letter = one.letter
        other = letter.timestamp_ms >= 0 and letter.timestamp_ms != record.timestamp
        other = other or (letter.timestamp_ms < 0 and letter.incarnation not in ("", current))
        if letter.sha256 and not letter.is_alone and letter.index == WHOLE_MESSAGE:
            other = other or hashlib.sha256(value).hexdigest() != letter.sha256
        if other:
            why = f"{one.needs}, and another record stands at its coordinate: the topic was made anew"
            done.refused.append((letter.key, why))
        else:
            wanted.append(one)
    whole = [one for one in wanted if one.letter.index == WHOLE_MESSAGE]
    parts = [one for one in wanted if one.letter.index != WHOLE_MESSAGE]
    groups = [whole] if whole else []
    groups += [parts[at : at + MAX_INDEXES] for at in range(0, len(parts), MAX_INDEXES)]
    return [
        _Record(
            OriginHeader(
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                indexes=tuple(sorted({one.letter.index for one in group if one.letter.index != WHOLE_MESSAGE})),
                incarnation=group[0].letter.incarnation or current,
                timestamp_ms=record.timestamp,
                timestamp_type=record.timestamp_type or 0,
            ),
            value,
            record.key,
            record.headers,
            tuple(one.letter.key for one in group),
        )
        for group in groups
    ]


def _grouped(found: Iterable[Found], key: Callable[[Found], Any]) -> Iterable[tuple[Any, list[Found]]]:
    for value, group in groupby(sorted(found, key=key), key):
        yield value, list(group)
