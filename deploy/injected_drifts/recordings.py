"""Reads recorded traces (Nezha, Yu et al. 2023) and keeps what is fault-free; what they lack is made, seeded.

The recordings hold who called whom, when, and how long it took. Ports, bytes and calls to the outside are not in them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.injected_drifts.traffic import Calls, Ints, Mask, Recording
from deploy.rca_datasets.files import find, ints, names_of, read_list, read_table
from deploy.rca_datasets.nezha import AFTER_FAULT_S, BEFORE_FAULT_S, USER
from schemas.errors import ConfigurationError

ENTRY = "ext:users"
PARTNER = "ext:partner.example.com"
"""Made: whom a few services call outside."""
PARTNERED = 3
EVERY = 5
"""Made: each so many-th call of those services' callers goes on to the partner."""
PORT, PARTNER_PORT = 8080, 443
GAP_S = 15.0
"""Silence that ends a stretch of the recording."""
LEAST_S = 20.0
"""Stretches that are shorter say too little of their rate."""
_KEYS = ("system", "day", "inject_ts", "duration_s")
_CALLS = ("ts_us", "src", "dst", "client_us", "trace")


def read_recordings(folder: Path, seed: int) -> list[Recording]:
    """Read the systems that ``nezha_cases.json`` in ``folder`` names, each from ``<system>_calls_<day>.parquet``.

    Raises:
        ConfigurationError: a file or column is missing or cannot be read, or a system has no fault-free traffic.
    """
    cases = [case for file in find(folder, "nezha_cases*.json") for case in read_list(file, _KEYS)]
    found = []
    for system, day in sorted({(str(case["system"]), str(case["day"])) for case in cases}):
        table = read_table(find(folder, f"{system}_calls_{day}.parquet")[0], _CALLS)
        faults = [
            (case["inject_ts"] - BEFORE_FAULT_S, case["inject_ts"] + case["duration_s"] + AFTER_FAULT_S)
            for case in cases
            if (case["system"], case["day"]) == (system, day)
        ]
        found.append(_recording(system, table, faults, np.random.default_rng([seed, 2])))
    return found


def _recording(system: str, table: Any, faults: Sequence[tuple[float, float]], rng: np.random.Generator) -> Recording:
    names, (src, dst) = names_of(table["src"], table["dst"])
    _, (trace,) = names_of(table["trace"])
    time_us = ints(table["ts_us"])
    order = np.lexsort((time_us, trace))
    src, dst, trace, time_us = src[order], dst[order], trace[order], time_us[order]
    latency_us = np.maximum(ints(table["client_us"])[order], 0)
    first = np.flatnonzero(np.diff(trace, prepend=-1))
    began_us = time_us[first]
    stretch = _stretches(began_us / 1e6, faults)
    lengths = np.diff(np.append(first, len(trace)))
    # Traces in the order of their stretch; those within a fault, or of a stretch that is too short, are left out.
    kept = np.flatnonzero(stretch >= 0)
    kept = kept[np.argsort(stretch[kept], kind="stable")]
    if not len(kept):
        raise ConfigurationError(f"{system}: no {LEAST_S:g} s of its calls lie outside of all faults")
    seconds = np.array([np.ptp(began_us[stretch == one]) / 1e6 for one in range(stretch.max() + 1)])
    rows = np.concatenate([np.arange(first[t], first[t] + lengths[t]) for t in kept.tolist()])
    named = [ENTRY if name == USER else name for name in names]
    keys, edge = np.unique(src[rows] * len(names) + dst[rows], return_inverse=True)
    pairs = [(named[key // len(names)], named[key % len(names)]) for key in keys.tolist()]
    since_ms = (time_us[rows] - np.repeat(began_us[kept], lengths[kept])) // 1000
    calls = _with_bytes(since_ms, edge.astype(np.int64), latency_us[rows], len(pairs), rng)
    of_trace = np.repeat(np.arange(len(kept)), lengths[kept])
    edges = [(caller, callee, PORT) for caller, callee in pairs]
    calls, of_trace, edges = _with_partner(calls, of_trace, edges, rng)
    return Recording(
        system,
        tuple(edges),
        calls,
        np.searchsorted(of_trace, np.arange(len(kept) + 1)),
        np.searchsorted(stretch[kept], np.arange(len(seconds) + 1)),
        seconds,
    )


def _stretches(began_s: Any, faults: Sequence[tuple[float, float]]) -> Ints:
    """Return the number of the fault-free stretch each trace began in, -1 where in none. Shape ``(T,)``."""
    calm: Mask = np.ones(len(began_s), dtype=np.bool_)
    for begin, end in faults:
        calm &= (began_s < begin) | (began_s >= end)
    order = np.argsort(began_s, kind="stable")
    is_calm, at_s = calm[order], began_s[order]
    parts = np.cumsum((np.diff(at_s, prepend=at_s[:1]) > GAP_S) | (np.diff(is_calm, prepend=is_calm[:1])))
    stretch = np.full(len(began_s), -1, dtype=np.int64)
    number = 0
    for part in range(int(parts.max()) + 1 if len(parts) else 0):
        members = order[parts == part]
        if calm[members[0]] and np.ptp(began_s[members]) >= LEAST_S:
            stretch[members] = number
            number += 1
    return stretch


def _with_bytes(since_ms: Ints, edge: Ints, latency_us: Ints, edges: int, rng: np.random.Generator) -> Calls:
    """Make bytes: log-normal around a size of the edge's own, 300 B to 3 kB out, 1 kB to 30 kB in."""
    out = np.exp(rng.uniform(np.log(300), np.log(3_000), edges))[edge] * rng.lognormal(0, 0.3, len(edge))
    back = np.exp(rng.uniform(np.log(1_000), np.log(30_000), edges))[edge] * rng.lognormal(0, 0.5, len(edge))
    return Calls(since_ms, edge, np.zeros(len(edge), np.int64), out.astype(np.int64), back.astype(np.int64), latency_us)


def _with_partner(
    calls: Calls, of_trace: Ints, edges: list[tuple[str, str, int]], rng: np.random.Generator
) -> tuple[Calls, Ints, list[tuple[str, str, int]]]:
    """Make calls to the outside: the busiest services that call nobody pass some of their calls on to a partner."""
    callers = {src for src, _, _ in edges}
    load = np.bincount(calls.edge, minlength=len(edges))
    by_load = sorted(range(len(edges)), key=lambda number: (-load[number], edges[number]))
    leaves = list(dict.fromkeys(edges[n][1] for n in by_load if edges[n][1] not in callers))[:PARTNERED]
    parts, traces = [calls], [of_trace]
    for service in leaves:
        into = np.flatnonzero(np.isin(calls.edge, [n for n, edge in enumerate(edges) if edge[1] == service]))
        rows = into[rng.random(len(into)) < 1 / EVERY]
        passed = calls.take(rows)
        parts.append(
            Calls(
                passed.time_ms,
                np.full(len(rows), len(edges)),
                passed.errors,
                passed.bytes_out,
                passed.bytes_in,
                np.maximum(passed.latency_us // 2, 1),
            )
        )
        traces.append(of_trace[rows])
        edges = [*edges, (service, PARTNER, PARTNER_PORT)]
    together, trace = Calls.joined(parts), np.concatenate(traces)
    order = np.argsort(trace, kind="stable")
    return together.take(order), trace[order], edges
