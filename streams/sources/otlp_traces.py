"""``otlp-traces``: spans of OpenTelemetry as the collector's Kafka exporter writes them, JSON or protobuf. Pure.

A message holds the spans of many resources; a record is one span. CLIENT and PRODUCER spans are the caller's half of a
call, SERVER and CONSUMER spans the callee's; others are no calls. Each half is a row of its own that says what it knows
of the other end, with a ``pair`` key that both have: the state machine brings them together.

Source: opentelemetry-proto docs/specification.md and trace.proto; OpenTelemetry semantic conventions;
opentelemetry-collector-contrib exporter/kafkaexporter.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from schemas.dead_letter import Reason
from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from schemas.tenant_log import IntColumn
from streams.result import Rejected
from streams.sources import otlp_documents, otlp_json, otlp_proto
from streams.sources.coded import CodedRows
from streams.sources.draft import Draft, Words, coded_words, integers, loose_integers, scaled, shown
from streams.sources.format import Decoded
from streams.sources.identity import UNKNOWN_PEER, UNNAMED, Naming, code_names
from streams.sources.orientation import Mask
from streams.sources.otlp_names import (
    Owner,
    Peer,
    authority_of,
    host_of_cluster,
    name_of_caller,
    name_of_peer,
    owner_of_resource,
    system_name,
)
from streams.sources.otlp_spans import (
    ADDRESS,
    BYTES_IN,
    BYTES_OUT,
    CALLERS,
    CLUSTER,
    CONSUMER,
    GRPC,
    HTTP,
    MAX_SAMPLING,
    MESSAGES,
    PEER_NAMESPACE,
    PEER_SERVICE,
    PORT,
    PRODUCER,
    SOCKET,
    SPACE,
    SYSTEM,
    TEMPLATE,
    TEMPORARY,
    TRANSPORT,
    URL,
    Alone,
    Collected,
    Spans,
    is_set,
    pair_keys,
    sampling_of,
    words_of,
)
from streams.sources.remembered import Remembered
from streams.sources.statuses import GRPC_MEANINGS, GRPC_OK, HTTP_ERROR_FROM
from streams.sources.times import BAD_TIME
from streams.sources.typed import choice, mask_of

_TRACE_BYTES, _SPAN_BYTES = 16, 8
_NS_PER_MS, _NS_PER_US = 1_000_000, 1_000
_TCP, _UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]
_TRANSPORTS = Words({"tcp": _TCP, "ip_tcp": _TCP, "udp": _UDP, "ip_udp": _UDP, "quic": _UDP})
_FAILED = Words(dict.fromkeys((2, "2", "STATUS_CODE_ERROR"), 1), 0)
_ANSWERED, _FAILING = 0, 1
_GRPC = Words({**GRPC_MEANINGS, **dict.fromkeys(GRPC_OK, UNKNOWN)})
"""A code of success says no more than the span's status: what came after it may have failed."""
_HTTP_CLIENT_ERROR_FROM, _MAX_HTTP = 400, 999
_MAX_PORT = 65_535
_TRUE = (True, "true")


