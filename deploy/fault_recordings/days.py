"""Reads a system's recorded day: all its calls, the faults in it, and what of it is fault-free."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.injected_drifts.recordings import ENTRY
from deploy.injected_drifts.traffic import MINUTE_MS, Calls, Edges
from deploy.rca_datasets.files import find, ints, names_of, read_list, read_table
from deploy.rca_datasets.nezha import AFTER_FAULT_S, FAMILIES, USER
from schemas.errors import ConfigurationError
from schemas.flow import UNKNOWN
from schemas.labelled import LabelledIncident

CUT_SHARE = 0.5
"""A calm minute with less of the usual number of calls was cut by the beginning or the end of a recording."""
_KEYS = ("case", "system", "day", "inject_ts", "duration_s", "fault", "root_cause")
_CALLS = ("ts_us", "src", "dst", "client_us")


@dataclass(frozen=True, slots=True)
class FaultDay:
    """One system on one day.

    Attributes:
        incidents: the faults; of each the service it was injected into is known, and its kind as the data names it.
        family: of each kind of fault, ``resource`` or ``code``.
        calls: all, ordered by time.
    """

    system: str
    day: str
    incidents: tuple[LabelledIncident, ...]
    family: dict[str, str]
    edges: Edges
    calls: Calls

    def minutes(self) -> Iterator[tuple[int, Calls]]:
        """Yield the minutes that have calls, since the epoch."""
        minute = self.calls.time_ms // MINUTE_MS
        starts = np.flatnonzero(np.diff(minute, prepend=-1)).tolist()
        for first, last in zip(starts, [*starts[1:], len(minute)], strict=True):
            yield int(minute[first]), self.calls.take(np.arange(first, last))

    def calm_minutes(self) -> list[tuple[int, Calls]]:
        """Return the minutes outside of all faults, and of what follows them, of which enough was recorded.

        Raises:
            ConfigurationError: there is none.
        """
        calm = [(minute, calls) for minute, calls in self.minutes() if self._is_calm(minute)]
        if not calm:
            raise ConfigurationError(f"{self.system} {self.day}: no minute with calls lies outside of all faults")
        usual = float(np.median([len(calls) for _, calls in calm]))
        return [(minute, calls) for minute, calls in calm if len(calls) >= CUT_SHARE * usual]

    def _is_calm(self, minute: int) -> bool:
        begin_ms, end_ms = minute * MINUTE_MS, (minute + 1) * MINUTE_MS
        return all(end_ms <= one.start_ms or begin_ms >= one.end_ms + AFTER_FAULT_S * 1000 for one in self.incidents)


def read_days(folder: Path) -> list[FaultDay]:
    """Read the systems and days that ``nezha_cases.json`` in ``folder`` names (Yu et al. 2023), one file each.

    Raises:
        ConfigurationError: a file or column is missing or cannot be read.
    """
    cases = [case for file in find(folder, "nezha_cases*.json") for case in read_list(file, _KEYS)]
    days = sorted({(str(case["system"]), str(case["day"])) for case in cases})
    return [_day(folder, *day, [case for case in cases if (case["system"], case["day"]) == day]) for day in days]


def _day(folder: Path, system: str, day: str, cases: list[dict[str, Any]]) -> FaultDay:
    table = read_table(find(folder, f"{system}_calls_{day}.parquet")[0], _CALLS)
    names, (src, dst) = names_of(table["src"], table["dst"])
    named = [ENTRY if name == USER else name for name in names]
    keys, code = np.unique(src * len(names) + dst, return_inverse=True)
    edges = Edges.of([(named[key // len(names)], named[key % len(names)], UNKNOWN) for key in keys.tolist()])
    time_ms = ints(table["ts_us"]) // 1000
    unknown = np.full(len(time_ms), UNKNOWN, dtype=np.int64)
    latency_us = np.maximum(ints(table["client_us"]), 0)
    calls = Calls(time_ms, code.ravel().astype(np.int64), unknown, unknown, unknown, latency_us)
    return FaultDay(
        system,
        day,
        tuple(_incident(case) for case in sorted(cases, key=lambda case: float(case["inject_ts"]))),
        {str(case["fault"]): FAMILIES.get(str(case["fault"]), str(case["fault"])) for case in cases},
        edges,
        calls.take(np.argsort(time_ms, kind="stable")),
    )


def _incident(case: dict[str, Any]) -> LabelledIncident:
    start_ms = int(case["inject_ts"] * 1000)
    end_ms = start_ms + int(case["duration_s"] * 1000)
    return LabelledIncident(
        str(case["case"]), start_ms, end_ms, services=(str(case["root_cause"]),), kind=str(case["fault"])
    )
