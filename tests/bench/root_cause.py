"""Quality of ErrorRank: what each part of it is worth, how much its parameters matter, whether they were fitted.

    drift bench root-cause --data DIR [--part ablation|signals|parameters|splits|injected|speed] [--json]

DIR holds the files that `drift evaluate rca` reads. Nothing here is random but the graph of ``speed`` and the faults of
``injected`` (seeded).
"""

import argparse
import contextlib
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import networkx as nx
import numpy as np

import deploy.rca_datasets
import models.rca
from deploy.commands.evaluate_rca import rank_case
from deploy.rca_datasets.cases import Baseline, FaultCase, Input
from deploy.rca_datasets.nezha import read_nezha
from deploy.rca_datasets.petshop import read_petshop
from models.rca.accuracy import Accuracy, accuracy_of
from models.rca.error_rank import rank_causes
from models.rca.evidence import Moves
from models.rca.propagation import DAMPING, redistribute
from models.rca.robust import Ints
from schemas.rca import NameColumn, ServiceWindowEdges
from tests.bench.root_cause_injected import injected
from tests.rca_graphs import twins

SEED = 7
ALL_INPUTS = frozenset({Input.TRACES, Input.METRICS})
ABLATION: dict[str, tuple[frozenset[Input], frozenset[str]]] = {
    "everything": (ALL_INPUTS, frozenset()),
    "traces alone": (frozenset({Input.TRACES}), frozenset()),
    "metrics alone": (frozenset({Input.METRICS}), frozenset()),
    "stored windows alone": (frozenset({Input.WINDOWS}), frozenset()),
    "windows and metrics": (frozenset({Input.WINDOWS, Input.METRICS}), frozenset()),
    "without self time": (ALL_INPUTS, frozenset({"self_time"})),
    "without network": (ALL_INPUTS, frozenset({"network"})),
    "without call mix": (ALL_INPUTS, frozenset({"call_mix"})),
    "without processor": (ALL_INPUTS, frozenset({"cpu"})),
    "without memory": (ALL_INPUTS, frozenset({"memory"})),
    "without latency of nodes": (ALL_INPUTS, frozenset({"latency"})),
    "without failures": (ALL_INPUTS, frozenset({"error_ratio"})),
}
PARAMETERS: dict[str, tuple[Any, Any]] = {
    "Z_THRESHOLD": (1.5, 6.0),
    "FADING": (2.0, 8.0),
    "USUAL_UP_TO": (0.8, 0.95),
    "PRIOR_WINDOWS": (1.5, 6.0),
    "MIN_RELATIVE_SPREAD": (0.05, 0.2),
    "MIN_SPREAD_US": (100.0, 400.0),
    "MIN_SPREAD_RATIO": (0.005, 0.02),
    "MIN_SAMPLE_CALLS": (2, 6),
    "CALL_WINDOW_US": (15_000_000, 60_000_000),
    "TYPICAL_WANDERING": (0.05, 0.2),
    "HANDED_ON": (0.2, 0.8),
    "PRIOR_CALLS": (1.5, 6.0),
    "EXCESS_POWER": (1 / 6, 2 / 3),
    "DAMPING": (0.7, 0.925),
    "UNSEEN_BY_OTHERS": (0.15, 0.6),
    "CLEAR_SHIFT": (0.25, 1.0),
    "LEAST_BLAME": (0.05, 0.2),
    "UNRELATED_DECAY": (0.25, 1.0),
    "OTHER_HARM": (0.25, 1.0),
    "METRIC_LAG_S": (15, 60),
    "AFTER_FAULT_S": (30, 120),
    "BEFORE_FAULT_S": (5, 20),
}
"""Each parameter halved and doubled; of a quantile, what lies beyond it; of the damping, what is kept."""


@dataclass(frozen=True)
class Setting:
    """One setting of the parameters, and where each case's cause came under it."""

    name: str
    ranks: tuple[float, ...]
    seed_ranks: tuple[float, ...]


def _modules() -> list[Any]:
    found = []
    for package in (models.rca, deploy.rca_datasets):
        names = (one.name for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))
        found += [importlib.import_module(name) for name in names]
    return found


@contextlib.contextmanager
def parameter(name: str, value: Any) -> Iterator[None]:
    """Set a constant of ErrorRank wherever it is read."""
    with contextlib.ExitStack() as stack:
        places = [module for module in _modules() if hasattr(module, name)]
        if not places:
            raise ValueError(f"no module has {name}")
        for module in places:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def read_all(
    data: Path, baseline: Baseline = Baseline.BEFORE, inputs: frozenset[Input] = ALL_INPUTS
) -> list[FaultCase]:
    """Read both data sets."""
    return [*read_petshop(data), *read_nezha(data, baseline, inputs)]


