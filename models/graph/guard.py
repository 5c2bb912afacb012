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


@dataclass(slots=True)
class SourceGuard:
    """What is known of the sources of a lane.

    Attributes:
        tenants: by number. open: by window and tenant, what has come so far.
    """

    tenants: dict[int, TenantTelemetry] = field(default_factory=dict)
    open: dict[int, dict[int, Noted]] = field(default_factory=dict)

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
        pairs = len(windows) * len(numbers)
        pair = of_window * len(numbers) + of_tenant
        key, width = pair, 1
        if "host" in columns:
            width = len(hosts) + 1
            key = key * width + columns["host"] + 1
        factors, steps = None, 1
        if "sampling" in columns:
            factors, steps = np.clip(columns["sampling"], 1, MAX_FACTOR), STEPS
            key = key * steps + steps_of(factors)
        for place, rows, total in _sums(key, pairs * width * steps, factors):
            rest, step = divmod(place, steps)
            where, host = divmod(rest, width)
            noted = self.noted(windows[where // len(numbers)], numbers[where % len(numbers)])
            noted.add_rows(hosts[host - 1] if host else NOBODY, step, rows, total)
        if late is not None and late.any():
            for where, rows, _ in _sums(pair[late], pairs, None):
                self.noted(windows[where // len(numbers)], numbers[where % len(numbers)]).late += rows

    def close(self, tenant: int, noted: Sequence[Noted], config: DetectionConfig, moment: Moment) -> list[Detection]:
        """Judge what came of a tenant in a window that closes."""
        state = self.tenants.get(tenant)
        if state is None:
            state = self.tenants[tenant] = TenantTelemetry()
        return [detection for some in noted for detection in watch(state, some, config, moment)]

    def floors(self, size: int, index: int) -> IntColumn | None:
        """Return per tenant the window from whose end on its silence counts, ``(size,)``; None if no tenant has one."""
        found = {number: state.floor(index) for number, state in self.tenants.items()}
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

    def teaching(self, size: int, index: int) -> Mask:
        """Say of which tenants a window shows what is usual, ``(size,)``."""
        mask = np.ones(size, dtype=bool)
        mask[[number for number, state in self.tenants.items() if not state.may_teach(index)]] = False
        return mask


def _coded(values: IntColumn) -> tuple[list[int], IntColumn]:
    """Return the distinct values, and each value's place among them."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return [low], np.zeros(len(values), dtype=np.int64)
    distinct, codes = np.unique(values, return_inverse=True)
    return distinct.tolist(), codes


def _sums(key: IntColumn, size: int, weights: IntColumn | None) -> list[tuple[int, int, int]]:
    """Return (key, rows, sum of weights) of each distinct key; weights are 1 where there are none."""
    if size > _DENSE_KEYS:
        distinct, key = np.unique(key, return_inverse=True)
    else:
        distinct = np.arange(size)
    rows = np.bincount(key, minlength=len(distinct))
    used = np.flatnonzero(rows)
    counts = rows[used].tolist()
    # Whole numbers below 2**53 are exact in float64: a record's rows are less than 2**32, a factor is at most 2**20.
    sums = counts if weights is None else np.bincount(key, weights=weights)[used].astype(np.int64).tolist()
    return list(zip(distinct[used].tolist(), counts, sums, strict=True))
