"""`drift evaluate gnn`: does the graph model beat the statistical score on one's own traffic? Needs the extra `gnn`."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from deploy.commands.train import training_module
from deploy.commands.window_options import source_of, window_options
from deploy.live_view import progress_bar
from models.gnn.comparison import Figures, compare_injected, mean_and_deviation
from models.gnn.features import GraphHistory
from models.gnn.fitting import calibration_of, samples_of, split_in_time
from models.gnn.windows import WindowEdges
from schemas.errors import ConfigurationError

TEST_SHARE = 0.4


@click.command(epilog="Example: drift evaluate gnn --flows flows.jsonl.gz --window 10s --seeds 5 --json")
@window_options
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions, each with its seed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def gnn(config: Path | None, /, seeds: int, as_json: bool, **options: Any) -> None:
    """Train on the first 60 % of the windows, put seeded drifts into the rest, and compare how well scores rank them.

    A drift is of one edge of one window; all other edges are taken as normal. Means over seeds, +- standard deviation.
    """
    training = training_module()
    console = Console(stderr=True)
    with progress_bar(console, "reading windows") as progress:
        windows = list(source_of(options).open(config, progress)[3])
    runs = []
    with progress_bar(console, "training and judging") as progress:
        for seed in range(seeds):
            runs.append(compare_once(training, windows, [True] * len(windows), seed))
            progress(seed + 1, seeds)
    result = {kind: mean_and_deviation([run[kind] for run in runs]) for kind in runs[0] if all(r[kind] for r in runs)}
    if as_json:
        click.echo(json.dumps({"windows": len(windows), "seeds": seeds, "kinds": result}))
    else:
        show(result)


def compare_once(
    training: Any, windows: list[WindowEdges], is_judged: list[bool], seed: int
) -> dict[str, dict[str, Figures]]:
    """Train on the earlier windows and return figures by kind of drift in the later ones that may be judged.

    Raises:
        ConfigurationError: there are too few windows.
    """
    first = int(len(windows) * (1 - TEST_SHARE))
    history = GraphHistory()
    try:
        split = split_in_time(samples_of(windows[:first], history))
    except ValueError as error:
        raise ConfigurationError(f"too little to train on: {error}") from error
    params = training.TrainingParams(seed=seed)
    trained = training.train(split.training, split.validation, params, training.training_device())
    calibration = calibration_of(trained.weights, split.validation)
    return compare_injected(trained.weights, calibration, history, windows[first:], is_judged[first:], seed)


def show(result: dict[str, dict[str, Figures]]) -> None:
    """Print a table: ROC-AUC and average precision of each score by kind."""
    click.echo(f"{'drift':20}{'score':13}{'ROC-AUC':>16}{'gain':>17}{'avg. precision':>18}{'gain':>17}")
    for kind, scores in result.items():
        for name, figures in scores.items():
            cells = "".join(
                f"  {figures[key]:+.3f} +- {figures[f'{key}_sd']:.3f}" if key.endswith("gain") else
                f"  {figures[key]:.3f} +- {figures[f'{key}_sd']:.3f}"
                for key in ("roc_auc", "roc_auc_gain", "average_precision", "average_precision_gain")
            )  # fmt: skip
            click.echo(f"{kind:20}{name:13}{cells}")
