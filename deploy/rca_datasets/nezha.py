"""Nezha (Yu et al. 2023): calls of traces around each fault, and metrics of pods and edges all day.

A day has many faults; what is usual is told by its minutes outside of all of them. Calls are stored for about three
minutes around each fault only, so little of that time has any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.rca_datasets.cases import Baseline, FaultCase, Input
from deploy.rca_datasets.files import Floats, Ints, find, floats, ints, names_of, read_edges, read_list, read_table
from deploy.rca_datasets.samples import SampleColumns
from models.rca.calls import CallTable
from models.rca.evidence import Shift
from models.rca.gather import CallRanges, MetricRanges, WindowRanges, gather
from models.rca.robust import Mask, add_up, count, quantile
from models.rca.topology import Topology
from schemas.rca import NameColumn, ServiceWindowEdges
from schemas.rca_inputs import CallRecords, Metric, MetricSamples

USER = "_user"
"""Caller of each trace's first call: no service."""
FAMILIES = {
    "cpu_contention": "resource",
    "cpu_consumed": "resource",
    "network_delay": "resource",
    "return": "code",
    "exception": "code",
}
BEFORE_FAULT_S = 10
"""Kept out of the baseline before a fault: injection times are rounded, clocks differ."""
AFTER_FAULT_S = 60
"""Kept out of the baseline after a fault, while it wears off."""
METRIC_LAG_S = 30
"""Metrics are averages over what was scraped last: they show a fault this much longer."""
WINDOW_MS = 60_000
_KEYS = ("case", "system", "day", "inject_ts", "duration_s", "fault", "root_cause")
_CALLS = ("ts_us", "src", "dst", "op", "server_us", "client_us", "trace")
_PODS = ("ts", "service", "cpu_m", "mem_pct", "server_p90_s", "ops")
_EDGES = ("ts", "src", "dst", "side", "p50_s")
_US_PER_S = 1e6


@dataclass(frozen=True, slots=True)
class NezhaDay:
    """What is known of one system on one day."""

    records: CallRecords
    calls: CallTable
    samples: MetricSamples
    topology: Topology
    faults: list[dict[str, Any]]


def read_nezha(
    folder: Path, baseline: Baseline, inputs: frozenset[Input] = frozenset({Input.TRACES, Input.METRICS})
) -> list[FaultCase]:
    """Read all systems and days that ``nezha_cases.json`` in ``folder`` names.

    Files: ``<system>_calls_<day>.parquet``, ``<system>_node_metrics_<day>.parquet``, ``<system>_graph_<day>.json`` and,
    where there is one, ``<system>_edge_p50_<day>.parquet``.

    Raises:
        ConfigurationError: a file or column is missing, or cannot be read.
    """
    found: list[FaultCase] = []
    for day in nezha_days(folder).values():
        found += [_case(day, case, baseline, inputs) for case in day.faults]
    return found


def nezha_days(folder: Path) -> dict[str, NezhaDay]:
    """Read what is known of each system and day, by ``<system>_<day>``, in that order.

    Raises:
        ConfigurationError: a file or column is missing, or cannot be read.
    """
    listed = [case for file in find(folder, "nezha_cases*.json") for case in read_list(file, _KEYS)]
    days: dict[str, NezhaDay] = {}
    for system, name in sorted({(str(case["system"]), str(case["day"])) for case in listed}):
        faults = [case for case in listed if (case["system"], case["day"]) == (system, name)]
        days[f"{system}_{name}"] = _read_day(folder, system, name, faults)
    return days


def _read_day(folder: Path, system: str, name: str, faults: list[dict[str, Any]]) -> NezhaDay:
    table = read_table(find(folder, f"{system}_calls_{name}.parquet")[0], _CALLS)
    graph = read_edges(find(folder, f"{system}_graph_{name}.json")[0])
    pods = read_table(find(folder, f"{system}_node_metrics_{name}.parquet")[0], _PODS)
    medians = [read_table(file, _EDGES) for file in sorted(folder.glob(f"{system}_edge_p50_{name}.parquet"))]
    called, (src, dst) = names_of(table["src"], table["dst"])
    operations, (operation,) = names_of(table["op"])
    _, (trace,) = names_of(table["trace"])
    records = CallRecords(
        services=called,
        operations=operations,
        start_us=ints(table["ts_us"]),
        src=src,
        dst=dst,
        operation=operation,
        trace=trace,
        server_us=ints(table["server_us"]),
        client_us=ints(table["client_us"]),
    )
    pairs = {*graph, *((called[a], called[b]) for a, b in set(zip(src.tolist(), dst.tolist(), strict=True)))}
    for one in medians:
        pairs |= set(zip(one["src"].to_pylist(), one["dst"].to_pylist(), strict=True))
    pod_names, (pod,) = names_of(pods["service"])
    topology = Topology.of([caller for caller, _ in pairs], [callee for _, callee in pairs], pod_names)
    columns = SampleColumns(topology.services)
    for metric, column, factor in (
        (Metric.CPU, "cpu_m", 1.0),
        (Metric.MEMORY, "mem_pct", 1.0),
        (Metric.LATENCY, "server_p90_s", _US_PER_S),
        (Metric.REQUESTS, "ops", 1.0),
    ):
        columns.add(metric, pod_names, pod, ints(pods["ts"]), floats(pods[column]) * factor)
    for one in medians:
        _add_network(columns, one)
    return NezhaDay(records, CallTable.of(records), columns.samples(), topology, faults)


