"""PetShop (Hardt et al. 2024): five-minute metrics of services, cases of latency and of availability.

Baseline is the run without an issue that the data set brings along for each traffic scenario; its metrics are of nodes,
so what a caller saw of a callee is not known.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.rca_datasets.cases import FaultCase
from deploy.rca_datasets.files import find, floats, ints, names_of, read_edges, read_list, read_table
from deploy.rca_datasets.samples import SampleColumns
from models.rca.error_rank import Symptom
from models.rca.evidence import Shift
from models.rca.gather import MetricRanges, gather
from models.rca.robust import Mask
from models.rca.topology import Topology
from schemas.errors import ConfigurationError
from schemas.rca_inputs import Metric, MetricSamples

NO_ISSUE = "normal"
HARM = {"latency": "us", "availability": "calls"}
_KEYS = ("case", "target.node", "target.metric", "target.timestamp", "root_cause.node")
_COLUMNS = ("case", "ts", "node", "metric", "stat", "value")
_US_PER_S = 1e6


def read_petshop(folder: Path) -> list[FaultCase]:
    """Read all traffic scenarios in ``folder``.

    Files: ``petshop_<scenario>_cases.json``, ``..._graph.json`` and ``..._node_metrics.parquet``.

    Raises:
        ConfigurationError: a file or column is missing, or cannot be read.
    """
    cases: list[FaultCase] = []
    for file in find(folder, "petshop_*_cases.json"):
        cases += _scenario(folder, file.name.removesuffix("_cases.json"), read_list(file, _KEYS))
    return cases


def _scenario(folder: Path, system: str, listed: list[Any]) -> list[FaultCase]:
    edges = read_edges(find(folder, f"{system}_graph.json")[0])
    file = find(folder, f"{system}_node_metrics.parquet")[0]
    table = read_table(file, _COLUMNS)
    nodes, (node,) = names_of(table["node"])
    runs, (run,) = names_of(table["case"])
    kinds, (metric,) = names_of(table["metric"])
    stats, (stat,) = names_of(table["stat"])
    if NO_ISSUE not in runs:
        raise ConfigurationError(f"{file.name} has no case {NO_ISSUE}: without it nothing says what is usual")
    at_s, value = ints(table["ts"]), floats(table["value"])
    topology = Topology.of([caller for caller, _ in edges], [callee for _, callee in edges], nodes)
    # Runs lie months apart, so the rows of one metric keep their order and can be told apart by run.
    columns, run_of = SampleColumns(nodes), []
    wanted = (
        ("latency", "Average", Metric.LATENCY, value * _US_PER_S),
        ("requests", "Sum", Metric.REQUESTS, value),
        ("availability", "Average", Metric.FAILED_RATIO, 1 - value / 100),
    )
    for kind, average, measured, in_unit in wanted:
        use = np.zeros(len(value), dtype=np.bool_)
        if kind in kinds and average in stats:
            use = (metric == kinds.index(kind)) & (stat == stats.index(average))
        if not use.any():
            raise ConfigurationError(f"{file.name} has no metric {kind} with stat {average}")
        columns.add(measured, nodes, node[use], at_s[use], in_unit[use])
        run_of.append(run[use])
    samples, runs_of_samples = columns.samples(), np.concatenate(run_of)
    before = runs_of_samples == runs.index(NO_ISSUE)
    found = []
    for one in listed:
        if one["case"] not in runs:
            raise ConfigurationError(f"{file.name} has no rows of {one['case']}")
        now = (runs_of_samples == runs.index(one["case"])) & _from_alarm_on(samples, runs_of_samples, one, runs)
        found.append(_case(system, one, topology, samples, now, before))
    return found


def _from_alarm_on(samples: MetricSamples, run: Any, case: dict[str, Any], runs: list[str]) -> Mask:
    """Return the samples from the one that covers the alarm on, whatever their run; all where that leaves none."""
    times = np.unique(samples.at_ms[run == runs.index(case["case"])])
    step_ms = int(np.median(np.diff(times))) if len(times) > 1 else 0
    alarm_ms = int(case["target"]["timestamp"]) * 1000
    since_ms = alarm_ms - step_ms if (times > alarm_ms - step_ms).any() else int(times[0]) - 1
    mask: Mask = samples.at_ms > since_ms
    return mask


def _case(
    system: str, case: dict[str, Any], topology: Topology, samples: MetricSamples, now: Mask, before: Mask
) -> FaultCase:
    def evidence() -> Sequence[Shift]:
        return gather(topology, metrics=MetricRanges(samples, now, before))

    return FaultCase(
        case=str(case["case"]),
        system=system,
        family=str(case["target"]["metric"]),
        fault=str(case["target"]["metric"]),
        root_cause=str(case["root_cause"]["node"]),
        topology=topology,
        find=evidence,
        symptom=Symptom((str(case["target"]["node"]),), HARM.get(str(case["target"]["metric"]), "")),
    )
