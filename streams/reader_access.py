"""Row policies and a read-only user on a ClickHouse server, made by `drift migrate`. An embedded engine has neither.

Whoever has the role reads the rows of one tenant: the one that the query's setting `schemas.tables.TENANT_SETTING`
names. A query that names none is refused by the server. Users without the role read as before.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.clickhouse_dsn import connect_arguments, database_of, error_code, is_embedded
from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings
from schemas.tables import TENANT_SETTING, reader_role

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNKNOWN_SETTING = 115
_MAY_NOT = frozenset({495, 497, 514})
"""The user may not manage access, or the server has no storage for what SQL makes (only users.xml)."""
_CACHES = ("use_query_cache", "use_query_condition_cache")
"""They know nothing of row policies: one tenant's filter must not answer another's question."""


@dataclass(frozen=True, slots=True)
class Readables:
    """What a database holds: tables whose rows belong to tenants, and views and tables that need no policy."""

    of_tenants: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReaderAccess:
    """What `apply_reader_access` came to.

    Attributes:
        tables: that have row policies now. user: that may read with them, or empty. skipped: why nothing was made, or
            empty. is_expected: whether that is as it has to be.
    """

    tables: int = 0
    user: str = ""
    skipped: str = ""
    is_expected: bool = True


def own_rows(setting: str) -> str:
    """Return the condition of the policies: rows of the tenant that a setting names; an error where none is named."""
    return f"tenant = getSetting('{setting}')"


def policy_statements(database: str, readables: Readables, settings_known: Sequence[str] = ()) -> list[str]:
    """Return what makes role, policies and grants; repeatable. Grants come last: nobody reads without policies.

    The restrictive policy holds whatever other policies a user has; the permissive one lets the role, and whoever
    migrates, read at all where ``users_without_row_policies_can_read_rows`` is off.
    """
    role = reader_role(database)
    statements = [f"CREATE ROLE IF NOT EXISTS {role}"]
    caches = ", ".join(f"{name} = 0 READONLY" for name in _CACHES if name in settings_known)
    if caches:
        statements.append(f"ALTER ROLE {role} SETTINGS {caches}")
    for table in readables.of_tenants:
        place = f"{database}.{table}"
        statements += [
            f"CREATE ROW POLICY OR REPLACE {role}_tenant ON {place} FOR SELECT "
            f"USING {own_rows(TENANT_SETTING)} AS RESTRICTIVE TO {role}",
            f"CREATE ROW POLICY OR REPLACE {role}_rows ON {place} FOR SELECT "
            f"USING 1 AS PERMISSIVE TO {role}, CURRENT_USER",
        ]
    grants = [f"GRANT SELECT ON {database}.{name} TO {role}" for name in readables.of_tenants + readables.others]
    return statements + grants


def user_statements(database: str, user: str, password: str, salt: str) -> list[str]:
    """Return what makes the reader's user, or gives it a new password. The password itself is in none of them."""
    digest = hashlib.sha256((password + salt).encode()).hexdigest().upper()
    proof = f"IDENTIFIED WITH sha256_hash BY '{digest}' SALT '{salt}'"
    return [
        f"CREATE USER IF NOT EXISTS {user} {proof} SETTINGS readonly = 2",
        f"ALTER USER {user} {proof}",
        f"GRANT {reader_role(database)} TO {user}",
    ]


def apply_reader_access(client: Client, settings: ClickHouseSettings) -> ReaderAccess:
    """Make role, row policies and grants for all tables there are, and the user if its password is set; repeatable.

    Raises:
        ConfigurationError: ``reader_password`` is set, and the user cannot be made, or has the name of another one.
    """
    if is_embedded(settings):
        return ReaderAccess(skipped="the embedded ClickHouse has no users; every query of the API names its tenant")
    password = None if settings.reader_password is None else settings.reader_password.get_secret_value()
    user = settings.reader_user
    if password is not None and user in ("default", connect_arguments(settings)["username"]):
        raise ConfigurationError(
            f"clickhouse.reader_user {user!r} is the user that writes or administers: choose a name of its own"
        )
    database = database_of(settings)
    readables = _readables(client, database)
    statements = policy_statements(database, readables, tuple(client.server_settings))
    if password is not None:
        statements += user_statements(database, user, password, secrets.token_hex(16).upper())
    try:
        client.query(f"SELECT 1 SETTINGS {TENANT_SETTING} = ''")
        for statement in statements:
            client.command(statement)
    except ClickHouseError as error:
        why = _reason(error)
        if why is None:
            raise
        if password is not None:
            raise ConfigurationError(f"the ClickHouse user {user} and its row policies cannot be made: {why}") from None
        return ReaderAccess(skipped=why, is_expected=False)
    return ReaderAccess(len(readables.of_tenants), "" if password is None else user)


def _reason(error: ClickHouseError) -> str | None:
    code = error_code(error)
    if code == _UNKNOWN_SETTING:
        return "add <custom_settings_prefixes>SQL_</custom_settings_prefixes> to the server's configuration"
    if code in _MAY_NOT:
        return "grant the user of clickhouse.dsn ACCESS MANAGEMENT and SELECT WITH GRANT OPTION, and run it again"
    return None


def _readables(client: Client, database: str) -> Readables:
    rows = client.query(
        "SELECT t.name, t.engine = 'View', t.name IN (SELECT table FROM system.columns "
        "WHERE database = {database:String} AND name = 'tenant') "
        "FROM system.tables AS t WHERE t.database = {database:String} ORDER BY t.name",
        parameters={"database": database},
    ).result_rows
    known = [(str(name), bool(is_view), bool(has_tenant)) for name, is_view, has_tenant in rows]
    known = [one for one in known if _IDENTIFIER.fullmatch(one[0])]
    of_tenants = tuple(name for name, is_view, has_tenant in known if has_tenant and not is_view)
    return Readables(of_tenants, tuple(name for name, _, _ in known if name not in of_tenants))
