"""`drift evaluate drifts`: recall, delay and false alarms of drifts injected into resampled real traffic."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from deploy.commands.options import Threshold
from deploy.injected_drifts.drifts import SIZES, Size
from deploy.injected_drifts.figures import (
    PARTS,
    SizeFigures,
    SystemFigures,
    SystemRuns,
    figures_of,
    mean_recall,
    together,
)
from deploy.injected_drifts.recordings import read_recordings
from deploy.injected_drifts.stream import planned, quiet, run
from deploy.injected_drifts.traffic import Recording
from deploy.live_view import progress_bar

EACH = "each"
KINDS = tuple(dict.fromkeys(size.kind for size in SIZES))
_NAMED = 4


@click.command(epilog="Example: drift evaluate drifts --data DIR --seed 7 --without latency --json")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of recorded traces (Nezha's form)."
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Of traffic, places and times.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1), help="How often each size comes.")
@click.option("--hours", default=24, show_default=True, type=click.IntRange(1), help="Length of the untouched stream.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Inject only these; repeatable.")
@click.option("--set", "thresholds", type=Threshold(), multiple=True, help="A detection setting, say z_threshold=8.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice([*PARTS, EACH]),
    help="Part of the verdict to leave out; repeatable. `each`: a table of what each part adds.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def drifts(
    data: Path,
    seed: int,
    rounds: int,
    hours: int,
    kinds: tuple[str, ...],
    thresholds: tuple[tuple[str, float], ...],
    without: tuple[str, ...],
    as_json: bool,
) -> None:
    """Inject drifts of every kind and size into traffic resampled from recorded traces; say which are told, and when.

    Each system has two streams of one-minute windows: one with drifts, one after another at random places and times,
    and one that is left untouched, for false alarms a day; only the latter has an alert budget. Recall counts findings
    that touch an edge of the drift in its time; "nothing" is a control in which nothing was injected, so its recall is
    what chance gives.
    """
    recordings = read_recordings(data, seed)
    named = tuple(name for name in without if name != EACH)
    leave_out = [(name,) for name in PARTS if name not in named] if EACH in without else []
    sizes = [size for size in SIZES if not kinds or size.kind in kinds]
    runs = _Runs(recordings, sizes, seed, rounds, hours, dict(thresholds))
    with progress_bar(Console(stderr=True), "injecting", is_off=as_json) as progress:
        found = {}
        for parts in [(), *leave_out]:
            found[parts] = runs.figures((*named, *parts))
            progress(len(found), len(leave_out) + 1)
    result = {"seed": seed, "rounds": rounds, "hours": hours, "without": list(named), "set": dict(thresholds)}
    result["systems"] = {one.system: _system_out(one) for one in found[()]}
    result["together"] = [one.as_dict() for one in together(found[()])]
    if leave_out:
        result["parts"] = [_part_out(name, found[()], found[name,]) for (name,) in leave_out]
    if as_json:
        click.echo(json.dumps(result))
    else:
        _show(result)


class _Runs:
    """Streams that have been run already, by the thresholds they were judged with."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        sizes: Sequence[Size],
        seed: int,
        rounds: int,
        hours: int,
        thresholds: Mapping[str, float],
    ) -> None:
        self._recordings, self._sizes = recordings, sizes
        self._seed, self._rounds, self._hours = seed, rounds, hours
        self._thresholds = thresholds
        self._done: dict[str, list[SystemRuns]] = {}

    def figures(self, without: Sequence[str]) -> list[SystemFigures]:
        """Return the figures of all systems without the named parts."""
        thresholds = dict(self._thresholds)
        for name in without:
            thresholds |= PARTS[name].thresholds
        unlimited = {"alerts_per_day": 0, **thresholds}  # drifts come many an hour, more than any budget is meant for
        key = json.dumps(thresholds, sort_keys=True)
        if key not in self._done:
            self._done[key] = [
                SystemRuns(
                    one.system,
                    run(one, quiet(one, self._hours * 60), self._seed, thresholds),
                    run(one, planned(one, self._rounds, self._seed, self._sizes), self._seed, unlimited),
                )
                for one in self._recordings
            ]
        return [figures_of(runs, without) for runs in self._done[key]]


def _system_out(figures: SystemFigures) -> dict[str, Any]:
    return {
        "false_alarms_per_day": figures.false_alarms_per_day,
        "false_alerts_per_day": figures.alerts_per_day,
        "false_alarms_by_kind": figures.false_alarms_by_kind,
        "quiet_days": figures.quiet_days,
        "sizes": [one.as_dict() for one in figures.sizes],
    }


def _part_out(name: str, whole: Sequence[SystemFigures], without: Sequence[SystemFigures]) -> dict[str, Any]:
    """Return what a part adds: recall and false alarms without it, and the sizes that lose most."""

    def key(one: SizeFigures) -> tuple[str, str]:
        return one.kind, one.size

    before = {key(one): one.recall for one in together(whole)}
    after = {key(one): one.recall for one in together(without)}
    lost = sorted(after, key=lambda one: (after[one] - before[one], one))
    return {
        "part": name,
        "says": PARTS[name].says,
        "mean_recall": mean_recall(together(without)),
        "mean_recall_lost": mean_recall(together(whole)) - mean_recall(together(without)),
        "false_alarms_per_day": {one.system: one.false_alarms_per_day for one in without},
        "lost": [
            {"kind": one[0], "size": one[1], "recall": before[one], "without": after[one]}
            for one in lost
            if before[one] - after[one] > 0.02
        ],
    }


def _show(result: dict[str, Any]) -> None:
    for system, figures in result["systems"].items():
        by_kind = ", ".join(f"{count} {kind}" for kind, count in figures["false_alarms_by_kind"].items()) or "none"
        click.echo(
            f"{system}: untouched {figures['quiet_days']:.2f} days: {figures['false_alarms_per_day']:.1f} false alarms "
            f"a day, {figures['false_alerts_per_day']:.1f} of them alerts ({by_kind})"
        )
    systems = list(result["systems"])
    click.echo(f"\n{'':32}{'':>9}{'recall':>8}{'alerts':>8}{'delay':>10}{'findings':>10}  told by")
    for number, one in enumerate(result["together"]):
        told = ", ".join(f"{count} {kind}" for kind, count in one["told_by"].items())
        delay = f"{one['delay_windows_median']:g} / {one['delay_windows_max']}" if told else "-"
        by_system = " ".join(f"{result['systems'][name]['sizes'][number]['recall']:.2f}" for name in systems)
        click.echo(
            f"{one['kind']:14}{one['size']:12}{one['episodes']:6}{by_system:>12}{one['recall']:8.2f}"
            f"{one['recall_of_alerts']:8.2f}{delay:>10}{one['findings_median']:9g}  {told}"
        )
    if "parts" in result:
        _show_parts(result["parts"])


def _show_parts(parts: Sequence[dict[str, Any]]) -> None:
    click.echo(f"\n{'without':14}{'mean recall':>14}{'lost':>8}  false alarms a day; what it loses")
    for one in parts:
        alarms = ", ".join(f"{name} {count:.1f}" for name, count in one["false_alarms_per_day"].items())
        lost = ", ".join(
            f"{size['kind']} {size['size']} {size['recall']:.2f} to {size['without']:.2f}"
            for size in one["lost"][:_NAMED]
        )
        click.echo(f"{one['part']:14}{one['mean_recall']:14.3f}{one['mean_recall_lost']:8.3f}  {alarms}; {lost or '-'}")
