"""`drift api`: the HTTP API over a ClickHouse server."""

from pathlib import Path

import click
import uvicorn

from api.app import create_app
from deploy.serving import listen
from schemas.clickhouse_dsn import is_embedded
from schemas.errors import ConfigurationError
from schemas.settings import load_settings


@click.command(epilog="Example: DRIFT_CLICKHOUSE__DSN=http://default@127.0.0.1:8123 drift api")
@click.pass_obj
def api(config: Path | None) -> None:
    """Serve the RCA API over a ClickHouse server."""
    settings = load_settings(config)
    if is_embedded(settings.clickhouse):
        raise ConfigurationError(
            "`drift api` needs a ClickHouse server (clickhouse.dsn http://...); "
            "an embedded one belongs to one process: use `drift run`"
        )
    listener = listen(settings.api.host, settings.api.port)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="info"))
    server.run(sockets=[listener])
    if not server.started:
        raise ConfigurationError("the API did not start: the log above says why")
