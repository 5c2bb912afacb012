"""The front is a ClickHouse to the product, and its faults are faults: stored once whatever happens."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from pydantic import SecretStr
from urllib3 import Timeout

from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings
from streams.clickhouse import connect
from streams.metrics import Metrics
from streams.migrate import migrate
from streams.sinks.rows import graph_rows
from streams.sinks.writer import PartitionWriter, Poison
from tests.builders_clickhouse import HOUR_MS, ClickHouse, make_window, messages_of
from tests.faults.clickhouse_front import ROOT, ClickHouseFront, Fault, FrontClient

DATABASE = "drift"
EDGES = [{"src": f"s{number}", "dst": "t", "calls": number} for number in range(40)]


@pytest.fixture(scope="module")
def running_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseFront]:
    with ClickHouseFront(tmp_path_factory.mktemp("front") / "clickhouse") as front:
        yield front


@pytest.fixture
def front(running_front: ClickHouseFront) -> Iterator[ClickHouseFront]:
    """The module's front, healthy, with an empty, migrated database."""
    running_front.heal()
    client = connect(running_front.settings())
    client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(client, DATABASE, 90)
    client.close()
    yield running_front
    running_front.heal()


def rows_in(front: ClickHouseFront, final: str = "") -> tuple[int, int]:
    """Return rows and calls of `edges_1m`."""
    client = connect(front.settings())
    try:
        found = client.query(f"SELECT count(), sum(calls) FROM {DATABASE}.edges_1m {final}").result_rows[0]
        return int(found[0]), int(found[1])
    finally:
        client.close()


def writer_of(front: ClickHouseFront, sleep: Callable[[float], Any], client: Any = None) -> PartitionWriter:
    async def fail(poison: Poison) -> None:
        raise AssertionError(poison.detail)

    client = client or connect(front.settings())
    return PartitionWriter(client, DATABASE, "graph-windows", 0, graph_rows, fail, Metrics(), sleep=sleep)


