"""What examples of OTLP's spans cannot show: encodings side by side, coordinates, units, bounds, what stays unknown."""

import json
import random
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from deploy.source_catalogue import examples_of, message_of
from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from streams.result import WHOLE_MESSAGE
from streams.sources import otlp_spans
from streams.sources.format import Decoded
from streams.sources.otlp_traces import OtlpTraces
from streams.sources.registry import source_format
from tests.bench.fuzz_sources import as_seen
from tests.bench.otlp_messages import as_json, as_proto, batched

T = 1_763_849_940_000_000_000
CLIENT, SERVER, INTERNAL, PRODUCER, CONSUMER = 3, 2, 1, 4, 5


class Targets(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


def attribute(key: str, value: Any) -> dict[str, Any]:
    kind = {bool: "boolValue", int: "intValue", float: "doubleValue"}.get(type(value), "stringValue")
    return {"key": key, "value": {kind: value}}


def span(kind: Any = CLIENT, number: int = 1, **attributes: Any) -> dict[str, Any]:
    made = {"traceId": f"{7:032x}", "spanId": f"{number:016x}", "kind": kind}
    made |= {"startTimeUnixNano": str(T), "endTimeUnixNano": str(T + 2_500_000)}
    return {**made, "attributes": [attribute(key.replace("__", "."), value) for key, value in attributes.items()]}


def message(*spans: dict[str, Any], **resource: str) -> bytes:
    named = resource or {"service.name": "checkout", "k8s.namespace.name": "shop"}
    attributes = [attribute(key, value) for key, value in named.items()]
    found = {"resource": {"attributes": attributes}, "scopeSpans": [{"spans": list(spans)}]}
    return json.dumps({"resourceSpans": [found]}).encode()


def rows(decoded: Decoded) -> list[dict[str, Any]]:
    found = []
    for run in decoded.runs:
        grouping = run.group("t", Targets())
        hosts = run.hosts(range(len(run.message)))
        for row, host in enumerate(hosts):
            _, src, dst, port, protocol = grouping.edges[int(grouping.edge[row])]
            columns = {name: int(column[row]) for name, column in run.columns.items()}
            at = (int(run.message[row]), int(run.index[row]))
            found.append(
                {"at": at, "src": src, "dst": dst, "port": port, "protocol": protocol, "host": host, **columns}
            )
    return found


def row(*spans: dict[str, Any], **resource: str) -> dict[str, Any]:
    decoded = OtlpTraces().decode([message(*spans, **resource)])
    assert decoded.rejected == []
    (found,) = rows(decoded)
    return found


def refused(changed: dict[str, Any]) -> tuple[Reason, str]:
    """What becomes of a span between two good ones, which are read."""
    decoded = OtlpTraces().decode([message(span(number=1), changed, span(number=3))])
    assert [found["at"] for found in rows(decoded)] == [(0, 0), (0, 2)]
    (bad,) = decoded.rejected
    assert (bad.message, bad.index) == (0, 1)
    alone = OtlpTraces().decode([bad.payload])  # what is kept of it comes to the same, alone
    assert [(one.reason, one.detail) for one in alone.rejected] == [(bad.reason, bad.detail)] and not alone.runs
    return bad.reason, bad.detail


# -- encodings ---------------------------------------------------------------------------------------------------------


def sound(case: Any) -> bool:
    return "value" in case and '{"resourceSpans' in case["value"][:15] and bool(case["flows"]) and not case["rejected"]


@pytest.mark.parametrize("case", list(filter(sound, examples_of("otlp-traces"))), ids=lambda case: case["name"])
def test_both_encodings_come_to_the_same(case: dict[str, Any]) -> None:
    reading, value = source_format(case["format"]), message_of(case)
    again = as_proto(value)
    assert as_seen(reading.decode([again])) == as_seen(reading.decode([value]))
    assert reading.decode([again]).skipped == reading.decode([value]).skipped
    assert as_seen(reading.decode([as_json(again)])) == as_seen(reading.decode([value]))


def test_encodings_may_change_from_message_to_message() -> None:
    one, two = message(span()), as_proto(message(span(number=2), span(number=3)))
    values = [one, two, two, b"\n" + one, b"{", one, b"\n\x05", two]
    decoded = OtlpTraces().decode(values)
    assert [found["at"] for found in rows(decoded)] == [
        *((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (5, 0), (7, 0), (7, 1)),
    ]
    assert [(bad.message, bad.index, bad.reason) for bad in decoded.rejected] == [
        (4, WHOLE_MESSAGE, Reason.MALFORMED),
        (6, WHOLE_MESSAGE, Reason.MALFORMED),
    ]


@pytest.mark.parametrize("after", [b"{", b"\n{", b" \n {", b"["])
def test_a_line_feed_in_front_of_json_is_no_protobuf(after: bytes) -> None:
    value = b"\n" + after[:-1] + (b"[" + message(span()) + b"]" if after.endswith(b"[") else message(span()))
    assert len(rows(OtlpTraces().decode([value]))) == 1


def test_protobuf_whose_first_length_looks_like_json_is_protobuf() -> None:
    for pad in range(200):
        value = as_proto(message(span(), **{"service.name": "x" * pad or "y"}))
        if value[1:2] in (b"{", b"["):
            assert len(rows(OtlpTraces().decode([value]))) == 1
            break
    else:
        pytest.fail("no message has that length")


def test_the_encoding_can_be_told() -> None:
    text, proto = message(span()), as_proto(message(span()))
    for name, good, bad in (("json", text, proto), ("proto", proto, text)):
        decoded = source_format(f"otlp-traces?encoding={name}").decode([good, bad, b"", b"\0\0\0\0\7{}"])
        assert [found["at"] for found in rows(decoded)] == [(0, 0)]
        assert [(refusal.message, refusal.reason) for refusal in decoded.rejected] == [
            *((1, Reason.MALFORMED), (2, Reason.EMPTY), (3, Reason.MALFORMED)),
        ]
        assert "Confluent wire prefix (schema id 7)" in decoded.rejected[-1].detail
    with pytest.raises(ConfigurationError, match="encoding must be auto or json or proto"):
        source_format("otlp-traces?encoding=xml")
    assert rows(source_format("otlp-traces:us").decode([text]))[0]["src"] == "us:shop/checkout"


# -- coordinates -------------------------------------------------------------------------------------------------------


def test_spans_are_numbered_through_their_message_whatever_becomes_of_them() -> None:
    bad = {**span(), "spanId": ""}
    first = json.loads(message(span(INTERNAL), span(), bad))
    second = json.loads(message(span(0), span(SERVER), **{"service.name": "other"}))
    value = json.dumps({"resourceSpans": first["resourceSpans"] + second["resourceSpans"]}).encode()
    decoded = OtlpTraces().decode([message(span()), value])
    assert [found["at"] for found in rows(decoded)] == [(0, 0), (1, 1), (1, 4)]
    assert [(letter.message, letter.index) for letter in decoded.rejected] == [(1, 2)]
    assert decoded.skipped == {"internal": 1, "unspecified": 1}


@pytest.mark.parametrize("form", ["lines", "array"])
def test_documents_of_one_message_are_numbered_one_after_the_other(form: str) -> None:
    one, two = message(span(number=1), span(number=2)), message(span(number=3))
    others = [b'{"resourceMetrics":[]}', b'{"resourceSpans":3}', b'{"resourceSpans":[]}']
    pieces = [one, *others, two]
    value = b"\n".join(pieces) if form == "lines" else b"[" + b",".join(pieces) + b"]"
    decoded = OtlpTraces().decode([value])
    assert [found["at"] for found in rows(decoded)] == [(0, 0), (0, 1), (0, 3)]
    assert [(bad.index, bad.reason, bad.payload) for bad in decoded.rejected] == [(2, Reason.MALFORMED, others[1])]
    assert decoded.skipped == {"metrics": 1}
    (run,) = decoded.runs
    for number in range(3):
        again = OtlpTraces().decode([run.payload(number)])
        assert rows(again)[0]["pair"] == rows(decoded)[number]["pair"] and len(rows(again)) == 1


def test_a_message_of_too_many_spans_is_one_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_spans, "MAX_RECORDS_PER_MESSAGE", 2)
    many = message(*(span(number=number) for number in range(1, 4)))
    decoded = OtlpTraces().decode([many, as_proto(many), message(span(), span())])
    assert [found["at"] for found in rows(decoded)] == [(2, 0), (2, 1)]
    assert [(bad.message, bad.index, bad.reason) for bad in decoded.rejected] == [
        (0, WHOLE_MESSAGE, Reason.TOO_MANY_RECORDS),
        (1, WHOLE_MESSAGE, Reason.TOO_MANY_RECORDS),
    ]


@pytest.mark.parametrize("recode", [bytes, as_proto])
def test_a_dead_letter_keeps_its_resource_and_of_a_large_one_what_is_used(recode: Any) -> None:
    large = {"service.name": "checkout", "process.command_line": "x" * 10_000}
    bad = {**span(), "endTimeUnixNano": "1"}
    (letter,) = OtlpTraces().decode([recode(message(span(), bad, **large))]).rejected
    assert len(letter.payload) < 1_000 and b"checkout" in letter.payload
    huge = {"service.name": "x" * 10_000}
    (letter,) = OtlpTraces().decode([recode(message(span(), bad, **huge))]).rejected
    assert len(letter.payload) < 1_000
    small = {"service.name": "checkout", "os.type": "linux"}
    (letter,) = OtlpTraces().decode([recode(message(span(), bad, **small))]).rejected
    assert b"linux" in letter.payload


def test_batches_come_to_the_same_as_their_spans_alone() -> None:
    values = [
        message(span(kind, number), **{"service.name": f"s{number % 3}"})
        for number, kind in enumerate([CLIENT, SERVER, INTERNAL, PRODUCER, CONSUMER, CLIENT] * 4, start=1)
    ]
    one_by_one = [{**found, "at": None} for found in rows(OtlpTraces().decode(values))]
    for recode in (bytes, as_proto):
        together = rows(OtlpTraces().decode(list(map(recode, batched(values, 8)))))
        assert sorted(map(str, ({**found, "at": None} for found in together))) == sorted(map(str, one_by_one))
        assert len({found["at"] for found in together}) == len(together)


# -- other signals -----------------------------------------------------------------------------------------------------


def test_other_signals_are_counted_in_either_encoding() -> None:
    metric = Metric(name="cpu", gauge=Gauge())
    metrics = MetricsData(resource_metrics=[ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=[metric] * 2)])])
    record = LogRecord(time_unix_nano=T, trace_id=bytes(15) + b"\1", span_id=bytes(7) + b"\1")
    logs = LogsData(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])])
    values = [metrics.SerializeToString(), logs.SerializeToString()]
    values += [b'{"resourceMetrics":[]}', b'{"resourceLogs":[{}]}', b'{"resourceProfiles":[]}']
    decoded = OtlpTraces().decode(values)
    assert decoded.skipped == {"metrics": 2, "logs": 2, "profiles": 1} and not decoded.rejected and not decoded.runs


