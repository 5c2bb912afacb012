"""`drift migrate`: creates and updates the ClickHouse tables."""

from pathlib import Path

import click

from schemas.clickhouse_dsn import database_of
from schemas.settings import load_settings
from streams.clickhouse import connect
from streams.migrate import migrate as apply_migrations


@click.command(epilog="Example: DRIFT_CLICKHOUSE__DSN=http://default@127.0.0.1:8123 drift migrate")
@click.pass_obj
def migrate(config: Path | None) -> None:
    """Apply the numbered SQL migrations that are not applied yet."""
    settings = load_settings(config).clickhouse
    applied = apply_migrations(connect(settings), database_of(settings), settings.retention_days)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply")
