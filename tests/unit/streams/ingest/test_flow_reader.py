"""A source topic's chunks: every record is a row or a dead letter, tenants stay apart, chains have no holes."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.ids import MAX_RECORDS_PER_MESSAGE, end_position, partition_of, position_of
from schemas.settings import FlowTopic
from schemas.tenant_log import MAX_RECORD_BYTES, ROW_COLUMNS, LaneConfig, LogRecord, Member, decode_record, unpack_rows
from schemas.topics import DAY_MS
from streams.ingest.chain import Origin, Segment, encode_segment, position_before
from streams.ingest.chunk import LOG_APPEND_TIME, MessageChunk, chunk_of, cut, join
from streams.ingest.readers import Encoded, FlowReader

LANE = LaneConfig("default", members=(Member("flows#1", 3),), skew_ms=10_000)
TARGETS = 4


def make_reader(targets: int = TARGETS, **topic: Any) -> FlowReader:
    return FlowReader(FlowTopic(**topic), "flows#1", LANE, targets)


def flow(**changes: object) -> bytes:
    return json.dumps({"time_ms": 1_000, "src": "a", "dst": "b", "tenant": "acme", **changes}).encode()


def encode(chunk: MessageChunk, reader: FlowReader | None = None, after: int | None = None) -> Encoded:
    before = position_before(chunk.first_offset) if after is None else after
    return (reader or make_reader()).encode(chunk, before, "w", 77)


def records_of(encoded: Encoded) -> list[list[LogRecord]]:
    return [[decode_record(data) for data in mine] for mine in encoded.records]


def rows_of(records: list[LogRecord]) -> list[dict[str, Any]]:
    """Rows as dictionaries, with their edge in full."""
    found = []
    for record in records:
        if record.rows is not None:
            columns = unpack_rows(record.rows)
            for row in range(record.rows.count):
                values = {name: int(columns[name][row]) for name in ROW_COLUMNS}
                found.append({**values, "edge": tuple(record.rows.edges[values["edge"]])})
    return found


def all_rows(encoded: Encoded) -> list[dict[str, Any]]:
    return [row for records in records_of(encoded) for row in rows_of(records)]


def check_chains(encoded: Encoded, after: int, upto: int) -> None:
    """Every target's records follow each other from ``after`` to ``upto``, and rows lie in their record's range."""
    for records in records_of(encoded):
        at = after
        for record in records:
            progress = record.progress[0]
            assert progress.after == at < progress.upto
            at = progress.upto
            positions = [row["position"] for row in rows_of([record])]
            assert positions == sorted(positions)
            assert all(progress.after < position <= progress.upto for position in positions)
        assert at == upto


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_row_keeps_coordinate_measures_and_edge() -> None:
    messages = [
        flow(),
        b"[" + flow(port=80, protocol="udp") + b"," + flow(errors=2, reporter="server", bytes_in=9) + b"]",
    ]
    rows = all_rows(encode(chunk_of("flows", 2, 40, messages)))
    assert [row["position"] for row in rows] == [position_of(40, 0), position_of(41, 0), position_of(41, 1)]
    assert [row["edge"] for row in rows] == [
        ("acme", "a", "b", -1, -1),
        ("acme", "a", "b", 80, 17),
        ("acme", "a", "b", -1, -1),
    ]
    assert [(row["errors"], row["side"], row["bytes_in"], row["denied"]) for row in rows] == [
        (-1, 0, -1, -1),
        (-1, 0, -1, -1),
        (2, 1, 9, -1),
    ]
    assert all(row["calls"] == 1 and row["skewed"] == 0 and row["time_ms"] == 1_000 for row in rows)


def test_tenants_go_to_their_own_partition_and_every_partition_hears_of_the_coordinates() -> None:
    tenants = [f"tenant-{i}" for i in range(20)]
    encoded = encode(chunk_of("flows", 0, 0, [flow(tenant=tenant) for tenant in tenants * 3]))
    seen: Counter[str] = Counter()
    for target, records in enumerate(records_of(encoded)):
        for row in rows_of(records):
            seen[row["edge"][0]] += 1
            assert partition_of(row["edge"][0], TARGETS) == target
        edges = [edge for record in records if record.rows for edge in record.rows.edges]
        assert len(edges) == len(set(edges)), "an edge stands once in a record's dictionary"
    assert seen == dict.fromkeys(tenants, 3)
    check_chains(encoded, position_before(0), end_position(59))


def test_a_chunk_without_rows_still_moves_every_target() -> None:
    for chunk in (chunk_of("flows", 0, 5, []), chunk_of("flows", 0, 5, [b"x", None])):
        moved = MessageChunk(
            chunk.topic, 0, 5, 9, chunk.offsets, chunk.values, chunk.keys, chunk.headers, chunk.timestamps
        )
        encoded = encode(moved)
        check_chains(encoded, position_before(5), end_position(8))
        assert all(record.rows is None for records in records_of(encoded) for record in records)


def test_the_same_chunk_gives_the_same_bytes() -> None:
    reader = make_reader()
    chunk = chunk_of("flows", 0, 0, [flow(src=f"s{i % 7}", tenant=f"t{i % 5}") for i in range(100)])
    first = encode(chunk, reader)
    encode(chunk_of("flows", 1, 0, [flow(tenant="other")]), reader)
    assert encode(chunk, reader).records == first.records == encode(chunk).records


# -- dead letters ------------------------------------------------------------------------------------------------------

_LONG = "x" * 1_000_000
_BAD: list[tuple[bytes | None, Reason, dict[str, Any]]] = [
    (b'{"time_ms": 12, "src"', Reason.MALFORMED, {}),
    (b"\x00\xfe\x12binary noise", Reason.MALFORMED, {}),
    (flow(time_ms=float("nan")), Reason.MALFORMED, {}),
    (flow(src=""), Reason.INVALID_VALUE, {}),
    (flow(src=_LONG), Reason.INVALID_VALUE, {}),
    (b"", Reason.EMPTY, {}),
    (None, Reason.EMPTY, {}),
    (flow(src=10_000_000 * "x"), Reason.OVERSIZED, {}),
    (flow(tenant=None), Reason.UNKNOWN_TENANT, {}),
    (flow(tenant="evil"), Reason.TENANT_NOT_ALLOWED, {"tenants": ("acme",)}),
    (flow(tenant="acme-x"), Reason.TENANT_NOT_ALLOWED, {"tenants": ("acme",)}),
    (flow(time_ms=4_100_000_000_000), Reason.FUTURE, {"append_time": True}),
]


@pytest.mark.parametrize(("message", "reason", "setting"), _BAD)
def test_a_bad_message_is_a_dead_letter_and_the_flows_around_it_are_counted(
    message: bytes | None, reason: Reason, setting: dict[str, Any]
) -> None:
    options = dict(setting)
    kind = LOG_APPEND_TIME if options.pop("append_time", False) else 0
    messages = [flow(), message, flow()]
    chunk = chunk_of("flows", 1, 7, messages, timestamps=[1_700_000_000_000] * 3, timestamp_type=kind)
    encoded = encode(chunk, make_reader(**options))
    assert [row["position"] for row in all_rows(encoded)] == [position_of(7, 0), position_of(9, 0)]
    (letter,) = encoded.dead_letters
    assert (letter.topic, letter.partition, letter.offset, letter.reason) == ("flows", 1, 8, reason)
    assert letter.payload == (message or b"")
    assert letter.format == "canonical"
    for records in records_of(encoded):
        assert sum(record.progress[0].dead for record in records) == 1
    check_chains(encoded, position_before(7), end_position(9))


def test_records_of_one_message_are_judged_one_by_one() -> None:
    message = b"[" + b",".join([flow(), flow(tenant="evil", src="s"), flow(time_ms=-1), flow(tenant=None)]) + b"]"
    encoded = encode(chunk_of("flows", 0, 3, [message]), make_reader(tenants=("acme",)))
    assert [row["position"] for row in all_rows(encoded)] == [position_of(3, 0)]
    letters = [(letter.index, letter.reason) for letter in encoded.dead_letters]
    assert letters == [(1, Reason.TENANT_NOT_ALLOWED), (2, Reason.INVALID_VALUE), (3, Reason.UNKNOWN_TENANT)]
    assert json.loads(encoded.dead_letters[0].payload)["src"] == "s"
    assert encoded.dead_letters[0].key == "flows:0:3:1"


def test_rejected_edges_leave_no_trace_in_the_log() -> None:
    encoded = encode(chunk_of("flows", 0, 0, [flow(), flow(tenant="evil")]), make_reader(tenants=("acme",)))
    assert b"evil" not in b"".join(data for mine in encoded.records for data in mine)


def test_a_flow_of_1970_is_a_flow() -> None:
    assert [row["time_ms"] for row in all_rows(encode(chunk_of("flows", 0, 0, [flow(time_ms=0)])))] == [0]


def test_a_corrupt_batch_is_a_dead_letter() -> None:
    corrupt = SimpleNamespace(first_offset=5, last_offset=8, detail="checksum does not match", raw=b"\1\2")
    empty = chunk_of("flows", 0, 5, [])
    chunk = MessageChunk("flows", 0, 5, 9, empty.offsets, [], [], [], [], 0, corrupt)
    encoded = encode(chunk)
    (letter,) = encoded.dead_letters
    assert (letter.offset, letter.index, letter.reason) == (5, MAX_RECORDS_PER_MESSAGE, Reason.CORRUPT_BATCH)
    assert "offsets 5 to 8" in letter.detail and letter.payload == b"\1\2"
    check_chains(encoded, position_before(5), end_position(8))


def test_what_our_own_code_cannot_read_is_one_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader()
    decode = reader.rules.format.decode

    def fails_on_poison(values: Any) -> Any:
        if any(b"poison" in value for value in values):
            raise ZeroDivisionError("a mistake of ours")
        return decode(values)

    monkeypatch.setattr(type(reader.rules.format), "decode", lambda _, values: fails_on_poison(values))
    messages = [flow(src=f"s{i}") for i in range(9)]
    messages[4] = flow(src="poison")
    encoded = encode(chunk_of("flows", 0, 0, messages), reader)
    assert len(all_rows(encoded)) == 8
    assert [(letter.offset, letter.reason) for letter in encoded.dead_letters] == [(4, Reason.MALFORMED)]
    assert "ZeroDivisionError" in encoded.dead_letters[0].detail


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "topic", "expected"),
    [
        ("fixed:acme", "flows", ["acme", "acme"]),
        (r"topic:^flows\.(.+)$", "flows.globex", ["globex", "globex"]),
        ("header:x-tenant", "flows", ["from-header", None]),
        ("key", "flows", ["from-key", None]),
        ("field", "flows", ["field", "field"]),
    ],
)
def test_the_tenant_stands_where_the_configuration_says(rule: str, topic: str, expected: list[str | None]) -> None:
    chunk = chunk_of(
        topic,
        0,
        0,
        [flow(tenant="field")] * 2,
        keys=[b"from-key", b"\xff"],
        headers=[[("other", b"x"), ("x-tenant", b"from-header")], [("x-tenant", None)]],
    )
    encoded = encode(chunk, make_reader(topic=topic, tenant_from=rule))
    assert [row["edge"][0] for row in all_rows(encoded)] == [name for name in expected if name]
    assert [letter.reason for letter in encoded.dead_letters] == [Reason.UNKNOWN_TENANT] * expected.count(None)


@pytest.mark.parametrize(
    ("allowed", "tenant", "passes"),
    [
        (("*",), "anyone", True),
        (("acme",), "acme", True),
        (("acme",), "ACME", False),
        (("acme-*", "b?"), "acme-eu", True),
        (("acme-*", "b?"), "b1", True),
        (("acme-*", "b?"), "acme", False),
        ((), "acme", False),
    ],
)
def test_a_topic_carries_only_the_tenants_it_may(allowed: tuple[str, ...], tenant: str, passes: bool) -> None:
    encoded = encode(chunk_of("flows", 0, 0, [flow(tenant=tenant)]), make_reader(tenants=allowed))
    assert [len(all_rows(encoded)), len(encoded.dead_letters)] == [int(passes), int(not passes)]


@pytest.mark.parametrize("rule", ["topic:(", "topic:flows", "topic:^other-(.*)$"])
def test_a_tenant_rule_that_cannot_work_is_refused(rule: str) -> None:
    with pytest.raises(ConfigurationError, match="tenant_from of topic 'flows'"):
        make_reader(tenant_from=rule)


# -- time --------------------------------------------------------------------------------------------------------------


def test_times_are_judged_by_the_broker_where_it_stamps_them() -> None:
    now = 1_700_000_000_000
    ahead = [-5_000, 10_000, 10_001, DAY_MS, DAY_MS + 1]
    messages = [flow(time_ms=now + more) for more in ahead]
    chunk = chunk_of("flows", 0, 0, messages, timestamps=[now] * 5, timestamp_type=LOG_APPEND_TIME)
    encoded = encode(chunk)
    rows = all_rows(encoded)
    assert [(row["time_ms"] - now, row["skewed"]) for row in rows] == [(-5_000, 0), (10_000, 0), (0, 1), (0, 1)]
    assert [letter.reason for letter in encoded.dead_letters] == [Reason.FUTURE]
    assert all(record.append_time for records in records_of(encoded) for record in records)


def test_without_the_brokers_clock_ingest_judges_no_time() -> None:
    encoded = encode(chunk_of("flows", 0, 0, [flow(time_ms=4_100_000_000_000)], timestamps=[1_700_000_000_000]))
    assert [row["time_ms"] for row in all_rows(encoded)] == [4_100_000_000_000]
    assert not any(record.append_time for records in records_of(encoded) for record in records)


def clocks_of(messages: list[bytes]) -> tuple[tuple[str, int], ...]:
    encoded = encode(chunk_of("flows", 0, 0, messages))
    stated = {record.progress[0].clocks for records in records_of(encoded) for record in records}
    assert len(stated) == 1, "every target hears the same clocks"
    return stated.pop()


def test_clocks_are_those_of_the_three_furthest_hosts() -> None:
    messages = [flow(time_ms=i, host=f"h{i % 5}") for i in range(1_000)]
    assert clocks_of(messages) == (("h4", 999), ("h3", 998), ("h2", 997))


def test_one_busy_host_does_not_hide_the_others_clocks() -> None:
    messages = [flow(time_ms=100, host="quiet"), flow(time_ms=90, src="client")]
    messages += [flow(time_ms=5_000 + i, host="broken") for i in range(500)]
    assert clocks_of(messages) == (("broken", 5_499), ("quiet", 100), ("client", 90))


def test_rejected_rows_move_no_clock() -> None:
    encoded = encode(
        chunk_of("flows", 0, 0, [flow(), flow(time_ms=9_000, tenant="evil")]), make_reader(tenants=("acme",))
    )
    assert records_of(encoded)[0][0].progress[0].clocks == (("a", 1_000),)


# -- cuts and chains ---------------------------------------------------------------------------------------------------


def test_records_are_cut_at_coordinates_and_stay_small() -> None:
    messages = [flow(src=f"{i}-" + "ü" * 240, dst="ü" * 250, time_ms=i) for i in range(2_000)]
    encoded = encode(chunk_of("flows", 0, 0, messages))
    assert max(len(data) for mine in encoded.records for data in mine) <= MAX_RECORD_BYTES
    (cut_records,) = [records for records in records_of(encoded) if len(records) > 1]
    assert [row["time_ms"] for row in rows_of(cut_records)] == list(range(2_000))
    for record in cut_records[:-1]:
        assert record.rows is not None
        assert record.progress[0].upto == int(unpack_rows(record.rows)["position"][-1])
        assert record.progress[0].clocks == (), "rows still to come would be late"
        used = {row["edge"] for row in rows_of([record])}
        assert used == set(record.rows.edges)
    assert cut_records[-1].progress[0].clocks[0][1] == 1_999
    check_chains(encoded, position_before(0), end_position(1_999))


_message = st.sampled_from(
    [
        flow(),
        flow(tenant="globex"),
        flow(tenant="initech", src="z"),
        b"junk",
        b"[" + flow(tenant="t9") + b"," + flow() + b",{}]",
        None,
    ]
)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(_message, max_size=30), data=st.data(), targets=st.integers(1, 5))
def test_any_chunking_gives_the_same_rows_and_dead_letters_in_unbroken_chains(
    messages: list[bytes | None], data: st.DataObject, targets: int
) -> None:
    reader = make_reader(targets)
    whole = chunk_of("flows", 0, 10, messages)
    expected = encode(whole, reader)
    at, position = 0, position_before(10)
    rows: list[dict[str, Any]] = []
    letters: list[DeadLetter] = []
    dead = 0
    while at < len(messages):
        stop = data.draw(st.integers(at + 1, len(messages)))
        encoded = encode(cut(whole, at, stop, 10 + at, 10 + stop), reader, position)
        check_chains(encoded, position, encoded.upto)
        rows += all_rows(encoded)
        letters += encoded.dead_letters
        dead += sum(record.progress[0].dead for record in records_of(encoded)[0])
        at, position = stop, encoded.upto
    key = lambda row: row["position"]  # noqa: E731
    assert sorted(rows, key=key) == sorted(all_rows(expected), key=key)
    assert letters == expected.dead_letters
    assert dead == len(letters)
    records = sum(3 if message and message.startswith(b"[") else 1 for message in messages)
    assert len(rows) + len(letters) == records


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.text("ab", min_size=1, max_size=40), min_size=1, max_size=60), limit=st.integers(300, 4_000))
def test_any_size_limit_cuts_without_loss(names: list[str], limit: int) -> None:
    reader = make_reader(1)
    chunk = chunk_of("flows", 0, 0, [flow(src=name) for name in names])
    from streams.ingest.readers import _positions, _read

    table = _read(chunk, reader.rules)
    segment = Segment(LANE, table, end_position(len(names) - 1), _positions([]))
    records = encode_segment(segment, Origin("flows#1", 0, "w", 1), position_before(0), 1, limit)
    encoded = Encoded(records, [], segment.upto, len(table))
    check_chains(encoded, position_before(0), segment.upto)
    assert [row["edge"][1] for row in all_rows(encoded)] == names
    for data in records[0]:
        record = decode_record(data)
        assert len(data) <= limit or record.rows is None or record.rows.count == 1


def test_joined_chunks_are_one() -> None:
    parts = [chunk_of("flows", 0, 10, [flow(), flow()]), chunk_of("flows", 0, 12, [flow(src="c")])]
    whole = chunk_of("flows", 0, 10, [flow(), flow(), flow(src="c")])
    assert encode(join(parts)).records == encode(whole).records  # type: ignore[arg-type]
