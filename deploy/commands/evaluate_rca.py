"""`drift evaluate rca`: how often ErrorRank names the known root cause, and whether propagation earns its place."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from deploy.live_view import progress_bar
from deploy.rca_datasets.cases import Baseline, FaultCase, Input
from deploy.rca_datasets.nezha import read_nezha
from deploy.rca_datasets.petshop import read_petshop
from models.rca.accuracy import accuracy_of, rank_of
from models.rca.causes import causes_of
from models.rca.error_rank import score_services
from models.rca.robust import Floats
from schemas.errors import ConfigurationError
from schemas.rca import RootCause

SIGNALS = ("self_time", "network", "call_mix", "latency", "error_ratio", "missing_calls", "cpu", "memory")
NAMED = 5


@dataclass(frozen=True, slots=True)
class RankedCase:
    """One case and where its known cause came. ``scores``, ``seed``: ``(N,)``, services of the case's topology."""

    case: FaultCase
    rank: float
    seed_rank: float
    scores: Floats
    seed: Floats
    named: tuple[RootCause, ...]


def rank_case(case: FaultCase, without: frozenset[str] = frozenset()) -> RankedCase:
    """Rank a case's services, leaving out signals of ``without``."""
    shifts = [shift for shift in case.find() if shift.signal not in without]
    scores = score_services(case.topology, shifts, case.symptom)
    is_service = np.array([name not in case.outside for name in case.topology.services], dtype=np.bool_)
    total = max(float(scores.kept.sum()), 1e-12)
    # Rounded as the API does it, so that ties are ties there too.
    kept, seed = np.round(scores.kept / total, 6), np.round(scores.seed / total, 6)
    cause = case.topology.services.index(case.root_cause) if case.root_cause in case.topology.services else -1
    named = causes_of(
        case.topology,
        shifts,
        np.where(is_service, scores.seed, 0.0),
        np.where(is_service, scores.kept, 0.0),
        {},
        windows=max((int(shift.history.max(initial=0)) for shift in shifts), default=0),
        noticed_by=case.symptom.services,
        limit=NAMED,
    )
    ranks = [rank_of(one, cause, is_service) if cause >= 0 else float("inf") for one in (kept, seed)]
    return RankedCase(case, ranks[0], ranks[1], kept, seed, named)


def figures_of(ranked: Sequence[RankedCase]) -> dict[str, Any]:
    """Return the figures of one system."""
    families = sorted({one.case.family for one in ranked})

    def figures(some: Sequence[RankedCase], *, seed: bool = False) -> dict[str, Any]:
        return asdict(accuracy_of([one.seed_rank if seed else one.rank for one in some]))

    return {
        "overall": figures(ranked),
        "families": {name: figures([one for one in ranked if one.case.family == name]) for name in families},
        "seed": figures(ranked, seed=True),
        "seed_families": {
            name: figures([one for one in ranked if one.case.family == name], seed=True) for name in families
        },
    }


def _case_out(one: RankedCase) -> dict[str, Any]:
    services = one.case.topology.services
    order = sorted(
        np.flatnonzero((one.scores > 0) | (one.seed > 0)).tolist(), key=lambda i: (-one.scores[i], services[i])
    )
    return {
        "case": one.case.case,
        "system": one.case.system,
        "family": one.case.family,
        "fault": one.case.fault,
        "root_cause": one.case.root_cause,
        "rank": one.rank if np.isfinite(one.rank) else None,
        "seed_rank": one.seed_rank if np.isfinite(one.seed_rank) else None,
        "ranking": [
            {"service": services[i], "score": float(one.scores[i]), "seed_score": float(one.seed[i])}
            for i in order
            if services[i] not in one.case.outside
        ],
        "causes": [
            {
                "service": cause.service,
                "confidence": cause.confidence,
                "path": list(cause.path),
                "evidence": [evidence.sentence for evidence in cause.evidence],
            }
            for cause in one.named
        ],
    }


def _read(dataset: str, data: Path, baseline: Baseline, inputs: str) -> list[FaultCase]:
    known = {kind.value: kind for kind in Input}
    wanted = [name for name in (part.strip() for part in inputs.split(",")) if name]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ConfigurationError(f"--inputs {inputs}: give one or more of {', '.join(known)}")
    if dataset == "petshop":
        return read_petshop(data)
    return read_nezha(data, baseline, frozenset(known[name] for name in wanted))


@click.command(epilog="Example: drift evaluate rca --dataset nezha --data DIR --json --cases-out cases.json")
@click.option("--dataset", required=True, type=click.Choice(["nezha", "petshop"]), help="Form of the files.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of the files.")
@click.option(
    "--baseline",
    default=Baseline.BEFORE.value,
    show_default=True,
    type=click.Choice([one.value for one in Baseline]),
    help="Nezha: fault-free time before the fault, or of the whole day. PetShop brings its own run without an issue.",
)
@click.option("--inputs", default="traces,metrics", show_default=True, help="Nezha: of traces, metrics, windows.")
@click.option("--without", multiple=True, type=click.Choice(SIGNALS), help="Evidence to leave out; repeatable.")
@click.option("--cases-out", type=click.Path(path_type=Path, dir_okay=False), help="Write each case's ranking here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def rca(
    dataset: str,
    data: Path,
    baseline: str,
    inputs: str,
    without: tuple[str, ...],
    cases_out: Path | None,
    as_json: bool,
) -> None:
    """Rank the services of faults whose root cause is known, and count how often it comes first.

    AC@k is the share of cases whose cause is among the first k, Avg@5 the mean of AC@1 to AC@5; a tie counts half
    a place, a service without evidence is not found. "seed" is the same evidence before it is propagated.
    """
    cases = _read(dataset, data, Baseline(baseline), inputs)
    ranked: list[RankedCase] = []
    with progress_bar(Console(stderr=True), "ranking") as progress:
        for case in cases:
            ranked.append(rank_case(case, frozenset(without)))
            progress(len(ranked), len(cases))
    systems = sorted({one.case.system for one in ranked})
    result = {system: figures_of([one for one in ranked if one.case.system == system]) for system in systems}
    for system in systems:
        result[system]["baseline"] = baseline if dataset == "nezha" else "run without an issue"
    if cases_out is not None:
        try:
            cases_out.write_text(json.dumps([_case_out(one) for one in ranked], indent=1) + "\n")
        except OSError as error:
            raise ConfigurationError(f"cannot write {cases_out}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps(result))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    click.echo(f"{'':34}{'cases':>6}{'AC@1':>8}{'AC@3':>8}{'AC@5':>8}{'Avg@5':>8}")
    for system, figures in result.items():
        click.echo(f"{system} (baseline: {figures['baseline']})")
        rows = [("all", figures["overall"]), ("  seed alone", figures["seed"])]
        for name, family in figures["families"].items():
            rows += [(name, family), ("  seed alone", figures["seed_families"][name])]
        for name, one in rows:
            shares = "".join(f"{one[key]:8.3f}" for key in ("ac1", "ac3", "ac5", "avg5"))
            click.echo(f"  {name:32}{one['cases']:6}{shares}")
