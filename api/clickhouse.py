"""Read-only ClickHouse clients for the API: how one is opened, and a small pool of them."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import clickhouse_connect
import pyarrow as pa
import pyarrow.ipc
from clickhouse_connect.driver import Client

from api.problems import query_timeout, result_too_large, store_unavailable
from api.tenant_rows import Queries, tell_tenant
from schemas.clickhouse_dsn import chdb_path, connection_problem, error_code, is_embedded, reader_arguments
from schemas.errors import ConfigurationError
from schemas.settings import Settings

log = logging.getLogger("api.clickhouse")

T = TypeVar("T")
ClientFactory = Callable[[], Queries]

POOL_SIZE = 4
MAX_RESULT_ROWS = 1_000_000
MAX_MEMORY_BYTES = 2 << 30
EMBEDDED = {
    "max_threads": 2,
    "local_filesystem_read_method": "pread",
    "output_format_arrow_compression_method": "none",
}
"""Most queries are small, and the worker needs the processor too: handing blocks between threads costs more than it
gives."""
NETWORK_GRACE_S = 5
"""What the network gets on top of a query's own limit before the client gives up."""

_TIMEOUT_CODES = frozenset({159, 160, 209})
_TOO_LARGE_CODES = frozenset({158, 241, 396})
_NOT_MIGRATED_CODES = frozenset({16, 47, 60, 81})


def open_reader(settings: Settings) -> Client:
    """Open a client that can read only. Blocking.

    Embedded, the handle is made read-only for good, which also closes ``file()`` and ``url()``. On a server every query
    carries the settings its user may still change; a user whose profile is read-only keeps that profile's limits.

    Raises:
        ConfigurationError: the store cannot be opened; the text is for the operator.
    """
    store, timeout_s = settings.clickhouse, settings.api.query_timeout_s
    arguments = reader_arguments(store)
    limits = {
        "max_execution_time": timeout_s,
        "max_result_rows": MAX_RESULT_ROWS,
        "result_overflow_mode": "throw",
        "max_memory_usage": MAX_MEMORY_BYTES,
    }
    embedded = is_embedded(store)
    if embedded and not Path(chdb_path(store)).exists():
        raise ConfigurationError("the ClickHouse folder does not exist yet: start `drift run` or `drift migrate` first")
    if not embedded:
        arguments["send_receive_timeout"] = timeout_s + NETWORK_GRACE_S
    try:
        client: Client = clickhouse_connect.get_client(**arguments)
    except Exception as error:  # the drivers raise their own trees, OSError, ssl.SSLError and urllib3's
        raise ConfigurationError(connection_problem(store, error)) from None
    if embedded:
        for name, value in (limits | EMBEDDED).items():
            client.command(f"SET {name} = {value!r}")
        client.command("SET readonly = 1")
        return client
    # The caches know nothing of row policies: one tenant's filter must not answer another's question.
    for name, value in (limits | {"use_query_cache": 0, "use_query_condition_cache": 0, "readonly": 2}).items():
        known = client.server_settings.get(name)
        if known is not None and not known.readonly:
            client.set_client_setting(name, value)
    return client


def open_tenant_reader(settings: Settings) -> Queries:
    """Open a client that can read only, and one tenant a query where a server's row policies say so. Blocking.

    Raises:
        ConfigurationError: the store cannot be opened; the text is for the operator.
    """
    client = open_reader(settings)
    return client if is_embedded(settings.clickhouse) else tell_tenant(client)


class Result(Protocol):
    """What the repository uses of an answer of clickhouse-connect."""

    @property
    def result_rows(self) -> Sequence[Sequence[Any]]:
        """Return the rows."""
        ...

    @property
    def result_columns(self) -> Sequence[Sequence[Any]]:
        """Return the columns; empty where there is no row."""
        ...


