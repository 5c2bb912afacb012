"""Self-supervised training with torch (extra `gnn`): which pairs talk, and how far signals are from the usual. Pure.

A quarter of the edges is hidden from the graph at a time; the network has to tell them from drawn pairs (negative
sampling, half of the ends drawn evenly and half by their edges) and to predict how their signals deviate (Gaussian
negative log likelihood, Nix and Weigend 1994). It stops when later windows are not predicted better any more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.drift.edge_stream.ranking import roc_auc
from models.gnn.features import PAST_FEATURES, REACH, GraphSample
from models.gnn.graphsage import GraphSage
from models.gnn.inference import FOLDS, Singles, fold_of

Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TrainingParams:
    """How to train. More ``windows_per_epoch`` or ``patience`` take longer and may fit closer.

    Attributes:
        batch_edges: windows are taken together until they have so many edges.
        negatives: drawn pairs for each hidden edge.
    """

    seed: int = 7
    max_epochs: int = 200
    patience: int = 10
    windows_per_epoch: int = 512
    batch_edges: int = 2_048
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    negatives: int = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights of the best epoch, how many epochs ran, which was best (from 1), and its figures on later windows."""

    weights: dict[str, Singles]
    epochs: int
    best_epoch: int
    scores: dict[str, float]
    device: str


@dataclass(frozen=True, slots=True)
class _Task:
    """One batch: a graph of kept edges, and questions about hidden edges and drawn pairs, as tensors."""

    nodes: Tensor
    edges: Tensor
    src: Tensor
    dst: Tensor
    pair_src: Tensor
    pair_dst: Tensor
    is_edge: Tensor
    past: Tensor
    deviations: Tensor
    is_known: Tensor


def use_threads(count: int) -> None:
    """Let torch use so many threads of the processor."""
    torch.set_num_threads(count)


