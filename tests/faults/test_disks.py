"""Disks that fill up and are freed again: nothing is lost, nothing is doubled, and everybody goes on."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.clickhouse_dsn import is_embedded
from streams.clickhouse import connect
from streams.metrics import Metrics
from streams.migrate import migrate
from streams.sinks.rows import graph_rows
from streams.sinks.writer import PartitionWriter, Poison
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, ClickHouse, make_window, messages_of
from tests.faults.clickhouse_front import ClickHouseFront
from tests.faults.disks import NoSmallDisk, SmallDisk

MIB = 1 << 20
WINDOWS = [
    make_window(HOUR_MS + number * MINUTE_MS, [{"src": f"s{edge}", "dst": "t", "calls": edge} for edge in range(50)])
    for number in range(4)
]
STORED = [(200, 4 * sum(range(50)))]


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mount a small disk, or skip and say why not."""
    made: list[SmallDisk] = []

    def make(size_bytes: int) -> SmallDisk:
        disk = SmallDisk(tmp_path / f"disk-{len(made)}", size_bytes)
        try:
            disk.mount()
        except NoSmallDisk as reason:
            print(f"no small disk: {reason}")
            pytest.skip(f"no small disk: {reason}")
        made.append(disk)
        return disk

    yield make
    for disk in made:
        disk.unmount()
        assert not disk.path.is_mount()


class FreesAfter:
    """The waits of a writer: after so many the disk has room again. ``count`` is how many there were."""

    def __init__(self, disk: SmallDisk, waits: int) -> None:
        self.disk, self.waits, self.count = disk, waits, 0

    async def __call__(self, _: float) -> None:
        self.count += 1
        if self.count == self.waits:
            self.disk.free()


def writer_of(ch: ClickHouse, sleep: FreesAfter) -> PartitionWriter:
    async def fail(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    return PartitionWriter(ch.client, ch.database, "graph-windows", 0, graph_rows, fail, Metrics(), sleep=sleep)


def test_a_small_disk_is_full_when_it_says_so_and_gone_afterwards(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", 4 * MIB)
    try:
        with disk:
            assert disk.free_bytes == 4 * MIB
            assert disk.fill(leave_bytes=MIB) == 3 * MIB
            disk.fill()
            assert disk.free_bytes == 0
            with pytest.raises(OSError, match="No space left"), (disk.path / "more").open("wb", buffering=0) as file:
                file.write(b"x")
            disk.free()
            assert disk.free_bytes == 4 * MIB
        assert not disk.path.is_mount()
    except NoSmallDisk as reason:
        pytest.skip(f"no small disk: {reason}")


async def test_clickhouses_disk_full_holds_the_sink_up_and_costs_nothing(
    disk_of: Callable[[int], SmallDisk], tmp_path: Path
) -> None:
    disk = disk_of(64 * MIB)
    front = ClickHouseFront(disk.path / "clickhouse", directory=tmp_path / "front")
    try:
        await asyncio.to_thread(front.start)
        ch = ClickHouse(connect(front.settings()), front.settings(), "drift")
        migrate(ch.client, ch.database, 90)
        waits = FreesAfter(disk, 3)
        writer = writer_of(ch, waits)
        await writer.write(messages_of(WINDOWS[0]))
        disk.fill()
        await writer.write(messages_of(*WINDOWS, first_offset=0))
        assert waits.count == 3
        assert front.stats().errors == {243: 3}
        # Again from the start, cut otherwise, as after a crash; and the disk filled up in between.
        disk.fill()
        waits.count = 0
        for message in messages_of(*WINDOWS):
            await writer.write([message])
        assert waits.count == 3
        assert ch.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
        assert ch.rows("SELECT count() FROM {db}.windows FINAL") == [(4,)]
        # What was stored survives a crash of the engine.
        front.kill()
        await asyncio.to_thread(front.start)
        assert ch.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
    finally:
        front.stop()


async def test_a_full_temporary_folder_holds_embedded_inserts_up(
    disk_of: Callable[[int], SmallDisk], clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_embedded(clickhouse.settings):
        pytest.skip("only embedded inserts go through a temporary file")
    disk = disk_of(4 * MIB)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    waits = FreesAfter(disk, 3)
    writer = writer_of(clickhouse, waits)
    disk.fill()
    await writer.write(messages_of(*WINDOWS))
    assert waits.count == 3
    disk.fill(leave_bytes=4096)  # room for a file, not for the rows
    waits.count = 0
    await writer.write(messages_of(*WINDOWS, first_offset=50))
    assert waits.count == 3
    assert clickhouse.rows("SELECT count(), sum(calls) FROM {db}.edges_1m FINAL") == STORED
    assert list(disk.path.iterdir()) == []  # and leaves nothing behind
