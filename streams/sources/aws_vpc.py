"""``aws-vpc``: AWS VPC Flow Logs as text, versions 2 to 8, bare or in the envelopes of Firehose and CloudWatch. Pure.

A record is one direction of a connection over up to ten minutes, seen by one network interface: what runs from server
to client is folded into the client's edge as its other direction. Which columns a line has is the user's choice: as a
header of the same message says, else as configured, else all columns of a version in AWS's order, told by their number.

Source: AWS, "Flow log records" (VPC user guide, flow-log-records) and "Flow log record examples".
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from schemas.ids import ADDRESS_PREFIX, is_external
from schemas.tenant_log import IntColumn
from streams.sources.coded import Coded, CodedRows, Names, names_of
from streams.sources.draft import Draft, Words, shown
from streams.sources.envelopes import Envelope
from streams.sources.format import Decoded, LossSignal
from streams.sources.identity import Naming, address, is_private, name_coded, outside_label, workload
from streams.sources.json_records import FAILURES, NotAFlow, Reading, split_records
from streams.sources.orientation import (
    CLIENT_IS_DST,
    CLIENT_IS_SRC,
    NOT_SAID,
    Mask,
    client_is_dst,
    is_icmp,
    server_port,
)
from streams.sources.remembered import Remembered
from streams.sources.text_columns import Columns, lines_of
from streams.sources.text_records import (
    LINES,
    NO_NUMBER,
    UNSET,
    Layout,
    Note,
    WrappedLine,
    heads,
    line_of,
    runs_by_kind,
)
from streams.sources.times import rounded_ms
from streams.sources.typed import Batch, add_run, choice, directed

_VERSIONS = (
    # columns of each version, in the order of AWS's table
    "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action "
    "log-status",
    "vpc-id subnet-id instance-id tcp-flags type pkt-srcaddr pkt-dstaddr",
    "region az-id sublocation-type sublocation-id",
    "pkt-src-aws-service pkt-dst-aws-service flow-direction traffic-path",
    "ecs-cluster-arn ecs-cluster-name ecs-container-instance-arn ecs-container-instance-id ecs-container-id "
    "ecs-second-container-id ecs-service-name ecs-task-definition-arn ecs-task-arn ecs-task-id",
    "reject-reason",
)
_LISTS = tuple(tuple(" ".join(_VERSIONS[: upto + 1]).split()) for upto in range(len(_VERSIONS)))
DEFAULT_FIELDS: dict[int, tuple[str, ...]] = {len(fields): fields for fields in _LISTS}
"""Columns of a line without a header, by their number: all up to a version."""

KNOWN_FIELDS = frozenset(_LISTS[-1]) | frozenset(
    ["resource-id", "encryption-status"]  # named by AWS for later versions; not used
)
_HEADS = heads(KNOWN_FIELDS)
_NEEDED = frozenset({"srcaddr", "dstaddr", "end"})
_AS_GOOD = {"pkt-srcaddr": "srcaddr", "pkt-dstaddr": "dstaddr", "start": "end"}

_TCP = PROTOCOL_NUMBERS["tcp"]
_SYN, _RST, _SYN_ACK = 0x02, 0x04, 0x12
"""Flags of all packets of the record, joined; AWS does not record ACK alone, so that 0x12 is one packet's."""
_ACTIONS = Words({"ACCEPT": 0, "REJECT": 1, None: UNKNOWN, UNSET: UNKNOWN}, NO_NUMBER)
_DIRECTIONS = Words({"ingress": 0, "egress": 1})
_INGRESS, _EGRESS = 0, 1
_NO_FLOW = {"NODATA": "nodata", "SKIPDATA": "skipdata"}
_SKIPDATA = "skipdata"


_Key = tuple[str | None, ...]


class _LogEvent(msgspec.Struct, gc=False):
    message: str


class _Subscription(msgspec.Struct, gc=False):
    """What CloudWatch Logs sends to a subscription."""

    messageType: str
    logEvents: list[_LogEvent]


_subscription = msgspec.json.Decoder(_Subscription, strict=False).decode
_CONTROL = "control-message"


def _line(value: bytes) -> str:
    """Return an event's line as a subscription's pieces have it.

    Raises:
        NotAFlow: the piece stands for a control message.
    """
    if value == _CONTROL_PIECE:
        raise NotAFlow(_CONTROL)
    return line_of(value)


_CONTROL_PIECE = b'{"messageType":"CONTROL_MESSAGE"}'


def split_events(value: bytes) -> list[bytes]:
    """Return the lines of a CloudWatch subscription's message, or what `split_records` does."""
    try:
        subscription: _Subscription = _subscription(value)
    except FAILURES:
        return split_records(value)
    if subscription.messageType != "DATA_MESSAGE" or not subscription.logEvents:
        return [_CONTROL_PIECE]
    return [event.message.encode() or b" " for event in subscription.logEvents]


_ENVELOPES = Reading((WrappedLine(Envelope()), _line), split=split_events)


