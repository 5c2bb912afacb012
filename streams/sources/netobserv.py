"""``netobserv``: flows of NetObserv's flowlogs-pipeline, as its Kafka exporter writes them. Pure.

A record is one direction of a connection over a few seconds, seen by the eBPF agent of one node: what runs from server
to client is folded into the client's edge as its other direction. Bytes and packets are scaled up by ``Sampling``.
Records of conversation tracking repeat the flows; they are counted, not read.

Source: netobserv-operator docs/flows-format.adoc; flowlogs-pipeline pkg/utils/tcp_flags.go.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np

from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN, Port
from schemas.tenant_log import IntColumn
from streams.sources.coded import CodedRows
from streams.sources.draft import Words, coded_words, integers, scaled
from streams.sources.envelopes import Wrapped
from streams.sources.identity import (
    NODE_PREFIX,
    Naming,
    address,
    bounded,
    code_names,
    outside_label,
    owner_of,
    workload,
)
from streams.sources.json_records import FAILURES, Reading
from streams.sources.orientation import (
    CLIENT_IS_DST,
    CLIENT_IS_SRC,
    NOT_SAID,
    Mask,
    client_is_dst,
    icmp_answers,
    is_icmp,
    server_port,
)
from streams.sources.times import milliseconds
from streams.sources.typed import Batch, TypedFormat, choice, columns_of, directed, lax, mask_of

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]

MAX_SAMPLING = 1 << 20


class _NetworkEvent(msgspec.Struct, gc=False):
    Action: str | None = None


class Record(msgspec.Struct, gc=False):
    """What is used of a flow."""

    TimeFlowStartMs: Count
    TimeFlowEndMs: Count | None = None
    SrcAddr: str | None = None
    DstAddr: str | None = None
    SrcPort: Port | None = None
    DstPort: Port | None = None
    Proto: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    FlowDirection: Annotated[int, msgspec.Meta(ge=0, le=2)] | None = None
    Bytes: Count | None = None
    Packets: Count | None = None
    Sampling: Annotated[int, msgspec.Meta(ge=0, le=MAX_SAMPLING)] | None = None
    Flags: int | tuple[str, ...] | None = None
    SrcK8S_Namespace: str | None = None
    SrcK8S_OwnerName: str | None = None
    SrcK8S_OwnerType: str | None = None
    SrcK8S_Name: str | None = None
    SrcK8S_Type: str | None = None
    SrcSubnetLabel: str | None = None
    SrcK8S_HostName: str | None = None
    DstK8S_Namespace: str | None = None
    DstK8S_OwnerName: str | None = None
    DstK8S_OwnerType: str | None = None
    DstK8S_Name: str | None = None
    DstK8S_Type: str | None = None
    DstSubnetLabel: str | None = None
    DstK8S_HostName: str | None = None
    K8S_ClusterName: str | None = None
    AgentIP: str | None = None
    TimeFlowRttNs: Count | None = None
    DnsLatencyMs: Count | None = None
    DnsFlagsResponseCode: str | None = None
    PktDropPackets: Count | None = None
    PktDropLatestDropCause: str | None = None
    NetworkEvents: list[_NetworkEvent | str] | str | None = None
    IcmpType: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    Duplicate: bool | None = None
    RecordType: str | None = msgspec.field(default=None, name="_RecordType")


class _Kind(msgspec.Struct, gc=False):
    RecordType: str = msgspec.field(name="_RecordType")


_FLOW = frozenset({None, "", "flowLog"})
_CONVERSATIONS = {"newConnection": "new-connection", "heartbeat": "heartbeat", "endConnection": "end-connection"}
_NOT_IP, _DUPLICATE = "not-ip", "duplicate"
_SKIPPED = frozenset({_NOT_IP, _DUPLICATE})
_TCP = PROTOCOL_NUMBERS["tcp"]
_INGRESS, _EGRESS = 0, 1
_SYN, _RST, _SYN_ACK = 0x02, 0x04, 0x100
"""Flags of all packets of the record, joined; 0x100 is NetObserv's own: a packet had SYN and ACK."""
_FLAGS = {"SYN": _SYN, "RST": _RST, "SYN_ACK": _SYN_ACK, "RST_ACK": 0x400 | _RST}
_RESET = _RST | 0x400
_SOUND_DNS = frozenset({"NoError", "NXDomain", ""})
_REFUSALS = frozenset({"drop", "reject", "deny"})
_REFUSING_CAUSES = ("NETFILTER", "OVS_DROP_EXPLICIT", "NETPOL", "POLICY")

