"""Speed and size of the graph agent's core: rows folded, closing a large window, bytes of state, restoring.

    python -m tests.bench.graph [--json] [--rows N] [--edges N]

One process, no Kafka: bytes of `tenant-log` in, encoded graph chunks, events and checkpoint files out.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.flow import SIDE_CLIENT, SIDE_SERVER
from schemas.graph import chunk_window, encode_chunk
from schemas.ids import end_position, position_of
from schemas.ocsf import encode_event
from schemas.tenant_log import (
    ACTIVE,
    EdgeIdentity,
    LaneConfig,
    LogRecord,
    Member,
    Progress,
    decode_record,
    encode_record,
    pack_rows,
)
from streams.graph.checkpoints import Checkpoints, FileChunkStore

IntColumn = npt.NDArray[np.int64]

SEED = 20_240_607
SOURCE = "flows#bench"
PARTITIONS = 12
TENANTS = 20
FOLD_EDGES = 10_000
RECORD_ROWS = 7_500
SMALL_ROWS = 200
WINDOW_MS = 60_000
LATENESS_MS = 30_000
ROWS_PER_WINDOW = 250_000  # about 4 thousand flows a second: many more closings a row than at full load
LEARNED_WINDOWS = 11
ROWS_PER_EDGE = 3  # rows of an edge in a window of the closing bench
RESTORED_EDGES = 1_000_000
LANE = LaneConfig("bench", window_ms=WINDOW_MS, lateness_ms=LATENESS_MS, members=(Member(SOURCE, PARTITIONS),))


def make_identities(count: int, tenants: int, rng: np.random.Generator) -> list[EdgeIdentity]:
    """Return distinct edges; a tenant's share follows Zipf's law, about 20 edges start at a service."""
    share = 1 / np.arange(1, tenants + 1)
    tenant_of = np.sort(rng.choice(tenants, size=count, p=share / share.sum()))
    identities = []
    for number, tenant in enumerate(tenant_of.tolist()):
        src = number // 20
        dst = (src * 7 + number % 20 * 31) % max(count // 20, 40)
        name = f"tenant-{tenant:02d}"
        identities.append((name, f"shop-{src % 23}/checkout-{src}", f"shop-{dst % 23}/backend-{dst}", 8_443, 6))
    return identities


@dataclass
class Feed:
    """Writes `tenant-log` as ingest does: records of 12 source partitions in turn, each with its clock."""

    identities: list[EdgeIdentity]
    rng: np.random.Generator
    offset_of: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def record(self, partition: int, edges: IntColumn, first_ms: int, last_ms: int, **changed: IntColumn) -> bytes:
        """Return one encoded record, a row for each of ``edges``; event times are spread over the span, unsorted."""
        count, rng = len(edges), self.rng
        used, codes = np.unique(edges, return_inverse=True)
        start = self.offset_of[partition]
        self.offset_of[partition] += count
        columns: dict[str, IntColumn] = {
            "position": (start + np.arange(count, dtype=np.int64)) << position_of(1, 0).bit_length() - 1,
            "time_ms": rng.integers(first_ms, last_ms, count),
            "edge": codes.astype(np.int64),
            "side": np.where(rng.random(count) < 0.2, SIDE_SERVER, SIDE_CLIENT).astype(np.int64),
            "skewed": np.zeros(count, dtype=np.int64),
            "calls": np.full(count, 5, dtype=np.int64),
            "errors": (rng.random(count) < 0.01).astype(np.int64),
            "bytes_out": rng.integers(200, 4_000, count),
            "bytes_in": rng.integers(200, 60_000, count),
            "latency_us": rng.lognormal(8, 0.3, count).astype(np.int64),
            **changed,
        }
        clocks = tuple((f"node-{host}", last_ms - host) for host in range(3))
        end = end_position(start + count - 1)
        progress = Progress(SOURCE, partition, end_position(start - 1) if start else -1, end, clocks, ACTIVE)
        rows = pack_rows([self.identities[i] for i in used.tolist()], columns)
        return encode_record(LogRecord("bench", last_ms + 50, (progress,), LANE, rows))

    def statement(self, clock_ms: int) -> bytes:
        """Return a statement of all source partitions."""
        clocks = tuple((f"node-{host}", clock_ms - host) for host in range(3))
        progress = tuple(
            Progress(SOURCE, p, at, at, clocks, ACTIVE)
            for p, at in enumerate(end_position(o - 1) if o else -1 for o in self.offset_of)
        )
        return encode_record(LogRecord("bench", clock_ms + 50, progress, LANE))


@dataclass
class Agent:
    """Does with bytes of the log what the graph agent does, less Kafka."""

    machine: Machine = field(default_factory=Machine)
    counts: Output = field(default_factory=Output)
    next_offset: int = 0

    def apply(self, data: bytes) -> Output:
        """Apply one record and encode what it brings about."""
        output = self.machine.apply(self.next_offset, decode_record(data))
        self.next_offset += 1
        encode_output(output)
        self.counts.counts.update(output.counts)
        return output


def encode_output(output: Output) -> int:
    """Encode events and graph chunks as the sink does; return their bytes."""
    size = sum(len(encode_event(event)) for event in output.events)
    for window in output.windows:
        size += sum(len(encode_chunk(chunk)) for chunk in chunk_window(window))
    return size


def bench_fold(rows: int, record_rows: int, seed: int) -> dict[str, float]:
    """Fold ``rows`` rows of 10 thousand edges in records of ``record_rows``; windows close on the way."""
    rng = np.random.default_rng(seed)
    feed = Feed(make_identities(FOLD_EDGES, TENANTS, rng), rng)
    agent = Agent()
    clock_ms = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS
    step_ms = record_rows * PARTITIONS * WINDOW_MS // ROWS_PER_WINDOW
    fed, windows, closing_s, seconds = 0, 0, 0.0, 0.0
    while fed < rows:
        block = []
        for partition in range(PARTITIONS):
            if record_rows <= SMALL_ROWS:
                edges = rng.permutation(FOLD_EDGES)[:record_rows]
            else:
                edges = rng.integers(0, FOLD_EDGES, record_rows)
            block.append(feed.record(partition, edges, clock_ms, clock_ms + max(step_ms, 1)))
            fed += record_rows
        clock_ms += step_ms
        block.append(feed.statement(clock_ms))
        for data in block:
            began_s = time.perf_counter()
            output = agent.apply(data)
            took_s = time.perf_counter() - began_s
            seconds += took_s
            if output.windows:
                closing_s += took_s
                windows += len({window.start_ms for window in output.windows})
    counts = agent.counts.counts
    if counts["on_time"] + counts["late"] != fed or counts["late"]:
        raise AssertionError(f"{fed} rows fed, counted {dict(counts)}")
    return {"rows_per_s": fed / seconds, "windows": windows, "closing_share": closing_s / seconds}


def spread_edges(feed: Feed, edges: IntColumn, start_ms: int, scale: IntColumn) -> Iterator[bytes]:
    """Yield records of one window in which each edge has a few rows; ``scale`` multiplies an edge's latency."""
    numbers = feed.rng.permutation(np.repeat(edges, ROWS_PER_EDGE))
    for turn, first in enumerate(range(0, len(numbers), RECORD_ROWS)):
        part = numbers[first : first + RECORD_ROWS]
        latency = feed.rng.lognormal(8, 0.3, len(part)).astype(np.int64) * scale[part]
        yield feed.record(turn % PARTITIONS, part, start_ms, start_ms + WINDOW_MS, latency_us=latency)