def test_spans_without_ids_are_no_metrics() -> None:
    bare = Span(kind=Span.SPAN_KIND_CLIENT, name="x", start_time_unix_nano=T, end_time_unix_nano=T)
    value = TracesData(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[bare])])]).SerializeToString()
    decoded = OtlpTraces().decode([value])
    assert [bad.detail for bad in decoded.rejected] == ["no trace id: ''"] and not decoded.skipped


@pytest.mark.parametrize("value", [b'{"resourceSpans":[]}', b'{"resourceSpans":[{"scopeSpans":[{}]}]}', b"\n\0"])
def test_a_message_without_spans_is_empty(value: bytes) -> None:
    (bad,) = OtlpTraces().decode([value]).rejected
    assert (bad.index, bad.reason) == (WHOLE_MESSAGE, Reason.EMPTY)


# -- halves ------------------------------------------------------------------------------------------------------------


def test_both_halves_have_one_key_and_say_which_they_are() -> None:
    caller = row(span(CLIENT, 5))
    callee = row({**span(SERVER, 6), "parentSpanId": f"{5:016X}"}, **{"service.name": "cart"})
    assert caller["pair"] == callee["pair"] >= 0
    assert (caller["side"], callee["side"]) == (0, 1)
    assert (callee["src"], callee["dst"]) == ("ext:unknown", "cart")


