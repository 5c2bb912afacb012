"""What the graph model remembers of a lane's edges, as columns and as bytes. Pure."""

import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from models.graph.registry import SIGNALS
from schemas.errors import WireFormatError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MEMORY_VERSION = 1
"""Raised when the bytes, or what they mean to the features, change: a memory of another version is not read."""
MAX_BYTES = 1 << 30
"""Unpacked; nothing larger is read."""
_LEVEL = 1
_WIDE = ("mean", "spread", "history")


@dataclass(frozen=True, slots=True)
class RememberedEdges:
    """Remembered of each edge. Shapes: ``(R,)``, and ``(R, len(SIGNALS))`` of mean, spread and history.

    ``src``, ``dst``: numbers of nodes. ``since``, ``last``: numbers of windows, of the first and the last calls.
    """

    src: Ints
    dst: Ints
    since: Ints
    last: Ints
    presence: Floats
    mean: Floats
    spread: Floats
    history: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, count: int) -> "RememberedEdges":
        """Return ``count`` edges of which nothing is known."""
        src, dst, since, last = np.zeros((4, count), dtype=np.int64)
        wide = (count, len(SIGNALS))
        history = np.zeros(wide, dtype=np.int32)
        return cls(src, dst, since, last, np.zeros(count), np.zeros(wide), np.zeros(wide), history)

    def extended(self, count: int) -> "RememberedEdges":
        """Return these and ``count`` more."""
        more = RememberedEdges.empty(count)
        names = RememberedEdges.__slots__
        return RememberedEdges(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in names))

    def taken(self, rows: Ints) -> "RememberedEdges":
        """Return some of them."""
        return RememberedEdges(*(getattr(self, name)[rows] for name in RememberedEdges.__slots__))


@dataclass(frozen=True, slots=True)
class Remembered:
    """A history as values.

    Shapes:
        names: ``N`` nodes. node_since: ``(N,)`` int64, windows. ports: ``(R, 2)`` int64, port and protocol.
    """

    windows: int
    names: list[str]
    node_since: Ints
    ports: Ints
    edges: RememberedEdges


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    version: int
    windows: int
    names: list[str]
    columns: dict[str, bytes]


_KINDS: dict[str, Any] = {"presence": np.float64, "mean": np.float64, "spread": np.float64, "history": np.int32}


def encode_memory(state: Remembered) -> bytes:
    """Return a history's bytes; the same history gives the same bytes."""
    columns = {name: getattr(state.edges, name) for name in RememberedEdges.__slots__}
    columns |= {"node_since": state.node_since, "ports": state.ports}
    packed = {
        name: np.ascontiguousarray(values, dtype=_KINDS.get(name, np.int64)).tobytes()
        for name, values in columns.items()
    }
    return zlib.compress(
        msgspec.msgpack.encode(_Stored(MEMORY_VERSION, state.windows, state.names, packed)), level=_LEVEL
    )


def decode_memory(data: bytes) -> Remembered:
    """Read a history's bytes.

    Raises:
        WireFormatError: they are damaged, or of another version.
    """
    try:
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(data, MAX_BYTES)
        if unpacked.unconsumed_tail or not unpacked.eof:
            raise ValueError("cut short or too large")
        stored = msgspec.msgpack.decode(text, type=_Stored)
        if stored.version != MEMORY_VERSION:
            raise ValueError(f"version {stored.version}, this one reads {MEMORY_VERSION}")
        return _unpacked(stored)
    except (ValueError, KeyError, zlib.error, msgspec.MsgspecError) as error:
        raise WireFormatError(f"the memory of the graph model cannot be read: {error}") from None


def _unpacked(stored: _Stored) -> Remembered:
    def column(name: str, *shape: int) -> Any:
        return np.frombuffer(stored.columns[name], dtype=_KINDS.get(name, np.int64)).reshape(shape).copy()

    count = len(stored.columns["src"]) // 8
    edges = RememberedEdges(
        *(
            column(name, count, len(SIGNALS)) if name in _WIDE else column(name, count)
            for name in RememberedEdges.__slots__
        )
    )
    nodes = len(stored.names)
    for ends in (edges.src, edges.dst):
        if count and not 0 <= int(ends.min()) <= int(ends.max()) < nodes:
            raise ValueError("an edge names a node that is not there")
    return Remembered(stored.windows, stored.names, column("node_since", nodes), column("ports", count, 2), edges)
