"""`drift worker`: one stream worker, until SIGTERM or Ctrl-C."""

import asyncio
import signal
from functools import partial
from pathlib import Path

import click

from deploy.serving import EXIT_UNFINISHED, Grace, end_now, serve_health, stop_once
from schemas.settings import Settings, load_settings
from streams.app import Worker
from streams.clickhouse import connect
from streams.graph_scores.status import banner


@click.command(epilog="Example: DRIFT_KAFKA__BOOTSTRAP=broker:9092 drift worker")
@click.option("--no-sinks", is_flag=True, help="Leave writing to ClickHouse to other workers.")
@click.option("--accept-loss", is_flag=True, help="Go on where records were lost; it is marked in the log and counted.")
@click.pass_obj
def worker(config: Path | None, no_sinks: bool, accept_loss: bool) -> None:
    """Run one stream worker: ingest, graph and sink agents.

    SIGTERM or Ctrl-C: finish what is under way, store, commit, leave the group, exit 0. After worker.grace_ms the
    process ends anyway with exit code 75; nothing is lost. A second signal ends it at once.
    """
    settings = load_settings(config)
    if accept_loss:
        settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"accept_loss": True})})
    asyncio.run(_run(settings, sinks=not no_sinks))


async def _run(settings: Settings, sinks: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_once, loop, stop)
    click.echo(f"drift worker: graph model: {banner(settings.gnn.models_dir if sinks else None)}", err=True)
    running = Worker(settings, partial(connect, settings.clickhouse) if sinks else None)
    health = serve_health(running)
    grace = Grace(settings.worker.grace_ms)
    try:
        if await _start(running, stop):
            click.echo("drift worker: ready", err=True)
            await running.run_until(stop)
    finally:
        grace.begin()
        if stop.is_set():
            click.echo(f"drift worker: stopping, at most {settings.worker.grace_ms / 1000:g} s", err=True)
        is_finished = await running.stop()
        if health is not None:
            health.close()
    scores = running.standing.scores
    if any(sink.is_busy for sink in running.standing.sinks) or (scores is not None and scores.is_cut):
        end_now(0, "stopped; ClickHouse has not taken what is under way, the next owner inserts it again")
    if not is_finished:
        if grace.is_over:
            grace.end()
        end_now(EXIT_UNFINISHED, "the worker could not finish; nothing is lost, the next owner repeats")
    click.echo("drift worker: stopped", err=True)


async def _start(running: Worker, stop: asyncio.Event) -> bool:
    """Start the worker; ``False`` if it was asked to stop before it had started."""
    starting, stopping = asyncio.ensure_future(running.start()), asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    await asyncio.wait({starting}, timeout=1)
    return False
