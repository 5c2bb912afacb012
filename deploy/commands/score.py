"""`drift score`: how strange edges of closed windows are to a trained graph model. Without torch."""

import heapq
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from deploy.commands.train import DEFAULT_MODEL
from deploy.commands.window_options import source_of, window_options
from deploy.live_view import progress_bar
from deploy.model_file import read_model
from models.drift.baseline import WARM_UP
from models.gnn.calibration import scores_of
from models.gnn.checkpoint import Checkpoint
from models.gnn.features import GraphHistory, GraphSample
from models.gnn.inference import judge
from models.gnn.windows import WindowEdges
from models.graph.registry import SIGNALS


@click.command(epilog="Example: drift score --model acme.npz --tenant acme --days 1 --top 20")
@window_options
@click.option("--model", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_MODEL, show_default=True)
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, help="Edges to show, the strangest first."
)
@click.option("--json", "as_json", is_flag=True, help="Every edge of every window, one JSON object a line.")
@click.pass_obj
def score(config: Path | None, /, model: Path, top: int, as_json: bool, **options: Any) -> None:
    """Score the edges of closed windows: -log10 of the share of normal edges that are as strange (2: one in 100).

    "statistical": by the edge's own past; "graph": by what its window's graph leaves unexplained; "combined": both.
    """
    checkpoint = read_model(model)
    console = Console(stderr=True)
    with progress_bar(console, "scoring windows") as progress:
        _, _, lane, windows = source_of(options).open(config, progress)
        if lane != checkpoint.card.data.lane:
            learned = checkpoint.card.data
            console.print(
                f"the model was trained on {learned.tenant}, lane {learned.lane}; what is normal here may differ",
                markup=False,
            )
        rows = _scored(checkpoint, windows)
        if as_json:
            for row in rows:
                click.echo(json.dumps(row))
            return
        strangest = heapq.nlargest(
            top, rows, key=lambda row: (row["combined"], row["start_ms"], row["src"], row["dst"])
        )
    for row in strangest:
        click.echo(_line(row))
    if not strangest:
        click.echo(f"no window to score: the first {WARM_UP} only teach what is usual")


def _scored(checkpoint: Checkpoint, windows: Iterator[WindowEdges]) -> Iterator[dict[str, Any]]:
    history = GraphHistory()
    for window in windows:
        sample = history.take(window)
        if history.windows > WARM_UP and sample.present:
            yield from _rows(checkpoint, window, sample)


def _rows(checkpoint: Checkpoint, window: WindowEdges, sample: GraphSample) -> Iterator[dict[str, Any]]:
    judged = judge(checkpoint.weights, sample)
    scores = scores_of(checkpoint.calibration, sample, judged)
    for place, (src, dst, port, protocol) in enumerate(window.keys):
        known = [i for i in range(len(SIGNALS)) if sample.deviations[place, i] == sample.deviations[place, i]]
        yield {
            "start_ms": window.start_ms,
            "src": src,
            "dst": dst,
            "port": port,
            "protocol": protocol,
            "is_new": bool(sample.is_new[place]),
            "statistical": round(float(scores.statistical[place]), 3),
            "graph": round(float(scores.graph[place]), 3),
            "combined": round(float(scores.combined[place]), 3),
            # Observed and predicted deviation of each signal from the edge's usual, in its usual spreads.
            "observed": {SIGNALS[i]: round(float(sample.deviations[place, i]), 2) for i in known},
            "predicted": {SIGNALS[i]: round(float(judged.mean[place, i]), 2) for i in known},
        }


def _line(row: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(row["start_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    what = "new edge" if row["is_new"] else _largest(row)
    scores = f"combined {row['combined']:.1f} (statistical {row['statistical']:.1f}, graph {row['graph']:.1f})"
    return f"{when}  {row['src']} -> {row['dst']}  {scores}  {what}"


def _largest(row: dict[str, Any]) -> str:
    if not row["observed"]:
        return ""
    name = max(row["observed"], key=lambda one: abs(row["observed"][one] - row["predicted"][one]))
    return f"{name}: {row['observed'][name]:+.1f} spreads from usual, {row['predicted'][name]:+.1f} expected"
