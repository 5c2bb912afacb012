"""What the ClickHouse setting means: client arguments, database, and why a connection failed. Pure."""

import re
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings

CONNECT_TIMEOUT_S = 10
RECEIVE_TIMEOUT_S = 300
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FORMS = "use chdb:///absolute/path, chdb://./relative/path or http(s)://user:password@host:port/database"
_BAD_CREDENTIALS = frozenset({192, 193, 194, 516})
_ACCESS_DENIED = 497
_HUNG_UP = ("SSL", "Connection reset", "Connection aborted", "RemoteDisconnected", "Broken pipe", "IncompleteRead")


def _split(settings: ClickHouseSettings) -> SplitResult:
    """Return the parsed DSN; errors never quote it, it may hold a password."""
    try:
        parsed = urlsplit(settings.dsn.get_secret_value())
        _ = parsed.port
    except ValueError:
        raise ConfigurationError(f"clickhouse.dsn cannot be read: {_FORMS}") from None
    if parsed.scheme not in {"chdb", "http", "https"}:
        raise ConfigurationError(f"clickhouse.dsn starts with {parsed.scheme[:20]!r}: {_FORMS}")
    if parsed.query or parsed.fragment:
        raise ConfigurationError(
            "clickhouse.dsn must not carry options after '?' or '#': set ca_file, verify and so on beside it"
        )
    return parsed


def is_embedded(settings: ClickHouseSettings) -> bool:
    """Say whether the engine runs inside this process (chdb)."""
    return _split(settings).scheme == "chdb"


def chdb_path(settings: ClickHouseSettings) -> str:
    """Return the folder of the embedded engine.

    Raises:
        ConfigurationError: the DSN names no folder.
    """
    parsed = _split(settings)
    if parsed.netloc not in {"", "."}:
        raise ConfigurationError(f"clickhouse.dsn names no folder: {_FORMS}")
    path = unquote(parsed.path)
    if not path.strip("/"):
        raise ConfigurationError(f"clickhouse.dsn names no folder: {_FORMS}")
    return f".{path}" if parsed.netloc == "." else path


def database_of(settings: ClickHouseSettings) -> str:
    """Return the database all tables are in: the DSN's path on a server, else ``clickhouse.database``.

    Raises:
        ConfigurationError: the name is no plain identifier, or the two contradict each other.
    """
    parsed = _split(settings)
    if parsed.scheme == "chdb":
        return settings.database
    named = unquote(parsed.path).strip("/")
    if not named:
        return settings.database
    if not _DATABASE.fullmatch(named):
        raise ConfigurationError("the database in clickhouse.dsn must be letters, digits and underscores")
    # Not ``model_fields_set``: within `Settings` pydantic fills in the defaults, and takes them for set.
    if settings.database not in (ClickHouseSettings.model_fields["database"].default, named):
        raise ConfigurationError(
            f"clickhouse.dsn names database {named!r}, clickhouse.database {settings.database!r}: set one of them"
        )
    return named


def connect_arguments(settings: ClickHouseSettings) -> dict[str, Any]:
    """Return the keyword arguments of ``clickhouse_connect.get_client``.

    No ``database`` among them: it may not exist yet, and every statement of ours names its tables in full.

    Raises:
        ConfigurationError: the DSN or the TLS settings cannot be used.
    """
    parsed = _split(settings)
    if parsed.scheme == "chdb":
        return {"interface": "chdb", "path": chdb_path(settings)}
    if not parsed.hostname:
        raise ConfigurationError(f"clickhouse.dsn names no host: {_FORMS}")
    database_of(settings)
    secure = parsed.scheme == "https"
    if not secure and (settings.ca_file or settings.client_cert_file or settings.client_key_file):
        raise ConfigurationError("clickhouse.dsn is http:// but certificates are set: use https:// or remove them")
    if settings.client_key_file and not settings.client_cert_file:
        raise ConfigurationError("clickhouse.client_key_file is set without clickhouse.client_cert_file")
    arguments: dict[str, Any] = {
        "interface": parsed.scheme,
        "host": parsed.hostname,
        "port": parsed.port or (8443 if secure else 8123),
        "username": unquote(parsed.username) if parsed.username else "default",
        "password": unquote(parsed.password or ""),
        "connect_timeout": CONNECT_TIMEOUT_S,
        "send_receive_timeout": RECEIVE_TIMEOUT_S,
        "autogenerate_session_id": False,  # one client serves several threads; sessions would refuse that
        "client_name": "secureguard-drift",
    }
    if secure:
        arguments["verify"] = settings.verify
        for name, path in (
            ("ca_cert", settings.ca_file),
            ("client_cert", settings.client_cert_file),
            ("client_cert_key", settings.client_key_file),
        ):
            if path is not None:
                arguments[name] = str(path)
    return arguments


def reader_arguments(settings: ClickHouseSettings) -> dict[str, Any]:
    """Return the keyword arguments of a client that only reads: as ``reader_user`` where its password is set.

    Raises:
        ConfigurationError: the DSN or the TLS settings cannot be used.
    """
    arguments = connect_arguments(settings)
    if settings.reader_password is not None and not is_embedded(settings):
        arguments |= {"username": settings.reader_user, "password": settings.reader_password.get_secret_value()}
    return arguments


def place_of(settings: ClickHouseSettings) -> str:
    """Name the home of the data for logs and errors, without user and password."""
    parsed = _split(settings)
    if parsed.scheme == "chdb":
        return f"chdb {chdb_path(settings)}"
    return f"{parsed.scheme}://{parsed.hostname}:{parsed.port or (8443 if parsed.scheme == 'https' else 8123)}"


def error_code(error: BaseException) -> int | None:
    """Return the ClickHouse error code an exception of the client carries."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return code
    match = re.search(r"\bCode:\s*(\d+)", str(error))
    return int(match.group(1)) if match else None


def connection_problem(settings: ClickHouseSettings, error: BaseException) -> str:
    """Say in one line, for the operator, why a client could not be opened. Never holds the password.

    The client's own text is not passed on: it may quote addresses with credentials or a stack of the engine.
    """
    place, text, code = place_of(settings), str(error), error_code(error)
    if is_embedded(settings):
        if "already initialized with path" in text:
            return f"{place}: this process already has an engine open on another folder; one process can hold one"
        return (
            f"{place} cannot be opened: another process uses it (stop it first), or the folder was not written by chdb"
        )
    if code in _BAD_CREDENTIALS:
        return f"ClickHouse at {place} refuses the user or password: correct clickhouse.dsn"
    if code == _ACCESS_DENIED:
        return f"ClickHouse at {place} denies this user access: grant it the database {database_of(settings)!r}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"ClickHouse at {place} shows a certificate that is not trusted: set clickhouse.ca_file to its authority"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return f"ClickHouse at {place} does not speak TLS: use http:// or its TLS port in clickhouse.dsn"
    # A server that misses our certificate sends an alert or merely hangs up: TLS 1.3 leaves to chance what is seen.
    if _split(settings).scheme == "https" and any(word in text for word in _HUNG_UP):
        return f"ClickHouse at {place} ends the TLS connection: does it want a client certificate (client_cert_file)?"
    if "Failed to resolve" in text or "Name or service not known" in text:
        return f"the host of ClickHouse at {place} is not known: correct clickhouse.dsn"
    if code is not None:
        return f"ClickHouse at {place} refuses the connection with error {code}: see the server's log"
    return f"ClickHouse at {place} cannot be reached: start it, or correct clickhouse.dsn"