def until(condition: Callable[[], bool], deadline_s: float = 300.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end


class Retries:
    """Counts the waits of a writer, which take no time, and heals at the n-th."""

    def __init__(self, heal: Callable[[], object], at: int) -> None:
        self.heal, self.at, self.count = heal, at, 0

    async def __call__(self, _: float) -> None:
        self.count += 1
        if self.count == self.at:
            await asyncio.to_thread(self.heal)


WINDOW = make_window(HOUR_MS, EDGES)
IMPATIENT = Timeout(connect=60, read=1)


def test_the_products_tests_of_clickhouse_pass_over_http() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/integration/test_clickhouse.py"]
    environment = {**os.environ, "CLICKHOUSE_DSN": "front"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1_700, start_new_session=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_drift_migrate_makes_the_database_that_the_dsn_names(front: ClickHouseFront) -> None:
    environment = {**os.environ, "DRIFT_CLICKHOUSE__DSN": f"{front.dsn}/prod"}
    for said in ("applied 0001_tables.sql", "nothing to apply"):
        done = subprocess.run(
            [sys.executable, "-c", "from deploy.cli import main; main()", "migrate"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert said in done.stdout, done.stdout + done.stderr
    client = connect(front.settings())
    assert "edges_1m" in client.query("SHOW TABLES FROM prod").result_columns[0]
    client.close()


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
def test_large_answers_and_inserts_come_through_in_every_compression(front: ClickHouseFront, compress: Any) -> None:
    client = clickhouse_connect.get_client(
        dsn=f"{front.dsn}/{DATABASE}", compress=compress, autogenerate_session_id=False
    )
    assert client.protocol_version == 54405
    assert client.compression == (compress or None)
    client.command("CREATE TABLE t (n UInt64, s LowCardinality(String), a Array(Nullable(Int64))) ENGINE = Memory")
    rows = [[number, f"name {number % 7}", [None, number]] for number in range(300_000)]
    client.insert("t", rows, column_names=["n", "s", "a"])
    back = client.query("SELECT n, s, a FROM t ORDER BY n", settings={"max_block_size": 10_000})
    assert [list(row) for row in back.result_rows] == rows
    with client.query_rows_stream("SELECT n FROM t ORDER BY n") as stream:
        assert sum(1 for _ in stream) == len(rows)
    arrow = client.query_arrow("SELECT n, s FROM t ORDER BY n")
    assert arrow.num_rows == len(rows)
    client.close()


def test_errors_carry_code_name_and_text_and_wrong_passwords_are_refused(front: ClickHouseFront) -> None:
    client = connect(front.settings())
    for sql, code in (("SELECT * FROM nope", 60), ("SELEC 1", 62), ("SELECT throwIf(1)", 395)):
        with pytest.raises(DatabaseError) as raised:
            client.query(sql)
        assert raised.value.code == code
    client.close()
    with pytest.raises(ConfigurationError, match="refuses the user or password"):
        connect(ClickHouseSettings(dsn=SecretStr(f"http://drift:wrong@{front.address}")))


def test_settings_of_a_request_reach_the_engine_and_stay_with_it(front: ClickHouseFront) -> None:
    client = connect(front.settings())
    value = "SELECT getSetting('max_threads')"
    before = client.query(value).result_rows[0][0]
    assert client.query(value, settings={"max_threads": 3}).result_rows[0][0] == 3
    assert client.query(value).result_rows[0][0] == before
    client.close()


async def test_a_token_reaches_the_engine(front: ClickHouseFront) -> None:
    for _ in range(2):
        await writer_of(front, asyncio.sleep).write(messages_of(WINDOW))
    assert rows_in(front) == (40, sum(range(40)))  # without FINAL: the token alone kept the repeat out


async def test_answers_that_are_lost_after_storing_double_nothing(front: ClickHouseFront) -> None:
    retries = Retries(front.heal, at=3)
    writer = writer_of(front, retries)
    before = front.stats()
    front.set_fault(Fault.CLOSE_AFTER_STORE)
    assert await writer.write(messages_of(WINDOW)) == 41
    assert retries.count == 3
    after = front.stats()
    assert after.hit[Fault.CLOSE_AFTER_STORE] - before.hit.get(Fault.CLOSE_AFTER_STORE, 0) >= 3
    assert rows_in(front) == (40, sum(range(40)))


@pytest.mark.parametrize("mode", [Fault.UNAVAILABLE, Fault.REFUSED])
async def test_a_sink_waits_out_a_clickhouse_that_is_away(front: ClickHouseFront, mode: Fault) -> None:
    retries = Retries(front.heal, at=4)
    writer = writer_of(front, retries)
    before = front.stats().hit.get(mode, 0)
    front.set_fault(mode)
    await writer.write(messages_of(WINDOW))
    assert retries.count == 4
    assert front.stats().hit[mode] > before
    assert rows_in(front) == (40, sum(range(40)))


def test_away_means_that_connections_are_refused(front: ClickHouseFront) -> None:
    front.set_fault(Fault.REFUSED)
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        connect(front.settings())
    front.heal()
    connect(front.settings()).close()


async def test_one_that_hangs_is_left_after_the_clients_time_and_asked_again(front: ClickHouseFront) -> None:
    client: Any = clickhouse_connect.get_client(dsn=front.dsn, autogenerate_session_id=False)
    patient = client.timeout
    client.timeout = IMPATIENT  # from here on: an answer that does come may be slow

    def heal() -> None:
        front.heal()
        client.timeout = patient

    retries = Retries(heal, at=2)
    writer = writer_of(front, retries, client)
    before = front.stats().hit.get(Fault.HANG, 0)
    front.set_fault(Fault.HANG)
    await writer.write(messages_of(WINDOW))
    assert retries.count >= 2
    assert front.stats().hit[Fault.HANG] - before >= 2
    assert rows_in(front) == (40, sum(range(40)))


def test_healing_cuts_requests_that_hang(front: ClickHouseFront) -> None:
    client = connect(front.settings())
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            client.command("INSERT INTO drift.services (tenant) VALUES ('x')")
        except OperationalError as error:
            errors.append(error)

    before = front.stats().hit.get(Fault.HANG, 0)
    front.set_fault(Fault.HANG)
    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: front.stats().hit.get(Fault.HANG, 0) > before)
    front.heal()
    asking.join(timeout=300)
    assert len(errors) == 1
    assert client.query("SELECT count() FROM drift.services").result_rows[0][0] == 0


def test_a_fault_ends_by_count_and_by_time(front: ClickHouseFront) -> None:
    remote = FrontClient(front.control_port)  # as another process has it
    client = connect(front.settings())
    remote.set_fault(Fault.UNAVAILABLE, count=1)
    with pytest.raises(DatabaseError):
        client.command("CREATE DATABASE IF NOT EXISTS drift")  # no read: the client repeats those by itself
    client.command("CREATE DATABASE IF NOT EXISTS drift")
    assert remote.stats().mode == Fault.NORMAL
    remote.set_fault(Fault.REFUSED, for_s=0.2)
    until(lambda: remote.stats().mode == Fault.NORMAL)
    assert client.query("SELECT 1").result_rows[0][0] == 1


def test_slow_answers_wait(front: ClickHouseFront) -> None:
    client: Any = clickhouse_connect.get_client(dsn=front.dsn, autogenerate_session_id=False)
    patient, client.timeout = client.timeout, IMPATIENT
    front.set_fault(Fault.SLOW, delay_s=30)
    with pytest.raises(OperationalError):
        client.command("CREATE DATABASE IF NOT EXISTS drift")
    client.timeout = patient
    front.set_fault(Fault.SLOW, delay_s=0.01)
    assert client.query("SELECT 1").result_rows[0][0] == 1


async def test_a_crash_between_two_inserts_loses_nothing(tmp_path: Path) -> None:
    front = ClickHouseFront(tmp_path / "clickhouse")
    try:
        await asyncio.to_thread(front.start)
        client = connect(front.settings())
        migrate(client, DATABASE, 90)
        await writer_of(front, asyncio.sleep).write(messages_of(WINDOW))
        front.kill()

        retries = Retries(front.start, at=2)
        again = make_window(HOUR_MS + 60_000, EDGES)
        await writer_of(front, retries, client).write(messages_of(WINDOW, again))
        assert retries.count == 2
        assert rows_in(front, "FINAL") == (80, 2 * sum(range(40)))
        ch = ClickHouse(connect(front.settings()), front.settings(), DATABASE)
        assert ch.rows("SELECT count() FROM {db}.windows FINAL") == [(2,)]
    finally:
        front.stop()
    assert front.pid is None
