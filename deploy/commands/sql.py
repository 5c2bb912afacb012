"""`drift sql`: one query over the stored windows and events, wherever they are."""

import asyncio
from pathlib import Path

import click

from deploy.sql_console import FILE, ask_running, query_text
from schemas.clickhouse_dsn import is_embedded
from schemas.settings import load_settings
from streams.clickhouse import connect


@click.command(epilog="Example: drift sql 'SELECT kind, count() FROM drift.drift_events FINAL GROUP BY kind'")
@click.argument("query")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("drift-data"),
    show_default=True,
    help="Folder of a running `drift run`.",
)
@click.option(
    "--format", "output_format", default="PrettyCompactMonoBlock", show_default=True, help="ClickHouse format."
)
@click.pass_obj
def sql(config: Path | None, query: str, data: Path, output_format: str) -> None:
    """Run one SQL query: through the instance running on --data, else on the configured ClickHouse."""
    settings = load_settings(config).clickhouse
    if is_embedded(settings) or (data / FILE).exists():
        click.echo(asyncio.run(ask_running(data, query, output_format)), nl=False)
    else:
        click.echo(query_text(connect(settings), query, output_format), nl=False)
