"""Recovery from a log of chunks: what was last whole comes back, whatever lies behind it, and only that is read."""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import msgspec
import pytest

from schemas.errors import CheckpointError
from streams.graph.checkpoint_search import LogReader, StoredRecord
from streams.graph.checkpoints import Checkpoints
from streams.graph.manifests import ChunkRef, Manifest, encode_manifest, order_of

PARTITION = 5


class Crash(Exception):
    """The process dies here."""


class Log:
    """A compacted topic: one partition, as the broker keeps it."""

    def __init__(self) -> None:
        self.records: list[StoredRecord] = []
        self.next_position = 0
        self.read_positions: list[int] = []
        self.puts_left: int | None = None

    async def put(self, partition: int, key: str, value: bytes) -> int:
        if self.puts_left is not None:
            self.puts_left -= 1
            if self.puts_left < 0:
                raise Crash
        return self.append(key, value)

    def append(self, key: str, value: bytes | None) -> int:
        self.records.append(StoredRecord(self.next_position, key, value))
        self.next_position += 1
        return self.next_position - 1

    async def remove(self, partition: int, keys: Iterable[str]) -> None:
        for key in keys:
            self.append(key, None)

    async def read_all(self, partition: int) -> dict[str, bytes]:
        raise AssertionError("a log is read from its end")

    @asynccontextmanager
    async def reading(self, partition: int) -> AsyncIterator[LogReader]:
        assert partition == PARTITION
        yield _Reader(self)

    def compact(self, up_to: int, with_tombstones: bool) -> None:
        """Do what the broker's cleaner does to all before a position."""
        last = {record.key: record.position for record in self.records}
        self.records = [
            record
            for record in self.records
            if record.position >= up_to
            or (last[record.key] == record.position and not (with_tombstones and record.value is None))
        ]

    def live(self) -> dict[str, bytes]:
        """Return what a full compaction would leave."""
        found: dict[str, bytes] = {}
        for record in self.records:
            found.pop(record.key, None)
            if record.value is not None:
                found[record.key] = record.value
        return found


class _Reader:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.first = log.records[0].position if log.records else log.next_position
        self.end = log.next_position

    async def read(self, first: int, last: int) -> AsyncIterator[StoredRecord]:
        for record in [r for r in self.log.records if first <= r.position < last]:
            self.log.read_positions.append(record.position)
            yield record


PAGES = 30


class Writer:
    """A worker whose state is a number a page; the page that a log offset changes follows from the offset alone."""

    def __init__(self, log: Log, incarnation: str = "1") -> None:
        self.log = log
        self.checkpoints = Checkpoints(log, incarnation)
        self.pages = [0] * PAGES
        self.dirty = set(range(PAGES))
        self.offset = -1
        self.is_owner = True

    def step(self, count: int = 1) -> None:
        """Apply so many records of the log."""
        for _ in range(count):
            self.offset += 1
            page = self.offset * 7 % PAGES
            self.pages[page] = self.offset
            self.dirty.add(page)

    async def checkpoint(self) -> None:
        chunks = [(f"page/{n}", b"%d" % value if n in self.dirty else None) for n, value in enumerate(self.pages)]
        await self.checkpoints.write(PARTITION, self.offset, 0, [*chunks, ("meta", b"%d" % self.offset)])
        self.dirty.clear()
        if self.is_owner:
            await self.checkpoints.prune(PARTITION)

    @classmethod
    async def recovered(cls, log: Log, at_least: int = -1, incarnation: str = "1") -> "Writer":
        writer = cls(log, incarnation)
        loaded = await writer.checkpoints.load(PARTITION, at_least)
        if loaded is not None:
            _, chunks = loaded
            writer.pages = [int(chunks[f"page/{n}"]) for n in range(PAGES)]
            writer.offset = int(chunks["meta"])
            writer.dirty.clear()
        return writer


def state_at(offset: int) -> list[int]:
    straight = Writer(Log())
    straight.step(offset + 1)
    return straight.pages


async def grown(checkpoints: int, records: int = 3) -> Log:
    log = Log()
    writer = Writer(log)
    for _ in range(checkpoints):
        writer.step(records)
        await writer.checkpoint()
    return log


