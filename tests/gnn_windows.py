"""Made windows of a small estate for tests of the graph model, with a load that all edges share; and a made model."""

import msgspec
import numpy as np

from models.gnn.calibration import Calibration, calibrate
from models.gnn.checkpoint import Checkpoint, ModelCard, TrainingData
from models.gnn.inference import shapes
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


def made_calibration() -> Calibration:
    """Return what is normal to a made model."""
    generator = np.random.default_rng(1)
    link, signals, statistical = generator.exponential(size=(3, 500))
    return calibrate(link, signals, statistical, np.arange(500) < 9)


def made_checkpoint(**changes: int) -> Checkpoint:
    """Return a model of random weights; ``changes``: to its card."""
    data = TrainingData("a file", "acme", "live", 80, 60, 20, 4_000, 0, 4_800_000)
    card = ModelCard(data, 7, 12, 9, 1.5, "cpu", {"link_auc": 0.9}, {"numpy": "2"})
    generator = np.random.default_rng(2)
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes().items()}
    return Checkpoint(msgspec.structs.replace(card, **changes), weights, made_calibration())
