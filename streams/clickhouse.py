"""Opens ClickHouse: a server over HTTP(S), or the engine inside this process. One setting decides."""

import os
import threading
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver import Client

from schemas.clickhouse_dsn import chdb_path, connect_arguments, connection_problem, is_embedded
from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings
from streams.deduplication_log import forget_tokens_without_rows

_opening = threading.Lock()
_opened: set[Path] = set()
"""Folders that this process has opened: only before its first insert can it tell what a kill has left."""


def _check_folder(path: Path) -> None:
    """Create the engine's folder; the engine itself would answer a missing permission with a stack of C++ frames."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the ClickHouse folder {path} cannot be created ({error.strerror}): choose another in clickhouse.dsn"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"the ClickHouse folder {path} is not writable: change its owner or choose another in clickhouse.dsn"
        )


def _check_files(settings: ClickHouseSettings) -> None:
    for name in ("ca_file", "client_cert_file", "client_key_file"):
        path: Path | None = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f"clickhouse.{name} {path} cannot be read: correct the path or its permissions")


def connect(settings: ClickHouseSettings) -> Client:
    """Open a client that may write. Blocking; call it in a thread from a running loop.

    The client has no default database (``schemas.clickhouse_dsn.database_of`` names ours) and may be shared by threads.
    Embedded, each client is an own handle that serialises its calls; a process can have only one folder open.

    Raises:
        ConfigurationError: bad DSN, unreachable, wrong password, untrusted certificate, folder not writable or in use.
    """
    arguments = connect_arguments(settings)
    if not is_embedded(settings):
        _check_files(settings)
        return _open(settings, arguments)
    path = Path(chdb_path(settings))
    _check_folder(path)
    with _opening:
        client = _open(settings, arguments)
        if path.resolve() not in _opened:
            forget_tokens_without_rows(client)
            _opened.add(path.resolve())
    return client


def _open(settings: ClickHouseSettings, arguments: dict[str, Any]) -> Client:
    try:
        client: Client = clickhouse_connect.get_client(**arguments)
    except Exception as error:  # the drivers raise their own trees, OSError, ssl.SSLError and urllib3's
        raise ConfigurationError(connection_problem(settings, error)) from None
    return client
