"""Node and edge features of a window, told from what the windows before it have shown. Pure.

Meaning of each feature: ``NODE_FEATURES``, ``EDGE_FEATURES`` (docs/gnn.md repeats them). "Usual" is the robust memory
of ``models.drift.baseline``, of this model's own reading of closed windows: nothing here touches the state machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.drift.baseline import SLOWEST_RATE, WARM_UP, learn, scores_of
from models.gnn.remembered import Remembered, RememberedEdges
from models.gnn.windows import EdgeKey, WindowEdges
from models.graph.registry import BYTES, CALLS, ERRORS, P50
from schemas.ids import is_external

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FEATURE_VERSION = 1
"""Raised when a feature means something else: a model of another version is refused."""

NODE_FEATURES = {
    "callers": "log1p of the edges that lead to it",
    "callees": "log1p of the edges that leave it",
    "calls_received": "log1p of the calls it usually receives in a window",
    "calls_made": "log1p of the calls it usually makes in a window",
    "latency_served": "log1p of the median latency in us that its callers usually see, mean over edges; 0 unknown",
    "errors_served": "share of errors that its callers usually see, mean over edges",
    "age": "log1p of the windows since it was first seen",
    "is_external": "1 if it lies outside the tenant's estate",
}
EDGE_FEATURES = {
    "presence": "share of recent windows with calls since it was first seen",
    "silence": "log1p of the windows since its last calls",
    "usual_calls": "log1p of its calls in a window with calls",
    "calls_spread": "spread of that between windows",
    "usual_bytes": "log1p of its bytes in a window; 0 unknown",
    "usual_errors": "its error ratio",
    "usual_latency": "log1p of its median latency in us; 0 unknown",
    "latency_spread": "spread of that between windows",
    "calls_now": "calls in this window against the usual, in spreads within +-8; no calls count as none",
    "latency_now": "median latency in this window against the usual, in spreads within +-8; 0 unknown",
}
PAST_FEATURES = 8
"""The first so many features of an edge are of its past; the rest, of this window, are hidden where it is judged."""

HORIZON = 60
"""Windows after which a silent edge is no part of the graph any more."""
FORGET = 10_080
"""Windows after which a silent edge is forgotten, a week of minutes: when it comes back it is new."""
MOST_EDGES = 500_000
"""Edges remembered of a lane at most; beyond it those silent for longest are forgotten, down to three quarters."""
_TIDY_EVERY = 512
REACH = 8.0


@dataclass(frozen=True, slots=True)
class GraphSample:
    """One window as a graph: edges with calls in it first, in the window's order, then those known and silent.

    Shapes:
        nodes: ``(N, 8)`` float32. src, dst: ``(M,)`` int64, rows of ``nodes``. edges: ``(M, 10)`` float32.
        present: how many of the ``M`` have calls, ``E``. is_new: ``(E,)`` bool, never seen before.
        deviations: ``(E, len(SIGNALS))`` float32, robust z of each signal, NaN unknown or too little history.
    """

    start_ms: int
    nodes: Singles
    src: Ints
    dst: Ints
    edges: Singles
    present: int
    is_new: Mask
    deviations: Singles

    @property
    def statistical(self) -> Floats:
        """The largest robust z of an edge whatever its sign, ``(E,)``; 0 where nothing is known."""
        largest: Floats = np.nan_to_num(np.abs(self.deviations.astype(np.float64))).max(axis=1, initial=0.0)
        return largest


class GraphHistory:
    """What windows have shown so far of one tenant's lane. Windows must come in order of time.

    Memory grows with the edges of the last ``FORGET`` windows, ``MOST_EDGES`` at most. ``state`` and ``resumed`` carry
    it over a restart: what comes after is the same to the bit.
    """

    def __init__(self) -> None:
        self._windows = 0
        self._nodes: dict[str, int] = {}
        self._node_since = np.zeros(0, dtype=np.int64)
        self._external = np.zeros(0, dtype=np.bool_)
        self._edges: dict[EdgeKey, int] = {}
        self._columns = RememberedEdges.empty(0)

    @property
    def windows(self) -> int:
        """How many windows were taken in."""
        return self._windows

    @property
    def edges(self) -> frozenset[EdgeKey]:
        """Which edges are remembered."""
        return frozenset(self._edges)

    def take(self, window: WindowEdges) -> GraphSample:
        """Return the window's graph, then learn from the window."""
        known = len(self._edges)
        rows = self._rows_of(window.keys)
        sample = self._sample(window, rows, rows >= known)
        self._learn(window, rows)
        if self._windows % _TIDY_EVERY == 0 or len(self._edges) > MOST_EDGES:
            self._tidy()
        return sample

    def state(self) -> Remembered:
        """Return all that is remembered; it shares its columns with this history."""
        names = list(self._nodes)
        keys = list(self._edges)
        ports = np.array([key[2:] for key in keys], dtype=np.int64).reshape(-1, 2)
        return Remembered(self._windows, names, self._node_since, ports, self._columns)

    @classmethod
    def resumed(cls, state: Remembered) -> "GraphHistory":
        """Return a history that goes on where ``state`` was taken."""
        history = cls()
        history._windows = state.windows
        history._nodes = {name: number for number, name in enumerate(state.names)}
        history._node_since = state.node_since
        history._external = np.array([is_external(name) for name in state.names], dtype=np.bool_)
        names, columns = state.names, state.edges
        history._edges = {
            (names[src], names[dst], port, protocol): row
            for row, (src, dst, (port, protocol)) in enumerate(
                zip(columns.src.tolist(), columns.dst.tolist(), state.ports.tolist(), strict=True)
            )
        }
        history._columns = columns
        return history

    def look(self, window: WindowEdges) -> GraphSample:
        """Return the window's graph as ``take`` would, and learn nothing."""
        columns, since, external = self._columns, self._node_since, self._external
        known = len(self._edges)
        rows = self._rows_of(window.keys)
        sample = self._sample(window, rows, rows >= known)
        # Columns are replaced when they grow, never grown in place: the former ones are as they were.
        self._columns, self._node_since, self._external = columns, since, external
        while len(self._edges) > known:
            self._edges.popitem()
        while len(self._nodes) > len(external):
            self._nodes.popitem()
        return sample

    def _rows_of(self, keys: list[EdgeKey]) -> Ints:
        before = len(self._edges)
        rows = np.fromiter(
            (self._edges.setdefault(key, len(self._edges)) for key in keys), dtype=np.int64, count=len(keys)
        )
        fresh = [keys[place] for place in np.flatnonzero(rows >= before).tolist()]
        if fresh:
            self._columns = self._columns.extended(len(fresh))
            self._columns.src[before:] = [self._node_of(key[0]) for key in fresh]
            self._columns.dst[before:] = [self._node_of(key[1]) for key in fresh]
            self._columns.since[before:] = self._windows
            self._columns.last[before:] = self._windows
            self._grow_nodes()
        return rows

    def _node_of(self, name: str) -> int:
        return self._nodes.setdefault(name, len(self._nodes))

    def _grow_nodes(self) -> None:
        names = list(self._nodes)[len(self._external) :]
        outside = np.array([is_external(name) for name in names], dtype=np.bool_)
        self._external = np.concatenate([self._external, outside])
        self._node_since = np.concatenate([self._node_since, np.full(len(names), self._windows, dtype=np.int64)])

    def _sample(self, window: WindowEdges, rows: Ints, is_new: Mask) -> GraphSample:
        columns, present = self._columns, len(rows)
        is_present = np.zeros(len(columns.last), dtype=np.bool_)
        is_present[rows] = True
        silent = np.flatnonzero(~is_present & (self._windows - columns.last <= HORIZON))
        every = np.concatenate([rows, silent])
        scores = self._scores(window, rows)
        used, places = np.unique(np.concatenate([columns.src[every], columns.dst[every]]), return_inverse=True)
        src, dst = places[: len(every)].astype(np.int64), places[len(every) :].astype(np.int64)
        return GraphSample(
            window.start_ms,
            self._node_features(every, src, dst, used),
            src,
            dst,
            self._edge_features(every, present, scores),
            present,
            is_new,
            scores.astype(np.float32),
        )

    def _scores(self, window: WindowEdges, rows: Ints) -> Floats:
        columns = self._columns
        ones, none = np.ones(len(rows)), np.zeros(len(rows), dtype=np.int64)
        scores = scores_of(window.signals, columns.mean[rows], columns.spread[rows], window.calls, ones, none)
        return np.where(columns.history[rows] >= WARM_UP, scores, np.nan)

    def _edge_features(self, every: Ints, present: int, scores: Floats) -> Singles:
        columns, features = self._columns, np.zeros((len(every), len(EDGE_FEATURES)), dtype=np.float32)
        features[:, 0] = columns.presence[every]
        features[:, 1] = np.log1p(self._windows - columns.last[every])
        features[:, 2] = columns.mean[every, CALLS]
        features[:, 3] = columns.spread[every, CALLS]
        features[:, 4] = columns.mean[every, BYTES]
        features[:, 5] = columns.mean[every, ERRORS]
        features[:, 6] = columns.mean[every, P50]
        features[:, 7] = columns.spread[every, P50]
        features[:present, 8] = np.nan_to_num(np.clip(scores[:, CALLS], -REACH, REACH))
        features[present:, 8] = -REACH * columns.presence[every[present:]]
        features[:present, 9] = np.nan_to_num(np.clip(scores[:, P50], -REACH, REACH))
        return features

    def _node_features(self, every: Ints, src: Ints, dst: Ints, used: Ints) -> Singles:
        columns, count = self._columns, len(used)
        features = np.zeros((count, len(NODE_FEATURES)), dtype=np.float32)
        usual = np.expm1(columns.mean[every, CALLS]) * columns.presence[every]
        received = np.bincount(dst, minlength=count)
        features[:, 0] = np.log1p(received)
        features[:, 1] = np.log1p(np.bincount(src, minlength=count))
        features[:, 2] = np.log1p(np.bincount(dst, weights=usual, minlength=count))
        features[:, 3] = np.log1p(np.bincount(src, weights=usual, minlength=count))
        timed = columns.history[every, P50] > 0
        total = np.bincount(dst, weights=columns.mean[every, P50] * timed, minlength=count)
        features[:, 4] = total / np.maximum(np.bincount(dst, weights=timed, minlength=count), 1)
        told = np.bincount(dst, weights=columns.mean[every, ERRORS], minlength=count)
        features[:, 5] = told / np.maximum(received, 1)
        features[:, 6] = np.log1p(self._windows - self._node_since[used])
        features[:, 7] = self._external[used]
        return features

    def _learn(self, window: WindowEdges, rows: Ints) -> None:
        columns = self._columns
        columns.mean[rows], columns.spread[rows], columns.history[rows] = learn(
            window.signals, columns.mean[rows], columns.spread[rows], columns.history[rows]
        )
        here = np.zeros(len(columns.presence))
        here[rows] = 1.0
        rate = np.maximum(1.0 / (self._windows - columns.since + 1.0), SLOWEST_RATE)
        columns.presence[:] += rate * (here - columns.presence)
        columns.last[rows] = self._windows
        self._windows += 1

    def _tidy(self) -> None:
        silent = self._windows - self._columns.last
        longest = FORGET
        if len(silent) > MOST_EDGES:
            # What was seen just now stays, however much it is: the state machine bounds the edges of a window.
            room = MOST_EDGES * 3 // 4
            longest = max(1, min(FORGET, int(np.partition(silent, room)[room]) - 1))
        kept = np.flatnonzero(silent <= longest)
        if len(kept) == len(self._edges):
            return
        keys = list(self._edges)
        self._edges = {keys[row]: number for number, row in enumerate(kept.tolist())}
        self._columns = self._columns.taken(kept)
        used, places = np.unique(np.concatenate([self._columns.src, self._columns.dst]), return_inverse=True)
        names = list(self._nodes)
        self._nodes = {names[node]: number for number, node in enumerate(used.tolist())}
        self._node_since, self._external = self._node_since[used], self._external[used]
        self._columns.src[:], self._columns.dst[:] = places[: len(kept)], places[len(kept) :]
