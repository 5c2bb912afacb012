"""Made windows of a small estate for tests of the graph model: seeded, with a load that all edges share."""

import numpy as np

from models.gnn.windows import WindowEdges, window_of

ESTATE = (("ext:users", "web"), ("web", "cart"), ("web", "catalogue"), ("cart", "store"), ("catalogue", "store"))


def made_windows(count: int, seed: int = 1) -> list[WindowEdges]:
    """Return ``count`` windows of a minute: calls follow one load, latencies are each edge's own."""
    generator = np.random.default_rng(seed)
    keys = [(src, dst, 80, 6) for src, dst in sorted(ESTATE)]
    usual_us = 1_000 * (1 + np.arange(len(keys)))
    windows = []
    for number in range(count):
        load = 100 * generator.lognormal(0.0, 0.4)
        calls = generator.poisson(load, size=len(keys)) + 1
        p50 = (usual_us * generator.lognormal(0.0, 0.05, size=len(keys))).astype(np.int64)
        errors = generator.binomial(calls, 0.01)
        windows.append(window_of(number * 60_000, list(keys), calls, calls * 500, errors, p50, p50 * 3))
    return windows
