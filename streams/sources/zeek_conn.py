"""``zeek-conn``: Zeek's connection log, as JSON in its spellings or as tab-separated text. Pure.

JSON: keys ``id.orig_h`` or ``id_orig_h`` or nested; bare or as ``{"conn": {...}}`` (zeek-kafka's ``tag_json``); ``ts``
as epoch seconds or ISO 8601. Text: fields as a ``#fields`` line of the same message says, else as configured, else
Zeek's own list. Either may be the ``message`` of a log shipper's record. Other logs of the same sensor are no flows.

Source: Zeek's base/protocols/conn/main.zeek (fields, meaning of conn_state).
"""

import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from schemas.flow import PROTOCOL_NUMBERS, UNKNOWN, Port
from schemas.tenant_log import IntColumn
from streams.sources.coded import CodedRows
from streams.sources.draft import Draft, Protocols, Words, coded_words, integers
from streams.sources.envelopes import envelope_reader
from streams.sources.format import Decoded
from streams.sources.identity import Naming, address, code_names
from streams.sources.json_records import FAILURES, Explained, NotAFlow, Reading
from streams.sources.orientation import client_is_dst, said_by_sensor, server_port
from streams.sources.text_records import (
    HEADER,
    LINES,
    UNSET,
    Layout,
    Note,
    read_table,
    runs_by_kind,
    text_floats,
    text_integers,
)
from streams.sources.times import MAX_TIME_MS, mixed_ms, rounded_ms
from streams.sources.typed import Batch, add_run, collect, columns_of, directed, lax

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]

_DEFAULT = (
    "ts uid id.orig_h id.orig_p id.resp_h id.resp_p proto service duration orig_bytes resp_bytes conn_state local_orig "
    "local_resp missed_bytes history orig_pkts orig_ip_bytes resp_pkts resp_ip_bytes tunnel_parents"
)
DEFAULT_FIELDS = tuple(_DEFAULT.split())
"""Columns of conn.log as Zeek writes it without further scripts; those that scripts add follow behind."""

_KNOWN_LOGS = (
    "analyzer broker capture_loss cluster config conn dce_rpc dhcp dnp3 dns dpd files ftp http intel irc kerberos "
    "known_certs known_hosts known_services ldap ldap_search loaded_scripts modbus mqtt_connect mqtt_publish "
    "mqtt_subscribe mysql netcontrol notice notice_alarm ntlm ntp ocsp openflow packet_filter pe postgresql quic "
    "radius rdp reporter rfb sip smb_files smb_mapping smtp snmp socks software ssh ssl stats syslog telemetry "
    "traceroute tunnel weird websocket x509"
)
_LOGS = frozenset(_KNOWN_LOGS.split())
_CONN, _OTHER = "conn", "other"

_KEYS = {
    # field: the name in Zeek's log
    "orig_h": "id.orig_h",
    "resp_h": "id.resp_h",
    "orig_p": "id.orig_p",
    "resp_p": "id.resp_p",
    "path": "_path",
    "stream": "@stream",
    "node": "_node_name",
    "system": "_system_name",
    "at_system": "@system",
    "twice": "id_orig_h",
}


class Conn(msgspec.Struct, gc=False, rename=_KEYS):
    """What is used of a connection."""

    ts: float | str
    orig_h: str
    resp_h: str
    orig_p: Port | None = None
    resp_p: Port | None = None
    proto: str | None = None
    conn_state: str | None = None
    duration: float | None = None
    orig_bytes: Count | None = None
    resp_bytes: Count | None = None
    orig_pkts: Count | None = None
    resp_pkts: Count | None = None
    ip_proto: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    path: str | None = None
    stream: str | None = None
    node: str | None = None
    system: str | None = None
    at_system: str | None = None
    twice: msgspec.Raw = msgspec.Raw()


def _underscored_type() -> type[msgspec.Struct]:
    """Return `Conn` with ``id_orig_h`` and its like: structs pass their spelling on to those who inherit."""
    hints = typing.get_type_hints(Conn, include_extras=True)
    fields: list[Any] = [
        (field.name, hints[field.name]) if field.required else (field.name, hints[field.name], field.default)
        for field in msgspec.structs.fields(Conn)
    ]
    ends = {name: f"id_{name}" for name in ("orig_h", "orig_p", "resp_h", "resp_p")}
    return msgspec.defstruct("_Underscored", fields, gc=False, rename={**_KEYS, **ends, "twice": "id.orig_h"})