_record, _kind = lax(Record), lax(_Kind)
_array = msgspec.json.Decoder(list[Record], strict=False).decode

_Key = tuple[str | None, ...]


def _type_name(kind: str) -> str:
    return _CONVERSATIONS.get(kind, kind if kind in _SKIPPED else "other")


def _explain(piece: bytes) -> str | None:
    try:
        kind: str = _kind(piece).RecordType
    except FAILURES:
        return None
    return None if kind in _FLOW else _type_name(kind)


class _Flags(dict[int | tuple[str, ...] | None, int]):
    """Flags as bits, from either spelling; -1 unknown."""

    def __missing__(self, flags: int | tuple[str, ...] | None) -> int:
        if isinstance(flags, tuple):
            bits = 0
            for flag in flags:
                bits |= _FLAGS.get(flag, 0)
        else:
            bits = UNKNOWN if flags is None or not 0 <= flags < 1 << 16 else flags
        if len(self) < 10_000:
            self[flags] = bits
        return bits


class _DnsFailures(Words):
    def __missing__(self, word: object) -> int:
        return UNKNOWN if word is None else int(word not in _SOUND_DNS)


class _Refusals(Words):
    def __missing__(self, cause: object) -> int:
        return int(isinstance(cause, str) and any(part in cause for part in _REFUSING_CAUSES))


def _is_refused(events: list[_NetworkEvent | str] | str | None) -> bool:
    if events is None:
        return False
    if isinstance(events, str):  # older agents wrote sentences
        return "rop" in events
    return any(
        "rop" in event if isinstance(event, str) else (event.Action or "").lower() in _REFUSALS for event in events
    )


