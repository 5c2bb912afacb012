"""Arrow flows: the same verdicts as for JSON, row by row, and nothing a hostile message says is believed."""

import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.dead_letter import Reason
from streams.result import WHOLE_MESSAGE
from streams.sources import canonical_arrow
from streams.sources.canonical import Canonical
from streams.sources.canonical_arrow import CanonicalArrow
from streams.sources.canonical_json import CanonicalJson
from streams.sources.format import Decoded

JSON = b'{"time_ms":1,"src":"a","dst":"b"}'


class Anything(dict[str | None, int]):
    def __missing__(self, key: str | None) -> int:
        return 0


def stream_of(columns: dict[str, object], codec: str | None = None) -> bytes:
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def columns(rows: int = 3, /, **changes: Any) -> dict[str, object]:
    plain: dict[str, object] = {
        "time_ms": pa.array(range(rows), pa.int64()),
        "src": [f"s{i}" for i in range(rows)],
        "dst": ["d"] * rows,
    }
    return {**plain, **changes}


def flat(decoded: Decoded) -> list[tuple[object, ...]]:
    """Everything known of each row, for comparison across formats."""
    found: list[tuple[object, ...]] = []
    for run in decoded.runs:
        grouping = run.group(None, Anything())
        hosts = run.hosts(range(len(run.message)))
        for row in range(len(run.message)):
            measures = tuple(sorted((n, int(c[row])) for n, c in run.columns.items() if c[row] != -1))
            place = (int(run.message[row]), int(run.index[row]))
            found.append((*place, grouping.edges[grouping.edge[row]], hosts[row], measures))
    return found


def test_arrow_and_json_say_the_same() -> None:
    rng = random.Random(3)
    flows = [
        {
            "time_ms": rng.randrange(10**12),
            "src": f"s{rng.randrange(5)}",
            "dst": f"d{rng.randrange(5)}",
            "tenant": rng.choice(["t1", "t2", None]),
            "port": rng.choice([80, None]),
            "protocol": rng.choice(["tcp", "udp", None]),
            "calls": rng.randrange(1, 9),
            "errors": rng.choice([0, 2, None]),
            "bytes_in": rng.randrange(10**9),
            "reporter": rng.choice(["client", "server", None]),
            "host": rng.choice(["h1", None]),
        }
        for _ in range(200)
    ]
    for run in (slice(0, 200), slice(0, 1)):
        names = flows[0].keys()
        arrow = CanonicalArrow().decode([stream_of({n: [f[n] for f in flows[run]] for n in names})])
        lines = [json.dumps({k: v for k, v in f.items() if v is not None}) for f in flows[run]]
        as_json = CanonicalJson().decode(["\n".join(lines).encode()])
        assert flat(arrow) == flat(as_json)


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_compressed_bodies_are_read(codec: str | None) -> None:
    decoded = CanonicalArrow().decode([stream_of(columns(50), codec)])
    assert len(flat(decoded)) == 50 and not decoded.rejected


def test_dictionary_columns_and_timestamps_are_read() -> None:
    encoded = pa.array(["x", "y", "x"]).dictionary_encode()
    times = pa.array([1_000_000, 2_000_000, 3_000_000], pa.timestamp("us"))
    decoded = CanonicalArrow().decode(
        [stream_of(columns(src=encoded, time_ms=times, port=pa.array([1, 2, 3], pa.uint16())))]
    )
    assert [row[2][1:4] for row in flat(decoded)] == [("x", "d", 1), ("y", "d", 2), ("x", "d", 3)]  # type: ignore[index]
    assert decoded.runs[0].columns["time_ms"].tolist() == [1000, 2000, 3000]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time_ms": pa.array([0, -5, 2], pa.int64())}, Reason.INVALID_VALUE),
        ({"time_ms": pa.array([0, 1 << 44, 2], pa.int64())}, Reason.INVALID_VALUE),
        ({"time_ms": pa.array([0, None, 2], pa.int64())}, Reason.MALFORMED),
        ({"src": ["a", None, "b"]}, Reason.MALFORMED),
        ({"src": ["a", "", "b"]}, Reason.INVALID_VALUE),
        ({"dst": ["a", "x" * 1_000_000, "b"]}, Reason.INVALID_VALUE),
        ({"host": ["a", "", "b"]}, Reason.INVALID_VALUE),
        ({"host": ["a", "x" * 257, None]}, Reason.INVALID_VALUE),
        ({"tenant": ["a", "", None]}, Reason.INVALID_VALUE),
        ({"port": pa.array([1, 70_000, None], pa.int64())}, Reason.INVALID_VALUE),
        ({"protocol": ["tcp", "gre", None]}, Reason.INVALID_VALUE),
        ({"reporter": ["client", "x", None]}, Reason.INVALID_VALUE),
        ({"calls": pa.array([1, 0, None], pa.int32())}, Reason.INVALID_VALUE),
        ({"bytes_out": pa.array([1, (1 << 64) - 1, None], pa.uint64())}, Reason.INVALID_VALUE),
        ({"latency_us": pa.array([1, -1, None], pa.int64())}, Reason.INVALID_VALUE),
    ],
)
def test_a_bad_row_is_a_dead_letter_and_the_rows_around_it_are_counted(change: dict[str, Any], reason: Reason) -> None:
    decoded = CanonicalArrow().decode([stream_of(columns(**change))])
    assert [row[:2] for row in flat(decoded)] == [(0, 0), (0, 2)]
    assert [(bad.message, bad.index, bad.reason) for bad in decoded.rejected] == [(0, 1, reason)]
    again = CanonicalJson().decode([decoded.rejected[0].payload])
    assert not again.runs, "the payload names the same record, as JSON"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (stream_of(columns(0)), Reason.EMPTY),
        (stream_of({"src": ["a"], "dst": ["b"]}), Reason.MALFORMED),
        (stream_of(columns(time_ms=[0.5, 1.0, 2.0])), Reason.MALFORMED),
        (stream_of(columns(time_ms=[float("nan"), 1.0, 2.0])), Reason.MALFORMED),
        (stream_of(columns(src=[1, 2, 3])), Reason.MALFORMED),
        (stream_of(columns(calls=["1", "2", "3"])), Reason.MALFORMED),
        (stream_of(columns())[:200], Reason.MALFORMED),
        (stream_of(columns())[:-30], Reason.MALFORMED),
        (b"\xff\xff\xff\xff", Reason.MALFORMED),
        (b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x00" * 200, Reason.MALFORMED),
        (b"ARROW1\0\0" + b"\0" * 50, Reason.MALFORMED),
    ],
)
def test_a_bad_message_is_named_and_its_neighbours_are_counted(message: bytes, reason: Reason) -> None:
    good = stream_of(columns(2))
    decoded = Canonical().decode([good, message, JSON, good])
    assert [row[:2] for row in flat(decoded)] == [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1)]
    assert [(bad.message, bad.index, bad.reason) for bad in decoded.rejected] == [(1, WHOLE_MESSAGE, reason)]


