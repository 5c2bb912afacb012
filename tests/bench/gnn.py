"""The graph model beside the statistical score on real traffic, and how fast it is. Needs the extra `gnn`.

    python -m tests.bench.gnn --part nezha --data DIR [--seeds 5] [--window-s 10] [--json]
    python -m tests.bench.gnn --part darpa --data DIR [--seeds 5] [--json]
    python -m tests.bench.gnn --part speed [--json]

nezha: calls of two systems (nezha_*_calls_*.parquet). Windows in order of time: 45 % teach, 15 % stop the training, in
the last 40 % seeded drifts are put into the windows outside of the injected faults; and the faults themselves: edges
that lead to the service at fault, while it lasts, against all edges of the windows outside.
darpa: records of one network (darpa1998_edges_dev.parquet) in windows of ten minutes; the drifts are its labelled
attacks; the statistical score is the streaming edge scorer's, the largest of the window's records of an edge.
speed: 10 thousand nodes and 100 thousand edges, one thread; time on the processor beside time on the clock.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from deploy.commands.evaluate_edges import read_edges
from deploy.commands.evaluate_gnn import TEST_SHARE, show
from deploy.commands.train import training_module
from models.drift.edge_stream.scorer import EdgeScorer
from models.gnn.calibration import (
    Calibration,
    EdgeScores,
    calibrate,
    link_surprise,
    scores_of,
    signal_surprise,
    surprise,
)
from models.gnn.comparison import Figures, Ranked, compare_injected, mean_and_deviation
from models.gnn.features import GraphHistory, GraphSample
from models.gnn.fitting import calibration_of, samples_of, split_in_time
from models.gnn.inference import Weights, judge, shapes
from models.gnn.windows import EdgeKey, WindowEdges, window_of

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
BEFORE_FAULT_MS, AFTER_FAULT_MS = 10_000, 60_000
"""Around a fault no window counts as free of it: injection times are rounded, faults wear off."""
DARPA_WINDOW_MS = 600_000
DARPA_SHARES = (0.4, 0.6)
"""Up to which share of the windows they teach, and up to which later ones stop the training."""
FLOODS = ("neptune", "smurf")


def call_windows(file: Path, window_ms: int) -> list[WindowEdges]:
    """Return windows of a file of calls; a latency is the caller's, else the callee's."""
    table = pq.read_table(file, columns=["ts_us", "src", "dst", "server_us", "client_us"]).to_pylist()
    found: dict[int, dict[EdgeKey, list[int]]] = {}
    for row in table:
        start = row["ts_us"] // 1_000 // window_ms * window_ms
        latency = row["server_us"] if row["client_us"] is None else row["client_us"]
        found.setdefault(start, {}).setdefault((row["src"], row["dst"], -1, -1), []).append(latency)
    windows = []
    for start, edges in sorted(found.items()):
        keys = sorted(edges)
        unknown = np.full(len(keys), -1, dtype=np.int64)
        calls = np.array([len(edges[key]) for key in keys], dtype=np.int64)
        p50, p95 = (np.array([int(np.quantile(edges[key], q)) for key in keys], dtype=np.int64) for q in (0.5, 0.95))
        windows.append(window_of(start, keys, calls, unknown, unknown, p50, p95))
    return windows


def nezha(folder: Path, seeds: int, window_ms: int) -> dict[str, Any]:
    """Return figures by system and kind of drift."""
    training = training_module()
    result: dict[str, Any] = {}
    cases = json.loads((folder / "nezha_cases.json").read_text())
    for file in sorted(folder.glob("nezha_*_calls_*.parquet")):
        system = file.name.partition("_calls_")[0]
        windows = call_windows(file, window_ms)
        faults = [case for case in cases if case["system"] == system]
        free = [not any(_overlaps(one.start_ms, window_ms, case, True) for case in faults) for one in windows]
        first = int(len(windows) * (1 - TEST_SHARE))
        runs, seconds, training_figures = [], [], []
        for seed in range(seeds):
            history = GraphHistory()
            split = split_in_time(samples_of(windows[:first], history))
            begin = time.process_time()
            trained = training.train(split.training, split.validation, training.TrainingParams(seed=seed), "cpu")
            seconds.append(time.process_time() - begin)
            training_figures.append(trained.scores | {"epochs": trained.epochs, "best_epoch": trained.best_epoch})
            calibration = calibration_of(trained.weights, split.validation)
            run = compare_injected(trained.weights, calibration, history, windows[first:], free[first:], seed)
            run["real resource fault"] = _faults(
                trained.weights, calibration, history, windows[first:], free[first:], faults, window_ms
            )
            runs.append(run)
            print(json.dumps({"system": system, "seed": seed, "cpu_s": seconds[-1], "runs": run}), file=sys.stderr)
        result[system] = {
            "windows": len(windows),
            "judged_windows": sum(free[first:]),
            "edges_per_window": round(float(np.mean([len(one) for one in windows])), 1),
            "training_cpu_s": [round(one, 1) for one in seconds],
            "training": training_figures,
            "kinds": {kind: mean_and_deviation([run[kind] for run in runs]) for kind in runs[0] if runs[0][kind]},
        }
    return result


def _overlaps(start_ms: int, window_ms: int, case: dict[str, Any], with_margin: bool) -> bool:
    begin = case["inject_ts"] * 1_000
    end = begin + case["duration_s"] * 1_000
    if with_margin:
        begin, end = begin - BEFORE_FAULT_MS, end + AFTER_FAULT_MS
    return bool(begin < start_ms + window_ms and start_ms < end)


def _faults(
    weights: Weights,
    calibration: Calibration,
    history: GraphHistory,
    windows: Sequence[WindowEdges],
    free: Sequence[bool],
    faults: Sequence[dict[str, Any]],
    window_ms: int,
) -> dict[str, Figures]:
    """Rank edges to services at fault above edges outside of faults. ``history`` goes on: it is the last use of it."""
    ranked = Ranked()
    for window, is_free in zip(windows, free, strict=True):
        sample = history.take(window)
        at_fault = {
            case["root_cause"]
            for case in faults
            if case["fault"] not in ("return", "exception") and _overlaps(window.start_ms, window_ms, case, False)
        }
        hit = np.array([key[1] in at_fault for key in window.keys], dtype=np.bool_)
        asked = np.ones(len(hit), dtype=np.bool_) if is_free else hit
        if asked.any():
            scores = scores_of(calibration, sample, judge(weights, sample))
            ranked.add(_taken(scores, asked), hit[asked])
    return ranked.figures()


def _taken(scores: EdgeScores, rows: Mask) -> EdgeScores:
    return EdgeScores(*(getattr(scores, name)[rows] for name in EdgeScores.__slots__))


def darpa(folder: Path, seeds: int) -> dict[str, Any]:
    """Return figures over labelled attacks of the later windows."""
    edges = read_edges(folder / "darpa1998_edges_dev.parquet", labelled=True)
    scores = EdgeScorer().score(edges.src, edges.dst, edges.event_ms)
    _, pair = np.unique(np.stack([edges.src, edges.dst]), axis=1, return_inverse=True)
    cells, cell = np.unique(edges.event_ms // DARPA_WINDOW_MS * (1 << 32) + pair, return_inverse=True)
    largest = np.full(len(cells), -np.inf)
    np.maximum.at(largest, cell, scores)
    calls = np.bincount(cell)
    attack = np.zeros(len(cells), dtype=np.int64)
    attack[cell[edges.class_of > 0]] = edges.class_of[edges.class_of > 0]
    any_row = np.zeros(len(cells), dtype=np.int64)
    any_row[cell] = np.arange(len(cell))
    names = np.array([f"{a:016x}" for a in edges.src[any_row]]), np.array([f"{b:016x}" for b in edges.dst[any_row]])
    starts = (cells >> 32) * DARPA_WINDOW_MS
    windows, stream, kinds = [], [], []
    for start in np.unique(starts):
        rows = np.flatnonzero(starts == start)
        rows = rows[np.lexsort((names[1][rows], names[0][rows]))]
        keys = [(str(names[0][row]), str(names[1][row]), -1, -1) for row in rows]
        unknown = np.full(len(rows), -1, dtype=np.int64)
        windows.append(window_of(int(start), keys, calls[rows], unknown, unknown, unknown, unknown))
        stream.append(largest[rows])
        kinds.append(attack[rows])
    return _darpa_runs(windows, stream, kinds, edges.classes, seeds)


def _darpa_runs(
    windows: list[WindowEdges],
    stream: list[npt.NDArray[np.float64]],
    kinds: list[Ints],
    classes: list[str],
    seeds: int,
) -> dict[str, Any]:
    training = training_module()
    history = GraphHistory()
    samples = [history.take(window) for window in windows]
    teach, stop = (int(len(samples) * share) for share in DARPA_SHARES)
    is_flood = np.array([name in FLOODS for name in classes])
    runs: dict[str, list[dict[str, Figures]]] = {"all attacks": [], "without floods": [], "new edges, no floods": []}
    seconds, figures = [], []
    for seed in range(seeds):
        begin = time.process_time()
        trained = training.train(samples[5:teach], samples[teach:stop], training.TrainingParams(seed=seed), "cpu")
        seconds.append(time.process_time() - begin)
        figures.append(trained.scores | {"epochs": trained.epochs, "best_epoch": trained.best_epoch})
        print(f"darpa, seed {seed}: {figures[-1]}, {seconds[-1]:.1f} s", file=sys.stderr)
        calibration = _with_stream(trained.weights, samples[teach:stop], np.concatenate(stream[teach:stop]))
        ranked = {name: Ranked() for name in runs}
        for sample, one, kind in zip(samples[stop:], stream[stop:], kinds[stop:], strict=True):
            scores = scores_of(calibration, sample, judge(trained.weights, sample))
            statistical = surprise(one, calibration.statistical)
            scores = EdgeScores(statistical, scores.graph, statistical + scores.graph, scores.link, scores.signals)
            kept = ~is_flood[kind]
            ranked["all attacks"].add(scores, kind > 0)
            ranked["without floods"].add(_taken(scores, kept), kind[kept] > 0)
            kept &= sample.is_new
            ranked["new edges, no floods"].add(_taken(scores, kept), kind[kept] > 0)
        for name, one_ranked in ranked.items():
            runs[name].append(one_ranked.figures())
    return {
        "windows": len(samples),
        "edges_per_window": round(float(np.mean([len(one) for one in windows])), 1),
        "graph_edges_per_window": round(float(np.mean([len(one.src) for one in samples])), 1),
        "training_cpu_s": [round(one, 1) for one in seconds],
        "training": figures,
        "kinds": {name: mean_and_deviation(some) for name, some in runs.items()},
    }


def _with_stream(weights: Weights, samples: Sequence[GraphSample], stream: npt.NDArray[np.float64]) -> Calibration:
    judged = [judge(weights, sample, all_links=True) for sample in samples]
    is_new = np.concatenate([sample.is_new for sample in samples])
    found = calibrate(
        np.concatenate([link_surprise(one) for one in judged]),
        np.concatenate([signal_surprise(one, sample) for one, sample in zip(judged, samples, strict=True)]),
        stream,
        is_new,
    )
    # The edge scorer knows novelty itself: its scores are compared with those of all edges.
    everything = calibrate(stream, stream, stream, np.zeros(len(stream), dtype=np.bool_))
    return Calibration(found.link, found.signals, everything.statistical, found.new_share)


def speed(nodes: int = 10_000, edges: int = 100_000, repeats: int = 15) -> dict[str, Any]:
    """Return times of a window of so many nodes and edges, in milliseconds: least and median."""
    generator = np.random.default_rng(1)
    weights: Weights = {
        name: np.abs(generator.normal(0, 0.3, shape)).astype(np.float32) + np.float32(0.1)
        for name, shape in shapes().items()
    }
    pairs = np.unique(generator.integers(nodes, size=(edges * 21 // 20, 2)), axis=0)[:edges]
    keys = [(f"service-{a:05}", f"service-{b:05}", 80, 6) for a, b in pairs.tolist()]
    history = GraphHistory()
    figures: dict[str, list[tuple[float, float]]] = {"features": [], "inference": []}
    for number in range(repeats + 6):
        calls = generator.poisson(50, edges) + 1
        window = window_of(number * 60_000, keys, calls, calls * 100, calls * 0, calls * 10, calls * 20)
        begin = time.perf_counter(), time.process_time()
        sample = history.take(window)
        middle = time.perf_counter(), time.process_time()
        judge(weights, sample)
        end = time.perf_counter(), time.process_time()
        if number >= 6:
            figures["features"].append((middle[0] - begin[0], middle[1] - begin[1]))
            figures["inference"].append((end[0] - middle[0], end[1] - middle[1]))
    result: dict[str, Any] = {"nodes": len(sample.nodes), "edges": len(sample.src)}
    for name, times in figures.items():
        for place, clock in enumerate(("clock", "cpu")):
            values = np.array([one[place] for one in times]) * 1_000
            result[f"{name}_{clock}_ms"] = {
                "least": round(float(values.min()), 1),
                "median": round(float(np.median(values)), 1),
            }
    return result


def main(arguments: list[str]) -> dict[str, Any]:
    """Run one part and return its figures."""
    parser = argparse.ArgumentParser(prog="gnn", description=__doc__)
    parser.add_argument("--part", choices=["nezha", "darpa", "speed"], required=True)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--window-s", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.part != "speed":
        training_module().use_threads(1)
    if options.part == "speed":
        result = speed()
    elif options.part == "darpa":
        result = {"darpa": darpa(options.data, options.seeds)}
    else:
        result = nezha(options.data, options.seeds, options.window_s * 1_000)
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024
    result["load_average"] = os.getloadavg()[0]
    if not options.json:
        for name, figures in result.items():
            if isinstance(figures, dict) and "kinds" in figures:
                print(name, {key: value for key, value in figures.items() if key != "kinds"})
                show(figures["kinds"])
            else:
                print(name, figures)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
