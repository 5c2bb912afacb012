"""The edge scorer: one score per edge record, from what the tenant's stream held before it. Pure, one pass.

The score adds surprises, each a logarithm (natural, so differences are ratios):

- *rarity*: how seldom this caller spoke, per minute of the stream;
- *burst*: its records in this minute; *persistence*: its records lately;
- *exposure*: the callee's largest minute ever, less *usual load*, the callee's records so far;
- *fan-out*: callees new to this caller today, touched in this minute;
- *tenure*: how much of the stream went by before the caller's first record.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.drift.edge_stream import compiled
from models.drift.edge_stream.compiled import HAS_NUMBA
from models.drift.edge_stream.fixed_log import ONE, fixed_log
from models.drift.edge_stream.groups import MAX_RECORDS
from models.drift.edge_stream.parameters import DAY_MINUTES, MINUTE_MS, UNIT, EdgeScorerParams
from models.drift.edge_stream.parts import fold_destinations, fold_edges, fold_sources, roll_day
from models.drift.edge_stream.state import NEVER, EdgeScorerState, empty_state

IntColumn = npt.NDArray[np.int64]
Int32Column = npt.NDArray[np.int32]
KeyColumn = npt.NDArray[np.uint64]
FloatColumn = npt.NDArray[np.float64]

SEGMENT = 1 << 16
"""Records folded at once: sorted columns of this size stay in the processor's second cache."""
_EDGE_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing, Knuth, TAOCP 6.4
_EDGE_LAST = np.uint64(0xBF58476D1CE4E5B9)  # from splitmix64, Steele et al. 2014


def cells_of(keys: KeyColumn, params: EdgeScorerParams) -> list[IntColumn]:
    """Return the cell of each key in each sketch row: two halves of one 64-bit hash. Shapes: ``(N,)``."""
    mask = np.uint64(params.columns - 1)
    return [((keys >> np.uint64(32 * row)) & mask).astype(np.int64) for row in range(params.rows)]


def edge_cells_of(src: KeyColumn, dst: KeyColumn, params: EdgeScorerParams) -> IntColumn:
    """Return the cell of each directed edge. Shapes: ``(N,)``."""
    mixed = (src * _EDGE_MIX) ^ dst
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _EDGE_LAST
    return (mixed >> np.uint64(64 - (params.edge_columns - 1).bit_length())).astype(np.int64)


