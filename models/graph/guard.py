"""The guard against sources that lose data, in one lane of one partition: what is noted, and what is kept back. Pure.

Rows and reports are noted in the window they belong to; when it closes, `models.drift.telemetry` judges. Only from
logic version `PRODUCERS_OWN` on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.drift.detection import Detection
from models.drift.sampling import MAX_FACTOR, STEPS, steps_of
from models.drift.telemetry import Moment, watch
from models.drift.telemetry_state import NOBODY, Noted, TenantTelemetry
from schemas.detection import DetectionConfig

IntColumn = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ALL_TENANTS = -1
"""Stands for a tenant's number where a report concerns every tenant of the lane."""
_DENSE_KEYS = 1 << 20
_DENSE_SPAN = 1 << 16
_STEP_MASK, _HOST_SHIFT = (1 << 6) - 1, 6
_HOST_MASK, _TENANT_SHIFT = (1 << 26) - 1, 32
"""How tenant, host and step of the sampling factor are packed into one integer while they wait."""
_MOST_HOSTS = 1 << 20
_MOST_WAITING = 1_000
"""Records whose rows wait to be added up in a window."""


@dataclass(slots=True)
class SourceGuard:
    """What is known of the sources of a lane.

    Attributes:
        tenants: by number. open: by window and tenant, what has come so far; ``settle`` makes it complete.
    """

    tenants: dict[int, TenantTelemetry] = field(default_factory=dict)
    open: dict[int, dict[int, Noted]] = field(default_factory=dict)
    _hosts: dict[str, int] = field(default_factory=lambda: {NOBODY: 0})
    _pending: dict[int, list[tuple[IntColumn, IntColumn, IntColumn]]] = field(default_factory=dict)

    def noted(self, index: int, tenant: int) -> Noted:
        """Return what came of a tenant in an open window."""
        window = self.open.setdefault(index, {})
        found = window.get(tenant)
        if found is None:
            found = window[tenant] = Noted()
        return found

    def note_rows(
        self,
        index: IntColumn,
        tenants: IntColumn,
        late: Mask | None,
        columns: dict[str, IntColumn],
        hosts: Sequence[str],
    ) -> None:
        """Note rows: who reported them, by what factor their measures were multiplied, and whether they were late.

        Shapes:
            index: ``(N,)`` window each row is folded into. tenants: ``(N,)`` their numbers. late: ``(N,)`` or None.
            columns: of the rows; ``host`` indexes ``hosts``, -1 is nobody.
        """
        windows, of_window = _coded(index)
        numbers, of_tenant = _coded(tenants)
        pair = of_window * len(numbers) + of_tenant
        pairs = len(windows) * len(numbers)
        key, width, steps, factors = pair, 1, 1, None
        if "host" in columns:
            width = len(hosts) + 1
            key = key * width + columns["host"] + 1
        if "sampling" in columns:
            factors, steps = np.clip(columns["sampling"], 1, MAX_FACTOR), STEPS
            key = key * steps + steps_of(factors)
        places, rows, totals = _sums(key, pairs * width * steps, factors)
        where, rest = np.divmod(places, width * steps)
        host, step = np.divmod(rest, steps)
        of_windows, of_tenants = np.divmod(where, len(numbers))
        known = self._host_codes(hosts) if width > 1 else np.zeros(1, dtype=np.int64)
        packed = np.array(numbers, dtype=np.int64)[of_tenants] << _TENANT_SHIFT | known[host] << _HOST_SHIFT | step
        for code, window in enumerate(windows):
            mine = slice(None) if len(windows) == 1 else of_windows == code
            self._wait(window, (packed[mine], rows[mine], totals[mine]))
        if late is not None and late.any():
            places, rows, _ = _sums(pair[late], pairs, None)
            for where_late, count in zip(places.tolist(), rows.tolist(), strict=True):
                number, window = numbers[where_late % len(numbers)], windows[where_late // len(numbers)]
                self.noted(window, number).late += count

    def _wait(self, index: int, sums: tuple[IntColumn, IntColumn, IntColumn]) -> None:
        self.open.setdefault(index, {})
        waiting = self._pending.setdefault(index, [])
        waiting.append(sums)
        if len(waiting) >= _MOST_WAITING:
            self._settle(index)

    def _host_codes(self, hosts: Sequence[str]) -> IntColumn:
        """Return the numbers of nobody and of a record's hosts; they hold until all is settled."""
        if len(self._hosts) >= _MOST_HOSTS:
            self.settle()
            self._hosts = {NOBODY: 0}
        known = self._hosts
        return np.array([0, *(known.setdefault(host, len(known)) for host in hosts)], dtype=np.int64)

    def settle(self) -> None:
        """Add up what waits, in all open windows: rows are counted record by record, hosts window by window."""
        for index in list(self._pending):
            self._settle(index)

    def _settle(self, index: int) -> None:
        waiting = self._pending.pop(index, None)
        if not waiting:
            return
        packed, rows, totals = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        distinct, place = np.unique(packed, return_inverse=True)
        sums = np.zeros((2, len(distinct)), dtype=np.int64)
        np.add.at(sums[0], place, rows)
        np.add.at(sums[1], place, totals)
        names = list(self._hosts)
        for key, count, total in zip(distinct.tolist(), *sums.tolist(), strict=True):
            host = names[key >> _HOST_SHIFT & _HOST_MASK]
            self.noted(index, key >> _TENANT_SHIFT).add_rows(host, key & _STEP_MASK, count, total)

    def take(self, index: int) -> dict[int, Noted] | None:
        """Return what came of each tenant in a window that closes, and forget it."""
        self._settle(index)
        return self.open.pop(index, None)

    def drop_open(self) -> None:
        """Forget what came in windows that will never close."""
        self._pending.clear()
        self.open.clear()

    def close(self, tenant: int, noted: Sequence[Noted], config: DetectionConfig, moment: Moment) -> list[Detection]:
        """Judge what came of a tenant in a window that closes."""
        state = self.tenants.get(tenant)
        if state is None:
            state = self.tenants[tenant] = TenantTelemetry()
        return [detection for some in noted for detection in watch(state, some, config, moment)]

    def floors(self, size: int, index: int) -> IntColumn | None:
        """Return per tenant the window from whose end on its silence counts, ``(size,)``; None if no tenant has one."""
        return self._column(size, {number: state.floor(index) for number, state in self.tenants.items()})

    def waits(self, size: int, index: int) -> IntColumn | None:
        """Return likewise the window up to which no silence is told yet."""
        return self._column(size, {number: state.waits_until(index) for number, state in self.tenants.items()})

    @staticmethod
    def _column(size: int, found: dict[int, int]) -> IntColumn | None:
        if max(found.values(), default=-1) < 0:
            return None
        floors = np.full(size, -1, dtype=np.int64)
        floors[list(found)] = list(found.values())
        return floors

    def losing(self, size: int, index: int) -> Mask:
        """Say which tenants' sources were losing data in a window, ``(size,)``."""
        mask = np.zeros(size, dtype=bool)
        mask[[number for number, state in self.tenants.items() if state.is_losing(index)]] = True
        return mask

    def withholding(self, size: int, index: int) -> Mask:
        """Say of which tenants what is missing from a window means nothing, or may turn out to, ``(size,)``."""
        mask = np.zeros(size, dtype=bool)
        mask[[number for number, state in self.tenants.items() if state.withholds(index)]] = True
        return mask

    def count_losing(self, index: int) -> int:
        """Return how many tenants' sources were losing data in a window. Any thread."""
        return sum(state.is_losing(index) for state in list(self.tenants.values()))

    def teaching(self, size: int, index: int) -> Mask:
        """Say of which tenants a window shows what is usual, ``(size,)``."""
        mask = np.ones(size, dtype=bool)
        mask[[number for number, state in self.tenants.items() if not state.may_teach(index)]] = False
        return mask


def _coded(values: IntColumn) -> tuple[list[int], IntColumn]:
    """Return the distinct values, ascending, and each value's place among them."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [low], np.zeros(len(values), dtype=np.int64)
    if high - low >= _DENSE_SPAN:
        distinct, codes = np.unique(values, return_inverse=True)
        return distinct.tolist(), codes
    shifted = values - low
    used = np.flatnonzero(np.bincount(shifted))
    rank = np.empty(high - low + 1, dtype=np.int64)
    rank[used] = np.arange(len(used))
    return (used + low).tolist(), rank[shifted]


def _sums(key: IntColumn, size: int, weights: IntColumn | None) -> tuple[IntColumn, IntColumn, IntColumn]:
    """Return the distinct keys, how many rows have each, and the sum of their weights, 1 where there are none."""
    distinct = None
    if size > _DENSE_KEYS:
        distinct, key = np.unique(key, return_inverse=True)
    counts = np.bincount(key)
    used = np.flatnonzero(counts)
    rows: IntColumn = counts[used]
    # Whole numbers below 2**53 are exact in float64: a record's rows are less than 2**32, a factor is at most 2**20.
    totals = rows if weights is None else np.bincount(key, weights=weights)[used].astype(np.int64)
    return used if distinct is None else distinct[used], rows, totals
