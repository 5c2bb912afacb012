"""What a source format is: bytes of messages in, rows of flows out. Pure.

To add a producer's format: one file beside this one with a subclass of `RecordFormat`, one line in `registry.py`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import itemgetter
from typing import Any, Protocol

import msgspec
import numpy as np

from schemas.dead_letter import Reason
from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN, Flow
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from schemas.tenant_log import EdgeIdentity, IntColumn
from streams.result import WHOLE_MESSAGE, Refusal, Rejected

MEASURES = ("calls", "errors", "denied", "bytes_out", "bytes_in", "packets_out", "packets_in", "latency_us")

MARKS = ("sampling", "continued", "pair")
"""Columns that only some rows have, absent where no row does: ``sampling``, by what bytes and packets (of spans: calls,
errors and bytes) were multiplied; ``continued``, 1 where another record counts the call (a reply, a later packet): such
a row brings measures, no call; ``pair``, a key from 0 to ``MAX_PAIR`` that the two halves of one call have in common,
-1 where there is no other half: ``side`` says which half a row is, the state machine brings them together."""

MAX_PAIR = (1 << 63) - 1

Reporters = tuple[IntColumn, list[str]]
"""Who reported each row: codes ``(n,)`` into names, -1 where the row names nobody."""

Tenants = str | Sequence[str | None] | None
"""Tenants of rows: one for all, one by message, or ``None``: each row names its own."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Rows by edge.

    Attributes:
        edge: index into ``edges`` of each row.
        edges: identities in order of first appearance; the tenant is ``None`` where there is none.
        target: what ``targets`` says of each edge's tenant.
    """

    edge: IntColumn
    edges: list[EdgeIdentity]
    target: IntColumn


class FlowRows(Protocol):
    """Rows of consecutive messages in order of (message, index).

    Attributes:
        message: index of each row's message among those decoded; may be set anew.
        index: index of each row's record in its message.
        columns: ``time_ms``, ``side`` and those of ``MEASURES`` that any row knows; int64, -1 is unknown. Some formats
            add those of ``MARKS``.
    """

    message: IntColumn
    index: IntColumn
    columns: dict[str, IntColumn]

    def group(self, tenants: Tenants, targets: Mapping[str | None, int]) -> Grouping:
        """Find the edges of the rows. ``targets``: what stands for each tenant, ``None`` among them."""
        ...

    def hosts(self, rows: Sequence[int]) -> list[str]:
        """Return who reported these rows: the host, else the client service."""
        ...

    def reporters(self) -> Reporters | None:
        """Return the hosts that reported the rows, as far as the rows name any; ``None`` where none does."""
        ...

    def payload(self, row: int) -> bytes:
        """Return the bytes of one row's record, for a dead letter."""
        ...


@dataclass(frozen=True, slots=True)
class LossSignal:
    """A source says that it did not see, or could not deliver, something.

    Attributes:
        message, index: coordinate of the record that says so.
        kind: what it is, from a small set of the format's.
        host: who lost it.
        count: how many records were lost; -1 unknown.
        time_ms: event time; -1 unknown.
    """

    message: int
    index: int
    kind: str
    host: str | None
    count: int = UNKNOWN
    time_ms: int = UNKNOWN


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a sequence of messages: every record is a row, or rejected, or no flow record at all.

    Attributes:
        skipped: records that are sound and no flows, by kind: other types of the producer's log, comments, headers.
        signals: records among those skipped by which a source reports loss.
    """

    runs: list[FlowRows]
    rejected: list[Rejected]
    skipped: Counter[str] = field(default_factory=Counter)
    signals: list[LossSignal] = field(default_factory=list)


class SourceFormat(Protocol):
    """A named way to read messages."""

    @property
    def name(self) -> str:
        """Name in the configuration and on dead letters."""
        ...

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages, each on its own: no message can change what becomes of its neighbours."""
        ...


_tenant_of = itemgetter(0)
_FIELDS = tuple(field.name for field in msgspec.structs.fields(Flow))
_PROTOCOLS: dict[str | None, int] = {None: UNKNOWN}
_PROTOCOLS.update(PROTOCOL_NUMBERS.items())
_SIDES: dict[str | None, int] = {None: SIDE_CLIENT, "client": SIDE_CLIENT, "server": SIDE_SERVER}


def _numbers(values: Sequence[int | None]) -> IntColumn:
    try:
        return np.fromiter(values, dtype=np.int64, count=len(values))
    except TypeError:  # None: unknown
        return np.fromiter((UNKNOWN if v is None else v for v in values), dtype=np.int64, count=len(values))


def code_hosts(hosts: Sequence[str | None]) -> Reporters | None:
    """Return the hosts of rows as codes, in order of first appearance; ``None`` where there is none."""
    if not hosts or (hosts[0] is None and hosts.count(None) == len(hosts)):
        return None
    names = [name for name in dict.fromkeys(hosts) if name is not None]
    code: dict[str | None, int] = {None: -1}
    code.update((name, number) for number, name in enumerate(names))
    return np.fromiter(map(code.__getitem__, hosts), dtype=np.int64, count=len(hosts)), names


