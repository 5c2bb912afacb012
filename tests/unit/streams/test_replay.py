"""Files as input: every spelling and compression gives the same messages, in bounded pieces, at the pace asked for."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.ids import end_position
from schemas.settings import Settings
from schemas.tenant_log import ENDED, LogRecord, Member
from schemas.topics import HEADER_END, HEADER_LANE
from streams import log_files, replay
from streams.ingest.chunk import chunk_of
from streams.ingest.lanes import read_header
from streams.ingest.readers import ReplayReader
from streams.log_files import CUT_BYTES, MAX_LINE_BYTES, format_for, read_file, shape_of
from streams.replay import Pacer, ReplayLane, Tally, local_records, push_file
from streams.sources.registry import source_format

FLOWS = [{"time_ms": 1_000 * i, "src": f"s{i}", "dst": "ü", "tenant": "acme"} for i in range(7)]
LINES = b"".join(json.dumps(flow).encode() + b"\n" for flow in FLOWS)


def arrow(kind: str) -> bytes:
    table = pa.Table.from_pylist(FLOWS)
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


FILES = {
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace(b"\n", b"\r\n\n"),
    "a.json": json.dumps(FLOWS, indent=2).encode(),
    "concatenated.json": LINES,
    "pretty.json": "\n".join(json.dumps(flow, indent=1) for flow in FLOWS).encode(),
    "stream.arrow": arrow("stream"),
    "file.arrow": arrow("file"),
}


def write(path: Path, data: bytes, compression: str) -> Path:
    if compression == "gzip":
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(data))
    elif compression == "zstd":
        path = path.with_name(path.name + ".zst")
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(data)
    return path


def flows_of(records: list[LogRecord]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for record in records:
        if record.rows is not None:
            found += [edge[:3] for edge in record.rows.edges]
    return found


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("name", [name for name in FILES if name != "file.arrow"])
def test_every_spelling_gives_the_same_flows(name: str, compression: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, FILES[name], compression)
    messages = list(read_file(path))
    assert sum(message.records for message in messages) == len(FLOWS)
    assert 0 < messages[-1].read_bytes <= path.stat().st_size
    assert flows_of(list(local_records(path))) == [("acme", flow["src"], "ü") for flow in FLOWS]


def test_an_arrow_file_is_read_and_a_packed_one_refused_with_advice(tmp_path: Path) -> None:
    assert len(flows_of(list(local_records(write(tmp_path / "file.arrow", FILES["file.arrow"], "none"))))) == len(FLOWS)
    with pytest.raises(ConfigurationError, match="unpack it first"):
        list(read_file(write(tmp_path / "file.arrow", FILES["file.arrow"], "gzip")))


def test_arrow_batches_are_cut_into_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "ARROW_ROWS", 3)
    messages = list(read_file(write(tmp_path / "a.arrow", FILES["stream.arrow"], "none")))
    assert [message.records for message in messages] == [3, 3, 1]


def test_local_records_are_one_unbroken_chain_that_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES + b"junk\n" + LINES, "none")
    letters: list[DeadLetter] = []
    records = list(
        local_records(
            path, lane=ReplayLane("replay:x", window_ms=5_000), flows_per_chunk=4, on_dead_letter=letters.append
        )
    )
    at = -1
    for record in records[:-1]:
        assert record.progress[0].after == at
        at = record.progress[0].upto
    assert at == end_position(2 * len(FLOWS))
    last = records[-1].progress[0]
    assert (last.after, last.upto, last.state) == (at, at, ENDED)
    assert [(letter.offset, letter.reason) for letter in letters] == [(len(FLOWS), Reason.MALFORMED)]
    lane = records[0].lane
    assert lane is not None and (lane.mode, lane.window_ms, lane.members[0].partitions) == ("replay", 5_000, 1)
    assert sum(record.progress[0].dead for record in records) == 1


def test_one_tenant_may_own_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES, "none")
    owned = flows_of(list(local_records(path, lane=ReplayLane("replay:x", tenant="globex"))))
    assert {edge[0] for edge in owned} == {"globex"}


@pytest.mark.parametrize(
    "data", [b'[{"a":1}, {"b":', b'[{"a":1}, junk', b'{"a":1} \xff\xfe{"b":2}', b'{"a":1}' + b'{"x":' * 100_000]
)
def test_damaged_json_gives_what_is_readable_and_one_piece_more(data: bytes, tmp_path: Path) -> None:
    messages = [message.value for message in read_file(write(tmp_path / "a.json", data, "none"))]
    assert messages[0] == b'{"a":1}'
    assert len(messages) == 2
    assert data.endswith(messages[1]) or (len(messages[1]) == CUT_BYTES and messages[1] in data)


def test_a_bomb_is_read_in_pieces_and_its_endless_line_cut(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(40):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\n" + LINES)
    assert path.stat().st_size < 100_000
    messages = list(read_file(path))
    assert [len(message.value) for message in messages[:1]] == [CUT_BYTES]
    assert len(messages) == 1 + len(FLOWS)


def test_lines_up_to_the_limit_are_whole(tmp_path: Path) -> None:
    lines = [b"x" * MAX_LINE_BYTES, b"y" * (MAX_LINE_BYTES + 1), b"z"]
    messages = [message.value for message in read_file(write(tmp_path / "a.jsonl", b"\n".join(lines), "none"))]
    assert messages == [lines[0], lines[1][:CUT_BYTES], lines[2]]


@pytest.mark.parametrize("problem", ["missing", "format", "truncated", "not arrow"])
def test_a_file_that_cannot_be_read_is_named(problem: str, tmp_path: Path) -> None:
    path, name = tmp_path / "a.jsonl.gz", "canonical"
    if problem == "format":
        name = "csv"
    elif problem == "truncated":
        path.write_bytes(gzip.compress(LINES * 100)[:60])
    elif problem == "not arrow":
        path = tmp_path / "a.arrow"
        path.write_bytes(b"no arrow at all")
    with pytest.raises(ConfigurationError, match="unknown format 'csv'" if problem == "format" else "cannot be read"):
        list(read_file(path, name))


# -- producers' files --------------------------------------------------------------------------------------------------

ZEEK = b"""#separator \\x09
#path\tconn
#fields\tts\tproto\tid.resp_h\tid.resp_p\tid.orig_h\tid.orig_p\tconn_state\torig_bytes
1713484795.9\ttcp\t10.0.0.2\t22\t10.0.0.1\t40000\tSF\t7
1713484796.9\ttcp\t10.0.0.2\t22\t10.0.0.1\t40000\tSF
XX\ttcp\t10.0.0.2\t22\t10.0.0.1\t40000\tSF\t7
#close\t2024-04-19-01-00-00
"""
EVE = [
    {"event_type": "dns", "timestamp": "2024-04-19T00:00:00Z"},
    {"event_type": "flow", "src_ip": "10.0.0.1", "dest_ip": "10.0.0.2", "flow": {"start": "2024-04-19T00:00:00Z"}},
]


def zeek_file(tmp_path: Path, compression: str = "none") -> Path:
    return write(tmp_path / "conn.log", ZEEK, compression)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("spelling", ["zeek-conn", "auto", "zeek-conn?time=end"])
def test_a_log_is_read_by_the_columns_its_header_names_and_every_line_counted(
    spelling: str, compression: str, tmp_path: Path
) -> None:
    path = zeek_file(tmp_path, compression)
    tally = Tally()
    records = list(local_records(path, spelling, ReplayLane("replay:x", tenant="t"), tally=tally))
    assert flows_of(records) == [("t", "ip:10.0.0.1", "ip:10.0.0.2")]
    assert (tally.flows, dict(tally.not_flows), dict(tally.dead)) == (
        1,
        {"header": 4},
        {"malformed": 1, "invalid-value": 1},
    )
    assert tally.records == ZEEK.count(b"\n")
    fields = "ts,proto,id.resp_h,id.resp_p,id.orig_h,id.orig_p,conn_state,orig_bytes"
    assert f"fields={fields}" in format_for(path, spelling)
    assert format_for(path, format_for(path, spelling)) == format_for(path, spelling)


def test_columns_that_are_told_win_over_the_file_and_auto_names_what_it_cannot_tell(tmp_path: Path) -> None:
    told = "zeek-conn?fields=ts,id.orig_h,id.resp_h"
    assert format_for(zeek_file(tmp_path), told) == told
    path = write(tmp_path / "a.csv", b"a,b\n1,2\n", "none")
    with pytest.raises(ConfigurationError, match=r"a.csv: the format of the file cannot be told"):
        format_for(path, "auto")


@pytest.mark.parametrize("spelling", ["zeek-conn", "zeek-conn?fields=ts,proto,id.orig_h,id.orig_p,id.resp_h,id.resp_p"])
def test_a_file_whose_columns_change_is_refused_by_the_record_and_not_misread(spelling: str, tmp_path: Path) -> None:
    turned = ZEEK.replace(b"id.orig", b"id.X").replace(b"id.resp", b"id.orig").replace(b"id.X", b"id.resp")
    lane = ReplayLane("replay:x", tenant="t")
    same = write(tmp_path / "same.log", ZEEK + ZEEK, "none")
    assert len(list(local_records(same, spelling, lane, flows_per_chunk=2))) > 1
    changed = write(tmp_path / "changed.log", ZEEK + turned, "none")
    if "?" in spelling:  # columns were told: what the file says of them does not matter
        assert list(local_records(changed, spelling, lane))
        return
    for size in (2, 100):
        with pytest.raises(ConfigurationError, match=r"changed.log: the columns change at record 10: part the file"):
            list(local_records(changed, spelling, lane, flows_per_chunk=size))


def test_other_logs_are_counted_by_name_and_losses_too(tmp_path: Path) -> None:
    path = write(tmp_path / "eve.json", b"".join(json.dumps(event).encode() + b"\n" for event in EVE * 3), "none")
    tally = Tally()
    list(local_records(path, "auto", ReplayLane("replay:x", tenant="t"), flows_per_chunk=2, tally=tally))
    assert (tally.flows, dict(tally.not_flows), tally.dead.total()) == (3, {"dns": 3}, 0)
    lost = {"lost_events": {"source": "PERF_EVENT_RING_BUFFER", "num_events_lost": 5}, "node_name": "n"}
    path = write(tmp_path / "hubble.json", json.dumps(lost).encode(), "none")
    tally = Tally()
    list(local_records(path, "hubble", ReplayLane("replay:x", tenant="t"), tally=tally))
    assert dict(tally.losses) == {"lost_events:PERF_EVENT_RING_BUFFER": 1} and dict(tally.not_flows) == {
        "lost_events": 1
    }


@pytest.mark.parametrize(("name", "compression"), [("a.log.gz", "none"), ("a.jsonl", "gzip"), ("a.gz", "zstd")])
def test_compression_is_told_by_the_first_bytes_and_not_by_the_name(
    name: str, compression: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "packed", LINES, compression)
    path = path.rename(tmp_path / name)
    assert b"".join(message.value + b"\n" for message in read_file(path)) == LINES
    assert shape_of(path) == ("plain" if compression == "none" else compression, "lines")


def test_several_frames_are_one_file_whatever_the_first_holds(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # as pzstd begins
    middle = LINES.index(b"\n", len(LINES) // 2) + 1
    parts = [
        write(tmp_path / f"{n}", part, "zstd").read_bytes() for n, part in enumerate((LINES[:middle], LINES[middle:]))
    ]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(skippable + parts[0] + parts[1])
    assert b"".join(message.value + b"\n" for message in read_file(path)) == LINES


def test_a_damaged_line_of_a_json_file_costs_one_record(tmp_path: Path) -> None:
    first, rest = LINES.split(b"\n", 1)
    tally = Tally()
    records = list(local_records(write(tmp_path / "a.json", first[:20] + b"\n" + rest, "none"), tally=tally))
    assert len(flows_of(records)) == tally.flows == len(FLOWS) - 1
    assert dict(tally.dead) == {"malformed": 1}


def test_arrow_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "flows", FILES["stream.arrow"], "zstd")
    assert shape_of(path) == ("zstd", "arrow")
    assert len(flows_of(list(local_records(path, "auto")))) == len(FLOWS)


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (b"", "lines"),
        (b"  \n\xef\xbb\xbf", "lines"),
        (b"[2024-04-19T00:00:00Z] text", "lines"),
        (b'[{"a": 1}]', "values"),
        (b'{"a": 1}', "lines"),
        (b'{"a": 1}{"b": 2}', "values"),
        (b'{\n "a": 1\n}', "values"),
        (b'{"a":"' + b"x" * 70_000 + b'"}', "lines"),
    ],
)
def test_a_file_is_cut_by_what_it_holds(data: bytes, layout: str, tmp_path: Path) -> None:
    assert shape_of(write(tmp_path / "a.log", data, "none")) == ("plain", layout)


# -- pushing -----------------------------------------------------------------------------------------------------------


class FakeProducer:
    """Keeps what is sent; like aiokafka's, ``send`` returns a future of the acknowledgement."""

    def __init__(self, partitions: int = 3) -> None:
        self.sent: list[tuple[int, bytes, dict[str, bytes]]] = []
        self.running = self.idempotent = False
        self._partitions = partitions

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def partitions_for(self, topic: str) -> set[int]:
        assert topic == "flows-replay"
        return set(range(self._partitions))

    async def send(self, topic: str, value: bytes, partition: int, headers: Any) -> "asyncio.Future[None]":
        assert self.running
        self.sent.append((partition, value, dict(headers)))
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged

    async def send_and_wait(self, topic: str, value: bytes, partition: int, headers: Any) -> None:
        await (await self.send(topic, value, partition, headers))