class AwsVpc:
    """VPC Flow Logs; see the module.

    Args:
        fields: columns of lines without a header; several lists must differ in length.
        at_end: event time is the end of the record's interval, else its start.
    """

    name = "aws-vpc"

    def __init__(self, fields: Sequence[Sequence[str]] | None = None, *, at_end: bool = True) -> None:
        self._is_default = fields is None
        self._fields = DEFAULT_FIELDS if fields is None else {len(names): tuple(names) for names in fields}
        self._at_end = at_end
        self._naming: Naming[_Key] = Naming(_name_of)
        self._own: Remembered[str, bool] = Remembered(_has_interface)
        counts = " or ".join(map(str, sorted(self._fields)))
        self._layout = Layout(" ", self._fields.get, _may_have_headers, _HEADS, _note, counts)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "AwsVpc":
        """Return the format as configured.

        ``fields``: names as AWS writes them, bare or as ``${name}``, separated by commas or spaces; ``|`` parts lists.
        ``time``: ``end`` or ``start``.
        """
        lists = [_field_list(text) for text in arguments["fields"].split("|")] if "fields" in arguments else None
        if lists is not None and len({len(names) for names in lists}) < len(lists):
            raise ConfigurationError("format aws-vpc: two lists of fields have the same number of fields")
        at_end = choice(cls.name, arguments, "time", ("end", "start")) == "end"
        return cls(lists, at_end=at_end)

    def for_file(self, head: bytes) -> Mapping[str, str]:
        """Return arguments that the first bytes of a file give: the columns its first line names."""
        names = head.partition(b"\n")[0].decode(errors="replace").split()
        return {"fields": ",".join(names)} if self._is_default and _is_header(names) else {}

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages; see `SourceFormat`."""
        decoded = Decoded([], [])
        for is_json, start, stop in runs_by_kind(values):
            stretch = values if (start, stop) == (0, len(values)) else values[start:stop]
            batch, columns = lines_of(stretch, _ENVELOPES if is_json else LINES, self._layout)
            add_run(decoded, batch, None if columns is None else self._rows(batch, columns), start)
        return decoded

    def _is_own(self, names: Names) -> Mask:
        return np.fromiter(map(self._own.__getitem__, names.tolist()), dtype=np.bool_, count=len(names))

    def _rows(self, batch: Batch, cells: Columns) -> CodedRows | None:
        cells = _without_gaps(batch, cells)
        if not cells.size:
            return None
        draft, size = batch.draft, cells.size
        protocol = _bounded(draft, "protocol", cells.integers("protocol"), 255)
        src_port = _bounded(draft, "srcport", cells.integers("srcport"), 65_535)
        dst_port = _bounded(draft, "dstport", cells.integers("dstport"), 65_535)
        flags = _bounded(draft, "tcp-flags", cells.integers("tcp-flags"), 255)
        has_flags = (flags > 0) & (protocol == _TCP)
        icmp = is_icmp(protocol)
        said = np.where(
            has_flags & ((flags & _SYN_ACK) == _SYN_ACK),
            CLIENT_IS_DST,
            np.where(has_flags & ((flags & _SYN_ACK) == _SYN), CLIENT_IS_SRC, NOT_SAID),
        )
        said = np.where(icmp, CLIENT_IS_SRC, said)
        swapped = client_is_dst(src_port, dst_port, said)
        port = np.where(icmp, UNKNOWN, server_port(src_port, dst_port, swapped, said))
        direction = cells.words(_DIRECTIONS, "flow-direction")
        (src, dst), names = name_coded(self._naming, *_keys(cells, direction))
        unknown = np.full(size, UNKNOWN, dtype=np.int64)
        measures = {
            "bytes_out": cells.integers("bytes"),
            "bytes_in": unknown,
            "packets_out": cells.integers("packets"),
            "packets_in": unknown,
        }
        columns = directed(measures, swapped)
        actions = cells.texts("action")
        denied = cells.words(_ACTIONS, "action")
        draft.reject(
            denied == NO_NUMBER,
            Reason.INVALID_VALUE,
            lambda row: f"action {shown(actions[row])}: no ACCEPT or REJECT",
        )
        columns["denied"] = np.maximum(denied, UNKNOWN)
        columns["errors"] = np.where((flags >= 0) & (protocol == _TCP), (flags & _RST) > 0, UNKNOWN)
        begins = (protocol != _TCP) | (flags < 0) | ((flags & _SYN) > 0)
        columns["continued"] = (swapped | ~begins).astype(np.int64)
        client, server = np.where(swapped, dst, src), np.where(swapped, src, dst)
        columns["side"] = _side(direction, swapped, self._is_own(names), client, server)
        times = ("end", "start") if self._at_end else ("start", "end")
        draft.host = cells.by_row("interface-id")
        return draft.finish(
            time_ms=rounded_ms(cells.integers(*times).astype(np.float64) * 1_000),
            time_shown=cells.texts(*times),
            ends=(client, server, names),
            port=port,
            protocol=protocol,
            columns=columns,
        )


def _side(direction: IntColumn, swapped: Mask, is_own: Mask, client: IntColumn, server: IntColumn) -> IntColumn:
    """Return who reports: the interface that the packets left or came in by, else the only end that can have one."""
    by_direction = np.where(direction == _INGRESS, ~swapped, (direction == _EGRESS) & swapped)
    only_server = is_own[server] & ~is_own[client]
    return np.where(np.where(direction == UNKNOWN, only_server, by_direction), SIDE_SERVER, SIDE_CLIENT)


def _has_interface(name: str) -> bool:
    """Say whether what has this name can have an interface in a VPC: all but public addresses and AWS's services."""
    return is_private(name.removeprefix(ADDRESS_PREFIX)) if name.startswith(ADDRESS_PREFIX) else not is_external(name)