class OtlpTraces:
    """OpenTelemetry's spans; see the module.

    Args:
        cluster: the cluster all spans come from, instead of ``k8s.cluster.name``; ``-`` leaves it out of names.
        encoding: ``json``, ``proto``, or ``auto``: told by each message's first bytes.
    """

    name = "otlp-traces"

    def __init__(self, *, cluster: str | None = None, encoding: str = "auto") -> None:
        self._encoding = encoding
        self._owners: Remembered[frozenset[tuple[str, str]], Owner] = Remembered(
            lambda attributes: owner_of_resource(dict(attributes), cluster)
        )
        self._callees: Naming[Peer] = Naming(name_of_peer)
        self._callers: Naming[str | None] = Naming(name_of_caller)
        self._names: Naming[str] = Naming(str)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "OtlpTraces":
        """Return the format as configured: ``cluster``, ``encoding``."""
        encoding = choice(cls.name, arguments, "encoding", ("auto", "json", "proto"))
        return cls(cluster=arguments.get("cluster"), encoding=encoding)

    def _is_proto(self, value: bytes) -> bool:
        return otlp_proto.is_proto(value) if self._encoding == "auto" else self._encoding == "proto"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        collected = Collected(lambda attributes: self._owners[frozenset(attributes.items())])
        start = 0
        for proto, stretch in groupby(map(self._is_proto, values)):
            stop = start + sum(1 for _ in stretch)
            read = otlp_proto.collect if proto else otlp_json.collect
            read(values, start, stop, collected)
            start = stop
        payload = self._payload_of(values)
        for message, index, refusal in collected.unfit:
            bad = Rejected(message, index, refusal.reason, refusal.detail, payload(message, index))
            collected.rejected.append(bad)
        decoded = Decoded([], collected.rejected, collected.skipped)
        if collected.spans:
            spans = collected.columns()
            draft = Draft(
                integers(spans.message),
                integers(spans.record),
                payload,
                lambda row: spans.owner[row].host,
                collected.rejected,
            )
            rows = self._rows(spans, draft)
            decoded.runs.extend([rows] if rows is not None else ())
        decoded.rejected.sort(key=lambda bad: (bad.message, bad.index))
        return decoded

    def records_alone(self, value: bytes) -> list[bytes]:
        """Return the records of a message as messages of their own."""
        try:
            count, alone = self._spans_alone(value)
        except DecodeError:
            return [value]
        return [alone(index) for index in range(count)]

    def _spans_alone(self, value: bytes) -> Alone:
        return otlp_proto.spans_alone(value) if self._is_proto(value) else otlp_documents.spans_alone(value)

    def _payload_of(self, values: Sequence[bytes]) -> Callable[[int, int], bytes]:
        """Return a function from (message, index) to a message that holds that span alone."""

        @functools.lru_cache(maxsize=1)  # many spans of one message in a row: take it apart once
        def alone(message: int) -> Callable[[int], bytes]:
            return self._spans_alone(values[message])[1]

        return lambda message, index: alone(message)(index)

    def _rows(self, spans: Spans, draft: Draft) -> CodedRows | None:
        """Turn columns of spans into rows."""
        size = len(spans.kind)
        slots: list[tuple[Any, ...]] = list(zip(*spans.attributes, strict=True))
        kind = integers(spans.kind)
        is_caller, is_message = np.isin(kind, CALLERS), np.isin(kind, MESSAGES)
        trace, pair, has_context = _ids(spans, draft)
        src, dst, port = self._ends(spans, has_context)
        nameless = mask_of((owner.name == UNNAMED for owner in spans.owner), size)
        draft.reject(nameless, Reason.INVALID_VALUE, "its resource names no workload: set service.name")
        told_port = _numbers(slots[PORT])
        draft.reject((told_port < UNKNOWN) | (told_port > _MAX_PORT), Reason.INVALID_VALUE, "no port from 0 to 65535")
        port = np.where(is_message, UNKNOWN, np.where(told_port > 0, told_port, port))
        start_ms, duration_us = _times(spans, draft)
        sampling = sampling_of(spans.trace_state, trace)
        draft.reject(sampling < 0, Reason.INVALID_VALUE, f"stands for more than {MAX_SAMPLING} spans")
        sampling = np.maximum(sampling, 1)
        (src_codes, dst_codes), names = code_names(self._names, src, dst)
        return draft.finish(
            time_ms=start_ms,
            time_shown=spans.start,
            ends=(src_codes, dst_codes, names),
            port=port,
            protocol=coded_words(_TRANSPORTS, slots[TRANSPORT]),
            columns={
                "side": np.where(is_caller, SIDE_CLIENT, SIDE_SERVER),
                "calls": sampling,
                "errors": _errors(spans.status, slots, draft) * sampling,
                "bytes_out": scaled(_numbers(slots[BYTES_OUT]), sampling),
                "bytes_in": scaled(_numbers(slots[BYTES_IN]), sampling),
                "latency_us": np.where(is_message, UNKNOWN, duration_us),  # a message has no answer to wait for
                "sampling": sampling,
                "pair": pair,
            },
        )

    def _ends(self, spans: Spans, has_context: Mask) -> tuple[list[str], list[str], IntColumn]:
        """Return clients, servers, and the ports that addresses of servers name."""
        src: list[str] = []
        dst: list[str] = []
        ports: list[int] = []
        for kind, owner, row, in_pair in zip(
            spans.kind, spans.owner, spans.attributes, has_context.tolist(), strict=True
        ):
            if kind in CALLERS:
                callee, port = self._callee(kind, owner, row)
                src.append(owner.name)
                dst.append(callee)
                ports.append(port)
            else:
                src.append(UNKNOWN_PEER if in_pair else self._caller(kind, row))
                dst.append(owner.name)
                ports.append(UNKNOWN)
        return src, dst, integers(ports)

    def _callee(self, kind: int, owner: Owner, row: list[Any]) -> tuple[str, int]:
        text = row[ADDRESS] or (row[CLUSTER] and host_of_cluster(row[CLUSTER])) or row[SOCKET] or row[URL]
        host, port = authority_of(text) if text else ("", UNKNOWN)
        if port == UNKNOWN and row[SOCKET]:
            port = authority_of(row[SOCKET])[1]
        peer = Peer(
            *(row[PEER_SERVICE] or "", row[PEER_NAMESPACE] or "", host, row[SYSTEM] or "", _space(row)),
            *(kind == PRODUCER, owner.namespace, owner.cluster),
        )
        return self._callees[peer], port

    def _caller(self, kind: int, row: list[Any]) -> str:
        """Return who called where no other half can tell: the topic that a message was read from, or an address."""
        if kind == CONSUMER:
            return system_name(row[SYSTEM], _space(row)) if row[SYSTEM] else UNKNOWN_PEER
        return self._callers[row[ADDRESS] or row[SOCKET]]


