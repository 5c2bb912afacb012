"""One open window of one lane: additive measures by edge number, folded from columns in any order. Pure."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.graph.histogram import BUCKETS, SparseCounts, bucket_of
from schemas.flow import SIDE_CLIENT, SIDE_SERVER
from schemas.graph import MEASURE_INDEX, MEASURES
from schemas.tenant_log import SAMPLING

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MAX_PRODUCT = 1 << 44
"""Bounds latency x calls of one row: a batch of 2**18 such rows stays below 2**62."""
MAX_SUM = 1 << 61
"""Sums stop here. Saturating sums of what is not negative come out the same in any order; two of them fit in int64."""
_VALUE_MEASURES = (
    # column of the row, measure of the sum, measure that counts the rows which knew it
    ("errors", "errors", "error_flows"),
    ("denied", "denied", "denied_flows"),
    ("bytes_out", "bytes_out", "bytes_out_flows"),
    ("bytes_in", "bytes_in", "bytes_in_flows"),
    ("packets_out", "packets_out", "packets_out_flows"),
    ("packets_in", "packets_in", "packets_in_flows"),
)
_WEIGHED = ("calls", *(column for column, _, _ in _VALUE_MEASURES))
_SERVER_KEY = 1 << 60
"""Added to histogram keys of the server's side: both sides share one sparse table, client keys first."""


