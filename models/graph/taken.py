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
        rows = rows[~_is_among(origins[rows], self.positions(source))]
        mask = np.zeros(len(among), dtype=bool)
        mask[rows] = True
        return mask

    def add(self, source: SourcePartition, origins: IntColumn) -> None:
        """Note rows as taken."""
        if not len(origins):
            return
        known = self.positions(source)
        fresh = np.unique(origins)
        fresh = fresh[~_is_among(fresh, known)]
        if len(fresh):
            # One copy of what is known, which may be a million positions: sorting them anew each time would not do.
            self._positions[source] = np.insert(known, np.searchsorted(known, fresh), fresh)
            self.changed.add(source)

    def mark_clean(self) -> None:
        """Forget what changed: it is stored."""
        self.changed.clear()


def _is_among(positions: IntColumn, known: IntColumn) -> Mask:
    """Say which positions are among ``known``, which are sorted."""
    if not len(known):
        return np.zeros(len(positions), dtype=bool)
    found: Mask = known[np.minimum(np.searchsorted(known, positions), len(known) - 1)] == positions
    return found