def _space(row: list[Any]) -> str:
    """Return the name of a database or topic; a temporary one is one of many."""
    return row[TEMPLATE] or ("" if row[TEMPORARY] in _TRUE else row[SPACE]) or ""


def _ids(spans: Spans, draft: Draft) -> tuple[Any, IntColumn, Mask]:
    """Return traces as words, the keys of pairs, and which spans are of a pair; spans without ids are rejected."""
    for ids, size, what in ((spans.trace, _TRACE_BYTES, "trace id"), (spans.span, _SPAN_BYTES, "span id")):
        words, bad = words_of(ids, size)
        draft.reject(bad | ~is_set(words), Reason.INVALID_VALUE, functools.partial(_not_an_id, what, ids))
        if what == "trace id":
            trace = words
    context_trace, bad_trace = words_of(spans.context_trace, _TRACE_BYTES)
    context_span, bad_span = words_of(spans.context_span, _SPAN_BYTES)
    draft.reject(
        bad_trace | bad_span, Reason.INVALID_VALUE, functools.partial(_not_an_id, "parent or link", spans.context_span)
    )
    has_context = is_set(context_span) & is_set(context_trace)
    return trace, np.where(has_context, pair_keys(context_trace, context_span), UNKNOWN), has_context


def _not_an_id(what: str, ids: Sequence[Any], row: int) -> str:
    value = ids[row]
    return f"no {what}: {shown(value.hex() if isinstance(value, bytes) else value)}"


def _numbers(values: Sequence[Any]) -> IntColumn:
    """Return numbers, or their texts; -1 for unknown (as some instrumentations write it), -2 for what is none."""
    numbers = loose_integers(values)
    if numbers.min() < UNKNOWN:
        said_unknown = mask_of((value in (-1, "-1") for value in values), len(values))
        return np.where(said_unknown, UNKNOWN, numbers)
    return numbers


def _times(spans: Spans, draft: Draft) -> tuple[IntColumn, IntColumn]:
    """Return starts in ms and durations in us; a span without an end, or that ends before it starts, is rejected."""
    start, end = loose_integers(spans.start), loose_integers(spans.end)
    has_start, has_end = start > 0, end > 0
    draft.reject(has_start & ~has_end, Reason.INVALID_VALUE, lambda row: f"no end time: {shown(spans.end[row])}")
    draft.reject(
        has_start & has_end & (end < start),
        Reason.INVALID_VALUE,
        lambda row: f"ends {int(start[row]) - int(end[row])} ns before it starts",
    )
    duration_us = np.where(has_start & (end >= start), (end - start) // _NS_PER_US, UNKNOWN)
    return np.where(has_start, start // _NS_PER_MS, BAD_TIME), duration_us


def _errors(statuses: Sequence[Any], slots: Sequence[tuple[Any, ...]], draft: Draft) -> IntColumn:
    """Return 1 for a call that failed, else 0.

    By convention a client's span has the status ERROR for any answer from 400, and any gRPC code but OK. Those that
    blame the client are answers here, as in the other formats: they are no failure, whatever the status.
    """
    http = _numbers(slots[HTTP])
    draft.reject((http < UNKNOWN) | (http > _MAX_HTTP), Reason.INVALID_VALUE, "HTTP status must be 0 to 999")
    grpc = coded_words(_GRPC, slots[GRPC])
    failed = (http >= HTTP_ERROR_FROM) | (grpc == _FAILING)
    answered = ((http >= _HTTP_CLIENT_ERROR_FROM) & (http < HTTP_ERROR_FROM)) | (grpc == _ANSWERED)
    return np.where(failed | ((coded_words(_FAILED, statuses) > 0) & ~answered), 1, 0)
