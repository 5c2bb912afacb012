"""One open window of one lane: additive measures by edge number, folded from columns in any order. Pure."""

import numpy as np
import numpy.typing as npt

from models.graph.histogram import BUCKETS, SparseCounts, bucket_of
from schemas.flow import SIDE_CLIENT, SIDE_SERVER
from schemas.graph import MEASURE_INDEX, MEASURES

IntColumn = npt.NDArray[np.int64]

_EXACT = 1 << 53
_MAX_PRODUCT = 1 << 50  # bounds latency x calls of one row, so that no sum of rows can overflow int64
_VALUE_MEASURES = (
    # column of the row, measure of the sum, measure that counts the rows which knew it
    ("errors", "errors", "error_flows"),
    ("denied", "denied", "denied_flows"),
    ("bytes_out", "bytes_out", "bytes_flows"),
    ("bytes_in", "bytes_in", ""),
    ("packets_out", "packets_out", "packets_flows"),
    ("packets_in", "packets_in", ""),
)


def _sum_by(codes: IntColumn, values: IntColumn, size: int) -> IntColumn:
    """Exact integer sums by code; bincount is several times faster where float64 cannot round."""
    if len(values) == 0:
        return np.zeros(size, dtype=np.int64)
    if int(values.max()) * len(values) < _EXACT:
        return np.bincount(codes, weights=values, minlength=size).astype(np.int64)
    total = np.zeros(size, dtype=np.int64)
    np.add.at(total, codes, values)
    return total