@pytest.mark.parametrize("parent", [None, "", "0" * 16])
def test_a_root_has_no_other_half(parent: str | None) -> None:
    found = row({**span(SERVER, client__address="203.0.113.7"), "parentSpanId": parent})
    assert "pair" not in found and found["src"] == "ip:203.0.113.7"
    assert row(span(SERVER))["src"] == "ext:unknown"


def test_a_callee_with_a_parent_does_not_say_who_called() -> None:
    found = row({**span(SERVER, client__address="203.0.113.7"), "parentSpanId": f"{5:016x}"})
    assert found["src"] == "ext:unknown" and found["pair"] >= 0


def test_a_message_is_paired_by_its_link_and_if_there_are_several_by_its_parent() -> None:
    sent = row(span(PRODUCER, 5, messaging__system="kafka", messaging__destination__name="orders"))
    link = {"traceId": f"{7:032x}", "spanId": f"{5:016x}"}
    read = span(CONSUMER, 6, messaging__system="kafka", messaging__destination__name="orders")
    parent = {"parentSpanId": f"{9:016x}"}
    assert sent["dst"] == "ext:kafka/orders" and "latency_us" not in sent
    assert row({**read, "links": [link]})["pair"] == sent["pair"]
    assert row({**read, **parent, "links": [link], "flags": 0x101})["pair"] == sent["pair"]
    assert row({**read, **parent, "links": [link, link]})["pair"] == row({**read, **parent})["pair"] != sent["pair"]
    batch = row({**read, "links": [link, link]})
    assert "pair" not in batch and batch["src"] == "ext:kafka/orders" and batch["side"] == 1


