"""Write tests/data/gnn_reference.npz: `python -m tests.gnn_reference`, where torch is, when the network has changed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.gnn.graphsage import GraphSage
from models.gnn.inference import shapes

SEED = 5
NODES, EDGES = 12, 40


def main() -> None:
    """Draw a graph and weights, ask torch, store all of it."""
    generator = np.random.default_rng(SEED)
    measured = {
        name: (generator.random(shape) + 0.5).astype(np.float32)
        for name, shape in shapes().items()
        if name.startswith(("node_", "edge_"))
    }
    model = GraphSage(measured, torch.Generator().manual_seed(SEED))
    nodes = generator.normal(size=(NODES, 8)).astype(np.float32)
    edges = generator.normal(size=(EDGES, 10)).astype(np.float32)
    src, dst = generator.integers(NODES, size=(2, EDGES))
    kept = generator.random(EDGES) < 0.75
    ends = torch.from_numpy(src), torch.from_numpy(dst)
    with torch.no_grad():
        embedded = model(
            torch.from_numpy(nodes), torch.from_numpy(edges[kept]), *(end[torch.from_numpy(kept)] for end in ends)
        )
        logits = model.links(embedded, *ends)
    weights = {f"weight.{name}": value for name, value in model.weights().items()}
    told = {"embedded": embedded.numpy(), "logits": logits.numpy()}
    graph = {"nodes": nodes, "edges": edges, "src": src, "dst": dst, "kept": kept}
    stored: dict[str, Any] = {**weights, **graph, **told}
    np.savez_compressed(Path(__file__).parent / "data" / "gnn_reference.npz", **stored)


if __name__ == "__main__":
    main()
