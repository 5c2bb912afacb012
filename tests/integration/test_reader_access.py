"""Row policies and the read-only user: their SQL as the engine reads it, and what they hide on a server.

A server is wanted for the latter: ``CLICKHOUSE_DSN=http://user:password@host:8123`` of a user with ACCESS MANAGEMENT,
or Docker. Elsewhere those tests are skipped: chdb has no users.
"""

import uuid
from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from pydantic import SecretStr

from api.clickhouse import open_reader, open_tenant_reader
from schemas.clickhouse_dsn import error_code, is_embedded
from schemas.settings import ApiSettings, ClickHouseSettings, Settings
from schemas.tables import TABLES, VIEWS, reader_role
from streams.migrate import migrate
from streams.reader_access import (
    Readables,
    _readables,
    apply_reader_access,
    policy_statements,
    user_statements,
)
from tests.builders_clickhouse import ClickHouse
from tests.integration.test_api import audit_row, fill, get, ids, insert, serve

PASSWORD = "correct horse battery"
READABLES = Readables(tuple(table.name for table in TABLES), (*VIEWS, "schema_migrations"))


def test_every_statement_is_sql_as_this_engine_reads_it(clickhouse: ClickHouse) -> None:
    statements = policy_statements("drift", READABLES, ("use_query_cache", "use_query_condition_cache"))
    statements += user_statements("drift", "drift_api", PASSWORD, "AB12")
    for statement in statements:
        [(read,)] = clickhouse.rows("SELECT formatQuerySingleLine({s:String})", s=statement)
        assert read.split()[0] == statement.split()[0]
    with pytest.raises(ClickHouseError, match="SYNTAX_ERROR"):
        clickhouse.rows("SELECT formatQuerySingleLine('CREATE ROW POLICY x ON a.b USING')")


def test_every_table_of_the_database_is_found(clickhouse: ClickHouse) -> None:
    """A table of a later migration is not forgotten: what has tenants is asked of the database."""
    clickhouse.client.command(
        f"CREATE TABLE {clickhouse.database}.later (tenant String) ENGINE = MergeTree ORDER BY tenant"
    )
    found = _readables(clickhouse.client, clickhouse.database)
    assert set(found.of_tenants) == {*READABLES.of_tenants, "later"}
    assert set(found.others) == set(READABLES.others)


@pytest.fixture
def reader(clickhouse_home: ClickHouseSettings, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Two tenants' rows on a server, and settings that read them as a user of its own."""
    if is_embedded(clickhouse_home):
        pytest.skip("chdb has no users: set CLICKHOUSE_DSN to a server")
    clickhouse: ClickHouse = request.getfixturevalue("clickhouse")
    for tenant in ("acme", "globex"):
        fill(clickhouse, tenant)
        insert(clickhouse, "audit_log", [audit_row(tenant, 1)])
    user = f"reader_{uuid.uuid4().hex[:12]}"
    store = clickhouse.settings.model_copy(update={"reader_user": user, "reader_password": SecretStr(PASSWORD)})
    access = apply_reader_access(clickhouse.client, clickhouse.settings)
    if not access.is_expected:
        pytest.skip(f"this server makes no policies: {access.skipped}")
    try:
        assert apply_reader_access(clickhouse.client, store).user == user
        yield Settings(clickhouse=store, api=ApiSettings())
    finally:
        clickhouse.client.command(f"DROP USER IF EXISTS {user}")
        role = reader_role(clickhouse.database)
        for place in (f"{clickhouse.database}.{table.name}" for table in TABLES):
            clickhouse.client.command(f"DROP ROW POLICY IF EXISTS {role}_tenant ON {place}")
            clickhouse.client.command(f"DROP ROW POLICY IF EXISTS {role}_rows ON {place}")
        clickhouse.client.command(f"DROP ROLE IF EXISTS {role}")


def test_a_query_without_a_predicate_sees_one_tenant(reader: Settings, clickhouse: ClickHouse) -> None:
    told = open_tenant_reader(reader)
    for name in (*READABLES.of_tenants, *VIEWS):
        everything = {row[0] for row in clickhouse.rows(f"SELECT DISTINCT tenant FROM {{db}}.{name}")}
        for tenant in ("acme", "globex", "nobody"):
            sql = f"SELECT DISTINCT tenant FROM {clickhouse.database}.{name} WHERE {{tenant:String}} != ''"
            rows = told.query(sql, parameters={"tenant": tenant}).result_rows
            assert {row[0] for row in rows} == everything & {tenant}, name
    told.close()


def test_a_query_that_names_no_tenant_is_refused(reader: Settings, clickhouse: ClickHouse) -> None:
    client = open_reader(reader)
    for table in TABLES:
        with pytest.raises(ClickHouseError) as caught:
            client.query(f"SELECT count() FROM {clickhouse.database}.{table.name}")
        assert error_code(caught.value) == 115
    assert client.query(f"SELECT count() FROM {clickhouse.database}.schema_migrations").result_rows[0][0] > 0
    client.close()


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO {db}.services (tenant) VALUES ('x')",
        "DROP TABLE {db}.services",
        "ALTER TABLE {db}.services DELETE WHERE 1",
        "SELECT * FROM file('/etc/hostname', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SET readonly = 0",
        "DROP ROW POLICY {role}_tenant ON {db}.services",
        "GRANT SELECT ON *.* TO {user}",
    ],
)
def test_the_reader_only_reads(reader: Settings, clickhouse: ClickHouse, sql: str) -> None:
    client = open_reader(reader)
    names = {"db": clickhouse.database, "role": reader_role(clickhouse.database), "user": reader.clickhouse.reader_user}
    with pytest.raises(ClickHouseError, match=r"READONLY|ACCESS_DENIED|NOT_ENOUGH_PRIVILEGES"):
        client.command(sql.format(**names))
    client.close()


async def test_the_api_answers_through_the_policies(reader: Settings, clickhouse: ClickHouse) -> None:
    async for client in serve(reader):
        assert (await client.get("/readyz")).status_code == 200
        for tenant in ("acme", "globex"):
            page = await get(client, "/v1/drift-events", tenant)
            assert len(page["events"]) == 5 and {tenant} == {one.split("-")[0] for one in ids(page)}
            ranked = await get(client, "/v1/root-cause", tenant, event_id=f"{tenant}-event-0-2")
            assert ranked["causes"][0]["service"] == "payment"


def test_a_second_migration_and_the_writer_are_as_before(reader: Settings, clickhouse: ClickHouse) -> None:
    apply_reader_access(clickhouse.client, reader.clickhouse)
    assert migrate(clickhouse.client, clickhouse.database, 90) == []
    tenants = clickhouse.rows("SELECT DISTINCT tenant FROM {db}.edges_1m ORDER BY tenant")
    assert tenants == [("acme",), ("globex",)]