def test_a_temporary_destination_has_no_name_and_a_template_stands_for_many() -> None:
    reply = span(PRODUCER, messaging__system="rabbitmq", messaging__destination__name="amq.gen-x")
    reply["attributes"].append(attribute("messaging.destination.temporary", True))
    assert row(reply)["dst"] == "ext:rabbitmq"
    order = span(PRODUCER, messaging__system="mqtt", messaging__destination__name="/c/17")
    order["attributes"].append(attribute("messaging.destination.template", "/c/{id}"))
    assert row(order)["dst"] == "ext:mqtt//c/{id}"


def test_a_parent_of_the_same_process_makes_no_call() -> None:
    nested = {**span(SERVER), "parentSpanId": f"{5:016x}"}
    values = [message({**nested, "flags": flags}) for flags in (0x101, 0x301, 0x1, 0)]
    for recode in (bytes, as_proto):
        decoded = OtlpTraces().decode(list(map(recode, values)))
        assert [found["at"] for found in rows(decoded)] == [(1, 0), (2, 0), (3, 0)]
        assert decoded.skipped == {"nested": 1}
    assert row({**span(CLIENT), "parentSpanId": f"{5:016x}", "flags": 0x101})["side"] == 0


# -- values ------------------------------------------------------------------------------------------------------------


def test_what_a_span_does_not_say_is_unknown() -> None:
    found = row(span(CLIENT))
    assert set(found) - {"at", "src", "dst", "port", "protocol", "host"} == {
        *("time_ms", "side", "calls", "errors", "latency_us", "pair"),
    }
    assert (found["dst"], found["port"], found["protocol"]) == ("ext:unknown", -1, -1)
    assert found["host"] == "shop/checkout"  # nobody says who reported it: the client stands in


