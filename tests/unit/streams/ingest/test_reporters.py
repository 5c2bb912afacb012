"""Who reported a row, and what sources say they lost: from records to `tenant-log`, however chunks are cut."""

import json
from typing import Any

import hypothesis.strategies as st
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings

from schemas.ids import end_position, partition_of, position_of
from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, LogRecord, Member, SourceLoss, decode_record, encode_record, unpack_rows
from streams.ingest.chain import Origin, Segment, encode_segment, position_before
from streams.ingest.chunk import LOG_APPEND_TIME, chunk_of, cut
from streams.ingest.readers import Encoded, FlowReader, _positions, _read
from streams.sources.registry import source_format

TARGETS = 3
LANE = LaneConfig("hubble", members=(Member("flows#1", 1),))
TENANTS = [f"tenant-{number}" for number in range(6)]


def flow(node: str | None = "n1", tenant: str | None = None, **changes: object) -> bytes:
    """One canonical flow; ``tenant`` stands in the record."""
    record = {"time_ms": 1_000, "src": "a", "dst": "b", "host": node, "tenant": tenant, **changes}
    return json.dumps({name: value for name, value in record.items() if value is not None}).encode()


def hubble(node: str = "n1") -> bytes:
    inner = {
        "time": "2026-11-22T07:00:00Z",
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"},
    }
    return json.dumps({"flow": inner, "node_name": node}).encode()


def lost(node: str = "n1", count: int | None = 7, time: str | None = "2026-11-22T07:00:00Z") -> bytes:
    record: dict[str, Any] = {
        "lost_events": {"source": "HUBBLE_RING_BUFFER", "num_events_lost": count},
        "node_name": node,
        "time": time,
    }
    return json.dumps(record).encode()


TIME_MS = 1_795_330_800_000


def reader_of(targets: int = TARGETS, **topic: object) -> FlowReader:
    return FlowReader(FlowTopic(**topic), "flows#1", LANE, targets)


def records_of(encoded: Encoded) -> list[list[LogRecord]]:
    return [[decode_record(data) for data in mine] for mine in encoded.records]


def reported(encoded: Encoded) -> list[tuple[int, str, str | None]]:
    """(position, tenant, host) of each row of all targets, by position."""
    found = []
    for mine in records_of(encoded):
        for record in mine:
            if record.rows is None:
                continue
            columns = unpack_rows(record.rows)
            assert len(set(record.rows.hosts)) == len(record.rows.hosts)
            hosts = columns["host"].tolist() if "host" in columns else [-1] * record.rows.count
            for position, edge, host in zip(columns["position"].tolist(), columns["edge"].tolist(), hosts, strict=True):
                name = record.rows.hosts[host] if host >= 0 else None
                found.append((position, record.rows.edges[edge][0], name))
            assert set(hosts) - {-1} == set(range(len(record.rows.hosts))), "a record names the hosts of its rows alone"
    return sorted(found)


def losses(encoded: Encoded) -> list[list[SourceLoss]]:
    return [[loss for record in mine for loss in record.losses] for mine in records_of(encoded)]


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_rows_keep_the_host_that_reported_them_and_rows_without_one_name_nobody() -> None:
    values = [flow("n1", "t0"), flow(None, "t1"), flow("n2", "t0"), flow("n1", "t2")]
    encoded = reader_of().encode(chunk_of("flows", 0, 0, values), position_before(0), "w", 77)
    assert [(tenant, host) for _, tenant, host in reported(encoded)] == [
        ("t0", "n1"),
        ("t1", None),
        ("t0", "n2"),
        ("t2", "n1"),
    ]


def test_a_chunk_in_which_nobody_is_named_has_no_such_column() -> None:
    encoded = reader_of().encode(chunk_of("flows", 0, 0, [flow(None, "t0")] * 3), position_before(0), "w", 77)
    rows = [record.rows for mine in records_of(encoded) for record in mine if record.rows is not None]
    assert [(r.hosts, "host" in r.columns) for r in rows] == [((), False)]


def test_services_are_not_taken_for_hosts() -> None:
    """Clocks fall back to the client's name; who reports does not."""
    rows = source_format("canonical").decode([flow(None, "t0")]).runs[0]
    assert rows.hosts([0]) == ["a"] and rows.reporters() is None


