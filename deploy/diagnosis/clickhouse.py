"""Asks ClickHouse what `drift doctor` judges. Does I/O, and writes nothing."""

import re
from collections.abc import Callable, Iterable, Mapping

from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy.diagnosis.finding import Finding, ok, or_ok, problem, warning
from deploy.diagnosis.offsets import judge_clock
from schemas.clickhouse_dsn import database_of
from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.migrate import pending
from streams.sinks.faults import describe

TESTED_VERSION = (25, 8)
"""The oldest release that the tests run on."""
LEAST_WINDOW = 100
"""Inserts of a table that must be remembered: a worker repeats those of a few fetches."""
PINNED = ("async_insert", "insert_deduplicate", "insert_deduplication_token", "max_insert_threads", "wait_end_of_query")
"""Settings that every insert carries (streams/sinks/writer.py): the user must be allowed to set them."""
_WINDOW = re.compile(r"\b((?:non_)?replicated_deduplication_window) = (\d+)")


def diagnose_clickhouse(settings: Settings, connect: Callable[[], Client], now_ms: Callable[[], int]) -> list[Finding]:
    """Return findings about the server, its schema, its settings and its clock. Blocking."""
    try:
        database = database_of(settings.clickhouse)
        client = connect()
    except ConfigurationError as error:
        return [problem("ClickHouse", str(error), "then run `drift doctor` again")]
    try:
        findings = [judge_version(str(client.command("SELECT version()")))]
        findings += _migrations(client, database)
        findings += judge_tables(_rows(client, _TABLES, database=database))
        findings += judge_settings(_rows(client, _SETTINGS, names=list(PINNED)))
        before_ms = now_ms()
        theirs_ms = int(str(client.command("SELECT toUnixTimestamp64Milli(now64(3))")))
        clock = judge_clock("clock of ClickHouse", [theirs_ms - (before_ms + now_ms()) // 2])
        return findings if clock is None else [*findings, clock]
    except ClickHouseError as error:
        return [problem("ClickHouse", f"does not answer our questions ({describe(error)})", "grant SELECT on system.*")]
    finally:
        client.close()


_TABLES = (
    "SELECT name, create_table_query FROM system.tables "
    "WHERE database = {database:String} AND engine LIKE '%MergeTree' AND name != 'schema_migrations' ORDER BY name"
)
_SETTINGS = "SELECT name, readonly FROM system.settings WHERE name IN {names:Array(String)}"


def _rows(client: Client, sql: str, **parameters: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in client.query(sql, parameters=parameters).result_rows}


def _migrations(client: Client, database: str) -> list[Finding]:
    check = f"schema {database}"
    try:
        missing = pending(client, database)
    except ConfigurationError as error:
        return [problem(check, str(error), "sinks may refuse rows until then")]
    if missing:
        return [problem(check, f"{', '.join(missing)} not applied", "run `drift migrate`")]
    return [ok(check, "all migrations are applied")]


def judge_version(version: str) -> Finding:
    """Judge the server's version."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < TESTED_VERSION:
        least = ".".join(map(str, TESTED_VERSION))
        return warning("ClickHouse version", f"{version} is older than what is tested", f"install {least} or later")
    return ok("ClickHouse version", version)


def judge_tables(definitions: Mapping[str, str]) -> list[Finding]:
    """Judge whether repeated inserts are recognised (``definitions``: CREATE statement by table)."""
    found = []
    for name, definition in definitions.items():
        is_replicated = "Replicated" in definition
        key = "replicated_deduplication_window" if is_replicated else "non_replicated_deduplication_window"
        windows = dict(_WINDOW.findall(definition))
        window = int(windows.get(key, 10_000 if is_replicated else 0))  # ClickHouse's defaults
        if window < LEAST_WINDOW:
            text = f"{key} is {window}: an insert that is repeated is stored twice until it is merged"
            advice = f"ALTER TABLE {name} MODIFY SETTING {key} = 10000"
            found.append(warning(f"table {name}", text, advice))
    return or_ok(found, "tables", f"{len(definitions)} tables recognise repeated inserts")


def judge_settings(readonly: Mapping[str, str]) -> list[Finding]:
    """Judge whether the user may set what an insert sets (``readonly``: 1 where it may not)."""
    found: Iterable[Finding] = (
        problem(
            "ClickHouse settings",
            f"the user may not change {name}, which every insert sets",
            "remove the constraint from its profile",
        )
        for name, value in sorted(readonly.items())
        if value == "1"
    )
    return or_ok(found, "ClickHouse settings", "inserts may set what they need")
