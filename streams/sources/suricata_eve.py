"""``suricata-eve``: flow events of Suricata's EVE JSON. Pure.

Only ``event_type`` ``flow`` is a flow: one record of a finished connection with both directions, the initiator first.
All other events are counted by type. Bytes are those of packets, headers included.

Source: Suricata's doc/userguide/output/eve/eve-json-format.rst and src/output-json-flow.c.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.flow import PROTOCOL_NUMBERS, UNKNOWN, Port
from streams.sources.coded import CodedRows
from streams.sources.draft import Protocols, Words, coded_words, integers
from streams.sources.envelopes import Wrapped
from streams.sources.format import LossSignal
from streams.sources.identity import Naming, address, code_names
from streams.sources.json_records import FAILURES, Reading
from streams.sources.orientation import client_is_dst, icmp_answers, is_icmp, said_by_sensor, server_port
from streams.sources.times import iso_ms
from streams.sources.typed import Batch, TypedFormat, choice, columns_of, directed, lax, mask_of

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class _Flow(msgspec.Struct, gc=False):
    pkts_toserver: Count | None = None
    pkts_toclient: Count | None = None
    bytes_toserver: Count | None = None
    bytes_toclient: Count | None = None
    start: str | None = None
    end: str | None = None
    state: str | None = None
    action: str | None = None


class _Tcp(msgspec.Struct, gc=False):
    syn: bool = False
    rst: bool = False


class _Capture(msgspec.Struct, gc=False):
    """Counts since the event before; there with ``deltas: yes`` alone."""

    kernel_packets_delta: Count | None = None
    kernel_drops_delta: Count | None = None


class _Stats(msgspec.Struct, gc=False):
    capture: _Capture | None = None


class Event(msgspec.Struct, gc=False):
    """What is used of an event."""

    event_type: str
    timestamp: str | None = None
    src_ip: str | None = None
    src_port: Port | None = None
    dest_ip: str | None = None
    dest_port: Port | None = None
    proto: str | None = None
    icmp_type: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    flow: _Flow | None = None
    tcp: _Tcp | None = None
    host: str | None = None
    stats: _Stats | None = None


class _Kind(msgspec.Struct, gc=False):
    event_type: str


_KNOWN = (
    "alert anomaly arp bittorrent_dht dcerpc dhcp dnp3 dns doh2 drop enip fileinfo files flow frame ftp ftp_data http "
    "http2 ike ikev2 krb5 ldap mdns metadata modbus mqtt netflow nfs packet pgsql pop3 quic rdp rfb sip smb smtp snmp "
    "ssh stats template tftp tls websocket"
)
_TYPES = frozenset(_KNOWN.split())
_TCP = PROTOCOL_NUMBERS["tcp"]
_PROTOCOLS = Protocols()
_DENIED = Words({"drop": 1, "reject": 1, "pass": 0, "accept": 0})
_NO_TCP = _Tcp()
_STATS = "stats"
_MUCH_LOSS = 0.1
"""The share that Zeek, too, calls too much: a few packets are missing in any capture, and no connection with them."""
_TIMES = ("logged", "end", "start")


def _type_name(event_type: str) -> str:
    return event_type if event_type in _TYPES else "other"


_event, _kind = lax(Event), lax(_Kind)
_array = msgspec.json.Decoder(list[Event], strict=False).decode


def _explain(piece: bytes) -> str | None:
    try:
        event_type: str = _kind(piece).event_type
    except FAILURES:
        return None
    return None if event_type == "flow" else _type_name(event_type)


def _losses(batch: Batch) -> Iterator[LossSignal]:
    """Return what statistics say of packets that the kernel dropped, where it was much."""
    message, index = batch.draft.message, batch.draft.index
    for row, event in enumerate(batch.records):
        capture = event.stats.capture if event.event_type == _STATS and event.stats is not None else None
        if capture is None or not capture.kernel_drops_delta:
            continue
        drops, packets = capture.kernel_drops_delta, capture.kernel_packets_delta or 0
        if drops >= _MUCH_LOSS * max(packets, drops):
            time_ms = int(iso_ms([event.timestamp])[0])
            yield LossSignal(int(message[row]), int(index[row]), "kernel_drops", event.host, drops, time_ms)


class SuricataEve(TypedFormat):
    """Suricata's flow events; see the module.

    Args:
        time: event time: ``logged`` (when the event was written), ``end`` (the flow's last packet) or ``start``.
    """

    name = "suricata-eve"
    reading = Reading((_event, Wrapped(_event, ("event_type",))), _array, explain=_explain)

    def __init__(self, *, time: str = _TIMES[0]) -> None:
        self._time = time
        self._naming: Naming[str | None] = Naming(address)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "SuricataEve":
        """Return the format as configured: ``time`` (``logged``, ``end`` or ``start``)."""
        return cls(time=choice(cls.name, arguments, "time", _TIMES))

    def rows(self, batch: Batch) -> CodedRows | None:
        """Turn events into rows; see `TypedFormat`."""
        types = [event.event_type for event in batch.records]
        if _STATS in types:
            batch.signals.extend(_losses(batch))
        batch.skip([None if event_type == "flow" else event_type for event_type in types], _type_name)
        bare = mask_of((event.flow is None for event in batch.records), len(batch.records))
        batch.reject(bare, Reason.MALFORMED, "a flow event without its flow")
        draft, events = batch.draft, batch.records
        if not events:
            return None
        column, flow = columns_of(events, Event), columns_of([event.flow for event in events], _Flow)
        tcp = columns_of([event.tcp or _NO_TCP for event in events], _Tcp)
        size = len(events)
        protocol = coded_words(_PROTOCOLS, column["proto"])
        src_port, dst_port = integers(column["src_port"]), integers(column["dest_port"])
        is_tcp = protocol == _TCP
        told = mask_of((value is not None for value in column["tcp"]), size)
        said = said_by_sensor(src_port, dst_port, ~told | mask_of(tcp["syn"], size), is_tcp)
        swapped = client_is_dst(src_port, dst_port, said)
        port = server_port(src_port, dst_port, swapped, said)
        icmp = is_icmp(protocol)
        replies, icmp_errors = icmp_answers(protocol, integers(column["icmp_type"]))
        port = np.where(icmp, UNKNOWN, port)
        swapped = np.where(icmp, replies | icmp_errors, swapped)
        (src, dst), names = code_names(self._naming, column["src_ip"], column["dest_ip"])
        measures = {
            "bytes_out": integers(flow["bytes_toserver"]),
            "bytes_in": integers(flow["bytes_toclient"]),
            "packets_out": integers(flow["pkts_toserver"]),
            "packets_in": integers(flow["pkts_toclient"]),
        }
        unanswered = mask_of((state == "new" for state in flow["state"]), size) & (measures["packets_in"] == 0)
        failed = mask_of(tcp["rst"], size) | unanswered
        columns = directed(measures, swapped)
        columns["errors"] = np.where(is_tcp, failed, UNKNOWN)
        columns["denied"] = coded_words(_DENIED, flow["action"])
        columns["continued"] = icmp_errors.astype(np.int64)
        instants = column["timestamp"] if self._time == "logged" else flow[self._time]
        if not all(instants):
            instants = tuple(
                text or event.timestamp or event.flow.end or event.flow.start
                for text, event in zip(instants, events, strict=True)
            )
        draft.host = lambda row: events[row].host
        return draft.finish(
            time_ms=iso_ms(instants),
            time_shown=instants,
            ends=(np.where(swapped, dst, src), np.where(swapped, src, dst), names),
            port=port,
            protocol=protocol,
            columns=columns,
        )
