"""The ClickHouse setting: every form, every mistake, and never the password."""

from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, ProgrammingError
from pydantic import SecretStr

from schemas.clickhouse_dsn import chdb_path, connect_arguments, connection_problem, database_of, is_embedded, place_of
from schemas.errors import ConfigurationError
from schemas.settings import ClickHouseSettings, Settings

SECRET = "s3cret@/:"
ENCODED = "s3cret%40%2F%3A"


def _settings(dsn: str, **changes: object) -> ClickHouseSettings:
    return ClickHouseSettings(dsn=SecretStr(dsn), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dsn", "path"),
    [
        ("chdb:///var/lib/drift", "/var/lib/drift"),
        ("chdb://./drift-data/ch", "./drift-data/ch"),
        ("chdb:///a%20b", "/a b"),
    ],
)
def test_an_embedded_home_is_a_folder(dsn, path):
    assert is_embedded(_settings(dsn))
    assert chdb_path(_settings(dsn)) == path
    assert connect_arguments(_settings(dsn)) == {"interface": "chdb", "path": path}
    assert database_of(_settings(dsn)) == "drift"


def test_a_server_is_host_user_and_password_without_the_database():
    arguments = connect_arguments(_settings(f"https://ana:{ENCODED}@ch.example/prod"))
    assert (arguments["interface"], arguments["host"], arguments["port"]) == ("https", "ch.example", 8443)
    assert (arguments["username"], arguments["password"]) == ("ana", SECRET)
    assert "database" not in arguments
    assert arguments["verify"] is True
    plain = connect_arguments(_settings("http://ch.example:18123"))
    assert (plain["port"], plain["username"], plain["password"]) == (18123, "default", "")


def test_tls_files_are_handed_on():
    settings = _settings(
        "https://ch",
        ca_file=Path("ca.pem"),
        client_cert_file=Path("c.pem"),
        client_key_file=Path("k.pem"),
        verify=False,
    )
    arguments = connect_arguments(settings)
    assert (arguments["ca_cert"], arguments["client_cert"], arguments["client_cert_key"]) == (
        "ca.pem",
        "c.pem",
        "k.pem",
    )
    assert arguments["verify"] is False


def test_the_database_is_named_once():
    assert database_of(_settings("http://ch/prod")) == "prod"
    assert database_of(_settings("http://ch", database="other")) == "other"
    assert database_of(Settings(clickhouse=_settings("http://ch/prod")).clickhouse) == "prod"
    assert database_of(_settings("http://ch/prod", database="prod")) == "prod"
    with pytest.raises(ConfigurationError, match="set one of them"):
        database_of(_settings("http://ch/prod", database="other"))
    with pytest.raises(ConfigurationError, match="letters, digits"):
        database_of(_settings("http://ch/pr;od"))


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "clickhouse",
        f"clickhouse://u:{ENCODED}@h",
        f"http://u:{ENCODED}@h:port",
        f"http://u:{ENCODED}@/db",
        f"http://u:{ENCODED}@h/?verify=0",
        f"http://u:{ENCODED}@[::1",
        "chdb://",
        "chdb:///",
        "chdb://memory",
    ],
)
def test_a_bad_dsn_is_one_line_without_the_password(dsn):
    with pytest.raises(ConfigurationError) as caught:
        connect_arguments(_settings(dsn))
    text = str(caught.value)
    assert "clickhouse.dsn" in text
    assert "\n" not in text
    assert "s3cret" not in text


def test_certificates_without_tls_are_refused():
    with pytest.raises(ConfigurationError, match="use https"):
        connect_arguments(_settings("http://ch", ca_file=Path("ca.pem")))
    with pytest.raises(ConfigurationError, match="client_cert_file"):
        connect_arguments(_settings("https://ch", client_key_file=Path("k.pem")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatabaseError("x", code=516), "refuses the user or password"),
        (DatabaseError("x", code=497), "grant it"),
        (OperationalError("... CERTIFICATE_VERIFY_FAILED ..."), "clickhouse.ca_file"),
        (OperationalError("... SSLError(1, TLSV13_ALERT_CERTIFICATE_REQUIRED) ..."), "client_cert_file"),
        (OperationalError("... ConnectionResetError(104, 'Connection reset by peer') ..."), "client_cert_file"),
        (OperationalError("... [SSL: WRONG_VERSION_NUMBER] ..."), "does not speak TLS"),
        (OperationalError("... Failed to resolve 'ch' ..."), "is not known"),
        (OperationalError("... Connection refused"), "cannot be reached"),
        (DatabaseError("boom", code=999), "error 999"),
    ],
)
def test_a_failed_connection_says_what_to_do(error, words):
    settings = _settings(f"https://ana:{ENCODED}@ch:9000/prod")
    text = connection_problem(settings, error)
    assert words in text
    assert "https://ch:9000" in text
    assert "s3cret" not in text
    assert "ana" not in text


def test_a_folder_in_use_and_a_second_folder_are_told_apart():
    settings = _settings("chdb:///data")
    other = ProgrammingError("... EmbeddedServer already initialized with path '/x' ...")
    assert "already has an engine open" in connection_problem(settings, other)
    assert "another process uses it" in connection_problem(settings, ProgrammingError("Code: 36. ... (BAD_ARGUMENTS)"))
    assert place_of(settings) == "chdb /data"