def arrow(hosts: list[str | None]) -> bytes:
    table = pa.table({"time_ms": [1] * len(hosts), "src": ["a"] * len(hosts), "dst": ["b"] * len(hosts), "host": hosts})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def test_arrow_json_and_producers_formats_name_the_same_hosts() -> None:
    names = ["n1", None, "n2", "n1"]
    spellings = {
        "canonical": [arrow(names)],
        "canonical-json": [flow(name) for name in names],
        "hubble": [hubble(name or "") for name in names],
    }
    for spelling, values in spellings.items():
        (rows,) = source_format(spelling).decode(values).runs
        reporters = rows.reporters()
        assert reporters is not None
        codes, hosts = reporters
        assert [hosts[code] if code >= 0 else None for code in codes.tolist()] == names, spelling


def test_rows_of_runs_that_name_hosts_and_runs_that_do_not_go_together() -> None:
    values = [flow("n1", "t0"), arrow([None, None]), arrow(["n2", None]), flow("n2", "t0"), b"junk", arrow(["n1"])]
    reader = reader_of(tenant_from="fixed:acme")
    encoded = reader.encode(chunk_of("flows", 0, 0, values), position_before(0), "w", 77)
    assert [host for _, _, host in reported(encoded)] == ["n1", None, None, "n2", None, "n2", "n1"]


def test_hosts_of_rows_that_become_dead_letters_are_named_nowhere() -> None:
    values = [flow("n1", "t0"), flow("n2", "other"), flow("n3", "t0")]
    encoded = reader_of(tenants=("t0",)).encode(chunk_of("flows", 0, 0, values), position_before(0), "w", 77)
    assert [host for _, _, host in reported(encoded)] == ["n1", "n3"]


# -- losses ------------------------------------------------------------------------------------------------------------


def test_a_loss_goes_to_its_tenant_with_host_count_time_and_coordinate() -> None:
    values = [hubble(), lost("n2", 9), lost("n3", None, None)]
    reader = reader_of(format="hubble", tenant_from="key")
    chunk = chunk_of("flows", 0, 40, values, keys=[b"tenant-0", b"tenant-1", b"tenant-2"])
    encoded = reader.encode(chunk, position_before(40), "w", 77)
    kind = "lost_events:HUBBLE_RING_BUFFER"
    found = losses(encoded)
    assert found[partition_of("tenant-1", TARGETS)][0] == SourceLoss(
        position_of(41, 0), "tenant-1", kind, "n2", 9, TIME_MS
    )
    assert SourceLoss(position_of(42, 0), "tenant-2", kind, "n3", -1, -1) in found[partition_of("tenant-2", TARGETS)]
    assert sum(map(len, found)) == 2
    assert encoded.losses == {kind: 2}


def test_where_records_name_their_tenant_a_loss_concerns_all_of_them() -> None:
    reader = reader_of(format="hubble", tenant_from="field")
    encoded = reader.encode(chunk_of("flows", 0, 0, [lost()]), position_before(0), "w", 77)
    assert [[loss.tenant for loss in mine] for mine in losses(encoded)] == [[""]] * TARGETS


def test_a_tenant_that_the_topic_may_not_carry_is_told_of_no_loss() -> None:
    reader = reader_of(format="hubble", tenant_from="key", tenants=("tenant-0",))
    chunk = chunk_of("flows", 0, 0, [lost(), lost(), lost()], keys=[b"tenant-0", b"tenant-1", None])
    encoded = reader.encode(chunk, position_before(0), "w", 77)
    assert [loss.tenant for mine in losses(encoded) for loss in mine] == ["tenant-0"]


def test_a_loss_in_the_future_is_of_the_broker_s_time() -> None:
    reader = reader_of(format="hubble", tenant_from="fixed:acme")
    chunk = chunk_of("flows", 0, 0, [lost()], timestamps=[5_000], timestamp_type=LOG_APPEND_TIME)
    encoded = reader.encode(chunk, position_before(0), "w", 77)
    assert [loss.time_ms for mine in losses(encoded) for loss in mine] == [5_000]


def test_a_loss_keeps_its_coordinate_where_messages_before_it_cannot_be_decoded_at_all() -> None:
    reader = reader_of(format="hubble", tenant_from="fixed:acme")
    encoded = reader.encode(chunk_of("flows", 0, 7, [None, lost(), None, lost()]), position_before(7), "w", 77)
    assert [loss.position for mine in losses(encoded) for loss in mine] == [position_of(8, 0), position_of(10, 0)]


