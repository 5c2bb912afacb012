"""State of the edge scorer for one tenant: sketches of fixed size, whole numbers only. Pure."""

import io
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream.parameters import EdgeScorerParams

IntColumn = npt.NDArray[np.int64]
Int32Column = npt.NDArray[np.int32]

NEVER = -1


@dataclass(slots=True)
class SourceTable:
    """What is remembered of callers. Shapes: all ``(rows, columns)``.

    Attributes:
        minute: minute of the latest record, ``count`` and ``fan_out`` belong to it.
        count: records in that minute.
        fan_out: edges touched in that minute that were not known before today.
        history: records believed to be usual, at most ``minute_cap`` a minute, in 1/``UNIT``.
        pending: records not yet believed, capped alike, in 1/``UNIT``.
        load: all records, halved every day, in 1/``UNIT``.
        first_tick: minutes with records before the cell's first, -1 while empty.
    """

    minute: Int32Column
    count: Int32Column
    fan_out: Int32Column
    history: IntColumn
    pending: IntColumn
    load: IntColumn
    first_tick: IntColumn


@dataclass(slots=True)
class DestinationTable:
    """What is remembered of callees. Shapes: all ``(rows, columns)``.

    Attributes:
        minute, count: as for callers.
        history: records of earlier minutes, at most ``minute_cap`` a minute, in 1/``UNIT``.
        peak: most records of any one earlier minute, slowly forgotten, in 1/``UNIT``.
    """

    minute: Int32Column
    count: Int32Column
    history: IntColumn
    peak: IntColumn


@dataclass(slots=True)
class EdgeTable:
    """Which edges are known. Shapes: ``(edge_columns,)``: minute of the latest record, day of the first."""

    minute: Int32Column
    first_day: Int32Column


@dataclass(slots=True)
class EdgeScorerState:
    """Everything the scorer remembers. A function of the records alone, not of how they were cut into chunks.

    Attributes:
        minute: minute of the latest record, -1 before the first. day: its day.
        ticks: minutes with records before it. faded_ticks: the same, forgotten like histories, in 1/``UNIT``.
    """

    source: SourceTable
    destination: DestinationTable
    edge: EdgeTable
    minute: int = NEVER
    day: int = NEVER
    ticks: int = 0
    faded_ticks: int = 0

    @property
    def size_bytes(self) -> int:
        """Memory of the tables."""
        return sum(array.nbytes for array in _arrays(self).values())


def empty_state(params: EdgeScorerParams) -> EdgeScorerState:
    """Return the state before the first record."""
    shape = (params.rows, params.columns)

    def stamps() -> Int32Column:
        return np.full(shape, NEVER, dtype=np.int32)

    def counts() -> Int32Column:
        return np.zeros(shape, dtype=np.int32)

    def sums() -> IntColumn:
        return np.zeros(shape, dtype=np.int64)

    edges = params.edge_columns
    return EdgeScorerState(
        SourceTable(stamps(), counts(), counts(), sums(), sums(), sums(), np.full(shape, NEVER, dtype=np.int64)),
        DestinationTable(stamps(), counts(), sums(), sums()),
        EdgeTable(np.full(edges, NEVER, dtype=np.int32), np.full(edges, NEVER, dtype=np.int32)),
    )


def _arrays(state: EdgeScorerState) -> dict[str, npt.NDArray[np.int32] | IntColumn]:
    return {
        **{f"source.{item.name}": getattr(state.source, item.name) for item in fields(SourceTable)},
        **{f"destination.{item.name}": getattr(state.destination, item.name) for item in fields(DestinationTable)},
        **{f"edge.{item.name}": getattr(state.edge, item.name) for item in fields(EdgeTable)},
    }


def take(state: EdgeScorerState) -> bytes:
    """Return a snapshot that :func:`restore` takes back."""
    buffer = io.BytesIO()
    scalars = np.array([state.minute, state.day, state.ticks, state.faded_ticks], dtype=np.int64)
    np.savez_compressed(buffer, allow_pickle=False, scalars=scalars, **_arrays(state))
    return buffer.getvalue()


def restore(params: EdgeScorerParams, snapshot: bytes) -> EdgeScorerState:
    """Return the state that was taken.

    Raises:
        ValueError: the snapshot is of other table sizes, or none.
    """
    state = empty_state(params)
    with np.load(io.BytesIO(snapshot), allow_pickle=False) as stored:
        for name, array in _arrays(state).items():
            if name not in stored or stored[name].shape != array.shape:
                raise ValueError(f"snapshot of an edge scorer with other tables: {name}")
            array[...] = stored[name]
        state.minute, state.day, state.ticks, state.faded_ticks = (int(value) for value in stored["scalars"])
    return state
