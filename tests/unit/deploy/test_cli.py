"""What the command line answers to wrong input: one line that says what to do, and exit code 2."""

import json
from pathlib import Path

import pytest

from tests.command import drift

FLOW = b'{"time_ms":1700000000000,"src":"a","dst":"b","tenant":"t"}\n'


@pytest.fixture
def flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flows.jsonl"
    path.write_bytes(FLOW)
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["backtest", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["backtest", "flows.jsonl", "--format", "zeek"], "unknown format 'zeek'"),
        (["backtest", "flows.jsonl", "--window", "0"], "between 1000 ms and 366 days"),
        (["backtest", "flows.jsonl", "--window", "10x"], "is no duration"),
        (["backtest", "flows.jsonl", "--lateness", "9999d"], "between 0 ms and 366 days"),
        (["backtest", "flows.jsonl", "--tenant", ""], "a tenant has 1 to 256 bytes"),
        (["backtest", "flows.jsonl", "--set", "nonsense=1"], "is no detection setting"),
        (["backtest", "flows.jsonl", "--set", "z_threshold=nan"], "takes a number from 0"),
        (["backtest", "flows.jsonl", "--set", "learning_windows=1.5"], "takes a whole number"),
        (["backtest", "flows.jsonl", "--set", "min_calls=-1"], "takes a whole number"),
        (["backtest", "."], "is a directory"),
        (["--config", "absent.yaml", "backtest", "flows.jsonl"], "does not exist"),
        (["--log-level", "LOUD", "run"], "is no level"),
        (["sql", "SELECT 1"], "no drift run answers for drift-data"),
        (["api"], "needs a ClickHouse server"),
        (["walk"], "No such command 'walk'"),
    ],
)
def test_wrong_input_is_named_in_one_line(
    flows: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    code, _, err = drift(capsys, monkeypatch, *arguments)
    assert code == 2
    assert says in " ".join(err.strip().splitlines()[-1:])
    assert "Traceback" not in err


@pytest.mark.parametrize(("content", "flows_read", "dead"), [(b"", 0, 0), (b"no json\n", 0, 1), (FLOW, 1, 0)])
def test_a_backtest_counts_what_it_read_and_what_it_could_not(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    flows_read: int,
    dead: int,
) -> None:
    path = tmp_path / "flows.jsonl"
    path.write_bytes(content)
    code, out, _ = drift(capsys, monkeypatch, "backtest", str(path))
    assert code == 0
    assert f"{flows_read} flows" in out and f"{dead} dead letters" in out.replace("\n", " ")


@pytest.mark.parametrize("left", [b"", b"{}", b"[]", json.dumps({"port": 1, "token": "x"}).encode()])
def test_what_a_killed_instance_left_behind_is_no_instance(
    flows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    folder = flows.parent / "data"
    folder.mkdir()
    (folder / "sql.json").write_bytes(left)
    code, _, err = drift(capsys, monkeypatch, "sql", "--data", str(folder), "SELECT 1")
    assert code == 2 and "no drift run answers" in err
