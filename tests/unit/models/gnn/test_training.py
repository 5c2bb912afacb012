"""Training with torch; skipped, with the reason printed, where the extra `gnn` is not installed."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `gnn` is not installed")
pytest.importorskip("torch_geometric", reason="the extra `gnn` is not installed")

import torch

from models.gnn.features import PAST_FEATURES, GraphHistory
from models.gnn.fitting import Split, samples_of, split_in_time
from models.gnn.graphsage import GraphSage
from models.gnn.inference import FOLDS, Singles, embed, fold_of, judge, shapes
from models.gnn.training import Trained, TrainingParams, train
from tests.gnn_windows import made_windows

torch.set_num_threads(1)
QUICK = TrainingParams(seed=3, max_epochs=30, batch_edges=100, learning_rate=0.01)


@pytest.fixture(scope="module")
def split() -> Split:
    return split_in_time(samples_of(made_windows(90), GraphHistory()))


@pytest.fixture(scope="module")
def trained(split: Split) -> Trained:
    return train(split.training, split.validation, QUICK, "cpu")


def test_the_seed_decides_the_weights(split: Split, trained: Trained) -> None:
    again = train(split.training, split.validation, QUICK, "cpu")
    assert all(np.array_equal(again.weights[name], trained.weights[name]) for name in shapes())
    other = train(split.training, split.validation, TrainingParams(seed=4, max_epochs=1), "cpu")
    assert not np.array_equal(other.weights["self_0"], trained.weights["self_0"])


def test_it_learns_the_load_that_edges_share(trained: Trained) -> None:
    assert trained.scores["signal_nll"] < trained.scores["signal_nll_as_usual"] - 0.05


def test_it_stops_when_later_windows_are_not_predicted_better(split: Split) -> None:
    params = TrainingParams(seed=3, max_epochs=400, patience=2, learning_rate=0.05)
    found = train(split.training, split.validation, params, "cpu")
    assert found.epochs == found.best_epoch + 2 < 400


def test_numpy_says_what_torch_says(split: Split, trained: Trained) -> None:
    sample, weights = split.validation[0], trained.weights
    model = _model_of(weights)
    judged = judge(weights, sample, all_links=True)
    nodes, edges = model.scaled(torch.from_numpy(sample.nodes), torch.from_numpy(sample.edges))
    src, dst = torch.from_numpy(sample.src), torch.from_numpy(sample.dst)
    fold = np.full(len(sample.src), -1)
    fold[: sample.present] = fold_of(sample.present)
    with torch.no_grad():
        for number in range(FOLDS):
            hidden = np.flatnonzero(fold == number)
            kept = torch.from_numpy(fold != number)
            embedded = model(nodes, edges[kept], src[kept], dst[kept])
            mean, log_variance = model.signals(embedded, src[hidden], dst[hidden], edges[hidden, :PAST_FEATURES])
            assert np.allclose(judged.logit[hidden], model.links(embedded, src[hidden], dst[hidden]), atol=1e-4)
            assert np.allclose(judged.mean[hidden], mean, atol=1e-4)
            assert np.allclose(judged.log_variance[hidden], log_variance, atol=1e-4)


def test_numpy_embeds_as_torch_does_on_a_large_graph() -> None:
    generator = np.random.default_rng(8)
    measured = {
        name: np.ones(shape, dtype=np.float32)
        for name, shape in shapes().items()
        if name.startswith(("node_", "edge_"))
    }
    model = GraphSage(measured, torch.Generator().manual_seed(1))
    src, dst = generator.integers(300, size=(2, 2_000))
    nodes = generator.normal(size=(300, 8)).astype(np.float32)
    edges = generator.normal(size=(2_000, 10)).astype(np.float32)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(one) for one in (nodes, edges, src, dst))).numpy()
    found = embed(model.weights(), nodes, edges, src, dst, np.ones(2_000, dtype=np.bool_))
    assert np.allclose(found, expected, atol=1e-5)


def _model_of(weights: dict[str, Singles]) -> GraphSage:
    model = GraphSage(weights, torch.Generator().manual_seed(0))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def test_nothing_is_trained_without_edges(split: Split) -> None:
    with pytest.raises(ValueError, match="no edge with calls"):
        train([], split.validation, QUICK, "cpu")
