"""Sorting a chunk's records into runs of one cell and one minute: the loop over records, done by numpy. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]
Int32Column = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

POSITION_BITS = 20
MAX_RECORDS = 1 << POSITION_BITS
_POSITIONS = (1 << POSITION_BITS) - 1


@dataclass(frozen=True, slots=True)
class Runs:
    """Records by (cell, minute), in their order within. ``N`` records, ``R`` runs, ``C`` cells touched.

    Attributes:
        order: ``(N,)`` position of each sorted record in the chunk.
        run: ``(N,)`` run of each sorted record. start: ``(R,)`` first sorted record of each run.
        size: ``(R,)`` records of each run. cell, minute: ``(R,)``.
        cell_start: ``(C,)`` first run of each cell. cell_end: ``(C,)`` its last.
        of_cell: ``(R,)`` which of the ``C`` cells the run belongs to.
    """

    order: IntColumn
    run: IntColumn
    start: IntColumn
    size: IntColumn
    cell: IntColumn
    minute: Int32Column
    cell_start: IntColumn
    cell_end: IntColumn
    of_cell: IntColumn

    def rank(self) -> IntColumn:
        """Return how many records of its run precede each sorted record. Shape ``(N,)``."""
        return np.arange(len(self.order)) - self.start[self.run]

    def before(self, amounts: IntColumn) -> IntColumn:
        """Return the sum of ``amounts`` over earlier runs of the same cell. Shapes: both ``(R,)``."""
        total = np.cumsum(amounts) - amounts
        return total - total[self.cell_start][self.of_cell]

    def continues(self, stamp: Int32Column) -> Mask:
        """Say which runs go on in their cell's stamped minute. Shapes: stamp ``(C,)``, returns ``(R,)``."""
        going = np.zeros(len(self.cell), dtype=np.bool_)
        going[self.cell_start] = stamp == self.minute[self.cell_start]
        return going


def runs_of(cells: IntColumn, minutes: Int32Column) -> Runs:
    """Sort records by cell; their minutes never fall.

    Shapes:
        cells: ``(N,)`` int64 below 2**43, N at least 1 and at most ``MAX_RECORDS``. minutes: ``(N,)``.
    """
    # One sort of packed numbers is several times faster than a stable argsort.
    packed = (cells << POSITION_BITS) | np.arange(len(cells))
    packed.sort()
    order = packed & _POSITIONS
    sorted_cells = packed >> POSITION_BITS
    sorted_minutes = minutes[order]
    new_cell = np.empty(len(cells), dtype=np.bool_)
    new_cell[0] = True
    np.not_equal(sorted_cells[1:], sorted_cells[:-1], out=new_cell[1:])
    new_run = new_cell.copy()
    new_run[1:] |= sorted_minutes[1:] != sorted_minutes[:-1]
    start = np.flatnonzero(new_run)
    first = new_cell[start]
    cell_start = np.flatnonzero(first)
    return Runs(
        order=order,
        run=np.cumsum(new_run) - 1,
        start=start,
        size=np.diff(start, append=len(cells)),
        cell=sorted_cells[start],
        minute=sorted_minutes[start],
        cell_start=cell_start,
        cell_end=np.append(cell_start[1:], len(start)) - 1,
        of_cell=np.cumsum(first) - 1,
    )
