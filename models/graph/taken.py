"""Which replayed dead letters were taken, by source partition: each counts once, however often it is replayed. Pure."""

import numpy as np
import numpy.typing as npt

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SourcePartition = tuple[str, int]

_NONE: IntColumn = np.empty(0, dtype=np.int64)


class TakenOrigins:
    """Sorted positions of the rows taken, by the source partition they come from.

    Attributes:
        changed: source partitions whose positions changed since `mark_clean`.
    """

    def __init__(self, positions: dict[SourcePartition, IntColumn] | None = None) -> None:
        self._positions = positions or {}
        self.changed: set[SourcePartition] = set()

    def __len__(self) -> int:
        return sum(map(len, self._positions.values()))

    def sources(self) -> list[SourcePartition]:
        """Return the source partitions with positions, sorted."""
        return sorted(self._positions)

    def positions(self, source: SourcePartition) -> IntColumn:
        """Return the positions taken of a source partition, sorted."""
        return self._positions.get(source, _NONE)

    def fresh(self, source: SourcePartition, origins: IntColumn, among: Mask) -> Mask:
        """Return which rows of ``among`` were not taken before; of rows with one origin, the first.

        Shapes:
            origins, among and the result: ``(n,)``.
        """
        rows = np.flatnonzero(among)
        _, first = np.unique(origins[rows], return_index=True)
        rows = rows[first]
        rows = rows[~np.isin(origins[rows], self.positions(source), assume_unique=True)]
        mask = np.zeros(len(among), dtype=bool)
        mask[rows] = True
        return mask

    def add(self, source: SourcePartition, origins: IntColumn) -> None:
        """Note rows as taken."""
        if not len(origins):
            return
        known = self.positions(source)
        union = np.union1d(known, origins)
        if len(union) > len(known):
            self._positions[source] = union
            self.changed.add(source)

    def mark_clean(self) -> None:
        """Forget what changed: it is stored."""
        self.changed.clear()
