"""The condition of our row policies in the engine's own row filter: over every table, every view and the API's queries.

chdb has no SQL for policies and no settings of one's own, but it reads row filters from users.xml. Those hold for the
whole engine, so this runs in a process of its own; a built-in setting that is free text stands in for ours.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

from schemas.tables import TABLES
from streams.reader_access import own_rows

STAND_IN = "log_comment"
_CHILD = """
import asyncio, sys
import clickhouse_connect
from api.repository import EventFilter, Repository
from schemas.ids import TenantId
from schemas.settings import ClickHouseSettings
from schemas.tables import TABLES, VIEWS
from streams.migrate import migrate
from tests.builders_clickhouse import ClickHouse
from tests.integration.test_api import audit_row, fill, insert

folder = sys.argv[1]
client = clickhouse_connect.get_client(
    interface="chdb", path=folder + "/data", chdb_options={"config-file": folder + "/config.xml"}
)
migrate(client, "drift", 90)
store = ClickHouse(client, ClickHouseSettings(), "drift")
for tenant in ("acme", "globex"):
    fill(store, tenant)
    insert(store, "audit_log", [audit_row(tenant, 1)])
client.command(
    "INSERT INTO drift.edges_1h (tenant, lane, hour, src, dst, first_window, last_window_end) "
    "VALUES ('acme', 'default', 0, 'a', 'b', 0, 0), ('globex', 'default', 0, 'a', 'b', 0, 0)"
)
filled = 0
for name in (*(table.name for table in TABLES), *VIEWS):
    for told in ("", "acme", "globex"):
        client.command(f"SET log_comment = '{told}'")
        seen = {row[0] for row in client.query(f"SELECT DISTINCT tenant FROM drift.{name}").result_rows}
        assert seen <= {told}, (name, told, seen)
        filled += bool(seen)

class Reader:
    async def query(self, sql, parameters):
        return client.query(sql, parameters=dict(parameters))

async def events(told, tenant):
    client.command(f"SET log_comment = '{told}'")
    found = await Repository(Reader(), "drift").events(TenantId(tenant), EventFilter(0, 1 << 42), 100)
    return {event.tenant for event in found}, len(found)

assert asyncio.run(events("acme", "acme")) == ({"acme"}, 5)
assert asyncio.run(events("globex", "acme")) == (set(), 0)
print("seen", filled)
"""


def test_it_hides_the_rows_of_others_in_every_table_view_and_query(tmp_path: Path) -> None:
    filters = "".join(f"<{table.name}><filter>{own_rows(STAND_IN)}</filter></{table.name}>" for table in TABLES)
    (tmp_path / "users.xml").write_text(
        "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default><password></password>"
        "<networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
        f"<databases><drift>{filters}</drift></databases></default></users></clickhouse>"
    )
    (tmp_path / "config.xml").write_text(
        f"<clickhouse><user_directories><users_xml><path>{tmp_path}/users.xml</path></users_xml></user_directories>"
        "</clickhouse>"
    )
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-2_000:]
    # Each of six tables shows its two tenants their rows, and most views do.
    assert int(ended.stdout.split()[-1]) >= 2 * (len(TABLES) + 8), ended.stdout