class EdgeScorer:
    """Scores edge records of one tenant, in the order of their log.

    Example:
        >>> import numpy as np
        >>> from models.drift.edge_stream.scorer import EdgeScorer
        >>> usual = np.full(600, 7, dtype=np.uint64), np.full(600, 9, dtype=np.uint64)
        >>> scorer = EdgeScorer()
        >>> _ = scorer.score(*usual, np.arange(600) * 60_000)
        >>> old, new = scorer.score(np.array([7, 8], np.uint64), np.array([9, 9], np.uint64), np.full(2, 36_000_000))
        >>> bool(new > old)
        True
    """

    def __init__(
        self,
        params: EdgeScorerParams | None = None,
        state: EdgeScorerState | None = None,
        *,
        use_numba: bool | None = None,
    ) -> None:
        """Start from ``state``, or from nothing.

        Args:
            use_numba: run the compiled loop; ``None``: where numba is installed. Scores are the same either way.

        Raises:
            ModuleNotFoundError: ``use_numba`` is true and numba is not installed.
        """
        self.params = params or EdgeScorerParams()
        self.state = state or empty_state(self.params)
        self.engine = "numba" if (HAS_NUMBA if use_numba is None else use_numba) else "numpy"
        if self.engine == "numba" and not HAS_NUMBA:
            raise ModuleNotFoundError("numba is not installed: pip install 'secureguard-drift[fast]'", name="numba")

    def score(self, src: KeyColumn, dst: KeyColumn, event_ms: IntColumn) -> FloatColumn:
        """Return how surprising each record is; larger is more. Moves the state on.

        Records come in the order of their log; one behind the newest minute counts into the newest minute.
        Scores depend on the records before, never on where chunks were cut.

        Shapes:
            src, dst: ``(N,)`` uint64, uniform 64-bit hashes of services. event_ms: ``(N,)`` int64, event time.
            returns: ``(N,)`` float64.
        """
        out = np.empty(len(src), dtype=np.int64)
        for part, minutes in self._segments(event_ms):
            out[part] = self._fold(src[part], dst[part], minutes)
        return out / ONE

    def _segments(self, event_ms: IntColumn) -> Iterator[tuple[slice, Int32Column]]:
        """Cut a chunk at midnights and into cache-sized pieces; roll the state at each midnight."""
        if not len(event_ms):
            return
        minutes = np.maximum(np.maximum.accumulate(event_ms // MINUTE_MS), self.state.minute).astype(np.int32)
        days = minutes // DAY_MINUTES
        cuts = [0, *(np.flatnonzero(days[1:] != days[:-1]) + 1).tolist(), len(minutes)]
        for begin, end in pairwise(cuts):
            self._open_day(int(days[begin]))
            for first in range(begin, end, SEGMENT):
                part = slice(first, min(first + SEGMENT, end))
                yield part, minutes[part]

    def _open_day(self, day: int) -> None:
        state = self.state
        if state.day not in (NEVER, day):
            passed = day - state.day
            roll_day(state.source, state.destination, state.edge, day, passed, self.params)
            # The minute under way at midnight has not been counted yet, and fades with the next day.
            for _ in range(min(passed, 64 * self.params.memory_days)):
                state.faded_ticks = state.faded_ticks * self.params.daily_keep >> 16
        state.day = day

    def _fold(self, src: KeyColumn, dst: KeyColumn, minutes: Int32Column) -> IntColumn:
        assert len(src) <= MAX_RECORDS
        params, state = self.params, self.state
        if self.engine == "numba":
            ticks, faded_ticks = self._ticks(minutes)
            return compiled.fold(state, params, src, dst, edge_cells_of(src, dst, params), minutes, ticks, faded_ticks)
        opens = fold_edges(state.edge, edge_cells_of(src, dst, params), minutes)
        ticks, faded_ticks = self._ticks(minutes)
        source = fold_sources(state.source, cells_of(src, params), minutes, ticks, opens, params)
        destination = fold_destinations(state.destination, cells_of(dst, params), minutes, params)
        weights = params.weights
        return (
            weights.rarity * (fixed_log(faded_ticks + UNIT) - fixed_log(source.history + UNIT))
            + weights.burst * fixed_log(source.count)
            + weights.persistence * (fixed_log(source.load + UNIT) - _LOG_UNIT)
            + weights.exposure * (fixed_log(destination.peak + UNIT) - _LOG_UNIT)
            - weights.usual_load * (fixed_log(destination.history + UNIT) - _LOG_UNIT)
            + weights.fan_out * fixed_log(source.fan_out + 1)
            + weights.tenure * (fixed_log(ticks + 1) - fixed_log(source.age))
        )

    def _ticks(self, minutes: Int32Column) -> tuple[IntColumn, IntColumn]:
        """Return how many minutes with records came before each record's, plain and faded; move the state on."""
        state = self.state
        changes = np.empty(len(minutes), dtype=np.int64)
        changes[0] = state.minute not in (NEVER, int(minutes[0]))
        changes[1:] = minutes[1:] != minutes[:-1]
        passed = np.cumsum(changes)
        ticks, faded_ticks = state.ticks + passed, state.faded_ticks + passed * UNIT
        state.minute, state.ticks, state.faded_ticks = int(minutes[-1]), int(ticks[-1]), int(faded_ticks[-1])
        return ticks, faded_ticks


_LOG_UNIT = int(fixed_log(np.array([UNIT], dtype=np.int64))[0])
