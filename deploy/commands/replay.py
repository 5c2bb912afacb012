"""`drift replay`: pushes a file of flows into Kafka, into a lane of its own."""

import asyncio
import json
from pathlib import Path

import click
from rich.console import Console

from deploy.commands.options import lane_options
from deploy.file_report import format_line, hint_line, tally_line
from deploy.live_view import progress_bar
from schemas.settings import load_settings
from streams.clock import SystemClock
from streams.kafka_clients import check_connection
from streams.log_files import format_for
from streams.replay import ReplayLane, Tally, push_file


@click.command(epilog="Example: drift replay flows.jsonl.gz --tenant acme --window 10s --speed 60")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@lane_options
@click.option("--name", help="Name of the replay; the same name again starts a new generation. Default: the file's.")
@click.option("--into", help="Push into this declared lane instead of a lane `replay:NAME`.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Multiple of real time; default: at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the counts.")
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
    as_json: bool,
) -> None:
    """Push FILE, text, JSON or Arrow of any of the formats of `drift sources`, to the replay topic.

    gzip and zstd are unpacked. Formats of producers hold no tenant: --tenant names the owner.
    """
    settings = load_settings(config)
    spelling, tally = format_for(file, format_name), Tally()
    if not as_json:
        click.echo(format_line(format_name, spelling))
    lane = ReplayLane(
        name=into or f"replay:{name or file.name}",
        window_ms=window,
        lateness_ms=lateness,
        detection=dict(thresholds),
        tenant=tenant,
    )

    async def push() -> int:
        await check_connection(settings.kafka)
        with progress_bar(Console(stderr=True), f"pushing {file.name}", is_off=as_json) as progress:
            return await push_file(
                settings, file, spelling, lane, clock=SystemClock(), speed=speed, progress=progress, tally=tally
            )

    asyncio.run(push())
    if as_json:
        counts = {"records": tally.records, "flows": tally.flows, "not_flows": tally.not_flows, "dead": tally.dead}
        click.echo(json.dumps({"lane": lane.name, "format": spelling, **counts, "losses": tally.losses}))
    else:
        click.echo(f"{tally_line(tally)}\n{tally.flows:,} flows pushed into lane {lane.name}")
        hint = hint_line(file, spelling, tally)
        if hint is not None:
            click.echo(hint)
