"""`drift bench`: measurements. They live in tests/bench and run from a checkout."""

import importlib
import json
import sys
from typing import Any

import click

from schemas.errors import ConfigurationError

BENCHES = {
    "ingest": ("ingest", "one ingest worker's flows a second, beside aiokafka alone and Faust's idiom"),
    "graph": ("graph", "rows folded, a large window closed, bytes of state, restoring"),
    "e2e": ("e2e", "the whole pipeline's maximum, and the delay of a new edge at half of it"),
    "recovery": ("recovery", "how long a worker takes to have its state back after kill -9"),
    "backpressure": ("backpressure", "producers far faster than the worker: memory, lag, completeness"),
    "batching-transport": ("batching_transport", "messages a second of the transport, beside aiokafka and Faust"),
    "sources": ("sources", "flows a second of each format, beside orjson; what the whole ingest agent costs"),
    "source-files": ("source_files", "DIR: what becomes of each line of producers' files, beside counts by hand"),
    "fuzz": ("fuzz_sources", "mutated records through each format: nothing but a verdict may come out"),
    "pairing": ("pairing", "what bringing halves of calls together costs, a row"),
    "real-backtests": ("real_backtests", "DIR: findings an hour on recorded calls and a sensor's connections"),
    "edge-stream": ("edge_stream", "--data FILE: quality and speed of the edge scorer, beside peers"),
    "edge-stream-windows": ("edge_stream_windows", "FILE: the edge scorer on closed windows of a sensor's connections"),
    "api": ("api", "root cause and blast radius through HTTP on 50, 1,000 and 10,000 services"),
    "gnn": ("gnn", "--part nezha|darpa|speed: the graph model beside the statistical score (extra gnn)"),
    "graph-scores": ("graph_scores", "closed windows of 100 thousand edges through the graph model on the stream"),
    "restarts": ("restarts", "DIR: findings and alerts of made restarts and deployments in resampled traffic"),
    "root-cause": ("root_cause", "--data DIR: quality and speed of ErrorRank, with an ablation"),
}
"""Module in tests/bench, and what it measures."""
_LIST = "\n".join(f"  {name:<19} {what}" for name, (_, what) in BENCHES.items())


@click.command(
    context_settings={"ignore_unknown_options": True, "max_content_width": 120},
    help=f"Measure something; further arguments are the measurement's own (-- --help lists them).\n\n\b\n{_LIST}",
    short_help="Measure ingest, formats, graphs, detection, ...",
    epilog="Example: drift bench ingest --json",
)
@click.argument("what", type=click.Choice(list(BENCHES)), metavar="WHAT")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(what: str, arguments: tuple[str, ...]) -> None:
    """Run a measurement; exits with its status where it has one."""
    try:
        module: Any = importlib.import_module(f"tests.bench.{BENCHES[what][0]}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("tests"):
            raise ConfigurationError("`drift bench` runs from a checkout of the repository: cd there first") from error
        raise
    result = module.main(list(arguments))
    if isinstance(result, dict) and "--json" in arguments:
        json.dump(result, sys.stdout)
        click.echo()
    if isinstance(result, int):
        sys.exit(result)