def setting(name: str, cases: Sequence[FaultCase], without: frozenset[str] = frozenset()) -> Setting:
    """Rank all cases as the parameters are now."""
    ranked = [rank_case(case, without) for case in cases]
    return Setting(name, tuple(one.rank for one in ranked), tuple(one.seed_rank for one in ranked))


def groups_of(cases: Sequence[FaultCase]) -> dict[str, list[int]]:
    """Return the cases of each system, and of its resource faults."""
    groups: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault(case.system, []).append(place)
        if case.family == "resource":
            groups.setdefault(f"{case.system}, resource", []).append(place)
    return groups


def _accuracy(ranks: Sequence[float], places: Sequence[int]) -> Accuracy:
    return accuracy_of([ranks[place] for place in places])


def table(settings: Sequence[Setting], cases: Sequence[FaultCase]) -> dict[str, Any]:
    """Return AC@1, AC@3 and Avg@5 by setting and group, and of the seed."""
    groups = groups_of(cases)
    rows: dict[str, Any] = {}
    for one in settings:
        rows[one.name] = {}
        for group, places in groups.items():
            found, seed = _accuracy(one.ranks, places), _accuracy(one.seed_ranks, places)
            rows[one.name][group] = {
                "ac1": found.ac1,
                "ac3": found.ac3,
                "avg5": found.avg5,
                "seed_ac1": seed.ac1,
                "seed_avg5": seed.avg5,
            }
    return rows


def ablation(data: Path) -> dict[str, Any]:
    """Leave each input and each kind of evidence out, under both baselines."""
    result = {}
    for baseline in Baseline:
        settings = []
        for name, (inputs, without) in ABLATION.items():
            cases = read_all(data, baseline, inputs)
            settings.append(setting(name, cases, without))
        result[f"baseline {baseline.value}"] = table(settings, cases)
    return result


def signals(data: Path) -> dict[str, Any]:
    """Where each signal alone puts the cause: mean place as a share of all services, .5 is chance."""
    places: dict[str, dict[str, list[float]]] = {}
    for case in read_all(data):
        services = np.array([name not in case.outside for name in case.topology.services])
        cause = case.topology.services.index(case.root_cause)
        for shift in case.find():
            scores = np.zeros(len(services))
            np.maximum.at(scores, shift.dst, shift.score)
            others = scores[services]
            place = (others > scores[cause]).sum() + (others == scores[cause]).sum() / 2
            group = places.setdefault(f"{case.system}, {case.family}", {})
            group.setdefault(shift.signal, []).append(float(place) / len(others))
    return {
        group: {signal: {"mean_place": float(np.mean(found)), "cases": len(found)} for signal, found in rows.items()}
        for group, rows in places.items()
    }


def every_setting(data: Path) -> tuple[list[Setting], list[FaultCase]]:
    """Rank all cases with each parameter halved and doubled, the plain setting first."""
    cases = read_all(data)
    settings = [setting("as shipped", cases)]
    for name, values in PARAMETERS.items():
        for value in values:
            with parameter(name, value):
                settings.append(setting(f"{name} {value:g}", read_all(data)))
            print(settings[-1].name, file=sys.stderr)
    with mock.patch(
        "deploy.rca_datasets.petshop._from_alarm_on", lambda samples, *_: np.ones(len(samples), dtype=bool)
    ):
        settings.append(setting("PetShop: the whole run, not from the alarm on", read_all(data)))
    return settings, cases