class Reader(Protocol):
    """Answers one query."""

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> Result:
        """Run ``sql`` with bound ``{name:Type}`` parameters."""
        ...

    async def table(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Run ``sql`` as ``query`` does, and return an Arrow table."""
        ...


class _Slot:
    client: Queries | None = None


class ReaderPool:
    """A few clients, each opened at its first query and used by one query at a time.

    ``query`` raises ``Problem``: 503 where the store is unreachable, busy or not migrated, 504 on a time-out, 422 on
    a result over the cap. What went wrong is logged, not answered.
    """

    def __init__(self, factory: ClientFactory, timeout_s: int, size: int = POOL_SIZE) -> None:
        self._factory, self._timeout_s = factory, timeout_s
        self._slots = [_Slot() for _ in range(size)]
        self._idle: asyncio.Queue[_Slot] = asyncio.Queue()
        for slot in self._slots:
            self._idle.put_nowait(slot)
        self._running: set[asyncio.Task[Any]] = set()

    async def query(self, sql: str, parameters: Mapping[str, Any]) -> Result:
        """Run one query in a thread."""

        def ask(client: Queries) -> Result:
            result: Result = client.query(sql, parameters=dict(parameters))
            return result

        return await self._submit(ask)

    async def table(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Run one query in a thread; return its columns as they are in memory, for many rows."""

        def ask(client: Queries) -> pa.Table:
            answer = client.raw_query(sql, parameters=dict(parameters), fmt="Arrow")
            return pa.ipc.open_file(pa.BufferReader(answer)).read_all()

        return await self._submit(ask)

    async def _submit(self, ask: Callable[[Queries], T]) -> T:
        try:
            slot = await asyncio.wait_for(self._idle.get(), self._timeout_s)
        except TimeoutError:
            raise store_unavailable("All readers are busy.") from None
        task = asyncio.create_task(asyncio.to_thread(self._run, slot, ask))
        self._running.add(task)

        def give_back(done: asyncio.Task[T]) -> None:
            # Also when the request was dropped: the thread goes on until ClickHouse answers, and so does the client.
            self._running.discard(done)
            if not done.cancelled():
                done.exception()
            self._idle.put_nowait(slot)

        task.add_done_callback(give_back)
        return await asyncio.shield(task)

    def _run(self, slot: _Slot, ask: Callable[[Queries], T]) -> T:
        try:
            if slot.client is None:
                slot.client = self._factory()
            return ask(slot.client)
        except ConfigurationError as error:
            log.warning("ClickHouse cannot be opened: %s", error)
            raise store_unavailable("ClickHouse cannot be reached.") from None
        except clickhouse_connect.driver.exceptions.ClickHouseError as error:
            raise self._problem_of(slot, error) from error
        except OSError as error:
            self._forget(slot)
            log.warning("ClickHouse cannot be reached: %s", type(error).__name__)
            raise store_unavailable("ClickHouse cannot be reached.") from None

    def _problem_of(self, slot: _Slot, error: BaseException) -> Exception:
        code = error_code(error)
        if code in _TIMEOUT_CODES or "timed out" in str(error).lower():
            return query_timeout(self._timeout_s)
        if code in _TOO_LARGE_CODES:
            return result_too_large()
        if code in _NOT_MIGRATED_CODES:
            log.warning("ClickHouse error %s: the tables are not as this release expects them", code)
            return store_unavailable("The database is not migrated.")
        if code is None:
            self._forget(slot)
            log.warning("ClickHouse cannot be reached: %s", type(error).__name__)
            return store_unavailable("ClickHouse cannot be reached.")
        log.error("ClickHouse refused a query with error %s", code)
        return RuntimeError(f"ClickHouse error {code}")

    @staticmethod
    def _forget(slot: _Slot) -> None:
        client, slot.client = slot.client, None
        if client is not None:
            try:
                client.close()
            except Exception as error:  # the connection is broken already; closing it is a courtesy
                log.debug("closing a broken client: %s", type(error).__name__)

    async def close(self) -> None:
        """Wait for running queries and close the clients."""
        await asyncio.gather(*self._running, return_exceptions=True)
        for slot in self._slots:
            self._forget(slot)
