"""An embedded ClickHouse belongs to one process: whoever comes second is refused, and told what to do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_HOLDER = """
import sys
from schemas.settings import load_settings
from streams.clickhouse import connect

client = connect(load_settings(None).clickhouse)
print("held", flush=True)
sys.stdin.read()
client.close()
"""


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"DRIFT_CLICKHOUSE__DSN": f"chdb://{folder}", "PYTHONPATH": str(ROOT)}


def drift(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        env=environment(folder),
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A folder that another process has open, as a worker with sinks has."""
    folder = tmp_path / "clickhouse"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER],
        env=environment(folder),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield folder
    finally:
        holder.communicate()


def test_the_api_beside_a_worker_is_refused_in_one_line(held: Path) -> None:
    ended = drift(held, "api")
    assert ended.returncode == 2 and ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert "needs a ClickHouse server" in line and "use `drift run`" in line


def test_a_second_process_on_the_folder_is_refused(held: Path) -> None:
    ended = drift(held, "migrate")
    assert ended.returncode == 2 and ended.stdout == ""
    assert "another process uses it (stop it first)" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_migration_of_a_folder_says_that_it_makes_no_row_policies(tmp_path: Path) -> None:
    for first_line in ("applied 0001_tables.sql", "nothing to apply"):
        ended = drift(tmp_path / "clickhouse", "migrate")
        assert ended.returncode == 0, ended.stderr
        lines = ended.stdout.splitlines()
        assert lines[0] == first_line and lines[-1].startswith("row policies skipped: the embedded ClickHouse")
