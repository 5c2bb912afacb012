"""Has a ClickHouse server know, query by query, whose rows are asked for: its row policies then hide all others."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.clickhouse_dsn import error_code
from schemas.tables import TENANT_SETTING

log = logging.getLogger("api.clickhouse")

_REFUSED = frozenset({115, 164, 452, 472, 536})
"""Unknown to the server, or not this user's to set, or not taken in this form."""
_PROBE = "it's a \\ probe"

Write = Callable[[str], str]


class Queries(Protocol):
    """What the API uses of a client."""

    def query(self, query: str, parameters: dict[str, Any]) -> Any:
        """Run one query."""
        ...

    def raw_query(self, query: str, parameters: dict[str, Any], *, fmt: str) -> bytes:
        """Run one query and return its result in a format of ClickHouse."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class TenantRows:
    """A client that sends each query with the tenant among its parameters; ``write``: the form the server reads."""

    def __init__(self, client: Client, write: Write) -> None:
        self._client, self._write = client, write

    def query(self, query: str, parameters: Mapping[str, Any]) -> Any:
        """Run one query; one that speaks of no tenant is sent as it is."""
        return self._client.query(query, parameters=dict(parameters), settings=self._settings_of(parameters))

    def raw_query(self, query: str, parameters: Mapping[str, Any], *, fmt: str) -> bytes:
        """Run one query and return its result in a format of ClickHouse."""
        settings = self._settings_of(parameters)
        answer: bytes = self._client.raw_query(query, parameters=dict(parameters), settings=settings, fmt=fmt)
        return answer

    def _settings_of(self, parameters: Mapping[str, Any]) -> dict[str, str] | None:
        tenant = parameters.get("tenant")
        return None if tenant is None else {TENANT_SETTING: self._write(tenant)}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()


def tell_tenant(client: Client) -> Queries:
    """Return a client of a server that names each query's tenant, or the client itself where the server takes no name.

    Servers differ in how they read a setting of one's own from a request, as text or as a literal: it is tried.
    """
    for write in (str, quoted):
        try:
            answer = client.query(f"SELECT getSetting('{TENANT_SETTING}')", settings={TENANT_SETTING: write(_PROBE)})
        except ClickHouseError as error:
            if error_code(error) not in _REFUSED:
                raise
            continue
        if answer.result_rows[0][0] == _PROBE:
            return TenantRows(client, write)
    log.warning("ClickHouse takes no %s: row policies, if there are any, will refuse the API", TENANT_SETTING)
    return client


def quoted(text: str) -> str:
    """Return a string literal of ClickHouse."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
