"""Is there a Kafka that lets us in, and if not, why not? Does I/O: connects and logs in.

Uses aiokafka below its public API (`create_conn`), because its clients keep the cause of a failed start to their log.
"""

import asyncio
import os
import ssl
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from schemas.errors import ConfigurationError
from schemas.settings import KafkaSettings
from streams.kafka_security import client_arguments, uses_sasl, uses_tls

PROBE_S = 3.0
"""How long a server may take to show what it speaks, once it is known not to serve us."""
_API_VERSIONS_REQUEST = bytes.fromhex("0000001000120000000000010006") + b"driftp"
_NO_TLS = "does not speak TLS: set kafka.security_protocol to PLAINTEXT or SASL_PLAINTEXT, or use its TLS port"


async def check_connection(settings: KafkaSettings, timeout_s: float = 10.0) -> None:
    """Connect and log in to one of the bootstrap servers, and reach a broker it advertises.

    Raises:
        ConfigurationError: none of them serves us; one line that says why, and which setting to change.
    """
    arguments = client_arguments(settings)
    arguments.pop("bootstrap_servers")
    problems: list[ConfigurationError] = []
    for host, port, _ in collect_hosts(settings.bootstrap, randomize=False):
        try:
            async with asyncio.timeout(timeout_s):
                await _reach(host, port)
                if uses_tls(settings):
                    await _shake_hands(host, port, arguments["ssl_context"])
                brokers = await _talk(settings, host, port, arguments, timeout_s)
            await _reach_advertised(brokers, host, port)
            return
        except TimeoutError:
            problems.append(await _explain_silence(settings, host, port, timeout_s))
        except ConfigurationError as problem:
            problems.append(problem)
    # a server that answered tells more than one that cannot be reached
    raise next((problem for problem in problems if not isinstance(problem, _Unreachable)), problems[0])


class _Unreachable(ConfigurationError):
    """Nobody answers at the address."""


async def _reach(host: str, port: int) -> None:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        raise _unreachable(host, port, "no answer") from None
    except OSError as error:
        # asyncio puts its own words into strerror; the system's say more
        number = error.errno or 0
        raise _unreachable(host, port, os.strerror(number) if number > 0 else str(error)) from None
    writer.close()


def _unreachable(host: str, port: int, reason: str) -> _Unreachable:
    return _Unreachable(f"no Kafka at {host}:{port} ({reason}): start it, or set kafka.bootstrap")


async def _shake_hands(host: str, port: int, context: ssl.SSLContext) -> None:
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.rstrip(".")
        if "mismatch" in why or "doesn't match" in why:
            hint = "connect by a name that is in it"
        elif "expired" in why:
            hint = "renew it"
        else:
            hint = "set kafka.ssl_ca_file to the certificate of the authority that issued it"
        raise ConfigurationError(f"the certificate of {host}:{port} is not accepted ({why}): {hint}") from None
    except OSError as error:  # ssl.SSLError is one
        raise await _explain_handshake(host, port, error) from None
    writer.close()


async def _explain_handshake(host: str, port: int, error: OSError) -> ConfigurationError:
    if await _speaks_plaintext(host, port):
        return ConfigurationError(f"{host}:{port} {_NO_TLS}")
    reason = getattr(error, "reason", None) or error.strerror or "connection closed"
    return ConfigurationError(f"TLS handshake with {host}:{port} failed: {reason}")


