"""`drift predict`: what a change would do to the learned service graph, before it is deployed."""

import json
from importlib.metadata import version
from pathlib import Path

import click
import msgspec

from deploy.learned_graph import learned_edges, read_edges
from deploy.manifest_files import read_documents
from deploy.prediction_report import as_markdown, as_sarif, as_text
from models.prediction.manifests import read_manifests
from models.prediction.predict import predict as predict_change
from schemas.errors import ConfigurationError
from schemas.prediction import DeclaredCall, ForbiddenEdge, Location
from schemas.settings import load_settings

RISKY = 1
"""Exit code of a change that is at or over ``--fail-on``; 2 is an error of use, as everywhere."""


@click.command(
    epilog="Example: drift predict deploy/ --tenant acme --output markdown --fail-on 60   (exit code 1 at that risk)"
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--tenant", help="Compare with what is stored of this tenant.")
@click.option(
    "--baseline",
    "baseline_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Compare with this edge list instead: one JSON object a line (src, dst, port, protocol, calls).",
)
@click.option("--days", type=click.IntRange(1, 3650), default=14, show_default=True, help="Of what is stored.")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Forbidden calls, one JSON object a line (name, src, dst, port); names may be globs.",
)
@click.option("--namespace", default="default", show_default=True, help="Of objects that name none.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("drift-data"),
    show_default=True,
    help="Folder of a running `drift run`.",
)
@click.option("--output", type=click.Choice(["text", "markdown", "sarif", "json"]), default="text", show_default=True)
@click.option("--fail-on", type=click.IntRange(0, 101), default=60, show_default=True, help="Risk of exit code 1.")
@click.pass_context
def predict(
    ctx: click.Context,
    files: tuple[Path, ...],
    tenant: str | None,
    baseline_file: Path | None,
    days: int,
    rules_file: Path | None,
    namespace: str,
    data: Path,
    output: str,
    fail_on: int,
) -> None:
    """Compare Kubernetes manifests, or edge lists (.jsonl), in FILES with the learned graph.

    Folders are searched for YAML and JSON. Says which edges the change adds, breaks, shadows, which rules it violates.
    """
    if (tenant is None) == (baseline_file is None):
        raise ConfigurationError("name what to compare with: either --tenant NAME or --baseline FILE")
    if baseline_file is not None:
        baseline = read_edges(baseline_file.read_text(encoding="utf-8").splitlines(), str(baseline_file))
    else:
        baseline = learned_edges(load_settings(ctx.obj), data, tenant or "", days)
    lists = [file for file in files if file.suffix in (".jsonl", ".ndjson")]
    manifests = read_manifests(read_documents([file for file in files if file not in lists]), namespace)
    listed = [call for file in lists for call in _listed(file)]
    report = predict_change(manifests, baseline, listed, _rules(rules_file))
    if output == "json":
        click.echo(json.dumps(msgspec.to_builtins(report)))
    elif output == "sarif":
        click.echo(as_sarif(report, version("secureguard-drift")))
    else:
        click.echo("\n".join(as_markdown(report) if output == "markdown" else as_text(report)))
    ctx.exit(RISKY if report.changes and report.risk >= fail_on else 0)


def _listed(file: Path) -> list[DeclaredCall]:
    lines = file.read_text(encoding="utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    edges = read_edges(lines, str(file))
    return [
        DeclaredCall(edge.src, edge.dst, edge.port, edge.protocol, "listed", Location(str(file), number))
        for number, edge in zip(numbers, edges, strict=True)
    ]


def _rules(file: Path | None) -> list[ForbiddenEdge]:
    if file is None:
        return []
    rules = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rules.append(msgspec.json.decode(line, type=ForbiddenEdge))
            except msgspec.MsgspecError as error:
                raise ConfigurationError(
                    f"{file}, line {number} is no rule ({error}); one JSON object a line is read: "
                    '{"name": "no store from the edge", "src": "edge/*", "dst": "data/*", "port": 5432}'
                ) from error
    return rules