class _Id(msgspec.Struct, gc=False):
    orig_h: str
    resp_h: str
    orig_p: Port | None = None
    resp_p: Port | None = None


class _Nested(msgspec.Struct, gc=False):
    id: _Id


class _Tagged(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    conn: msgspec.Raw


class _Kind(msgspec.Struct, gc=False, rename={"path": "_path", "stream": "@stream"}):
    path: str | None = None
    stream: str | None = None


_dotted, _underscored_or_both, _nested, _tagged, _kind = map(lax, (Conn, _underscored_type(), _Nested, _Tagged, _Kind))
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_array = msgspec.json.Decoder(list[Conn], strict=False).decode
_envelope = envelope_reader(("ts", "id.orig_h"))


def _underscored(value: bytes) -> Any:
    record = _underscored_or_both(value)
    if bytes(record.twice):  # no record may be read in two ways, whatever its neighbours are
        raise msgspec.ValidationError("both id.orig_h and id_orig_h")
    return record


def _with_nested_id(value: bytes) -> Conn:
    ids: _Id = _nested(value).id
    members = {name: raw for name, raw in _members(value).items() if name != "id"}
    if "id.orig_h" in members or "id_orig_h" in members:
        raise msgspec.ValidationError("both id and id.orig_h")
    for name in ("orig_h", "resp_h", "orig_p", "resp_p"):
        found = getattr(ids, name)
        if found is not None:
            members[f"id.{name}"] = msgspec.Raw(msgspec.json.encode(found))
    conn: Conn = _dotted(msgspec.json.encode(members))
    return conn


def _in_tag(value: bytes) -> Conn:
    conn = _tagged(value).conn
    try:
        record: Conn = _dotted(conn)
    except FAILURES:
        record = _underscored(conn)
    return record


def _log_name(name: str) -> str:
    return name if name in _LOGS else _OTHER


def _explain(piece: bytes) -> str | None:
    """Return the log that a record without a connection's addresses is of."""
    try:
        kind = _kind(piece)
        name = kind.path or kind.stream
        if name is None:
            members = _members(piece)
            name = next(iter(members)) if len(members) == 1 else None
            if name not in _LOGS:
                return None
    except FAILURES:
        return None
    return None if name is None or name == _CONN else _log_name(name)


@dataclass(frozen=True, slots=True)
class _Columns:
    """A run's connections. Lists of text are as long as the arrays; -1 and NaN are unknown."""

    ts: Sequence[Any]
    time_ms: IntColumn
    orig_h: Sequence[str]
    resp_h: Sequence[str]
    orig_p: IntColumn
    resp_p: IntColumn
    proto: Sequence[str | None]
    ip_proto: IntColumn
    state: Sequence[str | None]
    duration_s: npt.NDArray[np.float64]
    measures: dict[str, IntColumn]


_ICMP, _ICMP6 = PROTOCOL_NUMBERS["icmp"], PROTOCOL_NUMBERS["icmp6"]
_TCP, _UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]
_PROTOCOLS = Protocols()
_STATES = Words(
    {"SF": 0, "S1": 0, "S2": 0, "S3": 0, **dict.fromkeys(("S0", "REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH"), 1)}
)
"""Whether a TCP connection failed: refused, reset by either side, or never answered. What began unseen says nothing."""
_HANDSHAKE = Words({"OTH": 0, "SHR": 0}, 1)
"""Whether Zeek saw the first packet of a TCP connection, and so knows its originator."""
_MEASURES = {"bytes_out": "orig_bytes", "bytes_in": "resp_bytes", "packets_out": "orig_pkts", "packets_in": "resp_pkts"}
_UNKNOWN_STATES = frozenset({None, "", UNSET})


