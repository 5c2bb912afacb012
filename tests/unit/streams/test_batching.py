"""Columns taken from record batches, against aiokafka's own reading; and the budget for what waits."""

import itertools
import random
from collections.abc import Sequence

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from streams.batching.budget import Budget
from streams.batching.records import RAW_LIMIT_BYTES, Columns, FetchedRecords

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
TRANSACTIONAL, CONTROL, LOG_APPEND_TIME = 0x10, 0x20, 0x08
ATTRIBUTES_AT, MAX_TIMESTAMP_AT = 21, 35
ABORT, COMMIT = b"\x00\x00\x00\x00", b"\x00\x00\x00\x01"
EVERYTHING = 1 << 40


def batch(
    base: int,
    rows: Sequence[tuple[int, bytes | None, bytes | None]],
    *,
    codec: int = NONE,
    flags: int = 0,
    producer_id: int = -1,
    last_delta: int | None = None,
    max_timestamp: int | None = None,
) -> bytes:
    """Build a v2 batch as a broker stores it; ``rows`` are (offset delta, key, value), deltas may have gaps."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=1 if flags & TRANSACTIONAL else 0,
        producer_id=producer_id,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 24,
    )
    for delta, key, value in rows:
        builder.append(delta, timestamp=1_000 + base + delta, key=key, value=value, headers=[("h", b"%d" % delta)])
    raw = bytearray(builder.build())
    raw[0:8] = base.to_bytes(8, "big")
    raw[ATTRIBUTES_AT + 1] |= flags
    if last_delta is not None:
        raw[23:27] = last_delta.to_bytes(4, "big", signed=True)
    if max_timestamp is not None:
        raw[MAX_TIMESTAMP_AT : MAX_TIMESTAMP_AT + 8] = max_timestamp.to_bytes(8, "big")
    return sealed(raw)


def sealed(raw: bytearray) -> bytes:
    """Return the batch with the checksum its bytes ask for."""
    raw[17:21] = calc_crc32c(memoryview(raw)[ATTRIBUTES_AT:]).to_bytes(4, "big")
    return bytes(raw)


def plain(base: int, count: int, **options: int) -> bytes:
    return batch(base, [(delta, b"k%d" % delta, b"v%d" % (base + delta)) for delta in range(count)], **options)


def damaged(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :]


def drain(records: FetchedRecords, limit_bytes: int = EVERYTHING) -> list[Columns]:
    taken = []
    while not records.exhausted:
        taken.append(records.take(limit_bytes))
    return taken


def rows_of(taken: list[Columns]) -> list[tuple[object, ...]]:
    return [
        row
        for columns in taken
        for row in zip(
            columns.offsets.tolist(),
            columns.timestamps,
            columns.keys,
            columns.values,
            map(tuple, columns.headers),
            strict=True,
        )
    ]


def read_by_aiokafka(
    raw: bytes, position: int, aborted: Sequence[tuple[int, int]] = (), read_committed: bool = False
) -> tuple[list[tuple[object, ...]], int]:
    reference = PartitionRecords(
        TopicPartition("t", 0),
        MemoryRecords(raw),
        list(aborted),
        position,
        None,
        None,
        True,
        READ_COMMITTED if read_committed else READ_UNCOMMITTED,
    )
    rows: list[tuple[object, ...]] = [
        (r.offset, r.timestamp if r.timestamp is not None else -1, r.key, r.value, r.headers) for r in reference
    ]
    return rows, reference.next_fetch_offset


@pytest.mark.parametrize("seed", range(30))
def test_columns_are_what_aiokafka_reads(seed: int) -> None:
    draw = random.Random(seed)
    parts, base = [], draw.randrange(1_000)
    position, first_end = base, None
    for _ in range(draw.randint(1, 8)):
        size = draw.randint(0, 20)
        deltas = sorted(draw.sample(range(size * 2 + 1), size))  # compaction leaves gaps, and batches without rows
        rows = [
            (delta, draw.choice([None, b"", b"key"]), draw.choice([None, b"", draw.randbytes(draw.randrange(300))]))
            for delta in deltas
        ]
        flags = draw.choice([0, 0, 0, CONTROL]) if size else 0
        parts.append(batch(base, rows, codec=draw.randrange(5), flags=flags, last_delta=size * 2))
        base += size * 2 + 1
        if first_end is None:  # a response begins with the batch that holds the position
            first_end = base
            position = draw.randrange(position, first_end)
        base += draw.choice([0, 0, 7])
    raw = b"".join(parts) + plain(base, 3)[: draw.choice([0, 5, 20, 70])]  # brokers cut the last batch short
    expected, after = read_by_aiokafka(raw, position)
    for limit in (1, 400, EVERYTHING):
        records = FetchedRecords(raw, position=position, log_end=base)
        taken = drain(records, limit)
        assert rows_of(taken) == expected
        assert records.position == after
        assert taken[0].first_offset == position
        assert all(a.next_offset == b.first_offset for a, b in itertools.pairwise(taken))
        assert not any(columns.corrupt for columns in taken)


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY])
def test_formats_before_kafka_0_11_are_read(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=codec, batch_size=1 << 20)
    for offset in range(10):
        builder.append(offset, timestamp=5_000 + offset, key=b"k", value=b"v%d" % offset)
    built = builder.build()
    if codec != NONE:
        built[0:8] = (9).to_bytes(8, "big")  # a wrapper has the offset of its last message
    raw = bytes(built)
    expected, _ = read_by_aiokafka(raw, 0)  # from its middle aiokafka repeats old messages: its position goes back
    records = FetchedRecords(raw, position=4, log_end=10)
    taken = drain(records)
    assert rows_of(taken) == expected[4:] and records.position == 10
    assert [value for columns in taken for value in columns.values] == [b"v%d" % offset for offset in range(4, 10)]


def test_aborted_transactions_and_markers_are_left_out() -> None:
    raw = b"".join(
        [
            plain(0, 3, flags=TRANSACTIONAL, producer_id=7),
            plain(3, 2, flags=TRANSACTIONAL, producer_id=8),
            batch(5, [(0, ABORT, b"\x00\x00\x00\x00\x00\x00")], flags=TRANSACTIONAL | CONTROL, producer_id=7),
            batch(6, [(0, COMMIT, b"\x00\x00\x00\x00\x00\x00")], flags=TRANSACTIONAL | CONTROL, producer_id=8),
            plain(7, 2, flags=TRANSACTIONAL, producer_id=7),
            plain(9, 1),
        ]
    )
    aborted = [(7, 0)]
    expected, after = read_by_aiokafka(raw, 0, aborted, read_committed=True)
    for limit in (1, EVERYTHING):  # what is aborted is remembered between chunks
        records = FetchedRecords(raw, position=0, log_end=10, aborted=aborted, read_committed=True)
        taken = drain(records, limit)
        assert rows_of(taken) == expected and records.position == after == 10
        assert [row[0] for row in rows_of(taken)] == [3, 4, 7, 8, 9]
    uncommitted = FetchedRecords(raw, position=0, log_end=10)
    assert [row[0] for row in rows_of(drain(uncommitted))] == [0, 1, 2, 3, 4, 7, 8, 9]


def test_a_fetch_of_markers_alone_moves_the_position() -> None:
    records = FetchedRecords(batch(5, [(0, COMMIT, b"")], flags=CONTROL), position=5, log_end=6)
    (columns,) = drain(records)
    assert columns.values == [] and columns.corrupt is None
    assert (columns.first_offset, columns.next_offset, records.position) == (5, 6, 6)


def test_chunks_end_at_the_limit_and_at_a_change_of_timestamp_type() -> None:
    raw = plain(0, 5) + plain(5, 5) + plain(10, 5, flags=LOG_APPEND_TIME, max_timestamp=99) + plain(15, 5)
    records = FetchedRecords(raw, position=0, log_end=20)
    taken = drain(records)
    assert [(c.first_offset, c.next_offset, c.timestamp_type) for c in taken] == [(0, 10, 0), (10, 15, 1), (15, 20, 0)]
    assert taken[1].timestamps == [99] * 5  # the broker's time is the batch's
    limited = drain(FetchedRecords(raw, position=0, log_end=20), limit_bytes=1)
    assert [(c.first_offset, c.next_offset) for c in limited] == [(0, 5), (5, 10), (10, 15), (15, 20)]


def zeroed_codec(raw: bytes, codec: int) -> bytes:
    """Claim another codec than the batch was written with, under a good checksum."""
    changed = bytearray(raw)
    changed[ATTRIBUTES_AT + 1] = codec
    return sealed(changed)


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (damaged(plain(10, 10), 80), "checksum"),
        (damaged(plain(10, 10, codec=LZ4), 90), "checksum"),
        (damaged(plain(10, 10), 16), "unknown record format"),
        (damaged(plain(10, 10), 24), "checksum"),  # the count of offsets lies: the next batch tells the end
        (zeroed_codec(plain(10, 10), 7), "codec"),
        (zeroed_codec(plain(10, 10), GZIP), ""),
        (zeroed_codec(plain(10, 10), ZSTD), ""),
        (zeroed_codec(plain(10, 10, codec=LZ4), NONE), ""),
    ],
    ids=["crc", "crc-lz4", "format", "last-delta", "codec-7", "not-gzip", "not-zstd", "not-plain"],
)
def test_a_corrupt_batch_comes_alone_and_is_passed_over(broken: bytes, detail: str) -> None:
    records = FetchedRecords(plain(0, 10) + broken + plain(20, 10), position=0, log_end=30)
    before, reported, behind = drain(records)
    assert before.offsets.tolist() == list(range(10)) and behind.offsets.tolist() == list(range(20, 30))
    assert reported.values == [] and reported.corrupt is not None
    assert (reported.first_offset, reported.next_offset) == (10, 20)
    assert (reported.corrupt.first_offset, reported.corrupt.last_offset) == (10, 19)
    assert reported.corrupt.raw == broken and reported.corrupt.size_bytes == len(broken)
    assert detail in reported.corrupt.detail and "\n" not in reported.corrupt.detail


def test_a_corrupt_batch_at_the_end_is_bounded_by_its_own_count_or_taken_offset_by_offset() -> None:
    by_count = FetchedRecords(damaged(plain(10, 10), 90), position=13, log_end=20)
    (reported,) = drain(by_count)
    assert reported.corrupt is not None
    assert (reported.corrupt.first_offset, reported.corrupt.last_offset, by_count.position) == (13, 19, 20)
    lying = damaged(plain(10, 10), 23)  # claims billions of offsets
    position, reports = 10, 0
    kept: list[int] = []
    while position < 20:
        records = FetchedRecords(lying, position=position, log_end=20)  # the broker sends it again
        (reported,) = drain(records)
        assert reported.corrupt is not None and records.position == position + 1
        position, reports = records.position, reports + 1
        kept.append(len(reported.corrupt.raw))
    assert reports == 10 and kept == [len(lying), *[0] * 9]


def test_checksums_are_not_verified_when_told_so() -> None:
    broken = damaged(plain(0, 3), 18)  # the checksum itself
    (trusted,) = drain(FetchedRecords(broken, position=0, log_end=3, check_crcs=False))
    assert trusted.offsets.tolist() == [0, 1, 2] and trusted.corrupt is None
    (verified,) = drain(FetchedRecords(broken, position=0, log_end=3))
    assert verified.corrupt is not None


@pytest.mark.parametrize("length", [-1, 0, 5, 2**31 - 1], ids=["negative", "zero", "tiny", "huge"])
def test_a_damaged_length_is_reported_and_does_not_stop_the_partition(length: int) -> None:
    raw = bytearray(plain(10, 10))
    raw[8:12] = length.to_bytes(4, "big", signed=True)
    records = FetchedRecords(bytes(raw), position=10, log_end=20)
    (reported,) = drain(records)
    assert reported.corrupt is not None and "length is damaged" in reported.corrupt.detail
    assert (reported.corrupt.first_offset, reported.corrupt.last_offset, records.position) == (10, 10, 11)
    behind_good_ones = FetchedRecords(plain(0, 10) + bytes(raw), position=0, log_end=20)
    (good,) = drain(behind_good_ones)
    assert good.corrupt is None and behind_good_ones.position == 10  # reported once the next fetch begins with it


def test_the_reported_bytes_are_bounded() -> None:
    big = damaged(batch(0, [(0, None, b"x" * 200_000)]), 1_000)
    (reported,) = drain(FetchedRecords(big, position=0, log_end=1))
    assert reported.corrupt is not None
    assert len(reported.corrupt.raw) == RAW_LIMIT_BYTES and reported.corrupt.size_bytes == len(big)


def test_size_counts_payload_and_objects() -> None:
    (columns,) = drain(FetchedRecords(batch(0, [(0, b"key", b"x" * 1_000), (1, None, None)]), position=0, log_end=2))
    assert columns.size_bytes == 1_003 + 2 * 150


class TestBudget:
    def make(self, max_bytes: int = 100, max_chunks: int = 2) -> tuple[Budget, list[str]]:
        woken: list[str] = []
        return Budget(max_bytes, max_chunks, lambda: woken.append("woken")), woken

    def test_a_partition_with_nothing_waiting_is_always_admitted(self) -> None:
        budget, _ = self.make()
        leases = [budget.lend("a", 1_000)]
        assert budget.admits("b") and not budget.admits("a")
        leases.append(budget.lend("b", 1_000))
        assert not budget.admits("b")
        assert budget.lent_bytes == 2_000

    def test_chunks_of_a_partition_are_bounded(self) -> None:
        budget, _ = self.make(max_bytes=1_000_000)
        leases = [budget.lend("a", 1)]
        assert budget.admits("a")
        leases.append(budget.lend("a", 1))
        assert not budget.admits("a") and budget.admits("b")

    def test_a_release_counts_once_and_wakes_after_a_refusal(self) -> None:
        budget, woken = self.make()
        lease, other = budget.lend("a", 70), budget.lend("a", 70)
        lease.release()
        assert woken == []  # nobody was refused
        assert budget.admits("a")
        lease.release()
        assert budget.lent_bytes == 70
        again = budget.lend("a", 70)
        assert not budget.admits("a")
        other.release()
        again.release()
        assert woken == ["woken"]
        assert budget.admits("a") and budget.lent_bytes == 0

    def test_a_lost_lease_is_given_back(self) -> None:
        budget, woken = self.make()
        lease = budget.lend("a", 1_000)
        assert not budget.admits("a")
        del lease
        assert woken == ["woken"] and budget.lent_bytes == 0