def test_the_node_that_reports_is_named() -> None:
    decoded = OtlpTraces().decode([message(span(), **{"service.name": "a", "k8s.node.name": "n"}), message(span())])
    reporters = decoded.runs[0].reporters()
    assert reporters is not None and (reporters[0].tolist(), reporters[1]) == ([0, -1], ["n"])


@pytest.mark.parametrize("start", [str(T), T, f"{T}"])
def test_times_are_nanoseconds_in_numbers_or_text(start: str | int) -> None:
    found = row({**span(), "startTimeUnixNano": start})
    assert (found["time_ms"], found["latency_us"]) == (1_763_849_940_000, 2_500)


@pytest.mark.parametrize(
    ("attributes", "port"),
    [
        ({"server__address": "cart", "server__port": 80}, 80),
        ({"server__address": "cart:81"}, 81),
        ({"server__address": "cart:81", "server__port": "82"}, 82),
        ({"url__full": "https://cart/x"}, 443),
        ({"server__address": "cart", "server__port": 0}, -1),
        ({"server__address": "cart", "server__port": -1}, -1),
        ({"net__peer__name": "cart", "net__peer__port": 83}, 83),
        ({"net__host__port": 84}, -1),
    ],
)
def test_the_port_is_the_servers(attributes: dict[str, Any], port: int) -> None:
    assert row(span(CLIENT, **attributes))["port"] == port


def test_a_callees_peer_port_is_the_clients() -> None:
    assert row(span(SERVER, net__peer__port=40_000, net__host__port=8080))["port"] == 8080
    assert row(span(SERVER, net__peer__port=40_000))["port"] == -1
    assert row(span(CONSUMER, server__port=9092, messaging__system="kafka"))["port"] == -1


@pytest.mark.parametrize(
    ("code", "attributes", "errors"),
    [
        (0, {}, 0),
        (1, {}, 0),
        (2, {}, 1),
        ("STATUS_CODE_ERROR", {}, 1),
        ("STATUS_CODE_OK", {}, 0),
        (2, {"http__response__status_code": 200}, 1),
        (2, {"http__response__status_code": 404}, 0),
        (0, {"http__status_code": 499}, 0),
        (0, {"http__status_code": 500}, 1),
        (0, {"http__status_code": "503"}, 1),
        (0, {"http__status_code": 503.0}, 1),
        (0, {"rpc__grpc__status_code": 0}, 0),
        (2, {"rpc__grpc__status_code": 0}, 1),
        (2, {"rpc__grpc__status_code": 5}, 0),
        (0, {"rpc__grpc__status_code": 14}, 1),
        (0, {"rpc__response__status_code": "DEADLINE_EXCEEDED"}, 1),
        (2, {"rpc__response__status_code": "NOT_FOUND"}, 0),
        (2, {"rpc__response__status_code": "-32602"}, 1),
        (0, {"grpc__status_code": "13", "http__response__status_code": 200}, 1),
        (2, {"rpc__grpc__status_code": 5, "http__response__status_code": 502}, 1),
    ],
)
@pytest.mark.parametrize("recode", [bytes, as_proto])
def test_what_blames_the_server_is_an_error(code: Any, attributes: dict[str, Any], errors: int, recode: Any) -> None:
    value = recode(message({**span(CLIENT, **attributes), "status": {"code": code}}))
    assert rows(OtlpTraces().decode([value]))[0]["errors"] == errors


def test_a_sampled_span_stands_for_many_calls() -> None:
    sampled = span(CLIENT, http__status_code=500, http__request__body__size=100, http__response__body__size="7")
    found = row({**sampled, "traceState": "ot=th:c"})
    assert [found[name] for name in ("calls", "errors", "bytes_out", "bytes_in", "sampling")] == [4, 4, 400, 28, 4]
    assert found["latency_us"] == 2_500
    assert "sampling" not in row({**sampled, "traceState": "ot=rv:9b8233f7e3a151"})