class FakeClock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 500.0

    def now_ms(self) -> int:
        return int(self.now)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds * 1000


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> FakeProducer:
    fake = FakeProducer()

    def make(_: Any, *, enable_idempotence: bool, **__: Any) -> FakeProducer:
        fake.idempotent = enable_idempotence
        return fake

    async def supported(_: Any) -> bool:
        return True

    monkeypatch.setattr(replay, "make_producer", make)
    monkeypatch.setattr(replay, "supports_idempotence", supported)
    return fake


async def test_a_file_goes_round_robin_in_order_and_every_partition_is_ended(
    producer: FakeProducer, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", LINES, "gzip")
    seen: list[tuple[int, int]] = []
    lane = ReplayLane("replay:x", window_ms=5_000, detection={"learning_windows": 2}, tenant="t")
    pushed = await push_file(
        Settings(), path, "canonical", lane, clock=FakeClock(), progress=lambda done, total: seen.append((done, total))
    )
    assert pushed == len(FLOWS)
    assert [partition for partition, *_ in producer.sent] == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    assert b"\n".join(value for _, value, headers in producer.sent if HEADER_END not in headers) + b"\n" == LINES
    assert [HEADER_END in headers for *_, headers in producer.sent] == [False] * 7 + [True] * 3
    header = read_header(producer.sent[0][2][HEADER_LANE])
    assert (header.name, header.generation, header.window_ms, header.tenant) == ("replay:x", 500, 5_000, "t")
    assert header.detection == {"learning_windows": 2}
    assert len({headers[HEADER_LANE] for *_, headers in producer.sent}) == 1
    assert seen[-1] == (path.stat().st_size,) * 2
    assert not producer.running
    assert producer.idempotent


async def test_event_time_passes_as_fast_as_asked(producer: FakeProducer, tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "a.jsonl", LINES, "none")
    await push_file(Settings(), path, "canonical", ReplayLane("replay:x"), clock=clock, speed=10.0, sleep=clock.sleep)
    assert clock.now == pytest.approx(500 + 6_000 / 10, abs=2)


async def test_a_message_without_a_time_does_not_hold_the_pace() -> None:
    clock = FakeClock()
    pacer = Pacer(source_format("canonical"), 1.0, clock, clock.sleep)
    for value in (b'{"time_ms":0,"src":"a","dst":"b"}', b"junk", b'{"time_ms":70,"src":"a","dst":"b"}'):
        await pacer.wait_for(value)
    assert clock.now == 570


async def test_a_lane_that_is_not_declared_is_refused(producer: FakeProducer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES, "none")
    with pytest.raises(ConfigurationError, match="lane 'x' is not declared"):
        await push_file(Settings(), path, "canonical", ReplayLane("x"), clock=FakeClock())
    await push_file(Settings(), path, "canonical", ReplayLane("default"), clock=FakeClock())
    assert producer.sent


async def test_a_producers_file_goes_with_its_columns_and_is_counted(producer: FakeProducer, tmp_path: Path) -> None:
    path, tally = zeek_file(tmp_path, "zstd"), Tally()
    lane = ReplayLane("replay:x", tenant="t")
    pushed = await push_file(Settings(), path, "auto", lane, clock=FakeClock(), tally=tally)
    assert pushed == tally.records == ZEEK.count(b"\n")
    assert (tally.flows, dict(tally.not_flows), tally.dead.total()) == (1, {"header": 4}, 2)
    header = read_header(producer.sent[0][2][HEADER_LANE])
    assert header.format == format_for(path, "auto") != "auto"
    values = [value for _, value, headers in producer.sent if HEADER_END not in headers]
    assert b"\n".join(values) + b"\n" == ZEEK
    assert sum(len(run.message) for run in source_format(header.format).decode(values).runs) == 1


async def test_a_producers_file_needs_an_owner(producer: FakeProducer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="format zeek-conn holds no tenant: name the owner"):
        await push_file(Settings(), zeek_file(tmp_path), "auto", ReplayLane("replay:x"), clock=FakeClock())
    assert not producer.sent


async def test_a_file_whose_columns_change_is_not_pushed(producer: FakeProducer, tmp_path: Path) -> None:
    changed = write(tmp_path / "changed.log", ZEEK + ZEEK.replace(b"orig_bytes", b"resp_bytes"), "none")
    lane = ReplayLane("replay:x", tenant="t")
    with pytest.raises(ConfigurationError, match="the columns change at record 10"):
        await push_file(Settings(), changed, "zeek-conn", lane, clock=FakeClock(), tally=Tally())
    assert not producer.sent and not producer.running


@pytest.mark.parametrize("spelling", ["auto", "zeek-conn?time=end"])
async def test_the_worker_reads_what_was_pushed_by_the_files_columns(
    spelling: str, producer: FakeProducer, tmp_path: Path
) -> None:
    tally = Tally()
    lane = ReplayLane("replay:x", tenant="t")
    await push_file(Settings(), zeek_file(tmp_path), spelling, lane, clock=FakeClock(), tally=tally)
    rows, letters = 0, 0
    for partition in range(3):
        mine = [(value, tuple(headers.items())) for number, value, headers in producer.sent if number == partition]
        chunk = chunk_of("flows-replay", partition, 0, [v for v, _ in mine], headers=[h for _, h in mine])
        reader = ReplayReader("flows-replay", Member("flows-replay#1", 3), dict, 1, 1 << 20)
        encoded = reader.encode(chunk, -1, "w", 1)
        rows, letters = rows + encoded.rows, letters + len(encoded.dead_letters)
    assert (rows, letters) == (tally.flows, tally.dead.total()) == (1, 2)
