"""`drift backtest` and what it prints: one finding a line with keys that stay, and what became of every record."""

import gzip
import json
import random
import sys
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deploy.cli import main
from deploy.commands.backtest import _report
from deploy.file_report import format_line, tally_line
from deploy.live_view import progress_bar
from models.graph.summary import Summary
from streams.replay import Tally
from tests.bench import real_backtests

PAGE = Path(__file__).parents[3] / "docs/sources/README.md"
KEYS = [
    *("event_id", "finding_id", "fingerprint", "incident_id", "tenant", "lane", "generation", "kind", "activity"),
    *("episode", "severity", "risk_score", "confidence", "is_alert", "is_early", "time_ms", "window_start_ms"),
    *("window_end_ms", "first_seen_ms", "src", "dst", "port", "protocol", "edges", "edges_total", "evidence", "title"),
    *("message", "checks", "close_reason", "seen_in", "verdict"),
]
START_S = 1_700_000_000


def conn(at_s: float, src: str, port: int) -> str:
    return f"{at_s:.6f}\t10.0.0.{src}\t40000\t10.0.0.9\t{port}\ttcp\tSF\t10\t20"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A sensor's log whose columns are not Zeek's own: usual traffic, then a port that nobody used before."""
    draw = random.Random(4)
    lines = ["#separator \\x09", "#path\tconn"]
    lines.append("#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tconn_state\torig_bytes\tresp_bytes")
    for second in range(0, 1_800, 10):
        lines.append(conn(START_S + second + draw.random(), "1", 443))
        if second >= 1_500:
            lines.append(conn(START_S + second + 1, "1", 22))
    lines += ["junk", "#close\t2023-11-15-00-00-00"]
    path = tmp_path / "conn.log"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def drift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["drift", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr()


def test_findings_are_lines_of_json_whose_keys_stay(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = drift(capsys, monkeypatch, "backtest", str(log), "--format", "auto", "--json")
    findings = [json.loads(line) for line in out.splitlines()]
    assert [list(finding) for finding in findings] == [KEYS] * len(findings)
    assert [(finding["kind"], finding["dst"], finding["port"]) for finding in findings] == [
        ("new_port", "ip:10.0.0.9", 22)
    ]
    assert findings[0]["tenant"] == "default" and not findings[0]["is_early"]
    assert len({finding["finding_id"] for finding in findings}) == len(findings)
    assert "1 new_port" in err and "\x1b" not in err
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in KEYS)


def test_an_inventory_names_services_from_the_first_flow_on(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = log.with_name("rules.csv")
    rules.write_text("cidr,name\n10.0.0.9,shop/db\n", encoding="utf-8")
    out, _ = drift(capsys, monkeypatch, "backtest", str(log), "--format", "auto", "--json", "--inventory", str(rules))
    findings = [json.loads(line) for line in out.splitlines()]
    assert [(finding["kind"], finding["src"], finding["dst"]) for finding in findings] == [
        ("new_port", "ip:10.0.0.1", "shop/db")
    ]


def test_an_inventory_needs_an_owner_where_flows_have_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flows, rules = tmp_path / "flows.jsonl", tmp_path / "rules.csv"
    flows.write_text('{"time_ms":1,"src":"a","dst":"b","tenant":"acme"}', encoding="utf-8")
    rules.write_text("cidr,name\n10.0.0.9,shop/db\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["drift", "backtest", str(flows), "--inventory", str(rules)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "say whose the inventory is (--tenant)" in capsys.readouterr().err


def test_a_finding_that_goes_on_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for window in range(80):  # twenty windows of usual latency, then an hour of three times as much
        latency_us = 10_000 if window < 20 else 30_000
        for call in range(20):
            time_ms = (START_S + window * 60 + call * 3) * 1_000
            lines.append(json.dumps({"time_ms": time_ms, "src": "a", "dst": "b", "latency_us": latency_us + call * 10}))
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(lines))
    arguments = ("backtest", str(path), "--tenant", "t", "--set", "update_every_windows=2")
    whole, _ = drift(capsys, monkeypatch, *arguments, "--ocsf")
    out, _ = drift(capsys, monkeypatch, *arguments, "--json")
    findings = [json.loads(line) for line in out.splitlines()]
    assert [finding["kind"] for finding in findings] == ["latency_increase"]
    assert len(whole.splitlines()) > 2  # opened and updated


def test_every_record_is_accounted_for_and_the_first_dead_letter_shown(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = drift(capsys, monkeypatch, "backtest", str(log), "--format", "auto", "--tenant", "acme")
    assert out.startswith("format: zeek-conn, recognised; fields as its first lines say\n")
    assert "215 records: 210 flows, 4 not flow records (header 4), 1 dead letters (malformed 1)\n" in out
    assert "first dead letter: record 214: malformed: 1 fields, and 9 are expected\n" in out
    assert "many are late" not in out


@pytest.mark.parametrize(("late", "remarks"), [(1, False), (2, True)])
def test_a_file_in_another_order_than_its_times_is_remarked(late: int, remarks: bool) -> None:
    lines = list(_report(Tally(flows=100), Summary(rows=Counter(late=late)), None))
    assert any("many are late: give --lateness" in line for line in lines) is remarks
    assert lines[-1] == "findings: none"


def test_what_the_state_machine_refuses_is_a_dead_letter_and_no_flow() -> None:
    tally = Tally(flows=10)
    first, *_ = _report(tally, Summary(rows=Counter(dead=3)), None)
    assert first == "10 records: 7 flows, 0 not flow records, 3 dead letters (state-machine 3)"


def test_a_wrong_format_is_told_by_what_the_file_looks_like(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = drift(capsys, monkeypatch, "backtest", str(log))
    assert "215 dead letters" in out and out.endswith("the file looks like zeek-conn: try --format zeek-conn\n")
    assert "looks like" not in drift(capsys, monkeypatch, "backtest", str(log), "--format", "zeek-conn")[0]


def test_the_report_counts_the_most_frequent_first() -> None:
    tally = Tally(3, Counter(dns=1, header=2), Counter({"malformed": 1_000}), Counter(skipdata=1))
    assert tally_line(tally) == (
        "1,006 records: 3 flows, 3 not flow records (header 2, dns 1), 1,000 dead letters (malformed 1,000); "
        "loss reported: skipdata 1"
    )
    assert tally_line(Tally()) == "0 records: 0 flows, 0 not flow records, 0 dead letters"
    assert format_line("hubble", "hubble") == "format: hubble"
    assert format_line("auto", "hubble") == "format: hubble, recognised"


@pytest.mark.parametrize(
    ("is_terminal", "is_off", "shows"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_progress_is_for_terminals(is_terminal: bool, is_off: bool, shows: bool) -> None:
    console = Console(file=StringIO(), force_terminal=is_terminal)
    with progress_bar(console, "reading", is_off=is_off) as progress:
        progress(1, 2)
    assert isinstance(console.file, StringIO) and ("reading" in console.file.getvalue()) is shows


# -- the bench of real files -------------------------------------------------------------------------------------------


def test_findings_are_counted_by_hour_ranked_and_found_by_pair() -> None:
    def finding(hour: float, risk: int, dst: str, kind: str = "new_port") -> dict[str, object]:
        return {
            "time_ms": int(hour * real_backtests.HOUR_MS),
            "kind": kind,
            "risk_score": risk,
            "finding_id": dst,
            "src": "a",
            "dst": dst,
            "edges": [{"src": "x", "dst": dst}],
        }

    findings = [finding(1.5, 10, "b"), finding(1.9, 30, "c", "new_edge"), finding(25.6, 10, "d")]
    assert real_backtests.by_hour(findings) == {1: Counter(new_port=1, new_edge=1), 25: Counter(new_port=1)}
    assert [one["dst"] for one in real_backtests.ranked(findings)] == ["c", "b", "d"]
    assert real_backtests.most_in_a_day(findings) == 2
    assert real_backtests.concerns(findings[0], "a", "b") and real_backtests.concerns(findings[0], "x", "b")
    assert not real_backtests.concerns(findings[0], "b", "a")
