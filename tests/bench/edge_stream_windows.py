"""What the edge scorer says of made attacks, were it fed closed windows: how rare would each be? (docs/adr/0013).

    python -m tests.bench.edge_stream_windows FILE

FILE is a sensor's zeek_conn_rita_*.parquet. Attacks are those of injected_attacks.py. As in closed windows, connections
of a minute between two names are one row, and a row enters with its connections, at most as many as one minute counts.
"""

import argparse
import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from models.drift.edge_stream.parameters import MINUTE_MS, EdgeScorerParams
from models.drift.edge_stream.scorer import EdgeScorer
from tests.bench.injected_attacks import attacks_on
from tests.bench.real_backtests import SENSOR_ADDRESS

SMALL = EdgeScorerParams(rows=1, columns=1 << 12, edge_columns=1 << 14)
LEARNED_MINUTES = 1_440
REAL = -1
_UNANSWERED = frozenset({"S0", "REJ", "RSTOS0", "RSTRH", "SH", "SHR"})

Key = tuple[int, str, str]


def rows_of(connections: Sequence[tuple[int, dict[str, Any]]]) -> dict[Key, tuple[int, set[int]]]:
    """Return by (minute, client, server) how many connections were answered, and of which attacks they are."""
    names: dict[str, str] = {}
    table: dict[Key, tuple[int, set[int]]] = {}
    for label, row in connections:
        if row["conn_state"] in _UNANSWERED:
            continue
        minute = int((row["ts"] + (row["duration"] or 0.0)) // 60)
        client, server = (names.setdefault(row[end], _name_of(row[end])) for end in ("id.orig_h", "id.resp_h"))
        count, labels = table.get((minute, client, server), (0, set()))
        table[minute, client, server] = (count + 1, labels | {label})
    return table


def _name_of(address: str) -> str:
    ip = ipaddress.ip_address(address)
    if address == SENSOR_ADDRESS or not ip.is_global:
        return address
    return str(ipaddress.ip_network((address, 16 if ip.version == 4 else 32), strict=False))


def _hash_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print for each attack in which share of the second day's windows a real edge scores as much."""
    parser = argparse.ArgumentParser(prog="edge_stream_windows", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    rows = pq.read_table(parser.parse_args(arguments).file).to_pylist()
    attacks = attacks_on(rows)
    made = [(number, row) for number, attack in enumerate(attacks) for row in attack.rows]
    table = rows_of([*((REAL, row) for row in rows), *made])
    keys = sorted(table)
    counts = np.array([min(table[key][0], SMALL.minute_cap) for key in keys])
    minutes = np.array([key[0] for key in keys])
    scorer = EdgeScorer(SMALL, use_numba=False)
    src = np.repeat(np.array([_hash_of(client) for _, client, _ in keys], dtype=np.uint64), counts)
    dst = np.repeat(np.array([_hash_of(server) for _, _, server in keys], dtype=np.uint64), counts)
    scores = scorer.score(src, dst, np.repeat(minutes, counts) * MINUTE_MS)
    best = np.maximum.reduceat(scores, np.cumsum(counts) - counts)
    is_real = np.array([table[key][1] == {REAL} for key in keys])
    judged = is_real & (minutes >= minutes.min() + LEARNED_MINUTES)
    windows, place = np.unique(minutes[judged], return_inverse=True)
    loudest = np.full(len(windows), -np.inf)
    np.maximum.at(loudest, place, best[judged])
    print(f"{len(keys):,} edges in {len(np.unique(minutes)):,} windows; state {scorer.state.size_bytes:,} bytes")
    for number, attack in enumerate(attacks):
        mine = np.array([number in table[key][1] for key in keys])
        told = f"{np.mean(loudest >= best[mine].max()):.4f}" if mine.any() else "never answered"
        print(f"   {attack.what:<60} {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