class ZeekConn:
    """Zeek's conn log; see the module.

    Args:
        fields: columns of text without a header, in order.
        at_end: event time is the connection's end, not its start.
    """

    name = "zeek-conn"

    def __init__(self, fields: Sequence[str] | None = None, *, at_end: bool = False) -> None:
        self._fields = _plain_fields(fields or DEFAULT_FIELDS)
        self._is_default = fields is None
        self._at_end = at_end
        self._naming: Naming[str] = Naming(address)
        self._layout = Layout("\t", self._fields_of, _may_have_comments, _note, str(len(self._fields)))
        self._reading = Reading(
            (_dotted, _underscored, _in_tag, _with_nested_id, self._in_envelope), _array, explain=_explain
        )

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "ZeekConn":
        """Return the format as configured: ``fields`` (comma-separated), ``time`` (``start`` or ``end``)."""
        fields = [name.strip() for name in arguments["fields"].split(",")] if "fields" in arguments else None
        if fields is not None and not {"ts", "id.orig_h", "id.resp_h"} <= set(map(_plain, fields)):
            raise ConfigurationError("zeek-conn: fields must name ts, id.orig_h and id.resp_h")
        time = arguments.get("time", "start")
        if time not in ("start", "end"):
            raise ConfigurationError(f"zeek-conn: time must be start or end, not {time!r}")
        return cls(fields, at_end=time == "end")

    def for_file(self, head: bytes) -> Mapping[str, str]:
        """Return arguments that the first bytes of a file give: the columns its ``#fields`` line names."""
        match = re.search(rb"^#fields\t([^\r\n]+)", head, re.MULTILINE)
        if match is None or not self._is_default:
            return {}
        return {"fields": match[1].decode(errors="replace").replace("\t", ",")}

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        decoded = Decoded([], [])
        for is_json, start, stop in runs_by_kind(values):
            stretch = values if (start, stop) == (0, len(values)) else values[start:stop]
            batch = collect(stretch, self._reading if is_json else LINES)
            read = self._read_json if is_json else self._read_text
            add_run(decoded, batch, read(batch) if batch.records else None, start)
        return decoded

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def _in_envelope(self, value: bytes) -> Conn:
        text, _ = _envelope(value)
        if text.startswith("{"):
            return _dotted_or_underscored(text.encode())
        if text.startswith("#"):
            raise NotAFlow(HEADER)
        return self._conn_of_line(text)

    def _conn_of_line(self, line: str) -> Conn:
        cells = line.split("\t")
        fields = self._fields_of(len(cells))
        if fields is None:
            raise Explained(f"{len(cells)} fields, and {len(self._fields)} are expected")
        values = dict(zip(fields, cells, strict=False))
        return msgspec.convert({n: v for n, v in values.items() if v != UNSET}, Conn, strict=False)

    def _read_json(self, batch: Batch) -> CodedRows | None:
        logs = [record.path or record.stream for record in batch.records]
        batch.skip([None if log == _CONN else log for log in logs], _log_name)
        records = batch.records
        if not records:
            return None
        column = columns_of(records, Conn)
        return self._rows(
            _Columns(
                column["ts"],
                mixed_ms(column["ts"], 1),
                column["orig_h"],
                column["resp_h"],
                integers(column["orig_p"]),
                integers(column["resp_p"]),
                column["proto"],
                integers(column["ip_proto"]),
                column["conn_state"],
                np.array(column["duration"], dtype=np.float64),
                {name: integers(column[field]) for name, field in _MEASURES.items()},
            ),
            batch.draft,
            lambda row: records[row].node or records[row].system or records[row].at_system,
            [record.path or record.stream for record in records],
        )

    # -- text ----------------------------------------------------------------------------------------------------------

    def _fields_of(self, cells: int) -> tuple[str, ...] | None:
        if cells == len(self._fields) or (self._is_default and cells > len(self._fields)):
            return self._fields
        return None

    def _read_text(self, batch: Batch) -> CodedRows | None:
        table = read_table(batch, self._layout)
        draft, column = batch.draft, table.column
        if not table.cells:
            return None

        def ports(name: str) -> IntColumn:
            values = text_integers(column(name))
            draft.reject((values < UNKNOWN) | (values > 65_535), Reason.INVALID_VALUE, f"{name} must be 0 to 65535")
            return np.where((values < 0) | (values > 65_535), UNKNOWN, values)

        nodes = column("_node_name", "_system_name")
        ts = column("ts")
        ip_proto = text_integers(column("ip_proto"))
        return self._rows(
            _Columns(
                ts,
                _text_ms(ts),
                [text or "" for text in column("id.orig_h")],
                [text or "" for text in column("id.resp_h")],
                ports("id.orig_p"),
                ports("id.resp_p"),
                column("proto"),
                np.where((ip_proto < 0) | (ip_proto > 255), UNKNOWN, ip_proto),
                column("conn_state"),
                text_floats(column("duration")),
                {name: text_integers(column(field)) for name, field in _MEASURES.items()},
            ),
            draft,
            lambda row: nodes[row] if nodes[row] != UNSET else None,
            None,
        )

    # -- both ----------------------------------------------------------------------------------------------------------

    def _rows(
        self,
        conns: _Columns,
        draft: Draft,
        host: Callable[[int], str | None],
        logs: Sequence[str | None] | None,
    ) -> CodedRows | None:
        draft.host = host
        if not _UNKNOWN_STATES.isdisjoint(conns.state):
            stateless = np.fromiter((s in _UNKNOWN_STATES for s in conns.state), dtype=bool, count=len(conns.state))
            if logs is not None:  # a conn record may lack its state, if it says that it is one
                stateless &= np.fromiter((log is None for log in logs), dtype=bool, count=len(logs))
            draft.reject(stateless, Reason.MALFORMED, "no conn_state, and no _path says which log this is")
        protocol = coded_words(_PROTOCOLS, conns.proto)
        unnamed = (protocol == UNKNOWN) & (conns.ip_proto >= 0)
        protocol = np.where(unnamed, conns.ip_proto, protocol)
        handshake = coded_words(_HANDSHAKE, conns.state) > 0
        said = said_by_sensor(conns.orig_p, conns.resp_p, handshake, protocol == _TCP)
        swapped = client_is_dst(conns.orig_p, conns.resp_p, said)
        port = server_port(conns.orig_p, conns.resp_p, swapped, said)
        is_icmp = (protocol == _ICMP) | (protocol == _ICMP6)
        if is_icmp.any():
            port = np.where(is_icmp, UNKNOWN, port)  # Zeek keeps type and code there
            swapped = swapped & ~is_icmp
            for row in np.flatnonzero(protocol == _ICMP).tolist():
                if ":" in conns.orig_h[row]:
                    protocol[row] = _ICMP6
        (orig, resp), names = code_names(self._naming, conns.orig_h, conns.resp_h)
        columns = directed(conns.measures, swapped)
        columns["errors"] = np.where(protocol == _TCP, coded_words(_STATES, conns.state), UNKNOWN)
        with np.errstate(invalid="ignore"):
            took_us = np.where(conns.duration_s >= 0, np.minimum(conns.duration_s * 1e6, 1e18), UNKNOWN)
        took = np.nan_to_num(took_us, nan=UNKNOWN).astype(np.int64)
        is_exchange = (protocol == _UDP) & (columns["packets_out"] == 1) & (columns["packets_in"] == 1)
        columns["latency_us"] = np.where(is_exchange, took, UNKNOWN)
        time_ms = conns.time_ms
        if self._at_end:
            end_ms = time_ms + np.maximum(took, 0) // 1_000
            time_ms = np.where((time_ms < 0) | (end_ms > MAX_TIME_MS), time_ms, end_ms)
        return draft.finish(
            time_ms=time_ms,
            time_shown=conns.ts,
            ends=(np.where(swapped, resp, orig), np.where(swapped, orig, resp), names),
            port=port,
            protocol=protocol,
            columns=columns,
        )


