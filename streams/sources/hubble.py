"""``hubble``: flows of Cilium's Hubble, as its exporter or ``hubble observe -o json`` writes them. Pure.

A record is an event (a packet that was traced or dropped, a policy's verdict, a request, an answer), not a connection:
it has no bytes, and `hubble_calls` says which event counts as the call. Any field of a flow may be missing, for users
mask them. Records of other kinds say that Hubble lost events or a node.

Source: cilium api/v1/flow/flow.proto, api/v1/observer/observer.proto, pkg/hubble/parser (direction of replies).
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from schemas.flow import PROTOCOL_NUMBERS, UNKNOWN
from streams.sources.coded import CodedRows
from streams.sources.draft import Words, coded_words, integers
from streams.sources.envelopes import Wrapped
from streams.sources.format import LossSignal
from streams.sources.hubble_calls import not_a_packet, seen
from streams.sources.hubble_records import Endpoint, Event, Flow, Ip, Layer4, Layer7, Other, Ports, Service
from streams.sources.identity import (
    UNNAMED,
    Naming,
    address,
    bounded,
    code_names,
    labelled,
    outside,
    owner_of,
    workload,
)
from streams.sources.json_records import Reading
from streams.sources.orientation import CLIENT_IS_DST, CLIENT_IS_SRC, NOT_SAID, client_is_dst, icmp_answers, server_port
from streams.sources.statuses import HTTP_ERROR_FROM
from streams.sources.times import iso_ms
from streams.sources.typed import Batch, TypedFormat, choice, lax, mask_of

_KINDS = ("lost_events", "node_status", "agent_event", "debug_event")
_LOST_BY = frozenset({"PERF_EVENT_RING_BUFFER", "OBSERVER_EVENTS_QUEUE", "HUBBLE_RING_BUFFER"})
_NODE_STATES = frozenset({"NODE_UNAVAILABLE", "NODE_GONE", "NODE_ERROR"})
_CONNECTED = "NODE_CONNECTED"

_event, _other_record = lax(Event), lax(Other)
_array = msgspec.json.Decoder(list[Event], strict=False).decode


def _other(value: bytes) -> Other:
    record: Other = _other_record(value)
    if _kind_of(record) is None or bytes(record.flow):
        raise msgspec.ValidationError("neither a flow nor another record of Hubble's")
    return record


def _kind_of(record: Other) -> str | None:
    return next((kind for kind in _KINDS if getattr(record, kind) is not None), None)


_TCP, _UDP, _SCTP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"], PROTOCOL_NUMBERS["sctp"]
_ICMP, _ICMP6 = PROTOCOL_NUMBERS["icmp"], PROTOCOL_NUMBERS["icmp6"]
_NO_IP = Ip()
_NO_LAYER4 = (UNKNOWN, None)
_POLICY_DROPS = frozenset(
    {"POLICY_DENIED", "POLICY_DENY", "AUTH_REQUIRED", "DENIED_BY_LB_SRC_RANGE_CHECK", "NO_EGRESS_GATEWAY"}
)
_FORWARDED = Words({"FORWARDED": 0, "REDIRECTED": 0, "TRACED": 0, "TRANSLATED": 0, "AUDIT": 0})
_SOUND_RCODES = frozenset({0, 3, "0", "3", "NOERROR", "NXDOMAIN", "NoError", "NXDomain", None})
_REPLY, _REQUEST_TYPE, _RESPONSE_TYPE = 1, "REQUEST", "RESPONSE"

_RESERVED = "reserved:"
_RESERVED_NAMES = ("kube-apiserver", "ingress", "host", "remote-node", "health")
"""Reserved identities that are something; world, unmanaged, init and unknown only say what an address is not."""
_WORLD = frozenset({"world", "world-ipv4", "world-ipv6"})
_APP_LABELS = ("k8s:app.kubernetes.io/name=", "k8s:app=", "k8s:k8s-app=", "k8s:name=")
_NAMESPACE_LABEL = "k8s:io.kubernetes.pod.namespace="
_DEFAULT_CLUSTERS = frozenset({"", "default"})

_Key = tuple[Any, ...]
_PODS, _SERVICES, _LABELS = "Pod", "Service", "labels"
_NAMES_READ = 32
_CALLS = ("traces", "verdicts")


def _key(end: Endpoint | None, service: Service | None, names: tuple[str, ...], where: str) -> _Key:
    """Return what names an endpoint, without what changes from record to record where something better is there."""
    if end is not None:
        if end.workloads and end.workloads[0].name:
            first = end.workloads[0]
            return first.kind, end.namespace, first.name, end.cluster_name
        if end.pod_name:
            return _PODS, end.namespace, end.pod_name, end.cluster_name
    if service is not None and service.name:
        return _SERVICES, service.namespace, service.name, end.cluster_name if end is not None else ""
    labels = end.labels if end is not None else ()
    namespace = end.namespace if end is not None else ""
    return _LABELS, namespace, labels, end.cluster_name if end is not None else "", names[:_NAMES_READ], where


class Hubble(TypedFormat):
    """Hubble's flows; see the module.

    Args:
        cluster: the cluster all records come from, instead of ``cluster_name``; ``-`` leaves it out of names.
        by_verdicts: calls are counted by policy verdicts, for exports without traces; else by traces and drops.
    """

    name = "hubble"
    reading = Reading((_event, _other, Wrapped(_event, ("flow",)), Wrapped(_other, ("flow",))), _array)

    def __init__(self, *, cluster: str | None = None, by_verdicts: bool = False) -> None:
        self._cluster = cluster
        self._by_verdicts = by_verdicts
        self._naming: Naming[_Key] = Naming(self._name_of)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "Hubble":
        """Return the format as configured: ``cluster``, ``calls`` (``traces`` or ``verdicts``)."""
        by_verdicts = choice(cls.name, arguments, "calls", _CALLS) == "verdicts"
        return cls(cluster=arguments.get("cluster"), by_verdicts=by_verdicts)

    def _cluster_of(self, recorded: str) -> str | None:
        if self._cluster is not None:
            return None if self._cluster == "-" else self._cluster
        return None if recorded in _DEFAULT_CLUSTERS else recorded

    def _name_of(self, key: _Key) -> str:
        if key[0] != _LABELS:
            kind, namespace, name, cluster = key
            return workload(namespace, owner_of(kind, name), self._cluster_of(cluster))
        _, namespace, labels, cluster, names, where = key
        reserved = {label.removeprefix(_RESERVED) for label in labels if label.startswith(_RESERVED)}
        for name in _RESERVED_NAMES:
            if name in reserved:
                return bounded(_RESERVED + name)
        namespace = namespace or _value_of(labels, _NAMESPACE_LABEL)
        for prefix in _APP_LABELS:
            app = _value_of(labels, prefix)
            if app:
                return workload(namespace, app, self._cluster_of(cluster))
        by_labels = labelled(namespace, labels, self._cluster_of(cluster))
        if by_labels != UNNAMED:
            return by_labels
        # An address has as many names as were ever asked for, in no order: any rule will do, if it is always the same.
        hosts = sorted({name for name in map(outside, names) if name != UNNAMED})
        if hosts:
            return hosts[0]
        return address(where) or (bounded(_RESERVED + "world") if reserved & _WORLD else UNNAMED)

    def rows(self, batch: Batch) -> CodedRows | None:
        """Turn records into rows; see `TypedFormat`."""
        self._take_signals(batch)
        batch.skip([not_a_packet(event.flow) for event in batch.records])
        events, draft = batch.records, batch.draft
        if not events:
            return None
        flows: list[Flow] = [event.flow for event in events]
        size = len(flows)
        wires = [_layer4(flow.l4) for flow in flows]
        protocol = np.fromiter((wire[0] for wire in wires), dtype=np.int64, count=size)
        ports = [wire[1] for wire in wires]
        src_port = integers([None if p is None else p.source_port for p in ports])
        dst_port = integers([None if p is None else p.destination_port for p in ports])
        flags = [None if p is None else p.flags for p in ports]
        syn = mask_of((f is not None and f.SYN for f in flags), size)
        ack = mask_of((f is not None and f.ACK for f in flags), size)
        flagged = mask_of((f is not None for f in flags), size) & (protocol == _TCP)
        layer7 = [flow.l7 for flow in flows]
        request = mask_of((l7 is not None and l7.type == _REQUEST_TYPE for l7 in layer7), size)
        response = mask_of((l7 is not None and l7.type == _RESPONSE_TYPE for l7 in layer7), size)
        reply = integers([f.is_reply if f.is_reply is not None else (True if f.reply else None) for f in flows])
        said = np.where(
            reply >= 0,
            np.where(reply == _REPLY, CLIENT_IS_DST, CLIENT_IS_SRC),
            np.where(
                request | (syn & ~ack),
                CLIENT_IS_SRC,
                np.where(response | (syn & ack), CLIENT_IS_DST, NOT_SAID),
            ),
        )
        replies, icmp_errors = icmp_answers(protocol, np.fromiter(map(_icmp_type, flows), np.int64, size))
        said = np.where(replies | icmp_errors, CLIENT_IS_DST, said)
        portless = (src_port == UNKNOWN) & (dst_port == UNKNOWN)
        said = np.where(portless & (said == NOT_SAID), CLIENT_IS_SRC, said)
        swapped = client_is_dst(src_port, dst_port, said)
        port = np.where(portless, UNKNOWN, server_port(src_port, dst_port, swapped, said))
        (src, dst), names = code_names(
            self._naming,
            [_key(f.source, f.source_service, f.source_names, f.IP.source if f.IP else "") for f in flows],
            [
                _key(f.destination, f.destination_service, f.destination_names, f.IP.destination if f.IP else "")
                for f in flows
            ],
        )
        instants = [event.flow.time or event.time for event in events]
        dropped = mask_of((flow.verdict == "DROPPED" for flow in flows), size)
        refused = dropped & mask_of((_by_policy(flow) for flow in flows), size)
        denied = np.where(refused, 1, coded_words(_FORWARDED, [flow.verdict for flow in flows]))
        failed = (dropped & ~refused) | mask_of((flow.verdict == "ERROR" for flow in flows), size)
        reset = mask_of((f is not None and f.RST for f in flags), size)
        answers = integers([_answer(l7) for l7 in layer7])
        errors = np.where(failed, 1, np.maximum(answers, np.where(flagged, reset, UNKNOWN)))
        # Answers are what counts as calls of a protocol that Hubble reads, handshakes as those of a connection. HTTP
        # that the proxy refuses is answered, too.
        http = mask_of((l7 is not None and l7.http is not None for l7 in layer7), size)
        how = seen(flows, reply, swapped, by_verdicts=self._by_verdicts)
        later = (flagged & ~(syn & ~ack)) | (swapped & ~response) | (request & (~dropped | http))
        known = ~how.is_repeat
        latency = integers([None if l7 is None else l7.latency_ns for l7 in layer7])
        draft.host = lambda row: events[row].node_name or flows[row].node_name
        return draft.finish(
            time_ms=iso_ms(instants),
            time_shown=instants,
            ends=(np.where(swapped, dst, src), np.where(swapped, src, dst), names),
            port=port,
            protocol=protocol,
            columns={
                "side": how.side,
                "errors": np.where(known | failed, errors, UNKNOWN),
                "denied": np.where(known, denied, UNKNOWN),
                "latency_us": np.where(latency > 0, latency // 1_000, UNKNOWN),
                "continued": (later | how.is_later | how.is_repeat).astype(np.int64),
            },
        )

    @staticmethod
    def _take_signals(batch: Batch) -> None:
        """Count records that hold no flow; those that tell of loss become signals."""
        others = [(row, r) for row, r in enumerate(batch.records) if isinstance(r, Other)]
        if not others:
            return
        message, index = batch.draft.message, batch.draft.index
        for row, record in others:
            at, time_ms = (int(message[row]), int(index[row])), int(iso_ms([record.time])[0])
            if record.lost_events is not None:
                lost = record.lost_events
                source = lost.source if lost.source in _LOST_BY else "OTHER"
                count = UNKNOWN if lost.num_events_lost is None else lost.num_events_lost
                batch.signals.append(LossSignal(*at, f"lost_events:{source}", record.node_name, count, time_ms))
            elif record.node_status is not None:
                state = record.node_status.state_change
                kind = f"node_status:{state if state in _NODE_STATES else 'OTHER'}"
                if state == _CONNECTED:
                    continue
                nodes = record.node_status.node_names or (record.node_name,)
                batch.signals.extend(
                    LossSignal(*at, kind, node and bounded(node), UNKNOWN, time_ms) for node in nodes[:1_000]
                )
        batch.skip([_kind_of(r) if isinstance(r, Other) else None for r in batch.records])


def _value_of(labels: tuple[str, ...], prefix: str) -> str:
    return next((label.removeprefix(prefix) for label in labels if label.startswith(prefix)), "")


def _icmp_type(flow: Flow) -> int:
    icmp = None if flow.l4 is None else flow.l4.ICMPv4 or flow.l4.ICMPv6
    return UNKNOWN if icmp is None else icmp.type


def _layer4(layer: Layer4 | None) -> tuple[int, Ports | None]:
    """Return protocol number and ports."""
    if layer is None:
        return _NO_LAYER4
    if layer.TCP is not None:
        return _TCP, layer.TCP
    if layer.UDP is not None:
        return _UDP, layer.UDP
    if layer.ICMPv4 is not None:
        return _ICMP, None
    if layer.ICMPv6 is not None:
        return _ICMP6, None
    if layer.SCTP is not None:
        return _SCTP, layer.SCTP
    return _NO_LAYER4


def _by_policy(flow: Flow) -> bool:
    """Say whether a drop was a refusal: by its reason, and where the reason is masked or it was a request, always."""
    reason = flow.drop_reason_desc
    return not reason or reason in _POLICY_DROPS or flow.l7 is not None


def _answer(layer: Layer7 | None) -> int | None:
    """Return 1 for an answer that says the request failed, 0 for a sound one, ``None`` for no answer."""
    if layer is None or layer.type == _REQUEST_TYPE:
        return None
    if layer.http is not None and layer.http.code:
        return int(layer.http.code >= HTTP_ERROR_FROM)
    if layer.dns is not None and layer.type == _RESPONSE_TYPE:
        return int(layer.dns.rcode not in _SOUND_RCODES)
    if layer.kafka is not None and layer.type == _RESPONSE_TYPE:
        return int(bool(layer.kafka.error_code))
    return None
