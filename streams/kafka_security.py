"""TLS and log-in of every Kafka client, from one set of settings. Reads certificate files; connects to nothing."""

import functools
import logging
import ssl
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import ConfigurationError
from schemas.settings import KafkaSettings
from streams.kafka_tokens import ClientCredentialsTokens

_PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def uses_tls(settings: KafkaSettings) -> bool:
    """Say whether connections to brokers are encrypted."""
    return settings.security_protocol in {"SSL", "SASL_SSL"}


def uses_sasl(settings: KafkaSettings) -> bool:
    """Say whether clients log in with a mechanism of SASL."""
    return settings.security_protocol in {"SASL_PLAINTEXT", "SASL_SSL"}


def validate(settings: KafkaSettings) -> None:
    """Check that the settings fit together, without a connection.

    Raises:
        ConfigurationError: names the first setting that is missing, or set without effect.
    """
    _require_addresses(settings.bootstrap)
    protocol, mechanism = settings.security_protocol, settings.sasl_mechanism
    if uses_sasl(settings) and mechanism is None:
        raise ConfigurationError(
            f"kafka.security_protocol is {protocol}: set kafka.sasl_mechanism "
            "(SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or OAUTHBEARER)"
        )
    if mechanism is not None and not uses_sasl(settings):
        raise ConfigurationError(
            f"kafka.sasl_mechanism is {mechanism}, but kafka.security_protocol {protocol} does not log in: use SASL_SSL"
        )
    if uses_sasl(settings) and mechanism in _PASSWORD_MECHANISMS:
        if not settings.sasl_username:
            raise ConfigurationError(f"kafka.sasl_username is missing: {mechanism} needs a name and a password")
        if settings.sasl_password is None or not settings.sasl_password.get_secret_value():
            raise ConfigurationError(f"kafka.sasl_password is missing: {mechanism} needs a name and a password")
    if mechanism == "OAUTHBEARER":
        _require_oauth(settings)
    if settings.ssl_key_file is not None and settings.ssl_cert_file is None:
        raise ConfigurationError("kafka.ssl_key_file is set without kafka.ssl_cert_file: mutual TLS needs both")
    if not uses_tls(settings):
        unused = "ssl_cert_file" if settings.ssl_cert_file is not None else ""
        if settings.ssl_ca_file is not None and mechanism != "OAUTHBEARER":  # there it also serves the token's issuer
            unused = "ssl_ca_file"
        if unused:
            raise ConfigurationError(
                f"kafka.{unused} is set, but kafka.security_protocol {protocol} does not encrypt: use SSL or SASL_SSL"
            )


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    """Return the TLS context: verifies the broker and its host name, shows our certificate if there is one.

    Raises:
        ConfigurationError: a file cannot be read, or is not what it should be.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    if settings.ssl_ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # this CA alone: the system's are not asked
        _load("ssl_ca_file", settings.ssl_ca_file, lambda: context.load_verify_locations(cafile=settings.ssl_ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate = settings.ssl_cert_file
    if certificate is not None:
        secret = settings.ssl_key_password
        password = secret.get_secret_value() if secret is not None else ""
        if settings.ssl_key_file is not None:
            _load("ssl_key_file", settings.ssl_key_file, lambda: None)
        _load(
            "ssl_cert_file",
            certificate,
            # a callable, because OpenSSL would ask the terminal for a password that is missing
            lambda: context.load_cert_chain(certificate, settings.ssl_key_file, password=lambda: password),
        )
    return context


def client_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """Return what aiokafka's consumer, producer and admin client take alike: addresses, TLS and log-in.

    Raises:
        ConfigurationError: the settings do not fit together, or a certificate cannot be read.
    """
    validate(settings)
    arguments: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap,
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
    }
    if uses_tls(settings):
        arguments["ssl_context"] = ssl_context(settings)
    if uses_sasl(settings):
        _keep_secrets_out_of_logs()
        arguments["sasl_mechanism"] = settings.sasl_mechanism
        if settings.sasl_mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = ClientCredentialsTokens(settings, _issuer_context(settings))
        elif settings.sasl_password is not None:
            arguments["sasl_plain_username"] = settings.sasl_username
            arguments["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return arguments


class _SaslFilter(logging.Filter):
    """Drop aiokafka's debug line of a log-in request: it holds the password or token."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


@functools.cache
def _keep_secrets_out_of_logs() -> None:
    logging.getLogger("aiokafka.conn").addFilter(_SaslFilter())


def _require_addresses(bootstrap: str) -> None:
    parts = [part.strip() for part in bootstrap.split(",")]
    for part in parts:
        host, _, port = part.rpartition(":")
        if not host.strip("[]") or not port.isdigit() or not 0 < int(port) < 65_536 or "/" in part:
            raise ConfigurationError(f"kafka.bootstrap has {part!r}: write host:port, several separated by commas")


def _require_oauth(settings: KafkaSettings) -> None:
    for name in ("oauth_token_url", "oauth_client_id", "oauth_client_secret"):
        value = getattr(settings, name)
        if value is None or not str(value):
            raise ConfigurationError(
                f"kafka.{name} is missing: OAUTHBEARER needs oauth_token_url, oauth_client_id and oauth_client_secret"
            )
    parts = urllib.parse.urlsplit(settings.oauth_token_url or "")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError("kafka.oauth_token_url must be an https:// address of the issuer's token endpoint")
    if parts.username or parts.password:
        raise ConfigurationError("kafka.oauth_token_url must not hold a password: use kafka.oauth_client_secret")


def _issuer_context(settings: KafkaSettings) -> ssl.SSLContext:
    """Trust our authority in addition to the system's: the issuer of tokens may have a public certificate."""
    context = ssl.create_default_context()
    if settings.ssl_ca_file is not None:
        _load("ssl_ca_file", settings.ssl_ca_file, lambda: context.load_verify_locations(cafile=settings.ssl_ca_file))
    return context


def _load(setting: str, path: Path, load: Callable[[], Any]) -> None:
    """Read a certificate file; say which setting is wrong if it cannot be."""
    try:
        path.open("rb").close()
        load()
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError("kafka.ssl_key_file does not belong to kafka.ssl_cert_file") from None
        hint = (
            "not PEM, or its key needs kafka.ssl_key_password"
            if setting == "ssl_cert_file"
            else "not a PEM certificate"
        )
        raise ConfigurationError(f"kafka.{setting} {path} cannot be used: {hint}") from None
    except OSError as error:
        raise ConfigurationError(f"kafka.{setting} {path} cannot be read: {error.strerror}") from None