def training_device() -> str:
    """Return where a model is trained: on a GPU when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {"torch": str(torch.__version__), "numpy": np.__version__}


def train(
    training: Sequence[GraphSample],
    validation: Sequence[GraphSample],
    params: TrainingParams,
    device: str,
    progress: Progress | None = None,
) -> Trained:
    """Train on windows and stop by later ones. On one device and version of torch, the seed decides the weights.

    Raises:
        ValueError: one of the two has no edge with calls.
    """
    if not any(one.present for one in training) or not any(one.present for one in validation):
        raise ValueError("no edge with calls in the training windows or in the later ones")
    generator = np.random.default_rng(params.seed)
    model = GraphSage(_measured(training), torch.Generator().manual_seed(params.seed)).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    # The same questions about later windows in each epoch: figures of epochs can be compared.
    later = _tasks(validation, np.random.default_rng(params.seed + 1), params, device)
    best: tuple[float, int, dict[str, Singles], dict[str, float]] = (float("inf"), 0, model.weights(), {})
    epoch = 0
    while epoch < params.max_epochs and epoch - best[1] < params.patience:
        epoch += 1
        count = min(params.windows_per_epoch, len(training))
        chosen = generator.choice(len(training), size=count, replace=False)
        model.train()
        for task in _tasks([training[i] for i in chosen.tolist()], generator, params, device):
            loss = sum(_losses(model, task)[:2])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        figures = _figures(model, later)
        if figures["loss"] < best[0]:
            best = (figures["loss"], epoch, model.weights(), figures)
        if progress is not None:
            progress(epoch, params.max_epochs)
    return Trained(best[2], epoch, best[1], best[3], device)


def _measured(samples: Sequence[GraphSample]) -> dict[str, Singles]:
    found: dict[str, Singles] = {}
    for name, columns in (("node", [one.nodes for one in samples]), ("edge", [one.edges for one in samples])):
        every = np.concatenate(columns).astype(np.float64)
        scale = every.std(axis=0)
        found[f"{name}_mean"] = every.mean(axis=0).astype(np.float32)
        found[f"{name}_scale"] = np.where(scale > 1e-3, scale, 1.0).astype(np.float32)
    return found


def _tasks(
    samples: Sequence[GraphSample], generator: np.random.Generator, params: TrainingParams, device: str
) -> list[_Task]:
    tasks, batch, size = [], [], 0
    for place, sample in enumerate(samples):
        batch.append(sample)
        size += len(sample.src)
        if size >= params.batch_edges or place == len(samples) - 1:
            tasks.append(_task(batch, generator, params, device))
            batch, size = [], 0
    return tasks


def _task(samples: Sequence[GraphSample], generator: np.random.Generator, params: TrainingParams, device: str) -> _Task:
    parts: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _Task.__slots__}
    first = 0
    for sample in samples:
        for name, values in _questions(sample, generator, params.negatives).items():
            parts[name].append(values + first if name in ("src", "dst", "pair_src", "pair_dst") else values)
        first += len(sample.nodes)
    return _Task(**{name: torch.from_numpy(np.concatenate(values)).to(device) for name, values in parts.items()})


def _questions(
    sample: GraphSample, generator: np.random.Generator, negatives: int
) -> dict[str, npt.NDArray[np.generic]]:
    fold = generator.permutation(fold_of(sample.present))
    hidden = np.flatnonzero(fold == generator.integers(FOLDS))
    kept = np.ones(len(sample.src), dtype=np.bool_)
    kept[hidden] = False
    drawn_src, drawn_dst = _drawn(sample, hidden, generator, negatives)
    deviations = sample.deviations[hidden]
    return {
        "nodes": sample.nodes,
        "edges": sample.edges[kept],
        "src": sample.src[kept],
        "dst": sample.dst[kept],
        "pair_src": np.concatenate([sample.src[hidden], drawn_src]),
        "pair_dst": np.concatenate([sample.dst[hidden], drawn_dst]),
        "is_edge": np.repeat(np.array([1.0, 0.0], dtype=np.float32), [len(hidden), len(drawn_src)]),
        "past": sample.edges[hidden, :PAST_FEATURES],
        "deviations": np.nan_to_num(np.clip(deviations, -REACH, REACH)),
        "is_known": ~np.isnan(deviations),
    }


def _drawn(sample: GraphSample, hidden: Ints, generator: np.random.Generator, negatives: int) -> tuple[Ints, Ints]:
    """Draw pairs that are no edges: one end of a hidden edge stays, the other is drawn."""
    src, dst = np.repeat(sample.src[hidden], negatives), np.repeat(sample.dst[hidden], negatives)
    count, nodes = len(src), len(sample.nodes)
    if not count:
        return src, dst
    evenly = generator.integers(nodes, size=count)
    edge = generator.integers(len(sample.src), size=count)
    is_dst, is_even = generator.random(count) < 0.5, generator.random(count) < 0.5
    drawn = np.where(is_even, evenly, np.where(is_dst, sample.dst[edge], sample.src[edge]))
    src, dst = np.where(is_dst, src, drawn), np.where(is_dst, drawn, dst)
    is_none = ~np.isin(src * nodes + dst, sample.src * nodes + sample.dst) & (src != dst)
    return src[is_none], dst[is_none]


def _losses(model: GraphSage, task: _Task) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss over pairs, the one over signals, and the log odds of the pairs."""
    nodes, edges = model.scaled(task.nodes, task.edges)
    embedded = model(nodes, edges, task.src, task.dst)
    logits = model.links(embedded, task.pair_src, task.pair_dst)
    if not len(logits):
        return embedded.sum() * 0, embedded.sum() * 0, logits
    link = binary_cross_entropy_with_logits(logits, task.is_edge)
    hidden = len(task.past)
    past = (task.past - model.edge_mean[:PAST_FEATURES]) / model.edge_scale[:PAST_FEATURES]
    # The hidden edges of every window of the batch come before its drawn pairs: picked by what they are.
    is_edge = task.is_edge > 0
    mean, log_variance = model.signals(embedded, task.pair_src[is_edge], task.pair_dst[is_edge], past)
    likelihood = 0.5 * ((task.deviations - mean).pow(2) * torch.exp(-log_variance) + log_variance)
    known = task.is_known.sum()
    signals = (likelihood * task.is_known).sum() / known.clamp(min=1) if hidden else embedded.sum() * 0
    return link, signals, logits


def _figures(model: GraphSage, tasks: Sequence[_Task]) -> dict[str, float]:
    model.eval()
    link = signals = usual = 0.0
    logits, labels = [], []
    with torch.no_grad():
        for task in tasks:
            of_link, of_signals, odds = _losses(model, task)
            link, signals = link + float(of_link), signals + float(of_signals)
            usual += float((0.5 * task.deviations.pow(2) * task.is_known).sum() / task.is_known.sum().clamp(min=1))
            logits.append(odds.cpu().numpy())
            labels.append(task.is_edge.cpu().numpy())
    count = len(tasks)
    return {
        "loss": round((link + signals) / count, 6),
        "link_loss": round(link / count, 6),
        "signal_nll": round(signals / count, 6),
        "signal_nll_as_usual": round(usual / count, 6),
        "link_auc": round(_auc(np.concatenate(logits), np.concatenate(labels) > 0), 6),
    }


def _auc(scores: npt.NDArray[np.float32], is_edge: npt.NDArray[np.bool_]) -> float:
    found = roc_auc(scores.astype(np.float64), is_edge)
    return 0.5 if found is None else found
