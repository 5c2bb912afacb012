"""`drift backtest --incidents`: findings against incidents that are known."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.incident_report import read_incidents
from schemas.errors import ConfigurationError
from schemas.labelled import LabelledIncident

MINUTE_MS = 60_000
KNOWN = LabelledIncident(
    "slow cart", 30 * MINUTE_MS, 33 * MINUTE_MS, services=("cart",), edges=(("web", "cart"),), kind="cpu"
)


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    """Sixty minutes of calls; those to `cart` are slow for three of them."""
    file = tmp_path / "flows.jsonl"
    rows = []
    for minute in range(60):
        for number in range(20):
            slow = 900_000 if 30 <= minute < 33 else 10_000
            for dst, took_us in (("cart", slow), ("ads", 8_000)):
                time_ms = minute * MINUTE_MS + number * 3_000
                rows.append({"time_ms": time_ms, "src": "web", "dst": dst, "latency_us": took_us, "tenant": "acme"})
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def write_json(folder: Path) -> Path:
    file = folder / "known.json"
    file.write_text(
        json.dumps(
            [
                {
                    "name": KNOWN.name,
                    "start_ms": KNOWN.start_ms,
                    "end_ms": KNOWN.end_ms,
                    "services": ["cart"],
                    "edges": [["web", "cart"]],
                    "kind": "cpu",
                }
            ]
        )
    )
    return file


def test_every_form_says_the_same(tmp_path: Path) -> None:
    whole = write_json(tmp_path)
    lines, table = tmp_path / "known.jsonl", tmp_path / "known.csv"
    lines.write_text(json.dumps(json.loads(whole.read_text())[0]) + "\n")
    table.write_text(
        "name,start_ms,end_ms,services,edges,kind\n"
        f"{KNOWN.name},{KNOWN.start_ms},{KNOWN.end_ms},cart,web->cart,{KNOWN.kind}\n"
    )
    assert [read_incidents(file) for file in (whole, lines, table)] == [[KNOWN]] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no incidents"),
        ('{"name": "x"}', "holds no incidents"),
        ('{"name": "x", "start_ms": 5, "end_ms": 5}', "ends before it begins"),
    ],
)
def test_what_is_no_list_of_incidents_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "known.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as raised:
        read_incidents(file)
    assert "\n" not in str(raised.value)


def test_an_incident_is_found_and_reported(tmp_path: Path, flows: Path) -> None:
    command = ["backtest", str(flows), "--incidents", str(write_json(tmp_path))]
    told = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "episode recall 1.00 (cpu 1.00)" in told
    assert "detection delay 1 windows (median), 1 at most" in told
    made = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False).stdout
    report = json.loads(made)
    assert (report["recall"], report["false_alarms"]) == (1.0, 0)
    assert report["incidents"][0]["finding_kind"] == "latency_increase"
    # Sixty windows, without ten that only teach, three of the incident, and two on either side of it.
    assert report["quiet_windows"] == 60 - 10 - 3 - 4


def test_a_report_and_events_are_not_asked_for_at_once(tmp_path: Path, flows: Path) -> None:
    command = ["backtest", str(flows), "--incidents", str(write_json(tmp_path)), "--ocsf"]
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, ConfigurationError)
