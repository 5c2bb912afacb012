"""`drift migrate`: creates and updates the ClickHouse tables."""

from pathlib import Path

import click

from schemas.clickhouse_dsn import database_of
from schemas.settings import load_settings
from schemas.tables import reader_role
from streams.clickhouse import connect
from streams.migrate import migrate as apply_migrations
from streams.reader_access import ReaderAccess, apply_reader_access


@click.command(epilog="Example: DRIFT_CLICKHOUSE__DSN=http://default@127.0.0.1:8123 drift migrate")
@click.pass_obj
def migrate(config: Path | None) -> None:
    """Apply the numbered SQL migrations that are not applied yet; on a server, row policies and the API's user too."""
    settings = load_settings(config).clickhouse
    client, database = connect(settings), database_of(settings)
    applied = apply_migrations(client, database, settings.retention_days)
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply")
    for line in _told(apply_reader_access(client, settings), reader_role(database)):
        click.echo(line)


def _told(access: ReaderAccess, role: str) -> list[str]:
    if access.skipped:
        return [f"row policies {'skipped' if access.is_expected else 'NOT made'}: {access.skipped}"]
    user = f"user {access.user} has it" if access.user else "no user made: clickhouse.reader_password is not set"
    return [f"row policies on {access.tables} tables for role {role}; {user}"]