def splits(settings: Sequence[Setting], cases: Sequence[FaultCase]) -> dict[str, Any]:
    """Choose a setting on some cases and judge it on the others: halves in time, and each system left out.

    The choice is for the mean of AC@1 and Avg@5 over the systems chosen on; among equals the shipped one is taken.
    """
    systems = {name: places for name, places in groups_of(cases).items() if ", " not in name}
    halves = {
        "first half": [place for places in systems.values() for place in places[: len(places) // 2]],
        "second half": [place for places in systems.values() for place in places[len(places) // 2 :]],
    }
    folds = {
        f"chosen on the {name}": (places, halves[other])
        for name, places, other in (
            ("first half", halves["first half"], "second half"),
            ("second half", halves["second half"], "first half"),
        )
    }
    for name, places in systems.items():
        others = [place for system, rest in systems.items() if system != name for place in rest]
        folds[f"chosen without {name}"] = (others, places)

    def value(one: Setting, places: Sequence[int]) -> float:
        parts = [[place for place in places if place in of_system] for of_system in map(set, systems.values())]
        found = [_accuracy(one.ranks, part) for part in parts if part]
        return round(sum(one.ac1 + one.avg5 for one in found) / len(found), 9)

    result = {}
    for name, (chosen_on, judged_on) in folds.items():
        best = max(settings, key=lambda one: (value(one, chosen_on), one is settings[0]))
        judged = {}
        for system, places in systems.items():
            part = [place for place in judged_on if place in set(places)]
            if part:
                ours, theirs = _accuracy(best.ranks, part), _accuracy(settings[0].ranks, part)
                judged[system] = {"cases": len(part), "chosen_ac1": ours.ac1, "shipped_ac1": theirs.ac1}
        result[name] = {"setting": best.name, **judged}
    return result


def speed() -> dict[str, Any]:
    """Time rank_causes on large graphs with a fiftieth of the edges slow, and the walk beside networkx's."""
    return {
        f"{services} services, {edges} edges, 2 x {windows} windows": _speed_of(services, edges, windows)
        for services, edges, windows in ((50, 200, 60), (1_000, 5_000, 40), (10_000, 100_000, 2))
    }


def _speed_of(services: int, edges: int, windows: int) -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    src, dst = rng.integers(0, services, edges), rng.integers(0, services, edges)
    slow_us = np.where(np.arange(edges) < edges // 50, 90_000, 0)
    now = _random_windows(rng, src, dst, windows, windows, slow_us)
    before = _random_windows(rng, src, dst, 0, windows, slow_us * 0)
    moves = Moves(src, dst, rng.random(edges) / np.bincount(src, minlength=services)[src])
    seed = rng.random(services)
    graph, restarts = twins(moves, services), dict(enumerate(seed / seed.sum()))
    return {
        "rank_causes_ms": _best_ms(lambda: rank_causes(now, before)),
        "walk_ms": _best_ms(lambda: redistribute(seed, moves)),
        "networkx_walk_ms": _best_ms(lambda: nx.pagerank(graph, DAMPING, restarts)),
    }


def _random_windows(
    rng: np.random.Generator, src: Ints, dst: Ints, first: int, windows: int, slow_us: Ints
) -> ServiceWindowEdges:
    edges = len(src)
    took = rng.integers(4_000, 6_000, edges * windows) + np.tile(slow_us, windows)
    calls = np.full(edges * windows, 50)
    return ServiceWindowEdges(
        window_start_ms=np.repeat(np.arange(first, first + windows) * 60_000, edges),
        src=NameColumn.of(f"s{n:05}" for n in np.tile(src, windows).tolist()),
        dst=NameColumn.of(f"s{n:05}" for n in np.tile(dst, windows).tolist()),
        calls=calls,
        errors=calls * 0,
        denied=calls * 0,
        latency_calls=calls,
        latency_sum_us=calls * took,
        p50_us=took,
        p95_us=took * 2,
        bytes=calls * 100,
    )


def _best_ms(work: Callable[[], object], times: int = 3) -> float:
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return round(best * 1e3, 2)


def _show(result: dict[str, Any]) -> None:
    for name, rows in result.items():
        print(name)
        for row, groups in rows.items():
            if not isinstance(groups, dict):
                print(f"  {row}: {groups}")
                continue
            cells = (
                " ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in figures.values())
                if isinstance(figures, dict)
                else f"{key} {figures}"
                for key, figures in groups.items()
            )
            print(f"  {row:46} {' | '.join(cells)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--part",
        choices=["ablation", "signals", "parameters", "splits", "injected", "speed", "all"],
        default="all",
    )
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if options.part in ("ablation", "all"):
        result |= ablation(options.data)
    if options.part in ("signals", "all"):
        result["signals"] = signals(options.data)
    if options.part in ("parameters", "splits", "all"):
        settings, cases = every_setting(options.data)
        if options.part != "splits":
            result["parameters"] = table(settings, cases)
        if options.part != "parameters":
            result["splits"] = splits(settings, cases)
    if options.part in ("injected", "all"):
        result |= injected(options.data)
    if options.part in ("speed", "all"):
        result["speed"] = speed()
    if options.as_json:
        print(json.dumps(result))
    else:
        _show(result)


if __name__ == "__main__":
    main()
