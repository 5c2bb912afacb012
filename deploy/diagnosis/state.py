"""Can the saved state be read by this version, and how old is it? Reads every checkpoint as a start would."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aiokafka import TopicPartition

from deploy.diagnosis.finding import Finding, ok, problem, span, warning
from models.graph.snapshot import restore
from schemas.errors import CheckpointError
from schemas.settings import Settings
from streams.graph.checkpoints import Checkpoints, ChunkStore, FileChunkStore, KafkaChunkStore
from streams.producing import AcknowledgedProducer

OLD_CHECKPOINTS = 4
"""A checkpoint older than so many of its intervals is late."""
READ_S = 10.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint that can be read.

    Attributes:
        written_ms: when, as far as is known.
    """

    offset: int
    incarnation: str
    edges: int
    size_bytes: int
    written_ms: int | None
    read_s: float


Saved = dict[int, Stored | str | None]
"""By partition: the checkpoint, why it cannot be read, or that there is none."""


async def read_saved(settings: Settings, partitions: int, make_consumer: Callable[[], Any]) -> Saved:
    """Read the checkpoint of every partition, one after the other."""
    folder = settings.worker.state_directory
    topic = settings.topics.name("state")
    store: ChunkStore
    if folder is None:
        # Reading needs no producer, and a diagnosis must not be able to write.
        store = KafkaChunkStore(topic, cast(AcknowledgedProducer, None), make_consumer)
    else:
        store = FileChunkStore(folder)
    checkpoints = Checkpoints(store, settings.topics.incarnation)
    saved: Saved = {}
    for number in range(partitions):
        started_s = time.monotonic()
        try:
            loaded = await checkpoints.load(number)
            if loaded is None:
                saved[number] = None
                continue
            manifest, chunks = loaded
            machine = await asyncio.to_thread(restore, chunks)
        except (CheckpointError, OSError) as error:
            saved[number] = " ".join(str(error).split())
            continue
        finally:
            checkpoints.forget(number)
        written_ms = _newest_file_ms(folder, number) if folder is not None else None
        if folder is None:
            written_ms = await _last_record_ms(make_consumer(), topic, number)
        saved[number] = Stored(
            offset=manifest.offset,
            incarnation=manifest.incarnation,
            edges=sum(len(lane.registry) for lane in machine.lanes.values()),
            size_bytes=sum(ref.size_bytes for ref in manifest.chunks.values()),
            written_ms=written_ms,
            read_s=time.monotonic() - started_s,
        )
    return saved


def _newest_file_ms(folder: Path, partition: int) -> int | None:
    try:
        return max(
            (path.stat().st_mtime_ns // 1_000_000 for path in (folder / f"partition-{partition}").iterdir()),
            default=None,
        )
    except OSError:
        return None


async def _last_record_ms(consumer: Any, topic: str, partition: int) -> int | None:
    """Return the timestamp of the last record: what a checkpoint writes, or the tombstones it brings."""
    where = TopicPartition(topic, partition)
    await consumer.start()
    try:
        end = (await consumer.end_offsets([where]))[where]
        if end == 0:
            return None
        consumer.assign([where])
        consumer.seek(where, end - 1)
        async with asyncio.timeout(READ_S):
            return int((await consumer.getone()).timestamp)
    except TimeoutError:
        return None
    finally:
        await consumer.stop()


def judge_saved(saved: Mapping[int, Stored | str | None], settings: Settings, now_ms: int) -> list[Finding]:
    """Judge what was read. Pure."""
    folder = settings.worker.state_directory
    check = f"state {folder if folder is not None else settings.topics.name('state')}"
    findings = [
        problem(f"{check}[{number}]", one, "no worker can take this partition before that is mended")
        for number, one in sorted(saved.items())
        if isinstance(one, str)
    ]
    found = {number: one for number, one in saved.items() if isinstance(one, Stored)}
    if not found:
        return findings or [ok(check, "nothing is saved yet")]
    if not findings:
        size_mb = sum(one.size_bytes for one in found.values()) / 1e6
        edges, read_s = sum(one.edges for one in found.values()), sum(one.read_s for one in found.values())
        findings.append(
            ok(check, f"{len(found)} partitions, {edges:,} edges, {size_mb:.1f} MB, read in {read_s:.1f} s")
        )
    others = sorted({one.incarnation for one in found.values()} - {settings.topics.incarnation})
    if others:
        text = f"is of incarnation {', '.join(others)}, the settings say {settings.topics.incarnation}"
        findings.append(warning(check, text, "the next start keeps baselines and closes open windows as incomplete"))
    ages_ms = [now_ms - one.written_ms for one in found.values() if one.written_ms is not None]
    if ages_ms and (oldest_ms := max(ages_ms)) > OLD_CHECKPOINTS * settings.worker.checkpoint_every_ms:
        text = f"the oldest checkpoint was written {span(oldest_ms)} ago"
        findings.append(warning(check, text, "if workers run, look at drift_checkpoint_age_seconds and at the brokers"))
    return findings
