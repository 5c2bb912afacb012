"""Applies the numbered SQL of schemas/sql/ and remembers what it applied. The same SQL on a server and in chdb."""

import hashlib
import importlib.resources
import re
from dataclasses import dataclass
from string import Template

from clickhouse_connect.driver import Client

from schemas.errors import ConfigurationError
from schemas.settings import MAX_RETENTION_DAYS

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TTL_DAYS = re.compile(r"toIntervalDay\((\d+)\)")
_TABLE = "schema_migrations"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. ``checksum`` covers its text before placeholders are filled in."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Return 32 hex digits of the text, blind to trailing white space."""
        text = "\n".join(line.rstrip() for line in self.sql.strip().splitlines())
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def statements(self, database: str, retention_days: int) -> list[str]:
        """Return the statements with placeholders filled in."""
        code = "\n".join(line for line in self.sql.splitlines() if not line.lstrip().startswith("--"))
        filled = Template(code).substitute(database=database, retention_days=retention_days)
        return [text for part in re.split(r";[ \t]*(?:\n|$)", filled) if (text := part.strip())]


def load_migrations() -> list[Migration]:
    """Return the migrations shipped with this release, in order.

    Raises:
        ConfigurationError: the files are not numbered 0001, 0002, ... without gaps.
    """
    migrations = []
    for file in sorted(importlib.resources.files("schemas").joinpath("sql").iterdir(), key=lambda entry: entry.name):
        if match := _FILE.fullmatch(file.name):
            migrations.append(Migration(int(match.group(1)), file.name, file.read_text(encoding="utf-8")))
    if [migration.version for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise ConfigurationError(
            "schemas/sql is damaged: its files are not numbered 0001, 0002, ...: install the package again"
        )
    return migrations


def _check_names(database: str, retention_days: int) -> None:
    if not _IDENTIFIER.fullmatch(database):
        raise ConfigurationError(f"clickhouse.database {database!r} must be letters, digits and underscores")
    if not isinstance(retention_days, int) or not 1 <= retention_days <= MAX_RETENTION_DAYS:
        raise ConfigurationError(
            f"clickhouse.retention_days {retention_days!r} must be a whole number of days, 1 to {MAX_RETENTION_DAYS}"
        )


def _applied(client: Client, database: str) -> dict[int, tuple[str, str]]:
    """Return version to (name, checksum); empty where the table does not exist yet."""
    exists = client.query(
        "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {name:String}",
        parameters={"database": database, "name": _TABLE},
    ).result_rows[0][0]
    if not exists:
        return {}
    rows = client.query(
        "SELECT version, name, checksum FROM {database:Identifier}.schema_migrations FINAL ORDER BY version",
        parameters={"database": database},
    ).result_rows
    return {version: (name, checksum) for version, name, checksum in rows}


def _outstanding(applied: dict[int, tuple[str, str]], migrations: list[Migration]) -> list[Migration]:
    known = {migration.version: migration for migration in migrations}
    for version, (name, checksum) in applied.items():
        if version not in known:
            raise ConfigurationError(
                f"the database has {name}, which this release does not know: install the newer release"
            )
        if known[version].checksum != checksum:
            raise ConfigurationError(
                f"{name} was changed after it was applied: restore the file and put the change into a new one"
            )
    return [migration for migration in migrations if migration.version not in applied]


def pending(client: Client, database: str, migrations: list[Migration] | None = None) -> list[str]:
    """Return the names of migrations that `drift migrate` would apply.

    Raises:
        ConfigurationError: an applied file was changed, or the database is of a newer release.
    """
    _check_names(database, 1)
    shipped = load_migrations() if migrations is None else migrations
    return [migration.name for migration in _outstanding(_applied(client, database), shipped)]


def migrate(client: Client, database: str, retention_days: int, migrations: list[Migration] | None = None) -> list[str]:
    """Bring ``database`` up to date and return the names of what was applied; nothing on a second call.

    A migration that was interrupted is run again from its start: its statements are repeatable. Two callers at once
    do the same work twice and end alike. A changed ``retention_days`` is carried into the tables.

    Raises:
        ConfigurationError: a name is not usable, an applied file was changed, or the database is of a newer release.
    """
    _check_names(database, retention_days)
    shipped = load_migrations() if migrations is None else migrations
    outstanding = _outstanding(_applied(client, database), shipped)
    if outstanding:
        client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
        client.command(
            f"CREATE TABLE IF NOT EXISTS {database}.{_TABLE} (version UInt32, name String, checksum String, "
            "applied_at DateTime('UTC') DEFAULT now('UTC')) ENGINE = ReplacingMergeTree ORDER BY version"
        )
    for migration in outstanding:
        for statement in migration.statements(database, retention_days):
            client.command(statement)
        client.insert(
            _TABLE,
            [[migration.version, migration.name, migration.checksum]],
            column_names=["version", "name", "checksum"],
            database=database,
            settings={"async_insert": 0},
        )
    _apply_retention(client, database, retention_days)
    return [migration.name for migration in outstanding]


def _apply_retention(client: Client, database: str, retention_days: int) -> None:
    """Set the retention of tables that were created with another one."""
    tables = client.query(
        "SELECT name, create_table_query FROM system.tables "
        "WHERE database = {database:String} AND engine LIKE '%MergeTree' AND name != {own:String} ORDER BY name",
        parameters={"database": database, "own": _TABLE},
    ).result_rows
    for name, definition in tables:
        match = _TTL_DAYS.search(definition)
        if match and int(match.group(1)) != retention_days and _IDENTIFIER.fullmatch(name):
            client.command(
                f"ALTER TABLE {database}.{name} MODIFY TTL toDateTime(inserted_at) + toIntervalDay({retention_days})"
            )
