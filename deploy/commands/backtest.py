"""`drift backtest`: what would have been raised over a file of flows; the same pure core, without Kafka."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
from rich.console import Console

from deploy.commands.options import lane_options
from deploy.live_view import line_of, progress_bar
from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.summary import Summary
from schemas.dead_letter import DeadLetter
from schemas.drift import Activity, DriftEvent
from schemas.ocsf import encode_event
from streams.clock import SystemClock
from streams.replay import ReplayLane, local_records


def run_backtest(
    file: Path,
    format_name: str,
    lane: ReplayLane,
    *,
    as_of_ms: int,
    on_dead_letter: Callable[[DeadLetter], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Output]:
    """Yield what each stretch of the file brings about, closed windows and events as the stream worker would."""
    machine = Machine()
    records = local_records(
        file, format_name, lane, as_of_ms=as_of_ms, on_dead_letter=on_dead_letter, progress=progress
    )
    for offset, record in enumerate(records):
        yield machine.apply(offset, record)


@click.command(epilog="Example: drift backtest flows.jsonl.gz --window 10s --set learning_windows=12 --json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@lane_options
@click.option("--json", "as_json", is_flag=True, help="One settled finding a line.")
@click.option("--ocsf", is_flag=True, help="Every event as it would stand on `drift-events`, one a line.")
@click.pass_obj
def backtest(
    config: Path | None,
    file: Path,
    format_name: str,
    tenant: str | None,
    window: int,
    lateness: int,
    thresholds: tuple[tuple[str, float], ...],
    as_json: bool,
    ocsf: bool,
) -> None:
    """Read FILE (JSON lines, JSON or Arrow; gzip and zstd too) and say what would have been raised."""
    lane = ReplayLane(f"replay:{file.name}", window, lateness, dict(thresholds), tenant)
    console = Console(stderr=as_json or ocsf)
    summary, dead = Summary(), Counter[str]()

    def on_dead_letter(letter: DeadLetter) -> None:
        dead[letter.reason.value] += 1

    with progress_bar(Console(stderr=True), f"reading {file.name}") as progress:
        outputs = run_backtest(
            file,
            format_name,
            lane,
            as_of_ms=SystemClock().now_ms(),
            on_dead_letter=on_dead_letter,
            progress=progress,
        )
        for output in outputs:
            summary.add(output)
            for event in output.events:
                _show(event, console, as_json, ocsf)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.findings.items())) or "none"
    console.print(
        f"{summary.flows:,} flows, {summary.windows:,} windows, {len(summary.edges):,} edges, "
        f"{len(summary.tenants)} tenants, {summary.rows['late']:,} late, "
        f"{sum(dead.values()) + summary.rows['dead']:,} dead letters\nfindings: {kinds}",
        highlight=False,
    )


def _show(event: DriftEvent, console: Console, as_json: bool, ocsf: bool) -> None:
    if ocsf:
        sys.stdout.buffer.write(encode_event(event) + b"\n")
    elif as_json:
        # Settled: a Create at its window's close, or the one Update that settles an early Create.
        if not event.is_early and event.activity is not Activity.CLOSE:
            sys.stdout.write(json.dumps(msgspec.to_builtins(event)) + "\n")
    else:
        console.print(line_of(event), soft_wrap=True)
