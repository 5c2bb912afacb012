"""`drift replay`: pushes a file of flows into Kafka, into a lane of its own."""

import asyncio
from pathlib import Path

import click
from rich.console import Console

from deploy.commands.options import lane_options
from deploy.live_view import progress_bar
from schemas.settings import load_settings
from streams.clock import SystemClock
from streams.kafka_clients import check_connection
from streams.replay import ReplayLane, push_file


@click.command(epilog="Example: drift replay flows.jsonl.gz --tenant acme --window 10s --speed 60")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@lane_options
@click.option("--name", help="Name of the replay; the same name again starts a new generation. Default: the file's.")
@click.option("--into", help="Push into this declared lane instead of a lane `replay:NAME`.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Multiple of real time; default: at once.")
@click.pass_obj
def replay(
    config: Path | None,
    file: Path,
    format_name: str,
    tenant: str | None,
    window: int,
    lateness: int,
    thresholds: tuple[tuple[str, float], ...],
    name: str | None,
    into: str | None,
    speed: float | None,
) -> None:
    """Push FILE (JSON lines, JSON or Arrow; gzip and zstd too) to the replay topic."""
    settings = load_settings(config)
    lane = ReplayLane(
        name=into or f"replay:{name or file.name}",
        window_ms=window,
        lateness_ms=lateness,
        detection=dict(thresholds),
        tenant=tenant,
    )

    async def push() -> int:
        await check_connection(settings.kafka)
        with progress_bar(Console(stderr=True), f"pushing {file.name}") as progress:
            return await push_file(
                settings, file, format_name, lane, clock=SystemClock(), speed=speed, progress=progress
            )

    flows = asyncio.run(push())
    click.echo(f"{flows} flows pushed into lane {lane.name}")