async def _talk(
    settings: KafkaSettings, host: str, port: int, arguments: dict[str, Any], timeout_s: float
) -> list[tuple[str, int]]:
    """Log in and ask for the brokers; returns their advertised addresses."""
    where = f"{host}:{port}"
    connection = None
    try:
        connection = await create_conn(host, port, request_timeout_ms=int(timeout_s * 1000), **arguments)
        metadata = await connection.send(MetadataRequest([]))
        if settings.sasl_mechanism == "OAUTHBEARER" and not metadata.brokers:
            # a refused token comes back as a challenge, which aiokafka takes for success: then every answer is empty
            raise SaslAuthenticationFailed
        return [(str(broker[1]), int(broker[2])) for broker in metadata.brokers]
    except UnsupportedSaslMechanismError:
        raise ConfigurationError(
            f"{where} does not offer {settings.sasl_mechanism}: set kafka.sasl_mechanism to one that it has"
        ) from None
    except IllegalSaslStateError:
        raise ConfigurationError(
            f"{where} has no log-in: set kafka.security_protocol to {'SSL' if uses_tls(settings) else 'PLAINTEXT'}"
        ) from None
    except SaslAuthenticationFailed:
        whose = "the token" if settings.sasl_mechanism == "OAUTHBEARER" else f"user {settings.sasl_username!r}"
        which = (
            "oauth_client_id and oauth_scope"
            if settings.sasl_mechanism == "OAUTHBEARER"
            else "sasl_username and sasl_password"
        )
        raise ConfigurationError(f"{where} refuses {whose}: check kafka.{which}") from None
    except AuthenticationFailedError as error:
        raise ConfigurationError(f"{_first(error)}: check kafka.oauth_client_id and oauth_client_secret") from None
    except (KafkaError, OSError, ValueError) as error:
        if isinstance(error, TimeoutError):
            raise
        if "oauth_token_url" in str(error):
            raise ConfigurationError(_first(error)) from None
        raise await _explain_closed(settings, host, port, error) from None
    finally:
        if connection is not None:
            await connection.close()


async def _explain_closed(settings: KafkaSettings, host: str, port: int, error: BaseException) -> ConfigurationError:
    """Say why a broker that accepted the connection closed it."""
    where = f"{host}:{port}"
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLError):  # in TLS 1.3 a server judges our certificate after the handshake
        if settings.ssl_cert_file is None:
            return ConfigurationError(
                f"{where} asks for a client certificate: set kafka.ssl_cert_file and kafka.ssl_key_file"
            )
        return ConfigurationError(
            f"{where} does not accept kafka.ssl_cert_file ({cause.reason}): use one of an authority that it trusts"
        )
    if not uses_tls(settings) and await _speaks_tls(host, port):
        return ConfigurationError(f"{where} speaks TLS: set kafka.security_protocol to SSL or SASL_SSL")
    if uses_tls(settings) and not uses_sasl(settings):
        return ConfigurationError(
            f"{where} closed the connection: it may want a log-in (kafka.security_protocol SASL_SSL) "
            "or a client certificate"
        )
    if not uses_sasl(settings):
        return ConfigurationError(
            f"{where} closed the connection: it may want a log-in (kafka.security_protocol SASL_PLAINTEXT), "
            "or is no Kafka"
        )
    return ConfigurationError(f"{where} closed the connection during log-in: {_first(error)}")


async def _explain_silence(settings: KafkaSettings, host: str, port: int, timeout_s: float) -> ConfigurationError:
    """Say why nothing came back in time."""
    if not uses_tls(settings) and await _speaks_tls(host, port):
        return ConfigurationError(f"{host}:{port} speaks TLS: set kafka.security_protocol to SSL or SASL_SSL")
    if uses_tls(settings) and await _speaks_plaintext(host, port):
        return ConfigurationError(f"{host}:{port} {_NO_TLS}")
    return _unreachable(host, port, f"no answer within {timeout_s:g} s")


async def _reach_advertised(brokers: list[tuple[str, int]], host: str, port: int) -> None:
    for address in brokers:
        try:
            async with asyncio.timeout(5):
                await _reach(*address)
            return
        except (ConfigurationError, TimeoutError):
            continue
    if brokers:
        name, number = brokers[0]
        raise ConfigurationError(
            f"{host}:{port} answers, but advertises {name}:{number}, which cannot be reached from here: "
            "correct its advertised.listeners"
        )


async def _speaks_tls(host: str, port: int) -> bool:
    """Try a handshake that checks nothing: only whether TLS is spoken there; no record of ours is ever sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _speaks_plaintext(host: str, port: int) -> bool:
    """Ask for the API versions in the clear: any Kafka answers that before a log-in."""
    try:
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_API_VERSIONS_REQUEST)
                head = await reader.readexactly(8)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError):
        return False
    return head[4:] == _API_VERSIONS_REQUEST[8:12]  # the correlation id comes back


def _first(error: BaseException) -> str:
    """Return an error's text on one line, without the name aiokafka puts before it."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    return text[:300] or type(error).__name__
