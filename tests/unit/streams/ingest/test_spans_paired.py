"""Spans as their exporters send them, through ingest's reader and `tenant-log`, come out as edges of calls."""

import itertools
import json
from typing import Any

import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, decode_record
from streams.ingest.chain import position_before
from streams.ingest.chunk import chunk_of
from streams.ingest.readers import FlowReader
from tests.bench.otlp_messages import as_proto
from tests.builders import SOURCE, end_of, make_lane

T_MS = 1_763_849_940_000
CLIENT, SERVER, PRODUCER, CONSUMER = 3, 2, 4, 5


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": str(value)}} for key, value in values.items()]


def span(kind: int, number: int, parent: int = 0, took_ms: int = 5, **values: Any) -> dict[str, Any]:
    """Return a span of one trace that begins ``number`` ms after the first."""
    start_ms = T_MS + number
    made = {
        "traceId": f"{7:032x}",
        "spanId": f"{number:016x}",
        "kind": kind,
        "startTimeUnixNano": str(start_ms * 1_000_000),
        "endTimeUnixNano": str((start_ms + took_ms) * 1_000_000),
        "attributes": attributes({key.replace("__", "."): value for key, value in values.items()}),
    }
    return {**made, "parentSpanId": f"{parent:016x}"} if parent else made


def message(service: str, *spans: dict[str, Any]) -> bytes:
    resource = {"attributes": attributes({"k8s.namespace.name": "shop", "k8s.deployment.name": service})}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}).encode()


WEB = message("web", span(SERVER, 1, took_ms=20), span(CLIENT, 2, 1, took_ms=10, server__address="10.0.0.9"))
CART = message(
    "cart",
    span(SERVER, 3, 2, took_ms=8),
    span(CLIENT, 4, 3, db__system__name="postgresql", db__namespace="orders"),
    span(PRODUCER, 5, 3, messaging__system="kafka", messaging__destination__name="orders"),
)
MAIL, AUDIT = message("mail", span(CONSUMER, 6, 5)), message("audit", span(CONSUMER, 7, 5))
EDGES = {
    # edge: calls, reports of the other side
    ("ext:unknown", "shop/web"): (1, 0),
    ("shop/web", "shop/cart"): (1, 1),
    ("shop/cart", "ext:postgresql/orders"): (1, 0),
    ("shop/cart", "shop/mail"): (1, 1),
    ("shop/cart", "shop/audit"): (1, 0),
}


def fold(lane: LaneConfig, values: list[bytes], machine: Machine, output: Output) -> int:
    """Read messages, each a chunk of its own; return how many records of the log they became."""
    reader = FlowReader(FlowTopic(format="otlp-traces", tenant_from="fixed:acme", tenants=("acme",)), SOURCE, lane, 1)
    number = 0
    for offset, value in enumerate(values):
        encoded = reader.encode(chunk_of("flows", 0, offset, [value]), position_before(offset), "w", T_MS + 60_000)
        assert not encoded.dead_letters
        for data in encoded.records[0]:
            output.extend(machine.apply(number, decode_record(data)))
            number += 1
    return number


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_spans_in_any_order_and_encoding_become_edges(order: tuple[int, ...]) -> None:
    messages = [WEB, as_proto(CART), as_proto(MAIL), AUDIT]
    if order.index(2) > order.index(3):  # the consumer whose span comes first is the producer's other side
        expected = {**EDGES, ("shop/cart", "shop/mail"): (1, 0), ("shop/cart", "shop/audit"): (1, 1)}
    else:
        expected = EDGES
    machine, output = Machine(), Output()
    lane = make_lane(window_ms=60_000)
    number = fold(lane, [messages[place] for place in order], machine, output)
    output.extend(machine.apply(number, end_of(lane, 0, len(messages))))
    (window,) = output.windows
    edges = window.edges
    columns = zip(edges.src, edges.dst, edges.measure("calls").tolist(), edges.other_side_flows.tolist(), strict=True)
    assert {(src, dst): counts for src, dst, *counts in columns} == {name: [*sums] for name, sums in expected.items()}
    at = edges.dst.index("shop/cart")
    assert int(edges.measure("latency_sum_us")[at]) == 10_000, "what the caller waited for"
    assert output.counts["halves_paired"] == 5 and output.counts["halves_alone"] == 1
    assert output.counts["on_time"] == 7
