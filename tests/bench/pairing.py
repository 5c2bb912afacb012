"""What pairing costs: halves of calls folded, beside as many rows that are whole: ``drift bench pairing``."""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from models.graph.machine import Machine
from models.graph.snapshot import take
from schemas.flow import SIDE_CLIENT, SIDE_SERVER
from schemas.ids import end_position, position_of
from schemas.tenant_log import (
    PAIR,
    EdgeIdentity,
    LaneConfig,
    LogRecord,
    Member,
    Progress,
    decode_record,
    encode_record,
    pack_rows,
)

SOURCE = "spans#1"
WINDOW_MS = 60_000
SPANS_PER_S = 100_000
SERVICES = 300
EDGES = 2_000
RECORD_ROWS = 8_000
DELAY_S = 2.0
"""The other half comes so much later at most: exporters send what they have gathered every few seconds."""


def log_of(rows: int, seed: int, is_whole: bool) -> list[bytes]:
    """Return records of ``rows`` rows: halves of calls in the order in which exporters send them, or whole rows."""
    rng = np.random.default_rng(seed)
    calls = rows // 2
    ends = rng.integers(SERVICES, size=(EDGES, 2))
    edge_of = rng.integers(EDGES, size=calls)
    began_ms = np.sort(rng.integers(rows * 1_000 // SPANS_PER_S, size=calls)) + 1_700_000_000_000
    call = np.concatenate([np.arange(calls)] * 2)
    side = np.repeat([SIDE_CLIENT, SIDE_SERVER], calls)
    order = np.argsort(began_ms[call] + rng.integers(int(DELAY_S * 1_000), size=2 * calls), kind="stable")
    call, side = call[order], side[order]
    lane = LaneConfig("bench", window_ms=WINDOW_MS, members=(Member(SOURCE, 1),))
    keys = rng.integers(1 << 62, size=calls)
    log = []
    for start in range(0, len(call), RECORD_ROWS):
        mine, of = call[start : start + RECORD_ROWS], side[start : start + RECORD_ROWS]
        codes: dict[EdgeIdentity, int] = {}
        edge = []
        for number, at in zip(edge_of[mine].tolist(), of.tolist(), strict=True):
            src, dst = ends[number].tolist()
            if is_whole:
                identity = ("acme", f"shop/s{src}", f"shop/s{dst}", 8080, 6)
            elif at == SIDE_CLIENT:
                identity = ("acme", f"shop/s{src}", f"ext:host-{dst}", 8080, 6)
            else:
                identity = ("acme", "ext:unknown", f"shop/s{dst}", -1, 6)
            edge.append(codes.setdefault(identity, len(codes)))
        size = len(mine)
        columns = {
            "position": np.array([position_of(start + n, 0) for n in range(size)]),
            "time_ms": began_ms[mine],
            "edge": np.array(edge),
            "side": of,
            "skewed": np.zeros(size, dtype=np.int64),
            "calls": np.ones(size, dtype=np.int64),
            "errors": np.zeros(size, dtype=np.int64),
            "latency_us": rng.integers(100, 100_000, size=size),
        }
        if not is_whole:
            columns[PAIR] = keys[mine]
        clock = int(began_ms[mine].max())
        progress = Progress(SOURCE, 0, end_position(start - 1), end_position(start + size - 1), (("host", clock),))
        record = LogRecord(
            "bench", clock, (progress,), lane, pack_rows(list(codes), columns), append_time=True, logic=3
        )
        log.append(encode_record(record))
    return log


def fold(log: list[bytes]) -> tuple[float, Machine, dict[str, int]]:
    """Apply a log; return CPU seconds, the machine and rows by outcome."""
    records = [decode_record(data) for data in log]
    machine, counts = Machine(), dict[str, int]()
    began_s = time.process_time()
    for offset, record in enumerate(records):
        for name, count in machine.apply(offset, record).counts.items():
            counts[name] = counts.get(name, 0) + count
    return time.process_time() - began_s, machine, counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="drift bench pairing", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(options.repeats):
        for is_whole in costs:
            spent_s, machine, counts = fold(log_of(options.rows, turn, is_whole))
            costs[is_whole].append(spent_s / options.rows * 1e6)
    whole, halves = (min(costs[is_whole]) for is_whole in (True, False))
    began_s = time.process_time()
    chunks = [chunk for name, chunk in take(machine) if "/halves/" in name and chunk is not None]
    taken_s = time.process_time() - began_s
    print(f"{options.rows:,} rows, {RECORD_ROWS:,} a record; CPU, least of {options.repeats}")
    print(f"whole rows   {whole:6.2f} us a row")
    print(f"halves       {halves:6.2f} us a half: {halves - whole:.2f} more, of which {counts['halves_paired']:,} met")
    print(f"held at the end {len(machine.lanes['bench'].halves):,} that wait; a checkpoint of all that is held takes")
    print(f"{taken_s:.2f} s and {sum(map(len, chunks)):,} bytes in {len(chunks)} chunks")


if __name__ == "__main__":
    main()
