"""What `drift migrate` says to a server so that a reader sees one tenant, and what it does where it may not."""

import hashlib
import re
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from pydantic import SecretStr, ValidationError

from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings
from schemas.tables import TABLES, TENANT_SETTING, VIEWS
from streams.reader_access import Readables, apply_reader_access, policy_statements, user_statements

PASSWORD = "correct horse battery"
READABLES = Readables(tuple(table.name for table in TABLES), (*VIEWS, "schema_migrations"))


class FakeServer:
    """A server that takes statements; ``refuses``: a pattern of those it does not, and the code."""

    def __init__(self, refuses: str = "", code: int = 497) -> None:
        self.said: list[str] = []
        self.server_settings = {"use_query_cache": SimpleNamespace(), "use_query_condition_cache": SimpleNamespace()}
        self._refuses, self._code = refuses, code

    def _take(self, statement: str) -> None:
        if self._refuses and re.search(self._refuses, statement):
            raise DatabaseError(f"Code: {self._code}. DB::Exception: no")
        self.said.append(statement)

    def command(self, statement: str) -> None:
        self._take(statement)

    def query(self, statement: str, parameters: Any = None) -> Any:
        self._take(statement)
        tables = [(name, False, True) for name in READABLES.of_tenants]
        rows = [*tables, *[(name, True, True) for name in VIEWS], ("schema_migrations", False, False)]
        return SimpleNamespace(result_rows=[*rows, ("odd`name", False, True)] if "system.tables" in statement else [])


def settings(**changes: Any) -> ClickHouseSettings:
    return ClickHouseSettings(dsn=SecretStr("http://writer:secret@ch:8123"), **changes)


def apply(server: FakeServer, **changes: Any) -> Any:
    return apply_reader_access(server, settings(**changes))  # type: ignore[arg-type]


def test_each_table_of_tenants_has_both_policies_before_anybody_may_read_it() -> None:
    statements = policy_statements("drift", READABLES)
    for table in TABLES:
        [restrictive] = [i for i, s in enumerate(statements) if f"ON drift.{table.name} " in s and "RESTRICTIVE" in s]
        [permissive] = [i for i, s in enumerate(statements) if f"ON drift.{table.name} " in s and "PERMISSIVE" in s]
        grant = statements.index(f"GRANT SELECT ON drift.{table.name} TO drift_reader")
        assert f"USING tenant = getSetting('{TENANT_SETTING}') AS RESTRICTIVE" in statements[restrictive]
        assert restrictive < permissive < grant
    granted = {s.split()[3] for s in statements if s.startswith("GRANT")}
    assert granted == {f"drift.{name}" for name in READABLES.of_tenants + READABLES.others}
    assert not any("INSERT" in s or "ALL" in s.split() or "*" in s for s in statements)


def test_the_password_is_in_no_statement() -> None:
    statements = user_statements("drift", "drift_api", PASSWORD, "AB12")
    digest = hashlib.sha256(f"{PASSWORD}AB12".encode()).hexdigest().upper()
    assert not any(PASSWORD in s for s in statements)
    assert all(digest in s for s in statements[:2]) and "readonly = 2" in statements[0]
    assert statements[2] == "GRANT drift_reader TO drift_api"


def test_a_server_gets_role_policies_and_user() -> None:
    server = FakeServer()
    access = apply(server, reader_password=SecretStr(PASSWORD))
    assert (access.tables, access.user, access.skipped) == (len(TABLES), "drift_api", "")
    assert "ALTER ROLE drift_reader SETTINGS use_query_cache = 0 READONLY, use_query_condition_cache = 0 READONLY" in (
        server.said
    )
    assert not any("odd" in s for s in server.said)
    salts = {match[1] for s in server.said if (match := re.search(r"SALT '(\w+)'", s))}
    assert len(salts) == 1 and len(salts.pop()) == 32


def test_without_a_password_no_user_is_made() -> None:
    server = FakeServer()
    assert apply(server).user == ""
    assert not any("USER" in s.split()[:2] for s in server.said)


def test_an_embedded_engine_is_skipped() -> None:
    access = apply_reader_access(None, ClickHouseSettings(dsn=SecretStr("chdb:///x")))  # type: ignore[arg-type]
    assert "embedded" in access.skipped and access.is_expected


@pytest.mark.parametrize(
    ("refuses", "code", "says"),
    [
        ("^CREATE ROLE", 497, "ACCESS MANAGEMENT"),
        ("^CREATE ROLE", 514, "ACCESS MANAGEMENT"),
        ("^GRANT", 497, "ACCESS MANAGEMENT"),
        (TENANT_SETTING, 115, "custom_settings_prefixes"),
    ],
)
def test_a_server_that_refuses_is_told_of_and_with_a_password_it_is_an_error(
    refuses: str, code: int, says: str
) -> None:
    access = apply(FakeServer(refuses, code))
    assert says in access.skipped and not access.is_expected
    with pytest.raises(ConfigurationError, match=says) as caught:
        apply(FakeServer(refuses, code), reader_password=SecretStr(PASSWORD))
    assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


def test_another_error_is_not_taken_for_a_missing_right() -> None:
    with pytest.raises(DatabaseError):
        apply(FakeServer("^CREATE ROLE", 62))


@pytest.mark.parametrize("name", ["writer", "default"])
def test_the_reader_has_a_name_of_its_own(name: str) -> None:
    server = FakeServer()
    with pytest.raises(ConfigurationError, match="a name of its own"):
        apply(server, reader_user=name, reader_password=SecretStr(PASSWORD))
    assert server.said == []


@pytest.mark.parametrize("changes", [{"reader_user": "a b"}, {"reader_password": SecretStr("short")}])
def test_names_and_passwords_that_will_not_do(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)
