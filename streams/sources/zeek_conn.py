"""``zeek-conn``: Zeek's connection log, as JSON in its spellings or as tab-separated text. Pure.

JSON: keys ``id.orig_h`` or ``id_orig_h`` or nested; bare or as ``{"conn": {...}}`` (zeek-kafka's ``tag_json``); ``ts``
as epoch seconds or ISO 8601. Text: fields as a ``#fields`` line of the same message says, else as configured, else
Zeek's own list. Either may be the ``message`` of a log shipper's record. Other logs of the same sensor are no flows.

Source: Zeek's base/protocols/conn/main.zeek (fields, meaning of conn_state).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.errors import ConfigurationError
from schemas.flow import PROTOCOL_NUMBERS, UNKNOWN
from schemas.ids import ADDRESS_PREFIX
from schemas.tenant_log import IntColumn
from streams.sources.coded import CodedRows, Names
from streams.sources.draft import Draft, Protocols, Words, coded_words, integers
from streams.sources.format import Decoded, LossSignal
from streams.sources.identity import Naming, address, code_names, name_coded
from streams.sources.json_records import Explained, NotAFlow, Reading
from streams.sources.orientation import Mask, client_is_dst, icmp_answers, is_icmp, said_by_sensor, server_port
from streams.sources.text_columns import Columns, lines_of, split_lines
from streams.sources.text_records import (
    HEADER,
    LINES,
    UNSET,
    Layout,
    Note,
    heads,
    runs_by_kind,
)
from streams.sources.times import MAX_TIME_MS, mixed_ms, rounded_ms
from streams.sources.typed import Batch, add_run, choice, collect, columns_of, directed, mask_of
from streams.sources.zeek_records import (
    CAPTURE_LOSS,
    CONN,
    DEFAULT_FIELDS,
    CaptureLoss,
    Conn,
    array,
    capture_loss,
    dotted,
    dotted_or_underscored,
    explain,
    in_shipper,
    in_tag,
    log_name,
    underscored,
    with_nested_id,
)


@dataclass(frozen=True, slots=True)
class _Columns:
    """A run's connections, columns of equal length; -1 and NaN are unknown.

    Attributes:
        orig, resp: codes into ``names``.
        is_stateless, has_failed, saw_handshake: what ``conn_state`` says: nothing, ``_STATES``, ``_HANDSHAKE``.
    """

    ts: Sequence[Any]
    time_ms: IntColumn
    orig: IntColumn
    resp: IntColumn
    names: Names
    orig_p: IntColumn
    resp_p: IntColumn
    proto: IntColumn
    ip_proto: IntColumn
    is_stateless: Mask
    has_failed: IntColumn
    saw_handshake: IntColumn
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
_MAX_PACKET = (1 << 16) - 1
"""Bytes of an IP packet, at most: its length is of 16 bits."""
_MEASURES = {"bytes_out": "orig_bytes", "bytes_in": "resp_bytes", "packets_out": "orig_pkts", "packets_in": "resp_pkts"}
_MUCH_LOSS_PERCENT = 10.0
"""What Zeek itself gives notice of (``CaptureLoss::too_much_loss``): some gaps are in any capture."""
_OWN_LOGS = frozenset({None, CONN})
_STATELESS = Words(dict.fromkeys((None, "", UNSET), 1), 0)
_HEADS = heads("#")


class _FromShipper:
    """The decoder of records that a log shipper wrapped."""

    def __init__(self, conn_of_line: Callable[[str], Conn]) -> None:
        self._conn_of_line = conn_of_line

    def __call__(self, value: bytes) -> Conn | CaptureLoss:
        """Decode one record; raises as decoders do."""
        text, _ = in_shipper.take_apart(value)
        if text.startswith("{"):
            return dotted_or_underscored(text.encode())
        if text.startswith("#"):
            raise NotAFlow(HEADER)
        return self._conn_of_line(text)

    def leading(self, values: Sequence[bytes], start: int) -> tuple[int, Iterator[Conn | CaptureLoss]]:
        """Return how many messages from ``start`` on can be decoded at once, and an iterator that decodes them."""
        texts, _ = in_shipper.leading(islice(values, start, None))
        return len(texts), map(dotted_or_underscored, texts)


class ZeekConn:
    """Zeek's conn log; see the module.

    Args:
        fields: columns of text without a header, in order.
        at_end: event time is the connection's end, when Zeek writes it; else its start.
    """

    name = "zeek-conn"

    def __init__(self, fields: Sequence[str] | None = None, *, at_end: bool = True) -> None:
        self._fields = _plain_fields(fields or DEFAULT_FIELDS)
        self._is_default = fields is None
        self._at_end = at_end
        self._naming: Naming[str] = Naming(address)
        self._layout = Layout("\t", self._fields_of, _may_have_comments, _HEADS, _note, str(len(self._fields)))
        self._reading = Reading(
            (dotted, underscored, in_tag, with_nested_id, _FromShipper(self._conn_of_line), capture_loss),
            array,
            explain=explain,
        )

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "ZeekConn":
        """Return the format as configured: ``fields`` (comma-separated), ``time`` (``end`` or ``start``)."""
        fields = [name.strip() for name in arguments["fields"].split(",")] if "fields" in arguments else None
        if fields is not None and not {"ts", "id.orig_h", "id.resp_h"} <= set(map(_plain, fields)):
            raise ConfigurationError("format zeek-conn: fields must name ts, id.orig_h and id.resp_h")
        return cls(fields, at_end=choice(cls.name, arguments, "time", ("end", "start")) == "end")

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
            if is_json:
                self._add_json(decoded, stretch, start)
            else:
                self._add_lines(decoded, lines_of(stretch, LINES, self._layout), start)
        return decoded

    def _add_json(self, decoded: Decoded, values: Sequence[bytes], start: int) -> None:
        """Add what became of messages that are JSON: records, or lines that a shipper wrapped."""
        lines = in_shipper.lines(values)
        for is_line, first, behind in _runs([line is not None for line in lines]):
            part = values if (first, behind) == (0, len(values)) else values[first:behind]
            if is_line:
                self._add_lines(decoded, split_lines(part, lines[first:behind], self._layout), start + first)
            else:
                batch = collect(part, self._reading)
                add_run(decoded, batch, self._read_json(batch) if batch.records else None, start + first)

    def _add_lines(self, decoded: Decoded, read: tuple[Batch, Columns | None], start: int) -> None:
        batch, cells = read
        add_run(decoded, batch, None if cells is None else self._read_text(batch, cells), start)

    # -- JSON ----------------------------------------------------------------------------------------------------------

    def _conn_of_line(self, line: str) -> Conn:
        cells = line.split("\t")
        fields = self._fields_of(len(cells))
        if fields is None:
            raise Explained(f"{len(cells)} fields, and {len(self._fields)} are expected")
        values = dict(zip(fields, cells, strict=False))
        return msgspec.convert({n: v for n, v in values.items() if v != UNSET}, Conn, strict=False)

    @staticmethod
    def _take_losses(batch: Batch) -> None:
        """Count records of the capture_loss log; those of much loss become signals."""
        if CaptureLoss not in set(map(type, batch.records)):
            return
        message, index = batch.draft.message, batch.draft.index
        for row, record in enumerate(batch.records):
            if isinstance(record, CaptureLoss) and record.percent_lost >= _MUCH_LOSS_PERCENT:
                at, time_ms = (int(message[row]), int(index[row])), int(mixed_ms([record.ts], 1)[0])
                batch.signals.append(LossSignal(*at, CAPTURE_LOSS, record.peer, record.gaps, time_ms))
        batch.skip([CAPTURE_LOSS if isinstance(record, CaptureLoss) else None for record in batch.records])

    def _read_json(self, batch: Batch) -> CodedRows | None:
        self._take_losses(batch)
        column = columns_of(batch.records, Conn)
        logs = [path or stream or None for path, stream in zip(column["path"], column["stream"], strict=True)]
        if not _OWN_LOGS.issuperset(logs):
            batch.skip([None if log == CONN else log for log in logs], log_name)
            column = columns_of(batch.records, Conn)
        records = batch.records
        if not records:
            return None
        (orig, resp), names = code_names(self._naming, column["orig_h"], column["resp_h"])
        stateless = coded_words(_STATELESS, column["conn_state"]) > 0
        if stateless.any():  # a record may lack its state, if it says that it is of this log
            stateless &= mask_of((not (record.path or record.stream) for record in records), len(records))
        return self._rows(
            _Columns(
                column["ts"],
                mixed_ms(column["ts"], 1),
                orig,
                resp,
                names,
                integers(column["orig_p"]),
                integers(column["resp_p"]),
                coded_words(_PROTOCOLS, column["proto"]),
                integers(column["ip_proto"]),
                stateless,
                coded_words(_STATES, column["conn_state"]),
                coded_words(_HANDSHAKE, column["conn_state"]),
                np.array(column["duration"], dtype=np.float64),
                {name: integers(column[field]) for name, field in _MEASURES.items()},
            ),
            batch.draft,
            lambda row: records[row].node or records[row].system or records[row].at_system,
        )

    # -- text ----------------------------------------------------------------------------------------------------------

    def _fields_of(self, cells: int) -> tuple[str, ...] | None:
        if cells == len(self._fields) or (self._is_default and cells > len(self._fields)):
            return self._fields
        return None

    def _read_text(self, batch: Batch, cells: Columns) -> CodedRows | None:
        draft = batch.draft

        def ports(name: str) -> IntColumn:
            values = cells.integers(name)
            draft.reject((values < UNKNOWN) | (values > 65_535), Reason.INVALID_VALUE, f"{name} must be 0 to 65535")
            return np.where((values < 0) | (values > 65_535), UNKNOWN, values)

        ip_proto = cells.integers("ip_proto")
        (orig, resp), names = name_coded(self._naming, [cells.coded("id.orig_h")], [cells.coded("id.resp_h")])
        return self._rows(
            _Columns(
                cells.texts("ts"),
                _text_ms(cells),
                orig,
                resp,
                names,
                ports("id.orig_p"),
                ports("id.resp_p"),
                cells.words(_PROTOCOLS, "proto"),
                np.where((ip_proto < 0) | (ip_proto > 255), UNKNOWN, ip_proto),
                cells.words(_STATELESS, "conn_state") > 0,
                cells.words(_STATES, "conn_state"),
                cells.words(_HANDSHAKE, "conn_state"),
                cells.floats("duration"),
                {name: cells.integers(field) for name, field in _MEASURES.items()},
            ),
            draft,
            cells.by_row("_node_name", "_system_name"),
        )

    # -- both ----------------------------------------------------------------------------------------------------------

    def _rows(self, conns: _Columns, draft: Draft, host: Callable[[int], str | None]) -> CodedRows | None:
        draft.host = host
        orig, resp, names = conns.orig, conns.resp, conns.names
        reason = "no conn_state, and no _path says which log this is"
        draft.reject(conns.is_stateless, Reason.MALFORMED, reason)
        protocol = np.where((conns.proto == UNKNOWN) & (conns.ip_proto >= 0), conns.ip_proto, conns.proto)
        icmp = is_icmp(protocol)
        if icmp.any():  # Zeek calls both the same
            is_v6 = np.array([":" in name.removeprefix(ADDRESS_PREFIX) for name in names.tolist()], dtype=np.bool_)
            protocol = np.where((protocol == _ICMP) & is_v6[orig], _ICMP6, protocol)
        said = said_by_sensor(conns.orig_p, conns.resp_p, conns.saw_handshake > 0, protocol == _TCP)
        swapped = client_is_dst(conns.orig_p, conns.resp_p, said)
        port = server_port(conns.orig_p, conns.resp_p, swapped, said)
        replies, icmp_errors = icmp_answers(protocol, conns.orig_p)  # Zeek keeps type and code where ports are
        port = np.where(icmp, UNKNOWN, port)
        swapped = np.where(icmp, replies | icmp_errors, swapped)
        columns = directed(conns.measures, swapped)
        for way in ("out", "in"):
            # Zeek takes TCP's bytes from sequence numbers: a forged acknowledgement stands for gigabytes nobody sent.
            volume, packets = columns[f"bytes_{way}"], columns[f"packets_{way}"]
            columns[f"bytes_{way}"] = np.where(
                (packets >= 0) & ((volume - 1) // _MAX_PACKET >= packets), UNKNOWN, volume
            )
        columns["errors"] = np.where(protocol == _TCP, conns.has_failed, UNKNOWN)
        with np.errstate(invalid="ignore", over="ignore"):
            took_us = np.where(conns.duration_s >= 0, np.minimum(conns.duration_s * 1e6, 1e18), UNKNOWN)
        took = np.nan_to_num(took_us, nan=UNKNOWN).astype(np.int64)
        is_exchange = (protocol == _UDP) & (columns["packets_out"] == 1) & (columns["packets_in"] == 1)
        columns["latency_us"] = np.where(is_exchange, took, UNKNOWN)
        columns["continued"] = icmp_errors.astype(np.int64)
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


def _runs(flags: Sequence[bool]) -> Iterator[tuple[bool, int, int]]:
    """Return stretches of equal flags, as (flag, first, behind the last)."""
    start = 0
    for flag, group in groupby(flags):
        stop = start + sum(1 for _ in group)
        yield flag, start, stop
        start = stop


def _may_have_comments(first_cells: Sequence[str]) -> bool:
    return "#" in "".join(first_cells)


def _note(cells: list[str]) -> Note | None:
    """Read a line of a log's header or footer."""
    if not cells[0].startswith("#"):
        return None
    if cells[0] == "#fields":
        return Note(fields=_plain_fields(cells[1:]))
    if cells[0] == "#path" and len(cells) > 1:
        return Note(kind="" if cells[1] == CONN else log_name(cells[1]))
    return Note()


def _plain(name: str) -> str:
    """Return Zeek's own name of a column that a shipper spelled with an underscore."""
    return f"id.{name[3:]}" if name.startswith("id_") else name


def _plain_fields(fields: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(_plain, fields))


def _text_ms(cells: Columns) -> IntColumn:
    seconds = cells.floats("ts")
    with np.errstate(over="ignore"):
        time_ms = seconds * 1_000
    if np.isnan(seconds).any():
        return mixed_ms([text or "" for text in cells.texts("ts")], 1)
    return rounded_ms(time_ms)