def _bounded(draft: Draft, name: str, values: IntColumn, high: int) -> IntColumn:
    """Reject what is no number up to ``high``; such values come out as unknown."""
    outside_bounds = (values < UNKNOWN) | (values > high)
    if not outside_bounds.any():
        return values
    draft.reject(outside_bounds, Reason.INVALID_VALUE, f"{name} must be 0 to {high}")
    return np.where(outside_bounds, UNKNOWN, values)


def _without_gaps(batch: Batch, cells: Columns) -> Columns:
    """Count lines that say that there was nothing, or that AWS skipped some: those tell of loss."""
    states = cells.coded("log-status")
    if _NO_FLOW.keys().isdisjoint(states.values.tolist()):
        return cells
    kind_of = [_NO_FLOW.get(state or "") for state in states.values.tolist()]
    kinds = [kind_of[code] for code in states.codes.tolist()]
    interfaces, starts = cells.texts("interface-id"), cells.integers("start", "end")
    message, index = batch.draft.message, batch.draft.index
    for row, kind in enumerate(kinds):
        if kind == _SKIPDATA:
            time_ms = int(rounded_ms(np.array([starts[row] * 1_000.0]))[0])
            where = int(message[row]), int(index[row])
            batch.signals.append(LossSignal(*where, _SKIPDATA, interfaces[row], UNKNOWN, time_ms))
    batch.skip(kinds)
    is_flow = np.array([kind is None for kind in kind_of], dtype=np.bool_)
    return cells.take(np.flatnonzero(is_flow[states.codes]))


def _keys(cells: Columns, direction: IntColumn) -> tuple[list[Coded], list[Coded]]:
    """Return what names sources and destinations: the packet's own addresses, AWS's service, the ECS service."""
    ends: list[list[Coded]] = []
    service, cluster = cells.coded("ecs-service-name"), cells.coded("ecs-cluster-name")
    has_services = not _UNSET.issuperset(service.values.tolist())
    for end, owns in (("src", _EGRESS), ("dst", _INGRESS)):
        where, packet = cells.coded(f"{end}addr"), cells.coded(f"pkt-{end}addr")
        if not _UNSET.issuperset(packet.values.tolist()):
            where = _first_set(packet, where)
        parts = [where, cells.coded(f"pkt-{end}-aws-service")]
        if has_services:  # they are the interface's own end's
            parts += [_where(direction == owns, cluster), _where(direction == owns, service)]
        ends.append(parts)
    return ends[0], ends[1]


_UNSET = frozenset({None, "", UNSET})


def _first_set(one: Coded, other: Coded) -> Coded:
    """Return one column's texts, where they say something, else the other's."""
    says = np.array([value not in _UNSET for value in one.values.tolist()], dtype=np.bool_)
    values = np.concatenate([one.values, other.values])
    return Coded(np.where(says[one.codes], one.codes, other.codes + len(one.values)), values)


def _where(mask: Mask, column: Coded) -> Coded:
    """Return a column's texts where a mask is true, else ``None``."""
    return Coded(np.where(mask, column.codes, len(column.values)), names_of([*column.values.tolist(), None]))


def _name_of(key: _Key) -> str:
    where, cloud = key[:2]
    if len(key) == 4 and key[3] is not None and key[3] != UNSET:
        cluster = key[2] if key[2] != UNSET else None
        return workload(cluster or "", key[3])
    if cloud is not None and cloud != UNSET and not is_private(where or ""):
        return outside_label(f"aws/{cloud}")
    return address(where)


def _may_have_headers(first_cells: Sequence[str]) -> bool:
    return not KNOWN_FIELDS.isdisjoint(first_cells)


def _is_header(cells: Sequence[str]) -> bool:
    return len(cells) > 2 and KNOWN_FIELDS.issuperset(cells)


def _note(cells: list[str]) -> Note | None:
    return Note(fields=tuple(cells)) if _is_header(cells) else None


def _field_list(text: str) -> list[str]:
    names = [name.strip().removeprefix("${").removesuffix("}") for name in text.replace(",", " ").split()]
    missing = _NEEDED - {_AS_GOOD.get(name, name) for name in names}
    if missing:
        raise ConfigurationError(f"format aws-vpc: fields must name {', '.join(sorted(missing))}")
    return names
