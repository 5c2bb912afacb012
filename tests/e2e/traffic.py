"""A seeded input for the whole pipeline: steady traffic of several tenants, drift of many kinds, bad lines."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.flow import MAX_NAME_BYTES

START_MS = 1_763_850_000_000
WINDOW_MS = 10_000
LATENESS_MS = 5_000
LEARNING_WINDOWS = 12
WINDOWS = 36
TENANTS = ("acme", "globex", "initech", "umbrella")
SERVICES = ("shop/web", "shop/cart", "shop/pay", "shop/ship", "shop/mail")
EDGES = [(src, dst) for src in SERVICES for dst in SERVICES if src < dst]
QUIET_EDGE = ("shop/cart", "shop/mail")
QUIET_FROM, SLOW_AT, DENIED_AT, SCAN_AT = 22, 30, 27, 33
NEWS: tuple[tuple[int, str, str, int], ...] = (
    (14, "shop/web", "shop/web", 8080),  # a new edge between services that are known
    (15, "shop/web", "shop/pay", 9443),  # a new port
    (16, "shop/web", "ext:paste.example", 443),  # a new egress
    (17, "shop/pay", "shop/fraud", 8080),  # a new service
    (18, "crypto/miner", "ext:pool.example", 443),  # a new service with an egress
)


@dataclass(frozen=True)
class Traffic:
    """A file of flows.

    Attributes:
        flows: good records in it. dead: how many records become dead letters, by reason.
    """

    path: Path
    flows: int
    dead: Counter[str]


def _window(rng: np.random.Generator, window: int, tenant: str) -> list[dict[str, Any]]:
    """Return one window's flows of one tenant: calls that the client reports, many of them the server too."""
    calls = []
    for edge in EDGES:
        if edge == QUIET_EDGE and window >= QUIET_FROM:
            continue
        slow = 12 if (edge == EDGES[0] and window >= SLOW_AT) else 1
        calls += [(*edge, 8080, slow * 2_000, 0)] * int(rng.integers(11, 14))
    calls += [(src, dst, port, 2_000, 0) for at, src, dst, port in NEWS if window in (at, at + 1) for _ in range(3)]
    if window == DENIED_AT:
        calls += [("shop/web", "shop/pay", 8080, 2_000, 1)] * 60
    if window == SCAN_AT:
        calls += [("shop/ship", f"hidden/{number}", 22, 2_000, 0) for number in range(25)]
    flows = []
    for src, dst, port, latency_us, denied in calls:
        flow: dict[str, Any] = {
            "time_ms": START_MS + window * WINDOW_MS + int(rng.integers(WINDOW_MS)),
            "src": src,
            "dst": dst,
            "port": port,
            "protocol": "tcp",
            "tenant": tenant,
            "denied": denied,
            "errors": int(rng.random() < 0.02),
            "bytes_out": int(rng.integers(1_000)),
            "bytes_in": int(rng.integers(5_000)),
            "latency_us": latency_us + int(rng.integers(200)),
            "host": f"node-{rng.integers(6)}",
        }
        flows.append(flow | {"reporter": "client"})
        if rng.random() < 0.4:
            flows.append(flow | {"reporter": "server", "latency_us": flow["latency_us"] - 100})
    return flows


def _bad_lines() -> list[tuple[bytes, Counter[str]]]:
    """Return lines that are no flow, or not wholly, and the dead letters that come of each."""
    good: dict[str, Any] = {"time_ms": START_MS, "src": "a", "dst": "b", "tenant": "acme"}

    def line(**changes: Any) -> bytes:
        return json.dumps(good | changes).encode()

    malformed, invalid = Counter({"malformed": 1}), Counter({"invalid-value": 1})
    return [
        (line()[:-9], malformed),
        (line(time_ms="now"), malformed),
        (line(latency_us=float("nan")), malformed),
        (b"\x00\x00\x00\x00\x07" + line(), malformed),
        (b"\x9b\xf0\x28\x8c\x28\xff noise", malformed),
        (b"plain words", malformed),
        (line(port=70_000), invalid),
        (line(src=""), invalid),
        (line(dst="x" * (MAX_NAME_BYTES + 1)), invalid),
        (line(tenant=None), Counter({"unknown-tenant": 1})),
        (b"[]", Counter({"empty": 1})),
        (b"[" + line(calls=0) + b", " + line(calls="many") + b"]", malformed + invalid),
    ]


def write_traffic(path: Path, seed: int) -> Traffic:
    """Write JSON lines, out of order by less than the lateness, some holding several records, with bad ones between."""
    rng = np.random.default_rng(seed)
    flows = [flow for window in range(WINDOWS) for tenant in TENANTS for flow in _window(rng, window, tenant)]
    flows.sort(key=lambda flow: flow["time_ms"] + int(rng.integers(LATENESS_MS)))
    dead: Counter[str] = Counter()
    bad = _bad_lines()
    with path.open("wb") as file:
        at = 0
        while at < len(flows):
            count = int(rng.integers(2, 5)) if rng.random() < 0.1 else 1
            part = flows[at : at + count]
            at += count
            file.write(json.dumps(part[0] if count == 1 else part).encode() + b"\n")
            if rng.random() < 0.02:
                value, reasons = bad[int(rng.integers(len(bad)))]
                file.write(value + b"\n")
                dead += reasons
    return Traffic(path, len(flows), dead)


def as_line(time_ms: int, src: str, dst: str, **changes: Any) -> bytes:
    """Return one flow of one tenant as JSON."""
    flow = {"time_ms": time_ms, "src": src, "dst": dst, "tenant": "acme", "port": 8080, "protocol": "tcp"}
    return json.dumps(flow | changes).encode()
