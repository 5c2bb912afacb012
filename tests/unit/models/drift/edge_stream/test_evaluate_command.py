"""`drift evaluate edges`: figures of a file with labels, and one line for files that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from schemas.errors import ConfigurationError

KEYS = {
    "roc_auc",
    "average_precision",
    "roc_auc_without",
    "average_precision_without",
    "roc_auc_macro",
    "edges_per_s",
}


def _table(first_day: int, *, attacks: bool = True) -> pa.Table:
    """Two days of ordinary calls; a flood and a sweep of newcomers; some misuse that looks ordinary."""
    rng = np.random.default_rng(first_day)
    minutes = np.sort(rng.integers(0, 2 * 1440, 6_000))
    rows = [(int(m), f"svc-{rng.integers(8)}", f"db-{rng.integers(4)}", "-") for m in minutes]
    if attacks:
        rows += [(2_000, "flooder", "db-1", "flood")] * 800
        rows += [(2_500 + n % 3, "scanner", f"host-{n}", "sweep") for n in range(60)]
        rows += [(n * 97, f"svc-{n % 8}", "db-2", "misuse") for n in range(20)]
    rows.sort(key=lambda row: row[0])
    ts = [900_028_800 + first_day * 86_400 + minute * 60 for minute, *_ in rows]
    columns: dict[str, list[object]] = {
        "ts": [*ts],
        "src": [r[1] for r in rows],
        "dst": [r[2] for r in rows],
        "attack": [r[3] for r in rows],
    }
    columns["label"] = [int(name != "-") for name in columns["attack"]]
    return pa.table(columns)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    pq.write_table(_table(10), path)
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", "edges", *map(str, arguments)])


def _json(*arguments: object) -> dict[str, object]:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    measured: dict[str, object] = json.loads(result.stdout)
    return measured


def _refusal(*arguments: object) -> str:
    error = _run(*arguments).exception
    assert isinstance(error, ConfigurationError)
    assert "\n" not in str(error)
    return str(error)


def test_figures_of_a_labelled_file(data: Path) -> None:
    measured = _json("--data", data, "--without", "flood")
    assert set(measured) >= KEYS
    assert measured["attacks"] == 880
    by_class = measured["roc_auc_by_class"]
    assert isinstance(by_class, dict)
    flood, sweep, misuse = (by_class[name] for name in ("flood", "sweep", "misuse"))
    assert measured["roc_auc_without"] == pytest.approx((60 * sweep + 20 * misuse) / 80)
    assert measured["roc_auc_macro"] == pytest.approx((flood + sweep + misuse) / 3)
    assert measured["roc_auc"] == pytest.approx((800 * flood + 60 * sweep + 20 * misuse) / 880)
    assert min(flood, sweep) > 0.9 > misuse


def test_plain_engine_gives_the_same_figures(data: Path) -> None:
    fast, plain = _json("--data", data), _json("--data", data, "--plain")
    assert plain["engine"] == "numpy"
    for key in ("roc_auc", "average_precision", "roc_auc_macro", "alerts_per_day"):
        assert plain[key] == fast[key]


def test_csv_and_label_alone_are_enough(data: Path, tmp_path: Path) -> None:
    table = pq.read_table(data)
    csv = tmp_path / "data.csv"
    rows = zip(*(table[name].to_pylist() for name in ("ts", "src", "dst", "label")), strict=True)
    csv.write_text("ts,src,dst,label\n" + "".join(f"{ts},{src},{dst},{label}\n" for ts, src, dst, label in rows))
    measured = _json("--data", csv)
    assert measured["roc_auc"] == _json("--data", data)["roc_auc"]
    assert measured["roc_auc_by_class"].keys() == {"attack"}  # type: ignore[attr-defined]


def test_warm_file_is_fed_and_not_scored(data: Path, tmp_path: Path) -> None:
    warm = tmp_path / "warm.parquet"
    pq.write_table(_table(0, attacks=False).drop_columns(["attack", "label"]), warm)
    cold, warmed = _json("--data", data), _json("--data", data, "--warm", warm)
    assert warmed["records"] == cold["records"]
    assert warmed["average_precision"] != cold["average_precision"]
    assert isinstance(cold["records_by_class"], dict)
    assert cold["records_by_class"] == warmed["records_by_class"]


def test_table_for_people(data: Path) -> None:
    result = _run("--data", data, "--without", "flood")
    assert result.exit_code == 0
    assert "without flood" in result.stdout
    assert "scored edges" in result.stdout


def test_help_shows_an_example() -> None:
    assert "Example: drift evaluate edges --data" in _run("--help").stdout


def test_wrong_files_are_one_line(data: Path, tmp_path: Path) -> None:
    assert "cannot read" in _refusal("--data", tmp_path / "none.parquet")
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"not a table")
    assert "as parquet or CSV" in _refusal("--data", garbage)
    table = pq.read_table(data)
    for drop, message in ((["src"], "no column src"), (["attack", "label"], "neither a column attack")):
        short = tmp_path / "short.parquet"
        pq.write_table(table.drop_columns(drop), short)
        assert message in _refusal("--data", short)
    pq.write_table(table.slice(0, 0), short)
    assert "holds no records" in _refusal("--data", short)
    words = table.set_column(0, "ts", pa.array(["yesterday"] * len(table)))
    pq.write_table(words, short)
    assert "ts must be a time" in _refusal("--data", short)
    assert "no such attack" in _refusal("--data", data, "--without", "worm")
    assert "--warm comes first" in _refusal("--data", data, "--warm", data)
