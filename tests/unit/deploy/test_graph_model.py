"""`drift train`, `drift score` and `drift evaluate gnn` on files; what needs torch is skipped where it is not."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from deploy.commands.train import has_learned_nothing
from deploy.model_file import card_path, read_model, write_model
from models.gnn.checkpoint import FORMAT_VERSION, encode
from schemas.errors import ConfigurationError
from tests.command import drift
from tests.gnn_windows import made_checkpoint

SAMPLE = Path(__file__).parents[3] / "deploy" / "sample" / "online-boutique.jsonl.gz"
FLOWS = ("--flows", str(SAMPLE), "--window", "20s", "--lateness", "5s")
needs_torch = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("torch_geometric") is None, reason="the extra `gnn` is not installed"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.npz", made_checkpoint())
    return tmp_path / "model.npz"


def test_every_edge_of_every_window_is_scored_without_torch(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = drift(capsys, monkeypatch, "score", "--model", str(model), *FLOWS, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len({row["start_ms"] for row in rows}) > 30
    assert all(row["combined"] == pytest.approx(row["statistical"] + row["graph"], abs=0.002) for row in rows)
    assert "trained on acme, lane live" in err, "another lane's model is named"
    again = drift(capsys, monkeypatch, "score", "--model", str(model), *FLOWS, "--json")[1]
    assert again == out


def test_the_strangest_come_first(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = drift(capsys, monkeypatch, "score", "--model", str(model), *FLOWS, "--top", "5")[1]
    scores = [float(line.split("combined ")[1].split()[0]) for line in out.splitlines()]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)


def test_a_missing_model_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = drift(capsys, monkeypatch, "score", "--model", str(tmp_path / "none.npz"), *FLOWS)
    assert code == 2 and "there is no model at" in err and len(err.splitlines()) == 1


def test_a_model_of_another_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "old.npz"
    file.write_bytes(encode(made_checkpoint(format_version=FORMAT_VERSION + 1)))
    code, _, err = drift(capsys, monkeypatch, "score", "--model", str(file), *FLOWS)
    assert code == 2 and f"format {FORMAT_VERSION + 1}" in err and len(err.splitlines()) == 1


def test_the_card_stands_beside_the_model(model: Path) -> None:
    card = json.loads(card_path(model).read_text())
    assert card["seed"] == 7 and len(card["node_features"]) == 8 and len(card["edge_features"]) == 10
    assert read_model(model).card == made_checkpoint().card
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.npz", "model.npz.card.json"]


@pytest.mark.parametrize(("signal_nll", "expected"), [(0.434608, True), (0.422603, True), (0.163361, False)])
def test_a_model_that_learned_nothing_is_told_by_the_later_windows(signal_nll: float, expected: bool) -> None:
    assert has_learned_nothing({"signal_nll": signal_nll, "signal_nll_as_usual": 0.422603}) is expected


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write the model"):
        write_model(tmp_path / "no" / "model.npz", made_checkpoint())


def test_training_without_torch_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models.gnn.training", "models.gnn.graphsage"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = drift(capsys, monkeypatch, "train", *FLOWS)
    assert code == 2 and "secureguard-drift[gnn]" in err and len(err.splitlines()) == 1


@needs_torch
def test_a_trained_model_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.npz"
    code, out, err = drift(capsys, monkeypatch, "train", *FLOWS, "--out", str(file), "--epochs", "3", "--json")
    assert code == 0, err
    card = json.loads(out)
    assert card == json.loads(card_path(file).read_text())
    assert card["data"]["training_windows"] > 2 * card["data"]["validation_windows"] > 0
    assert card["parameters"] < 100_000 and card["epochs"] == 3
    assert drift(capsys, monkeypatch, "score", "--model", str(file), *FLOWS)[0] == 0


@needs_torch
def test_too_few_windows_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "model.npz")
    code, _, err = drift(
        capsys, monkeypatch, "train", "--flows", str(SAMPLE), "--window", "5m", "--lateness", "5s", "--out", out
    )
    assert code == 2 and "too little to train on" in err and not Path(out).exists()


@needs_torch
def test_where_to_read_from_must_be_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = drift(capsys, monkeypatch, "train")
    assert code == 2 and "--tenant NAME" in err
