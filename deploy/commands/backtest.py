"""`drift backtest`: what would have been raised over a file of flows; the same pure core, without Kafka."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import click
import msgspec
from rich.console import Console

from deploy.commands.options import lane_options
from deploy.file_report import format_line, hint_line, tally_line
from deploy.incident_report import Shown, incident_lines, read_incidents
from deploy.inventory.documents import DEFAULT_DOCUMENT, documents_of, read_file
from deploy.live_view import line_of, progress_bar
from models.graph.logic import LOGIC_VERSION
from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.summary import Summary
from schemas.dead_letter import DeadLetter, Reason
from schemas.drift import Activity, DriftEvent
from schemas.errors import ConfigurationError
from schemas.ids import NO_POSITION
from schemas.inventory import INVENTORY
from schemas.ocsf import encode_event
from schemas.tenant_log import Control, LogRecord, Progress
from streams.clock import SystemClock
from streams.log_files import format_for, holds_tenants
from streams.replay import ReplayLane, Tally, local_records

DEFAULT_TENANT = "default"
"""Owner of flows of producers' formats, which hold no tenant."""

_MANY_LATE = 0.01
"""Share of the flows from which the order of the file is worth a word."""


def run_backtest(
    file: Path,
    format_name: str,
    lane: ReplayLane,
    *,
    as_of_ms: int,
    on_dead_letter: Callable[[DeadLetter], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tally: Tally | None = None,
    controls: Sequence[Control] = (),
) -> Iterator[Output]:
    """Yield what each stretch of the file brings about, closed windows and events as the stream worker would.

    ``controls`` are in force before the first flow.
    """
    machine = Machine()
    records = local_records(
        file, format_name, lane, as_of_ms=as_of_ms, on_dead_letter=on_dead_letter, progress=progress, tally=tally
    )
    for offset, record in enumerate(chain(_controls(controls, as_of_ms), records)):
        yield machine.apply(offset, record)


def _controls(controls: Sequence[Control], as_of_ms: int) -> Iterator[LogRecord]:
    if controls:
        progress = Progress("controls#backtest", 0, NO_POSITION, max(control.position for control in controls))
        yield LogRecord("local", as_of_ms, (progress,), controls=tuple(controls), logic=LOGIC_VERSION)


@click.command(epilog="Example: drift backtest flows.jsonl.gz --window 10s --set learning_windows=12 --json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@lane_options
@click.option(
    "--inventory",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Names services by this file (docs/inventory.md), for the owner of the flows (--tenant).",
)
@click.option(
    "--incidents",
    "incidents_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds findings against known incidents: JSON or CSV with name, start_ms, end_ms, services, edges, kind.",
)
@click.option("--json", "as_json", is_flag=True, help="One settled finding a line; with --incidents one report.")
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
    inventory: Path | None,
    incidents_file: Path | None,
    as_json: bool,
    ocsf: bool,
) -> None:
    """Read FILE, text, JSON or Arrow of any of the formats of `drift sources`, and say what would have been raised.

    gzip and zstd are unpacked. Flows of formats that hold no tenant belong to `default`, unless --tenant names another.
    """
    spelling = format_for(file, format_name)
    if tenant is None and not holds_tenants(spelling):
        tenant = DEFAULT_TENANT
    controls = _inventory(inventory, tenant)
    incidents = read_incidents(incidents_file) if incidents_file is not None else []
    if incidents and ocsf:
        raise ConfigurationError("--incidents makes a report, --ocsf prints events: give one of them")
    lane = ReplayLane(f"replay:{file.name}", window, lateness, dict(thresholds), tenant)
    console = Console(stderr=as_json or ocsf)
    console.print(format_line(format_name, spelling), highlight=False, markup=False)
    summary, tally, shown = Summary(), Tally(), Shown()
    letters: list[DeadLetter] = []
    printed: set[str] = set()

    def keep_first(letter: DeadLetter) -> None:
        if not letters:
            letters.append(letter)

    with progress_bar(Console(stderr=True), f"reading {file.name}", is_off=as_json or ocsf) as progress:
        for output in run_backtest(
            file,
            spelling,
            lane,
            as_of_ms=SystemClock().now_ms(),
            on_dead_letter=keep_first,
            progress=progress,
            tally=tally,
            controls=controls,
        ):
            summary.add(output)
            if incidents:
                shown.add(output)
                continue
            for event in output.events:
                if as_json and not ocsf:
                    _print_settled(event, printed)
                else:
                    _show(event, console, ocsf)
    for line in _report(tally, summary, letters[0] if letters else None):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if incidents:
        report = shown.judge(incidents, window)
        lines = [json.dumps(msgspec.to_builtins(report))] if as_json else incident_lines(report)
        for line in lines:
            click.echo(line)
    hint = hint_line(file, spelling, tally)
    if hint is not None:
        console.print(hint, highlight=False, markup=False, soft_wrap=True)


def _inventory(file: Path | None, tenant: str | None) -> list[Control]:
    if file is None:
        return []
    if tenant is None:
        raise ConfigurationError("the flows name their owners themselves: say whose the inventory is (--tenant)")
    documents = documents_of(DEFAULT_DOCUMENT, read_file(file))
    return [
        Control(tenant, INVENTORY, name, value, position) for position, (name, value) in enumerate(documents.items())
    ]


def _report(tally: Tally, summary: Summary, first: DeadLetter | None) -> Iterator[str]:
    refused = summary.rows["dead"]  # by the state machine, of the flows that were read
    if refused:
        tally.flows -= refused
        tally.dead[Reason.STATE_MACHINE.value] += refused
    yield tally_line(tally)
    if first is not None:
        yield f"first dead letter: record {first.offset + 1}: {first.reason.value}: {first.detail}"
    late = summary.rows["late"]
    yield (f"{summary.windows:,} windows, {len(summary.edges):,} edges, {len(summary.tenants)} tenants, {late:,} late")
    if late > tally.flows * _MANY_LATE:
        yield "many are late: give --lateness, or event time as the file is ordered (time=end in the format's options)"
    yield "findings: " + (", ".join(f"{count} {kind}" for kind, count in sorted(summary.findings.items())) or "none")


def _show(event: DriftEvent, console: Console, ocsf: bool) -> None:
    if ocsf:
        sys.stdout.buffer.write(encode_event(event) + b"\n")
    else:
        console.print(line_of(event), soft_wrap=True)


def _print_settled(event: DriftEvent, printed: set[str]) -> None:
    """Print a finding once, with its settled numbers: a Create at its window's close, or what settles an early one.

    A finding that goes on is updated later; those updates are no findings of their own.
    """
    if event.is_early or event.activity is Activity.CLOSE or event.finding_id in printed:
        return
    printed.add(event.finding_id)
    sys.stdout.write(json.dumps(msgspec.to_builtins(event)) + "\n")
