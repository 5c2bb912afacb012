"""`drift train`: the graph model of a tenant's lane, from its own closed windows. Needs the extra `gnn`."""

import json
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from deploy.commands.window_options import source_of, window_options
from deploy.live_view import progress_bar
from deploy.model_file import card_path, write_model
from models.gnn.checkpoint import Checkpoint, ModelCard, TrainingData
from models.gnn.features import GraphHistory
from models.gnn.fitting import Split, calibration_of, samples_of, split_in_time
from schemas.errors import ConfigurationError

DEFAULT_MODEL = Path("graph-model.npz")


def training_module() -> Any:
    """Return ``models.gnn.training``.

    Raises:
        ConfigurationError: torch or torch-geometric is not installed.
    """
    try:
        return import_module("models.gnn.training")
    except ImportError as error:
        raise ConfigurationError(
            f"training needs the extra gnn ({error.name} is missing): pip install 'secureguard-drift[gnn]'"
        ) from error


@click.command(epilog="Example: drift train --tenant acme --days 7 --out acme.npz   (stored windows of the last week)")
@window_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_MODEL, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True, help="Decides the weights, on one device.")
@click.option("--epochs", type=click.IntRange(1), default=200, show_default=True, help="At most; stops early.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the processor.")
@click.option("--json", "as_json", is_flag=True, help="Print the model card as JSON.")
@click.pass_obj
def train(
    config: Path | None, /, out: Path, seed: int, epochs: int, threads: int, as_json: bool, **options: Any
) -> None:
    """Train on closed windows, without labels: which services talk, and how an edge's signals follow the others'.

    The last quarter of the windows does not teach: it stops the training and says what scores are normal. Runs on a GPU
    where there is one.
    """
    training = training_module()
    if not out.parent.is_dir():
        raise ConfigurationError(f"there is no folder {out.parent} to write the model to")
    console = Console(stderr=True)
    split, data = _read(config, options, console)
    training.use_threads(threads)
    device = training.training_device()
    begin = time.perf_counter()
    with progress_bar(console, f"training on {device}") as progress:
        params = training.TrainingParams(seed=seed, max_epochs=epochs)
        trained = training.train(split.training, split.validation, params, device, progress)
    card = ModelCard(
        data=data,
        seed=seed,
        epochs=trained.epochs,
        best_epoch=trained.best_epoch,
        seconds=round(time.perf_counter() - begin, 1),
        device=trained.device,
        scores=trained.scores,
        versions=training.versions() | {"secureguard-drift": version("secureguard-drift")},
    )
    write_model(out, Checkpoint(card, trained.weights, calibration_of(trained.weights, split.validation)))
    if has_learned_nothing(card.scores):
        console.print(
            "the model predicts later windows no better than expecting everything as usual: "
            "try another --seed, or more windows",
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(card)))
    else:
        _show(card, out)


def has_learned_nothing(scores: dict[str, float]) -> bool:
    """Say whether a model's figures on later windows are no better than those of expecting everything as usual."""
    return scores["signal_nll"] >= scores["signal_nll_as_usual"]


def _read(config: Path | None, options: dict[str, Any], console: Console) -> tuple[Split, TrainingData]:
    history = GraphHistory()
    with progress_bar(console, "reading windows") as progress:
        source, tenant, lane, windows = source_of(options).open(config, progress)
        samples = samples_of(windows, history)
    try:
        split = split_in_time(samples)
    except ValueError as error:
        raise ConfigurationError(f"too little to train on: {error}") from error
    return split, TrainingData(
        source=source,
        tenant=tenant,
        lane=lane,
        windows=history.windows,
        training_windows=len(split.training),
        validation_windows=len(split.validation),
        edges=sum(sample.present for sample in samples),
        from_ms=samples[0].start_ms,
        to_ms=samples[-1].start_ms,
    )


def _show(card: ModelCard, out: Path) -> None:
    data, scores = card.data, card.scores
    click.echo(f"{out}: {card.parameters:,} parameters, card in {card_path(out).name}")
    click.echo(
        f"trained on {data.training_windows:,} windows of {data.tenant} ({data.lane}), stopped by "
        f"{data.validation_windows:,} later ones after {card.epochs} epochs (best: {card.best_epoch}), "
        f"{card.seconds:.1f} s on {card.device}"
    )
    click.echo(
        f"on the later ones: hidden edges against drawn pairs AUC {scores['link_auc']:.3f}; "
        f"signals {scores['signal_nll']:.3f} nats, expecting everything as usual {scores['signal_nll_as_usual']:.3f}"
    )
