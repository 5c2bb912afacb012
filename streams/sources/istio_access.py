"""``istio-access``: access logs of Istio's (or another Envoy's) proxies as JSON with Istio's default keys. Pure.

A record is one request (or TCP connection), written by the client's proxy (``outbound|...`` clusters) or the server's
(``inbound|...``). Fluent Bit's ``kubernetes`` object, beside the keys or around the text, names the reporting pod.
Lines that the proxy itself logs are no flows.

Source: istio pkg/config/mesh accessLogFormat defaults (JSON); Envoy access log usage (response flags, durations).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN
from streams.sources.coded import CodedRows
from streams.sources.draft import Words, coded_words, loose_integers
from streams.sources.envelopes import Envelope
from streams.sources.identity import (
    UNNAMED,
    Naming,
    address,
    code_names,
    host_name,
    owner_of_pod,
    split_port,
    workload,
)
from streams.sources.json_records import FAILURES, Explained, NotAFlow, Reading
from streams.sources.remembered import Remembered
from streams.sources.statuses import GRPC_FAILURES, HTTP_ERROR_FROM
from streams.sources.times import iso_ms
from streams.sources.typed import Batch, TypedFormat, columns_of, lax, mask_of


class _Kubernetes(msgspec.Struct, gc=False, frozen=True):
    pod_name: str = ""
    namespace_name: str = ""
    host: str = ""
    labels: dict[str, Any] = {}


class Record(msgspec.Struct, gc=False):
    """What is used of an access. Numbers may be text, and ``-`` or null where there is none."""

    start_time: str
    upstream_cluster: str | None
    authority: str | None = None
    bytes_received: int | str | None = None
    bytes_sent: int | str | None = None
    downstream_local_address: str | None = None
    downstream_remote_address: str | None = None
    duration: int | str | None = None
    method: str | None = None
    protocol: str | None = None
    requested_server_name: str | None = None
    response_code: int | str | None = None
    response_code_details: str | None = None
    response_flags: str | None = None
    upstream_host: str | None = None
    grpc_status: int | str | None = None
    kubernetes: _Kubernetes | None = None


class _ProxyLog(msgspec.Struct, gc=False):
    """A line of the proxy or its agent about itself."""

    level: str
    msg: str | None = None
    message: str | None = None


_PROXY_LOG = "proxy-log"
_record, _proxy_log = lax(Record), lax(_ProxyLog)
_envelope = Envelope(("start_time", "upstream_cluster"), [("kubernetes", _Kubernetes | None, None)])
_array = msgspec.json.Decoder(list[Record], strict=False).decode


class _FromShipper:
    """The decoder of access logs that Fluent Bit wrapped, with what it says of the pod."""

    def __call__(self, value: bytes) -> Record:
        """Decode one record; raises as decoders do."""
        text, envelope = _envelope.take_apart(value)
        if not text.startswith("{"):
            if text.startswith("["):
                raise Explained("an access log as text: set accessLogEncoding to JSON")
            raise NotAFlow(_PROXY_LOG)
        piece = text.encode()
        try:
            record: Record = _record(piece)
        except FAILURES as error:
            if _explain(piece) is not None:
                raise NotAFlow(_PROXY_LOG) from error
            raise
        return _at_pod(envelope, record)

    def leading(self, values: Sequence[bytes], start: int) -> tuple[int, Iterator[Record]]:
        """Return how many messages from ``start`` on can be decoded at once, and an iterator that decodes them."""
        texts, envelopes = _envelope.leading(islice(values, start, None))
        # In this order: an envelope is taken before its record fails, and both go on with the next.
        return len(texts), map(_at_pod, envelopes, map(_record, texts))


def _at_pod(envelope: Any, record: Record) -> Record:
    if record.kubernetes is None:
        record.kubernetes = envelope.kubernetes
    return record


def _explain(piece: bytes) -> str | None:
    try:
        line: _ProxyLog = _proxy_log(piece)
    except FAILURES:
        return None
    return None if line.msg is None and line.message is None else _PROXY_LOG


_TCP, _UDP = PROTOCOL_NUMBERS["tcp"], PROTOCOL_NUMBERS["udp"]
_NOTHING = frozenset({None, "", "-"})
_UNHARMED = frozenset({None, "", "-", "DC"})
"""Response flags that are no failure of the server: none, or the client went away."""
_INBOUND, _OUTBOUND = "inbound", "outbound"
_INBOUND_PASSTHROUGH, _BLACK_HOLE = "InboundPassthroughCluster", "BlackHoleCluster"
_ROUTED_NAME = re.compile(r"(?:outbound|inbound)_\.(\d{1,5})_\.[^.]*_\.(.+)")
_APP_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app", "k8s-app")

_METHODS = Words(dict.fromkeys(_NOTHING, 0), 1)
_TRANSPORTS = Words({"HTTP/3": _UDP}, _TCP)
_HARMED, _REFUSED = 1, 2
_NAME_FIELDS = ("upstream_cluster", "requested_server_name", "authority")
_ADDRESS_FIELDS = ("upstream_host", "downstream_local_address")

_Key = tuple[str, ...] | str
_Server = tuple[_Key, int, bool, bool, bool]
_REPORTER, _HOSTS = "reporter", "hosts"


def _text(value: str | None) -> str:
    return "" if value is None or value == "-" else value


class _Route:
    """What ``upstream_cluster`` says.

    Attributes:
        is_inbound: the server's proxy reports.
        host: the server's host name, or empty.
        port: the server's port, -1 where it does not say.
        is_refused: Istio had nowhere to send it.
    """

    __slots__ = ("host", "is_inbound", "is_refused", "port")

    def __init__(self, cluster: str) -> None:
        direction, _, rest = cluster.partition("|")
        self.is_inbound = direction.startswith(_INBOUND) or cluster.startswith(_INBOUND_PASSTHROUGH)
        self.is_refused = cluster.startswith(_BLACK_HOLE)
        self.host, self.port = "", UNKNOWN
        parts = rest.split("|")
        if len(parts) == 3:
            self.port = _port(parts[0])
            self.host = parts[2]  # empty where the server's proxy of a newer Istio reports
        elif not self.is_inbound and not self.is_refused and cluster not in ("", "PassthroughCluster"):
            self.host = cluster  # an Envoy without Istio names clusters as its operator likes


def _port(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65_535 else UNKNOWN


class IstioAccess(TypedFormat):
    """Istio's access logs; see the module.

    Args:
        cluster: the cluster all records come from, put in front of workloads' names.
    """

    name = "istio-access"
    reading = Reading((_record, _FromShipper()), _array, explain=_explain)

    def __init__(self, *, cluster: str | None = None) -> None:
        self._cluster = None if cluster == "-" else cluster
        self._naming: Naming[_Key] = Naming(self._name_of)
        self._named: Remembered[tuple[str | None, ...], _Server | None] = Remembered(_named_server)
        self._reached: Remembered[tuple[str | None, ...], _Server] = Remembered(_reached_server)
        self._flags: Remembered[Any, int] = Remembered(_flag_verdict)
        self._details: Remembered[Any, int] = Remembered(_is_rbac)

    @classmethod
    def configured(cls, arguments: Mapping[str, str]) -> "IstioAccess":
        """Return the format as configured: ``cluster``."""
        return cls(cluster=arguments.get("cluster"))

    def _name_of(self, key: _Key) -> str:
        if isinstance(key, str):  # an address, with or without its port
            return address(split_port(key)[0])
        kind, *parts = key
        if kind == _REPORTER:
            namespace, app, pod = parts
            return workload(namespace, app or owner_of_pod(pod), self._cluster)
        for host in parts:
            if host:
                name = host_name(host)
                is_workload = name != UNNAMED and "/" in name and ":" not in name
                return f"{self._cluster}:{name}" if is_workload and self._cluster else name
        return UNNAMED

    def _servers(self, column: Mapping[str, Sequence[str | None]]) -> list[_Server]:
        # First without the addresses: there are many, and most servers have a name.
        named = list(map(self._named.__getitem__, zip(*(column[name] for name in _NAME_FIELDS), strict=True)))
        if None not in named:
            return named  # type: ignore[return-value]  # none is None
        keys = zip(*(column[name] for name in (*_NAME_FIELDS, *_ADDRESS_FIELDS)), strict=True)
        return [self._reached[key] if server is None else server for server, key in zip(named, keys, strict=True)]

    def rows(self, batch: Batch) -> CodedRows | None:
        """Turn records into rows; see `TypedFormat`."""
        records: list[Record] = batch.records
        draft, size = batch.draft, len(records)
        column = columns_of(records, Record)
        servers = self._servers(column)
        dst_keys: Sequence[_Key]
        dst_keys, ports, inbound, refused_route, unnamed = zip(*servers, strict=True)
        # Without its port, another each time, where that is quickly told.
        src_keys: Sequence[_Key] = [
            ((head if ":" not in (head := text.rpartition(":")[0]) else text) or text) if text else ""
            for text in column["downstream_remote_address"]
        ]
        inbound_mask = mask_of(inbound, size)
        if column["kubernetes"].count(None) < size:
            reporters = [_reporter(pod) for pod in column["kubernetes"]]
            ends = zip(src_keys, dst_keys, reporters, inbound, unnamed, strict=True)
            src_keys, dst_keys = zip(*(_with_reporter(*end) for end in ends), strict=True)
        (src, dst), names = code_names(self._naming, src_keys, dst_keys)
        code = loose_integers(column["response_code"])
        draft.reject((code < UNKNOWN) | (code > 999), Reason.INVALID_VALUE, "response_code must be 0 to 999")
        flags = coded_words(self._flags, column["response_flags"])
        grpc = coded_words(GRPC_FAILURES, column["grpc_status"])
        # Code 0 is a connection without an answer: TCP, or a request that got none; its flags say how it ended.
        failed = np.where(code > 0, code >= HTTP_ERROR_FROM, flags > 0)
        refused = (
            mask_of(refused_route, size)
            | (flags == _REFUSED)
            | (coded_words(self._details, column["response_code_details"]) > 0)
        )
        duration_ms = loose_integers(column["duration"])
        is_request = (coded_words(_METHODS, column["method"]) > 0) & (code > 0)
        draft.host = lambda row: _host(records[row])
        return draft.finish(
            time_ms=iso_ms(column["start_time"]),
            time_shown=column["start_time"],
            ends=(src, dst, names),
            port=np.fromiter(ports, dtype=np.int64, count=size),
            protocol=coded_words(_TRANSPORTS, column["protocol"]),
            columns={
                "side": np.where(inbound_mask, SIDE_SERVER, SIDE_CLIENT),
                "bytes_out": loose_integers(column["bytes_received"]),
                "bytes_in": loose_integers(column["bytes_sent"]),
                "errors": np.where(failed | (grpc > 0), 1, 0),
                "denied": np.where(refused, 1, 0),
                "latency_us": np.where(
                    is_request & (duration_ms >= 0),
                    np.minimum(duration_ms, 1 << 50) * 1_000,
                    np.where(duration_ms < UNKNOWN, duration_ms, UNKNOWN),
                ),
            },
        )


def _named_server(key: tuple[str | None, ...]) -> _Server | None:
    """Return who the server is, ``None`` where the address that was reached has a say in it."""
    cluster, asked, named = map(_text, key)
    return _server(cluster, asked, named)


def _reached_server(key: tuple[str | None, ...]) -> _Server:
    cluster, asked, named, upstream, local = map(_text, key)
    server = _server(cluster, asked, named, split_port(upstream or local))
    assert server is not None
    return server


def _server(cluster: str, asked: str, named: str, at: tuple[str, int] | None = None) -> _Server | None:
    """Return what names the server, its port, whether it reports, whether Istio had nowhere to go, and whether the
    server has no more than an address; ``None`` if that depends on ``at``, the address and port that were reached."""
    route = _Route(cluster)
    routed = _ROUTED_NAME.fullmatch(asked) if asked.startswith((_OUTBOUND, _INBOUND)) else None
    port, host = route.port, route.host
    if routed is not None:  # what the client's proxy asked for in the handshake: the service, and its port
        asked, port = routed[2], _port(routed[1])
    service = asked if routed is not None else host
    if at is None and (port == UNKNOWN or (route.is_inbound and not service)):
        return None
    reached, reached_port = at or ("", UNKNOWN)
    if port == UNKNOWN:
        port = reached_port
    if route.is_inbound:
        # The service that was asked for comes first: it is what the client's proxy calls the same server.
        return (_HOSTS, service or reached), port, True, False, not service
    if host:
        return (_HOSTS, host), port, False, route.is_refused, False
    if "." in asked:
        return (_HOSTS, asked), port, False, route.is_refused, False
    name, named_port = split_port(named)
    if "." in name or ":" in name:
        return (_HOSTS, name), port if named_port == UNKNOWN else named_port, False, route.is_refused, False
    return None if at is None else ((_HOSTS, reached, name), port, False, route.is_refused, False)


def _with_reporter(
    client: _Key, server: _Key, reporter: _Key | None, is_inbound: bool, is_unnamed: bool
) -> tuple[_Key, _Key]:
    """Return what names both ends once the reporting pod is known."""
    if reporter is None:
        return client, server
    if not is_inbound:
        return reporter, server
    return client, reporter if is_unnamed else server


def _flag_verdict(flags: str | None) -> int:
    if flags in _UNHARMED:
        return 0
    return _REFUSED if flags is not None and "UAEX" in flags else _HARMED


def _is_rbac(details: str | None) -> int:
    return int(details is not None and details.startswith("rbac_access_denied"))


def _reporter(pod: _Kubernetes | None) -> _Key | None:
    if pod is None or not (pod.pod_name or pod.labels):
        return None
    app = next((value for value in map(pod.labels.get, _APP_LABELS) if isinstance(value, str) and value), "")
    return (_REPORTER, pod.namespace_name, app, "") if app else (_REPORTER, pod.namespace_name, "", pod.pod_name)


def _host(record: Record) -> str | None:
    pod = record.kubernetes
    return None if pod is None else pod.host or pod.pod_name or None
