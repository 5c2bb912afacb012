"""`drift api`: the HTTP API over a ClickHouse server."""

from pathlib import Path

import click
import uvicorn

from api.app import create_app
from api.security.access import Access
from api.security.tokens import OwnTokens
from deploy.http_server import server_config
from deploy.serving import listen
from deploy.signing_key import read_signing_key
from schemas.clickhouse_dsn import is_embedded
from schemas.errors import ConfigurationError
from schemas.settings import load_settings
from streams.audit_log import KafkaAuditLog
from streams.clock import SystemClock
from streams.control_log import KafkaControlLog
from streams.event_feed import KafkaEventFeed


@click.command(
    epilog="Example: DRIFT_API__AUTH__SIGNING_KEY_FILE=key.pem DRIFT_CLICKHOUSE__DSN=http://ch:8123 drift api"
)
@click.pass_obj
def api(config: Path | None) -> None:
    """Serve the HTTP API over a ClickHouse server; accounts are in Kafka."""
    settings = load_settings(config)
    if is_embedded(settings.clickhouse):
        raise ConfigurationError(
            "`drift api` needs a ClickHouse server (clickhouse.dsn http://...); "
            "an embedded one belongs to one process: use `drift run`"
        )
    access = Access(
        settings.api,
        OwnTokens(read_signing_key(settings.api.auth)),
        KafkaControlLog(settings),
        KafkaAuditLog(settings),
        SystemClock().now_ms,
        print_first_admin,
    )
    listener = listen(settings.api.host, settings.api.port)
    server = uvicorn.Server(
        server_config(create_app(settings, access, feed=KafkaEventFeed(settings)), settings.api, "info")
    )
    server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("the API did not start: the log above says why")


def print_first_admin(tenant: str, account: str, password: str) -> None:
    """Show the one-time password of the first administrator: on the terminal, never in a log."""
    click.echo(
        f"drift api: first start: account {account} of tenant {tenant} has the one-time password {password} "
        "(shown this once; log in with POST /v1/sessions and a new_password)",
        err=True,
    )
