"""Messages become rows: unknown is NULL, misfits raise, nothing is wrapped around."""

import dataclasses

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from schemas.audit import AuditRecord, encode_audit
from schemas.drift import Activity, Severity
from schemas.errors import WireFormatError
from schemas.graph import FIRST_MEASURES, MEASURE_INDEX, MEASURES, chunk_window, encode_chunk
from schemas.ocsf import encode_event
from schemas.tables import AUDIT_LOG, DRIFT_EVENTS, EDGES_1M, WINDOWS
from streams.sinks.rows import arrow_schema, audit_rows, drift_rows, edge_rows, event_row, graph_rows, window_row
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, make_event, make_window, messages_of


def _edge(**measures: object) -> dict[str, object]:
    window = make_window(HOUR_MS, [{"src": "a", "dst": "b", **measures}])
    [row] = edge_rows(chunk_window(window)[0]).batch.to_pylist()
    return row


def test_a_measure_that_nobody_reported_is_null_and_a_reported_zero_is_zero():
    unknown = _edge()
    reported = {name: 1 for name in MEASURES if name.endswith("_flows")}
    known = _edge(**reported, latencies_us=[0])
    for name in ("errors", "denied", "bytes_out", "bytes_in", "packets_out", "packets_in", "latency_sum_us"):
        assert unknown[name] is None, name
        assert known[name] == 0, name
    assert (unknown["p50_us"], known["p50_us"]) == (None, 0)
    assert (unknown["calls"], unknown["late_flows"]) == (1, 0)
    assert _edge(bytes_out_flows=1)["bytes_in"] is None


def test_every_measure_lands_in_its_own_column():
    values = {name: index + 1 for index, name in enumerate(MEASURES)}
    row = _edge(**values, other_side_flows=77)
    assert {name: row[name] for name in MEASURES} == values
    assert row["other_side_flows"] == 77


def test_each_edge_gets_its_own_histogram():
    window = make_window(
        HOUR_MS,
        [
            {"src": "a", "dst": "b", "latencies_us": [3, 3, 5]},
            {"src": "a", "dst": "c"},
            {"src": "a", "dst": "d", "latencies_us": [7]},
        ],
    )
    rows = edge_rows(chunk_window(window)[0]).batch.to_pylist()
    assert [(r["latency_buckets"], r["latency_counts"]) for r in rows] == [([3, 5], [2, 1]), ([], []), ([7], [1])]
    assert [r["p50_us"] for r in rows] == [3, None, 7]


def test_chunks_and_marker_of_a_large_window_hold_every_edge_once():
    edges = [{"src": f"s{i:05}", "dst": "d", "latencies_us": [i]} for i in range(3_500)]
    window = make_window(HOUR_MS, edges, incomplete=("silent",), is_learning=True)
    parts = [graph_rows(message.value) for message in messages_of(window)]
    assert [part.table for part in parts] == [EDGES_1M] * 3 + [WINDOWS]
    names = [name for part in parts[:3] for name in part.batch.column("src").to_pylist()]
    assert names == window.edges.src
    [row] = parts[3].batch.to_pylist()
    assert (row["edges"], row["incomplete"], row["is_learning"]) == (3_500, ["silent"], True)
    assert all(part.batch.column("incomplete").to_pylist()[0] == ["silent"] for part in parts[:3])


def test_the_overflow_of_a_window_is_kept_and_its_unknown_is_null():
    overflow = np.zeros(len(MEASURES), dtype=np.int64)
    overflow[MEASURE_INDEX["flows"]] = 9
    overflow[MEASURE_INDEX["bytes_out_flows"]] = 1
    marker = chunk_window(make_window(HOUR_MS, [], overflow=overflow))[-1]
    [row] = window_row(marker).batch.to_pylist()
    assert (row["overflow_flows"], row["overflow_bytes_out"], row["overflow_errors"]) == (9, 0, None)


def test_measures_that_came_later_are_left_out_where_they_are_none_and_read_as_none():
    later = MEASURES[FIRST_MEASURES:]
    plain, sampled = chunk_window(make_window(HOUR_MS, [{"src": "a", "dst": "b"}])), {"src": "a", "dst": "b"}
    assert not set(later) & plain[0].columns.keys() and len(plain[1].overflow) == FIRST_MEASURES
    assert [edge_rows(plain[0]).batch.to_pylist()[0][name] for name in later] == [0] * len(later)
    assert [window_row(plain[1]).batch.to_pylist()[0][f"overflow_{name}"] for name in later] == [0] * len(later)
    sampled |= {"sampled_flows": 3, "sampling_sum": 150}
    overflow = np.zeros(len(MEASURES), dtype=np.int64)
    overflow[MEASURE_INDEX["sampled_flows"]] = 7
    edges, marker = (
        graph_rows(message.value).batch.to_pylist()[0]
        for message in messages_of(make_window(HOUR_MS, [sampled], overflow=overflow))
    )
    assert (edges["sampled_flows"], edges["sampling_sum"]) == (3, 150)
    assert (marker["overflow_sampled_flows"], marker["overflow_sampling_sum"]) == (7, 0)


