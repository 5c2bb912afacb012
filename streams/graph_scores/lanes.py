"""What the graph model makes of a lane's closed windows, one after the other. Pure.

The same windows in the same order as `drift score` takes give the same scores. What is remembered does not depend on
the model, nor on whether there is one: a model that comes later finds the memory warm.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.drift.baseline import WARM_UP
from models.gnn.calibration import scores_of
from models.gnn.features import GraphHistory, GraphSample
from models.gnn.inference import judge
from models.gnn.remembered import decode_memory, encode_memory
from models.gnn.windows import EdgeKey, WindowEdges, edges_of_chunks
from schemas.errors import WireFormatError
from streams.graph_scores.assembly import LaneKey, Place, WholeWindow
from streams.graph_scores.model_folder import LoadedModel

Singles = npt.NDArray[np.float32]
DECIMALS = 3
"""Scores are rounded: the last bits of matrix products differ between processors."""


class Outcome(StrEnum):
    """What became of a window."""

    SCORED = "scored"
    EMPTY = "empty"
    NO_MODEL = "no_model"
    WARMING_UP = "warming_up"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"
    REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class ScoredWindow:
    """Scores of the edges with calls of one window.

    Shapes:
        keys: ``E`` edges. is_new: ``(E,)`` bool. statistical, graph, combined: ``(E,)`` float32, see EdgeScores.
    """

    lane: LaneKey
    place: Place
    offset: int
    model: str
    keys: list[EdgeKey]
    is_new: npt.NDArray[np.bool_]
    statistical: Singles
    graph: Singles
    combined: Singles

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class LaneMemory:
    """What one lane's windows have shown.

    Attributes:
        place: of the last window taken in; ``None`` before the first. is_dirty: taken in since it was stored.
    """

    lane: LaneKey
    place: Place | None = None
    history: GraphHistory = field(default_factory=GraphHistory)
    is_dirty: bool = False

    def encode(self) -> bytes:
        """Return the history's bytes."""
        return encode_memory(self.history.state())

    @classmethod
    def decode(cls, lane: LaneKey, place: Place, data: bytes) -> "LaneMemory":
        """Return the memory that was stored.

        Raises:
            WireFormatError: damaged, or of another version.
        """
        return cls(lane, place, GraphHistory.resumed(decode_memory(data)))

    def take(self, window: WholeWindow, model: LoadedModel | None) -> tuple[Outcome, ScoredWindow | None]:
        """Score a window, where there is a model, and learn from it. Windows must come in order."""
        if self.place is not None and window.place <= self.place:
            return Outcome.REPEATED, None
        if self.place is not None and window.place[0] != self.place[0]:
            self.history = GraphHistory()  # a replay that runs again has known edges of its own
        self.place, self.is_dirty = window.place, True
        if window.shards is None:
            return Outcome.DAMAGED, None
        if window.marker.incomplete:
            return Outcome.INCOMPLETE, None
        try:
            edges = edges_of_chunks(window.marker.start_ms, window.shards)
        except WireFormatError:
            return Outcome.DAMAGED, None
        sample = self.history.take(edges)
        if self.history.windows <= WARM_UP:
            return Outcome.WARMING_UP, None
        if model is None:
            return Outcome.NO_MODEL, None
        if not sample.present:
            return Outcome.EMPTY, None
        return Outcome.SCORED, _scored(window, edges, sample, model)


def _scored(window: WholeWindow, edges: WindowEdges, sample: GraphSample, model: LoadedModel) -> ScoredWindow:
    checkpoint = model.checkpoint
    scores = scores_of(checkpoint.calibration, sample, judge(checkpoint.weights, sample))
    rounded = (
        np.round(values, DECIMALS).astype(np.float32) for values in (scores.statistical, scores.graph, scores.combined)
    )
    return ScoredWindow(
        window.lane, window.place, window.offset, model.version, edges.keys, sample.is_new.copy(), *rounded
    )
