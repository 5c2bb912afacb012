"""Everything in one process and one folder: broker, ClickHouse, worker, API. For `drift run`, demos and tests.

The broker (Tansu) keeps its log in memory: every start is a new incarnation of it. Baselines and findings live in
`<folder>/state`, stored windows and events in `<folder>/clickhouse`; both survive a stop.
"""

import asyncio
import fcntl
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from api.security.access import Access
from api.security.api_keys import new_key
from api.security.principal import Role
from api.security.tokens import OwnTokens
from deploy.access_file import FileControlLog
from deploy.brokers.tansu import TansuBroker
from deploy.serving import ApiThread, listen, serve_health
from deploy.signing_key import own_signing_key, read_signing_key
from deploy.sql_console import SqlConsole
from schemas.errors import ConfigurationError
from schemas.ids import TenantId
from schemas.settings import Settings
from streams.app import Worker
from streams.audit_log import KafkaAuditLog
from streams.clickhouse import connect
from streams.clock import Clock, SystemClock
from streams.event_feed import KafkaEventFeed
from streams.health import HealthServer
from streams.migrate import migrate

PARTITIONS = 4
"""Partitions of our topics when everything is one process."""


def lock_folder(folder: Path) -> IO[str]:
    """Take the folder for this process; the lock goes with the returned file.

    Raises:
        ConfigurationError: not writable, or another instance uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be used ({error.strerror}): choose another with --data"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigurationError(
            f"another drift run uses the folder {folder}: stop it, or choose another with --data"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def embedded_settings(base: Settings, folder: Path, bootstrap: str, api_port: int, incarnation: str) -> Settings:
    """Return settings for one process over one folder."""
    return base.model_copy(
        update={
            "kafka": base.kafka.model_copy(
                update={"bootstrap": bootstrap, "session_timeout_ms": 10_000, "rebalance_timeout_ms": 6_000}
            ),
            "topics": base.topics.model_copy(update={"partitions": PARTITIONS, "incarnation": incarnation}),
            "clickhouse": base.clickhouse.model_copy(
                update={"dsn": SecretStr(f"chdb://{(folder / 'clickhouse').absolute()}")}
            ),
            "worker": base.worker.model_copy(update={"state_directory": folder / "state"}),
            "api": base.api.model_copy(update={"port": api_port}),
        }
    )


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """The account made at the first start; its password is shown once and kept nowhere."""

    tenant: str
    account: str
    password: str


class Embedded:
    """The whole product in this process.

    Args:
        folder: all data. kafka_port, api_port: 0 takes a free one.

    Attributes:
        first_admin: the administrator that this start has made; ``None`` where one was there.
    """

    def __init__(
        self, base: Settings, folder: Path, *, kafka_port: int = 0, api_port: int = 0, clock: Clock | None = None
    ) -> None:
        self._base = base
        self.folder = folder
        self._clock = clock or SystemClock()
        self._kafka_port = kafka_port
        self._api_port = api_port
        self._lock: IO[str] | None = None
        self._broker: TansuBroker | None = None
        self._api: ApiThread | None = None
        self._worker: Worker | None = None
        self._sql: SqlConsole | None = None
        self._health: HealthServer | None = None
        self._settings: Settings | None = None
        self._audit: KafkaAuditLog | None = None
        self._access: Access | None = None
        self.first_admin: FirstAdmin | None = None

    @property
    def settings(self) -> Settings:
        """Settings as started."""
        assert self._settings is not None
        return self._settings

    @property
    def grace_ms(self) -> int:
        """How long the worker may take to stop."""
        return self._base.worker.grace_ms

    @property
    def worker(self) -> Worker:
        """The running worker."""
        assert self._worker is not None
        return self._worker

    async def start(self) -> None:
        """Start the parts in the order they need each other.

        Raises:
            ConfigurationError: a port is taken, the folder is in use or not writable.
        """
        self._lock = lock_folder(self.folder)
        listener = listen(self._base.api.host, self._api_port)
        try:
            self._broker = TansuBroker(self.folder / "broker", port=self._kafka_port)
            await asyncio.to_thread(self._broker.start)
            incarnation = str(self._clock.now_ms())
            port = int(listener.getsockname()[1])
            self._settings = embedded_settings(self._base, self.folder, self._broker.address, port, incarnation)
            clickhouse = self._settings.clickhouse
            client = await asyncio.to_thread(connect, clickhouse)
            await asyncio.to_thread(migrate, client, clickhouse.database, clickhouse.retention_days)
            self._worker = Worker(self._settings, partial(connect, clickhouse), clock=self._clock, broker_forgets=True)
            self._health = serve_health(self._worker)
            await self._worker.start()
            self._audit = KafkaAuditLog(self._settings)
            self._access = Access(
                self._settings.api,
                OwnTokens(self._signing_key()),
                FileControlLog(self.folder),
                self._audit,
                self._clock.now_ms,
                self._keep_first_admin,
            )
            self._api = ApiThread(self._settings, self._access, listener, KafkaEventFeed(self._settings))
            await asyncio.to_thread(self._api.start)
            console_client = await asyncio.to_thread(connect, clickhouse)
            await asyncio.to_thread(console_client.command, "SET readonly = 1")
            self._sql = SqlConsole(self.folder, console_client)
            await self._sql.start()
        except BaseException:
            listener.close()
            raise

    def _signing_key(self) -> bytes:
        auth = self._base.api.auth
        return own_signing_key(self.folder) if auth.signing_key_file is None else read_signing_key(auth)

    def _keep_first_admin(self, tenant: str, account: str, password: str) -> None:
        self.first_admin = FirstAdmin(tenant, account, password)

    def key_for_myself(self, tenant: str) -> str:
        """Return an API key that reads one tenant's data, known to this process alone and for as long as it runs."""
        assert self._access is not None
        key, record = new_key(TenantId(tenant), "drift run", Role.VIEWER, self._clock.now_ms() // 1_000)
        self._access.directory.keys[record.id] = record
        return key

    async def stop(self) -> None:
        """Stop the parts in reverse order; safe after a failed start."""
        if self._sql is not None:
            await self._sql.stop()
        if self._api is not None:
            await asyncio.to_thread(self._api.stop)
        if self._worker is not None and self._audit is not None:
            self._worker.must_store(self._audit.ends)
        if self._worker is not None:
            await self._worker.stop()
        if self._health is not None:
            self._health.close()
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
        if self._lock is not None:
            self._lock.close()
