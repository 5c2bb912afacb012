"""`drift predict` on files."""

import json
from pathlib import Path

import pytest

from tests.command import drift
from tests.unit.models.prediction.manifests_of_a_shop import CHANGE

BASELINE = [
    {"src": "shop/checkout", "dst": "shop/cart", "port": 7070, "protocol": 6, "calls": 4000},
    {"src": "shop/web", "dst": "shop/cart", "port": 7070, "protocol": 6, "calls": 9000},
    {"src": "shop/checkout", "dst": "shop/payment", "port": 50051, "protocol": 6, "calls": 300},
    {"src": "shop/checkout", "dst": "shop/currency", "port": 7000, "protocol": 6, "calls": 300},
    {"src": "shop/cart", "dst": "shop/redis-cart", "port": 6379, "protocol": 6, "calls": 8000},
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "change").mkdir()
    (tmp_path / "change" / "shop.yaml").write_text(CHANGE, encoding="utf-8")
    (tmp_path / "baseline.jsonl").write_text("\n".join(map(json.dumps, BASELINE)), encoding="utf-8")
    return str(tmp_path / "change"), str(tmp_path / "baseline.jsonl")


def test_json_names_every_change_with_its_line(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, baseline = files
    code, out, _ = drift(capsys, monkeypatch, "predict", change, "--baseline", baseline, "--output", "json")
    report = json.loads(out)
    found = {(one["effect"], one["src"], one["dst"], one["port"]): one for one in report["changes"]}
    assert found.keys() == {("adds", "shop/checkout", "ext:api.fraud.example", 443)}
    assert report["drift_events"] == {"new_external_egress": 1}
    lines = CHANGE.splitlines()
    line = found["adds", "shop/checkout", "ext:api.fraud.example", 443]["location"]["line"]
    assert "apiVersion: v1" in lines[line - 1] and "ConfigMap" in lines[line]
    assert code == 0, report["risk"]
    assert any("cannot be told" in note for note in report["notes"]), "who web is, nobody declares"


def test_the_exit_code_follows_the_risk(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, baseline = files
    codes = [
        drift(capsys, monkeypatch, "predict", change, "--baseline", baseline, "--fail-on", str(risk))[0]
        for risk in (1, 45, 46, 101)
    ]
    assert codes == [1, 1, 0, 0]


def test_markdown_and_sarif_say_the_same(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, baseline = files
    markdown = drift(capsys, monkeypatch, "predict", change, "--baseline", baseline, "--output", "markdown")[1]
    sarif = json.loads(drift(capsys, monkeypatch, "predict", change, "--baseline", baseline, "--output", "sarif")[1])
    (run,) = sarif["runs"]
    assert sarif["version"] == "2.1.0" and run["tool"]["driver"]["name"] == "SecureGuard Drift"
    assert {result["ruleId"] for result in run["results"]} <= {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    for result in run["results"]:
        assert result["message"]["text"] in markdown
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].endswith("shop.yaml") and place["region"]["startLine"] > 1
        assert result["level"] == "warning"


def test_an_edge_list_and_rules(
    tmp_path: Path, files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, rules = tmp_path / "edges.jsonl", tmp_path / "rules.jsonl"
    edges.write_text('\n{"src": "shop/web", "dst": "shop/redis-cart", "port": 6379}\n')
    rules.write_text('{"name": "stores are private", "src": "shop/web", "dst": "shop/redis*"}\n')
    arguments = ("predict", str(edges), "--baseline", files[1], "--rules", str(rules), "--output", "json")
    code, out, _ = drift(capsys, monkeypatch, *arguments)
    changes = json.loads(out)["changes"]
    assert [(one["effect"], one["location"]["line"]) for one in changes] == [("violates", 2), ("adds", 2)]
    assert code == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "is no YAML"),
        ("{{ .Values.x }}: {{", "templates must be rendered first"),
        ("a: &x {b: 1}\nc: [" + ", ".join(["*x"] * 1_001) + "]", "too many aliases"),
    ],
)
def test_broken_files_are_one_line(
    tmp_path: Path,
    files: tuple[str, str],
    text: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(text)
    code, _, err = drift(capsys, monkeypatch, "predict", str(broken), "--baseline", files[1])
    assert code == 2 and complaint in err and len(err.strip().splitlines()) == 1


def test_something_to_compare_with_is_asked_for(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = drift(capsys, monkeypatch, "predict", files[0])
    assert code == 2 and "--tenant NAME or --baseline FILE" in err
