"""A migrated ClickHouse for tests: a server from CLICKHOUSE_DSN, one in Docker, or chdb. First that works.

``CLICKHOUSE_DSN=front`` takes chdb behind HTTP (tests/faults/clickhouse_front.py): the product's ``http://`` branch
without a server. tests/conftest.py loads it. Every test gets an own database, dropped afterwards.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.clickhouse_dsn import place_of
from schemas.settings import ClickHouseSettings
from streams.clickhouse import connect
from streams.migrate import migrate
from tests.builders_clickhouse import ClickHouse
from tests.faults.clickhouse_front import ClickHouseFront

FRONT = "front"
SERVER_IMAGE = "clickhouse/clickhouse-server:25.8"


def _docker_server() -> Any:
    """Start a server in Docker and return ``(container, dsn)``; ``None`` where Docker does not run."""
    try:
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.waiting_utils import wait_for_logs

        container = (
            DockerContainer(SERVER_IMAGE)
            .with_env("CLICKHOUSE_USER", "drift")
            .with_env("CLICKHOUSE_PASSWORD", "drift")
            .with_env("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT", "1")
            .with_exposed_ports(8123)
        )
        container.start()
        wait_for_logs(container, "Ready for connections", timeout=120)
    except Exception as error:  # docker's client raises a dozen kinds; each means that there is no server to be had
        print(f"ClickHouse in Docker not available ({type(error).__name__}): using chdb")
        return None
    return container, f"http://drift:drift@{container.get_container_host_ip()}:{container.get_exposed_port(8123)}"


@pytest.fixture(scope="session")
def clickhouse_home() -> Iterator[ClickHouseSettings]:
    """Settings of the ClickHouse of this test run; chdb allows one folder a process, hence one a session."""
    if os.environ.get("CLICKHOUSE_DSN") == FRONT:
        with (
            tempfile.TemporaryDirectory(prefix="drift-front-", ignore_cleanup_errors=True) as folder,
            ClickHouseFront(Path(folder) / "clickhouse") as front,
        ):
            yield ClickHouseSettings(dsn=front.settings().dsn)
        return
    if dsn := os.environ.get("CLICKHOUSE_DSN"):
        yield ClickHouseSettings(dsn=SecretStr(dsn))
        return
    if server := _docker_server():
        container, dsn = server
        try:
            yield ClickHouseSettings(dsn=SecretStr(dsn))
        finally:
            container.stop()
        return
    with tempfile.TemporaryDirectory(prefix="drift-chdb-", ignore_cleanup_errors=True) as folder:
        yield ClickHouseSettings(dsn=SecretStr(f"chdb://{Path(folder).resolve()}/clickhouse"))


@pytest.fixture
def empty_clickhouse(clickhouse_home: ClickHouseSettings) -> Iterator[ClickHouse]:
    """A client and the name of a database that does not exist yet; dropped afterwards."""
    database = f"drift_test_{uuid.uuid4().hex[:12]}"
    settings = clickhouse_home.model_copy(update={"database": database})
    client = connect(settings)
    try:
        yield ClickHouse(client, settings, database)
    finally:
        client.command(f"DROP DATABASE IF EXISTS {database}")
        client.close()


@pytest.fixture
def clickhouse(empty_clickhouse: ClickHouse) -> ClickHouse:
    """A migrated, empty database of the test's own."""
    print(f"ClickHouse: {place_of(empty_clickhouse.settings)}")
    migrate(empty_clickhouse.client, empty_clickhouse.database, retention_days=90)
    return empty_clickhouse