def bench_closing(edges: int, seed: int, folder: Path) -> dict[str, float]:
    """Learn ``edges`` edges of one tenant, then close a window with new, slow and silent edges and store the state."""
    rng = np.random.default_rng(seed)
    fresh = max(1, edges // 5_000)
    feed = Feed(make_identities(edges + fresh, 1, rng), rng)
    agent = Agent()
    steady = np.ones(edges + fresh, dtype=np.int64)
    start_ms = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS
    for _ in range(LEARNED_WINDOWS):
        for data in spread_edges(feed, np.arange(edges), start_ms, steady):
            agent.apply(data)
        start_ms += WINDOW_MS
        agent.apply(feed.statement(start_ms + LATENESS_MS))
    checkpoints = Checkpoints(FileChunkStore(folder), "bench")
    asyncio.run(checkpoints.write(0, agent.machine.offset, 0, list(take(agent.machine))))
    mark_clean(agent.machine)
    slow = np.where(np.arange(edges + fresh) % 1_000 == 0, 20, 1)
    for data in spread_edges(feed, np.arange(fresh, edges + fresh), start_ms, slow):
        agent.apply(data)
    record = decode_record(feed.statement(start_ms + WINDOW_MS + LATENESS_MS))
    began_s = time.perf_counter()
    output = agent.machine.apply(agent.next_offset, record)
    judged_s = time.perf_counter()
    chunk_bytes = encode_output(output)
    encoded_s = time.perf_counter()
    chunks = list(take(agent.machine))
    taken_s = time.perf_counter()
    stored_bytes = asyncio.run(checkpoints.write(0, agent.machine.offset, 0, chunks))
    stored_s = time.perf_counter()
    kinds = {event.kind.value for event in output.events}
    if not {"latency_increase", "rate_drop"} <= kinds or len(output.windows[0].edges) != edges:
        raise AssertionError(f"the closed window is not as planned: {kinds}, {len(output.windows[0].edges)} edges")
    loaded_s = time.perf_counter()
    loaded = asyncio.run(Checkpoints(FileChunkStore(folder), "bench").load(0))
    assert loaded is not None
    restore(loaded[1])
    return {
        "judge_s": judged_s - began_s,
        "encode_s": encoded_s - judged_s,
        "take_s": taken_s - encoded_s,
        "store_s": stored_s - taken_s,
        "close_to_checkpoint_s": stored_s - began_s,
        "restore_s": time.perf_counter() - loaded_s,
        "events": len(output.events),
        "chunk_bytes": chunk_bytes,
        "state_bytes_per_edge": stored_bytes / len(agent.machine.lanes["bench"].registry),
        "memory_bytes_per_edge": memory_bytes(loaded[1]) / len(agent.machine.lanes["bench"].registry),
    }


def memory_bytes(chunks: dict[str, bytes]) -> int:
    """Return the bytes that a restored state machine keeps allocated."""
    tracemalloc.start()
    try:
        machine = restore(chunks)
        size, _ = tracemalloc.get_traced_memory()
        del machine
        return size
    finally:
        tracemalloc.stop()


def bench_restore(edges: int, seed: int, folder: Path) -> dict[str, float]:
    """Store and restore ``edges`` edges of 20 tenants, seen in one closed window."""
    rng = np.random.default_rng(seed)
    feed = Feed(make_identities(edges, TENANTS, rng), rng)
    agent = Agent()
    start_ms = 1_700_000_000_000 // WINDOW_MS * WINDOW_MS
    for turn, first in enumerate(range(0, edges, RECORD_ROWS)):
        numbers = np.arange(first, min(edges, first + RECORD_ROWS))
        data = feed.record(turn % PARTITIONS, numbers, start_ms, start_ms + WINDOW_MS)
        agent.machine.apply(turn, decode_record(data))
    offset = agent.machine.offset + 1
    agent.machine.apply(offset, decode_record(feed.statement(start_ms + WINDOW_MS + LATENESS_MS)))
    numbered = len(agent.machine.lanes["bench"].registry)
    chunks = list(take(agent.machine))
    asyncio.run(Checkpoints(FileChunkStore(folder), "bench").write(0, offset, 0, chunks))
    del agent, chunks
    began_s = time.perf_counter()
    loaded = asyncio.run(Checkpoints(FileChunkStore(folder), "bench").load(0))
    assert loaded is not None
    restore(loaded[1])
    return {"edges": numbered, "restore_s": time.perf_counter() - began_s}


def run(
    rows: int = 1_500_000,
    edges: int = 100_000,
    restored_edges: int = RESTORED_EDGES,
    repeats: int = 3,
    as_json: bool = False,
) -> dict[str, float]:
    """Run every measurement, print a table or JSON, and return the figures (medians of ``repeats`` runs)."""

    def median(runs: list[dict[str, float]], name: str) -> float:
        return statistics.median(run[name] for run in runs)

    large = [bench_fold(rows, RECORD_ROWS, SEED + turn) for turn in range(repeats)]
    small = [bench_fold(max(rows // 4, 1), SMALL_ROWS, SEED + turn) for turn in range(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        closing = [bench_closing(edges, SEED + turn, Path(folder) / str(turn)) for turn in range(repeats)]
        restored = bench_restore(restored_edges, SEED, Path(folder) / "restore")
    result = {
        "rows_per_s": round(median(large, "rows_per_s")),
        "small_rows_per_s": round(median(small, "rows_per_s")),
        "closing_share": round(median(large, "closing_share"), 3),
        **{
            name: round(median(closing, name), 3)
            for name in ("judge_s", "encode_s", "take_s", "store_s", "close_to_checkpoint_s")
        },
        "state_bytes_per_edge": round(median(closing, "state_bytes_per_edge")),
        "memory_bytes_per_edge": round(median(closing, "memory_bytes_per_edge")),
        "restore_edges_per_s": round(restored["edges"] / restored["restore_s"]),
    }
    if not as_json:
        print_table(result, rows, edges, int(restored["edges"]))
    return result


def print_table(result: dict[str, float], rows: int, edges: int, restored_edges: int) -> None:
    """Print the figures in words."""
    closing = " ".join(
        f"{name.removesuffix('_s')} {result[name]:.2f}" for name in ("judge_s", "encode_s", "take_s", "store_s")
    )
    lines = (
        (f"rows folded, {RECORD_ROWS:,} a record ({rows:,} rows)", f"{result['rows_per_s']:,} rows/s"),
        ("  of which closing windows and encoding them", f"{result['closing_share']:.0%} of the time"),
        (f"rows folded, {SMALL_ROWS} distinct edges a record", f"{result['small_rows_per_s']:,} rows/s"),
        (f"closing a window of {edges:,} edges: judging", f"{result['judge_s']:.2f} s"),
        ("  from watermark to checkpointed", f"{result['close_to_checkpoint_s']:.2f} s ({closing})"),
        ("state an edge, as stored", f"{result['state_bytes_per_edge']:,} bytes"),
        ("state an edge, in memory", f"{result['memory_bytes_per_edge']:,} bytes"),
        (f"restoring {restored_edges:,} edges from files", f"{result['restore_edges_per_s']:,} edges/s"),
    )
    for what, figure in lines:
        print(f"{what:52} {figure}")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_500_000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--restored-edges", type=int, default=RESTORED_EDGES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    return run(arguments.rows, arguments.edges, arguments.restored_edges, arguments.repeats, arguments.json)


if __name__ == "__main__":
    measured = main()
    if "--json" in sys.argv:
        print(json.dumps(measured))
