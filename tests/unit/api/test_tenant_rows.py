"""Each query tells a server its tenant, in the form the server reads; where it reads none, nothing is sent."""

import ast
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from api.tenant_rows import TenantRows, tell_tenant
from schemas.tables import TENANT_SETTING


class FakeServer:
    """Reads the setting ``as_text``, as a literal, or (``None``) not at all."""

    def __init__(self, as_text: bool | None, code: int = 115) -> None:
        self.as_text, self.code = as_text, code
        self.told: list[Any] = []

    def query(self, query: str, parameters: Any = None, settings: Any = None) -> Any:
        given = None if settings is None else settings[TENANT_SETTING]
        if given is not None:
            if self.as_text is None:
                raise DatabaseError(f"Code: {self.code}. DB::Exception: no")
            if not self.as_text:
                if not given.startswith("'"):
                    raise DatabaseError("Code: 536. DB::Exception: Couldn't restore Field from dump")
                given = ast.literal_eval(given)
        self.told.append(given)
        return SimpleNamespace(result_rows=[(given,)])

    def close(self) -> None: ...


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("tenant", ["acme", "o'neil", "back\\slash", "two words", ""])
def test_each_query_names_its_tenant(as_text: bool, tenant: str) -> None:
    server = FakeServer(as_text)
    client = tell_tenant(server)  # type: ignore[arg-type]
    client.query("SELECT 1", parameters={"tenant": tenant})
    client.query("SELECT 2", parameters={"tenant": "other"})
    client.query("SELECT 3", parameters={})
    assert server.told[-3:] == [tenant, "other", None]


@pytest.mark.parametrize("code", [115, 164, 452])
def test_a_server_that_takes_no_name_is_asked_without_one(code: int, caplog: pytest.LogCaptureFixture) -> None:
    server = FakeServer(None, code)
    client = tell_tenant(server)  # type: ignore[arg-type]
    assert not isinstance(client, TenantRows)
    assert "row policies" in caplog.text


def test_a_server_that_is_away_is_not_taken_for_one_that_takes_no_name() -> None:
    server = SimpleNamespace(query=lambda *_, **__: (_ for _ in ()).throw(OperationalError("gone")))
    with pytest.raises(OperationalError):
        tell_tenant(server)  # type: ignore[arg-type]
