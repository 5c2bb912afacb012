"""Rows as numbers into tables of names: how a batch of records is grouped by edge without a loop over rows. Pure."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.tenant_log import IntColumn
from streams.sources.format import Grouping, Reporters, Tenants, code_hosts

Names = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Coded:
    """A dictionary-encoded string column. ``codes``: ``(n,)`` int64 into ``values``, an object array; -1 is null."""

    codes: IntColumn
    values: Names


def values_of(array: Any) -> npt.NDArray[Any]:
    """Return an Arrow array of numbers without nulls as a view.

    Not ``array.to_numpy()``: it imports pandas wherever that is installed, half a second and 70 MB for nothing.
    """
    if not len(array):
        return np.empty(0, dtype=np.int64)
    values = np.frombuffer(array.buffers()[1], dtype=array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def arrow_of(values: IntColumn) -> Any:
    """Return an int64 column as an Arrow array that shares its memory."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def names_of(values: Sequence[str | None]) -> Names:
    """Return strings as an object array, also where there is none."""
    return np.array([*values, None], dtype=object)[:-1]


def first_seen(values: Iterable[Any], size: int) -> tuple[IntColumn, list[Any]]:
    """Return values as dense codes in order of first appearance, and the values, all different."""
    first_of: dict[Any, int] = {}
    # dict.setdefault(value, row) returns the row where the value appeared first, without a line of Python a row.
    first = np.fromiter(map(first_of.setdefault, values, itertools.count()), dtype=np.int64, count=size)
    rank = np.cumsum(first == np.arange(size)) - 1
    return rank[first], list(first_of)


def in_order(key: IntColumn) -> tuple[IntColumn, int]:
    """Return keys as dense codes in order of first appearance, and how many there are."""
    encoded = pc.dictionary_encode(arrow_of(key))  # hashing: several times as fast as numpy.unique, which sorts
    return values_of(encoded.indices).astype(np.int64), len(encoded.dictionary)


def code_tenants(tenants: str | Sequence[str | None], message: IntColumn) -> Coded:
    """Return the tenant of each row where messages name it."""
    if isinstance(tenants, str):
        return Coded(np.zeros(len(message), dtype=np.int64), np.array([tenants], dtype=object))
    values = sorted({name for name in tenants if name is not None})
    code: dict[str | None, int] = {None: -1}
    code.update((name, i) for i, name in enumerate(values))
    by_message = np.fromiter(map(code.__getitem__, tenants), dtype=np.int64, count=len(tenants))
    return Coded(by_message[message], names_of(values))


def group_coded(
    tenant: Coded, src: Coded, dst: Coded, port: IntColumn, protocol: IntColumn, targets: Mapping[str | None, int]
) -> Grouping:
    """Find the edges of rows; see `FlowRows.group`. ``port`` and ``protocol``: -1 is unknown."""
    # Ports and protocols in one number, then all parts mixed into one key, made dense whenever it could overflow.
    parts = (
        (src.codes, len(src.values)),
        (dst.codes, len(dst.values)),
        ((port + 1) * 257 + (protocol + 1), 65_537 * 257),
    )
    key, size = tenant.codes + 1, len(tenant.values) + 1
    for codes, count in parts:
        if size * count >= 1 << 62:
            key, size = in_order(key)
        key, size = key * count + codes, size * count
    edge, count = in_order(key)
    rows = np.empty(count, dtype=np.int64)
    rows[edge[::-1]] = np.arange(len(edge) - 1, -1, -1)  # the last assignment wins: each edge's first row
    owner = tenant.codes[rows]
    identities = zip(
        np.array([*tenant.values, None], dtype=object)[owner].tolist(),
        src.values[src.codes[rows]].tolist(),
        dst.values[dst.codes[rows]].tolist(),
        port[rows].tolist(),
        protocol[rows].tolist(),
        strict=True,
    )
    target_of = np.array([targets[name] for name in (*tenant.values, None)], dtype=np.int64)
    return Grouping(edge, list(identities), target_of[owner])


class CodedRows:
    """Rows whose endpoints are codes into one table of names. No tenant is among them: messages name it."""

    def __init__(
        self,
        message: IntColumn,
        index: IntColumn,
        columns: dict[str, IntColumn],
        ends: tuple[IntColumn, IntColumn, Names],
        wire: tuple[IntColumn, IntColumn],
        hosts: Callable[[IntColumn], list[str | None]],
        payload: Callable[[int], bytes],
    ) -> None:
        """Take finished columns.

        Args:
            ends: codes of clients, codes of servers, names.
            wire: server port, IANA protocol number; -1 unknown.
            hosts: reporting hosts of rows, by number.
            payload: bytes of a row's record.
        """
        self.message = message
        self.index = index
        self.columns = columns
        self._src, self._dst, self._names = ends
        self._port, self._protocol = wire
        self._hosts = hosts
        self._payload = payload

    def group(self, tenants: Tenants, targets: Mapping[str | None, int]) -> Grouping:
        """Find the edges of the rows; see `FlowRows`."""
        size = len(self.message)
        tenant = (
            Coded(np.full(size, -1, dtype=np.int64), names_of(()))
            if tenants is None
            else code_tenants(tenants, self.message)
        )
        src, dst = Coded(self._src, self._names), Coded(self._dst, self._names)
        return group_coded(tenant, src, dst, self._port, self._protocol, targets)

    def hosts(self, rows: Sequence[int]) -> list[str]:
        """Return the reporting hosts; see `FlowRows`."""
        named = zip(self._hosts(np.array(rows, dtype=np.int64)), rows, strict=True)
        return [host or self._names[self._src[row]] for host, row in named]

    def reporters(self) -> Reporters | None:
        """Return the hosts of all rows; see `FlowRows`."""
        return code_hosts(self._hosts(np.arange(len(self.message))))

    def payload(self, row: int) -> bytes:
        """Return the bytes of one record; see `FlowRows`."""
        return self._payload(row)