class WindowTable:
    """Measures of one window, by reporting side.

    The two sides of a flow are kept apart and one is chosen when the window closes: they report the same calls.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.measures: list[IntColumn | None] = [None, None]
        self.histogram = [SparseCounts(), SparseCounts()]
        self.denied_by_source: dict[int, int] = {}
        self.new_peers: dict[int, set[int]] = {}
        self.incomplete: set[str] = set()

    def side(self, side: int, capacity: int) -> IntColumn:
        """Return one side's measures, ``(M, capacity)`` at least."""
        table = self.measures[side]
        if table is None or table.shape[1] < capacity:
            grown = np.zeros((len(MEASURES), capacity), dtype=np.int64)
            if table is not None:
                grown[:, : table.shape[1]] = table
            self.measures[side] = table = grown
        return table

    def fold(
        self,
        rows: dict[str, IntColumn],
        codes: IntColumn,
        edges: IntColumn,
        late: npt.NDArray[np.bool_] | None,
        capacity: int,
    ) -> None:
        """Add rows of this window.

        Shapes:
            rows: columns of ``N`` rows, -1 unknown. codes: ``(N,)`` index into ``edges``. edges: ``(K,)`` edge numbers.
            late: ``(N,)`` bool, rows behind closed windows, or None. capacity: edge numbers in use.
        """
        side = rows["side"]
        servers = side == SIDE_SERVER
        if servers.any():
            self._fold_side(SIDE_SERVER, rows, servers, codes, edges, late, capacity)
            if servers.all():
                return
            self._fold_side(SIDE_CLIENT, rows, ~servers, codes, edges, late, capacity)
        else:
            self._fold_side(SIDE_CLIENT, rows, None, codes, edges, late, capacity)

    def _fold_side(
        self,
        side: int,
        rows: dict[str, IntColumn],
        chosen: npt.NDArray[np.bool_] | None,
        codes: IntColumn,
        edges: IntColumn,
        late: npt.NDArray[np.bool_] | None,
        capacity: int,
    ) -> None:
        table = self.side(side, capacity)
        if late is not None and late.any():
            behind = late if chosen is None else late & chosen
            self._fold_late(table, rows, behind, codes, edges)
            chosen = ~late if chosen is None else chosen & ~late
        if chosen is not None:
            if not chosen.any():
                return
            rows = {name: column[chosen] for name, column in rows.items()}
            codes = codes[chosen]
        size = len(edges)
        sums: dict[str, IntColumn] = {"flows": np.bincount(codes, minlength=size).astype(np.int64)}
        calls = rows["calls"]
        sums["calls"] = _sum_by(codes, calls, size)
        for column, measure, counter in _VALUE_MEASURES:
            values = rows[column]
            known = values >= 0
            if known.all():
                sums[measure] = _sum_by(codes, values, size)
                if counter:
                    sums[counter] = sums["flows"]
            elif known.any():
                sums[measure] = _sum_by(codes[known], values[known], size)
                if counter:
                    sums[counter] = np.bincount(codes[known], minlength=size).astype(np.int64)
        skewed = rows["skewed"] > 0
        if skewed.any():
            sums["skewed_flows"] = np.bincount(codes[skewed], minlength=size).astype(np.int64)
        latency = rows["latency_us"]
        timed = latency >= 0
        if timed.any():
            if not timed.all():
                latency, calls, codes = latency[timed], calls[timed], codes[timed]
            sums["latency_calls"] = _sum_by(codes, calls, size)
            sums["latency_sum_us"] = _sum_by(codes, np.minimum(latency, _MAX_PRODUCT // calls) * calls, size)
            self.histogram[side].add(edges[codes] * BUCKETS + bucket_of(latency), calls)
        for measure, values in sums.items():
            # Several codes can share a number (overflow), so plain fancy addition would lose some.
            np.add.at(table[MEASURE_INDEX[measure]], edges, values)

    @staticmethod
    def _fold_late(
        table: IntColumn, rows: dict[str, IntColumn], behind: npt.NDArray[np.bool_], codes: IntColumn, edges: IntColumn
    ) -> None:
        numbers = edges[codes[behind]]
        np.add.at(table[MEASURE_INDEX["late_flows"]], numbers, 1)
        np.add.at(table[MEASURE_INDEX["late_calls"]], numbers, rows["calls"][behind])
        volume = np.maximum(rows["bytes_out"][behind], 0) + np.maximum(rows["bytes_in"][behind], 0)
        np.add.at(table[MEASURE_INDEX["late_bytes"]], numbers, volume)

    @staticmethod
    def key_range(edges: IntColumn, page: int, rows: int) -> tuple[int, int]:
        """Return the range of histogram keys that goes with a page of ``edges``; pages together cover all keys."""
        low = 0 if page == 0 else int(edges[page * rows]) * BUCKETS
        last = (page + 1) * rows >= len(edges)
        return low, (1 << 62) if last else int(edges[(page + 1) * rows]) * BUCKETS

    def move(self, source: int, target: int, capacity: int) -> None:
        """Add an edge's measures to another's and clear them (an edge leaves for ``overflow``)."""
        for side, table in enumerate(self.measures):
            if table is not None and source < table.shape[1]:
                table = self.side(side, capacity)
                table[:, target] += table[:, source]
                table[:, source] = 0

    def chosen(self, capacity: int) -> tuple[IntColumn, IntColumn, npt.NDArray[np.bool_]]:
        """Choose one side per edge: the client's where it reported on time, else the server's.

        Late rows of both sides are kept: they are counted, not measured.

        Shapes:
            returns: measures ``(M, capacity)`` int64, flows of the other side ``(capacity,)``, ``(capacity,)`` bool: server chosen.
        """
        flows = MEASURE_INDEX["flows"]
        late = [MEASURE_INDEX[name] for name in ("late_flows", "late_calls", "late_bytes")]
        client, server = self.side(SIDE_CLIENT, capacity), self.measures[SIDE_SERVER]
        if server is None:
            return client, np.zeros(capacity, dtype=np.int64), np.zeros(capacity, dtype=bool)
        server = self.side(SIDE_SERVER, capacity)
        use_server = (client[flows] == 0) & (server[flows] > 0)
        measures = np.where(use_server, server, client)
        measures[late] = client[late] + server[late]
        other = np.where(use_server, client[flows], server[flows])
        return measures, other, use_server

    def latencies(self, use_server: npt.NDArray[np.bool_]) -> tuple[IntColumn, IntColumn, IntColumn]:
        """Return the chosen sides' histograms as ``(edge, bucket, count)`` columns, sorted."""
        parts = []
        for side in (SIDE_CLIENT, SIDE_SERVER):
            keys, counts = self.histogram[side].items()
            edges = keys // BUCKETS
            wanted = use_server[edges] == (side == SIDE_SERVER)
            parts.append((keys[wanted], counts[wanted]))
        keys = np.concatenate([k for k, _ in parts])
        counts = np.concatenate([c for _, c in parts])
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        return keys // BUCKETS, keys % BUCKETS, counts