def test_sizes_that_are_said_to_be_unknown_are() -> None:
    found = row(span(CLIENT, http__request_content_length=-1, http__response_content_length="-1"))
    assert "bytes_out" not in found and "bytes_in" not in found


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"traceId": "x" * 32}, Reason.INVALID_VALUE, f"no trace id: '{'x' * 32}'"),
        ({"traceId": None}, Reason.INVALID_VALUE, "no trace id: None"),
        ({"spanId": "0" * 16}, Reason.INVALID_VALUE, f"no span id: '{'0' * 16}'"),
        ({"kind": SERVER, "parentSpanId": "77"}, Reason.INVALID_VALUE, "no parent or link: '77'"),
        ({"kind": 6}, Reason.INVALID_VALUE, "no such kind of span: 6"),
        ({"kind": "CLIENT"}, Reason.INVALID_VALUE, "no such kind of span: 'CLIENT'"),
        ({"startTimeUnixNano": None}, Reason.INVALID_VALUE, "no event time: None"),
        ({"startTimeUnixNano": "soon"}, Reason.INVALID_VALUE, "no event time: 'soon'"),
        ({"startTimeUnixNano": str(1 << 63)}, Reason.INVALID_VALUE, f"no event time: '{1 << 63}'"),
        ({"endTimeUnixNano": 0}, Reason.INVALID_VALUE, "no end time: 0"),
        ({"endTimeUnixNano": str(T - 7)}, Reason.INVALID_VALUE, "ends 7 ns before it starts"),
        ({"startTimeUnixNano": "1"}, Reason.INVALID_VALUE, "latency_us must be between 0 and 4398046511104"),
        ({"traceState": "ot=p:21"}, Reason.INVALID_VALUE, "stands for more than 1048576 spans"),
        ({"attributes": 3}, Reason.MALFORMED, "Expected `array | null`, got `int` - at `$.attributes`"),
        ({"attributes": [attribute("server.port", 70_000)]}, Reason.INVALID_VALUE, "no port from 0 to 65535"),
        ({"attributes": [attribute("server.port", "http")]}, Reason.INVALID_VALUE, "no port from 0 to 65535"),
        ({"attributes": [attribute("http.status_code", 1_000)]}, Reason.INVALID_VALUE, "HTTP status must be 0 to 999"),
        (
            {"attributes": [attribute("http.request.body.size", 1 << 43)]},
            Reason.INVALID_VALUE,
            "bytes_out must be between 0 and 4398046511104",
        ),
        (
            {"attributes": [attribute("http.request.body.size", -2)]},
            Reason.INVALID_VALUE,
            "bytes_out must be between 0 and 4398046511104",
        ),
    ],
)
def test_a_bad_span_costs_itself(changes: dict[str, Any], reason: Reason, detail: str) -> None:
    assert refused({**span(number=2), **changes}) == (reason, detail)


def test_a_resource_that_does_not_fit_costs_its_spans() -> None:
    value = json.loads(message(span(number=1), span(number=2)))
    value["resourceSpans"].insert(0, json.loads(message(span(number=3)))["resourceSpans"][0])
    value["resourceSpans"][0]["resource"]["attributes"] = "none"
    decoded = OtlpTraces().decode([json.dumps(value).encode()])
    assert [found["at"] for found in rows(decoded)] == [(0, 1), (0, 2)]
    (bad,) = decoded.rejected
    assert (bad.index, bad.reason) == (0, Reason.MALFORMED) and bad.detail.startswith("of its resource: ")


