"""Seeded flows as producers push them: several tenants, both ends reporting, unknown fields, news of every kind."""

import json
from typing import Any

import numpy as np

Chunks = list[tuple[int, list[tuple[bytes, int]]]]
START_MS = 1_763_850_000_000
WINDOW_MS = 10_000
TENANTS = ("acme", "globex", "initech")
SERVICES = ("shop/web", "shop/cart", "shop/pay", "ship", "ext:users", "ext:bank")
NEWS = ("shop/fraud", "ext:paste", "crypto/miner", *SERVICES)


def make_flow(rng: np.random.Generator, time_ms: int, tenant: str, names: tuple[str, ...] = SERVICES) -> dict[str, Any]:
    """Return one flow; every measure is unknown now and then, both directions of bytes or packets at once."""
    src, dst = (str(name) for name in rng.choice(names, 2))
    flow: dict[str, Any] = {"time_ms": time_ms, "src": src, "dst": dst, "tenant": tenant}
    flow["reporter"] = [None, "client", "server"][rng.integers(3)]
    groups = (("errors",), ("denied",), ("bytes_out", "bytes_in"), ("packets_out", "packets_in"))
    for group in groups:
        if rng.random() < 0.6:
            flow |= {name: int(rng.integers(5 if name in ("errors", "denied") else 1 << 20)) for name in group}
    if rng.random() < 0.7:
        flow |= {"calls": int(rng.integers(1, 9)), "latency_us": int(rng.lognormal(8, 2))}
    if len(src) % 2:
        flow |= {"port": 8080, "protocol": "tcp"}
    return flow


def make_flows(seed: int, windows: int, news_from: int, per_window: int = 60) -> list[dict[str, Any]]:
    """Return flows in order of time; from window ``news_from`` on some name what was never seen before."""
    rng = np.random.default_rng(seed)
    flows = []
    for window in range(windows):
        for tenant in TENANTS:
            if (window + len(tenant)) % 5 == 0:
                continue  # a window without traffic does not teach
            for _ in range(int(rng.integers(1, per_window))):
                time_ms = START_MS + window * WINDOW_MS + int(rng.integers(WINDOW_MS))
                is_news = window >= news_from and rng.random() < 0.05
                flow = make_flow(rng, time_ms, tenant, NEWS if is_news else SERVICES)
                if is_news and rng.random() < 0.5:
                    flow |= {"port": int(rng.integers(9000, 9004)), "protocol": "udp"}
                flows.append(flow)
    return sorted(flows, key=lambda flow: flow["time_ms"])


def as_message(rng: np.random.Generator, flows: list[dict[str, Any]]) -> bytes:
    """Spell flows as an array or as NDJSON, now and then with a line that is none."""
    lines = [json.dumps(flow) for flow in flows]
    if len(lines) > 1 and rng.random() < 0.2:
        lines.append('{"time_ms": "now", "src": "shop/web", "dst": "shop/cart"}')
    return ("[" + ", ".join(lines) + "]" if rng.random() < 0.5 else "\n".join(lines) + "\n").encode()


def make_chunks(seed: int, flows: list[dict[str, Any]], partitions: int, disorder_ms: int, size: int = 40) -> Chunks:
    """Deal flows to partitions, out of order by less than ``disorder_ms``, several to a message, cut into chunks."""
    rng = np.random.default_rng(seed)
    shaken = sorted(flows, key=lambda flow: flow["time_ms"] + int(rng.integers(disorder_ms)))
    chunks: Chunks = []
    for start in range(0, len(shaken), size):
        part = shaken[start : start + size]
        partition = int(rng.integers(partitions))
        messages = []
        while part:
            count = int(rng.integers(1, 4))
            messages.append((as_message(rng, part[:count]), 0))
            part = part[count:]
        chunks.append((partition, messages))
    return chunks
