"""Replayed dead letters through the reader: the rules of their own topic, their own coordinates, no clock."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.graph.machine import Machine
from schemas.dead_letter import (
    KEPT_PAYLOAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEY_BYTES,
    MAX_PAYLOAD_BYTES,
    DeadLetter,
    Reason,
)
from schemas.ids import split_position
from schemas.settings import FlowTopic
from schemas.tenant_log import ORIGIN, LaneConfig, Member, decode_record, unpack_column, unpack_positions
from schemas.topics import DAY_MS, HEADER_END, HEADER_LANE, HEADER_ORIGIN
from streams.dead_letters import (
    decode_dead_letter,
    encode_dead_letter,
    merge,
    needs_source,
    unreplayable,
)
from streams.ingest import chain
from streams.ingest.chain import position_before
from streams.ingest.chunk import LOG_APPEND_TIME, Headers, chunk_of
from streams.ingest.lanes import LaneHeader, encode_header
from streams.ingest.readers import Encoded, FlowReader, ReplayReader
from streams.ingest.replayed import MAX_INDEXES, OriginHeader, encode_origin, origin_of, read_origin
from streams.result import WHOLE_MESSAGE, Refusal

LANE = LaneConfig("default", members=(Member("flows#1", 2),))
MEMBER = Member("flows-replay#1", 3)
TARGETS = 3
AS_OF_MS = 10 * DAY_MS


def flow(**changes: object) -> bytes:
    return json.dumps({"time_ms": 5, "src": "a", "dst": "b", "tenant": "acme", **changes}).encode()


def array(*records: bytes) -> bytes:
    return b"[" + b",".join(records) + b"]"


def reader_of(**topic: Any) -> ReplayReader:
    flows = FlowReader(FlowTopic(**topic), "flows#1", LANE, TARGETS)
    return ReplayReader("flows-replay", MEMBER, lambda: {"default": LANE}, TARGETS, 1 << 20, {"flows": flows})


def origin(offset: int, *indexes: int, **changes: Any) -> Headers:
    values: dict[str, Any] = {"topic": "flows", "partition": 0, "incarnation": "1", **changes}
    return [(HEADER_ORIGIN, encode_origin(OriginHeader(offset=offset, indexes=indexes, **values)))]


def encode(
    messages: list[tuple[Headers, bytes]], first: int = 10, keys: list[bytes | None] | None = None, **topic: Any
) -> Encoded:
    chunk = chunk_of("flows-replay", 0, first, [v for _, v in messages], headers=[h for h, _ in messages], keys=keys)
    return reader_of(**topic).encode(chunk, position_before(first), "w", AS_OF_MS)


def rows_of(encoded: Encoded) -> list[tuple[str, int, int, int, str]]:
    """(source, partition, offset, index, tenant) of each row of all targets, in order of origin."""
    found = []
    for mine in encoded.records:
        for record in map(decode_record, mine):
            if record.rows is None:
                continue
            assert record.origin is not None and record.lane == LANE
            assert not record.progress[0].clocks and record.progress[0].source == "flows-replay#1"
            origins = unpack_column(record.rows.columns[ORIGIN], record.rows.count).tolist()
            edges = unpack_column(record.rows.columns["edge"], record.rows.count).tolist()
            found += [
                (*record.origin, *split_position(at), record.rows.edges[edge][0])
                for at, edge in zip(origins, edges, strict=True)
            ]
    return sorted(found)


def test_a_record_alone_has_the_coordinate_of_its_dead_letter() -> None:
    encoded = encode([(origin(7, 3, alone=True), flow()), (origin(8, 0, alone=True), flow(tenant="globex"))])
    assert rows_of(encoded) == [("flows#1", 0, 7, 3, "acme"), ("flows#1", 0, 8, 0, "globex")]
    assert not encoded.dead_letters and not encoded.lanes and encoded.rows == 2


def test_of_a_whole_message_all_records_or_those_named_are_taken() -> None:
    message = array(flow(tenant="t0"), flow(tenant="t1"), b"{}", flow(tenant="t3"))
    encoded = encode([(origin(7), message), (origin(8, 1, 3), message)])
    assert rows_of(encoded) == [
        ("flows#1", 0, 7, 0, "t0"),
        ("flows#1", 0, 7, 1, "t1"),
        ("flows#1", 0, 7, 3, "t3"),
        ("flows#1", 0, 8, 1, "t1"),
        ("flows#1", 0, 8, 3, "t3"),
    ]
    assert [(letter.key, letter.payload, letter.is_alone) for letter in encoded.dead_letters] == [
        ("flows:0:7:2", b"{}", True)
    ], "what is wrong with records that nobody asked for is not said again"


def test_what_is_still_bad_is_a_dead_letter_of_its_own_coordinate_with_all_it_had() -> None:
    headers = [("h", b"1"), ("n", None), *origin(7, 3, alone=True, timestamp_ms=77, timestamp_type=1)]
    encoded = encode([(headers, b"{}"), (origin(8), b"junk")], keys=[b"k", None])
    record, message = encoded.dead_letters
    assert (record.key, record.reason, record.payload, record.is_alone) == (
        "flows:0:7:3",
        Reason.MALFORMED,
        b"{}",
        True,
    )
    assert (record.message_key, record.message_headers) == (b"k", (("h", b"1"), ("n", None)))
    assert (record.timestamp_ms, record.timestamp_type, record.incarnation) == (77, 1, "1")
    assert (message.key, message.is_alone) == (f"flows:0:8:{WHOLE_MESSAGE}", False)
    assert origin_of(record, "9") == OriginHeader(
        topic="flows",
        partition=0,
        offset=7,
        indexes=(3,),
        incarnation="1",
        alone=True,
        timestamp_ms=77,
        timestamp_type=1,
    )
    assert sum(r.progress[0].dead for r in map(decode_record, encoded.records[0])) == 0, "they were counted before"


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        (origin(7, 0, alone=True), array(flow(), flow()), "one record was expected, the value holds 2"),
        (origin(7, 5), array(flow(), flow()), "the message holds no record 5"),
        (origin(7, 1), flow(), "the message holds no record 1"),
    ],
)
def test_a_record_that_is_not_there_is_dead_again(header: Headers, value: bytes, says: str) -> None:
    encoded = encode([(header, value)])
    (letter,) = encoded.dead_letters
    assert (letter.detail, letter.payload, encoded.rows) == (says, value, 0)


def test_the_rules_of_the_topic_hold_as_they_are_now() -> None:
    records: list[tuple[Headers, bytes]] = [
        ([("x-tenant", b"acme"), *origin(1, 0, alone=True)], flow(tenant=None)),
        ([("x-tenant", b"evil"), *origin(2, 0, alone=True)], flow()),
        ([*origin(3, 0, alone=True)], flow()),
        ([("x-tenant", b"acme"), *origin(4, 0, alone=True)], flow(src="x" * 2_000)),
    ]
    encoded = encode(records, tenant_from="header:x-tenant", tenants=("acme",), max_message_bytes=1_024)
    assert rows_of(encoded) == [("flows#1", 0, 1, 0, "acme")]
    assert [(letter.offset, letter.reason) for letter in encoded.dead_letters] == [
        (2, Reason.TENANT_NOT_ALLOWED),
        (3, Reason.UNKNOWN_TENANT),
        (4, Reason.OVERSIZED),
    ]
    by_key = encode([(origin(1, 0, alone=True), flow())], keys=[b"globex"], tenant_from="key")
    assert rows_of(by_key) == [("flows#1", 0, 1, 0, "globex")]


def test_a_topic_that_is_no_longer_configured_is_refused() -> None:
    encoded = encode([(origin(7, 0, topic="gone"), flow()), (origin(8, 0, alone=True), flow())])
    assert [(letter.key, letter.reason) for letter in encoded.dead_letters] == [("gone:0:7:0", Reason.LANE_UNDECLARED)]
    assert "topic 'gone', which it comes from, is no longer configured" in encoded.dead_letters[0].detail
    assert rows_of(encoded) == [("flows#1", 0, 8, 0, "acme")]
    (refused,) = [r for r in map(decode_record, encoded.records[0]) if r.lane is None]
    assert refused.origin is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"junk",
        b"{}",
        b'{"topic":"flows","partition":-1,"offset":1,"incarnation":"1"}',
        b'{"topic":"flows","partition":0,"offset":9999999999999999,"incarnation":"1"}',
        b'{"topic":"flows","partition":0,"offset":1,"incarnation":"1","alone":true}',
        b'{"topic":"flows","partition":0,"offset":1,"incarnation":"1","indexes":[1048575]}',
    ],
)
def test_an_origin_that_cannot_be_read_is_a_dead_letter_of_the_replay(data: bytes | None) -> None:
    encoded = encode([([(HEADER_ORIGIN, data)], flow()), ([(HEADER_ORIGIN, data)], flow())])
    assert [(letter.topic, letter.offset, letter.reason) for letter in encoded.dead_letters] == [
        ("flows-replay", 10, Reason.LANE_UNDECLARED),
        ("flows-replay", 11, Reason.LANE_UNDECLARED),
    ]
    with pytest.raises(Refusal):
        read_origin(data)


def test_a_chunk_is_cut_where_the_source_partition_changes_and_other_records_go_their_way() -> None:
    lane = [(HEADER_LANE, encode_header(LaneHeader(name="replay:x")))]
    hostile = [*lane, (HEADER_END, b"1"), *origin(3, 0, alone=True)]
    encoded = encode(
        [
            (origin(1, 0, alone=True), flow()),
            (origin(2, 0, alone=True), flow()),
            (origin(1, 0, alone=True, partition=1), flow()),
            (origin(1, 0, alone=True, incarnation="2"), flow()),
            (lane, flow()),
            (hostile, flow()),
        ]
    )
    seen = [
        (record.lane and record.lane.name, record.origin, record.progress[0].state)
        for record in map(decode_record, encoded.records[0])
    ]
    assert seen == [
        ("default", ("flows#1", 0), 0),
        ("default", ("flows#1", 1), 0),
        ("default", ("flows#2", 0), 0),
        ("replay:x", None, 0),
        ("default", ("flows#1", 0), 0),
    ]
    assert [progress.lane.name for progress in encoded.lanes] == ["replay:x"]


def test_a_dead_letter_of_a_replay_into_a_declared_lane_goes_back_by_its_own_header() -> None:
    lane = (HEADER_LANE, encode_header(LaneHeader(name="default", tenant="globex")))
    encoded = encode([([lane, *origin(7, 0, alone=True, topic="flows-replay")], flow())])
    assert rows_of(encoded) == [("flows-replay#1", 0, 7, 0, "globex")]


def test_a_row_of_an_arrow_message_is_kept_as_json_and_read_so() -> None:
    table = pa.Table.from_pylist([json.loads(flow(tenant="acme")), json.loads(flow(tenant="evil"))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    value = sink.getvalue().to_pybytes()
    topic = FlowTopic(format="canonical-arrow", tenants=("acme",))
    flows = FlowReader(topic, "flows#1", LANE, TARGETS)
    (letter,) = flows.encode(chunk_of("flows", 0, 5, [value]), -1, "w", 1).dead_letters
    assert letter.is_alone and letter.index == 1
    header = [(HEADER_ORIGIN, encode_origin(origin_of(letter, "1")))]
    anew = encode([(header, letter.payload), (origin(6, 1), value)], format="canonical-arrow", tenants=("acme", "evil"))
    assert rows_of(anew) == [("flows#1", 0, 5, 1, "evil"), ("flows#1", 0, 6, 1, "evil")]


def test_times_are_bounded_by_the_clock_that_they_came_with() -> None:
    header = {"alone": True, "timestamp_ms": 2 * DAY_MS, "timestamp_type": LOG_APPEND_TIME}
    encoded = encode(
        [
            (origin(1, 0, **header), flow(time_ms=2 * DAY_MS + 60_000)),
            (origin(2, 0, **header), flow(time_ms=4 * DAY_MS)),
            (origin(3, 0, **header), flow(time_ms=AS_OF_MS + DAY_MS + 1)),
        ]
    )
    assert not encoded.dead_letters, "whether a time is too far ahead is judged by the clock of the replay"
    (record,) = [r for mine in encoded.records for r in map(decode_record, mine) if r.rows is not None]
    assert record.rows is not None and not record.append_time
    columns = {name: unpack_column(record.rows.columns[name], 3).tolist() for name in ("time_ms", "skewed")}
    assert columns == {"time_ms": [2 * DAY_MS, 4 * DAY_MS, AS_OF_MS + DAY_MS + 1], "skewed": [1, 0, 0]}


def test_every_target_hears_what_others_take_and_nothing_that_none_will() -> None:
    future = flow(tenant="globex", time_ms=AS_OF_MS + DAY_MS + 1)
    encoded = encode([(origin(n, 0, alone=True), flow(tenant=f"t{n}")) for n in range(20)] + [(origin(99), future)])
    machines = [Machine() for _ in range(TARGETS)]
    for machine, mine in zip(machines, encoded.records, strict=True):
        for offset, record in enumerate(map(decode_record, mine)):
            machine.apply(offset, record)
    for machine in machines:
        offsets = [split_position(position)[0] for position in machine.taken.positions(("flows#1", 0)).tolist()]
        assert offsets == list(range(20))


def test_many_rows_are_cut_so_that_each_record_names_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "REPLAYED_ROWS", 7)
    message = array(*(flow(tenant=f"t{n % 5}") for n in range(40)))
    encoded = encode([(origin(7), message), (origin(8), message)])
    assert len(rows_of(encoded)) == 80
    for mine in encoded.records:
        records = [decode_record(data) for data in mine]
        taken = [unpack_positions(r.elsewhere) for r in records if r.elsewhere is not None]
        own = sum(r.rows.count for r in records if r.rows is not None)
        assert max(map(len, taken)) <= 7 and sum(map(len, taken)) + own == 80
        afters = [r.progress[0].after for r in records]
        assert afters[1:] == [r.progress[0].upto for r in records][:-1]


def test_a_row_replayed_to_one_tenant_is_not_taken_for_another_when_the_rule_has_changed() -> None:
    machines = [Machine() for _ in range(TARGETS)]
    counts = []
    for number, tenant in enumerate(("acme", "globex", "initech")):
        encoded = encode([(origin(7, 0, alone=True), flow())], first=10 + number, tenant_from=f"fixed:{tenant}")
        for machine, mine in zip(machines, encoded.records, strict=True):
            for record in map(decode_record, mine):
                counts.append(machine.apply(machine.offset + 1, record).counts["retaken"])
    assert sum(counts) == 1


# -- what a dead letter keeps ------------------------------------------------------------------------------------------


def test_ingest_keeps_all_that_a_replay_needs() -> None:
    flows = FlowReader(FlowTopic(), "flows#5", LANE, TARGETS)
    chunk = chunk_of(
        "flows",
        1,
        40,
        [b"junk", array(flow(), b"{}"), None],
        keys=[b"k", None, b""],
        headers=[[("h", b"1"), ("h", None)], (), ()],
        timestamps=[5, 6, 7],
        timestamp_type=1,
    )
    letters = flows.encode(chunk, position_before(40), "w", 1).dead_letters
    assert [
        (x.offset, x.is_alone, x.message_key, x.timestamp_ms, x.timestamp_type, x.incarnation) for x in letters
    ] == [
        (40, False, b"k", 5, 1, "5"),
        (41, True, None, 6, 1, "5"),
        (42, False, b"", 7, 1, "5"),
    ]
    assert letters[0].message_headers == (("h", b"1"), ("h", None))
    for letter in letters:
        message = encode_dead_letter(letter)
        assert decode_dead_letter(message.value, message.headers) == letter
        assert all(isinstance(data, bytes) for _, data in message.headers), "every client can write it"


def letter_of(**changes: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "topic": "flows",
        "partition": 0,
        "offset": 7,
        "index": 0,
        "reason": Reason.MALFORMED,
        "detail": "",
        "payload": b"x",
        **changes,
    }
    return DeadLetter(**values)


def again(letter: DeadLetter) -> DeadLetter:
    message = encode_dead_letter(letter)
    return decode_dead_letter(message.value, message.headers)


def test_keys_and_headers_are_bounded_and_what_is_left_out_is_counted() -> None:
    many = tuple((f"h{n}", b"v" * 1_000) for n in range(30))
    kept = again(letter_of(message_key=b"k" * 100_000, message_headers=(("huge", b"x" * 100_000), *many)))
    assert kept.message_key == b"k" * MAX_KEY_BYTES
    assert kept.message_headers == many[: len(kept.message_headers)] and len(kept.message_headers) == 16
    assert kept.headers_left_out == 31 - 16
    empty = again(letter_of(message_headers=tuple(("", b"") for _ in range(100_000))))
    assert len(empty.message_headers) == MAX_HEADER_BYTES // 16
    assert again(kept) == kept, "a dead letter that dies again says the same"
    assert needs_source(kept) == "15 of its headers were too large to keep"


def test_a_payload_that_was_cut_says_so_and_dies_again_as_it_was() -> None:
    cut = again(letter_of(payload=b"ab" * MAX_PAYLOAD_BYTES))
    assert (len(cut.payload), cut.length) == (KEPT_PAYLOAD_BYTES, 2 * MAX_PAYLOAD_BYTES) and len(cut.sha256) == 64
    assert needs_source(cut) == f"of its {2 * MAX_PAYLOAD_BYTES} bytes {KEPT_PAYLOAD_BYTES} were kept"
    assert again(cut) == cut
    assert needs_source(letter_of(payload=b"")) is None, "an empty message is replayed as it is"


def test_a_dead_letter_of_an_older_worker_is_read_and_replayed_as_the_record_alone() -> None:
    headers = [("reason", b"malformed"), ("detail", b"d"), ("source", b"flows:0:7:3"), ("format", b"canonical")]
    letter = decode_dead_letter(flow(), headers)
    assert (letter.message_key, letter.message_headers, letter.timestamp_ms, letter.incarnation) == (None, (), -1, "")
    found = origin_of(letter, "4")
    assert (found.alone, found.indexes, found.incarnation) == (True, (3,), "4")
    whole = origin_of(letter_of(index=WHOLE_MESSAGE), "4")
    assert (whole.alone, whole.indexes) == (False, ())


def test_a_repetition_without_bytes_keeps_those_of_the_one_before() -> None:
    first = letter_of(payload=b"bytes", message_key=b"k")
    bare = letter_of(payload=b"", reason=Reason.FUTURE, detail="ahead")
    together = merge(first, bare)
    assert (together.payload, together.message_key, together.reason) == (b"bytes", b"k", Reason.FUTURE)
    assert needs_source(together) is None and needs_source(bare) is not None
    assert merge(bare, first) == first


def test_what_can_never_be_replayed_says_what_to_do_instead() -> None:
    for reason in Reason:
        said = unreplayable(letter_of(reason=reason))
        assert (said is not None) == (reason in {Reason.CORRUPT_BATCH, Reason.UNSTORABLE})
    assert "write it anew" in (unreplayable(letter_of(format="control")) or "")


def test_a_header_names_so_many_records_at_most() -> None:
    indexes = tuple(range(MAX_INDEXES))
    header = OriginHeader(topic="flows", partition=0, offset=1, indexes=indexes, incarnation="1")
    assert read_origin(encode_origin(header)) == header
    with pytest.raises(Refusal):
        read_origin(
            encode_origin(OriginHeader(topic="f", partition=0, offset=1, indexes=(*indexes, 1), incarnation="1"))
        )


def test_positions_of_a_replay_rise_whatever_their_origins_do() -> None:
    encoded = encode([(origin(offset, 0, alone=True), flow()) for offset in (9, 3, 9, 1)])
    (record,) = [r for mine in encoded.records for r in map(decode_record, mine) if r.rows is not None]
    assert record.rows is not None
    positions = unpack_column(record.rows.columns["position"], 4)
    assert (np.diff(positions) > 0).all()
