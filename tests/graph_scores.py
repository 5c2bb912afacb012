"""Builders for tests of the graph model on the stream: a made estate's closed windows, and a folder of models."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from deploy.model_file import write_model
from models.gnn.checkpoint import Checkpoint
from schemas.graph import ClosedWindow, chunk_window, encode_chunk
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, Edge, make_window
from tests.gnn_windows import ESTATE, made_checkpoint


def estate_windows(count: int, seed: int = 1, **changes: Any) -> list[ClosedWindow]:
    """Return ``count`` windows of an estate whose edges share a load; a stranger calls in the ninth."""
    generator = np.random.default_rng(seed)
    windows = []
    for number in range(count):
        load = 100 * generator.lognormal(0.0, 0.4)
        edges: list[Edge] = [
            {
                "src": src,
                "dst": dst,
                "calls": int(generator.poisson(load)) + 1,
                "bytes_out": 500,
                "bytes_out_flows": 1,
                "error_flows": 1,
                "latencies_us": [1_000 * (place + 1), 3_000 * (place + 1)],
            }
            for place, (src, dst) in enumerate(ESTATE)
        ]
        if number == 8:
            edges.append({"src": "stranger", "dst": "store", "calls": 3})
        windows.append(make_window(HOUR_MS + number * MINUTE_MS, edges, **changes))
    return windows


def values_of(windows: Iterable[ClosedWindow]) -> list[bytes]:
    """Return the messages of `graph-windows` that carry the windows, one window after the other."""
    return [encode_chunk(chunk) for window in windows for chunk in chunk_window(window)]


def numbered(values: Sequence[bytes | None], first: int = 0) -> list[tuple[int, bytes | None]]:
    """Return messages with offsets from ``first`` on."""
    return [(first + number, value) for number, value in enumerate(values)]


def model_of(tenant: str, lane: str = "default", **changes: int) -> Checkpoint:
    """Return a model of random weights that was trained on a tenant's lane."""
    made = made_checkpoint(**changes)
    data = msgspec.structs.replace(made.card.data, tenant=tenant, lane=lane)
    return Checkpoint(msgspec.structs.replace(made.card, data=data), made.weights, made.calibration)


def put_model(folder: Path, tenant: str, lane: str = "default", name: str = "", **changes: int) -> Path:
    """Write a tenant's model into a folder."""
    folder.mkdir(exist_ok=True)
    file = folder / (name or f"{tenant}.npz")
    write_model(file, model_of(tenant, lane, **changes))
    return file
