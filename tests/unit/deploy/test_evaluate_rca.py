"""`drift evaluate rca` on small synthetic data sets in the form of the published ones, and on files it cannot use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from schemas.errors import ConfigurationError
from tests.rca_traces import CALLS, OWN_US, USER, Fault, traces

DAY, DAY_S = "2030-01-02", 1_893_542_400
FAULTS = {  # minute of the day: kind, cause, what is wrong, and the processor its pod uses
    20: ("cpu_contention", "payment", Fault(busy_us={"payment": 90_000}), 300.0),
    35: ("network_delay", "mail", Fault(wait_us={("checkout", "mail"): 70_000}), 10.0),
    50: ("return", "frontend", Fault(calls=lambda service, trace: ("cart",) if service == "frontend" else None), 10.0),
}
KEYS = {"ac1", "ac3", "ac5", "avg5", "cases"}
NODES = ("web", "app", "db", "ads")


def _nezha(folder: Path) -> Path:
    """An hour of a shop: calls around three faults, a metric of each pod every minute."""
    rng = np.random.default_rng(9)
    rows, cases = [], []
    for minute, (kind, cause, fault, _) in FAULTS.items():
        begin = DAY_S + minute * 60
        rows += traces(rng, (begin - 240) * 1_000_000, 4, Fault(), a_minute=30)
        rows += traces(rng, begin * 1_000_000, 2, fault, a_minute=30)
        cases.append(
            {
                "case": f"shop_{minute}",
                "system": "shop",
                "day": DAY,
                "inject_ts": begin,
                "duration_s": 180,
                "fault": kind,
                "root_cause": cause,
            }
        )
    names = ("ts_us", "src", "dst", "op", "server_us", "client_us", "trace")
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    pq.write_table(pa.table(columns), folder / f"shop_calls_{DAY}.parquet")
    _pods(folder, rng)
    edges = [[USER, "frontend"], *([caller, callee] for caller, callees in CALLS.items() for callee in callees)]
    (folder / f"shop_graph_{DAY}.json").write_text(json.dumps(edges))
    (folder / "nezha_cases.json").write_text(json.dumps(cases))
    return folder


def _pods(folder: Path, rng: np.random.Generator) -> None:
    pods: dict[str, list[Any]] = {name: [] for name in ("ts", "service", "cpu_m", "mem_pct", "server_p90_s", "ops")}
    for minute in range(60):
        for service, own_us in OWN_US.items():
            busy = next(
                (cpu for at, (_, cause, _, cpu) in FAULTS.items() if at <= minute < at + 3 and cause == service), 10.0
            )
            values = (DAY_S + minute * 60, service, busy * rng.uniform(0.9, 1.1), 40.0, own_us / 1e6, 1.0)
            for column, value in zip(pods.values(), values, strict=True):
                column.append(value)
    pq.write_table(pa.table(pods), folder / f"shop_node_metrics_{DAY}.parquet")


def _petshop(folder: Path) -> Path:
    """Two cases of one traffic scenario: a slow database, an app that fails requests."""
    rng = np.random.default_rng(6)
    rows: list[tuple[str, int, str, str, str, float]] = []
    usual = {"web": 0.09, "app": 0.05, "db": 0.012, "ads": 0.005}
    slow = {"web": 0.19, "app": 0.15, "db": 0.112, "ads": 0.005}
    for case, points, took, available in (
        ("normal", 60, usual, 100.0),
        ("slow", 4, slow, 100.0),
        ("failing", 4, usual, 96.0),
    ):
        for point in range(points):
            at = 1_900_000_000 + point * 300 + {"normal": 0, "slow": 100_000, "failing": 200_000}[case]
            for node in NODES:
                fails = available if node in ("web", "app") else 100.0
                rows.append((case, at, node, "latency", "Average", took[node] * rng.uniform(0.98, 1.02)))
                rows.append((case, at, node, "requests", "Sum", 300.0))
                rows.append((case, at, node, "availability", "Average", fails))
                rows.append((case, at, node, "latency", "p99", 9.9))
    names = ("case", "ts", "node", "metric", "stat", "value")
    table = pa.table({name: [row[n] for row in rows] for n, name in enumerate(names)})
    pq.write_table(table, folder / "petshop_toy_traffic_node_metrics.parquet")
    (folder / "petshop_toy_traffic_graph.json").write_text(json.dumps([["web", "app"], ["app", "db"], ["web", "ads"]]))
    targets = [("slow", "latency", "db", 1_900_100_000), ("failing", "availability", "app", 1_900_200_000)]
    cases = [
        {
            "case": case,
            "target": {"node": "web", "metric": metric, "agg": "Average", "timestamp": at + 310},
            "root_cause": {"node": cause, "metric": None},
        }
        for case, metric, cause, at in targets
    ]
    (folder / "petshop_toy_traffic_cases.json").write_text(json.dumps(cases))
    return folder


@pytest.fixture(scope="module")
def nezha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _nezha(tmp_path_factory.mktemp("nezha"))


@pytest.fixture(scope="module")
def petshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _petshop(tmp_path_factory.mktemp("petshop"))


def _run(dataset: str, data: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", "rca", "--dataset", dataset, "--data", str(data), *map(str, arguments)])


def _json(dataset: str, data: Path, *arguments: object) -> dict[str, Any]:
    result = _run(dataset, data, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _refusal(dataset: str, data: Path, *arguments: object) -> str:
    error = _run(dataset, data, *arguments).exception
    assert isinstance(error, ConfigurationError)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("baseline", ["before", "day"])
def test_known_causes_of_traces_and_metrics_are_named(nezha: Path, baseline: str) -> None:
    found = _json("nezha", nezha, "--baseline", baseline)
    assert set(found) == {"shop"}
    shop = found["shop"]
    assert shop["baseline"] == baseline
    assert set(shop["families"]) == {"resource", "code"}
    for figures in (shop["overall"], shop["seed"], *shop["families"].values()):
        assert set(figures) == KEYS
    assert shop["overall"] == {"ac1": 1.0, "ac3": 1.0, "ac5": 1.0, "avg5": 1.0, "cases": 3}
    assert shop["families"]["resource"]["cases"] == 2


def test_known_causes_of_metrics_alone_are_named_and_propagation_is_why(petshop: Path) -> None:
    found = _json("petshop", petshop)
    toy = found["petshop_toy_traffic"]
    assert toy["overall"]["ac1"] == 1
    assert toy["overall"]["cases"] == 2
    assert set(toy["families"]) == {"latency", "availability"}
    assert toy["seed"]["ac1"] < 1


def test_rankings_of_cases_are_written(nezha: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.json"
    _json("nezha", nezha, "--cases-out", out)
    cases = {case["case"]: case for case in json.loads(out.read_text())}
    assert set(cases) == {"shop_20", "shop_35", "shop_50"}
    delayed = cases["shop_35"]
    assert (delayed["root_cause"], delayed["rank"], delayed["family"]) == ("mail", 1.0, "resource")
    assert delayed["ranking"][0]["service"] == "mail"
    scores = [one["score"] for one in delayed["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert USER not in {one["service"] for case in cases.values() for one in case["ranking"]}
    assert delayed["causes"][0]["path"][:2] == ["mail", "checkout"]
    assert "from checkout to mail" in delayed["causes"][0]["evidence"][0]


def test_leaving_evidence_out_shows_what_it_is_worth(nezha: Path) -> None:
    without = ("--without", "call_mix")
    assert _json("nezha", nezha, *without)["shop"]["families"]["code"]["ac1"] < 1
    everything_but = [
        part for signal in ("self_time", "network", "call_mix", "cpu", "memory") for part in ("--without", signal)
    ]
    assert _json("nezha", nezha, *everything_but)["shop"]["overall"]["ac5"] == 0


def test_stored_windows_alone_find_resource_faults(nezha: Path) -> None:
    assert _json("nezha", nezha, "--inputs", "windows")["shop"]["families"]["resource"]["ac1"] == 1


def test_table_has_the_seed_beside(nezha: Path) -> None:
    lines = _run("nezha", nezha).stdout.splitlines()
    assert lines[0].split() == ["cases", "AC@1", "AC@3", "AC@5", "Avg@5"]
    assert lines[1] == "shop (baseline: before)"
    assert lines[2].split() == ["all", "3", "1.000", "1.000", "1.000", "1.000"]
    assert lines[3].split()[:2] == ["seed", "alone"]


def test_the_same_files_give_the_same_answer(nezha: Path) -> None:
    assert _run("nezha", nezha, "--json").stdout == _run("nezha", nezha, "--json").stdout


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    assert "is no folder" in _refusal("nezha", tmp_path / "absent")
    assert "has no file nezha_cases*.json" in _refusal("nezha", tmp_path)
    assert "has no file petshop_*_cases.json" in _refusal("petshop", tmp_path)
    folder = _nezha(tmp_path)
    assert "--inputs logs: give one or more of traces, metrics, windows" in _refusal(
        "nezha", folder, "--inputs", "logs"
    )
    assert "cannot write" in _refusal("nezha", folder, "--cases-out", tmp_path / "absent" / "cases.json")
    calls = folder / f"shop_calls_{DAY}.parquet"
    pq.write_table(pq.read_table(calls).drop_columns(["client_us"]), calls)
    assert f"{calls.name} has no column client_us" in _refusal("nezha", folder)
    calls.write_bytes(b"no parquet")
    assert f"cannot read {calls.name} as parquet" in _refusal("nezha", folder)
    calls.unlink()
    assert f"has no file {calls.name}" in _refusal("nezha", folder)


def test_cases_that_do_not_fit_are_named_in_one_line(tmp_path: Path) -> None:
    folder = _nezha(tmp_path)
    file = folder / "nezha_cases.json"
    cases = json.loads(file.read_text())
    del cases[1]["inject_ts"]
    file.write_text(json.dumps(cases))
    assert "nezha_cases.json: element 2 has no inject_ts" in _refusal("nezha", folder)
    file.write_text("{}")
    assert "nezha_cases.json holds no list" in _refusal("nezha", folder)
    file.write_text("no json")
    assert "cannot read nezha_cases.json as JSON" in _refusal("nezha", folder)


def test_a_cause_that_no_file_holds_was_not_found(tmp_path: Path) -> None:
    file = _nezha(tmp_path) / "nezha_cases.json"
    cases = json.loads(file.read_text())
    file.write_text(json.dumps([{**cases[0], "root_cause": "nobody"}]))
    out = tmp_path / "cases.json"
    assert _json("nezha", tmp_path, "--cases-out", out)["shop"]["overall"]["ac5"] == 0
    assert json.loads(out.read_text())[0]["rank"] is None


def test_petshop_without_a_run_without_an_issue_is_refused(tmp_path: Path) -> None:
    folder = _petshop(tmp_path)
    file = folder / "petshop_toy_traffic_node_metrics.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pc.not_equal(table["case"], "normal")), file)
    assert "has no case normal" in _refusal("petshop", folder)
    pq.write_table(table.filter(pc.not_equal(table["metric"], "requests")), file)
    assert "has no metric requests with stat Sum" in _refusal("petshop", folder)
    pq.write_table(table.filter(pc.not_equal(table["case"], "slow")), file)
    assert "has no rows of slow" in _refusal("petshop", folder)
    (folder / "petshop_toy_traffic_graph.json").write_text('[["web", 1]]')
    assert "must be a list of [caller, callee]" in _refusal("petshop", folder)