@pytest.mark.parametrize("form", ["lines", "array"])
def test_text_that_is_no_utf_8_costs_its_span_or_its_resources_and_moves_no_coordinate(form: str) -> None:
    of_span = message(span(number=1), span(number=2)).replace(b"%016x" % 2, b"%015x\xb5" % 2)
    of_resource = message(span(number=3)).replace(b"k8s.namespace.name", b"k8s.names\xb5ace.name")
    without_spans = of_resource.replace(b'"scopeSpans"', b'"scope{Spans"')
    nameless = message(span(number=4), **{"host.name": "vm-1"})
    pieces = [without_spans, of_span, of_resource, nameless]
    value = b"\n".join(pieces) if form == "lines" else b"[" + b",".join(pieces) + b"]"
    decoded = OtlpTraces().decode([value])
    assert [found["at"] for found in rows(decoded)] == [(0, 0)]
    found = [(bad.index, bad.reason, bad.detail[:16]) for bad in decoded.rejected]
    assert found == [
        (1, Reason.MALFORMED, "'utf-8' codec ca"),
        (2, Reason.MALFORMED, "of its resource:"),
        (3, Reason.INVALID_VALUE, "its resource nam"),
    ]
    for bad, told in zip(decoded.rejected, (b"%015x\xb5" % 2, b"%016x" % 3, b"%016x" % 4), strict=True):
        assert told in bad.payload
        (alone,) = OtlpTraces().decode([bad.payload]).rejected
        assert (alone.reason, alone.detail) == (bad.reason, bad.detail)


def test_nulls_are_as_good_as_nothing() -> None:
    nothing = dict.fromkeys(("parentSpanId", "traceState", "attributes", "links", "status", "flags"))
    assert row({**span(), **nothing})["dst"] == "ext:unknown"
    no_values = {"attributes": [{"key": "server.address"}, {"key": "server.port", "value": None}, {"value": {}}]}
    assert row({**span(), **no_values})["port"] == -1
    decoded = OtlpTraces().decode([b'{"resourceSpans":[{"resource":null,"scopeSpans":null}]}'])
    assert [bad.reason for bad in decoded.rejected] == [Reason.EMPTY]


def test_what_urls_hide_is_in_no_name_and_no_detail() -> None:
    value = message(span(CLIENT, url__full="http://user:secret@cart:70000/x?token=secret"))
    decoded = OtlpTraces().decode([value])
    assert "secret" not in str(rows(decoded)) and rows(decoded)[0]["dst"] == "shop/cart"


KEYS = sorted({key for _, slots in otlp_spans.CALLS.values() for key in slots} | {"http.route", "thread.id"})
VALUES = (
    "cart",
    "",
    "cart:80",
    "10.0.0.1",
    "https://a.example.com/x",
    "200",
    "OK",
    "tcp",
    0,
    5,
    14,
    404,
    503,
    -1,
    True,
)


def test_random_spans_come_to_the_same_in_both_encodings() -> None:
    rng = random.Random(11)
    values = []
    for number in range(1, 601):
        made = span(rng.choice([0, 1, 2, 3, 4, 5, 6]), number)
        made["attributes"] = [attribute(rng.choice(KEYS), rng.choice(VALUES)) for _ in range(rng.randrange(12))]
        made |= {"status": {"code": rng.randrange(3)}, "flags": rng.choice([0, 0x101, 0x301])}
        made["parentSpanId"] = rng.choice(["", f"{rng.getrandbits(64):016x}"])
        made["links"] = [{"traceId": f"{7:032x}", "spanId": f"{1:016x}"}] * rng.randrange(3)
        made["traceState"] = rng.choice(["", "ot=th:4", "ot=p:21"])
        values.append(message(made, **{rng.choice(["service.name", "k8s.deployment.name"]): f"s{number % 7}"}))
    batches = batched(values, 50)
    plain, proto = OtlpTraces().decode(batches), OtlpTraces().decode(list(map(as_proto, batches)))
    assert as_seen(plain) == as_seen(proto) and plain.skipped == proto.skipped
    assert [bad.detail for bad in plain.rejected] == [bad.detail for bad in proto.rejected]
    assert len(rows(plain)) > 100 and len(plain.rejected) > 50 and set(plain.skipped) >= {"internal", "nested"}