def _may_have_comments(first_cells: Sequence[str]) -> bool:
    return "#" in "".join(first_cells)


def _note(cells: list[str]) -> Note | None:
    """Read a line of a log's header or footer."""
    if not cells[0].startswith("#"):
        return None
    if cells[0] == "#fields":
        return Note(fields=_plain_fields(cells[1:]))
    if cells[0] == "#path" and len(cells) > 1:
        return Note(kind="" if cells[1] == _CONN else _log_name(cells[1]))
    return Note()


def _dotted_or_underscored(value: bytes) -> Conn:
    try:
        record: Conn = _dotted(value)
    except FAILURES as error:
        try:
            record = _underscored(value)
        except FAILURES:
            kind = _explain(value)
            if kind is not None:
                raise NotAFlow(kind) from error
            raise
    return record


def _plain(name: str) -> str:
    """Return Zeek's own name of a column that a shipper spelled with an underscore."""
    return f"id.{name[3:]}" if name.startswith("id_") else name


def _plain_fields(fields: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(_plain, fields))


def _text_ms(texts: Sequence[str | None]) -> IntColumn:
    seconds = text_floats(texts)
    if np.isnan(seconds).any():
        return mixed_ms([text or "" for text in texts], 1)
    return rounded_ms(seconds * 1_000)