class NetObserv(TypedFormat):
    """NetObserv's flows; see the module.

    Args:
        cluster: the cluster all records come from, instead of ``K8S_ClusterName``; ``-`` leaves it out of names.
        at_end: event time is the end of the record's interval, else its start.
    """

    name = "netobserv"
    reading = Reading((_record, Wrapped(_record, ("TimeFlowStartMs",))), _array, explain=_explain)

    def __init__(self, *, cluster: str | None = None, at_end: bool = True) -> None:
        self._cluster = cluster
        self._at_end = at_end
        self._naming: Naming[_Key] = Naming(self._name_of)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "NetObserv":
        """Return the format as configured: ``cluster``, ``time`` (``end`` or ``start``)."""
        at_end = choice(cls.name, arguments, "time", ("end", "start")) == "end"
        return cls(cluster=arguments.get("cluster"), at_end=at_end)

    def _name_of(self, key: _Key) -> str:
        owner, owner_type, namespace, name, kind, where, label, cluster = key
        if self._cluster is not None:
            cluster = None if self._cluster == "-" else self._cluster
        if owner or name:
            if (owner_type if owner else kind) == "Node":
                return bounded(NODE_PREFIX + (owner or name or ""))
            base = owner_of(owner_type or "", owner) if owner else owner_of(kind or "", name or "")
            return workload(namespace or "", base, cluster)
        if label and label.startswith("EXT:"):
            return outside_label(label[4:])
        return address(where)

    def rows(self, batch: Batch) -> CodedRows | None:
        """Turn records into rows; see `TypedFormat`."""
        batch.skip(
            [
                record.RecordType
                if record.RecordType not in _FLOW
                else _DUPLICATE
                if record.Duplicate
                else None
                if record.SrcAddr or record.DstAddr
                else _NOT_IP
                for record in batch.records
            ],
            _type_name,
        )
        records, draft = batch.records, batch.draft
        if not records:
            return None
        column = columns_of(records, Record)
        size = len(records)
        protocol = integers(column["Proto"])
        flags = coded_words(_Flags(), column["Flags"])
        src_port, dst_port = integers(column["SrcPort"]), integers(column["DstPort"])
        is_syn_ack = (flags >= 0) & ((flags & _SYN_ACK) > 0)
        is_syn = (flags >= 0) & ((flags & _SYN) > 0) & ~is_syn_ack
        said = np.where(is_syn_ack, CLIENT_IS_DST, np.where(is_syn, CLIENT_IS_SRC, NOT_SAID))
        icmp = is_icmp(protocol)
        replies, icmp_errors = icmp_answers(protocol, integers(column["IcmpType"]))
        said = np.where(icmp, np.where(replies | icmp_errors, CLIENT_IS_DST, CLIENT_IS_SRC), said)
        swapped = client_is_dst(src_port, dst_port, said)
        port = np.where(icmp, UNKNOWN, server_port(src_port, dst_port, swapped, said))
        (src, dst), names = code_names(self._naming, self._keys(column, "Src"), self._keys(column, "Dst"))
        said_sampling = integers(column["Sampling"])
        sampling = np.maximum(said_sampling, 1)
        unknown = np.full(size, UNKNOWN, dtype=np.int64)
        packets = integers(column["Packets"])
        measures = {
            "bytes_out": scaled(integers(column["Bytes"]), sampling),
            "bytes_in": unknown,
            "packets_out": scaled(packets, sampling),
            "packets_in": unknown,
        }
        columns = directed(measures, swapped)
        columns["errors"] = _errors(column, protocol, flags, packets)
        refused = coded_words(_Refusals({None: 0}), column["PktDropLatestDropCause"]) > 0
        if column["NetworkEvents"].count(None) < size:
            refused |= mask_of(map(_is_refused, column["NetworkEvents"]), size)
        columns["denied"] = np.where(refused, 1, UNKNOWN)
        dns_ms, rtt_ns = integers(column["DnsLatencyMs"]), integers(column["TimeFlowRttNs"])
        columns["latency_us"] = np.where(dns_ms > 0, dns_ms * 1_000, np.where(rtt_ns > 0, rtt_ns // 1_000, UNKNOWN))
        columns["sampling"] = sampling
        # Unsampled, the record of a connection's first packets has its SYN, and one without continues another record.
        # Of sampled packets, most connections' SYN is not among them.
        is_whole = (said_sampling == 0) | (said_sampling == 1)
        later = (protocol == _TCP) & (flags >= 0) & ((flags & (_SYN | _SYN_ACK)) == 0) & is_whole
        columns["continued"] = (swapped | later).astype(np.int64)
        direction = integers(column["FlowDirection"])
        columns["side"] = _side(direction, swapped)
        draft.host = lambda row: _host(records[row])
        instants = column["TimeFlowStartMs"]
        if self._at_end:
            instants = tuple(r.TimeFlowStartMs if r.TimeFlowEndMs is None else r.TimeFlowEndMs for r in records)
        return draft.finish(
            time_ms=milliseconds(instants, 1_000),
            time_shown=instants,
            ends=(np.where(swapped, dst, src), np.where(swapped, src, dst), names),
            port=port,
            protocol=protocol,
            columns=columns,
        )

    @staticmethod
    def _keys(column: dict[str, tuple[str | None, ...]], end: str) -> list[_Key]:
        fields = ("K8S_OwnerName", "K8S_OwnerType", "K8S_Namespace", "K8S_Name", "K8S_Type", "Addr", "SubnetLabel")
        return list(zip(*(column[end + field] for field in fields), column["K8S_ClusterName"], strict=True))


def _side(direction: IntColumn, swapped: Mask) -> IntColumn:
    """Return who reports: the node at the record's destination (ingress) or source (egress), server or client."""
    is_server = np.where(direction == _INGRESS, ~swapped, (direction == _EGRESS) & swapped)
    return np.where(is_server, SIDE_SERVER, SIDE_CLIENT)


def _errors(
    column: dict[str, tuple[object, ...]], protocol: IntColumn, flags: IntColumn, packets: IntColumn
) -> IntColumn:
    """Return 1 for a reset, a failed DNS answer, or a record of nothing but dropped packets; -1 where nothing tells."""
    reset = np.where((protocol == _TCP) & (flags >= 0), (flags & _RESET) > 0, UNKNOWN)
    dns = coded_words(_DnsFailures({None: UNKNOWN}), column["DnsFlagsResponseCode"])
    dropped = integers(column["PktDropPackets"])
    lost = np.where(dropped > 0, np.where(packets <= 0, 1, (dropped >= packets).astype(np.int64)), UNKNOWN)
    errors: IntColumn = np.maximum(np.maximum(reset, dns), lost)
    return errors


def _host(record: Record) -> str | None:
    by_side = record.DstK8S_HostName if record.FlowDirection == _INGRESS else record.SrcK8S_HostName
    return by_side or record.AgentIP