def _add_network(columns: SampleColumns, medians: Any) -> None:
    """Add what the caller's proxy saw beyond the callee's, where both told of the same minute."""
    names, (src, dst) = names_of(medians["src"], medians["dst"])
    sides, (side,) = names_of(medians["side"])
    at_s, p50_s = ints(medians["ts"]), floats(medians["p50_s"])
    key = (at_s * len(names) + src) * len(names) + dst
    at_source = np.flatnonzero(side == sides.index("source")) if "source" in sides else np.empty(0, np.int64)
    at_destination = np.flatnonzero(side == sides.index("destination")) if "destination" in sides else at_source[:0]
    _, here, there = np.intersect1d(key[at_source], key[at_destination], return_indices=True)
    rows = at_source[here]
    beyond_us = (p50_s[rows] - p50_s[at_destination[there]]) * _US_PER_S
    columns.add(Metric.NETWORK, names, dst[rows], at_s[rows], beyond_us, src[rows])


def ranges_of(at_s: Floats, fault: dict[str, Any], day: NezhaDay, baseline: Baseline, lag_s: int) -> tuple[Mask, Mask]:
    """Return the masks of the fault and of its baseline, ``at_s``: ``(R,)``."""
    begin, end = fault["inject_ts"], fault["inject_ts"] + fault["duration_s"]
    is_free = np.ones(len(at_s), dtype=np.bool_)
    for other in day.faults:
        first, last = other["inject_ts"], other["inject_ts"] + other["duration_s"]
        is_free &= (at_s < first - BEFORE_FAULT_S) | (at_s >= last + AFTER_FAULT_S)
    if baseline is Baseline.BEFORE:
        is_free &= at_s < begin
    return (at_s >= begin) & (at_s < end + lag_s), is_free


def _case(day: NezhaDay, fault: dict[str, Any], baseline: Baseline, inputs: frozenset[Input]) -> FaultCase:
    def evidence() -> Sequence[Shift]:
        now, before = ranges_of(day.records.start_us / _US_PER_S, fault, day, baseline, 0)
        at_now, at_before = ranges_of(day.samples.at_ms / 1000, fault, day, baseline, METRIC_LAG_S)
        return gather(
            day.topology,
            calls=CallRanges(day.calls, now, before) if Input.TRACES in inputs else None,
            windows=WindowRanges(fold_calls(day.records, now), fold_calls(day.records, before))
            if Input.WINDOWS in inputs
            else None,
            metrics=MetricRanges(day.samples, at_now, at_before) if Input.METRICS in inputs else None,
        )

    return FaultCase(
        case=str(fault["case"]),
        system=str(fault["system"]),
        family=FAMILIES.get(str(fault["fault"]), str(fault["fault"])),
        fault=str(fault["fault"]),
        root_cause=str(fault["root_cause"]),
        topology=day.topology,
        find=evidence,
        outside=frozenset({USER}),
    )


def fold_calls(records: CallRecords, use: Mask) -> ServiceWindowEdges:
    """Return calls as ClickHouse would hold them: per edge and window, latency as the caller saw it."""
    rows = np.flatnonzero(use)
    nodes = len(records.services)
    window = records.start_us[rows] // (WINDOW_MS * 1000)
    edge = records.src[rows] * nodes + records.dst[rows]
    key, cell = np.unique(np.stack([window, edge]), axis=1, return_inverse=True)
    cell, cells = cell.ravel(), key.shape[1]
    took_us = records.client_us[rows].astype(np.float64)
    calls = count(cell, cells)

    def whole(values: Floats) -> Ints:
        return np.rint(values).astype(np.int64)

    return ServiceWindowEdges(
        window_start_ms=key[0] * WINDOW_MS,
        src=NameColumn(records.services, key[1] // nodes),
        dst=NameColumn(records.services, key[1] % nodes),
        calls=calls,
        errors=np.full(cells, -1),
        denied=np.zeros(cells, dtype=np.int64),
        latency_calls=calls,
        latency_sum_us=whole(add_up(cell, took_us, cells)),
        p50_us=whole(quantile(took_us, cell, cells)),
        p95_us=whole(quantile(took_us, cell, cells, 0.95)),
        bytes=np.full(cells, -1),
    )
