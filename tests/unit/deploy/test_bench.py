"""`drift bench` lists every measurement that there is, and runs those it lists."""

from pathlib import Path

import pytest

from deploy.commands.bench import BENCHES
from deploy.source_catalogue import examples_of
from tests.command import drift

FOLDER = Path(__file__).parents[2] / "bench"


def test_every_measurement_is_listed() -> None:
    can_run = {path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")}
    assert {module for module, _ in BENCHES.values()} == can_run
    assert len(can_run) > 10


def test_arguments_and_status_are_the_measurements_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.log").write_text('{"event_type":"flow"}\nnothing\n')
    code, out, _ = drift(capsys, monkeypatch, "bench", "source-files", str(tmp_path))
    assert code == 0 and "cannot be told" in out
    flow = next(case["value"] for case in examples_of("suricata-eve") if case["flows"] and "?" not in case["format"])
    (tmp_path / "odd.log").write_text(flow + "\n" + '{"event_type":"flow"}\n')  # by hand it looks like a flow
    code, out, _ = drift(capsys, monkeypatch, "bench", "source-files", str(tmp_path))
    assert code == 1 and "DIFFER" in out