def test_partition_keys_follow_the_window_alone():
    before_midnight, after = HOUR_MS + 59 * MINUTE_MS, HOUR_MS + 60 * MINUTE_MS
    keys = [
        graph_rows(m.value).partition_key for s in (before_midnight, after) for m in messages_of(make_window(s, []))
    ]
    assert keys == ["2023-11", "2023-11"]
    days = [
        edge_rows(chunk_window(make_window(s, [{"src": "a", "dst": "b"}]))[0]).partition_key
        for s in (before_midnight, after)
    ]
    assert int(days[1]) - int(days[0]) == 1


@pytest.mark.parametrize(
    "changes", [{"calls": -5}, {"port": 2**40}, {"protocol": 70_000}, {"late_bytes": -1}], ids=lambda c: next(iter(c))
)
def test_a_value_that_fits_no_column_raises_instead_of_wrapping_around(changes):
    with pytest.raises(pa.ArrowInvalid):
        _edge(**changes)


def test_damaged_messages_are_named_as_such():
    good = chunk_window(make_window(HOUR_MS, [{"src": "a", "dst": "b", "latencies_us": [3]}]))[0]
    with pytest.raises(WireFormatError, match="cannot be read"):
        graph_rows(b"\x00 no chunk")
    with pytest.raises(WireFormatError, match="version 99"):
        graph_rows(encode_chunk(msgspec.structs.replace(good, v=99)))
    with pytest.raises(WireFormatError, match="names 0"):
        graph_rows(encode_chunk(msgspec.structs.replace(good, src=[])))
    with pytest.raises(WireFormatError, match="histogram"):
        table = make_window(HOUR_MS, [{"src": "a", "dst": "b", "latencies_us": [3]}])
        broken = chunk_window(table)[0]
        columns = {
            **broken.columns,
            "histogram_edge": msgspec.structs.replace(broken.columns["histogram_edge"], base=5),
        }
        graph_rows(encode_chunk(msgspec.structs.replace(broken, columns=columns)))
    marker = chunk_window(make_window(HOUR_MS, []))[-1]
    with pytest.raises(WireFormatError, match="overflow"):
        graph_rows(encode_chunk(msgspec.structs.replace(marker, overflow=(1,))))


def test_an_event_row_holds_every_field_and_the_message_as_it_is():
    event = make_event(Activity.CLOSE, close_reason="accepted", severity=Severity.CRITICAL)
    [row] = event_row(event, '{"class_uid": 2004}').batch.to_pylist()
    assert row["ocsf"] == '{"class_uid": 2004}'
    assert (row["activity"], row["activity_id"], row["severity"], row["severity_id"]) == ("close", 3, "critical", 5)
    assert row["edges"] == [{"src": "shop/web", "dst": "ext:evil.example", "port": 443, "protocol": 6}]
    assert row["evidence"][0] == msgspec.structs.asdict(event.evidence[0])
    assert row["time"].timestamp() * 1000 == event.time_ms
    renamed = {
        "time_ms": "time",
        "window_start_ms": "window_start",
        "window_end_ms": "window_end",
        "first_seen_ms": "first_seen",
    }
    assert {renamed.get(name, name) for name in event.__struct_fields__} <= set(row)


def test_arrow_schemas_cover_exactly_what_is_sent():
    for table in (EDGES_1M, WINDOWS, DRIFT_EVENTS):
        assert arrow_schema(table).names == list(table.sent_columns)
        assert "inserted_at" not in table.sent_columns


def test_an_empty_window_has_a_marker_row_alone():
    window = dataclasses.replace(make_window(HOUR_MS, []), tenant="b")
    assert [graph_rows(m.value).table for m in messages_of(window)] == [WINDOWS]


def test_an_event_message_becomes_the_row_of_its_event():
    event = make_event(Activity.UPDATE)
    value = encode_event(event)
    rows = drift_rows(value)
    assert rows.batch.equals(event_row(event, value.decode()).batch)
    with pytest.raises(WireFormatError, match="drift event cannot be read"):
        drift_rows(b"{}")


def test_an_audit_record_is_one_row_and_other_bytes_are_refused():
    record = AuditRecord(
        "r1", "acme", 1_769_860_800_123, "login:ann", "session.login", "refused", detail="wrong password"
    )
    rows = audit_rows(encode_audit(record))
    [row] = rows.batch.to_pylist()
    assert (rows.table, row["tenant"], row["id"], row["outcome"]) == (AUDIT_LOG, "acme", "r1", "refused")
    assert int(row["time"].timestamp() * 1_000) == record.time_ms
    for bad in (b"", b"{}", b"\xff", encode_audit(msgspec.structs.replace(record, v=9))):
        with pytest.raises(WireFormatError):
            audit_rows(bad)