async def test_an_empty_log_has_no_checkpoint() -> None:
    assert await Checkpoints(Log(), "1").load(PARTITION) is None


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 50])
async def test_the_newest_checkpoint_comes_back(checkpoints: int) -> None:
    writer = await Writer.recovered(await grown(checkpoints))
    assert writer.offset == 3 * checkpoints - 1
    assert writer.pages == state_at(writer.offset)


async def test_of_a_long_log_only_its_end_and_the_live_chunks_are_read() -> None:
    log = await grown(600)
    await Writer.recovered(log, at_least=1_790)
    assert len(log.records) > 4_000
    assert len(log.read_positions) < 400


@pytest.mark.parametrize("with_tombstones", [False, True])
async def test_compaction_changes_nothing(with_tombstones: bool) -> None:
    log = await grown(200)
    log.compact(log.next_position - 5, with_tombstones)
    log.compact(log.next_position - 5, with_tombstones)
    log.read_positions.clear()
    writer = await Writer.recovered(log, at_least=599)
    assert (writer.offset, writer.pages) == (599, state_at(599))


async def test_a_checkpoint_cut_short_is_passed_over_and_its_chunks_are_removed_later() -> None:
    for cut in range(PAGES + 2):
        log = await grown(4)
        writer = await Writer.recovered(log)
        writer.step(40)
        log.puts_left = cut
        with pytest.raises(Crash):
            await writer.checkpoint()
        log.puts_left = None
        again = await Writer.recovered(log)
        assert (again.offset, again.pages) == (11, state_at(11)), f"cut after {cut} chunks"
        for _ in range(3):
            again.step(41)  # other offsets than those of the checkpoint that was cut short
            await again.checkpoint()
        assert _garbage(log) == set(), f"cut after {cut} chunks"


def _garbage(log: Log) -> set[str]:
    live = log.live()
    manifests = [msgspec.json.decode(live[key], type=Manifest) for key in live if key.startswith("manifest@")]
    assert len(manifests) == 2
    return set(live) - {key for m in manifests for key in (m.key, *m.keys().values())}


async def test_restarts_leave_nothing_behind() -> None:
    log = Log()
    for _ in range(12):
        writer = await Writer.recovered(log, at_least=0)
        writer.step(5)
        await writer.checkpoint()
    assert _garbage(log) == set()


async def test_a_checkpoint_of_a_worker_that_noted_no_positions_is_found() -> None:
    """As the version before this one wrote them."""
    log = await grown(30)
    for number, record in enumerate(log.records):
        if record.value is not None and record.key.startswith("manifest@"):
            manifest = msgspec.json.decode(record.value)
            del manifest["previous"]
            manifest["chunks"] = {name: ref[:4] for name, ref in manifest["chunks"].items()}
            log.records[number] = StoredRecord(record.position, record.key, msgspec.json.encode(manifest))
    writer = await Writer.recovered(log)
    assert (writer.offset, writer.pages) == (89, state_at(89))
    writer.step(3)
    await writer.checkpoint()
    log.read_positions.clear()
    again = await Writer.recovered(log, at_least=92)
    assert (again.offset, again.pages) == (92, state_at(92))
    assert len(log.read_positions) < len(log.records)  # the positions it found were handed on


def test_the_version_before_this_one_can_read_what_is_written_now() -> None:
    class OldRef(msgspec.Struct, frozen=True, array_like=True):
        offset: int
        size_bytes: int
        digest: str
        epoch: int = 0

    class OldManifest(msgspec.Struct, frozen=True):
        offset: int
        events_offset: int
        incarnation: str
        chunks: dict[str, OldRef]
        v: int = 1
        epoch: int = 0

    stored = encode_manifest(Manifest(7, 3, "1", {"meta": ChunkRef(7, 10, "ab", 2, 55)}, epoch=2, previous=50))
    old = msgspec.json.decode(stored, type=OldManifest)
    assert old == OldManifest(7, 3, "1", {"meta": OldRef(7, 10, "ab", 2)}, 1, 2)


@pytest.mark.parametrize("version", [2, 0, "1", None])
async def test_a_manifest_of_another_version_is_refused_by_name(version: object) -> None:
    log = await grown(3)
    stored = msgspec.json.decode(encode_manifest(Manifest(9, 0, "1", {}))) | {"v": version}
    log.append("manifest@9", msgspec.json.encode(stored))
    with pytest.raises(CheckpointError, match=f"manifest version {version}, this worker reads version 1: run the vers"):
        await Writer.recovered(log)


