"""The network in torch, for training alone (extra `gnn`); its weights are those of ``models.gnn.inference.shapes``."""

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from models.gnn.inference import LAYERS, LOG_VARIANCE_REACH, Singles, shapes
from models.graph.registry import SIGNALS

_MEASURED = ("node_mean", "node_scale", "edge_mean", "edge_scale")


class _MeanOfNeighbours(MessagePassing):
    """The mean of what neighbours and the edges to them send; 0 where there are none."""

    def __init__(self) -> None:
        super().__init__(aggr="mean")

    def forward(self, state: Tensor, sent_by_edges: Tensor, edge_index: Tensor) -> Tensor:
        """Return ``(N, H)``. Shapes: state ``(N, H)``, sent_by_edges ``(E, H)``, edge_index ``(2, E)``, from, to."""
        return self.propagate(edge_index, state=state, sent_by_edges=sent_by_edges, size=(len(state), len(state)))

    def message(self, state_j: Tensor, sent_by_edges: Tensor) -> Tensor:
        """Send the neighbour's state and the edge's features, both already weighed."""
        return state_j + sent_by_edges


class GraphSage(nn.Module):
    """Embeds nodes and judges edges; see ``models.gnn.inference`` for what and after whom."""

    def __init__(self, measured: dict[str, Singles], generator: torch.Generator) -> None:
        """Start from seeded weights. ``measured``: means and scales of the features."""
        super().__init__()
        self._mean_of_neighbours = _MeanOfNeighbours()
        for name, shape in shapes().items():
            if name in _MEASURED:
                self.register_buffer(name, torch.from_numpy(measured[name].astype(np.float32)))
            elif len(shape) == 1:
                self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
            else:
                # Glorot and Bengio 2010, equation 16.
                reach = (6.0 / sum(shape)) ** 0.5
                start = (torch.rand(shape, generator=generator) * 2 - 1) * reach
                # The prediction starts from "as usual": what the statistical score believes.
                self.register_parameter(name, nn.Parameter(start * (0.1 if name == "signals_out" else 1.0)))

    def scaled(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return features less their mean, in their scale."""
        return (nodes - self.node_mean) / self.node_scale, (edges - self.edge_mean) / self.edge_scale

    def forward(self, nodes: Tensor, edges: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        """Embed every node of a graph of scaled features.

        Shapes:
            nodes ``(N, 8)``, edges ``(E, 10)`` float32; src, dst ``(E,)`` int64. returns ``(N, HIDDEN)``, unit rows.
        """
        state = nodes
        forth, back = torch.stack([src, dst]), torch.stack([dst, src])
        for layer in range(LAYERS):
            weight = self._weights_of(layer)
            total = state @ weight["self"] + weight["bias"]
            for side, edge_index in (("callers", forth), ("callees", back)):
                total = total + self._mean_of_neighbours(
                    state @ weight[side], edges @ weight[f"{side}_edge"], edge_index
                )
            total = torch.relu(total)
            state = total / (total.pow(2).sum(1, keepdim=True) + 1e-12).sqrt()
        return state

    def _weights_of(self, layer: int) -> dict[str, Tensor]:
        names = ("self", "bias", "callers", "callees", "callers_edge", "callees_edge")
        return {name: getattr(self, f"{name}_{layer}") for name in names}

    def links(self, embedded: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        """Return the log odds that ``src`` calls ``dst``, ``(E,)``."""
        return self._head("link", embedded, src, dst, embedded[src] * embedded[dst])[:, 0]

    def signals(self, embedded: Tensor, src: Tensor, dst: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of each signal's deviation, ``(E, len(SIGNALS))``; ``past``: scaled."""
        told = self._head("signals", embedded, src, dst, past)
        reach = LOG_VARIANCE_REACH
        return told[:, : len(SIGNALS)], told[:, len(SIGNALS) :].clamp(-reach, reach)

    def _head(self, head: str, embedded: Tensor, src: Tensor, dst: Tensor, beside: Tensor) -> Tensor:
        weight = {name: getattr(self, f"{head}_{name}") for name in ("src", "dst", "beside", "bias", "out", "out_bias")}
        total = embedded[src] @ weight["src"] + embedded[dst] @ weight["dst"] + beside @ weight["beside"]
        return torch.relu(total + weight["bias"]) @ weight["out"] + weight["out_bias"]

    def weights(self) -> dict[str, Singles]:
        """Return copies of all weights for inference without torch."""
        return {name: getattr(self, name).detach().cpu().numpy().astype(np.float32) for name in shapes()}
