"""`drift evaluate incidents`: recall, delay and false alarms on recorded days whose faults are known."""

import json
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from deploy.commands.options import Threshold
from deploy.fault_recordings.days import read_days
from deploy.fault_recordings.figures import RunFigures, Share, SystemFigures, figures_of
from deploy.live_view import progress_bar


@click.command(epilog="Example: drift evaluate incidents --dataset nezha --data DIR --json")
@click.option("--dataset", required=True, type=click.Choice(["nezha"]), help="Form of the files.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of the files.")
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Of the resampled day.")
@click.option("--hours", default=24, show_default=True, type=click.IntRange(1), help="Length of the resampled day.")
@click.option("--set", "thresholds", type=Threshold(), multiple=True, help="A detection setting, say z_threshold=8.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def incidents(
    dataset: str, data: Path, seed: int, hours: int, thresholds: tuple[tuple[str, float], ...], as_json: bool
) -> None:
    """Send recorded calls through the detectors, and hold findings against the faults that were injected there.

    Windows of a minute. A fault is found by a finding of slow or failing calls on an edge of its service, in its time
    or the minute after. "as recorded": nothing is known before the first recorded minute. "after a day": a continuous
    day was seen before, resampled from the fault-free minutes; that day gives the false alarms a day.
    """
    days, found = read_days(data), []
    with progress_bar(Console(stderr=True), "judging", is_off=as_json) as progress:
        for day in days:
            found.append(figures_of(day, seed, hours, dict(thresholds)))
            progress(len(found), len(days))
    if as_json:
        systems = {f"{one.system} {one.day}": msgspec.to_builtins(one) for one in found}
        result: dict[str, Any] = {"dataset": dataset, "seed": seed, "hours": hours, "set": dict(thresholds)}
        click.echo(json.dumps(result | {"systems": systems}))
    else:
        for one in found:
            _show(one)


def _show(one: SystemFigures) -> None:
    click.echo(
        f"{one.system} {one.day}: {one.false_alarms_per_day:.1f} false alarms a day on {one.judged_days:.2f} resampled "
        f"days ({_listed(one.false_alarms_by_kind)})"
    )
    for name, figures in (("as recorded", one.as_recorded), ("after a day", one.after_a_day)):
        _show_run(name, figures)


def _show_run(name: str, figures: RunFigures) -> None:
    click.echo(
        f"  {name}: {figures.false_alarms} false alarms in {figures.fault_free_minutes} fault-free minutes "
        f"({_listed(figures.false_alarms_by_kind)}); {figures.volume_findings} of volume, at cuts, not counted"
    )
    rows = [*figures.families.items(), *((f"  {kind}", share) for kind, share in figures.kinds.items())]
    for label, share in rows:
        click.echo(f"    {label:20}{_row(share)}")
    if figures.missed:
        click.echo(f"    resource faults missed: {', '.join(figures.missed)}")


def _row(share: Share) -> str:
    delay = f"{share.delay_windows_median:g} / {share.delay_windows_max}" if share.found else "-"
    return f"{share.found:4} of {share.faults:3}{share.recall:8.2f}   delay {delay} windows"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
