"""`drift bench`: measurements. They live in tests/bench and run from a checkout."""

import importlib
import json
import sys
from typing import Any

import click

from schemas.errors import ConfigurationError


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example: drift bench ingest --json",
)
@click.argument("what", type=click.Choice(["ingest", "graph", "e2e", "recovery", "backpressure", "sources"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(what: str, arguments: tuple[str, ...]) -> None:
    """Measure ingest beside its limits, folding of graphs, the whole pipeline, recovery, or backpressure."""
    try:
        module: Any = importlib.import_module(f"tests.bench.{what}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("tests"):
            raise ConfigurationError("`drift bench` runs from a checkout of the repository: cd there first") from error
        raise
    result = module.main(list(arguments))
    if isinstance(result, dict) and "--json" in arguments:
        json.dump(result, sys.stdout)
        click.echo()
