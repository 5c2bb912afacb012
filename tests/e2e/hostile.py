"""A tenant that talks to a million services, judged in a process of its own: its memory is nobody else's."""

import gc
import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deploy.commands.backtest import run_backtest
from schemas.graph import MEASURE_INDEX
from streams.log_files import ARROW_ROWS
from streams.replay import ReplayLane

MIB = 1 << 20
CAP = 2_000
EDGES = 1_000_000
KNOWN = 100
CALM_WINDOWS, HOSTILE_WINDOWS = 25, 20
"""Long enough that the calm is learned before the first hostile row is read."""


@dataclass
class Judged:
    """What came of the hostile file.

    Attributes:
        flows, overflow: by tenant, in edges and beyond the cap. largest: edges of a window.
        known_kept: how many of the usual edges windows hold. resident_mib: memory after each window of the victim.
    """

    flows: Counter[str] = field(default_factory=Counter)
    overflow: Counter[str] = field(default_factory=Counter)
    largest: int = 0
    known_kept: set[int] = field(default_factory=set)
    events: int = 0
    resident_mib: list[float] = field(default_factory=list)


def write_hostile(path: Path) -> int:
    """Write Arrow batches: two tenants' usual edges, then one that talks to a million services; return the rows."""
    usual = [(f"web-{n}", f"db-{n}", tenant) for n in range(KNOWN) for tenant in ("victim", "neighbour")]
    schema = pa.schema([("time_ms", pa.int64()), *((name, pa.string()) for name in ("src", "dst", "tenant"))])
    each, rows = EDGES // HOSTILE_WINDOWS, 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for window in range(CALM_WINDOWS + HOSTILE_WINDOWS):
            start_ms = window * 10_000
            columns: list[list[Any]] = [list(column) for column in zip(*usual, strict=True)]
            if window >= CALM_WINDOWS:
                first = (window - CALM_WINDOWS) * each
                columns[0] += ["web-0"] * each
                columns[1] += [f"target/{number:07}" for number in range(first, first + each)]
                columns[2] += ["victim"] * each
            size = len(columns[0])
            times = pa.array(start_ms + np.arange(size) * 9_000 // size)
            batch = pa.record_batch([times, *(pa.array(column) for column in columns)], schema=schema)
            for at in range(0, size, ARROW_ROWS):
                writer.write_batch(batch.slice(at, ARROW_ROWS))
            rows += size
    return rows


def judge_apart(path: Path) -> Judged:
    """Judge a file that `write_hostile` wrote, in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_judge, path).result()


def _judge(path: Path) -> Judged:
    lane = ReplayLane(
        "replay:hostile", 10_000, 1_000, {"learning_windows": 3, "max_edges_per_tenant": CAP}, generation=1
    )
    found = Judged()
    for output in run_backtest(path, "canonical", lane, as_of_ms=time.time_ns() // 1_000_000):
        found.events += len(output.events)
        for window in output.windows:
            found.flows[window.tenant] += int(window.edges.measure("flows").sum())
            found.overflow[window.tenant] += int(window.overflow[MEASURE_INDEX["flows"]])
            found.largest = max(found.largest, len(window.edges))
            edges = zip(window.edges.src, window.edges.dst, strict=True)
            found.known_kept.add(sum(src.startswith("web-") and dst.startswith("db-") for src, dst in edges))
            if window.tenant == "victim":
                found.resident_mib.append(_resident_mib())
    return found


def _resident_mib() -> float:
    """Return the memory this process has now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