@pytest.mark.parametrize(("unit", "per_ms"), [("s", None), ("ms", 1), ("us", 1_000), ("ns", 1_000_000)])
def test_a_bad_row_with_a_timestamp_is_kept_as_a_flow_that_can_be_read_again(unit: str, per_ms: int | None) -> None:
    times = [1_700_000_000_000 + n for n in (0, 1_000, 2_000)]
    raw = [at // 1_000 if per_ms is None else at * per_ms + (unit == "ns") for at in times]
    changed = columns(time_ms=pa.array(raw, pa.timestamp(unit)), calls=[1, 0, 1])
    decoded = CanonicalArrow().decode([stream_of(changed)])
    (bad,) = decoded.rejected
    assert (bad.index, bad.reason) == (1, Reason.INVALID_VALUE), "the rows around it count"
    assert json.loads(bad.payload)["time_ms"] == times[1]
    assert decoded.runs[0].columns["time_ms"].tolist() == [times[0], times[2]]


def test_both_spellings_may_alternate() -> None:
    arrow = stream_of(columns(1))
    decoded = Canonical().decode([JSON, arrow, arrow, JSON, JSON, arrow])
    assert [row[0] for row in flat(decoded)] == [0, 1, 2, 3, 4, 5]


def test_columns_may_differ_from_message_to_message() -> None:
    decoded = CanonicalArrow().decode(
        [stream_of(columns(2)), stream_of(columns(2, bytes_in=[5, 6])), stream_of(columns(1))]
    )
    assert [row[:2] for row in flat(decoded)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [dict(row[4]).get("bytes_in") for row in flat(decoded)] == [None, None, 5, 6, None]  # type: ignore[call-overload]


def test_a_small_message_cannot_promise_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = stream_of(
        columns(1_000_000, src=["a"] * 1_000_000, time_ms=pa.array(np.zeros(1_000_000, dtype=np.int64))), "zstd"
    )
    assert len(bomb) < 10_000_000
    monkeypatch.setattr(canonical_arrow, "MAX_DECLARED_BYTES", 10_000_000)
    decoded = CanonicalArrow().decode([bomb])
    assert [bad.reason for bad in decoded.rejected] == [Reason.OVERSIZED]


def test_too_many_rows_are_refused_before_they_are_read() -> None:
    rows = (1 << 20) + 1
    many = {
        "time_ms": pa.nulls(rows, pa.int64()),
        "src": pa.nulls(rows, pa.string()),
        "dst": pa.nulls(rows, pa.string()),
    }
    assert [bad.reason for bad in CanonicalArrow().decode([stream_of(many, "zstd")]).rejected] == [
        Reason.TOO_MANY_RECORDS
    ]


def test_damaged_bytes_never_raise() -> None:
    rng = random.Random(5)
    whole = [stream_of(columns(3, tenant=["t", None, "t"]), codec) for codec in (None, "lz4", "zstd")]
    for turn in range(1_500):
        damaged = bytearray(whole[turn % 3])
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
        decoded = CanonicalArrow().decode([whole[0], bytes(damaged)])
        assert [row[:2] for row in flat(decoded)][:3] == [(0, 0), (0, 1), (0, 2)]
