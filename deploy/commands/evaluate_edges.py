"""`drift evaluate edges`: how well the streaming edge scorer ranks labelled records of one's own file."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from rich.console import Console

from deploy.live_view import progress_bar
from models.drift.edge_stream.calibration import AlertCalibration, AlertParams
from models.drift.edge_stream.ranking import average_precision, roc_auc, roc_auc_by_class
from models.drift.edge_stream.scorer import EdgeScorer
from schemas.errors import ConfigurationError

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
KeyColumn = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

CHUNK = 1 << 16
NORMAL = "-"
_NORMAL_NAMES = {NORMAL, "", "normal", "benign", "none", "0"}
_MS_FROM = 100_000_000_000
"""Times from here on are milliseconds: as seconds they would lie after the year 5100."""
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class LabelledEdges:
    """One file of edge records.

    Attributes:
        src, dst: ``(N,)`` hashes of names. event_ms: ``(N,)``. class_of: ``(N,)`` index into ``classes``,
            0 is no attack.
    """

    src: KeyColumn
    dst: KeyColumn
    event_ms: IntColumn
    class_of: IntColumn
    classes: list[str]

    def __len__(self) -> int:
        return len(self.src)


def read_edges(file: Path, *, labelled: bool) -> LabelledEdges:
    """Read ``ts``, ``src``, ``dst`` and ``attack`` and/or ``label`` of a parquet or CSV file.

    Raises:
        ConfigurationError: the file cannot be read, or columns are missing or of no use.
    """
    table = _table(file)
    missing = [name for name in ("ts", "src", "dst") if name not in table.column_names]
    if missing:
        raise ConfigurationError(f"{file.name} has no column {missing[0]}: needs ts, src, dst, and attack or label")
    if labelled and not {"attack", "label"} & set(table.column_names):
        raise ConfigurationError(f"{file.name} has neither a column attack (a name, - for none) nor label (1 or 0)")
    if not table.num_rows:
        raise ConfigurationError(f"{file.name} holds no records")
    for name in {"ts", "src", "dst"}:
        if table[name].null_count:
            raise ConfigurationError(f"{file.name}: {table[name].null_count:,} records have no {name}")
    class_of, classes = _classes(file, table)
    return LabelledEdges(_keys(table["src"]), _keys(table["dst"]), _event_ms(file, table["ts"]), class_of, classes)


def _table(file: Path) -> Any:
    wanted = ("ts", "src", "dst", "attack", "label")
    try:
        if file.name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
            delimiter = "\t" if ".tsv" in file.name else ","
            table = pc_csv.read_csv(file, parse_options=pc_csv.ParseOptions(delimiter=delimiter))
            return table.select([name for name in wanted if name in table.column_names])
        present = pq.read_schema(file).names
        return pq.read_table(file, columns=[name for name in wanted if name in present])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"cannot read {file} as parquet or CSV (.csv, .tsv): {reason}") from error


def _strings(column: Any) -> Any:
    return column.combine_chunks().cast(pa.large_string()).fill_null("").dictionary_encode()


def _keys(column: Any) -> KeyColumn:
    """Hash each name once; rows take the hash of theirs."""
    coded = _strings(column)
    hashes = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        for name in coded.dictionary.to_pylist()
    ]
    keys: KeyColumn = np.array(hashes, dtype=np.uint64)[coded.indices.to_numpy()]
    return keys


def _event_ms(file: Path, column: Any) -> IntColumn:
    try:
        if pa.types.is_timestamp(column.type):
            return np.asarray(column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()).to_numpy(), dtype=np.int64)
        values = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except pa.ArrowException as error:
        raise ConfigurationError(f"{file.name}: ts must be a time, Unix seconds or milliseconds") from error
    if not np.isfinite(values).all() or values.min() < 0:
        raise ConfigurationError(f"{file.name}: ts must be a time, Unix seconds or milliseconds, none below 0")
    in_ms = values if values.max() >= _MS_FROM else values * 1000.0
    return np.floor(in_ms).astype(np.int64)


def _classes(file: Path, table: Any) -> tuple[IntColumn, list[str]]:
    """Number the classes of attack; where both columns stand, ``label`` decides and ``attack`` names."""
    names = ["attack"]
    codes: IntColumn = np.zeros(table.num_rows, dtype=np.int64)
    is_attack: Mask | None = None
    if "attack" in table.column_names:
        coded = _strings(table["attack"])
        names = coded.dictionary.to_pylist()
        codes = coded.indices.to_numpy().astype(np.int64)
        is_attack = ~np.array([name.strip().lower() in _NORMAL_NAMES for name in names], dtype=np.bool_)[codes]
    if "label" in table.column_names:
        try:
            is_attack = table["label"].cast(pa.int64()).fill_null(0).to_numpy() == 1
        except pa.ArrowException as error:
            raise ConfigurationError(f"{file.name}: label must be 1 (attack) or 0") from error
    if is_attack is None:
        is_attack = np.zeros(table.num_rows, dtype=np.bool_)
    return np.where(is_attack, codes + 1, 0), [NORMAL, *names]


def _chunks(edges: LabelledEdges) -> Iterator[slice]:
    for first in range(0, len(edges), CHUNK):
        yield slice(first, min(first + CHUNK, len(edges)))


def _feed(
    edges: LabelledEdges, title: str, scorer: EdgeScorer, alerts: AlertCalibration
) -> tuple[FloatColumn, Mask, float]:
    """Return scores, alerts and the seconds that scoring alone took."""
    scores = np.empty(len(edges))
    raised = np.zeros(len(edges), dtype=np.bool_)
    seconds = 0.0
    with progress_bar(Console(stderr=True), title) as progress:
        for part in _chunks(edges):
            begin = time.perf_counter()
            scores[part] = scorer.score(edges.src[part], edges.dst[part], edges.event_ms[part])
            seconds += time.perf_counter() - begin
            raised[part] = alerts.observe(edges.src[part], edges.dst[part], edges.event_ms[part], scores[part])
            progress(part.stop, len(edges))
    return scores, raised, seconds


def evaluate_edges(
    data: LabelledEdges, warm: LabelledEdges | None, without: tuple[str, ...], *, budget_per_day: int, use_numba: bool
) -> dict[str, Any]:
    """Score ``data`` after ``warm`` and return how well scores rank attacks above normal records."""
    scorer = EdgeScorer(use_numba=None if use_numba else False)
    if scorer.engine == "numba":  # compile outside the measured time
        one = np.ones(1, dtype=np.uint64)
        EdgeScorer(use_numba=True).score(one, one, np.zeros(1, dtype=np.int64))
    alerts = AlertCalibration(AlertParams(budget_per_day=budget_per_day))
    if warm is not None:
        _feed(warm, "warming up", scorer, alerts)
    scores, raised, seconds = _feed(data, "scoring", scorer, alerts)
    is_attack = data.class_of != 0
    left_out = np.array([name in without for name in data.classes], dtype=np.bool_) & (
        np.arange(len(data.classes)) != 0
    )
    kept = ~left_out[data.class_of]
    per_class = {
        data.classes[number]: value
        for number, value in roc_auc_by_class(scores, data.class_of, 0, len(data.classes)).items()
    }
    days = len(np.unique(data.event_ms // DAY_MS))
    count = np.bincount(data.class_of, minlength=len(data.classes))
    return {
        "records": len(data),
        "attacks": int(is_attack.sum()),
        "roc_auc": roc_auc(scores, is_attack),
        "average_precision": average_precision(scores, is_attack),
        "without": list(without),
        "roc_auc_without": roc_auc(scores[kept], is_attack[kept]),
        "average_precision_without": average_precision(scores[kept], is_attack[kept]),
        "roc_auc_macro": float(np.mean(list(per_class.values()))) if per_class else None,
        "roc_auc_by_class": per_class,
        "records_by_class": {name: int(n) for name, n in zip(data.classes, count, strict=True) if n},
        "alert_budget_per_day": budget_per_day,
        "alert_threshold": alerts.threshold,
        "alerts_per_day": int(raised.sum()) / days,
        "alerts_withheld": alerts.state.withheld,
        "alerts_that_are_attacks": float(is_attack[raised].mean()) if raised.any() else None,
        "edges_per_s": len(data) / max(seconds, 1e-9),
        "engine": scorer.engine,
        "state_bytes": scorer.state.size_bytes,
    }


@click.command(
    epilog="Example: drift evaluate edges --data week2.parquet --warm week1.parquet --without neptune,smurf --json"
)
@click.option("--data", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Records to score.")
@click.option("--warm", type=click.Path(path_type=Path, dir_okay=False), help="Earlier records: fed, not scored.")
@click.option("--without", default="", metavar="NAME,NAME", help="Classes to leave out of a second set of figures.")
@click.option("--budget", default=50, show_default=True, type=click.IntRange(1), help="Alerts a day to aim at.")
@click.option("--plain", is_flag=True, help="Plain Python and numpy, even where numba is installed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def edges(data: Path, warm: Path | None, without: str, budget: int, plain: bool, as_json: bool) -> None:
    """Score the edge records of a parquet or CSV file and compare with their labels.

    Columns: ts (a time, Unix seconds or milliseconds), src, dst, and attack (name of the attack, - for none)
    or label (1 or 0). Labels are used after scoring only. Records count in the order of the file.
    """
    labelled = read_edges(data, labelled=True)
    names = tuple(name for name in (part.strip() for part in without.split(",")) if name)
    unknown = [name for name in names if name not in labelled.classes[1:]]
    if unknown:
        raise ConfigurationError(f"--without {unknown[0]}: {data.name} has no such attack")
    earlier = read_edges(warm, labelled=False) if warm else None
    if earlier is not None and earlier.event_ms.max() > labelled.event_ms.min():
        raise ConfigurationError(f"{data.name} begins before {warm.name if warm else ''} ends: --warm comes first")
    result = evaluate_edges(labelled, earlier, names, budget_per_day=budget, use_numba=not plain)
    if as_json:
        click.echo(json.dumps(result))
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [
        ("records, attacks", f"{result['records']:,}, {result['attacks']:,}"),
        ("ROC-AUC, average precision", f"{ratio(result['roc_auc'])}, {ratio(result['average_precision'])}"),
        ("mean ROC-AUC over attack classes", ratio(result["roc_auc_macro"])),
    ]
    if result["without"]:
        figures = f"{ratio(result['roc_auc_without'])}, {ratio(result['average_precision_without'])}"
        lines.insert(2, (f"  without {', '.join(result['without'])}", figures))
    caught = result["alerts_that_are_attacks"]
    lines += [
        ("alerts a day", f"{result['alerts_per_day']:.1f} (budget {result['alert_budget_per_day']})"),
        ("  of them attacks", "-" if caught is None else f"{caught:.0%}"),
        ("scored edges", f"{result['edges_per_s']:,.0f}/s ({result['engine']})"),
        ("memory of the scorer", f"{result['state_bytes'] / 2**20:.1f} MiB"),
    ]
    for what, figure in lines:
        click.echo(f"{what:36} {figure}")
    click.echo("ROC-AUC by class, lowest first:")
    for name, value in sorted(result["roc_auc_by_class"].items(), key=lambda item: item[1]):
        click.echo(f"  {name:34} {value:.3f}  {result['records_by_class'][name]:>9,} records")