class WindowTable:
    """Measures of one window, by reporting side.

    The two sides of a flow are kept apart and one is chosen when the window closes: they report the same calls.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        # (M, sides, capacity), the server's side only once it has rows: one flat index reaches either side of an edge.
        self._table: IntColumn = np.zeros((len(MEASURES), 1, 0), dtype=np.int64)
        self._histogram = SparseCounts()
        self._bound = 0  # no sum is larger
        self.denied_by_source: dict[int, int] = {}
        self.new_peers: dict[int, set[int]] = {}
        self.incomplete: set[str] = set()

    @property
    def sides(self) -> range:
        """Return the sides that have a table."""
        return range(self._table.shape[1])

    def _reserve(self, sides: int, capacity: int) -> IntColumn:
        measures, old_sides, old_capacity = self._table.shape
        if old_sides < sides or old_capacity < capacity:
            grown = np.zeros((measures, max(sides, old_sides), max(capacity, old_capacity)), dtype=np.int64)
            grown[:, :old_sides, :old_capacity] = self._table
            self._table = grown
        return self._table

    def side(self, side: int, capacity: int) -> IntColumn:
        """Return one side's measures, a view of ``(M, capacity)`` at least."""
        view: IntColumn = self._reserve(side + 1, capacity)[:, side]
        return view

    def fold(
        self,
        rows: dict[str, IntColumn],
        codes: IntColumn,
        edges: IntColumn,
        late: Mask | None,
        capacity: int,
    ) -> None:
        """Add rows of this window.

        Shapes:
            rows: columns of ``N`` rows, -1 unknown. codes: ``(N,)`` index into ``edges``. edges: ``(K,)`` edge numbers.
            late: ``(N,)`` bool, rows behind closed windows, or None. capacity: edge numbers in use.
        """
        servers = rows["side"] == SIDE_SERVER
        numbers = edges[codes]
        table = self._reserve(SIDE_SERVER + 1 if servers.any() else 1, capacity)
        at = numbers + table.shape[2] * servers if table.shape[1] > 1 else numbers
        flat = table.reshape(len(MEASURES), -1)
        self._bound += _heaviest(rows) * len(at)
        self._fold(flat, rows, numbers, servers, at, late)
        if self._bound > MAX_SUM:
            flat[:, at] = np.minimum(flat[:, at], MAX_SUM)

    def _fold(
        self,
        flat: IntColumn,
        rows: dict[str, IntColumn],
        numbers: IntColumn,
        servers: Mask,
        at: IntColumn,
        late: Mask | None,
    ) -> None:
        if late is not None and late.any():
            behind = np.flatnonzero(late)
            _fold_late(flat, {name: rows[name][behind] for name in ("calls", "bytes_out", "bytes_in")}, at[behind])
            on_time = np.flatnonzero(~late)
            if not len(on_time):
                return
            rows = {name: column[on_time] for name, column in rows.items()}
            at, numbers, servers = at[on_time], numbers[on_time], servers[on_time]
        _add(flat, "flows", at, 1)
        calls = rows["calls"]
        if SAMPLING in rows:
            scaled = np.flatnonzero(rows[SAMPLING] > 1)
            _add(flat, "sampled_flows", at[scaled], 1)
            _add(flat, "sampling_sum", at[scaled], rows[SAMPLING][scaled])
        _add(flat, "calls", at, calls)
        for column, measure, counter in _VALUE_MEASURES:
            values = rows[column]
            if values.min() >= 0:
                _add(flat, measure, at, values)
                if counter:
                    _add(flat, counter, at, 1)
            elif values.max() >= 0:
                known = np.flatnonzero(values >= 0)
                _add(flat, measure, at[known], values[known])
                if counter:
                    _add(flat, counter, at[known], 1)
        skewed = rows["skewed"]
        if skewed.any():
            _add(flat, "skewed_flows", at[skewed > 0], 1)
        latency = rows["latency_us"]
        if latency.max() >= 0:
            if latency.min() < 0:
                timed = np.flatnonzero(latency >= 0)
                latency, calls, at = latency[timed], calls[timed], at[timed]
                numbers, servers = numbers[timed], servers[timed]
            calls = np.maximum(calls, 1)  # a row whose call another record counts tells one latency all the same
            _add(flat, "latency_calls", at, calls)
            _add(flat, "latency_sum_us", at, np.minimum(latency, _MAX_PRODUCT // calls) * calls)
            keys = numbers * BUCKETS + bucket_of(latency)
            if len(self.sides) > 1:
                keys += servers * np.int64(_SERVER_KEY)
            self._histogram.add(keys, calls)

    def histogram(self, side: int) -> tuple[IntColumn, IntColumn]:
        """Return one side's latency histograms, ``(keys, counts)``; a key is ``edge * BUCKETS + bucket``, ascending."""
        keys, counts = self._histogram.items()
        first_server = int(np.searchsorted(keys, _SERVER_KEY))
        if side == SIDE_CLIENT:
            return keys[:first_server], counts[:first_server]
        return keys[first_server:] - _SERVER_KEY, counts[first_server:]

    def restore_side(self, side: int, edges: IntColumn, measures: IntColumn, capacity: int) -> None:
        """Put a side's measures of ``edges`` back, ``(M, K)``."""
        self.side(side, capacity)[:, edges] = measures
        self._bound = max(self._bound, int(measures.max(initial=0)))

    def add_histogram(self, side: int, keys: IntColumn, counts: IntColumn) -> None:
        """Add what ``histogram`` returned."""
        self._histogram.add(keys + _SERVER_KEY if side == SIDE_SERVER else keys, counts)

    @staticmethod
    def key_range(edges: IntColumn, page: int, rows: int) -> tuple[int, int]:
        """Return the range of histogram keys that goes with a page of ``edges``; pages together cover all keys."""
        low = 0 if page == 0 else int(edges[page * rows]) * BUCKETS
        last = (page + 1) * rows >= len(edges)
        return low, (1 << 62) if last else int(edges[(page + 1) * rows]) * BUCKETS

    def move(self, source: int, target: int, capacity: int) -> None:
        """Add an edge's measures to another's and clear them (an edge leaves for ``overflow``)."""
        if source < self._table.shape[2]:
            table = self._reserve(1, capacity)
            table[:, :, target] = np.minimum(table[:, :, target] + table[:, :, source], MAX_SUM)
            table[:, :, source] = 0
            self._bound = max(self._bound, int(table[:, :, target].max()))

    def merge(self, into: Mapping[int, int], capacity: int) -> None:
        """Count edges to others from here on, what was measured of them too. ``into``: edge numbers by edge number."""
        for source, target in into.items():
            self.move(source, target, capacity)
        sources = np.array(sorted(into), dtype=np.int64)
        targets = np.array([into[source] for source in sources.tolist()], dtype=np.int64)

        def keys_of(keys: IntColumn) -> IntColumn:
            server = keys >= _SERVER_KEY
            edges = (keys - server * np.int64(_SERVER_KEY)) // BUCKETS
            at = np.minimum(np.searchsorted(sources, edges), len(sources) - 1)
            keys += np.where(sources[at] == edges, targets[at] - edges, 0) * BUCKETS
            return keys

        if len(sources):
            self._histogram.renumber(keys_of)

    def rename_services(self, number_of: Mapping[int, int]) -> None:
        """Take services for others from here on."""
        denied: dict[int, int] = {}
        for source, count in self.denied_by_source.items():
            target = number_of.get(source, source)
            denied[target] = denied.get(target, 0) + count
        peers: dict[int, set[int]] = {}
        for source, met in self.new_peers.items():
            peers.setdefault(number_of.get(source, source), set()).update(number_of.get(peer, peer) for peer in met)
        self.denied_by_source, self.new_peers = denied, peers

    def total(self, edge: int) -> IntColumn:
        """Return one edge's measures, both sides together, ``(M,)``."""
        both: IntColumn = self._table[:, :, edge].sum(axis=1)
        return both

    def has_rows_of(self, edge: int) -> bool:
        """Say whether any row of an edge was folded, late or not."""
        if edge >= self._table.shape[2]:
            return False
        return bool(self._table[[MEASURE_INDEX["flows"], MEASURE_INDEX["late_flows"]], :, edge].any())

    def has_rows(self, size: int) -> Mask:
        """Say for the first ``size`` edges whether any row was folded, late or not."""
        found = np.zeros(size, dtype=bool)
        known = self._table[:, :, :size]
        found[: known.shape[2]] = (known[MEASURE_INDEX["flows"]] + known[MEASURE_INDEX["late_flows"]]).any(axis=0)
        return found

    def have_rows(self, edges: IntColumn) -> Mask:
        """Say for some edges whether any row was folded, late or not."""
        found = np.zeros(len(edges), dtype=bool)
        inside = edges < self._table.shape[2]
        for name in ("flows", "late_flows"):
            found[inside] |= self._table[MEASURE_INDEX[name]][:, edges[inside]].any(axis=0)
        return found

    def chosen(self, capacity: int) -> tuple[IntColumn, IntColumn, Mask]:
        """Choose one side per edge: the client's where it reported on time, else the server's.

        Late rows of both sides are kept: they are counted, not measured.

        Shapes:
            returns: measures ``(M, capacity)`` int64; flows of the other side, server chosen: ``(capacity,)`` each.
        """
        flows = MEASURE_INDEX["flows"]
        late = [MEASURE_INDEX[name] for name in ("late_flows", "late_calls", "late_bytes")]
        client = self.side(SIDE_CLIENT, capacity)
        if SIDE_SERVER not in self.sides:
            return client, np.zeros(capacity, dtype=np.int64), np.zeros(capacity, dtype=bool)
        server = self.side(SIDE_SERVER, capacity)
        use_server = (client[flows] == 0) & (server[flows] > 0)
        measures = np.where(use_server, server, client)
        measures[late] = client[late] + server[late]
        other = np.where(use_server, client[flows], server[flows])
        return measures, other, use_server

    def latencies(self, use_server: Mask) -> tuple[IntColumn, IntColumn, IntColumn]:
        """Return the chosen sides' histograms as ``(edge, bucket, count)`` columns, sorted."""
        parts = []
        for side in (SIDE_CLIENT, SIDE_SERVER):
            keys, counts = self.histogram(side)
            edges = keys // BUCKETS
            wanted = use_server[edges] == (side == SIDE_SERVER)
            parts.append((keys[wanted], counts[wanted]))
        keys = np.concatenate([k for k, _ in parts])
        counts = np.concatenate([c for _, c in parts])
        order = np.argsort(keys)  # unique keys: one side was chosen for each edge
        keys, counts = keys[order], counts[order]
        return keys // BUCKETS, keys % BUCKETS, counts


def _add(flat: IntColumn, measure: str, at: IntColumn, values: IntColumn | int) -> None:
    """Add to a measure at indexes that may repeat; exact at any size, and since numpy 1.25 faster than bincount."""
    np.add.at(flat[MEASURE_INDEX[measure]], at, values)


def _heaviest(rows: dict[str, IntColumn]) -> int:
    """Return a bound on what one of these rows can add to a sum."""
    largest = max(int(rows[name].max()) for name in _WEIGHED)
    products = int(rows["latency_us"].max()) * max(int(rows["calls"].max()), 1)
    sampling = int(rows[SAMPLING].max()) if SAMPLING in rows else 1
    return max(1, 2 * largest, min(products, _MAX_PRODUCT), sampling)


def _fold_late(flat: IntColumn, rows: dict[str, IntColumn], at: IntColumn) -> None:
    _add(flat, "late_flows", at, 1)
    _add(flat, "late_calls", at, rows["calls"])
    _add(flat, "late_bytes", at, np.maximum(rows["bytes_out"], 0) + np.maximum(rows["bytes_in"], 0))
