"""Zeek's connection log as JSON: what is used of a record, and the ways it is spelled. Pure."""

import typing
from typing import Annotated, Any

import msgspec

from schemas.flow import Port
from streams.sources.envelopes import Envelope
from streams.sources.json_records import FAILURES, NotAFlow
from streams.sources.typed import lax

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
LOGS = frozenset(_KNOWN_LOGS.split())
CONN, CAPTURE_LOSS, OTHER = "conn", "capture_loss", "other"

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


class CaptureLoss(
    msgspec.Struct,
    gc=False,
    rename={"path": "_path", "stream": "@stream", "dotted_end": "id.orig_h", "underscored_end": "id_orig_h"},
):
    """What is used of a record of Zeek's capture_loss log: how much of the traffic the sensor did not see."""

    ts: float | str
    gaps: Count
    percent_lost: float
    peer: str | None = None
    path: str | None = None
    stream: str | None = None
    dotted_end: msgspec.Raw = msgspec.Raw()
    underscored_end: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()


class _TaggedLoss(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    capture_loss: CaptureLoss


class _Kind(msgspec.Struct, gc=False, rename={"path": "_path", "stream": "@stream"}):
    path: str | None = None
    stream: str | None = None


dotted, _underscored_or_both, _nested, _tagged, _kind = map(lax, (Conn, _underscored_type(), _Nested, _Tagged, _Kind))
_loss, _tagged_loss = lax(CaptureLoss), lax(_TaggedLoss)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
array = msgspec.json.Decoder(list[Conn], strict=False).decode
in_shipper = Envelope(("ts", "id.orig_h"))


def underscored(value: bytes | str) -> Any:
    """Decode a record whose keys have underscores."""
    record = _underscored_or_both(value)
    if bytes(record.twice):  # no record may be read in two ways, whatever its neighbours are
        raise msgspec.ValidationError("both id.orig_h and id_orig_h")
    return record


def with_nested_id(value: bytes) -> Conn:
    """Decode a record whose addresses are an object of their own."""
    ids: _Id = _nested(value).id
    members = {name: raw for name, raw in _members(value).items() if name != "id"}
    if "id.orig_h" in members or "id_orig_h" in members:
        raise msgspec.ValidationError("both id and id.orig_h")
    for name in ("orig_h", "resp_h", "orig_p", "resp_p"):
        found = getattr(ids, name)
        if found is not None:
            members[f"id.{name}"] = msgspec.Raw(msgspec.json.encode(found))
    conn: Conn = dotted(msgspec.json.encode(members))
    return conn


def in_tag(value: bytes) -> Conn:
    """Decode a record tagged with its log."""
    conn = _tagged(value).conn
    try:
        record: Conn = dotted(conn)
    except FAILURES:
        record = underscored(conn)
    return record


def capture_loss(value: bytes | str) -> CaptureLoss:
    """Decode a record of the capture_loss log, tagged or not."""
    try:
        loss: CaptureLoss = _tagged_loss(value).capture_loss
    except FAILURES:
        loss = _loss(value)
        if (loss.path or loss.stream) != CAPTURE_LOSS:
            raise msgspec.ValidationError("no _path says that this is capture_loss") from None
    if any(map(bytes, (loss.dotted_end, loss.underscored_end, loss.id))):
        raise msgspec.ValidationError("a capture_loss with a connection's addresses")  # read in one way alone
    return loss


def log_name(name: str) -> str:
    """Return the name of a log, one of a small set."""
    return name if name in LOGS else OTHER


def explain(piece: bytes | str) -> str | None:
    """Return the log that a record without a connection's addresses is of."""
    try:
        kind = _kind(piece)
        name = kind.path or kind.stream
        if name is None:
            members = _members(piece)
            name = next(iter(members)) if len(members) == 1 else None
            if name not in LOGS:
                return None
    except FAILURES:
        return None
    return None if name is None or name == CONN else log_name(name)


def dotted_or_underscored(value: bytes | str) -> Conn | CaptureLoss:
    """Decode a record in either of the usual spellings; raises `NotAFlow` for those of other logs."""
    try:
        record: Conn = dotted(value)
        return record
    except FAILURES as error:
        for read in (underscored, capture_loss):
            try:
                found: Conn | CaptureLoss = read(value)
                return found
            except FAILURES:
                continue
        kind = explain(value)
        if kind is not None:
            raise NotAFlow(kind) from error
        raise
