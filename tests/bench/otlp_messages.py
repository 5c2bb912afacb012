"""OTLP messages made from each other: many spans in one message, JSON as protobuf and back, by opentelemetry-proto."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

_IDS = ("traceId", "spanId", "parentSpanId")


def batched(values: Sequence[bytes], size: int) -> list[bytes]:
    """Return messages of ``size`` spans each, those of one resource together, as a collector batches them."""
    made = []
    for start in range(0, len(values), size):
        by_resource: dict[str, Any] = {}
        for value in values[start : start + size]:
            (found,) = json.loads(value)["resourceSpans"]
            held = by_resource.setdefault(json.dumps(found["resource"]), found)
            if held is not found:
                held["scopeSpans"][0]["spans"].extend(found["scopeSpans"][0]["spans"])
        made.append(json.dumps({"resourceSpans": list(by_resource.values())}, separators=(",", ":")).encode())
    return made


def as_proto(value: bytes) -> bytes:
    """Return an OTLP JSON message as protobuf."""
    document = json.loads(value)
    _recode_ids(document, lambda text: base64.b64encode(bytes.fromhex(text)).decode())
    return bytes(json_format.ParseDict(document, TracesData()).SerializeToString())


def as_json(value: bytes) -> bytes:
    """Return a protobuf message as OTLP JSON."""
    document = json_format.MessageToDict(TracesData.FromString(value), use_integers_for_enums=True)
    _recode_ids(document, lambda text: base64.b64decode(text).hex())
    return json.dumps(document, separators=(",", ":")).encode()


def _recode_ids(document: Any, recode: Callable[[str], str]) -> None:
    """Ids are hex in OTLP's JSON, and base64 in protobuf's own."""
    for span in _spans(document):
        for holder in (span, *span.get("links", ())):
            holder.update({key: recode(holder[key]) for key in _IDS if key in holder})


def _spans(document: Any) -> Iterator[dict[str, Any]]:
    for found in document["resourceSpans"]:
        for scope in found["scopeSpans"]:
            yield from scope["spans"]
