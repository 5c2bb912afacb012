"""The network in numpy: what it must be for any weights, and what torch said of stored ones."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.gnn.features import GraphSample
from models.gnn.inference import FOLDS, Singles, embed, fold_of, judge, link_logits, parameter_count, shapes

REFERENCE = Path(__file__).parents[3] / "data" / "gnn_reference.npz"
"""Weights, a graph, and what `models.gnn.graphsage` on torch made of them; written by tests/gnn_reference.py."""


def made_weights(seed: int = 3) -> dict[str, Singles]:
    generator = np.random.default_rng(seed)
    weights = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes().items()}
    return weights | {name: np.abs(weights[name]) + np.float32(0.5) for name in ("node_scale", "edge_scale")}


def made_sample(seed: int = 3, nodes: int = 9, edges: int = 30, present: int = 22) -> GraphSample:
    generator = np.random.default_rng(seed)
    src, dst = generator.integers(nodes, size=(2, edges))
    return GraphSample(
        0,
        generator.normal(size=(nodes, 8)).astype(np.float32),
        src,
        dst,
        generator.normal(size=(edges, 10)).astype(np.float32),
        present,
        np.zeros(present, dtype=np.bool_),
        generator.normal(size=(present, 5)).astype(np.float32),
    )


def test_the_network_is_under_100_thousand_parameters() -> None:
    assert parameter_count() < 100_000


def test_it_says_what_torch_said_of_stored_weights() -> None:
    with np.load(REFERENCE, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files}
    weights = {name: stored[f"weight.{name}"] for name in shapes()}
    src, dst, kept = stored["src"], stored["dst"], stored["kept"]
    embedded = embed(weights, stored["nodes"], stored["edges"], src, dst, kept)
    assert np.allclose(embedded, stored["embedded"], atol=1e-5)
    assert np.allclose(link_logits(weights, embedded, src, dst), stored["logits"], atol=1e-4)
    assert embedded.std() > 0.01 and stored["logits"].std() > 0.01


def test_embeddings_have_unit_length_or_none() -> None:
    sample = made_sample()
    embedded = embed(
        made_weights(), sample.nodes, sample.edges, sample.src, sample.dst, np.ones(len(sample.src), dtype=np.bool_)
    )
    length = np.linalg.norm(embedded, axis=1)
    assert np.all(np.isclose(length, 1, atol=1e-5) | (length == 0))


def test_renumbering_nodes_changes_nothing() -> None:
    sample, weights = made_sample(), made_weights()
    order = np.random.default_rng(0).permutation(len(sample.nodes))
    moved = GraphSample(
        0, sample.nodes[np.argsort(order)], order[sample.src], order[sample.dst], sample.edges, sample.present,
        sample.is_new, sample.deviations,
    )  # fmt: skip
    for one, other in zip(_parts(weights, sample), _parts(weights, moved), strict=True):
        assert np.allclose(one, other, atol=1e-5)


def _parts(weights: dict[str, Singles], sample: GraphSample) -> tuple[Singles, Singles, Singles]:
    judged = judge(weights, sample, all_links=True)
    return judged.logit, judged.mean, judged.log_variance


@pytest.mark.parametrize("row", [0, 5, 21])
def test_an_edge_is_judged_without_its_own_present(row: int) -> None:
    sample, weights = made_sample(), made_weights()
    changed = sample.edges.copy()
    changed[row, 8:] += 5
    other = GraphSample(
        0, sample.nodes, sample.src, sample.dst, changed, sample.present, sample.is_new, sample.deviations
    )
    before, after = judge(weights, sample, all_links=True), judge(weights, other, all_links=True)
    same_fold = fold_of(sample.present) == row % FOLDS
    assert np.array_equal(before.mean[same_fold], after.mean[same_fold])
    assert np.array_equal(before.logit[same_fold], after.logit[same_fold])
    assert not np.array_equal(before.mean[~same_fold], after.mean[~same_fold])


def test_whether_two_ends_talk_is_asked_of_new_edges_alone() -> None:
    sample, weights = made_sample(), made_weights()
    is_new = np.arange(sample.present) % 5 == 0
    asked = judge(weights, replace(sample, is_new=is_new)).logit
    assert np.array_equal(np.isnan(asked), ~is_new)
    assert np.allclose(asked[is_new], judge(weights, sample, all_links=True).logit[is_new], atol=1e-6)


def test_a_window_without_edges_is_judged_to_nothing() -> None:
    sample = made_sample(nodes=1, edges=0, present=0)
    assert judge(made_weights(), sample).logit.shape == (0,)


def test_windows_are_judged_where_torch_is_not_installed() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['torch_geometric'] = None\n"
        "from models.gnn import calibration, checkpoint, comparison, fitting, inference, injection\n"
        "from models.gnn.features import GraphHistory\n"
        "from tests.gnn_windows import made_windows\n"
        "import numpy as np\n"
        "weights = {n: np.full(s, 0.5, dtype=np.float32) for n, s in inference.shapes().items()}\n"
        "samples = fitting.samples_of(made_windows(30), GraphHistory())\n"
        "fitting.calibration_of(weights, samples); print(len(samples))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "25", done.stderr