async def test_a_manifest_that_is_none_is_refused() -> None:
    log = await grown(1)
    log.append("manifest@9", b"\xff\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        await Writer.recovered(log)


async def test_a_checkpoint_without_its_chunks_gives_way_to_the_one_before() -> None:
    log = await grown(6)
    log.append("meta@17", None)
    writer = await Writer.recovered(log, at_least=17)
    assert (writer.offset, writer.pages) == (14, state_at(14))


async def test_no_whole_checkpoint_is_said_and_not_guessed() -> None:
    log = await grown(2)
    log.records = [record for record in log.records if not record.key.startswith("meta@")]
    with pytest.raises(CheckpointError, match="each of its 2 checkpoints"):
        await Writer.recovered(log)


async def test_a_zombies_older_checkpoint_at_the_end_of_the_log_does_not_win() -> None:
    log = await grown(5)
    zombie = await Writer.recovered(log)
    owner = await Writer.recovered(log)
    for _ in range(30):
        owner.step(4)
        await owner.checkpoint()
    zombie.step(1)
    await zombie.checkpoint()
    committed = owner.offset
    again = await Writer.recovered(log, at_least=committed)
    assert (again.offset, again.pages) == (owner.offset, state_at(owner.offset))


async def test_a_zombie_of_an_older_incarnation_does_not_win() -> None:
    log = await grown(50)
    zombie = await Writer.recovered(log)
    owner = await Writer.recovered(log, incarnation="2")
    owner.offset = 3
    await owner.checkpoint()
    zombie.step(100)
    await zombie.checkpoint()
    again = await Writer.recovered(log, at_least=3, incarnation="2")
    assert again.offset == 3
    third = await Writer.recovered(log, at_least=249, incarnation="3")
    assert third.offset == 3


async def choreography(seed: int, may_zombies_remove: bool = False) -> None:
    """An owner and zombies, each may die at any put, the log is compacted at any time: what comes back is true."""
    rng = random.Random(seed)
    log = Log()
    writers = [Writer(log) for _ in range(3)]
    owner = active = writers[0]
    committed = before = -1
    for writer in writers[1:]:
        writer.is_owner = may_zombies_remove
    for _ in range(150):
        action = rng.random()
        if action < 0.7:
            writer = active = rng.choice(writers) if rng.random() < 0.2 else active
            writer.step(rng.randrange(1, 8))
            log.puts_left = rng.randrange(PAGES + 3) if rng.random() < 0.1 else None
            try:
                await writer.checkpoint()
                if writer is owner:
                    before, committed = committed, writer.offset
            except Crash:
                if writer is owner:
                    action = 1.0
            log.puts_left = None
        elif action < 0.8:
            log.compact(rng.randrange(log.next_position + 1), rng.random() < 0.5)
        if action >= 0.9:  # another worker, or the same one anew; the one before goes on as a zombie or is dead
            owner.is_owner = may_zombies_remove
            owner = await Writer.recovered(log, committed)
            # A zombie's checkpoint at the very same offset takes the key of the owner's: then the one before is there.
            assert owner.offset >= before
            assert owner.offset < 0 or owner.pages == state_at(owner.offset)
            writers[rng.randrange(3)] = active = owner


async def test_owners_zombies_crashes_and_compaction_never_give_a_false_state() -> None:
    for seed in range(30, 70):
        await choreography(seed)


async def test_a_zombie_that_removes_what_it_does_not_need_breaks_the_owners_checkpoints() -> None:
    """Why pruning waits for the commit: the choreography finds out at once when it does not."""
    with pytest.raises((CheckpointError, AssertionError)):
        for seed in range(50, 60):
            await choreography(seed, may_zombies_remove=True)


@pytest.mark.parametrize(
    ("key", "order"),
    [("manifest@12", (0, 12)), ("a@b/edges/0@3.40", (3, 40)), ("nothing", None), ("x@", None), ("x@a.5", None)],
)
def test_a_key_tells_its_order(key: str, order: tuple[int, int] | None) -> None:
    assert order_of(key) == order