@pytest.mark.parametrize("limit", [400, 1_000, 4_000])
def test_any_size_limit_cuts_rows_and_losses_at_coordinates(limit: int) -> None:
    reader = reader_of(format="hubble", tenant_from="key")
    values = [lost(f"n{number}") if number % 3 else hubble(f"n{number}") for number in range(90)]
    keys: list[bytes | None] = [TENANTS[number % 5].encode() for number in range(90)]
    table = _read(chunk_of("flows", 0, 0, values, keys=keys), reader.rules)
    segment = Segment(LANE, table, end_position(89), _positions([]))
    records = encode_segment(segment, Origin("flows#1", 0, "w", 1), position_before(0), TARGETS, limit)
    encoded = Encoded(records, [], segment.upto, len(table))
    at = [position_before(0)] * TARGETS
    for target, mine in enumerate(records_of(encoded)):
        for data, record in zip(records[target], mine, strict=True):
            progress = record.progress[0]
            assert progress.after == at[target]
            at[target] = progress.upto
            positions = [loss.position for loss in record.losses]
            if record.rows is not None:
                positions += unpack_rows(record.rows)["position"].tolist()
            assert all(progress.after < position <= progress.upto for position in positions)
            assert len(data) <= limit or len(positions) <= 1
    assert at == [segment.upto] * TARGETS
    rows = [(position >> 20, host) for position, _, host in reported(encoded)]
    assert rows == [(number, f"n{number}") for number in range(0, 90, 3)]
    told = sorted((loss.position >> 20, loss.tenant, loss.host) for mine in losses(encoded) for loss in mine)
    assert told == [(number, TENANTS[number % 5], f"n{number}") for number in range(90) if number % 3]


_message = st.tuples(
    st.sampled_from([hubble("n1"), hubble("n2"), hubble(""), lost("n1"), lost("n2", None), b"junk"]),
    st.sampled_from([None, *(tenant.encode() for tenant in TENANTS)]),
)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(_message, min_size=1, max_size=40), data=st.data(), targets=st.integers(1, 4))
def test_any_chunking_gives_the_same_hosts_and_losses(
    messages: list[tuple[bytes, bytes | None]], data: st.DataObject, targets: int
) -> None:
    reader = reader_of(targets, format="hubble", tenant_from="key")
    whole = chunk_of("flows", 0, 3, [value for value, _ in messages], keys=[key for _, key in messages])
    expected = reader.encode(whole, position_before(3), "w", 77)
    rows: list[tuple[int, str, str | None]] = []
    told: list[list[SourceLoss]] = [[] for _ in range(targets)]
    at, after = 0, position_before(3)
    while at < len(messages):
        stop = data.draw(st.integers(at + 1, len(messages)))
        encoded = reader.encode(cut(whole, at, stop, 3 + at, 3 + stop), after, "w", 77)
        rows += reported(encoded)
        for mine, more in zip(told, losses(encoded), strict=True):
            mine += more
        at, after = stop, encoded.upto
    assert sorted(rows) == reported(expected)
    assert told == losses(expected)


# -- the wire ----------------------------------------------------------------------------------------------------------


def test_a_worker_of_the_version_before_reads_such_records() -> None:
    """What it does not know of is behind what it knows; here read by the structs it had."""

    class OldRows(msgspec.Struct, array_like=True):
        count: int
        edges: list[msgspec.Raw]
        columns: dict[str, Any]

    class OldProgress(msgspec.Struct, array_like=True):
        source: str
        partition: int
        after: int
        upto: int
        clocks: tuple[tuple[str, int], ...] = ()
        state: int = 0
        dead: int = 0

    class OldRecord(msgspec.Struct):
        worker: str
        progress: tuple[OldProgress, ...]
        rows: OldRows | None = None

    reader = reader_of(1, format="hubble", tenant_from="fixed:acme")
    encoded = reader.encode(chunk_of("flows", 0, 0, [hubble(), lost()]), position_before(0), "w", 77)
    old = msgspec.msgpack.decode(encoded.records[0][0], type=OldRecord)
    assert old.rows is not None and old.rows.count == 1 and old.progress[0].upto == encoded.upto


def test_records_with_hosts_and_losses_come_back_as_they_were() -> None:
    reader = reader_of(1, format="hubble", tenant_from="fixed:acme")
    encoded = reader.encode(chunk_of("flows", 0, 0, [hubble(), lost()]), position_before(0), "w", 77)
    record = decode_record(encoded.records[0][0])
    assert record.rows is not None and record.rows.hosts == ("n1",) and len(record.losses) == 1
    assert decode_record(encode_record(record)) == record
