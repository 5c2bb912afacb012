"""`drift worker`: one stream worker, until SIGTERM or Ctrl-C."""

import asyncio
import signal
from functools import partial
from pathlib import Path

import click
from prometheus_client import start_http_server

from deploy.serving import stop_once
from schemas.errors import ConfigurationError
from schemas.settings import Settings, load_settings
from streams.app import Worker
from streams.clickhouse import connect
from streams.metrics import Metrics


@click.command(epilog="Example: DRIFT_KAFKA__BOOTSTRAP=broker:9092 drift worker")
@click.option("--no-sinks", is_flag=True, help="Leave writing to ClickHouse to other workers.")
@click.option("--accept-loss", is_flag=True, help="Go on where records were lost; it is marked in the log and counted.")
@click.pass_obj
def worker(config: Path | None, no_sinks: bool, accept_loss: bool) -> None:
    """Run one stream worker: ingest, graph and sink agents."""
    settings = load_settings(config)
    if accept_loss:
        settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"accept_loss": True})})
    asyncio.run(_run(settings, sinks=not no_sinks))


async def _run(settings: Settings, sinks: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_once, loop, stop)
    metrics = Metrics()
    port = settings.worker.metrics_port
    if port is not None:
        try:
            start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} cannot be used ({error.strerror}): choose another worker.metrics_port"
            ) from error
    running = Worker(settings, partial(connect, settings.clickhouse) if sinks else None, metrics)
    try:
        await running.start()
        click.echo("drift worker: ready", err=True)
        await running.run_until(stop)
    finally:
        await running.stop()