class StructRows:
    """Rows from structs with the fields of `Flow` in its order; integers may be -1 instead of ``None``."""

    def __init__(
        self, flows: Sequence[Any], message: IntColumn, index: IntColumn, payload: Callable[[int, int], bytes]
    ) -> None:
        # One C call a row and one transposition are cheaper than an attribute access for every value.
        columns = dict(zip(_FIELDS, zip(*map(msgspec.structs.astuple, flows), strict=True), strict=True))
        self.message = message
        self.index = index
        self._decoded_as = message  # ``message`` may be renumbered by whoever left messages out before decoding
        self._payload = payload
        self._src: tuple[str, ...] = columns["src"]
        self._dst: tuple[str, ...] = columns["dst"]
        self._tenant: tuple[str | None, ...] = columns["tenant"]
        self._host: tuple[str | None, ...] = columns["host"]
        self._protocol: tuple[str | None, ...] = columns["protocol"]
        ports: Sequence[int | None] = columns["port"]
        self._port: Sequence[int | None] = ports
        if None in ports:
            self._port = [UNKNOWN if port is None else port for port in ports]
        self.columns: dict[str, IntColumn] = {"time_ms": _numbers(columns["time_ms"])}
        for name in MEASURES:
            values = _numbers(columns[name])
            if values.max() != UNKNOWN:
                self.columns[name] = values
        reporters: tuple[str | None, ...] = columns["reporter"]
        if "server" in reporters:
            self.columns["side"] = np.fromiter(map(_SIDES.__getitem__, reporters), np.int64, len(reporters))
        else:
            self.columns["side"] = np.full(len(reporters), SIDE_CLIENT, dtype=np.int64)

    def group(self, tenants: Tenants, targets: Mapping[str | None, int]) -> Grouping:
        """Find the edges of the rows; see `FlowRows`."""
        size = len(self.message)
        names: Iterable[str | None]
        if tenants is None:
            names = self._tenant
        elif isinstance(tenants, str):
            names = (tenants,) * size
        else:
            names = map(tenants.__getitem__, self.message.tolist())
        protocols = map(_PROTOCOLS.__getitem__, self._protocol)
        table: dict[Any, int] = {}
        keys = zip(names, self._src, self._dst, self._port, protocols, strict=True)
        # dict.setdefault(key, row) returns the row where the key appeared first, without a line of Python a row.
        first = np.fromiter(map(table.setdefault, keys, count()), dtype=np.int64, count=size)
        ranks = np.cumsum(first == np.arange(size)) - 1
        target = np.fromiter(map(targets.__getitem__, map(_tenant_of, table)), dtype=np.int64, count=len(table))
        return Grouping(ranks[first], list(table), target)

    def hosts(self, rows: Sequence[int]) -> list[str]:
        """Return the reporting hosts; see `FlowRows`."""
        return [self._host[row] or self._src[row] for row in rows]

    def reporters(self) -> Reporters | None:
        """Return the hosts of all rows; see `FlowRows`."""
        return code_hosts(self._host)

    def payload(self, row: int) -> bytes:
        """Return the bytes of one record; see `FlowRows`."""
        return self._payload(int(self._decoded_as[row]), int(self.index[row]))


class RecordFormat(ABC):
    """A format whose messages hold one record or a few: name it and write `records`."""

    name: str

    @abstractmethod
    def records(self, value: bytes) -> Iterable[Flow | Refusal]:
        """Read one message.

        Yields a flow or a refusal (that record becomes a dead letter) for every record, in order.

        Raises:
            Refusal: the whole message becomes a dead letter.
        """

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """Decode messages one by one; flows are checked against the bounds of `Flow`."""
        flows: list[Flow] = []
        messages: list[int] = []
        indexes: list[int] = []
        rejected: list[Rejected] = []
        for number, value in enumerate(values):
            try:
                for index, record in enumerate(self._read(value)):
                    if isinstance(record, Flow):
                        flows.append(record)
                        messages.append(number)
                        indexes.append(index)
                    else:
                        rejected.append(Rejected(number, index, record.reason, record.detail, value))
            except Refusal as refusal:
                rejected.append(Rejected(number, WHOLE_MESSAGE, refusal.reason, refusal.detail, value))
        if not flows:
            return Decoded([], rejected)
        rows = StructRows(flows, np.array(messages), np.array(indexes), lambda message, _: values[message])
        return Decoded([rows], rejected)

    def _read(self, value: bytes) -> list[Flow | Refusal]:
        records = list(self.records(value))
        if not records:
            raise Refusal(Reason.EMPTY, "the message holds no record")
        if len(records) > MAX_RECORDS_PER_MESSAGE:
            raise Refusal(Reason.TOO_MANY_RECORDS, f"{len(records)} records in one message")
        return [_checked(record) if isinstance(record, Flow) else record for record in records]


def _checked(flow: Flow) -> Flow | Refusal:
    try:
        return msgspec.convert(msgspec.structs.asdict(flow), Flow)
    except msgspec.ValidationError as error:
        return Refusal(Reason.INVALID_VALUE, str(error))
